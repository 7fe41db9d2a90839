"""The data report: what was read, what was left out, what an answer's style alone gives away."""

import itertools
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data.encode import EncodedQuestion, Encoding
from data.gather import Reading
from data.question import Preference
from data.table import Table, count_notes, joined
from data.templates import ANSWER_FORMAT, PROMPT_FORMAT
from data.text import TextSettings

MANY = 0.9  # a smaller share of rows kept is said aloud
LOOKED_AT = 20_000  # questions whose text is looked at; of a larger source evenly spaced ones
NEGATION = re.compile(
    r"\b(no|not|never|none|nothing|nobody|nowhere|neither|nor|cannot|without)\b|n't\b", re.I
)


class Report(NamedTuple):
    """Lines for people, and the figures in them."""

    lines: list[tuple[str, str]]  # (heading, text)
    figures: dict[str, float]
    sources: list[dict[str, Any]]  # each with its questions, and whether they are held out


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


def losses_of(readings: Sequence[Reading], encodings: Sequence[Encoding]) -> list[str]:
    """Say how many rows were read and kept, if not all were, and why the others were not."""
    read = sum(reading.rows for reading in readings)
    kept = sum(_rows_kept(*both) for both in zip(readings, encodings, strict=True))
    noted = [text for _, text in _notes(readings, encodings)]
    if not noted:
        return []
    few = "" if kept > MANY * read else "FEW ROWS: "
    return [f"{few}{kept:,} of {read:,} rows ({kept / max(read, 1):.0%})", *noted]


def _rows_kept(reading: Reading, encoding: Encoding) -> int:
    """Count the rows whose question is trained on."""
    texts, questions = reading.preferences, encoding.questions
    numbers = questions.column("row")  # of the text that each question was made of
    return int(texts.dataset.data.column("rows").to_numpy()[numbers].sum())


def _notes(readings: Sequence[Reading], encodings: Sequence[Encoding]) -> list[tuple[str, str]]:
    found = []
    for reading, encoding in zip(readings, encodings, strict=True):
        for notes in (count_notes(reading.preferences.dataset), encoding.notes):
            for reason, (count, places) in notes.items():
                more = "" if count <= len(places) else ", ..."
                found.append(("note", f"{reason}: {count:,} ({', '.join(places)}{more})"))
    return found


