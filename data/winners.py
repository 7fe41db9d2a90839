"""Which of several answers won: what the values of a winner's column mean.

They may be names of columns, places, letters, verdicts, authors, numbers with a sign, or the better
answer's own text. A value that could mean either answer means none.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from data import names
from data.form import Values
from data.question import DataError
from data.sample import Sample, value_of


def authors_of(answers: tuple[str, ...], free: Sequence[str]) -> tuple[str, ...]:
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


def winners(
    sample: Sample, answers: tuple[str, ...], asked: tuple[str, ...] | None,
    values: Values | None, free: Sequence[str],
) -> list[tuple[str, Mapping[str, int]]]:  # fmt: skip
    """Return the columns that name the better answer, and what the values of each mean.

    Raises:
        DataError: the one asked for has values that could mean either answer.
    """
    if asked and values:
        return [(asked[0], {value: place for place, value in enumerate(values)})]
    found: list[tuple[str, Mapping[str, int]]] = []
    for name in asked or winner_columns(free):
        meaning = _meaning(sample, name, answers, authors_of(answers, free))
        if asked and meaning is None:
            raise DataError(unclear(sample, name, answers))
        if meaning or (meaning is not None and not names.of_answers(name)):
            found.append((name, meaning))
    return found


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
    places = places_of(told, answers)
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


def places_of(told: Iterable[str], answers: tuple[str, ...]) -> dict[str, int | None]:
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
