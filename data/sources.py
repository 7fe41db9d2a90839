"""Where rows come from: the Hub, a file, a folder -> (place, row) one by one, in bounded memory.

`save_to_disk` folders and the Hub are read by `datasets`, Parquet files by the `pyarrow` below it,
since `datasets` takes a path for a pattern and keeps a copy by its time. CSV and JSON are read by
the standard library, since the readers of `datasets` guess types: an answer "None" becomes a null,
a column of years numbers, a date in JSON a timestamp, and their errors name no line. A row that
cannot be read is handed on as the error that names it, since the rows after it may be right.
"""

import csv
import hashlib
import http.client
import io
import itertools
import json
import os
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.cells import is_message, shortly
from data.question import DataError, reading, reason

BUILTIN = Path(__file__).with_name("misconceptions.csv")
TRUTHFULQA = "truthfulqa/truthful_qa"
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
FIRST_ROWS = 1000  # tell the columns and what they hold
WRAPPERS = ("data", "rows", "train", "examples", "instances")  # names of a list of rows
PACKED = {".gz": "gzip", ".zst": "zstd"}  # added to any of them but the last

Row = dict[str, Any]
Placed = tuple[str, Row | DataError]  # where it stands, and the row, or why there is none
csv.field_size_limit(sys.maxsize)  # an answer may be longer than the module's 128 KiB


class Source(NamedTuple):
    """Rows that can be read again and again."""

    columns: list[str]
    first: list[Row]  # some of the first rows, which tell what the columns hold
    rows: Callable[[list[str] | None], Iterator[Placed]]  # columns wanted, None: all that are text
    size: int  # bytes
    key: Callable[[], str]  # changes when the content does; a file is read for it
    state: Callable[[], Any] = lambda: None  # changes when somebody writes to it
    late: bool = False  # later rows may have further columns


def open_source(source: str) -> Source:
    """Open `builtin`, `truthfulqa`, a file, a `save_to_disk` folder or a Hub id.

    A Hub id is `owner/name`, `owner/name:config`, `owner/name:config:split` or
    `owner/name::split`. Without a split it is the only one, or `train`.

    Raises:
        DataError: there is no such source, or it cannot be read; rows complain as they are read.
    """
    if source == "builtin":
        return _file(BUILTIN)
    if source in ("truthfulqa", TRUTHFULQA):
        return _hub(f"{TRUTHFULQA}:generation:validation")
    path = Path(os.path.expanduser(source))  # ~somebody who is not here stays as it is
    try:
        if path.is_dir():
            return _folder(path)
        if path.exists():
            return _file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if _suffix(path) not in SUFFIXES and re.fullmatch(r"[\w.-]+/[\w.-]+(:[^/]*)*", source):
        return _hub(source)
    raise DataError(
        f"there is no file {path}; --data takes 'builtin', 'truthfulqa', a file ("
        f"{', '.join(SUFFIXES)}), a folder of save_to_disk, or a data set of the Hub (owner/name)"
    )


def _suffix(path: Path) -> str:
    """Return what kind of file it is, packed or not."""
    packed = path.suffix.lower() in PACKED
    return (Path(path.stem) if packed else path).suffix.lower()


def _text(path: Path, newline: str | None = None) -> Any:
    """Open a text file, which may be packed."""
    packed = PACKED.get(path.suffix.lower())
    if not packed:
        return path.open(encoding="utf-8-sig", newline=newline)
    import pyarrow

    unpacked: Any = pyarrow.input_stream(str(path), compression=packed)
    return io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline=newline)


def hub_answers(name: str = TRUTHFULQA, seconds: float = 3.0) -> bool:
    """Ask the Hub for a data set's page, once, without the retries of a real download."""
    if _offline():
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with urllib.request.urlopen(f"{endpoint}/api/datasets/{name}", timeout=seconds) as page:
            return bool(page.status == 200)
    except urllib.error.HTTPError:
        return name != TRUTHFULQA  # it answers: what it has to say is better said by the download
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off")


