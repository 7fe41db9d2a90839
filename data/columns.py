"""What a row says: which columns hold what, and how their values become a `Preference`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.question import (
    EMPTY,
    NO_CHOSEN,
    NO_PROMPT,
    NO_SHARED_PROMPT,
    TIED,
    DataError,
    Note,
    Preference,
    Turn,
)

# What each role is called in the data sets people use; the first that is there is taken.
NAMES = {
    "prompt": ("prompt", "question", "instruction", "query"),
    "chosen": ("chosen", "best_answer", "chosen_response", "response_chosen"),
    "rejected": (
        "rejected", "incorrect_answers", "rejected_response", "rejected_responses",
        "response_rejected",
    ),
    "correct": ("correct_answers",),
    "category": ("category",),
    "system": ("system", "system_prompt"),
    "completions": ("completions",),
}  # fmt: skip

Columns = dict[str, str]  # role -> the column that has it
Parsed = tuple[Preference | None, list[Note]]


def recognise(names: Sequence[str], given: str | None = None, source: str = "") -> Columns:
    """Return which column has which role, by the names people use or as `given` decides.

    Args:
        names: the columns there are.
        given: `prompt=question,chosen=best_answer,rejected=incorrect_answers`; roles that it
            leaves out are not read.
        source: named in complaints.

    Raises:
        DataError: a role or column is unknown, or nothing says what is preferred to what.
    """
    there = ", ".join(map(repr, names)) or "none"
    if given:
        columns: Columns = {}
        for item in given.split(","):
            role, _, name = (part.strip() for part in item.partition("="))
            if role not in NAMES or not name:
                raise DataError(f"--columns {item!r}: write ROLE=COLUMN with {', '.join(NAMES)}")
            if name not in names:
                raise DataError(f"--columns {item!r}: {source} has the columns {there}")
            columns[role] = name
    else:
        known = {name.strip().casefold().replace(" ", "_"): name for name in reversed(names)}
        columns = {
            role: next(known[alias] for alias in aliases if alias in known)
            for role, aliases in NAMES.items()
            if any(alias in known for alias in aliases)
        }
        if {"chosen", "rejected"} <= columns.keys():
            columns.pop("completions", None)
    if not (
        {"chosen", "rejected"} <= columns.keys() or {"prompt", "completions"} <= columns.keys()
    ):
        raise DataError(
            f"{source} has the columns {there}, which do not tell the chosen answer from the "
            "rejected; say so: --columns prompt=...,chosen=...,rejected=..."
        )
    return columns


def describe(columns: Columns, names: Sequence[str]) -> str:
    """Say how a source is read, for people to check."""
    read = ", ".join(f"{role} = {name!r}" for role, name in columns.items())
    ignored = [repr(name) for name in names if name not in columns.values()]
    return read + (f"; not read: {', '.join(ignored)}" if ignored else "")


def parse_row(place: str, row: Mapping[str, Any], columns: Columns) -> Parsed:
    """Turn a row into a preference, or into none and the reason; nothing is settled between rows.

    Text is taken exactly as it stands. Only where a format has separators around it, as
    TruthfulQA's lists and the turns of HH have, white space next to them is dropped.

    Raises:
        DataError: a value is neither text nor messages where one is needed.
    """
    cell = {role: _Cell(place, name, row.get(name)) for role, name in columns.items()}
    if "completions" in cell:
        sides, notes = cell["completions"].scored()
    else:
        chosen, rejected = cell["chosen"].sides(), cell["rejected"].sides()
        if len(chosen) != 1:
            raise cell["chosen"].wrong("one chosen answer is needed")
        sides, notes = [*chosen, *rejected], []
    prompt = cell["prompt"].prompt() if "prompt" in cell else None
    correct = [_only(cell["correct"], side) for side in _optional(cell.get("correct"))]
    system = _only(cell["system"], cell["system"].value) if "system" in cell else ""
    category = _only(cell["category"], cell["category"].value) if "category" in cell else ""

    turns, answers = _split(prompt, sides, cell["chosen"] if "chosen" in cell else cell["prompt"])
    verbatim = prompt is None and all(isinstance(s, str) and not _hh(s) for s in sides)
    if columns.get("chosen", "").casefold().replace(" ", "_") == "best_answer":  # TruthfulQA
        answers, correct = [a.strip() for a in answers], [a.strip() for a in correct]
        turns = tuple(Turn(role, text.strip()) for role, text in turns)
    if not turns:
        return None, [*notes, Note(NO_SHARED_PROMPT, place)]
    if not turns[-1].text.strip():
        return None, [*notes, Note(NO_PROMPT, place)]
    if not answers[0].strip():
        return None, [*notes, Note(NO_CHOSEN, place)]
    if turns[-1].role != "user":
        raise DataError(f"{place}: the turn before the answer is by {turns[-1].role!r}, not 'user'")
    history = (*((Turn("system", system),) if system.strip() else ()), *turns[:-1])
    notes += [Note(EMPTY, place) for a in (*answers, *correct) if not a.strip()]
    preference = Preference(
        prompt=turns[-1].text,
        chosen=answers[0],
        rejected=tuple(a for a in answers[1:] if a.strip()),
        correct=tuple(a for a in correct if a.strip()),
        category=category,
        history=history,
        verbatim=verbatim,
        place=place,
    )
    return preference, notes


Turns = tuple[Turn, ...]
Side = str | Turns  # an answer, or a conversation that ends with it


class _Cell:
    """One value of a row, which knows where it stands."""

    def __init__(self, place: str, column: str, value: Any) -> None:
        self.place, self.column, self.value = place, column, value

    def wrong(self, what: str) -> DataError:
        shown = repr(self.value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return DataError(f"{self.place}, column {self.column!r}: {shown}: {what}")

    def text(self, value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(f"{type(value).__name__} where text is needed")
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise self.wrong("half a surrogate pair, which is no text")
        if value.startswith("[{") and re.match(r"""\[\{\s*["'](role|content)["']\s*:""", value):
            raise self.wrong("messages written as text; keep them as lists, in JSON or Parquet")
        return value

    def turns(self, messages: Sequence[Any]) -> Turns:
        for message in messages:
            fits = isinstance(message, dict) and isinstance(message.get("role"), str)
            if not fits or not isinstance(message.get("content"), str):
                raise self.wrong("a message needs a 'role' and a 'content' of text")
        return tuple(Turn(m["role"], self.text(m["content"])) for m in messages)

    def sides(self) -> list[Side]:
        """Read an answer or a list of answers, each of them text or messages."""
        if not isinstance(self.value, list | tuple):
            text = self.text(self.value)
            if self.column in ("Correct Answers", "Incorrect Answers"):  # TruthfulQA's CSV
                text = text.strip().removesuffix(";")
                return list(text.split(";")) if text else []
            return [text]
        if self.value and all(isinstance(item, dict) for item in self.value):
            return [self.turns(self.value)]
        return [self.turns(i) if isinstance(i, list) else self.text(i) for i in self.value]

    def prompt(self) -> Side:
        if isinstance(self.value, list | tuple):
            return self.turns(self.value)
        return self.text(self.value)

    def scored(self) -> tuple[list[Side], list[Note]]:
        """Read UltraFeedback's completions: the best one by score, then those below it."""
        found: list[tuple[float, str]] = []
        for item in self.value if isinstance(self.value, list) else [None]:
            item = item if isinstance(item, dict) else {}
            score = item.get("overall_score", item.get("score"))
            if isinstance(score, bool) or not isinstance(score, int | float) or score != score:
                raise self.wrong("completions need a 'response' and an 'overall_score' each")
            found.append((score, self.text(item.get("response"))))
        if not found:
            raise self.wrong("completions are needed")
        best = max(score for score, _ in found)
        chosen = next(text for score, text in found if score == best)
        below: list[Side] = [text for score, text in found if score < best]
        ties = sum(score == best for score, _ in found) - 1
        return [chosen, *below], [Note(TIED, self.place)] * ties


def _optional(cell: _Cell | None) -> list[Side]:
    return [] if cell is None or cell.value is None else cell.sides()


def _only(cell: _Cell, value: Any) -> str:
    return cell.text(value)


def _split(prompt: Side | None, sides: Sequence[Side], cell: _Cell) -> tuple[Turns, list[str]]:
    """Return the turns of the prompt and the text of each answer; no turns: there is no prompt."""
    if isinstance(prompt, str) and all(isinstance(side, str) for side in sides):
        return _hh(prompt) or (Turn("user", prompt),), [str(side) for side in sides]
    if prompt is None and all(isinstance(side, str) for side in sides):
        texts = [str(side) for side in sides]
        turns = [_hh(text) for text in texts]
        if not all(turns):
            shared = _shared_opening(texts)
            opening = (Turn("user", texts[0][:shared]),) if shared else ()
            return opening, [text[shared:] for text in texts]
        sides = turns

    # Conversations: those turns before the last answer are the prompt's, or repeat it.
    conversations = [(Turn("assistant", s),) if isinstance(s, str) else s for s in sides]
    given = prompt if isinstance(prompt, tuple) else ()
    if given:
        conversations = [c[len(given) :] if c[: len(given)] == given else c for c in conversations]
    if not all(c and c[-1].role == "assistant" for c in conversations):
        raise cell.wrong("an answer's last message must be the assistant's")
    before = conversations[0][:-1]
    if any(c[:-1] != before for c in conversations):
        return (), [c[-1].text for c in conversations]
    if isinstance(prompt, str):
        said = [turn.text.strip() for turn in before if turn.role == "user"]
        if before and prompt.strip() not in said:
            raise cell.wrong("the prompt's column and the user's turn here differ")
        given = () if before else _hh(prompt) or (Turn("user", prompt),)
    return (*given, *before), [c[-1].text for c in conversations]


def _hh(text: str) -> Turns:
    r"""Return the turns of "\n\nHuman: ...\n\nAssistant: ..."; none if it is no such text.

    A last turn of the assistant that is empty only asks for an answer, and is dropped.
    """
    if not re.match(r"\s*Human:", text) or "\n\nAssistant:" not in text:
        return ()
    parts = re.split(r"(?:^\s*|\n\n)(Human|Assistant):", text)
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        Turn(roles[name], said.strip()) for name, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return tuple(turns[:-1] if turns[-1] == Turn("assistant", "") else turns)


def _shared_opening(texts: Sequence[str]) -> int:
    """Return where answers begin whose prompt is only implied by how the texts begin alike.

    Behind the last white space that they share, so that no word is cut, and so that each answer
    keeps a word. The space before an answer's first word belongs to the answer.
    """
    shortest, longest = min(texts), max(texts)  # whatever these two share, all do
    end = next(
        (i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b),
        min(len(shortest), len(longest)),
    )
    while end and not (texts[0][end - 1].isspace() and all(t[end:].strip() for t in texts)):
        end -= 1
    return end - 1 if end and texts[0][end - 1] == " " else end
