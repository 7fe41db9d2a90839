"""When memory runs out: the same work again with half the tokens at once."""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")
SMALLEST = 16  # tokens; a question larger than the budget goes alone in any case


class OutOfMemory(RuntimeError):
    """Not even one question at a time fits; the message says what to change."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a device or the machine ran out of memory; a CPU says so in a plain error."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "not enough memory" in text
    )


def within_memory(
    work: Callable[[int], Result],
    budget: int,
    undo: Callable[[], None] = lambda: None,
    alone: bool = True,
) -> tuple[Result, int]:
    """Return (work(budget), budget); where memory runs out, undo it and try half the budget.

    The random generators start again where they were. Gradients do not depend on how a step is cut
    into micro-batches, so that only time is lost. Where this process is not `alone`, others wait
    for it in the middle of the work, and it cannot be tried again.

    Raises:
        OutOfMemory: the budget cannot be halved any more, or not alone.
    """
    random = torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    while True:
        try:
            return work(budget), budget
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not alone:
                raise OutOfMemory(
                    "out of memory; try --checkpointing on, a shorter --max-length, more processes"
                ) from error
            if budget // 2 < SMALLEST:
                raise OutOfMemory(
                    "out of memory even with one question at a time; use a shorter --max-length, a "
                    "lower --rank, --quantize nf4 or a smaller model"
                ) from error
        # outside of the handler, which would keep the failed work's tensors alive
        budget //= 2
        undo()
        torch.set_rng_state(random)
        if on_gpu is not None:
            torch.cuda.empty_cache()
            torch.cuda.set_rng_state(on_gpu)
        print(f"Out of memory: going on with {budget} tokens at once.", flush=True)
