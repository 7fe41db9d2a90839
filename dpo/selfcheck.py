"""The self-check at start-up: do tries give this model's own log-probs?

Tree masks, positions and the head are read off a model's configuration. Where that reading is wrong
for an architecture, training falls back to plain padded rows through the model's own forward.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from data.encode import EncodedQuestion
from data.question import DataError
from data.table import Table
from data.trees import TreeBatch, collate, question_tries
from dpo.logps import answer_logps

# Nats a token. Gemma 3 270M in bfloat16: honest rounding gives .005 to .008, and letting each token
# see the column before it, which is wrong at branches alone, .03 to .05.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.005}


class NumericError(ArithmeticError):
    """Scores or gradients are not finite; the message says where and what to try."""


class SelfCheck(NamedTuple):
    """Whether tries may be used, and why."""

    shared: bool
    reason: str


@torch.no_grad()
def check_sharing(
    model: Any, questions: Sequence[EncodedQuestion], largest_id: int = 0
) -> SelfCheck:
    """Compare tries with plain rows on these questions, a few of those to be trained on.

    `largest_id` is the largest token id of all the data.

    The longest path, which should be among them, is the one that leaves a sliding window. Tries
    pass if the difference, averaged over tokens and over the four longest answers of each question,
    is below the dtype's tolerance, which lies above the rounding noise of a trained model.

    Raises:
        DataError: the questions hold token ids that the model has no embedding for.
        NumericError: the model's own scores are not finite.
    """
    known = model.get_input_embeddings().num_embeddings
    largest = max(largest_id, *(max(map(max, (q.prompt, *q.answers))) for q in questions))
    if largest >= known:
        raise DataError(
            f"the tokenizer gives the id {largest} and the model embeds {known} tokens; this is "
            "not the model's own tokenizer"
        )
    differences = []
    for q in questions:
        answers = sorted(q.trained, key=len)[-4:]
        plain, tried = (
            collate(question_tries(q.prompt, answers, shared), shared).to(model.device)
            for shared in (False, True)
        )
        expected = answer_logps(model, plain)
        if not expected.isfinite().all():
            raise NumericError(
                f"the model's scores are not finite in {model.dtype}; try --dtype float32"
            )
        try:
            found = answer_logps(model, tried)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError) as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            return SelfCheck(False, f"the model does not take a tree mask ({text})")
        lengths = torch.tensor([len(a) for a in answers], device=found.device)
        differences += ((found - expected).abs() / lengths).tolist()
    mean = sum(differences) / len(differences)
    if mean <= TOLERANCE.get(model.dtype, 1e-4):  # NaN does not pass
        return SelfCheck(True, f"tries equal plain rows within {mean:.1g} nats a token")
    return SelfCheck(False, f"tries differ from plain rows by {mean:.2g} nats a token")


@torch.no_grad()
def largest_activation(model: Any, trees: TreeBatch) -> tuple[str, float]:
    """Return (module, size) of the largest output in a forward pass, the first that is not finite.

    Where a loss or a gradient is not finite, this is where to look.
    """
    found: list[tuple[str, float]] = []
    names = {module: name for name, module in model.named_modules() if not list(module.children())}

    def look(module: Any, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            largest = float(output.abs().max())
            found.append((names[module], largest if math.isfinite(largest) else math.inf))

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        answer_logps(model, trees)
    finally:
        for hook in hooks:
            hook.remove()
    return max(found, key=lambda item: item[1], default=("", 0.0))


def where_not_finite(
    model: Any, questions: Table[EncodedQuestion], pairs: Sequence[tuple[int, int]]
) -> str:
    """Name the questions of a step and the module with the largest activations in it."""
    places = dict.fromkeys(questions.place(q) or str(q) for q, _ in pairs)
    largest = ("", 0.0)
    for q in dict.fromkeys(q for q, _ in pairs):
        trees = collate(question_tries(questions[q].prompt, questions[q].trained))
        largest = max(
            largest, largest_activation(model, trees.to(model.device)), key=lambda x: x[1]
        )
    return (
        f"questions {', '.join(places)}; the largest activation, {largest[1]:.3g}, in {largest[0]}"
    )
