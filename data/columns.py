"""Which column has which role, told by names and by what the first rows hold; never guessed.

A source has one of three forms:

    pairs     every row has a chosen answer, and one or more rejected ones
    graded    every row has some answers, and scores, ranks or a winner that say how good they are
    single    every row has one answer and a label or a score; rows of one prompt belong together

Whatever text no role claims might be half of the prompt. So it stops the reading until somebody
says what it is.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from data import names
from data.answers import find_answers, several_answers
from data.form import Columns, Form, Values
from data.question import DataError
from data.sample import Sample, begins, value_of
from data.winners import key_of_value, names_authors, unclear, winner_columns

ROLES = (
    "prompt", "system", "history", "tools", "category", "chosen", "rejected", "correct", "answers",
    "scores", "ranks", "winner", "completion", "label",
)  # fmt: skip
JOINED = ("prompt", "rejected", "answers", "scores", "ranks")  # roles that several columns may have
TEXTS = ("prompt", "chosen", "rejected", "answers", "completion")


class Given(NamedTuple):
    """What `--columns` says."""

    asked: Columns
    unread: list[str]  # columns that are `-`
    values: Values | None  # of the winner's column


def recognise(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    given: str | None = None,
    source: str = "",
    every: bool = False,
    late: bool = False,
) -> Form:
    """Return how a source is read, by the names people use, its first rows, and what is `given`.

    Args:
        columns: the columns there are.
        rows: the first of them.
        given: `prompt=instruction+input,chosen=good,rejected=bad,context=-`. Roles that it leaves
            out are found by name. A column that is `-` is not read.
        source: named in complaints.
        every: of a pair and a graded list of answers in one row, take the list (`--pairs all`).
        late: later rows may have further columns, as in JSON.

    Raises:
        DataError: a role or column is unknown, nothing says which answers are the better ones, or a
            column holds text that no role claims.
    """
    sample = Sample(columns, rows)
    asked, unread, values = read_given(given, sample, source, late)
    free = [name for name in columns if name not in unread and name not in _used(asked)]
    try:
        form = find_answers(sample, asked, values, free, every)
        if form is None:
            raise DataError(_advice(sample, free))
        rest = [name for name in free if name not in _used(form.columns)]
        roles = {**_others(sample, rest), **_prompt(sample, asked, rest), **asked, **form.columns}
        roles = {role: roles[role] for role in ROLES if role in roles}
        alone = form.kind == "single" and "prompt" not in roles
        if alone and not sample.holds_turns(roles["completion"][0]):
            raise DataError("no column is known to be the prompt; name it: --columns prompt=COLUMN")
        silent = _silent(sample, roles, unread, form)
        return form._replace(
            columns=roles, silent=silent, unread=tuple(unread), listed=_listed(sample, roles),
            repeated=_repeated(sample, roles),
        )  # fmt: skip
    except DataError as error:
        raise DataError(f"{source}: {error}" if source else str(error)) from None


def _used(columns: Columns) -> list[str]:
    """Return the columns that these roles take; of a dotted path the first name, too."""
    paths = [path for several in columns.values() for path in several]
    return [*paths, *(path.partition(".")[0] for path in paths)]


def read_given(given: str | None, sample: Sample, source: str, late: bool = False) -> Given:
    """Read `--columns`.

    Raises:
        DataError: an item has another form, or names a column that there is not.
    """
    asked: Columns = {}
    unread: list[str] = []
    values: Values | None = None
    for item in map(str.strip, given.split(",") if given else ()):
        role, _, name = (part.strip() for part in item.partition("="))
        if role == "winner" and name not in sample.columns and ":" in name:
            name, _, said = name.rpartition(":")
            values = tuple(map(key_of_value, said.split("/")))
            once = len({*values}) == len(values) > 1 and ("-" in values) == ("+" in values)
            if "" in values or not once:
                raise DataError(f"--columns {item!r}: write winner=COLUMN:FIRST/SECOND")
        several = (name,) if name in sample.columns else tuple(name.split("+"))
        if name == "-":
            unread.append(role)
            several = (role,)
        elif role not in ROLES or not name:
            raise DataError(
                f"--columns {item!r}: write ROLE=COLUMN with {', '.join(ROLES)}, or COLUMN=- for "
                "one that is not read"
            )
        elif role in asked:
            raise DataError(f"--columns {item!r}: {role} is named twice")
        elif len(several) > 1 and role not in JOINED:
            raise DataError(f"--columns {item!r}: name one column; more may be {', '.join(JOINED)}")
        else:
            asked[role] = several
        known = [one in sample.columns or bool(sample.values(one)) for one in several]
        if not (any(known) if late and name != "-" else late or all(known)):
            there = quoted(sample.columns)
            raise DataError(f"--columns {item!r}: {source} has the columns {there}")
    return Given(asked, unread, values)


def quoted(columns: Sequence[str]) -> str:
    """Return the names of columns, for people."""
    return ", ".join(map(repr, columns)) or "none"


def _others(sample: Sample, free: Sequence[str]) -> Columns:
    """Find the columns of a system message, of tools and of a category."""
    known = {"system": names.SYSTEMS, "tools": names.TOOLS, "category": ("category",)}
    found = {role: sample.first(aliases, free) for role, aliases in known.items()}
    if found["category"] and not sample.mostly(found["category"], (str, int, float)):
        found["category"] = None
    return {role: (name,) for role, name in found.items() if name}


def _prompt(sample: Sample, asked: Columns, free: Sequence[str]) -> Columns:
    """Find the prompt, and the turns before it; {} where answers begin with it."""
    named = {names.plain(name): name for name in reversed(free)}
    held = [named[n] for n in names.PROMPTS if n in named and sample.values(named[n])]
    lists = [named[n] for n in names.HISTORIES if n in named]
    histories = [name for name in lists if sample.lists_of(name, (list, dict))]
    held = [name for name in held if name not in histories] or [
        named[n] for n in names.PROMPTS if n in named and named[n] not in histories
    ]
    found: Columns = {}
    if histories:
        found["history"] = (histories[0],)
    if "prompt" in asked or not held:
        return found
    if names.plain(held[0]) == "instruction" and "input" in named:
        return found | {"prompt": (held[0], named["input"])}  # Alpaca's: the input may be empty
    found["prompt"] = (sample.inside(held[0], ("messages", "full_text", "text")),)
    for role, keys in (("tools", names.TOOLS), ("system", names.SYSTEMS)):
        if (path := sample.inside(held[0], keys)) != held[0]:
            found[role] = (path,)
    return found


def _listed(sample: Sample, columns: Columns) -> tuple[str, ...]:
    """Return the columns whose texts are JSON lists of texts.

    Raises:
        DataError: one has lists written as Python does.
    """
    texts = [name for role in TEXTS for name in columns.get(role, ())]
    listed = []
    for name in texts:
        as_json, otherwise = sample.text_lists(name)
        values = len(sample.values(name))
        if values > 1 and as_json + otherwise > 0.9 * values:
            if otherwise:
                raise DataError(
                    f"{name!r} holds lists written as Python text; keep them as JSON lists"
                )
            listed.append(name)
    return tuple(listed)


def _repeated(sample: Sample, columns: Columns) -> bool:
    """Tell whether the answers' texts begin with the prompt's: transcripts beside their prompt."""
    sides = [name for role in TEXTS[1:] for name in columns.get(role, ())]
    if not sides or len(columns.get("prompt", ())) != 1:
        return False
    hits = []
    for row in sample.rows:
        prompt, *answers = (value_of(row, name) for name in (*columns["prompt"], *sides))
        if isinstance(prompt, str) and prompt and all(isinstance(a, str) for a in answers):
            hits.append(all(begins(answer, prompt) for answer in answers))
    return sum(hits) > 0.9 * len(hits) and len(hits) > 0


def _silent(
    sample: Sample, columns: Columns, unread: Sequence[str], form: Form
) -> tuple[tuple[str, str], ...]:
    """Return the columns that no role claims, and that have the same text in all rows, or none.

    Raises:
        DataError: one holds text that differs, or pictures.
    """
    used = {*_used(columns), *unread, *form.named}
    others = [
        name for name in sample.columns
        if name not in used and not names_authors(sample, name, form.named)
    ]  # fmt: skip
    paths = [path for several in columns.values() for path in several]
    tops = dict.fromkeys(p.partition(".")[0] for p in paths if p not in sample.columns)
    objects = [(top, v) for top in tops for v in sample.values(top) if isinstance(v, Mapping)]
    inside = dict.fromkeys(f"{top}.{key}" for top, value in objects for key in value)
    others += [path for path in inside if path not in used]
    for name in others:
        says_so = sample.flags(name) or sample.mostly(name, (int, float))  # how many, whether
        if set(names.words(name)) & names.MEDIA and not says_so:
            raise DataError(
                f"{name!r} may hold pictures or sound, which are not read; say so: "
                f"{names.flag(f'{name}=-')}"
            )
    read = ["\n".join(texts_of([value_of(row, n) for n in paths])) for row in sample.rows]
    few = 6 if "prompt" in columns else 2  # words; fewer where the prompt is unknown
    judged = {name: _says_more(sample, name, read, few) for name in others}
    if holding := [name for name, more in judged.items() if more is True]:
        raise DataError(unclaimed(holding, columns, sample))
    return tuple((name, more) for name, more in judged.items() if isinstance(more, str))


def unclaimed(holding: Sequence[str], columns: Columns, sample: Sample) -> str:
    """Say that columns hold text which would not be read, and the ways on."""
    verb, them, are = ("holds", "it", "it is")
    if len(holding) > 1:
        verb, them, are = ("hold", "them", "they are")
    said = f"{quoted(holding)} {verb} text that no role claims, and an answer may rest on {them}; "
    odd = [name for name in holding if not name.strip() or set(name) & set(",+=")]
    if odd:
        return f"{said}rename {quoted(odd)}, whose name --columns cannot spell"
    prompt = columns.get("prompt", ())
    way = ""
    if any(set(names.words(name)) & names.OTHER_ANSWERS for name in holding):
        pass  # joined to the prompt it might give the answer away
    elif all(sample.mostly(name, str) for name in (*prompt, *holding)):
        joined = names.flag(f"prompt={'+'.join([*prompt, *holding])}")
        way = f"join {them} to the prompt: {joined}, or "
        if not prompt:
            way = f"make {them} the prompt: {joined}, or "
    elif len(holding) == 1 and sample.lists_of(holding[0], (dict,)):
        role = "history" if prompt else "prompt"
        way = f"read {them} as the {role}: {names.flag(f'{role}={holding[0]}')}, or "
    leave = names.flag(",".join(f"{name}=-" for name in holding))
    return f"{said}{way}say that {are} not read: {leave}"


def _says_more(sample: Sample, name: str, read: Sequence[str], few: int) -> bool | str:
    """Tell whether a column holds text that is not in what is read, and that differs by row.

    A str is the text that all rows have; "" where they have none.
    """
    known = names.plain(name.rpartition(".")[2])
    is_role = known in (*names.PROMPTS, *names.SYSTEMS, *names.HISTORIES)
    answers = names.of_answers(name, names.ANSWERS) and sample.lists_of(name, (str, dict, list))
    if names.beside(name, short=not sample.prose(name, few)) or (answers and not is_role):
        return False
    marking = name in winner_columns([name]) or set(names.words(name)) & names.WORSE
    if marking and sample.marks(name):
        return False
    news, values = 0, []
    for row, said in zip(sample.rows, read, strict=True):
        text = text_in(value_of(row, name))
        news += any(line.strip() not in said for line in text.split("\n"))
        values += [text] if text else []
    if not values:
        return ""
    ((first, commonest),) = Counter(values).most_common(1)
    if commonest >= max(2, 0.9 * len(values)) and not is_role:
        return first if commonest == len(sample.rows) else False
    return news > 0.05 * len(values)


def texts_of(value: Any) -> list[str]:
    """Return every text within a value, however deep; of messages what they say."""
    found, left = [], [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, Mapping):
            left += [inside for key, inside in one.items() if key not in ("role", "from")][::-1]
        elif isinstance(one, Sequence) and not isinstance(one, bytes):
            left += one[::-1]
    return found


def text_in(value: Any) -> str:
    """Return all text within a value that an answer could rest on."""
    return "\n".join(t for t in texts_of(value) if not names.NO_TEXT.fullmatch(t))


def _advice(sample: Sample, free: Sequence[str]) -> str:
    """Say how a person can tell the better answers from the others; never a way to invert them."""
    ways, judging = several_answers(sample, free), winner_columns(free)
    for answers in ways:
        marking = [n for n in judging if n not in answers and not sample.mostly(n, list)]
        if marking:
            return unclear(sample, marking[0], answers)
        said = names.flag(f"answers={'+'.join(answers)},winner=COLUMN")
        return (
            f"no column is known to say how good the answers in {quoted(answers)} are; name the "
            f"one that does: {said}, or scores= or ranks= in place of winner="
        )
    there = f"the columns {quoted(sample.columns)} do not tell the chosen answer from the rejected"
    marked = names.RANKS | names.LABELS
    if judging or any(set(names.words(name)) & marked for name in free):
        return (
            f"{there}; say what they are: --columns answers=A+B,winner=COLUMN for two answers and "
            "one that says which won, answers=LIST,scores=LIST (or ranks=) for a list, or "
            "completion=A,label=B for one answer a row and what it is worth"
        )
    if len(sample.columns) == 1 and (mark := re.search(r"[;|\t]", sample.columns[0])):
        return f"{there}; they are separated by {mark[0]!r}: save them with commas"
    return f"{there}; say so: --columns prompt=...,chosen=...,rejected=..."


def holds_text(value: Any) -> bool:
    """Tell whether there is text within a value that an answer could rest on."""
    return not all(map(names.NO_TEXT.fullmatch, texts_of(value)))


def late_column(row: Mapping[str, Any], known: Collection[str]) -> str | None:
    """Return a column of this row that the first rows lack, if it has text that might matter."""
    new = (n for n in row if n not in known and not names.beside(n) and not names.of_answers(n))
    return next((name for name in new if holds_text(row[name])), None)


def describe(form: Form, columns: Sequence[str]) -> str:
    """Say how a source is read, for people to check."""
    read = ", ".join(
        f"{role} = {' + '.join(map(repr, several))}" for role, several in form.columns.items()
    )
    answers = form.columns.get("answers", ())
    if form.winner:
        named = dict(enumerate(map(repr, answers))) if len(answers) > 1 else {}
        means = (
            f"{value}: {named.get(place, f'answer {place + 1}')}"
            for value, place in sorted(form.winner.items())
        )
        read += f" ({', '.join(means)})"
    used = {*_used(form.columns), *form.named}
    ignored = [repr(name) for name in columns if name not in used]
    return read + (f"; not read: {', '.join(ignored)}" if ignored else "")
