"""The self-check at start-up: do tries give this model's own log-probs?

Tree masks, positions and the head are read off a model's configuration. Where that reading of masks
is wrong for an architecture, it is trained on plain rows; where the head's is, by its own logits.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple, get_args

import torch

from data.encode import EncodedQuestion
from data.question import DataError
from data.table import Table
from data.trees import Tokens, Way, collate, question_tries
from dpo.excerpt import excerpt, first_of_each_kind, renumbered
from dpo.logps import answer_logps, edge_logps

# Mean difference, nats a token. Where each token may also see the column before it, which is wrong
# at branches alone, an excerpt of Gemma 3 270M has .009 to .07, and else 2e-6. All of it has, in
# bfloat16, .024 to .087 and, by rounding, .008 to .022: hardly to be told apart.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.005}
COARSE = 0.25  # of one question in the model's own dtype, of which these tokens at most are read:
PROMPT, ANSWER = 64, 32
MARGIN = 512  # tokens by which anchors and neutral text may be longer than all questions

# What is tried, one after the other, and what it is compared with.
WAYS: dict[Way, tuple[str, str]] = {
    "tries": ("tries", "plain rows"),
    "rows": ("plain rows by the fused head", "those by the model's own logits"),
}
TAKEN = {"tries": "a tree mask", "rows": "rows without its head"}

UNREADABLE = (
    ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError, AssertionError,
)  # fmt: skip


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

    Tries do not suit models that read a text otherwise where a longer one is in its row, as some
    rotary frequencies do, if the questions come near such lengths. Plain rows are the last resort,
    and each must have the score that it has alone.

    The longest path should be among the questions, since it is the one that leaves a sliding
    window. `largest_id` is that of all the data, and `layers` are the model's decoder layers.

    Raises:
        DataError: the questions hold token ids that the model has no embedding for, or the model's
            own forward fails or changes its weights, or what it says of a row depends on the other
            rows, or of a token on those that follow it.
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
    versions = [p._version for p in model.parameters()]
    failed: list[str] = []
    for way in get_args(Way):
        same, found = _same(model, questions, layers, ids, way)
        failed.append(found)
        if same:
            break
    if versions != [p._version for p in model.parameters()]:  # RWKV does, in eval mode
        raise DataError(
            "this model changes its own weights as it reads, so that no adapter could be merged "
            "into them; choose another --model"
        )
    return SelfCheck(way, "; ".join(filter(None, failed)))


def _same(
    model: Any, questions: Sequence[EncodedQuestion], layers: Any, ids: Sequence[int], way: Way
) -> tuple[bool, str]:
    """Tell whether a way has the model's own scores, and say by how much it has or has not."""
    if len(layers) and not any(hasattr(layer, "unshard") for layer in layers):
        short = EncodedQuestion(*cut(questions[-1]))
        same, found = compared(model, [short], COARSE, way)
        if not same:
            return same, found
        numbers = all(p.is_floating_point() for p in layers.parameters())
        dtype = torch.float32 if numbers else model.dtype
        with suppress(DataError, *UNREADABLE), excerpt(model, layers, ids):
            few = [renumbered(q, ids) for q in questions]
            return examined(model, few, TOLERANCE[dtype], way)
    return examined(model, questions, TOLERANCE.get(model.dtype, 1e-4), way)


def examined(
    model: Any, questions: Sequence[EncodedQuestion], tolerance: float, way: Way
) -> tuple[bool, str]:
    """Compare the questions; then tries beside a longer text, or plain rows beside each other."""
    same, found = compared(model, questions, tolerance, way)
    if same and way == "tries":
        apart = beside_longer(model, questions, tolerance)
        return not apart, apart or found
    if same:
        check_rows(model, questions, tolerance, way)
    return same, found


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
    """Compare the four longest answers of each question; the mean difference may be `tolerance`.

    The model's own logits are what the others are compared with, and have nothing to equal.
    """
    differences = []
    for q in questions:
        answers = sorted(q.trained, key=len)[-4:]
        try:  # one row at a time, since each has logits of all its tokens
            alone = [_scores(model, q.prompt, [answer], "logits") for answer in answers]
        except UNREADABLE as error:
            raise DataError(
                f"the model's own forward fails ({_in_short(error)}); choose another --model"
            ) from error
        expected = torch.cat(alone)
        if not expected.isfinite().all():
            raise NumericError(_why_not_finite(model))
        if way == "logits":
            continue
        try:
            found = _scores(model, q.prompt, answers, way)
        except UNREADABLE as error:
            return False, f"the model does not take {TAKEN[way]} ({_in_short(error)})"
        lengths = torch.tensor([len(a) for a in answers], device=found.device)
        differences += ((found - expected).abs() / lengths).tolist()
    if way == "logits":
        return True, ""
    mean = sum(differences) / len(differences)
    one, other = WAYS[way]
    if mean <= tolerance:  # NaN does not pass
        return True, f"{one} equal {other} within {mean:.1g} nats a token"
    return False, f"{one} differ from {other} by {mean:.2g} nats a token"


