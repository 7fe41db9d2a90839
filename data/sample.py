"""The first rows of a source, column by column: what tells columns apart."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data import names
from data.question import DataError

MARK = r"(?i)\s*([a-z]|\d{1,3}|(model|response|answer)[_ ]?[a-z0-9])\s*"
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"


def value_of(row: Mapping[str, Any], path: str) -> Any:
    """Return a value of a row; `input.messages` is the value `messages` of the value `input`."""
    if path in row or "." not in path:
        return row.get(path)
    first, _, rest = path.partition(".")
    inside = row.get(first)
    return value_of(inside, rest) if isinstance(inside, Mapping) else None


def begins(answer: str, prompt: str) -> bool:
    """Tell whether an answer's text begins with its prompt's, up to white space around them."""
    return answer.startswith(prompt) or answer.lstrip().startswith(prompt.strip())


class Sample:
    """The first rows of a source, column by column."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self.columns, self.rows = list(columns), rows

    def values(self, column: str) -> list[Any]:
        """Return what is there: neither null nor empty."""
        found = (value_of(row, column) for row in self.rows)
        return [v for v in found if v is not None and v != "" and v != []]

    def mostly(self, column: str, kinds: type | tuple[type, ...]) -> bool:
        """Tell whether more than half of the values are of this kind; true if there is no value."""
        values = self.values(column)
        fit = [isinstance(v, kinds) and not isinstance(v, bool) for v in values]
        return 2 * sum(fit) > len(fit) or not fit

    def first(self, aliases: Sequence[str], free: Sequence[str]) -> str | None:
        """Return the column of the likeliest of these names that has values, or one at all."""
        named = {names.plain(name): name for name in reversed(free)}
        there = [named[alias] for alias in aliases if alias in named]
        return next(filter(self.values, there), there[0] if there else None)

    def lists_of(self, column: str, kinds: tuple[type, ...]) -> bool:
        """Tell whether all values are lists of things of these kinds."""
        values = self.values(column)
        return bool(values) and all(
            isinstance(v, list) and all(isinstance(item, kinds) for item in v) for v in values
        )

    def parallel(self, column: str, other: str) -> bool:
        """Tell whether `other` has as many numbers as `column` has things, in every row."""
        pairs = [(value_of(row, column), value_of(row, other)) for row in self.rows]
        lists = [(a, b) for a, b in pairs if isinstance(a, list) and isinstance(b, list)]
        return bool(lists) and all(len(a) == len(b) for a, b in lists)

    def numbers(self, column: str) -> bool:
        """Tell whether all values are numbers, or texts of numbers."""
        values = self.values(column)
        return bool(values) and all(re.fullmatch(NUMBER, str(v).strip()) for v in values)

    def flags(self, column: str) -> bool:
        """Tell whether all values are true or false."""
        return all(str(v).casefold() in ("true", "false") for v in self.values(column))

    def repeats(self, column: str, answers: Sequence[str]) -> bool:
        """Tell whether every text of a column is that of an answer, which it then repeats."""
        hits = []
        for row in self.rows:
            if isinstance(said := value_of(row, column), str) and said:
                texts = [value_of(row, answer) for answer in answers]
                lists = len(answers) == 1 and isinstance(texts[0], list)
                hits.append(said in (texts[0] if lists else texts))
        return bool(hits) and all(hits)

    def inside(self, column: str, keys: Sequence[str]) -> str:
        """Return `column.key` for the first of the keys that its objects have, else the column."""
        values = self.values(column)
        if values and all(isinstance(value, dict) for value in values):
            there = (key for key in keys if any(key in value for value in values))
            return next((f"{column}.{key}" for key in there), column)
        return column

    def graded_inside(self, column: str) -> bool:
        """Tell whether the answers of a list are objects with grades of their own.

        Raises:
            DataError: two texts, or two grades that disagree, stand in one answer.
        """
        lists = [value for value in self.values(column) if isinstance(value, list)]
        items = [item for value in lists for item in value]
        if not items or not all(isinstance(item, dict) for item in items):
            return False
        texts = [k for k in names.TEXT_KEYS if any(isinstance(i.get(k), str) for i in items)]
        if len(texts) > 1 and any(i.get(texts[0]) != i.get(texts[1]) for i in items):
            raise DataError(
                f"the answers in {column!r} have both {texts[0]!r} and {texts[1]!r}; keep the one "
                "that is the answer"
            )
        keys = names.grade_keys(items[0])
        for other in keys[1:]:
            if any(_disagree(value, keys[0], other) for value in lists):
                raise DataError(
                    f"{keys[0]!r} and {other!r} of the answers in {column!r} disagree about which "
                    "one is better; keep one of them"
                )
        return bool(keys)

    def marks(self, column: str) -> bool:
        """Tell whether the values are marks, of a letter or a number, and no texts."""
        return all(
            not isinstance(v, list | dict) and (not isinstance(v, str) or re.fullmatch(MARK, v))
            for v in self.values(column)
        )

    def prose(self, column: str, few: int) -> bool:
        """Tell whether values have more than a few words each, or are lists of texts."""
        values = self.values(column)
        counts = sorted(len(str(v).split()) for v in values)
        lists = any(isinstance(v, list) and v and " " in str(v[0]) for v in values)
        return bool(counts) and (counts[len(counts) // 2] > few or lists)

    def holds_turns(self, column: str) -> bool:
        """Tell whether values are messages, or transcripts of "Human:" and "Assistant:"."""
        values = self.values(column)
        first = [v[0] if isinstance(v, list) else v for v in values]
        return bool(first) and all(
            (isinstance(v, dict) and bool({"role", "from"} & v.keys()))
            or (isinstance(v, str) and v.lstrip().startswith(("Human:", '[{"')))
            for v in first
        )

    def text_lists(self, column: str) -> tuple[int, int]:
        """Count texts that are JSON lists of texts, and those that look like another's lists."""
        as_json = otherwise = 0
        for value in self.values(column):
            if isinstance(value, str) and re.fullmatch(r"\s*\[.*\]\s*", value, re.DOTALL):
                try:
                    items = json.loads(value)
                    as_json += all(item is None or isinstance(item, str) for item in items)
                except (ValueError, RecursionError):
                    otherwise += bool(re.match(r"\s*\[\s*['\"]", value))
        return as_json, otherwise


def _disagree(items: Sequence[Mapping[str, Any]], one: str, other: str) -> bool:
    """Tell whether two grades order two answers differently; of ranks the lower is the better."""
    if set(names.words(one)) & names.OVERALL:
        return False  # the other is of a part of what an answer is worth
    sides = []
    for key in (one, other):
        values = [item.get(key) for item in items]
        if not all(isinstance(value, int | float) for value in values):
            return False
        rank = bool(set(names.words(key)) & names.RANKS)
        sides.append([-float(v) if rank else float(v) for v in values if v is not None])
    return opposed(*sides)


def opposed(one: Sequence[float], two: Sequence[float]) -> bool:
    """Tell whether two lists of numbers order two of their places in opposite ways."""
    pairs = itertools.combinations(zip(one, two, strict=False), 2)
    return any((a - c) * (b - d) < 0 for (a, b), (c, d) in pairs)
