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
from typing import Any, Literal, NamedTuple

from data import names
from data.question import DataError

ROLES = (
    "prompt", "system", "history", "tools", "category", "chosen", "rejected", "correct", "answers",
    "scores", "ranks", "winner", "completion", "label",
)  # fmt: skip
Columns = dict[str, tuple[str, ...]]  # role -> its columns; of several the texts are joined


class Form(NamedTuple):
    """How the rows of a source are read."""

    kind: Literal["pairs", "graded", "single"]
    columns: Columns
    winner: Mapping[str, int] = {}  # what its column says -> which answer is the better one
    named: tuple[str, ...] = ()  # columns with the names of the answers' authors, one of which won
    silent: tuple[str, ...] = ()  # columns that no role claims, and that had no text so far

    @property
    def wanted(self) -> list[str]:
        """Return every column that is read, each once."""
        used = [name for several in self.columns.values() for name in several]
        return list(dict.fromkeys([*used, *self.named, *self.silent]))


def value_of(row: Mapping[str, Any], path: str) -> Any:
    """Return a value of a row; `input.messages` is the value `messages` of the value `input`."""
    if path in row or "." not in path:
        return row.get(path)
    first, _, rest = path.partition(".")
    inside = row.get(first)
    return value_of(inside, rest) if isinstance(inside, Mapping) else None


class _Sample:
    """The first rows of a source, column by column."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self.columns, self.rows = list(columns), rows

    def values(self, column: str) -> list[Any]:
        """Return what is there: neither null nor empty."""
        found = (value_of(row, column) for row in self.rows)
        return [v for v in found if v is not None and v != "" and v != []]

    def mostly(self, column: str, kinds: type | tuple[type, ...]) -> bool:
        """Tell whether more than half of the values are of this kind; so they are where none is."""
        values = self.values(column)
        fit = [isinstance(v, kinds) and not isinstance(v, bool) for v in values]
        return 2 * sum(fit) > len(fit) or not fit

    def first(self, aliases: Sequence[str], free: Sequence[str]) -> str | None:
        """Return the column of the likeliest of these names that has values, or one at all."""
        named = {names.plain(name): name for name in reversed(free)}
        there = [named[alias] for alias in aliases if alias in named]
        return next(filter(self.values, there), there[0] if there else None)


def recognise(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    given: str | None = None,
    source: str = "",
    every: bool = False,
) -> Form:
    """Return how a source is read, by the names people use, its first rows, and what is `given`.

    Args:
        columns: the columns there are.
        rows: the first of them.
        given: `prompt=instruction+input,chosen=good,rejected=bad,context=-`. Roles that it leaves
            out are found by name. A column that is `-` is not read.
        source: named in complaints.
        every: of a pair and a graded list of answers in one row, take the list (`--pairs all`).

    Raises:
        DataError: a role or column is unknown, nothing says which answers are the better ones, or a
            column holds text that no role claims.
    """
    sample = _Sample(columns, rows)
    asked, unread, values = _given(given, sample, source)
    free = [name for name in columns if name not in unread and name not in _used(asked)]
    form = _form(sample, asked, values, free, every)
    if form is None:
        raise DataError(f"{source} has the columns {_listed(columns)}, {_advice(sample, free)}")
    found = {"tools": names.TOOLS, "category": ("category",), "system": names.SYSTEMS}
    others = {role: sample.first(aliases, free) for role, aliases in found.items()}
    roles = {
        **_prompt(sample, asked, [name for name in free if name not in _used(form.columns)]),
        **{role: (name,) for role, name in others.items() if name and role not in asked},
        **form.columns,
    }
    roles = {role: roles[role] for role in ROLES if role in roles}
    silent = _unclaimed(sample, roles, unread, form, source)
    return form._replace(columns=roles, silent=tuple(silent))


def _used(columns: Columns) -> list[str]:
    """Return the columns of the rows that these roles take, each of a dotted path the first."""
    paths = [path for several in columns.values() for path in several]
    return [*paths, *(path.partition(".")[0] for path in paths)]


def _given(
    given: str | None, sample: _Sample, source: str
) -> tuple[Columns, list[str], tuple[str, str] | None]:
    """Read `--columns`: roles, columns that are not read, and what a winner's values are."""
    asked: Columns = {}
    unread: list[str] = []
    values: tuple[str, str] | None = None
    for item in (given or "").split(",") if given else []:
        role, _, name = (part.strip() for part in item.partition("="))
        if name == "-":
            _known(role, sample, item, source)
            unread.append(role)
            continue
        if role not in ROLES or not name:
            raise DataError(
                f"--columns {item.strip()!r}: write ROLE=COLUMN with {', '.join(ROLES)}, or "
                "COLUMN=- for one that is not read"
            )
        if role in asked:
            raise DataError(f"--columns {item.strip()!r}: {role} is named twice")
        if role == "winner" and name not in sample.columns and ":" in name:
            name, _, said = name.rpartition(":")
            first, slash, second = said.partition("/")
            if not (slash and first and second):
                raise DataError(f"--columns {item.strip()!r}: write winner=COLUMN:FIRST/SECOND")
            values = (key_of_value(first), key_of_value(second))
        several = (name,) if name in sample.columns else tuple(name.split("+"))
        for one in several:
            _known(one, sample, item, source)
        asked[role] = several
    return asked, unread, values