def _file(path: Path) -> Source:
    suffix = _suffix(path)
    if suffix not in SUFFIXES or (suffix == ".parquet" != path.suffix.lower()):
        packed = ", ".join(PACKED)
        raise DataError(
            f"{path}: rows are read from {', '.join(SUFFIXES)} (texts also with {packed} added); "
            "convert it to one"
        )
    lines = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet}.get(suffix, _json)

    def rows(wanted: list[str] | None) -> Iterator[Placed]:
        try:
            yield from lines(path, wanted)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is no UTF-8 text (byte {error.start} of a block); save it as UTF-8"
            ) from error
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error

    def key() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def state() -> tuple[int, int, int]:
        about = path.stat()
        return about.st_mtime_ns, about.st_size, about.st_ino

    if not path.is_file():
        raise DataError(f"{path} is no plain file, and it is read more than once; make it one")
    with path.open("rb"):  # or the reason why not
        pass
    if not path.stat().st_size:
        raise DataError(f"{path} is empty; it needs rows")
    columns: list[str] = []
    if lines is _csv:
        columns = _header(path)
    elif lines is _parquet:
        columns = _parquet_file(path).schema_arrow.names
    first = _first(rows)
    # of JSON the first rows tell; one that lacks a column complains itself
    columns = columns or list(dict.fromkeys(name for row in first for name in row))
    return Source(columns, first, rows, path.stat().st_size, key, state, lines is _json)


def _first(rows: Callable[[None], Iterator[Placed]]) -> list[Row]:
    """Return the first rows that can be read.

    Raises:
        DataError: there are some, but not one of them can be read.
    """
    found = [row for _, row in itertools.islice(rows(None), FIRST_ROWS)]
    read = [row for row in found if not isinstance(row, DataError)]
    for wrong in found:
        if not read and isinstance(wrong, DataError):
            raise wrong
    return read


def _header(path: Path) -> list[str]:
    try:
        with _text(path, newline="") as file:
            names: list[str] = next(_reader(path, file), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a UTF-8 CSV: {error}") from error
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}, line 1: two columns are called {repeated!r}; rename one")
    return names


def _reader(path: Path, file: Any) -> Any:
    return csv.reader(file, strict=True, delimiter="\t" if _suffix(path) == ".tsv" else ",")


def _csv(path: Path, wanted: list[str] | None) -> Iterator[Placed]:
    """Every record of a CSV, under the line that it ends on."""
    with _text(path, newline="") as file:
        reader = _reader(path, file)
        try:
            names: list[str] = next(reader, [])
            for cells in filter(None, reader):
                place = f"{_shown(path)}, line {reader.line_num}"
                yield place, _record(place, names, cells)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.line_num}: not a valid CSV ({error}); check the quotes"
            ) from error


def _record(place: str, names: list[str], cells: list[str]) -> Row | DataError:
    if len(names) == 1 and (mark := re.search(r"[;|\t]", names[0])):
        return DataError(
            f"{place}: the columns are separated by {mark[0]!r}, as {names[0]!r:.60} says; save "
            "them with commas"
        )
    if len(cells) != len(names):
        return DataError(
            f"{place}: {len(cells)} cells under {len(names)} columns "
            f"({', '.join(map(repr, names))}); quote commas, fill missing cells"
        )
    if any("\0" in cell for cell in cells):
        return DataError(f"{place}: a NUL byte, which text has none of; save as UTF-8")
    return dict(zip(names, cells, strict=True))


def _json(path: Path, wanted: list[str] | None) -> Iterator[Placed]:
    """Every object of a file with one a line, or every row of a file that is a single value."""
    name, values = _shown(path), _single_value(path)
    if values is not None:
        what = "line" if _suffix(path) != ".json" and len(values) == 1 else "row"
        for number, value in enumerate(values, start=1):
            place = f"{name}, {what} {number}"
            yield place, value if isinstance(value, dict) else _no_object(value, place)
        return
    with _text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{name}, line {number}"
                value = _loads(line, place)
                fits = isinstance(value, dict | DataError)
                yield place, value if fits else _no_object(value, place)


def _no_object(value: Any, place: str) -> DataError:
    return DataError(f"{place}: {shortly(value)} is no object; rows look like {{...}}")


def _single_value(path: Path) -> list[Any] | None:
    """Return the rows of a file that is one JSON value; None where every line is a value."""
    name = _shown(path)
    with _text(path) as file:
        first = next(filter(str.strip, file), "")
        alone = first.lstrip()[:1] == "[" or not any(map(str.strip, file))
    if not first or (not alone and not isinstance(_loads(first, name), DataError)):
        return None
    with _text(path) as file:
        value = _loads(file.read(), name)
    if not isinstance(value, DataError):
        return _rows_of(value)
    if alone:
        raise value
    return None  # lines, of which the first is damaged


