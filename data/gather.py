"""Rows -> questions: rows with the same prompt meet, and what they disagree on is settled."""

import hashlib
import itertools
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.columns import Parsed, describe, late_column, parse_row, recognise
from data.question import (
    CONTRADICTED,
    NO_PAIR,
    ON_BOTH_SIDES,
    REPEATED,
    SAME_AS_CHOSEN,
    DataError,
    Note,
    Preference,
    Turn,
)
from data.sources import TRUTHFULQA, Source, hub_answers, open_source
from data.table import (
    SMALL,
    Table,
    as_notes,
    count_notes,
    key_of,
    open_rows,
    text_features,
    write_rows,
)

Watch = Callable[[Iterable[Any], str, int | None], Iterable[Any]]  # (items, label, how many)


def unwatched(items: Iterable[Any], label: str, total: int | None) -> Iterable[Any]:
    """Show no progress."""
    return items


class Reading(NamedTuple):
    """A source as it was understood."""

    source: str
    preferences: Table[Preference]
    columns: str  # which column was read as what
    key: str = ""  # of a large source; changes when the source or its reading does

    @property
    def small(self) -> bool:
        """Tell whether the source is read anew every time instead of stored."""
        return not self.key


def load_preferences(source: str, columns: str | None = None) -> list[Preference]:
    """Read every preference of a source into a list; `read_preferences` does it at any size.

    Args:
        source: `builtin`, `truthfulqa`, a CSV, JSON, JSONL or Parquet file, a `save_to_disk`
            folder, or a Hub data set `owner/name[:config[:split]]`.
        columns: `prompt=...,chosen=...,rejected=...` where the names do not tell.

    Raises:
        DataError: the source does not exist, cannot be read, or holds a row that is no preference.
    """
    return list(read_preferences(source, columns).preferences)


def read_preferences(
    source: str,
    columns: str | None = None,
    folder: Path | None = None,
    watch: Watch = unwatched,
) -> Reading:
    """Read a source as `load_preferences` does; a large one is kept in `folder`, memory-mapped.

    Raises:
        DataError: as `load_preferences`.
    """
    from pyarrow.compute import list_value_length

    opened = open_source(source)
    state = opened.state()
    read = recognise(opened.columns, columns, source)
    large = folder is not None and opened.size >= SMALL
    key = key_of(source, opened.key(), read) if large else ""
    file = folder / f"{key}.questions.arrow" if folder and large else None
    questions = open_rows(file)
    if questions is None:
        with tempfile.TemporaryDirectory(prefix="trie-dpo-", dir=_beside(file)) as scratch:
            first = file and Path(scratch) / "rows.arrow"
            rows = write_rows(_parsed(opened, read, bool(columns), watch), text_features(), first)
            if opened.state() != state:
                raise DataError(f"{source} changed while it was read; start again")
            questions = write_rows(_settled(rows, watch), text_features(), file)
    kept = np.flatnonzero(list_value_length(questions.data.column("rejected")).to_numpy())
    if not len(kept):
        left = "; ".join(f"{reason}: {n}" for reason, (n, _) in count_notes(questions).items())
        raise DataError(f"{source} holds no question{f' to train on: {left}' if left else ''}")
    table = Table(questions, as_preference, kept)
    return Reading(source, table, describe(read, opened.columns), key)


def _beside(file: Path | None) -> Path | None:
    """Return the folder for rows that are read but not yet gathered: that of `file`."""
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise DataError(f"{file.parent} cannot be made: {error}") from error
    return file and file.parent


def choose_source() -> tuple[str, str]:
    """Return (source, why): TruthfulQA where the Hub answers within seconds, else `builtin`."""
    if hub_answers(TRUTHFULQA):
        return "truthfulqa", "the Hub answers"
    return "builtin", "the Hub does not answer"


def as_preference(row: dict[str, Any]) -> Preference:
    """Return a row of the table as the preference that it keeps."""
    history = tuple(Turn(turn["role"], turn["text"]) for turn in row["history"])
    return Preference(
        row["prompt"], row["chosen"], tuple(row["rejected"]), tuple(row["correct"]),
        row["category"], history, row["verbatim"], row["place"],
    )  # fmt: skip