def _known(name: str, sample: _Sample, item: str, source: str) -> None:
    if name not in sample.columns and not sample.values(name):
        there = _listed(sample.columns)
        raise DataError(f"--columns {item.strip()!r}: {source} has the columns {there}")


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns)) or "none"


def _form(
    sample: _Sample, asked: Columns, values: tuple[str, str] | None, free: list[str], every: bool
) -> Form | None:
    """Return the form with the columns of its answers; None where nothing tells them apart."""
    listed = {"answers", "scores", "ranks", "winner"} & asked.keys()
    alone = {"completion", "label"} & asked.keys()
    pairs = None if listed or alone else _pairs(sample, asked, free)
    if pairs and not every:
        return pairs
    graded = None if alone or {"chosen", "rejected"} & asked.keys() else _graded(
        sample, asked, values, free
    )  # fmt: skip
    lists = graded and len(graded.columns["answers"]) == 1
    if pairs:
        return graded if lists else pairs
    single = None if listed or {"chosen", "rejected"} & asked.keys() else _single
    return graded or (single and single(sample, asked, free))


def _pairs(sample: _Sample, asked: Columns, free: list[str]) -> Form | None:
    """Find a chosen and a rejected answer."""
    columns: Columns = {}
    for role, side in (("chosen", names.GOOD), ("rejected", names.BAD)):
        exact = (role, *names.TRUTHFULQA[role], *names.ALSO[role])
        alike = [names.plain(name) for name in free if names.says(name, side)]
        name = asked.get(role) or sample.first([*exact, *alike], free)
        if not name:
            return None
        columns[role] = name if isinstance(name, tuple) else (name,)
    if not all(sample.mostly(name, (str, list, dict)) for (name, *_) in columns.values()):
        numbers = [names.plain(name) for (name, *_) in columns.values()]
        if any(_suffixed(sample, free)) or numbers != ["chosen", "rejected"]:
            return None  # they say which of other columns is meant
    if asked.get("correct"):
        columns["correct"] = asked["correct"]
    elif names.plain(columns["chosen"][0]) in names.TRUTHFULQA["chosen"]:
        correct = sample.first(names.TRUTHFULQA["correct"], free)
        columns |= {"correct": (correct,)} if correct else {}
    return Form("pairs", columns)


def _graded(
    sample: _Sample, asked: Columns, values: tuple[str, str] | None, free: list[str]
) -> Form | None:
    """Find answers, and what grades them."""
    lists = [n for n in free if names.of_answers(n) and _list_of(sample, n, (str, dict, list))]
    ways = [asked["answers"]] if "answers" in asked else [(name,) for name in lists]
    if "answers" not in asked:
        ways += _suffixed(sample, free)
    for answers in ways:
        rest = [name for name in free if name not in answers]
        grades: Columns = {r: asked[r] for r in ("scores", "ranks", "winner") if r in asked}
        if len(grades) > 1:
            raise DataError(f"--columns: {' and '.join(grades)} both say how good answers are")
        if not grades and len(answers) == 1 and _graded_inside(sample, answers[0]):
            return Form("graded", {"answers": answers})
        chosen, named = _winner(sample, answers, grades.get("winner"), values, rest)
        if not grades and not chosen:
            grades = _grades(sample, answers, rest)
        if not grades and chosen:
            grades = {"winner": (chosen[0],)}
        if grades:
            winner = chosen[1] if chosen and "winner" in grades else {}
            return Form("graded", {"answers": answers, **grades}, winner, named)
    return None