def examine(
    readings: Sequence[Reading],
    encodings: Sequence[Encoding],
    tokenizer: Any,
    split: tuple[Sequence[int], Sequence[int]],
    settings: TextSettings,
) -> Report:
    """Report on what is trained on, and on what is held out if it has a source of its own.

    `split` has the numbers of the training and the held-out questions, of all together.
    """
    questions = joined([encoding.questions for encoding in encodings])
    pairs = questions.column("pairs")
    prompts = questions.column("prompt_length")
    answers = questions.column("length") - prompts  # the longest answer of each question
    tokens = {
        name: int(questions.column(name).sum()) for name in ("as_pairs", "as_trees", "as_tries")
    }
    texts = readings[0].preferences
    some = texts.select(np.unique(np.linspace(0, len(texts) - 1, LOOKED_AT).astype(int)))
    style = shortcuts(list(some))
    fewer = tokens["as_pairs"] / tokens["as_tries"]
    named = ", held out: ".join(reading.source for reading in readings)
    lines = [
        ("data", f"{named}: {_count(len(questions), 'question')}, {_count(pairs.sum(), 'pair')}, "
                 f"{pairs.mean():.1f} to a question ({pairs.min()} to {pairs.max()})"),
        *(("read as", reading.columns) for reading in readings),
        *_form_lines(some, settings),
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
    if merges := sum(encoding.boundary_merges for encoding in encodings):
        lines.append(("boundary", f"{merges:,} answers would fuse with their prompt's end, and are "
                      "encoded alone"))  # fmt: skip
    if unknown := sum(encoding.unknown for encoding in encodings):
        lines.append(("unknown", f"{unknown:,} tokens stand for text that the tokenizer cannot "
                      "write"))  # fmt: skip
    kept, *noted = losses_of(readings, encodings) or ["every row"]
    lines += [("kept", kept), *(("note", text) for text in noted)]
    lines.append(("held out", _across(questions, *split)))
    lines += _example(questions[0], tokenizer, whole=True)
    for number in dict.fromkeys((len(questions) // 2, len(questions) - 1)):
        if number:
            lines += _example(questions[number], tokenizer)
    sources = [
        {"source": name, "questions": count, "held_out": place > 0}
        for place, reading in enumerate(readings)
        for name, count in reading.parts or [(reading.source, len(reading.preferences))]
    ]
    return Report(lines, figures, sources)


def _form_lines(some: Table[Preference], settings: TextSettings) -> list[tuple[str, str]]:
    """Say how a preference becomes text, and name the flag that may be meant instead."""
    form = {
        "chat": "the tokenizer's own chat template",
        "none": "as it stands, nothing between prompt and answer",
        "raw": "as it stands, control tokens in it obeyed",
    }.get(settings.template)
    if form is None:
        asked, answered = settings.prompt_format, settings.answer_format
        form = f"plain, {asked or PROMPT_FORMAT!r} then {answered or ANSWER_FORMAT!r}"
        if some[0].verbatim and not asked:
            form = "plain, the texts as they stand (the prompt is how they begin alike)"
    lines = [("text", form)]
    going_on = [p.chosen[:1].isspace() and not p.verbatim for p in some[:1000]]
    if settings.template in ("plain", "chat") and sum(going_on) > MANY * len(going_on):
        lines.append(("", "answers begin with a space, as if they went on with the prompt; "
                      "--template none joins them to it as they stand"))  # fmt: skip
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _spread(values: Any) -> str:
    return f"{np.median(values):.0f} ({values.min()} to {values.max()})"


def _across(
    questions: Table[EncodedQuestion], train: Sequence[int], held_out: Sequence[int]
) -> str:
    """Say what stands on both sides of the split."""
    if not len(held_out):
        return "none: everything is trained on, and nothing will be measured"
    seen, new = questions.select(train), questions.select(held_out)
    prompts, answers = (
        int(np.isin(new.column(name), seen.column(name)).sum()) for name in ("key", "chosen_key")
    )
    return (
        f"{_count(len(held_out), 'question')}; {prompts} of their prompts and {answers} of their "
        "chosen answers are also trained on (compared without case, spacing and punctuation)"
    )


def _example(
    question: EncodedQuestion, tokenizer: Any, whole: bool = False
) -> list[tuple[str, str]]:
    """Show a question with a [] around each token that is scored, and control tokens in « »."""
    control = set(tokenizer.all_special_ids)
    control |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    prompt = _as_read(question.prompt, tokenizer, control)
    if not whole and len(prompt) > 160:
        prompt = f"{prompt[:80]} ... {prompt[-75:]}"
    shown = sys.maxsize if whole else 24
    return [
        ("example", prompt),
        ("  chosen", _scored(question.chosen, tokenizer, control, shown)),
        *(("  rejected", _scored(answer, tokenizer, control, shown))
          for answer in question.rejected[: 1 if whole else 2]),
    ]  # fmt: skip


def _as_read(ids: Sequence[int], tokenizer: Any, control: set[int]) -> str:
    """Return the text of some ids, with « » around control tokens: their letters have none."""
    said = ""
    for is_control, run in itertools.groupby(ids, control.__contains__):
        if is_control:
            said += "".join(f"«{name}»" for name in tokenizer.convert_ids_to_tokens(list(run)))
        else:
            said += repr(tokenizer.decode(list(run)))[1:-1]
    return said


def _scored(ids: Sequence[int], tokenizer: Any, control: set[int], shown: int = 24) -> str:
    """Put brackets around every scored token; of a long answer the first and the last ones."""
    words = [repr(tokenizer.decode([i]))[1:-1] for i in ids]
    names = tokenizer.convert_ids_to_tokens(list(ids))
    # a token may be a part of a letter, which decodes to the replacement character alone
    known = (w if "\ufffd" not in w else n for w, n in zip(words, names, strict=True))
    marked = [f"[«{w}»]" if i in control else f"[{w}]" for i, w in zip(ids, known, strict=True)]
    if len(marked) > shown:
        left = len(marked) - shown
        marked = [*marked[: shown // 2], f" ... {left} more ... ", *marked[-shown // 2 :]]
    return "".join(marked)
