"""Where the answers of a source stand, and which column says how good they are.

Nothing is guessed here: a column of marks is read only where its values name the better answer, or
are scores or ranks by name. Where they could mean either answer, the reading is refused.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from data import names
from data.cells import Cell
from data.question import DataError
from data.sample import NUMBER, Sample, opposed, value_of

Columns = dict[str, tuple[str, ...]]  # role -> its columns; of several the texts are joined
Values = tuple[str, ...]  # of a winner's column: what stands for the first answer, the second, ...


class Form(NamedTuple):
    """How the rows of a source are read."""

    kind: Literal["pairs", "graded", "single"]
    columns: Columns
    winner: Mapping[str, int] = {}  # what its column says -> which answer is the better one
    named: tuple[str, ...] = ()  # columns with the names of the answers' authors, one of which won
    silent: tuple[tuple[str, str], ...] = ()  # columns of no role, and the only text that they had
    ties: bool = False  # any other value of the winner's column is a tie
    repeated: bool = False  # every answer's text begins with the prompt's
    listed: tuple[str, ...] = ()  # columns whose texts are JSON lists of texts
    unread: tuple[str, ...] = ()  # columns that are not to be read

    def wanted(self, columns: Sequence[str]) -> list[str]:
        """Return those of a source's columns that are read, or watched, each once."""
        used = [name for several in self.columns.values() for name in several]
        named = (*used, *self.named, *(name for name, _ in self.silent))
        return list(dict.fromkeys(n if n in columns else n.partition(".")[0] for n in named))


def find_answers(
    sample: Sample, asked: Columns, values: Values | None, free: Sequence[str], every: bool
) -> Form | None:
    """Return the form with the columns of its answers; None where nothing tells them apart.

    Raises:
        DataError: a column says which answer won, but could mean either of them.
    """
    of_lists = {"answers", "scores", "ranks", "winner"} & asked.keys()
    alone = {"completion", "label"} & asked.keys()
    paired = {"chosen", "rejected"} & asked.keys()
    pairs = None if of_lists or alone else _pairs(sample, asked, free)
    graded = None
    if not alone and not paired and (every or not pairs):
        graded = _graded(sample, asked, values, free)
    if pairs and not paired:
        _check_order(sample, pairs, free)
    if pairs:
        return graded if graded and len(graded.columns["answers"]) == 1 else pairs
    single = None if of_lists or paired else _single(sample, asked, free)
    return graded or single


def _pairs(sample: Sample, asked: Columns, free: Sequence[str]) -> Form | None:
    """Find a chosen and a rejected answer."""
    columns: Columns = {}
    for role, side in (("chosen", names.GOOD), ("rejected", names.BAD)):
        exact = (role, *names.TRUTHFULQA[role], *names.ALSO[role])
        alike = [names.plain(name) for name in free if names.says(name, side)]
        found = sample.first([*exact, *alike], free)
        if not found and role == "chosen" and "rejected" not in asked:
            found = _beside_rejected(sample, free)
        if role not in asked and not found:
            return None
        columns[role] = asked.get(role) or (str(found),)
    more = [n for n in free if names.stem(n)[1] and names.says(names.stem(n)[0], names.BAD)]
    if "rejected" not in asked and (more := [n for n in more if n not in columns["rejected"]]):
        columns["rejected"] += tuple(more)  # `rejected_2` and on
    if all(_points(sample, columns[role][0], free) for role in ("chosen", "rejected")):
        return None  # they say which of other columns is meant
    if names.plain(columns["chosen"][0]) in names.TRUTHFULQA["chosen"] and "correct" not in asked:
        correct = sample.first(names.TRUTHFULQA["correct"], free)
        columns |= {"correct": (correct,)} if correct else {}
    return Form("pairs", columns)


def _points(sample: Sample, column: str, free: Sequence[str]) -> bool:
    """Tell whether a column's values are no answers, and say which of several others is meant."""
    ways = several_answers(sample, free)
    told = {key_of_value(value) for value in sample.values(column)}
    return bool(ways and told) and (
        sample.marks(column)
        or any(names_authors(sample, column, _authors(answers, free)) for answers in ways)
        or any(None not in _places(told, answers).values() for answers in ways)
    )