def _list_of(sample: _Sample, name: str, kinds: tuple[type, ...]) -> bool:
    values = sample.values(name)
    return bool(values) and all(
        isinstance(v, list) and all(isinstance(item, kinds) for item in v) for v in values
    )


def _graded_inside(sample: _Sample, name: str) -> bool:
    """Tell whether the answers of a list are objects with grades of their own."""
    items = [item for value in sample.values(name) if isinstance(value, list) for item in value]
    return bool(items) and all(isinstance(item, dict) for item in items) and any(
        key in item for item in items for key in names.GRADE_KEYS
    )  # fmt: skip


def _suffixed(sample: _Sample, free: Sequence[str]) -> list[tuple[str, ...]]:
    """Return columns of answers whose names differ only in a number or letter behind them."""
    found: dict[str, dict[str, str]] = {}
    for name in free:
        stem, suffix = _stem(name)
        parts = set(names.words(stem))
        if suffix and parts & names.NOUNS and parts <= names.NOUNS | names.OF_ANSWERS:
            if sample.mostly(name, (str, list, dict)):
                found.setdefault(stem, {})[suffix] = name
    several = [group for group in found.values() if len(group) > 1]
    return [tuple(group[suffix] for suffix in sorted(group)) for group in several]


def _stem(name: str) -> tuple[str, str]:
    """Return ('response', 'a') of `response_a`, `Response A` and `responseA`."""
    parted = re.fullmatch(r"(.*?[a-z])(?:_?(\d{1,2})|_([a-z]))", names.plain(name))
    if re.search(r"[a-z][A-Z]$", name.strip()):
        return names.plain(name)[:-1], name.strip()[-1].lower()
    return (parted[1], parted[2] or parted[3]) if parted else (names.plain(name), "")


def _grades(sample: _Sample, answers: tuple[str, ...], free: Sequence[str]) -> Columns:
    """Find the scores or ranks of these answers: a list for a list, a column for each column."""
    for role, meant in (("ranks", names.RANKS), ("scores", names.SCORES)):
        if len(answers) == 1:
            fit = [n for n in free if set(names.words(n)) & meant and _parallel(sample, answers, n)]
            if fit:
                return {role: (fit[0],)}
            continue
        wanted = [_stem(name)[1] for name in answers]
        found: dict[str, dict[str, str]] = {}
        for name in free:
            stem, suffix = _stem(name)
            if set(names.words(stem)) & meant and sample.mostly(name, (int, float, str)):
                found.setdefault(stem, {})[suffix] = name
        for group in found.values():
            if set(wanted) <= group.keys():
                return {role: tuple(group[suffix] for suffix in wanted)}
    return {}


def _parallel(sample: _Sample, answers: tuple[str, ...], name: str) -> bool:
    """Tell whether a column has a number for each answer of the list."""
    pairs = [(value_of(row, answers[0]), value_of(row, name)) for row in sample.rows]
    lists = [(a, b) for a, b in pairs if isinstance(a, list) and isinstance(b, list)]
    return bool(lists) and all(len(a) == len(b) for a, b in lists)


Winner = tuple[str, Mapping[str, int]]  # the column, and what its values mean


