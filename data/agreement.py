"""Two columns that say which answer is better, and do not agree: such a source is refused."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

from data import names
from data.cells import Cell
from data.form import Form
from data.question import DataError
from data.sample import NUMBER, Sample, opposed, value_of
from data.winners import key_of_value


def agreed(sample: Sample, forms: Sequence[Form]) -> Form:
    """Return the first of several ways to grade the same answers.

    Raises:
        DataError: another one prefers two answers the other way.
    """
    first, *others = forms
    for other in others:
        orders = ((_order_in(row, first), _order_in(row, other)) for row in sample.rows)
        if any(opposed(*both) for both in orders):
            raise DataError(
                f"{_how(first)} and {_how(other)} disagree about which answer is better; say which "
                f"to read: {_flag(first)} or {_flag(other)}"
            )
    return first


def _order_in(row: Mapping[str, object], form: Form) -> list[float]:
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


def check_order(sample: Sample, pairs: Form, free: Sequence[str]) -> None:
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


def check_labels(sample: Sample, alike: Sequence[str], free: Sequence[str]) -> None:
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
