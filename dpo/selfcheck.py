"""The self-check at start-up: do tries give this model's own log-probs?

Tree masks, positions and the head are read off a model's configuration. Where that reading of masks
is wrong for an architecture, it is trained on plain rows; where the head's is, by its own logits.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import torch

from data.encode import EncodedQuestion
from data.question import DataError
from data.table import Table
from data.trees import Tokens, Way, collate, question_tries
from dpo.excerpt import excerpt, first_of_each_kind, renumbered
from dpo.logps import answer_logps

# Mean difference, nats a token. Where each token may also see the column before it, which is wrong
# at branches alone, an excerpt of Gemma 3 270M has .009 to .07, and else 2e-6. All of it has, in
# bfloat16, .024 to .087 and, by rounding, .008 to .022: hardly to be told apart.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.005}
COARSE = 0.25  # of one question in the model's own dtype, of which these tokens at most are read:
PROMPT, ANSWER = 64, 32

# What is tried, one after the other, and what it is compared with.
WAYS: dict[Way, tuple[str, str]] = {
    "tries": ("tries", "plain rows"),
    "rows": ("plain rows by the fused head", "those by the model's own logits"),
}
TAKEN = {"tries": "a tree mask", "rows": "rows without its head"}

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError)


class NumericError(ArithmeticError):
    """Scores or gradients are not finite; the message says where and what to try."""


class SelfCheck(NamedTuple):
    """How answers may be read, and why so."""

    way: Way
    reason: str


@torch.no_grad()
def check_sharing(
    model: Any, questions: Sequence[EncodedQuestion], largest_id: int = 0, layers: Any = ()
) -> SelfCheck:
    """Return the first way whose scores are the model's own: "tries", "rows", else "logits".

    Some questions of those to be trained on are compared. The model's own scores are those of one
    plain row at a time, by its own logits. Both are those of an `excerpt` of the model in float32,
    where rounding and a wrong mask, position or head are a thousand times apart; and for the last
    question, cut short, coarsely those of the whole model as it is, which should be numbers. Where
    no excerpt can be made, as of layers split among processes, or without `layers`, the whole model
    is compared for all questions.

    The longest path should be among the questions, since it is the one that leaves a sliding
    window. `largest_id` is that of all the data, and `layers` are the model's decoder layers.

    Raises:
        DataError: the questions hold token ids that the model has no embedding for.
        NumericError: the model's own scores are not finite.
    """
    known = model.get_input_embeddings().num_embeddings
    ids = sorted({id for q in questions for ids in (q.prompt, *q.trained) for id in ids})
    largest = max(largest_id, ids[-1])
    if largest >= known:
        raise DataError(
            f"the tokenizer gives the id {largest} and the model embeds {known} tokens; this is "
            "not the model's own tokenizer"
        )
    failed = ""
    for way in WAYS:
        same, found = _same(model, questions, layers, ids, way)
        if same:
            return SelfCheck(way, failed + found)
        failed += f"{found}; "
    return SelfCheck("logits", failed.removesuffix("; "))


def _same(
    model: Any, questions: Sequence[EncodedQuestion], layers: Any, ids: Sequence[int], way: Way
) -> tuple[bool, str]:
    """Tell whether a way has the model's own scores, and say by how much it has not."""
    if len(layers) and not any(hasattr(layer, "unshard") for layer in layers):
        short = EncodedQuestion(*cut(questions[-1]))
        same, found = compared(model, [short], COARSE, way)
        if not same:
            return same, found
        numbers = all(p.is_floating_point() for p in layers.parameters())
        dtype = torch.float32 if numbers else model.dtype
        with suppress(*UNREADABLE), excerpt(model, layers, ids):
            return compared(model, [renumbered(q, ids) for q in questions], TOLERANCE[dtype], way)
    return compared(model, questions, TOLERANCE.get(model.dtype, 1e-4), way)


def bytes_of_check(model: Any, layers: Any) -> int:
    """Return what the comparison takes: of a row all logits, scores twice; or layers in float32."""
    head = model.get_output_embeddings().weight
    scores: int = head.shape[0] * ((PROMPT + ANSWER) * head.element_size() + 2 * ANSWER * 4)
    first = layers[: first_of_each_kind(model, layers)]
    numbers: int = sum(p.numel() for p in first.parameters())
    return max(scores, 4 * numbers)


def cut(question: EncodedQuestion) -> tuple[Tokens, Tokens, tuple[Tokens, ...]]:
    """Return the end of a question's prompt and the beginnings of its answers."""
    rejected = tuple(answer[:ANSWER] for answer in question.rejected)
    return question.prompt[-PROMPT:], question.chosen[:ANSWER], rejected


def compared(
    model: Any, questions: Sequence[EncodedQuestion], tolerance: float, way: Way
) -> tuple[bool, str]:
    """Compare the four longest answers of each question; the mean difference may be `tolerance`."""
    differences = []
    for q in questions:
        answers = sorted(q.trained, key=len)[-4:]
        alone = [_scores(model, q.prompt, [answer], "logits") for answer in answers]
        expected = torch.cat(alone)  # one row at a time, since each has logits of all its tokens
        if not expected.isfinite().all():
            raise NumericError(
                f"the model's scores are not finite in {model.dtype}; try --dtype float32"
            )
        try:
            found = _scores(model, q.prompt, answers, way)
        except UNREADABLE as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            return False, f"the model does not take {TAKEN[way]} ({text})"
        lengths = torch.tensor([len(a) for a in answers], device=found.device)
        differences += ((found - expected).abs() / lengths).tolist()
    mean = sum(differences) / len(differences)
    one, other = WAYS[way]
    if mean <= tolerance:  # NaN does not pass
        return True, f"{one} equal {other} within {mean:.1g} nats a token"
    return False, f"{one} differ from {other} by {mean:.2g} nats a token"


def _scores(model: Any, prompt: Tokens, answers: Sequence[Tokens], way: Way) -> torch.Tensor:
    """Return (A,): log pi(y|x) of the answers, read this way."""
    batch = collate(question_tries(prompt, answers, way), way)
    return answer_logps(model, batch.to(model.device))


@torch.no_grad()
def where_not_finite(
    model: Any,
    questions: Table[EncodedQuestion],
    pairs: Sequence[tuple[int, int]],
    way: Way = "tries",
) -> str:
    """Name the questions of a step, and the module with the largest activation in it.

    That is the first one that is not finite, if there is any.
    """
    found: list[tuple[float, str]] = []
    names = {module: name for name, module in model.named_modules() if not list(module.children())}

    def look(module: Any, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            size = float(output.abs().max())
            found.append((size if math.isfinite(size) else math.inf, names[module]))

    with ExitStack() as hooks:
        for leaf in names:
            hooks.enter_context(leaf.register_forward_hook(look))
        for question in (questions[q] for q in dict.fromkeys(q for q, _ in pairs)):
            tries = question_tries(question.prompt, question.trained, way)
            answer_logps(model, collate(tries, way).to(model.device))
    size, module = max(found, key=lambda item: item[0], default=(0.0, ""))
    places = dict.fromkeys(questions.place(q) or str(q) for q, _ in pairs)
    return f"questions {', '.join(places)}; the largest activation, {size:.3g}, in {module}"