def _winner(
    sample: _Sample, answers: tuple[str, ...], asked: tuple[str, ...] | None,
    values: tuple[str, str] | None, free: Sequence[str],
) -> tuple[Winner | None, tuple[str, ...]]:  # fmt: skip
    """Find the column that names the better answer, and the columns with the authors' names.

    Raises:
        DataError: the one asked for has values that nobody could be sure of, or two disagree.
    """
    if asked and values:
        return (asked[0], {values[0]: 0, values[1]: 1}), ()
    suffixes = [_stem(name)[1] for name in answers]
    authors = {_stem(n)[0]: n for n in free if _stem(n)[1] in suffixes and "model" in n.casefold()}
    named = tuple(
        name for suffix in suffixes for name in free
        if len(answers) > 1 and _stem(name) in [(stem, suffix) for stem in authors]
    )  # fmt: skip
    named = named if len(named) == len(answers) else ()
    heads = [n for n in free if any(w in names.words(n) for w in names.WINNERS)]
    heads = [n for n in heads if not names.of_answers(n) or sample.mostly(n, (int, float))]
    heads += [n for n in free if names.plain(n) in names.SIGNED and n not in heads]
    found: list[Winner] = []
    for name in asked or sorted(heads, key=_likely):
        meaning = _meaning(sample, name, answers, suffixes, named)
        if meaning is not None:
            found.append((name, meaning))
        elif asked:
            raise DataError(_unclear(sample, name, answers))
    for other, meaning in found[1:]:
        if _disagree(sample, found[0], (other, meaning)):
            raise DataError(
                f"{found[0][0]!r} and {other!r} disagree about which answer is the better one; say "
                f"which to read: --columns winner={found[0][0]} or --columns winner={other}"
            )
    return (found[0] if found else None), named if found and not found[0][1] else ()


def _likely(name: str) -> int:
    found = names.words(name)
    return min((i for i, word in enumerate(names.WINNERS) if word in found), default=99)


def key_of_value(value: Any) -> str:
    """Return a value of a winner's column as it is looked up: `1`, `a`, `response_a`, `-`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip().casefold()
    return text if re.fullmatch(r"[-+]?[\d.]*", text) else names.plain(text)


def _meaning(
    sample: _Sample, name: str, answers: tuple[str, ...], suffixes: list[str],
    named: tuple[str, ...],
) -> Mapping[str, int] | None:  # fmt: skip
    """Return which value of a column means which answer; {}: their own texts; None: unclear."""
    values = sample.values(name)
    if not values or not all(isinstance(v, str | int | float) for v in values):
        return None
    told = {key_of_value(v) for v in values if not set(names.words(str(v))) & names.TIES}
    numbers = [float(v) for v in told if re.fullmatch(r"-?\d+(\.\d+)?", v)]
    if names.plain(name) in names.SIGNED and len(numbers) == len(told):
        return {"-": 0, "+": 1}
    if len(answers) == 1:  # a place in a list
        longest = max((len(v) for v in sample.values(answers[0])), default=0)
        if len(numbers) == len(told) and all(n.is_integer() for n in numbers) and numbers:
            start = 0 if min(numbers) == 0 else 1 if max(numbers) == longest else None
            if start is not None and max(numbers) < longest + start:
                return {str(i + start): i for i in range(longest)}
        return {} if _are_answers(sample, name, answers) else None
    places = {key_of_value(value): _place(value, answers, suffixes) for value in told}
    if told and None not in places.values():
        if any(isinstance(v, bool) for v in values):
            return None  # true of which one?
        return {value: place for value, place in places.items() if place is not None} | {
            suffix: place for place, suffix in enumerate(suffixes)
        }
    if {*map(names.plain, answers)} <= {"human_ref_a", "human_ref_b"} and told <= {"0", "1"}:
        return {"1": 0, "0": 1}  # SHP: `labels` is 1 where A is preferred
    return {} if named or _are_answers(sample, name, answers) else None


def _place(value: str, answers: tuple[str, ...], suffixes: list[str]) -> int | None:
    """Return the answer that a value names: `b`, `response_b`, `model_b`, `second`."""
    for place, name in enumerate(answers):
        if value == names.plain(name):
            return place
    ordinals = {"first": 0, "left": 0, "second": 1, "right": 1}
    if value in ordinals:
        return ordinals[value]
    hits = {suffixes.index(word) for word in value.split("_") if word in suffixes}
    return hits.pop() if len(hits) == 1 else None


def _are_answers(sample: _Sample, name: str, answers: tuple[str, ...]) -> bool:
    """Tell whether a column repeats the text of the better answer."""
    hits = []
    for row in sample.rows:
        if isinstance(said := value_of(row, name), str) and said:
            texts = [value_of(row, answer) for answer in answers]
            texts = texts[0] if len(answers) == 1 and isinstance(texts[0], list) else texts
            hits.append(said in texts)
    return bool(hits) and all(hits)


def _disagree(sample: _Sample, one: Winner, other: Winner) -> bool:
    for row in sample.rows:
        first, second = (m.get(key_of_value(value_of(row, name))) for name, m in (one, other))
        if None not in (first, second) and first != second and one[1] and other[1]:
            return True
    return False


def _unclear(sample: _Sample, name: str, answers: tuple[str, ...]) -> str:
    """Say that a winner's values could mean either answer, and how to say which."""
    told = sorted({key_of_value(v) for v in sample.values(name)})[:4]
    first, second = [*answers, "the second of them"][:2]
    return (
        f"{name!r} has the values {', '.join(told) or 'none'}, and nothing says which answer they "
        f"mean; say so: --columns winner={name}:X/Y, where X stands in rows whose better answer is "
        f"{first!r}, and Y where it is {second!r}"
    )


