"""Several sources as one: a share of each, and every question once."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.gather import (
    Reading,
    Watch,
    as_preference,
    gathered,
    read_preferences,
    text_key,
    unwatched,
    with_pairs,
)
from data.question import DataError
from data.sources import open_source
from data.table import Table, key_of, open_rows


class ReadSettings(NamedTuple):
    """How sources are read; see `data.gather.read_preferences`.

    Args:
        columns: what `--columns` says.
        skip_bad: leave out bad rows up to 5%.
        every: read graded lists of answers rather than pairs.
        seed: draws the questions of a share.
    """

    columns: str | None = None
    skip_bad: bool = True
    every: bool = False
    seed: int = 0


def read_sources(
    sources: Sequence[str],
    settings: ReadSettings = ReadSettings(),
    folder: Path | None = None,
    watch: Watch = unwatched,
) -> Reading:
    """Read one source or several; `FILE:0.5` is half of its questions, `FILE:500` five hundred.

    Questions with the same prompt meet across sources, as they do within one: their pairs join,
    repeat or contradict each other.

    Raises:
        DataError: as `read_preferences`, or a share is none, or more than there is.
    """
    named = [split_share(source) for source in sources]
    if len(named) == 1 and named[0][1] is None:
        columns, skip_bad, every, _ = settings
        return read_preferences(named[0][0], columns, folder, watch, skip_bad, every)
    readings = []
    given = _columns_of_each([source for source, _ in named], settings.columns)
    for (source, share), columns in zip(named, given, strict=True):
        reading = read_preferences(
            source, columns, folder, watch, settings.skip_bad, settings.every
        )
        readings.append(_drawn(reading, share, settings.seed))
    return _joined(readings, folder, watch)


def split_share(source: str) -> tuple[str, float | int | None]:
    """Return a source and how much of it is meant; a file of the whole name is that file.

    Raises:
        DataError: there is no such share.
    """
    name, _, number = source.rpartition(":")
    if not name or os.path.exists(os.path.expanduser(source)):
        return source, None
    if not re.fullmatch(r"\d*\.?\d+", number):
        return source, None
    if number in ("0", "1") or ("." in number and not 0 < float(number) <= 1):
        raise DataError(
            f"--data {source}: write a share above 0 and up to 1.0 with a point, as {name}:0.5, or "
            f"a number of questions of 2 or more, as {name}:500"
        )
    return name, float(number) if "." in number else int(number)


def _columns_of_each(sources: Sequence[str], columns: str | None) -> list[str | None]:
    """Return what `--columns` says of each source: the items whose columns it has.

    Raises:
        DataError: no source has the columns of an item.
    """
    if not columns:
        return [None] * len(sources)
    opened = [open_source(source) for source in sources]
    there = [one.columns for one in opened]
    items = [item.strip() for item in columns.split(",")]
    if malformed := [item for item in items if not item.partition("=")[2]]:
        raise DataError(f"--columns {malformed[0]!r}: write ROLE=COLUMN, or COLUMN=-")
    fits = [[_fits(item, names) for item in items] for names in there]
    for item, *has in zip(items, *fits, strict=True):
        if not any(has):
            raise DataError(f"--columns {item!r}: none of {', '.join(sources)} has such a column")
    return [
        ",".join(item for item, fit in zip(items, has, strict=True) if fit) or None for has in fits
    ]


def _fits(item: str, names: Sequence[str]) -> bool:
    role, _, name = (part.strip() for part in item.partition("="))
    paths = [role] if name == "-" else [name] if name in names else re.split(r"[+]", name)
    return all(re.split(r"[.:]", path)[0] in names or path in names for path in paths)


def _drawn(reading: Reading, share: float | int | None, seed: int) -> Reading:
    """Return the reading with that share of its questions, in their order."""
    count = len(reading.preferences)
    wanted = count if share is None else share
    wanted = max(1, round(count * wanted)) if isinstance(wanted, float) else wanted
    if wanted > count:
        raise DataError(f"--data {reading.source}:{wanted}: it has {count} questions; ask for less")
    if wanted == count:
        return reading._replace(parts=((reading.source, count),))
    drawn = np.random.default_rng(seed).permutation(count)[:wanted]
    chosen = reading.preferences.select(np.sort(drawn))
    return reading._replace(preferences=chosen, parts=((reading.source, wanted),))


def _joined(readings: Sequence[Reading], folder: Path | None, watch: Watch) -> Reading:
    """Gather the questions of several readings as if they were rows of one source."""
    names = " + ".join(f"{reading.source} ({reading.parts[0][1]:,})" for reading in readings)
    columns = "; ".join(f"{r.source}: {r.columns}" for r in readings)
    parts = tuple(part for reading in readings for part in reading.parts)
    large = folder is not None and not all(reading.small for reading in readings)
    keys = [r.content() for r in readings] if large else []
    key = key_of(keys, [r.preferences.rows.tolist() for r in readings] if large else [], columns)
    file = folder / f"{key}.questions.arrow" if folder and large else None
    rows = (row for reading in readings for row in _rows_of(reading))
    questions = open_rows(file) or gathered(rows, file, watch)
    table = Table(questions, as_preference, with_pairs(questions))
    if not len(table):
        raise DataError(f"{names} hold no question to train on")
    return Reading(names, table, columns, key if large else "", parts)


def _rows_of(reading: Reading) -> Iterator[dict[str, Any]]:
    """Yield the questions of a reading, and if it is whole the rows that it left out, too."""
    dataset, kept = reading.preferences.dataset, reading.preferences.rows
    with_a_pair = with_pairs(dataset)
    if len(kept) == len(with_a_pair):  # all of it: with what was left out
        kept = np.arange(len(dataset))
    for row in Table(dataset, dict, kept):
        if not row["rejected"]:  # it is settled: its notes alone remain
            row |= {"prompt": "", "prompt_key": text_key(f"{row['place']} {row['chosen']}")}
        yield row
