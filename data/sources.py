"""Where rows come from: the Hub, a file, a folder -> (place, row) one by one, in bounded memory.

`save_to_disk` folders and the Hub are read by `datasets`, Parquet files by the `pyarrow` below it,
since `datasets` takes a path for a pattern and keeps a copy by its time. CSV and JSON are read by
the standard library, since the readers of `datasets` guess types: an answer "None" becomes a null,
a column of years numbers, a date in JSON a timestamp, and their errors name no line.
"""

import csv
import hashlib
import http.client
import json
import os
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.question import DataError

BUILTIN = Path(__file__).with_name("misconceptions.csv")
TRUTHFULQA = "truthfulqa/truthful_qa"
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")

Row = dict[str, Any]
csv.field_size_limit(sys.maxsize)  # an answer may be longer than the module's 128 KiB


class Source(NamedTuple):
    """Rows that can be read again and again."""

    columns: list[str]
    rows: Callable[[list[str]], Iterator[tuple[str, Row]]]  # columns wanted -> (place, row)
    size: int  # bytes
    key: Callable[[], str]  # changes when the content does; a file is read for it
    state: Callable[[], Any] = lambda: None  # changes when somebody writes to it


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
    try:
        path = Path(source).expanduser()
    except RuntimeError:  # ~somebody who is not here
        path = Path(source)
    try:
        if path.is_dir():
            return _folder(path)
        if path.exists():
            return _file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if path.suffix.lower() not in SUFFIXES and re.fullmatch(r"[\w.-]+/[\w.-]+(:[^/]*)*", source):
        return _hub(source)
    raise DataError(
        f"there is no file {path}; --data takes 'builtin', 'truthfulqa', a file ("
        f"{', '.join(SUFFIXES)}), a folder of save_to_disk, or a data set of the Hub (owner/name)"
    )


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
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: rows are read from {', '.join(SUFFIXES)}; convert it to one")
    lines = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet}.get(suffix, _json)

    def rows(wanted: list[str]) -> Iterator[tuple[str, Row]]:
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

    with path.open("rb"):  # or the reason why not
        pass
    if not path.stat().st_size:
        raise DataError(f"{path} is empty; it needs rows")
    if lines is _csv:
        columns = _header(path)
    elif lines is _parquet:
        columns = _parquet_file(path).schema_arrow.names
    else:  # the first rows tell; one that lacks a column complains itself
        first = (row for row, _ in zip(rows([]), range(100), strict=False))
        columns = list(dict.fromkeys(name for _, row in first for name in row))
    return Source(columns, rows, path.stat().st_size, key, state)


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names: list[str] = next(_reader(path, file), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a UTF-8 CSV: {error}") from error
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}, line 1: two columns are called {repeated!r}; rename one")
    return names


def _reader(path: Path, file: Any) -> Any:
    return csv.reader(file, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")


def _csv(path: Path, wanted: list[str]) -> Iterator[tuple[str, Row]]:
    """Every record of a CSV, under the line that it ends on."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = _reader(path, file)
        try:
            names = next(reader)
            for cells in filter(None, reader):
                place = f"{_shown(path)}, line {reader.line_num}"
                yield place, _record(place, names, cells)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.line_num}: not a valid CSV ({error}); check the quotes"
            ) from error


def _record(place: str, names: list[str], cells: list[str]) -> Row:
    if len(cells) != len(names):
        raise DataError(
            f"{place}: {len(cells)} cells under {len(names)} columns "
            f"({', '.join(map(repr, names))}); quote commas, fill missing cells"
        )
    if any("\0" in cell for cell in cells):
        raise DataError(f"{place}: a NUL byte, which text has none of; save as UTF-8")
    return dict(zip(names, cells, strict=True))


def _json(path: Path, wanted: list[str]) -> Iterator[tuple[str, Row]]:
    """Every object of a JSON list, or of a file that holds one object a line."""
    with path.open(encoding="utf-8-sig") as file:
        start, name = file.read(4096).lstrip()[:1], _shown(path)
        file.seek(0)
        if start == "[":
            values = _loads(file.read(), f"{path}")
            placed = ((f"{name}, row {i}", value) for i, value in enumerate(values, start=1))
        else:
            lines = ((f"{name}, line {i}", line) for i, line in enumerate(file, start=1))
            placed = ((place, _loads(line, place)) for place, line in lines if line.strip())
        for place, value in placed:
            if not isinstance(value, dict):
                raise DataError(f"{place}: {_short(value)} is no object; rows look like {{...}}")
            yield place, value


def _loads(text: str, place: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> Row:
        names = [name for name, _ in pairs]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"{place}: the name {repeated!r} comes twice in one object; drop one")
        return dict(pairs)

    try:
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        raise DataError(f"{place}: not valid JSON ({error})") from error


def _parquet_file(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} could not be read as Parquet: {first}") from error


def _parquet(path: Path, wanted: list[str]) -> Iterator[tuple[str, Row]]:
    import pyarrow

    number = 0
    try:
        for batch in _parquet_file(path).iter_batches(batch_size=1000, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"{_shown(path)}, row {number}", row
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} could not be read behind row {number}: {first}") from error


def _shown(path: Path) -> str:
    """Return a path that can be printed and stored, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
    import pyarrow

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # errors are raised too
    try:
        dataset = load(datasets).with_format(None)
    # What the Hub, the network, the cache and damaged files raise; each names its cause.
    except (
        OSError, ValueError, RuntimeError, KeyError, TypeError, pyarrow.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:  # fmt: skip
        cause = error.__cause__ or error
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise DataError(f"{described} could not be read: {first}") from error

    def rows(wanted: list[str]) -> Iterator[tuple[str, Row]]:
        number = 0  # columns that are not wanted may hold pictures, or anything
        try:
            for number, row in enumerate(dataset.select_columns(wanted), start=1):
                yield f"{name}, row {number}", row
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            where = f"{described} could not be read behind row {number}"
            raise DataError(f"{where}: {error}") from error

    size, name_of_content = dataset.data.nbytes, str(dataset._fingerprint)
    return Source(dataset.column_names, rows, size, lambda: name_of_content)
