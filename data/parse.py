"""A row of a known form -> a `Preference`, or none and the reason."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.cells import Cell, Side, Turns, without_nulls
from data.form import Form
from data.names import RANKS, is_tie, plain, words
from data.question import (
    EMPTY,
    NO_CHOSEN,
    NO_PROMPT,
    NO_SHARED_PROMPT,
    NOT_A_TURN,
    TIED,
    DataError,
    Note,
    Preference,
    Turn,
)
from data.sample import begins, value_of
from data.winners import key_of_value

Parsed = tuple[Preference | None, list[Note]]
Cells = dict[str, list[Cell]]  # role -> the values that it has in a row
MAY_LACK = ("system", "history", "tools", "category", "correct")


class Answers(NamedTuple):
    """The answers of a row, in its order."""

    sides: Sequence[Side]
    grades: Sequence[float]
    cells: Sequence[Cell]  # where each of them stands


def parse_row(place: str, row: Mapping[str, Any], form: Form) -> Parsed:
    """Turn a row into a preference, or into none and the reason; nothing is settled between rows.

    Text is taken exactly as it stands. Only where a format has separators around it, as
    TruthfulQA's lists and the turns of HH have, white space next to them is dropped. A row of the
    form `single` becomes a preference of one answer and its grade, without any rejected one.

    Raises:
        DataError: a value is neither text nor messages where one is needed.
    """
    cells = _cells(place, row, form)
    truthfulqa = form.kind == "pairs" and plain(cells["chosen"][0].column) == "best_answer"
    found = _answers(cells, row, form)
    if not found.sides:
        return None, [Note(TIED, place)]
    prompt = _prompt(cells["prompt"], form) if "prompt" in cells else None
    if form.repeated and isinstance(prompt, str):
        found = found._replace(sides=[_after(prompt, side) for side in found.sides])
    turns, answers = _split(prompt, found)
    if not turns:
        return None, [Note(NO_SHARED_PROMPT if prompt is None else NO_PROMPT, place)]
    asked = len(turns) - 1
    while asked >= 0 and turns[asked].role != "user":
        asked -= 1
    if asked < 0 or turns[-1].role not in ("user", "tool") or None in answers:
        return None, [Note(NOT_A_TURN, place)]
    texts_alone = prompt is None and all(isinstance(side, str) for side in found.sides)
    verbatim = texts_alone and not all(_hh(str(side)) for side in found.sides)
    correct = _correct(cells, truthfulqa)
    if truthfulqa:
        turns = tuple(Turn(role, text.strip()) for role, text, _ in turns)
        answers = [(a[0].strip(), a[1]) for a in answers if a]
    if not turns[asked].text.strip():
        return None, [Note(NO_PROMPT, place)]
    graded = [(a, g) for a, g in zip(answers, found.grades, strict=True) if a and _is_said(a)]
    notes = [Note(EMPTY, place)] * (len(answers) - len(graded) + correct.count(""))
    if form.kind == "pairs" and not (answers[0] and _is_said(answers[0])):
        return None, [Note(NO_CHOSEN, place)]
    if form.kind == "graded" and len({grade for _, grade in graded}) < 2:
        return None, [*notes, Note(TIED, place)]
    if not graded:
        return None, notes
    history = turns[:asked]
    if "history" in cells:
        history = _with_earlier(history, _history(cells["history"][0]))
    if "system" in cells:
        history = _with_system(history, cells["system"][0])
    preference = Preference(
        prompt=turns[asked].text,
        **_by_grade(graded, [text for text in correct if text], form.kind == "single"),
        category=cells["category"][0].label() if "category" in cells else "",
        history=history,
        verbatim=verbatim,
        place=place,
        since=turns[asked + 1 :],
        tools=_tools(cells["tools"][0]) if "tools" in cells else "",
    )
    return preference, notes


def _answers(cells: Cells, row: Mapping[str, Any], form: Form) -> Answers:
    if form.kind == "pairs":
        return _pair(cells, form)
    if form.kind == "graded":
        return _graded(cells, row, form)
    cell, label = cells["completion"][0], cells["label"][0]
    worth = label.number(label.value, rank=bool(set(words(label.column)) & RANKS))
    return Answers([cell.said(cell.value, cell.column in form.listed)], [worth], [cell])


def _cells(place: str, row: Mapping[str, Any], form: Form) -> Cells:
    cells: Cells = {}
    for role, several in form.columns.items():
        first = several[0]
        if len(several) == 1 and first in row:
            cells[role] = [Cell(place, first, row[first])]
            continue
        there = [name in row or name.partition(".")[0] in row for name in several]
        if role not in MAY_LACK and not (any(there) if role == "prompt" else all(there)):
            lacking = several[there.index(False)]
            raise DataError(f"{place}: no {lacking!r}, which is the {role}; add it")
        cells[role] = [Cell(place, name, value_of(row, name)) for name in several]
    return cells


def _after(prompt: str, side: Side) -> Side:
    """Return what an answer's text says after the prompt that it repeats, up to white space."""
    if not isinstance(side, str) or not begins(side, prompt):
        return side
    if side.startswith(prompt):
        return side.removeprefix(prompt)
    return side.lstrip().removeprefix(prompt.strip())


