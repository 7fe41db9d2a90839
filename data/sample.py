"""The first rows of a source, column by column: what tells columns apart."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data import names

NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"


def value_of(row: Mapping[str, Any], path: str) -> Any:
    """Return a value of a row; `input.messages` is the value `messages` of the value `input`."""
    if path in row or "." not in path:
        return row.get(path)
    first, _, rest = path.partition(".")
    inside = row.get(first)
    return value_of(inside, rest) if isinstance(inside, Mapping) else None


class Sample:
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
        """Return the path of what is meant within an object; the column itself, if it is none."""
        values = self.values(column)
        if values and all(isinstance(value, dict) for value in values):
            there = (key for key in keys if any(key in value for value in values))
            return next((f"{column}.{key}" for key in there), column)
        return column