def _single(sample: _Sample, asked: Columns, free: list[str]) -> Form | None:
    """Find one answer a row, and what it is worth."""
    answer = asked.get("completion") or (sample.first(names.SINGLE, free),)
    rest = [n for n in free if n not in answer and sample.mostly(n, (int, float, str))]
    alike = [n for n in rest if set(names.words(n)) & names.LABELS]
    flags = [n for n in free if set(names.words(n)) & names.LABELS and n not in rest]
    label = asked.get("label") or next(((n,) for n in [*flags, *alike]), None)
    if answer[0] is None or label is None:
        return None
    return Form("single", {"completion": (answer[0], *answer[1:]), "label": label})


def _prompt(sample: _Sample, asked: Columns, free: list[str]) -> Columns:
    """Find the prompt, and the turns before it; {} where answers begin with it."""
    found: Columns = {}
    named = {names.plain(name): name for name in reversed(free)}
    pairs = [n for n in names.HISTORIES if n in named and sample.mostly(named[n], list)]
    pairs = [n for n in pairs if sample.values(named[n])]
    others = [n for n in names.PROMPTS if n in named and n not in pairs[:1]]
    held = [named[n] for n in others if sample.values(named[n])] or [named[n] for n in others]
    if "prompt" in asked:
        pass
    elif held and names.plain(held[0]) == "instruction" and "input" in named:
        found["prompt"] = (held[0], named["input"])  # Alpaca's: the input may be empty
    elif held:
        found["prompt"] = (_inside(sample, held[0], ("messages", "full_text", "text")),)
    elif pairs:
        found["prompt"], pairs = (named[pairs[0]],), []
    if pairs and "history" not in asked:
        found["history"] = (named[pairs[0]],)
    if held and "tools" not in asked and "." in found.get("prompt", ("",))[0]:
        inside = _inside(sample, held[0], ("tools",))
        found |= {"tools": (inside,)} if inside != held[0] else {}
    return found


def _inside(sample: _Sample, name: str, keys: Sequence[str]) -> str:
    """Return the path of what is meant within an object; the name itself, if it is none."""
    values = sample.values(name)
    if values and all(isinstance(value, dict) for value in values):
        return next((f"{name}.{k}" for k in keys if any(k in v for v in values)), name)
    return name


def _unclaimed(
    sample: _Sample, columns: Columns, unread: list[str], form: Form, source: str
) -> list[str]:
    """Return the columns without text that no role claims.

    Raises:
        DataError: one holds text.
    """
    used = {*_used(columns), *unread, *form.named}
    others = [name for name in sample.columns if name not in used]
    silent = [name for name in others if not sample.values(name)]
    read = ["\n".join(_texts([value_of(row, n) for n in used])) for row in sample.rows]
    holding = [name for name in others if name not in silent and _says_more(sample, name, read)]
    if holding:
        raise DataError(f"{source}: {unclaimed(holding, columns, sample.mostly)}")
    return [name for name in silent if not names.beside(name)]


