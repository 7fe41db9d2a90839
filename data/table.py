"""Rows in Arrow: on disk and memory-mapped when they are many, in memory when they are few."""

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np

from data.question import DataError, Note

Item = TypeVar("Item")
Other = TypeVar("Other")
ROWS_AT_ONCE = 1000
SMALL = 16 * 2**20  # bytes of a source that is read anew every time instead of stored


class Table(Sequence[Item], Generic[Item]):
    """A sequence of items, each read from its Arrow row when it is asked for.

    `rows` are the row numbers that it shows, in its order; `select` shows fewer.
    """

    def __init__(self, dataset: Any, read: Callable[[Any], Item], rows: Any = None) -> None:
        self.dataset, self.read = dataset, read
        self.rows = np.arange(len(dataset)) if rows is None else np.asarray(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return type(self)(self.dataset, self.read, self.rows[i])
        return self.read(self.dataset[int(self.rows[i])])

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self), ROWS_AT_ONCE):
            some = self.dataset[self.rows[start : start + ROWS_AT_ONCE]]
            for values in zip(*some.values(), strict=True):
                yield self.read(dict(zip(some, values, strict=True)))

    def select(self, numbers: Any) -> Self:
        """Return the items with these numbers, as a table over the same rows."""
        return type(self)(self.dataset, self.read, self.rows[np.asarray(numbers, dtype=np.int64)])

    def map(self, function: Callable[[Item], Other]) -> "Table[Other]":
        """Return a table of what `function` makes of each item when it is asked for."""
        read = self.read
        return Table(self.dataset, lambda row: function(read(row)), self.rows)

    def place(self, i: int) -> str:
        """Return where an item was read from: its file and line."""
        return str(self.dataset[int(self.rows[i])]["place"])

    def column(self, name: str) -> Any:
        """Return one number of every item, as an array."""
        return self.dataset.data.column(name).to_numpy()[self.rows]


def joined(tables: Sequence[Table[Item]]) -> Table[Item]:
    """Return the items of several tables of the same kind as one."""
    import datasets

    if len(tables) == 1:
        return tables[0]
    starts = np.cumsum([0, *(len(table.dataset) for table in tables)])
    rows = [table.rows + start for table, start in zip(tables, starts, strict=False)]
    whole = datasets.concatenate_datasets([table.dataset for table in tables])
    return Table(whole, tables[0].read, np.concatenate(rows))


def open_rows(file: Path | None) -> Any:
    """Map what `write_rows` wrote; None where there is nothing, or nothing whole."""
    import datasets
    import pyarrow

    if file is None or not file.exists():
        return None
    try:
        with file.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        if digest == _digest_file(file).read_text(encoding="utf-8"):
            return datasets.Dataset.from_file(str(file))
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException):
        pass
    print(f"The stored {file} is damaged and is made anew.", flush=True)
    return None


def _digest_file(file: Path) -> Path:
    return file.with_suffix(".sha256")


def write_rows(rows: Iterable[dict[str, Any]], features: dict[str, Any], file: Path | None) -> Any:
    """Write rows to `file` in one step and map it, or keep them in memory; return the Dataset.

    Raises:
        DataError: the file cannot be written.
    """
    import datasets
    import pyarrow
    from datasets.arrow_writer import ArrowWriter

    schema = datasets.Features(features).arrow_schema
    if file is None:
        table = pyarrow.Table.from_pylist(list(rows), schema=schema)
        return datasets.Dataset(datasets.table.InMemoryTable(table))
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # people's texts are their own
        with tempfile.TemporaryDirectory(prefix="trie-dpo-", dir=file.parent) as scratch:
            beside = Path(scratch) / file.name
            _write_arrow(rows, ArrowWriter(schema=schema, path=str(beside)), schema)
            beside.chmod(0o600)
            with beside.open("rb") as written:
                os.fsync(written.fileno())
                digest = hashlib.file_digest(written, "sha256").hexdigest()
            _digest_file(file).write_text(digest, encoding="utf-8")
            os.replace(beside, file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"the encoded data cannot be kept in {file.parent}: {error}; free space there, or set "
            "XDG_CACHE_HOME to another folder"
        ) from error
    return datasets.Dataset.from_file(str(file))


def _write_arrow(rows: Iterable[dict[str, Any]], writer: Any, schema: Any) -> None:
    import pyarrow

    rows = iter(rows)
    with writer:
        while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))
        writer.finalize()


def key_of(*parts: Any) -> str:
    """Name what comes out of these inputs and of this code: another of either, another name."""
    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(code) + json.dumps(parts).encode()).hexdigest()[:32]


def text_features() -> dict[str, Any]:
    """Return the types of the columns that a `Preference` is kept in."""
    from datasets import List, Value

    text = Value("large_string")
    return {
        "prompt": text,
        "chosen": text,
        "rejected": List(text),
        "correct": List(text),
        "category": Value("string"),
        "history": List({"role": Value("string"), "text": text, "extra": text}),
        "verbatim": Value("bool"),
        "place": Value("string"),
        "more": text,  # grades, since, tools and extras as JSON; "" where there are none
        "rows": Value("int64"),  # that were read for it
        "prompt_key": Value("int64"),  # the prompt with its history
        "notes": List({"reason": Value("string"), "place": Value("string")}),
    }


def count_notes(dataset: Any, shown: int = 3) -> dict[str, tuple[int, list[str]]]:
    """Return {reason: (how often, the first places)} over all rows, kept or left out."""
    found: dict[str, tuple[int, list[str]]] = {}
    for chunk in dataset.data.column("notes").chunks:
        for note in chunk.flatten().to_pylist():
            count, places = found.get(note["reason"], (0, []))
            found[note["reason"]] = (count + 1, [*places, note["place"]][:shown])
    return found


def as_notes(notes: Iterable[Note]) -> list[dict[str, str]]:
    """Return notes as they stand in a row."""
    return [note._asdict() for note in notes]