def _pair(cells: Cells, form: Form) -> Answers:
    better, (worse, *others) = cells["chosen"][0], cells["rejected"]
    chosen = better.sides(listed=better.column in form.listed)
    semicolons = [plain(c.column) for c in (better, worse)] == ["best_answer", "incorrect_answers"]
    rejected = worse.sides(semicolons, worse.column in form.listed)
    rejected += [side for cell in others for side in cell.sides()]
    if len(chosen) != 1:
        raise better.wrong("one chosen answer is needed")
    count = len(rejected)
    return Answers([*chosen, *rejected], [1.0] + [0.0] * count, [better] + [worse] * count)


def _graded(cells: Cells, row: Mapping[str, Any], form: Form) -> Answers:
    """Read answers and what grades them; no answers: none of them won."""
    held = cells["answers"]
    grades: list[Any]
    if len(held) == 1:
        sides, inside = held[0].answers()
        grades = list(inside)
        held = held * len(sides)
    else:
        sides, grades = [cell.said(cell.value, cell.column in form.listed) for cell in held], []
    for role in ("scores", "ranks"):
        if role in cells:
            cell, *others = cells[role]
            given = [cell.value, *(c.value for c in others)] if others else cell.value
            if not isinstance(given, list | tuple) or len(given) != len(sides):
                raise cell.wrong(f"{len(sides)} answers need as many {role}")
            grades = [cell.number(value, role == "ranks") for value in given]
    if "winner" in cells:
        won = _winner(cells["winner"][0], sides, row, form)
        if won is None:
            return Answers([], [], [])
        grades = [float(i == won) for i in range(len(sides))]
    if None in grades:
        raise held[0].wrong("each answer needs a score or a rank")
    return Answers(sides, grades, held)


def _winner(cell: Cell, sides: Sequence[Side], row: Mapping[str, Any], form: Form) -> int | None:
    """Return which answer won; None: it is a tie, or nobody says."""
    value, means = cell.value, form.winner
    said = key_of_value(value)
    if "-" in means:
        number = cell.number(value)
        return None if not number else means["+" if number > 0 else "-"]
    if said in means:
        place = means[said]
        if place >= len(sides):
            raise cell.wrong(f"there are only {len(sides)} answers")
        return place
    if value is None or not said:
        return None
    named = [row.get(name) for name in form.named] if form.named else list(sides)
    if form.named and named.count(value) > 1:
        return None  # one author of both
    if not means and value in named:  # before its words are looked at: an answer may say "neither"
        return named.index(value)
    if is_tie(said) or form.ties:
        return None
    raise cell.wrong("it names none of the answers")


def _prompt(cells: Sequence[Cell], form: Form) -> Side:
    """Return the prompt; texts of several columns stand on lines of their own."""
    if len(cells) == 1:
        return cells[0].said(cells[0].value, cells[0].column in form.listed)
    return "\n".join(filter(str.strip, (cell.text(cell.value) for cell in cells)))


def _correct(cells: Cells, semicolons: bool) -> list[str]:
    """Return further answers as good as the chosen one; an empty one is ""."""
    if "correct" not in cells or cells["correct"][0].value is None:
        return []
    cell = cells["correct"][0]
    texts = [cell.text(side) for side in cell.sides(semicolons)]
    return [(text.strip() if semicolons or not text.strip() else text) for text in texts]


def _is_said(answer: tuple[str, str]) -> bool:
    return bool(answer[0].strip() or answer[1])


def _by_grade(
    graded: Sequence[tuple[tuple[str, str], float]], correct: Sequence[str], single: bool
) -> dict[str, Any]:
    """Return the best answer, those below it, best first, and those as good as it."""
    best = max(grade for _, grade in graded)
    if len(graded) == 2 and not correct and graded[0][1] > graded[1][1]:  # as most rows have
        (better, one), (worse, two) = graded[0][0], graded[1][0]
        extras = (one, two) if one or two else ()
        return {"chosen": better, "rejected": (worse,), "extras": extras}
    top = [answer for answer, grade in graded if grade == best]
    below = sorted((item for item in graded if item[1] < best), key=lambda item: -item[1])
    right = [*top[1:], *((text, "") for text in correct)]
    answers = [top[0], *(answer for answer, _ in below), *right]
    levels = (best, *(grade for _, grade in below), *(best,) * len(right))
    split = 1 + len(below)
    texts = [text for text, _ in answers]
    return {
        "chosen": texts[0],
        "rejected": tuple(texts[1:split]),
        "correct": tuple(texts[split:]),
        "grades": levels if single or len(set(levels)) > 2 else (),
        "extras": tuple(extra for _, extra in answers) if any(e for _, e in answers) else (),
    }