def unclaimed(holding: Sequence[str], columns: Columns, mostly: Any = lambda *_: True) -> str:
    """Say that columns hold text which would not be read, and the two ways on."""
    listed = _listed(holding)
    leave = ",".join(f"{name}=-" for name in holding)
    one = len(holding) == 1
    verb, them = ("holds", "it") if one else ("hold", "them")
    said = f"{listed} {verb} text that no role claims, and an answer may rest on {them}; "
    prompt = columns.get("prompt", ())
    if all(mostly(name, str) for name in (*prompt, *holding)):
        joined = "+".join([*prompt, *holding] if prompt else holding)
        said += f"join {them} to the prompt: --columns prompt={joined}, or " if prompt else (
            f"make {them} the prompt: --columns prompt={joined}, or "
        )  # fmt: skip
    return f"{said}say that {them if one else 'they'} {'is' if one else 'are'} not read: " + (
        f"--columns {leave}"
    )


def _says_more(sample: _Sample, name: str, read: Sequence[str]) -> bool:
    """Tell whether a column holds text that is not in what is read, and that differs by row."""
    listed = sample.mostly(name, list) and names.of_answers(name) and "messages" != name
    if names.beside(name) or listed:
        return False
    news, values = 0, []
    for row, known in zip(sample.rows, read, strict=True):
        texts = [t for t in _texts(value_of(row, name)) if not names.NO_TEXT.fullmatch(t)]
        news += any(text.strip() not in known for text in texts)
        values.append("\n".join(texts))
    ((_, commonest),) = Counter(values).most_common(1)
    constant = commonest >= max(2, 0.9 * len(values))
    return news > 0.05 * len(values) and not constant


def _texts(value: Any) -> list[str]:
    """Return every text within a value; of messages what they say."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [t for k, v in value.items() if k not in ("role", "from") for t in _texts(v)]
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [t for v in value for t in _texts(v)]
    return []


def _advice(sample: _Sample, free: Sequence[str]) -> str:
    """Say how a person can tell the better answers from the others; never a way to invert them."""
    groups = _suffixed(sample, free)
    lists = [(n,) for n in free if names.of_answers(n) and sample.mostly(n, list)]
    judging = [n for n in free if any(w in names.words(n) for w in names.WINNERS)]
    named = [n for group in groups for n in group]
    judging = [n for n in judging if n not in named and not sample.mostly(n, (list, dict))]
    for answers in [*groups, *lists]:
        if judging:
            return _unclear(sample, judging[0], answers)
        joined = "+".join(answers)
        return (
            f"of which none says how good the answers in {_listed(answers)} are; name the column "
            f"that does: --columns answers={joined},winner=COLUMN (or scores=, ranks=)"
        )
    if judging or any(set(names.words(n)) & (names.SCORES | names.LABELS) for n in free):
        return (
            "which do not tell the chosen answer from the rejected; say what they are: --columns "
            "answers=A+B,winner=COLUMN for two answers and one that says which won, "
            "answers=LIST,scores=LIST (or ranks=) for a list, completion=A,label=B for one answer"
        )
    return (
        "which do not tell the chosen answer from the rejected; say so: --columns "
        "prompt=...,chosen=...,rejected=..."
    )


def late_column(row: Mapping[str, Any], known: Collection[str]) -> str | None:
    """Return a column of this row that the first rows lack, if it has text that might matter."""
    new = (n for n in row if n not in known and not names.beside(n) and not names.of_answers(n))
    return next((n for n in new if not all(map(names.NO_TEXT.fullmatch, _texts(row[n])))), None)


def describe(form: Form, columns: Sequence[str]) -> str:
    """Say how a source is read, for people to check."""
    read = ", ".join(
        f"{role} = {' + '.join(map(repr, several))}" for role, several in form.columns.items()
    )
    answers = form.columns.get("answers", ())
    if len(answers) > 1 and form.winner:
        means = (f"{value}: {answers[place]!r}" for value, place in sorted(form.winner.items()))
        read += f" ({', '.join(means)})"
    used = {*_used(form.columns), *form.named}
    ignored = [repr(name) for name in columns if name not in used]
    return read + (f"; not read: {', '.join(ignored)}" if ignored else "")
