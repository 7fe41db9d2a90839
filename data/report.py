"""The data report: what was read, what was left out, what an answer's style alone gives away."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data.encode import EncodedQuestion, Encoding, TextSettings
from data.gather import Reading
from data.question import Preference
from data.table import Table, count_notes
from data.templates import ANSWER_FORMAT, PROMPT_FORMAT

LOOKED_AT = 20_000  # questions whose text is looked at; of a larger source evenly spaced ones
NEGATION = re.compile(
    r"\b(no|not|never|none|nothing|nobody|nowhere|neither|nor|cannot|without)\b|n't\b", re.I
)


class Report(NamedTuple):
    """Lines for people, and the figures in them."""

    lines: list[tuple[str, str]]  # (heading, text)
    figures: dict[str, float]


class Shortcuts(NamedTuple):
    """What is known of a pair without reading it: shares from 0 to 1 over pairs or answers."""

    chosen_longer: float  # of the pairs, in characters; a tie counts half
    negation_chosen: float  # of the chosen answers
    negation_rejected: float

    @property
    def length_alone(self) -> float:
        """The pair accuracy of always taking the longer answer, or always the shorter."""
        return max(self.chosen_longer, 1 - self.chosen_longer)


def shortcuts(preferences: Sequence[Preference]) -> Shortcuts:
    """Audit these preferences for style that gives the chosen answer away."""
    longer, chosen, rejected = [], [], []
    for p in preferences:
        chosen.append(bool(NEGATION.search(p.chosen)))
        for answer in p.rejected:
            rejected.append(bool(NEGATION.search(answer)))
            longer.append((len(p.chosen) > len(answer)) + (len(p.chosen) == len(answer)) / 2)
    return Shortcuts(*(sum(values) / max(len(values), 1) for values in (longer, chosen, rejected)))


def examine(
    reading: Reading,
    encoding: Encoding,
    tokenizer: Any,
    split: tuple[Sequence[int], Sequence[int]],
    settings: TextSettings,
) -> Report:
    """Report on a source; `split` has the numbers of its training and held-out questions."""
    questions = encoding.questions
    pairs = questions.column("pairs")
    prompts = questions.column("prompt_length")
    answers = questions.column("length") - prompts  # the longest answer of each question
    tokens = {
        name: int(questions.column(name).sum()) for name in ("as_pairs", "as_trees", "as_tries")
    }
    texts = reading.preferences
    some = texts.select(np.unique(np.linspace(0, len(texts) - 1, LOOKED_AT).astype(int)))
    style = shortcuts(list(some))
    fewer = tokens["as_pairs"] / tokens["as_tries"]
    form = "the tokenizer's own chat template"
    if settings.template == "plain":
        asked, answered = settings.prompt_format, settings.answer_format
        form = f"plain, {asked or PROMPT_FORMAT!r} then {answered or ANSWER_FORMAT!r}"
        if some[0].verbatim and not asked:
            form = "plain, the texts as they stand (the prompt is how they begin alike)"
    lines = [
        ("data", f"{reading.source}: {len(questions):,} questions, {pairs.sum():,} pairs, "
                 f"{pairs.mean():.1f} to a question ({pairs.min()} to {pairs.max()})"),
        ("read as", reading.columns),
        ("text", form),
        ("length", f"prompt {_spread(prompts)} tokens, longest answer {_spread(answers)}"),
        ("tokens", f"{tokens['as_pairs']:,} as pairs, {tokens['as_trees']:,} as trees, "
                   f"{tokens['as_tries']:,} as tries: {fewer:.1f} times fewer"),
        ("style", f"{style.chosen_longer:.0%} of the chosen answers are the longer one, so length "
                  f"alone gets {style.length_alone:.2f}"),
        ("", f"negation in {style.negation_chosen:.0%} of the chosen answers, in "
             f"{style.negation_rejected:.0%} of the rejected"),
    ]  # fmt: skip
    if len(some) < len(texts):
        lines.append(("", f"(style: of {len(some):,} questions, evenly spaced)"))
    figures = {"questions": len(questions), "pairs": int(pairs.sum()), **tokens, **style._asdict()}
    figures["length_alone"] = style.length_alone
    if encoding.boundary_merges:
        lines.append(("boundary", f"{encoding.boundary_merges:,} answers would fuse with their "
                      "prompt's end, and are encoded alone"))  # fmt: skip
    if encoding.unknown:
        lines.append(("unknown", f"{encoding.unknown:,} tokens stand for text that the tokenizer "
                      "cannot write"))  # fmt: skip
    for notes in (count_notes(texts.dataset), encoding.notes):
        for reason, (count, places) in notes.items():
            more = "" if count <= len(places) else ", ..."
            lines.append(("note", f"{reason}: {count:,} ({', '.join(places)}{more})"))
    lines.append(("held out", _across(questions, *split)))
    for number in dict.fromkeys((0, len(questions) // 2, len(questions) - 1)):
        lines += _example(questions[number], tokenizer)
    return Report(lines, figures)


def _spread(values: Any) -> str:
    return f"{np.median(values):.0f} ({values.min()} to {values.max()})"


def _across(
    questions: Table[EncodedQuestion], train: Sequence[int], held_out: Sequence[int]
) -> str:
    """Say what stands on both sides of the split."""
    seen, new = questions.select(train), questions.select(held_out)
    prompts, answers = (
        int(np.isin(new.column(name), seen.column(name)).sum()) for name in ("key", "chosen_key")
    )
    return (
        f"{len(held_out):,} questions; {prompts} of their prompts and {answers} of their chosen "
        "answers are also trained on (compared without case, spacing and punctuation)"
    )


def _example(question: EncodedQuestion, tokenizer: Any) -> list[tuple[str, str]]:
    """Show a question with a [] around each token that is scored."""
    prompt = repr(tokenizer.decode(question.prompt))[1:-1]
    if len(prompt) > 160:
        prompt = f"{prompt[:80]} ... {prompt[-75:]}"
    return [
        ("example", prompt),
        ("  chosen", _scored(question.chosen, tokenizer)),
        *(("  rejected", _scored(answer, tokenizer)) for answer in question.rejected[:2]),
    ]


def _scored(ids: Sequence[int], tokenizer: Any, shown: int = 24) -> str:
    """Put brackets around every scored token; of a long answer the first and the last ones."""
    words = [repr(tokenizer.decode([i]))[1:-1] for i in ids]
    names = tokenizer.convert_ids_to_tokens(list(ids))
    # a token may be a part of a letter, which decodes to the replacement character alone
    known = (w if "\ufffd" not in w else n for w, n in zip(words, names, strict=True))
    marked = [f"[{word}]" for word in known]
    if len(marked) > shown:
        left = len(marked) - shown
        marked = [*marked[: shown // 2], f" ... {left} more ... ", *marked[-shown // 2 :]]
    return "".join(marked)