def _history(cell: Cell) -> Turns:
    """Read earlier turns: messages, or pairs of what was asked and answered."""
    if not isinstance(cell.value, list | tuple):
        if cell.text(cell.value).strip():
            raise cell.wrong("a history is a list of messages, or of pairs")
        return ()
    turns: list[Turn] = []
    for item in cell.value:
        if isinstance(item, list | tuple) and len(item) == 2:
            turns += map(Turn, ("user", "assistant"), map(cell.text, item))
        else:
            turns += cell.turns([item])
    return tuple(turns)


def _with_earlier(history: Turns, earlier: Turns) -> Turns:
    """Put turns of a column of their own before the others, unless they are there already.

    A system message stays the first one.
    """
    first = 1 if history and history[0].role == "system" else 0
    system, rest = history[:first], history[first:]
    if earlier and _said(earlier) in (_said(rest[: len(earlier)]), _said(history[: len(earlier)])):
        return history
    return (*system, *earlier, *rest)


def _said(turns: Turns) -> list[tuple[str, str]]:
    """Return who says what in some turns, up to white space."""
    return [(turn.role, turn.text.strip()) for turn in turns]


def _tools(cell: Cell) -> str:
    """Read the functions that a model may call, as one JSON list; "": there is none."""
    tools = cell.value
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except ValueError as error:
            raise cell.wrong(f"no valid JSON ({error})") from None
    if tools is not None and not isinstance(tools, list):
        raise cell.wrong("tools are a list of functions")
    return json.dumps(without_nulls(tools), ensure_ascii=False, sort_keys=True) if tools else ""


def _with_system(history: Turns, cell: Cell) -> Turns:
    """Put the system message of a column of its own before the turns, unless it is there."""
    system = cell.text(cell.value)
    if not system.strip() or Turn("system", system) in history[:1]:
        return history
    if history and history[0].role == "system":
        raise cell.wrong("the conversation begins with another system message")
    return (Turn("system", system), *history)


def _split(prompt: Side | None, found: Answers) -> tuple[Turns, list[tuple[str, str] | None]]:
    """Return the turns of the prompt, and each answer; no turns: there is no prompt.

    None stands for an answer that is no turn of the assistant's.
    """
    sides = found.sides
    if isinstance(prompt, str) and (whole := _transcripts(prompt, sides)):
        sides, prompt = whole, _asking(_hh(prompt)) or None
    elif isinstance(prompt, str) and all(isinstance(side, str) for side in sides):
        turns = _asking(_hh(prompt)) or (Turn("user", prompt),)
        return turns, [(str(side), "") for side in sides]
    if prompt is None and all(isinstance(side, str) for side in sides):
        texts = [str(side) for side in sides]
        hh = [_hh(text) for text in texts]
        if not all(hh):
            shared = _shared_opening(texts)
            opening = (Turn("user", texts[0][:shared]),) if shared else ()
            return opening, [(text[shared:], "") for text in texts]
        sides = hh

    # Conversations: the turns before the last answer are the prompt's, or repeat it.
    conversations = [(Turn("assistant", s),) if isinstance(s, str) else s for s in sides]
    ends = [said[-1] if said and said[-1].role == "assistant" else None for said in conversations]
    answers = [end and (end.text, end.extra) for end in ends]
    given = prompt if isinstance(prompt, tuple) else ()
    given = () if given in conversations else given  # the prompt's column repeats an answer's
    befores = [_without(said[:-1], given) for said in conversations]
    before = max(befores, key=len)  # an answer alone has those of the others
    alone = [len(said) == 1 for said in conversations]
    if any(other != before and not bare for other, bare in zip(befores, alone, strict=True)):
        return (), answers
    cell = found.cells[0]
    if isinstance(prompt, str):
        asked = [turn.text.strip() for turn in before if turn.role == "user"]
        if before and prompt.strip() not in asked:
            raise cell.wrong("the prompt's column and the user's turn here differ")
        given = () if before else _asking(_hh(prompt)) or (Turn("user", prompt),)
    elif before and given and given[-1].role != "assistant":
        raise cell.wrong("the prompt's column and the turns before the answer here differ")
    return (*given, *before), answers


def _without(before: Turns, given: Turns) -> Turns:
    """Drop turns before an answer that repeat the prompt, or its last turns, up to white space."""
    said, known = _said(before), _said(given)
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


def _transcripts(prompt: str, sides: Sequence[Side]) -> list[Turns]:
    """Return answers beside a prompt that are transcripts, or go on with one; [] if they do not.

    "Human: ..." stands in the prompt and again in the answers, or "Assistant: ..." in the answers
    alone.
    """
    texts = [side for side in sides if isinstance(side, str)]
    if all(re.match(r"\s*Assistant:", text) for text in texts):
        texts = [f"{prompt.rstrip()}\n\n{text.strip()}" for text in texts]
    whole = [_hh(text) for text in texts]
    asked = _said(_asking(_hh(prompt)) or _hh(f"{prompt}\n\nAssistant:")[:-1])
    asked = asked or [("user", prompt.strip())]
    fits = [turns and _said(turns)[-1 - len(asked) : -1] == asked for turns in whole]
    return whole if len(texts) == len(sides) and all(fits) else []


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