def _rows_of(value: Any) -> list[Any]:
    """Return the rows of one JSON value: a list of them, an object around it, or one of columns."""
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    held = [v for k, v in value.items() if k in WRAPPERS or len(value) == 1]
    if len(held) == 1 and isinstance(held[0], list) and all(isinstance(r, dict) for r in held[0]):
        return held[0]
    columns = list(value.values())
    if all(isinstance(c, dict) for c in columns) and len({tuple(c) for c in columns}) == 1:
        if not all(map(str.isdigit, columns[0])):
            return columns  # rows by name
        columns = [list(c.values()) for c in columns]  # as pandas writes it: by row number
    told = all(isinstance(c, list) and c and not is_message(c[0]) for c in columns)
    if columns and told and len({len(c) for c in columns}) == 1:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return [value]


def _loads(text: str, place: str) -> Any:
    """Return a JSON value, or the error that says why there is none."""
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            repeated.extend(name for name in names if names.count(name) > 1)
        return row

    try:
        value = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        return DataError(f"{place}: not valid JSON ({error})")
    if repeated:
        return DataError(f"{place}: the name {repeated[0]!r} comes twice in one object; drop one")
    return value


def _parquet_file(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    with reading(f"{path} could not be read as Parquet"):
        return pyarrow.parquet.ParquetFile(path)


def _parquet(path: Path, wanted: list[str] | None) -> Iterator[Placed]:
    number = 0
    try:
        for batch in _parquet_file(path).iter_batches(batch_size=1000, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"{_shown(path)}, row {number}", row
    except Exception as error:  # a timestamp that no calendar has, a damaged page
        where = f"{path} could not be read after row {number}"
        raise DataError(f"{where}: {reason(error)}") from error


def _shown(path: Path) -> str:
    """Return a path that can be printed and stored, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


def _folder(path: Path) -> Source:
    parts = sorted(p.parent.name for p in path.glob("*/state.json"))
    if parts and not (path / "state.json").exists():
        named = ", ".join(str(path / p) for p in parts)
        if len(parts) > 1:
            raise DataError(f"{path} holds several splits; name one of them: {named}")
        path = path / parts[0]
    if not (path / "state.json").exists():
        raise DataError(
            f"{path} cannot be read: a folder must come from save_to_disk of the datasets library; "
            "name a file otherwise"
        )
    return _dataset(str(path), str(path), lambda datasets: datasets.load_from_disk(str(path)))


def _hub(source: str) -> Source:
    name, config, split, *rest = [*source.split(":"), "", ""]
    if rest[2:]:
        raise DataError(f"--data {source}: the form is owner/name:config:split")
    if not _offline() and not hub_answers(name):
        raise DataError(
            f"the Hub does not answer for the data set {name}; check the network, set "
            "HF_HUB_OFFLINE=1 to use a copy downloaded before, or use --data builtin or FILE.csv"
        )

    def load(datasets: Any) -> Any:
        found = datasets.load_dataset(name, config or None, split=split or None)
        if not isinstance(found, dict):
            return found
        only = next(iter(found)) if len(found) == 1 else "train"
        if only not in found:
            named = ", ".join(f"{name}:{config}:{s}" for s in found)
            raise DataError(f"--data {source}: the data set has several splits; name one: {named}")
        return found[only]

    return _dataset(name, f"the data set {source} of the Hub", load)


def _dataset(name: str, described: str, load: Callable[[Any], Any]) -> Source:
    """Rows of a memory-mapped `datasets.Dataset`."""
    import datasets  # a slow import that files do not need before they are stored

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # errors are raised too
    try:
        dataset = load(datasets).with_format(None)
    except DataError:
        raise
    except Exception as error:  # of the Hub, the network, the cache and damaged files
        cause = reason(error.__cause__ or error)
        raise DataError(f"{described} could not be read: {cause}") from error

    # columns that are not wanted may hold pictures, or anything that takes time to decode
    plain = [n for n, feature in dataset.features.items() if not hasattr(feature, "decode_example")]

    def rows(wanted: list[str] | None) -> Iterator[Placed]:
        number, columns = 0, plain if wanted is None else wanted
        try:
            for number, row in enumerate(dataset.select_columns(columns), start=1):
                yield f"{name}, row {number}", row
        except Exception as error:
            where = f"{described} could not be read after row {number}"
            raise DataError(f"{where}: {reason(error)}") from error

    size, name_of_content = dataset.data.nbytes, str(dataset._fingerprint)
    return Source(dataset.column_names, _first(rows), rows, size, lambda: name_of_content)