def _beside_rejected(sample: Sample, free: Sequence[str]) -> str | None:
    """Return the answer beside a rejected one: `response` beside `rejected_response`.

    It may be the last of the messages that hold the prompt.
    """
    bad = [names.words(name) for name in free if names.says(name, names.BAD)]
    bare = {"_".join(w for w in found if w not in names.BAD) for found in bad} - {""}
    if found := next((name for name in free if names.plain(name) in bare), None):
        return found
    name = sample.first(("messages", "conversations"), free) if bad else None
    values = sample.values(name) if name else []
    ends = [value[-1] for value in values if isinstance(value, list)]
    roles = {str(end.get("role", end.get("from"))) for end in ends if isinstance(end, dict)}
    return name if roles and roles <= {"assistant", "gpt"} else None


def _graded(
    sample: Sample, asked: Columns, values: Values | None, free: Sequence[str]
) -> Form | None:
    """Find answers, and what grades them."""
    given: Columns = {r: asked[r] for r in ("scores", "ranks", "winner") if r in asked}
    if len(given) > 1:
        raise DataError(f"--columns: {' and '.join(given)} both say how good answers are; name one")
    ways = [asked["answers"]] if "answers" in asked else several_answers(sample, free)
    for answers in ways:
        if given and "winner" not in given:
            return Form("graded", {"answers": answers, **given})
        rest = [name for name in free if name not in answers]
        found = [] if given else _grades(sample, answers, rest)
        won = _winner(sample, answers, given.get("winner"), values, rest)
        winners = [_by_winner(answers, *won, _authors(answers, rest), bool(values))] if won else []
        lists = len(answers) == 1
        forms = [*found, *winners] if lists else [*winners, *found]
        if forms:
            return _agreed(sample, forms)
    return None


def _by_winner(
    answers: tuple[str, ...], column: str, meaning: Mapping[str, int], named: tuple[str, ...],
    ties: bool,
) -> Form:  # fmt: skip
    columns = {"answers": answers, "winner": (column,)}
    return Form("graded", columns, meaning, () if meaning else named, ties=ties)


def _agreed(sample: Sample, forms: Sequence[Form]) -> Form:
    """Return the first of several ways to grade the same answers.

    Raises:
        DataError: another one prefers two answers the other way.
    """
    first, *others = forms
    for other in others:
        orders = ((order_in(row, first), order_in(row, other)) for row in sample.rows)
        if any(opposed(*both) for both in orders):
            raise DataError(
                f"{_how(first)} and {_how(other)} disagree about which answer is better; say which "
                f"to read: {_flag(first)} or {_flag(other)}"
            )
    return first


def order_in(row: Mapping[str, object], form: Form) -> list[float]:
    """Return numbers that order a row's answers as the form's grades do; [] if they do not."""
    answers = [value_of(row, name) for name in form.columns["answers"]]
    answers = answers[0] if len(answers) == 1 and isinstance(answers[0], list) else answers
    if "winner" in form.columns:
        value = value_of(row, form.columns["winner"][0])
        said = key_of_value(value)
        if "-" in form.winner:
            said = "-" if said.startswith("-") else "+" if said.strip("+0.") else ""
        authors = [value_of(row, name) for name in form.named] or answers
        place = authors.index(value) if not form.winner and value in authors else -1
        place = form.winner.get(said, place)
        return [float(i == place) for i in range(len(answers))] if place >= 0 else []
    role = next((role for role in ("scores", "ranks") if role in form.columns), None)
    values = [value_of(row, name) for name in form.columns[role]] if role else answers
    values = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    try:
        if role is None:  # in the answers themselves
            return [float(grade or 0) for grade in Cell("", "", values).answers()[1]]
        return [float(number) * (-1 if role == "ranks" else 1) for number in values]
    except (TypeError, ValueError, DataError):
        return []


def _how(form: Form) -> str:
    roles = ("winner", "scores", "ranks", "answers")
    graded = next(form.columns[role] for role in roles if role in form.columns)
    return " and ".join(map(repr, graded))


def _flag(form: Form) -> str:
    role = next(r for r in ("winner", "scores", "ranks", "answers") if r in form.columns)
    return names.flag(f"{role}={'+'.join(form.columns[role])}")


