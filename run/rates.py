"""What learning rates public examples of DPO with LoRA take, by the size of their model.

docs/guide.md has them one by one, with their repositories and files. Those of torchtune, 5e-4, are
not counted: its development has stopped.
"""

SMALL = 0.4e9  # parameters; this project measured the rates of smaller models itself, at 270M
USUAL = 5e-6  # what most of the examples take, whatever their model's size
LARGEST = ((12e9, 2e-4), (float("inf"), 5e-6))  # for models of up to so many parameters


def largest_rate(parameters: int) -> float | None:
    """Return the largest learning rate that the examples take for a model of this size.

    Args:
        parameters: of the base, counted before it is quantised.

    Returns:
        The peak rate of an optimizer step, as `--lr` has it; None for small models, for which this
        project's own measurements stand. A model that is larger than those of all examples has
        the rate of the largest of them.
    """
    if parameters < SMALL:
        return None
    return next(rate for limit, rate in LARGEST if parameters <= limit)


def remark(lr: float, parameters: int) -> str:
    """Say that a rate is above `largest_rate`, and lr / largest_rate; "" if it is not."""
    largest = largest_rate(parameters)
    if largest is None or lr <= largest:
        return ""
    billions = f"{parameters / 1e9:.1f}".removesuffix(".0")
    usual = f", most {USUAL:g}" if USUAL < largest else ""
    return (
        f"--lr {lr:g} is {lr / largest:.3g} times what the examples for models of some {billions} "
        f"billion parameters take (up to {largest:g}{usual}; docs/guide.md); watch the drift"
    )