def _scores(model: Any, prompt: Tokens, answers: Sequence[Tokens], way: Way) -> torch.Tensor:
    """Return (A,): log pi(y|x) of the answers, read this way."""
    batch = collate(question_tries(prompt, answers, way), way)
    return answer_logps(model, batch.to(model.device))


def beside_longer(model: Any, questions: Sequence[EncodedQuestion], tolerance: float) -> str:
    """Score the last question alone in its row, and beside a token as far as texts may go.

    Return what is wrong, if anything is.
    """
    longest = max(len(q.prompt) + max(map(len, q.trained)) for q in questions) + MARGIN
    last, words = questions[-1], model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not words]
    if any(table.num_embeddings < longest + 8 for table in tables):  # learned positions, and few:
        return ""  # a GPU would not survive one that is not there
    alone = collate(question_tries(last.prompt, last.trained)).to(model.device)
    one = alone.tokens.new_ones(1, 1)
    beside = alone._replace(  # a column more, whose token sees itself alone
        tokens=torch.cat([alone.tokens, 0 * one], 1),
        positions=torch.cat([alone.positions, longest * one], 1),
        ends=torch.cat([alone.ends, (alone.ends.shape[1] + 1) * one], 1),
    )
    with suppress(*UNREADABLE):  # a model that has no such positions reads no such texts
        apart = (answer_logps(model, beside) - answer_logps(model, alone)).abs().max()
        if apart > tolerance * max(map(len, last.trained)):
            reason = f"beside a text of {longest} tokens, which may come, scores change by"
            return f"{reason} {apart:.2g} nats"
    return ""


def check_rows(
    model: Any, questions: Sequence[EncodedQuestion], tolerance: float, way: Way
) -> None:
    """Score the first question and the last as plain rows, together and each alone.

    The last is also scored twice, with one token and another after it.

    Raises:
        DataError: the scores differ.
    """
    pair = [(q.prompt, max(q.trained, key=len)) for q in (questions[0], questions[-1])]
    rows = [question_tries(prompt, [answer], way) for prompt, answer in pair]
    scores = [
        answer_logps(model, collate(tries, way).to(model.device))
        for tries in (*rows, [*rows[0], *rows[1]])
    ]
    lengths = torch.tensor([len(answer) for _, answer in pair], device=model.device)
    apart = ((torch.cat(scores[:2]) - scores[2]).abs() / lengths).max()
    allowed = tolerance if model.dtype == torch.float32 else COARSE
    if not apart <= allowed:  # nor NaN
        raise DataError(
            "what this model says of a text depends on what else is in its batch, by "
            f"{apart:.2g} nats a token, so that answers cannot be scored; choose another --model"
        )
    prompt, answer = pair[1]
    one, other = (  # texts that differ after the answer; the very last token is never read
        edge_logps(model, collate(question_tries(prompt, [text], way), way).to(model.device))
        for text in ((*answer, 0, 0), (*answer, 1, 0))
    )
    ahead = (one - other)[: len(answer)].abs().mean()
    if not ahead <= allowed:
        raise DataError(
            "this model reads ahead: what it says of a token depends on those that follow, by "
            f"{ahead:.2g} nats, so that it is no causal language model; choose another --model"
        )


def _in_short(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _why_not_finite(model: Any) -> str:
    """Name the weight that is not finite, if one is, or the dtype to try."""
    damaged = [n for n, p in model.named_parameters() if not p.isfinite().all()]
    if damaged:
        return (
            f"the model's scores are not finite: NaN or infinity stands in {len(damaged)} of its "
            f"weights, the first is {damaged[0]}; the files of --model are damaged, get them anew"
        )
    advice = "choose another --model" if model.dtype == torch.float32 else "try --dtype float32"
    return f"the model's scores are not finite in {model.dtype}; {advice}"


@torch.no_grad()
def where_not_finite(
    model: Any,
    questions: Table[EncodedQuestion],
    pairs: Sequence[tuple[int, int]],
    way: Way = "tries",
) -> str:
    """Name the questions of a step, and the module with the largest activation in it.

    That is the first one that is not finite, if there is any. The dropout of later steps is left as
    it would have been.
    """
    found: list[tuple[float, str]] = []
    names = {module: name for name, module in model.named_modules() if not list(module.children())}

    def look(module: Any, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            size = float(output.abs().max())
            found.append((size if math.isfinite(size) else math.inf, names[module]))

    gpus = [model.device] if model.device.type == "cuda" else []
    with ExitStack() as hooks:
        hooks.enter_context(torch.random.fork_rng(devices=gpus))
        for leaf in names:
            hooks.enter_context(leaf.register_forward_hook(look))
        for question in (questions[q] for q in dict.fromkeys(q for q, _ in pairs)):
            tries = question_tries(question.prompt, question.trained, way)
            answer_logps(model, collate(tries, way).to(model.device))
    size, module = max(found, key=lambda item: item[0], default=(0.0, ""))
    places = dict.fromkeys(questions.place(q) or str(q) for q, _ in pairs)
    return f"questions {', '.join(places)}; the largest activation, {size:.3g}, in {module}"
