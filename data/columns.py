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
            if role in columns:
                raise DataError(f"--columns {item!r}: {role} is named twice")
            if role not in NAMES or not name:
                raise DataError(f"--columns {item!r}: write ROLE=COLUMN with {', '.join(NAMES)}")
            if name not in names:
                raise DataError(f"--columns {item!r}: {source} has the columns {there}")
            columns[role] = name
    else:
        known = {_plainly(name): name for name in reversed(names)}
        columns = {
            role: next(known[alias] for alias in aliases if alias in known)
            for role, aliases in NAMES.items()
            if any(alias in known for alias in aliases)
        }
        pairs = {"chosen", "rejected"} <= columns.keys()
        for role in ("completions",) if pairs else ("chosen", "rejected", "correct"):
            columns.pop(role, None)
    if not (
        {"chosen", "rejected"} <= columns.keys() or {"prompt", "completions"} <= columns.keys()
    ):
        raise DataError(
            f"{source} has the columns {there}, which do not tell the chosen answer from the "
            "rejected; say so: --columns prompt=...,chosen=...,rejected=..."
        )
    return columns


def late_column(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return a column of this row that the first rows lack, if its name says what it holds."""
    known = {alias for aliases in NAMES.values() for alias in aliases}
    return next((n for n in row if n not in names and _plainly(n) in known), None)


def _plainly(name: str) -> str:
    return name.strip().casefold().replace(" ", "_")


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
    for role in ("prompt", "chosen", "rejected", "completions"):
        if role in columns and columns[role] not in row:
            raise DataError(f"{place}: no {columns[role]!r}, which is the {role}; add it")
    cell = {role: _Cell(place, name, row.get(name)) for role, name in columns.items()}
    truthfulqa = _plainly(columns.get("chosen", "")) == "best_answer"
    if "completions" in cell:
        sides, notes = cell["completions"].scored()
    else:
        chosen, rejected = cell["chosen"].sides(), cell["rejected"].sides(truthfulqa)
        if len(chosen) != 1:
            raise cell["chosen"].wrong("one chosen answer is needed")
        sides, notes = [*chosen, *rejected], []
    prompt = cell["prompt"].prompt() if "prompt" in cell else None
    correct: list[str] = []
    if "correct" in cell and cell["correct"].value is not None:
        correct = [cell["correct"].text(side) for side in cell["correct"].sides(truthfulqa)]
    category = cell["category"].label() if "category" in cell else ""

    completions = cell.get("completions")
    blamed = [completions or cell["chosen"], *[completions or cell["rejected"]] * (len(sides) - 1)]
    turns, answers = _split(prompt, sides, blamed)
    texts_alone = prompt is None and all(isinstance(side, str) for side in sides)
    verbatim = texts_alone and not all(_hh(str(side)) for side in sides)
    if truthfulqa:
        answers, correct = [a.strip() for a in answers], [a.strip() for a in correct]
        turns = tuple(Turn(role, text.strip()) for role, text in turns)
    if not turns:
        reason = NO_SHARED_PROMPT if prompt is None else NO_PROMPT
        return None, [*notes, Note(reason, place)]
    if not turns[-1].text.strip():
        return None, [*notes, Note(NO_PROMPT, place)]
    if not answers[0].strip():
        return None, [*notes, Note(NO_CHOSEN, place)]
    if turns[-1].role != "user":
        raise DataError(f"{place}: the turn before the answer is by {turns[-1].role!r}, not 'user'")
    history = _with_system(turns[:-1], cell.get("system"))
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
            if not re.fullmatch(r"[a-z_]+", message["role"]):  # templates write it among their own
                raise self.wrong(f"{message['role'][:30]!r} is no role; one is a word like 'user'")
            unread = [key for key in ("tool_calls", "reasoning_content") if message.get(key)]
            if unread:
                raise self.wrong(
                    f"a message with {unread[0]!r} cannot be read; put it in 'content'"
                )
        return tuple(Turn(m["role"], self.text(m["content"])) for m in messages)

    def label(self) -> str:
        """Read a category: text or a number."""
        number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        return str(self.value) if number else self.text(self.value)

    def sides(self, semicolons: bool = False) -> list[Side]:
        """Read an answer or a list of answers, each of them text or messages.

        In TruthfulQA's CSV semicolons separate the answers of a list.
        """
        if not isinstance(self.value, list | tuple):
            text = self.text(self.value)
            if semicolons:
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


def _with_system(history: Turns, cell: _Cell | None) -> Turns:
    """Put the system message of a column of its own before the turns, unless it is there."""
    system = cell.text(cell.value) if cell else ""
    if not cell or not system.strip() or Turn("system", system) in history[:1]:
        return history
    if history and history[0].role == "system":
        raise cell.wrong("the conversation begins with another system message")
    return (Turn("system", system), *history)


def _split(
    prompt: Side | None, sides: Sequence[Side], cells: Sequence[_Cell]
) -> tuple[Turns, list[str]]:
    """Return the turns of the prompt and the text of each answer; no turns: there is no prompt."""
    if isinstance(prompt, str) and all(isinstance(side, str) for side in sides):
        return _asking(_hh(prompt)) or (Turn("user", prompt),), [str(side) for side in sides]
    if prompt is None and all(isinstance(side, str) for side in sides):
        texts = [str(side) for side in sides]
        turns = [_hh(text) for text in texts]
        if not all(turns):
            shared = _shared_opening(texts)
            opening = (Turn("user", texts[0][:shared]),) if shared else ()
            return opening, [text[shared:] for text in texts]
        sides = turns

    # Conversations: the turns before the last answer are the prompt's, or repeat it.
    conversations = [(Turn("assistant", s),) if isinstance(s, str) else s for s in sides]
    for said, cell in zip(conversations, cells, strict=True):
        if not said or said[-1].role != "assistant":
            raise cell.wrong("an answer's last message must be the assistant's")
    answers = [said[-1].text for said in conversations]
    given = prompt if isinstance(prompt, tuple) else ()
    befores = [_without(said[:-1], given) for said in conversations]
    before = befores[0]
    if any(other != before for other in befores):
        return (), answers
    if isinstance(prompt, str):
        asked = [turn.text.strip() for turn in before if turn.role == "user"]
        if before and prompt.strip() not in asked:
            raise cells[0].wrong("the prompt's column and the user's turn here differ")
        given = () if before else _asking(_hh(prompt)) or (Turn("user", prompt),)
    elif before and given and given[-1].role != "assistant":
        raise cells[0].wrong("the prompt's column and the turns before the answer here differ")
    return (*given, *before), answers


def _without(before: Turns, given: Turns) -> Turns:
    """Drop turns before an answer that repeat the prompt, or its last turns, up to white space."""
    said, known = ([(t.role, t.text.strip()) for t in turns] for turns in (before, given))
    return () if said and known[-len(said) :] == said else before


def _asking(turns: Turns) -> Turns:
    """Drop an empty last turn of the assistant, which only asks for an answer."""
    return turns[:-1] if turns[-1:] == (Turn("assistant", ""),) else turns


def _hh(text: str) -> Turns:
    r"""Return the turns of "\n\nHuman: ...\n\nAssistant: ..."; none if it is no such text."""
    if not re.match(r"\s*Human:", text) or "\n\nAssistant:" not in text:
        return ()
    parts = re.split(r"(?:^\s*|\n\n)(Human|Assistant):", text)
    roles = {"Human": "user", "Assistant": "assistant"}
    named = zip(parts[1::2], parts[2::2], strict=True)
    return tuple(Turn(roles[name], said.strip()) for name, said in named)


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