def several_answers(sample: Sample, free: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every way in which a row may have several answers: lists, and columns numbered."""
    lists = [
        (name,) for name in free
        if names.of_answers(name) and sample.lists_of(name, (str, dict, list))
    ]  # fmt: skip
    return [*lists, *suffixed(sample, free)]


def suffixed(sample: Sample, free: Sequence[str]) -> list[tuple[str, ...]]:
    """Return columns of answers whose names differ only in a number or letter at their end."""
    found: dict[str, dict[str, str]] = {}
    for name in free:
        stem, suffix = names.stem(name)
        parts = set(names.words(stem))
        if suffix and parts & names.NOUNS and parts <= names.NOUNS | names.OF_ANSWERS:
            if sample.mostly(name, (str, list, dict)):
                found.setdefault(stem, {})[suffix] = name
    several = [group for group in found.values() if len(group) > 1]
    return [tuple(group[suffix] for suffix in sorted(group)) for group in several]


def _grades(sample: Sample, answers: tuple[str, ...], free: Sequence[str]) -> list[Form]:
    """Find scores and ranks of these answers: in a list, a list beside it, or a column for each.

    Those that are said to be of the whole answer come first.
    """
    found: list[tuple[bool, bool, Columns]] = []
    if len(answers) == 1 and sample.graded_inside(answers[0]):
        return [Form("graded", {"answers": answers})]
    wanted = [names.stem(name)[1] for name in answers]
    for role, meant in (("scores", names.SCORES), ("ranks", names.RANKS)):
        groups: dict[str, dict[str, str]] = {}
        for name in free:
            stem, suffix = (name, "") if len(answers) == 1 else names.stem(name)
            if names.grades(stem, meant):
                groups.setdefault(stem, {})[suffix] = name
        for stem, group in groups.items():
            said = set(names.words(stem))
            columns = tuple(group.get(suffix, "") for suffix in wanted)
            if len(answers) == 1:
                columns = tuple(group.values())
                fits = sample.parallel(answers[0], columns[0])
            else:
                fits = all(columns) and all(map(sample.numbers, columns))
            if fits:
                whole = bool(said & names.OVERALL), said <= meant
                found.append((*whole, {"answers": answers, role: columns}))
    found.sort(key=lambda one: one[:2], reverse=True)
    if found and found[0][0]:
        found = found[:1]  # others are of a part of what an answer is worth
    return [Form("graded", columns) for _, _, columns in found]


def _single(sample: Sample, asked: Columns, free: Sequence[str]) -> Form | None:
    """Find one answer a row, and what it is worth."""
    answer, label = asked.get("completion"), asked.get("label")
    if not answer and (found := sample.first(names.SINGLE, free)):
        answer = (found,)
    rest = [n for n in free if n not in (answer or ()) and not sample.mostly(n, (list, dict))]
    alike = [n for n in rest if names.grades(n, names.LABELS | names.RANKS)]
    alike.sort(key=sample.flags, reverse=True)  # true and false before scores
    named = [n for n in rest if names.plain(n) in names.FIRST_LABELS]
    alike = [*named, *(n for n in alike if set(names.words(n)) & names.OVERALL), *alike]
    if not label and alike:
        label = (alike[0],)
        _check_labels(sample, alike, free)
    return Form("single", {"completion": answer, "label": label}) if answer and label else None


def _check_order(sample: Sample, pairs: Form, free: Sequence[str]) -> None:
    """Refuse pairs whose rejected answers mostly have the better grades, by their names.

    Raises:
        DataError: with both columns, and how to say which answers are the better ones.
    """
    graded = names.SCORES | names.RANKS

    def of(side: frozenset[str]) -> dict[frozenset[str], str]:
        found = {name: set(names.words(name)) for name in free}
        return {
            frozenset(said - side): name for name, said in found.items()
            if said & side and names.grades("_".join(said - side), graded)
        }  # fmt: skip

    good, bad = of(names.GOOD), of(names.BAD)
    for what in good.keys() & bad.keys():
        columns = [_numbers(sample, side[what]) for side in (good, bad)]
        apart = [a - b for a, b in zip(*columns, strict=True) if a is not None and b is not None]
        if what & names.RANKS:
            apart = [-number for number in apart]
        against = sum(number < 0 for number in apart)
        if against > sum(number > 0 for number in apart):
            chosen, rejected = (pairs.columns[role] for role in ("chosen", "rejected"))
            as_named = names.flag(f"chosen={chosen[0]},rejected={'+'.join(rejected)}")
            said = (
                f"{good[what]!r} is the worse one in {against} of {len(apart)} rows, beside "
                f"{bad[what]!r}; say which answers are the better ones: {as_named}"
            )
            if len(rejected) == 1:
                turned = names.flag(f"chosen={rejected[0]},rejected={chosen[0]}")
                said += f", or the other way round: {turned}"
            raise DataError(said)


def _numbers(sample: Sample, column: str) -> list[float | None]:
    """Return the numbers of a column; None where there is none."""
    found = [value_of(row, column) for row in sample.rows]
    return [float(v) if re.fullmatch(NUMBER, str(v).strip()) else None for v in found]


def _check_labels(sample: Sample, alike: Sequence[str], free: Sequence[str]) -> None:
    """Refuse a label of answers that another one mostly turns round, among answers of a prompt.

    Raises:
        DataError: with both, and how to say which is to be read.
    """
    label, *others = dict.fromkeys(alike)
    prompt = sample.first(names.PROMPTS, free)
    if set(names.words(label)) & names.OVERALL or not prompt:
        return
    same: dict[str, list[int]] = {}  # rows of one prompt
    for i, row in enumerate(sample.rows):
        same.setdefault(str(value_of(row, prompt)), []).append(i)
    pairs = [pair for rows in same.values() for pair in itertools.combinations(rows, 2)]
    says = _worth(sample, label)
    for other in others:
        worth = _worth(sample, other)
        products = [(says[i] - says[j]) * (worth[i] - worth[j]) for i, j in pairs]
        if sum(p < 0 for p in products) > sum(p > 0 for p in products):
            raise DataError(
                f"{label!r} and {other!r} disagree about which answer is better; say which to "
                f"read: {names.flag(f'label={label}')} or {names.flag(f'label={other}')}"
            )


def _worth(sample: Sample, column: str) -> list[float]:
    """Return what a column of labels says of each row; NaN where it says nothing."""
    rank, found = bool(set(names.words(column)) & names.RANKS), []
    for row in sample.rows:
        try:
            found.append(Cell("", column, value := value_of(row, column)).number(value, rank))
        except DataError:
            found.append(math.nan)
    return found


# Which of several answers won


def _authors(answers: tuple[str, ...], free: Sequence[str]) -> tuple[str, ...]:
    """Return the columns with the names of the models that answered, in the answers' order."""
    wanted = [names.stem(name)[1] for name in answers]
    by_model = [n for n in free if {*names.words(names.stem(n)[0])} <= {"model", "name"}]
    found = {names.stem(n)[1]: n for n in by_model}
    named = tuple(found[suffix] for suffix in wanted if suffix in found)
    return named if len(answers) > 1 and len(named) == len(answers) else ()


def names_authors(sample: Sample, column: str, named: tuple[str, ...]) -> bool:
    """Tell whether each value of a column is the name of an author in the same row, or a tie."""
    rows = [(row, value_of(row, column)) for row in sample.rows]
    told = [(row, value) for row, value in rows if value and not names.is_tie(str(value))]
    return bool(named and told) and all(
        value in [value_of(row, name) for name in named] for row, value in told
    )


def _winner(
    sample: Sample, answers: tuple[str, ...], asked: tuple[str, ...] | None,
    values: Values | None, free: Sequence[str],
) -> tuple[str, Mapping[str, int]] | None:  # fmt: skip
    """Return the column that names the better answer, and what its values mean.

    Raises:
        DataError: the one asked for has values that could mean either answer, or two disagree.
    """
    if asked and values:
        return asked[0], {value: place for place, value in enumerate(values)}
    found: list[tuple[str, Mapping[str, int]]] = []
    for name in asked or winner_columns(free):
        meaning = _meaning(sample, name, answers, _authors(answers, free))
        if asked and meaning is None:
            raise DataError(unclear(sample, name, answers))
        if meaning or (meaning is not None and not names.of_answers(name)):
            found.append((name, meaning))
    named = _authors(answers, free)
    forms = [_by_winner(answers, *one, named, False) for one in found]
    if len(forms) > 1:
        _agreed(sample, forms)
    return found[0] if found else None


def winner_columns(free: Sequence[str]) -> list[str]:
    """Return the columns that may say which answer is the better one, the likeliest first."""

    def likely(name: str) -> int:
        found = names.words(name)
        if set(found) & names.WORSE:
            return len(names.WINNERS)
        return min((i for i, word in enumerate(names.WINNERS) if word in found),
                   default=len(names.WINNERS))  # fmt: skip

    signed = [name for name in free if names.plain(name) in names.SIGNED]
    others = [name for name in free if name not in signed and likely(name) < len(names.WINNERS)]
    return [*signed, *sorted(others, key=likely)]


def key_of_value(value: object) -> str:
    """Return a value of a winner's column as it is looked up: `1`, `a`, `response_a`, `-2`."""
    text = re.sub(r"(?<=\d)\.0+$", "", str(value).strip().casefold())  # 1.0 is 1
    return text if re.fullmatch(r"[-+]?[\d.]*", text) else names.plain(text)


def _meaning(
    sample: Sample, name: str, answers: tuple[str, ...], named: tuple[str, ...]
) -> Mapping[str, int] | None:
    """Return which value of a column means which answer; {}: their own texts; None: unclear."""
    values = sample.values(name)
    if not values or not all(isinstance(v, str | int | float) for v in values):
        return None
    if names_authors(sample, name, named):  # who may be called `Model A`, wherever they stand
        return {}
    if not sample.marks(name) and sample.repeats(name, answers):
        return {}
    told = {key_of_value(v) for v in values if not names.is_tie(str(v))}
    numbers = [float(v) for v in told if re.fullmatch(r"-?\d+(\.\d+)?", v)]
    if names.plain(name) in names.SIGNED and len(numbers) == len(told):
        # Without a number below 0 nobody says of which answer it is how much better.
        return {"-": 0, "+": 1} if min(numbers, default=0) < 0 else None
    if any(set(names.words(v)) & names.WORSE for v in told):
        return None
    if len(answers) == 1:  # a place in a list
        longest = max((len(v) for v in sample.values(answers[0])), default=0)
        if numbers and len(numbers) == len(told) and all(n.is_integer() for n in numbers):
            start = 0 if min(numbers) == 0 else 1 if max(numbers) == longest else None
            if start is None or not start <= min(numbers) <= max(numbers) < longest + start:
                return None
            return {str(i + start): i for i in range(longest)}
        letters = {letter: place for place, letter in enumerate("abcdefgh"[:longest])}
        if told and told <= letters.keys():
            return letters
        return {} if sample.repeats(name, answers) else None
    suffixes = [names.stem(answer)[1] for answer in answers]
    places = _places(told, answers)
    if told and not any(isinstance(v, bool) for v in values):  # true of which one?
        known = {value: place for value, place in places.items() if place is not None}
        if told == {"1"} and suffixes == ["1", "2"]:
            return None  # the first of two, or the place 1 of 0 and 1
        if len(known) == len(told):
            return {suffix: place for place, suffix in enumerate(suffixes)} | known
    if {*map(names.plain, answers)} <= {"human_ref_a", "human_ref_b"} and told <= {"0", "1"}:
        return {"1": 0, "0": 1}  # SHP: `labels` is 1 where A is preferred
    by_name = named and told <= {key_of_value(v) for n in named for v in sample.values(n)}
    return {} if by_name or sample.repeats(name, answers) else None


def _places(told: Iterable[str], answers: tuple[str, ...]) -> dict[str, int | None]:
    """Return which answer each value names, if it names one."""
    suffixes = [names.stem(answer)[1] for answer in answers]
    return {value: _place(value, answers, suffixes) for value in told}


def _place(value: str, answers: tuple[str, ...], suffixes: list[str]) -> int | None:
    """Return the answer that a value names: `b`, `response_b`, `model_b`, `second`."""
    plain = [names.plain(name) for name in answers]
    if value in plain:
        return plain.index(value)
    said = names.words(value) if not value.startswith("-") else []
    ordered = {suffix: place for place, suffix in enumerate(suffixes)} | names.ORDINALS
    if all(map(str.isdigit, suffixes)):  # A and B of answers 1 and 2
        ordered |= {
            letter: place for place, letter in zip(range(len(suffixes)), "abcdefgh", strict=False)
        }
    hits = {ordered[word] for word in said if word in ordered}
    others = [word for word in said if word not in ordered and word not in names.VERDICT]
    return hits.pop() if len(hits) == 1 and not others else None


def unclear(sample: Sample, name: str, answers: tuple[str, ...]) -> str:
    """Say that a winner's values could mean either answer, and how to say which."""
    objects = [value for value in sample.values(name) if isinstance(value, Mapping)]
    if keys := [key for value in objects[:1] for key in value if isinstance(value[key], str)]:
        path = names.flag(f"winner={name}.{keys[0]}")
        return f"{name!r} holds objects; name the value in them that says which answer won: {path}"
    told = sorted({key_of_value(v)[:20] for v in sample.values(name)})[:4]
    first, second = "the first of them", "the second"
    if len(answers) > 1:
        first, second = map(repr, answers[:2])
    return (
        f"{name!r} has the values {', '.join(told) or 'none'}, and nothing says which answer they "
        f"mean (other values would be ties, - and + are below and above 0); say so: "
        f"{names.flag(f'winner={name}:X/Y')}, where X stands in rows whose better answer is "
        f"{first}, and Y where it is {second}"
    )