def settle(rows: Sequence[Preference]) -> list[Parsed]:
    """Turn all rows of one prompt into its questions: one for each chosen answer.

    A rejected answer equal to the chosen one says nothing, and is left out. A pair that came before
    counts once. Two rows that prefer the same two answers either way contradict each other, and
    neither pair is kept. A question without a pair left is left out, with its notes. An answer that
    stands among the correct and the rejected ones, as two of TruthfulQA's do, is trained against.
    """
    pairs = {(p.chosen, r) for p in rows for r in p.rejected}
    notes: dict[str, list[Note]] = {}
    rejected: dict[str, dict[str, None]] = {}  # in the order of their first appearance
    correct: dict[str, dict[str, None]] = {}
    for p in rows:
        noted = notes.setdefault(p.chosen, [])
        known = rejected.setdefault(p.chosen, {})
        correct.setdefault(p.chosen, {}).update(
            dict.fromkeys(a for a in p.correct if a != p.chosen)
        )
        for answer in p.rejected:
            if answer == p.chosen:
                noted.append(Note(SAME_AS_CHOSEN, p.place))
            elif (answer, p.chosen) in pairs:
                noted.append(Note(CONTRADICTED, p.place))
            elif answer in known:
                noted.append(Note(REPEATED, p.place))
            else:
                known[answer] = None
    settled: list[Parsed] = []
    firsts: dict[str, Preference] = {}
    for p in rows:
        firsts.setdefault(p.chosen, p)
    category = next((p.category for p in rows if p.category), "")
    for first in firsts.values():
        known, noted = rejected[first.chosen], notes[first.chosen]
        noted += [Note(ON_BOTH_SIDES, first.place) for a in correct[first.chosen] if a in known]
        if not known:
            noted.append(Note(NO_PAIR, first.place))
        wrong, right = tuple(known), tuple(correct[first.chosen])
        settled.append((replace(first, category=category, rejected=wrong, correct=right), noted))
    return settled


def _parsed(
    opened: Source, columns: dict[str, str], given: bool, watch: Watch
) -> Iterator[dict[str, Any]]:
    for place, row in watch(opened.rows(list(columns.values())), "Reading rows", None):
        if not given and (late := late_column(row, opened.columns)):
            raise DataError(f"{place}: a column {late!r}, which the first rows lack; use --columns")
        yield _row(*parse_row(place, row, columns), place)


def _settled(rows: Any, watch: Watch) -> Iterator[dict[str, Any]]:
    """Yield the questions of every prompt, and each row that has none as it is."""
    everything: Table[dict[str, Any]] = Table(rows, dict)
    keys = everything.column("prompt_key")
    if not len(keys):
        return
    # stable sorting brings the rows of a prompt together; a group stands where its first row stood
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))  # keys are not negative
    groups = sorted(np.split(order, starts[1:]), key=lambda group: int(group[0]))
    in_order = iter(everything.select(np.concatenate(groups)))
    together = (list(itertools.islice(in_order, len(group))) for group in groups)
    for group in watch(together, "Gathering questions", len(groups)):
        noted = [note for row in group for note in row["notes"]]
        same: dict[Any, list[Preference]] = {}  # by the text itself: a key might collide
        for p in map(as_preference, group):
            if p.prompt:
                same.setdefault((p.history, p.prompt), []).append(p)
        settled = [one for rows in same.values() for one in settle(rows)]
        for preference, notes in settled or [(None, [])]:
            row = _row(preference, notes, group[0]["place"])
            yield {**row, "notes": [*noted, *row["notes"]]}
            noted = []


def _row(preference: Preference | None, notes: Iterable[Note], place: str) -> dict[str, Any]:
    p = preference or Preference("", "", (), place=place)
    said = "\n".join([*(turn.text for turn in p.history), p.prompt])
    return {
        "prompt": p.prompt,
        "chosen": p.chosen,
        "rejected": list(p.rejected),
        "correct": list(p.correct),
        "category": p.category,
        "history": [turn._asdict() for turn in p.history],
        "verbatim": p.verbatim,
        "place": p.place,
        "prompt_key": text_key("\n".join([*(turn.role for turn in p.history), said]) or place),
        "notes": as_notes(notes),
    }


def loosely(text: str) -> str:
    """Return the words alone: texts that differ in case, spacing or punctuation are equal."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def text_key(text: str) -> int:
    """Return 63 bits that name a text."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
