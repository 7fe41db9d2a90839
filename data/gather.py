"""Rows -> questions: rows with the same prompt meet, and what they disagree on is settled."""

import hashlib
import itertools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.columns import describe, holds_text, late_column, recognise, text_in, unclaimed
from data.form import Form
from data.parse import Parsed, parse_row
from data.question import (
    CONTRADICTED,
    NO_PAIR,
    ON_BOTH_SIDES,
    REPEATED,
    SAME_AS_CHOSEN,
    UNPAIRED,
    BadRows,
    DataError,
    Note,
    Preference,
    Turn,
)
from data.sample import Sample, value_of
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
    parts: tuple[tuple[str, int], ...] = ()  # of several sources, how many questions each gave
    content: Callable[[], str] = str  # names the source's content and how it is read

    @property
    def small(self) -> bool:
        """Tell whether the source is read anew every time instead of stored."""
        return not self.key

    @property
    def rows(self) -> int:
        """Count the rows that were read, kept or left out."""
        return int(self.preferences.dataset.data.column("rows").to_numpy().sum())


def load_preferences(source: str, columns: str | None = None) -> list[Preference]:
    """Read every preference of a source into a list; `read_preferences` does it at any size.

    Args:
        source: `builtin`, `truthfulqa`, a CSV, JSON, JSONL or Parquet file, a `save_to_disk`
            folder, or a Hub data set `owner/name[:config[:split]]`.
        columns: `prompt=...,chosen=...,rejected=...` where the names do not tell; see
            `data.columns.recognise`.

    Raises:
        DataError: the source does not exist, cannot be read, or holds a row that is no preference.
    """
    return list(read_preferences(source, columns).preferences)


def read_preferences(
    source: str,
    columns: str | None = None,
    folder: Path | None = None,
    watch: Watch = unwatched,
    skip_bad: bool = True,
    every: bool = False,
) -> Reading:
    """Read a source as `load_preferences` does; a large one is kept in `folder`, memory-mapped.

    Args:
        source: as there.
        columns: as there.
        folder: for large sources; None keeps them in memory.
        watch: shows progress.
        skip_bad: leave out rows that cannot be read, up to a share of 5%, instead of stopping.
        every: where a row has both a pair and a graded list of answers, read the list.

    Raises:
        DataError: as `load_preferences`.
    """
    opened = open_source(source)
    form = recognise(opened.columns, opened.first, columns, source, every, opened.late)
    large = folder is not None and opened.size >= SMALL

    def content() -> str:
        return key_of(source, opened.key(), form, skip_bad)

    key = content() if large else ""
    file = folder / f"{key}.questions.arrow" if folder and large else None
    parsed = _parsed(source, opened, form, BadRows(skip_bad), watch)
    questions = open_rows(file) or gathered(parsed, file, watch)
    table = Table(questions, as_preference, with_pairs(questions))
    if not len(table):
        raise DataError(f"{source} holds no question{_why_none(questions, form)}")
    return Reading(source, table, describe(form, opened.columns), key, content=content)


def with_pairs(questions: Any) -> Any:
    """Return the numbers of the questions that have a pair left."""
    from pyarrow.compute import list_value_length

    return np.flatnonzero(list_value_length(questions.data.column("rejected")).to_numpy())


def _why_none(questions: Any, form: Form) -> str:
    notes = count_notes(questions)
    left = "; ".join(f"{reason}: {n}" for reason, (n, _) in notes.items())
    if form.kind == "single" and UNPAIRED in notes:
        prompts = len(set(questions.data.column("prompt_key").to_pylist()))
        return (
            f" with answers to compare: single answers with a label are data for KTO, and of its "
            f"{prompts} prompts none has a better and a worse one ({left}); bring rows with both"
        )
    return f" to train on: {left}" if left else ""


def gathered(rows: Iterable[dict[str, Any]], file: Path | None, watch: Watch) -> Any:
    """Bring the rows of each prompt together and settle them; keep the questions in `file`."""
    with tempfile.TemporaryDirectory(prefix="trie-dpo-", dir=_beside(file)) as scratch:
        first = file and Path(scratch) / "rows.arrow"
        written = write_rows(rows, text_features(), first)
        return write_rows(settled(written, watch), text_features(), file)


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
    p = Preference(
        row["prompt"], row["chosen"], tuple(row["rejected"]), tuple(row["correct"]),
        row["category"], tuple(Turn(**turn) for turn in row["history"]), row["verbatim"],
        row["place"],
    )  # fmt: skip
    if not row["more"]:
        return p
    more = json.loads(row["more"])
    since = tuple(Turn(*turn) for turn in more["since"])
    grades, extras = tuple(more["grades"]), tuple(more["extras"])
    return replace(p, grades=grades, since=since, tools=more["tools"], extras=extras)


Answer = tuple[str, str]  # what it says, and `Turn.extra`


class _Joined:
    """The rows of one prompt that prefer one answer, on the way to a question."""

    def __init__(self, first: Preference) -> None:
        self.first = first
        self.graded = True
        self.notes: list[Note] = []
        self.grades: dict[Answer, float] = {}  # of the rejected, in the order they were met
        self.correct: dict[Answer, float] = {}

    def question(self, category: str) -> Parsed:
        """Return the question and its notes."""
        wrong, right = list(self.grades), list(self.correct)
        noted = [*self.notes, *(Note(ON_BOTH_SIDES, self.first.place) for a in right if a in wrong)]
        if not wrong:
            noted.append(Note(NO_PAIR, self.first.place))
        levels: tuple[float, ...] = ()
        if self.graded:
            wrong.sort(key=lambda answer: -self.grades[answer])
            best = self.first.levels[0]
            levels = (best, *(self.grades[a] for a in wrong), *(self.correct[a] for a in right))
        texts, extras = zip(*[_parts(self.first)[0], *wrong, *right], strict=True)
        n = 1 + len(wrong)
        question = replace(
            self.first, category=category, rejected=texts[1:n], correct=texts[n:], grades=levels,
            extras=extras if any(extras) else (),
        )  # fmt: skip
        return question, noted


def _parts(p: Preference) -> tuple[Answer, list[Answer], list[Answer]]:
    """Return the chosen answer, the rejected and the further correct ones."""
    answers = list(zip(p.answers, p.extras or ("",) * len(p.answers), strict=True))
    n = 1 + len(p.rejected)
    return answers[0], answers[1:n], answers[n:]


def settle(rows: Sequence[Preference]) -> list[Parsed]:
    """Turn all rows of one prompt into its questions: one for each chosen answer.

    A rejected answer equal to the chosen one says nothing, and is left out. A pair that came before
    counts once. Two rows that prefer the same two answers either way contradict each other, and
    neither pair is kept. A question without a pair left is left out, with its notes. An answer that
    stands among the correct and the rejected ones, as two of TruthfulQA's do, is trained against.
    Rows of a single graded answer make one question together.
    """
    single = [p for p in rows if len(p.grades) == 1 and not p.rejected]
    if single:
        return _settle_single(single)
    parts = [_parts(p) for p in rows]
    pairs = {(chosen, r) for chosen, rejected, _ in parts for r in rejected}
    joined: dict[Answer, _Joined] = {}
    for p, (chosen, rejected, correct) in zip(rows, parts, strict=True):
        one = joined.setdefault(chosen, _Joined(p))
        one.graded &= bool(p.grades) and p.levels[0] == one.first.levels[0]
        grades = dict(zip([chosen, *rejected, *correct], p.levels, strict=True))
        for answer in correct:
            if answer != chosen:
                one.correct.setdefault(answer, grades[chosen])
        for answer in rejected:
            if answer == chosen:
                one.notes.append(Note(SAME_AS_CHOSEN, p.place))
            elif (answer, chosen) in pairs:
                one.notes.append(Note(CONTRADICTED, p.place))
            elif answer in one.grades:
                one.notes.append(Note(REPEATED, p.place))
            else:
                one.grades[answer] = grades[answer]
    category = next((p.category for p in rows if p.category), "")
    return [one.question(category) for one in joined.values()]


def _settle_single(rows: Sequence[Preference]) -> list[Parsed]:
    """Join rows of one answer each: the best is the chosen one, those of lower grade rejected."""
    grades: dict[Answer, set[float]] = {}
    first: dict[Answer, Preference] = {}
    notes: list[Note] = []
    for p in rows:
        answer = _parts(p)[0]
        if p.grades[0] in grades.setdefault(answer, set()):
            notes.append(Note(REPEATED, p.place))
        grades[answer].add(p.grades[0])
        first.setdefault(answer, p)
    # Of two raters' grades the mean counts; good and bad at once is a contradiction.
    labels = set().union(*grades.values()) <= {0.0, 1.0}
    unsure = [answer for answer, said in grades.items() if labels and len(said) > 1]
    notes += [Note(CONTRADICTED, first[answer].place) for answer in unsure]
    sure = {a: sum(said) / len(said) for a, said in grades.items() if a not in unsure}
    if len(set(sure.values())) < 2:
        notes += [Note(UNPAIRED, first[answer].place) for answer in sure]
        return [(replace(rows[0], grades=(), rejected=()), notes)]
    best = max(sure.values())
    top = [answer for answer, grade in sure.items() if grade == best]
    one = _Joined(replace(first[top[0]], grades=(best,)))
    one.grades = {answer: grade for answer, grade in sure.items() if grade < best}
    one.correct = dict.fromkeys(top[1:], best)
    one.graded = len(set(sure.values())) > 2
    one.notes = notes
    return [one.question(next((p.category for p in rows if p.category), ""))]


def _parsed(
    source: str, opened: Source, form: Form, bad: BadRows, watch: Watch
) -> Iterator[dict[str, Any]]:
    unread, state = _Unread(form, opened.columns), opened.state()
    for place, row in watch(opened.rows(form.wanted(opened.columns)), "Reading rows", None):
        bad.rows += 1
        try:
            if isinstance(row, DataError):
                raise row
            preference, notes = parse_row(place, row, form)
        except DataError as error:
            preference, notes = None, [bad.note(error, place)]
        else:
            unread.look(place, row)
        yield _row(preference, notes, place)
    if opened.state() != state:
        raise DataError(f"{source} changed while it was read; start again")
    bad.check()
    unread.check(bad.rows)


class _Unread:
    """Watches the columns that no role claims: text may come in later rows."""

    def __init__(self, form: Form, columns: Sequence[str]) -> None:
        self.form, self.known = form, {*columns, *form.unread, *form.wanted(columns)}
        self.changed: dict[str, list[str]] = {}  # of a column that was constant, the complaints

    def look(self, place: str, row: dict[str, Any]) -> None:
        """Look at a row.

        Raises:
            DataError: it has text in a column that the first rows lack, or that had none in them.
        """
        if not row.keys() <= self.known:
            if late := late_column(row, self.known):
                raise DataError(self._said(place, row, late))
            self.known |= row.keys()
        for name, usual in self.form.silent:
            value = value_of(row, name)
            if value and text_in(value) != usual and holds_text(value):
                said = self._said(place, row, name)
                if not usual:
                    raise DataError(said)
                self.changed.setdefault(name, []).append(said)

    def check(self, rows: int) -> None:
        """Raise DataError where a column that was constant at first was not so in the end."""
        for complaints in self.changed.values():
            if len(complaints) > 0.1 * rows:
                raise DataError(complaints[0])

    def _said(self, place: str, row: dict[str, Any], name: str) -> str:
        return f"{place}: {unclaimed([name], self.form.columns, Sample(list(row), [row]))}"


def settled(rows: Any, watch: Watch) -> Iterator[dict[str, Any]]:
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
        if len(group) == 1 and _is_settled(group[0]):
            yield group[0]
            continue
        noted = [note for row in group for note in row["notes"]]
        left = sum(row["rows"] for row in group)
        same: dict[Any, list[Preference]] = {}  # by the text itself: a key might collide
        counts: Counter[Answer] = Counter()  # of the rows that prefer an answer
        for row in group:
            p = as_preference(row)
            if p.prompt:
                same.setdefault((p.history, p.prompt, p.since, p.tools), []).append(p)
                counts[_parts(p)[0]] += row["rows"]
        questions = [one for rows in same.values() for one in settle(rows)]
        for place, (preference, notes) in enumerate(questions or [(None, [])], start=1):
            row = _row(preference, notes, group[0]["place"])
            count = left  # the last one has what is left
            if preference and place < len(questions):
                count = counts[_parts(preference)[0]]
            left -= count
            yield {**row, "notes": [*noted, *row["notes"]], "rows": count}
            noted = []


def _is_settled(row: dict[str, Any]) -> bool:
    """Tell whether a row is a question as it stands, as most are that have a prompt alone."""
    answers = [row["chosen"], *row["rejected"]]
    plain = not row["correct"] and not row["more"] and len(answers) > 1
    return not row["prompt"] or (plain and len(set(answers)) == len(answers))


def _row(preference: Preference | None, notes: Iterable[Note], place: str) -> dict[str, Any]:
    p = preference or Preference("", "", (), place=place)
    more = ""
    if p.grades or p.since or p.tools or p.extras:
        kept = {"grades": p.grades, "since": p.since, "tools": p.tools, "extras": p.extras}
        more = json.dumps(kept)
    turns = (*p.history, Turn("user", p.prompt), *p.since)
    said = "\n".join([part for turn in turns for part in turn] + [p.tools])
    return {
        "prompt": p.prompt,
        "chosen": p.chosen,
        "rejected": list(p.rejected),
        "correct": list(p.correct),
        "category": p.category,
        "history": [turn._asdict() for turn in p.history],
        "verbatim": p.verbatim,
        "place": p.place,
        "more": more,
        "rows": 1,
        "prompt_key": text_key(said if p.prompt else place),
        "notes": as_notes(notes),
    }


def loosely(text: str) -> str:
    """Return the words alone: texts that differ in case, spacing or punctuation are equal."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def text_key(text: str) -> int:
    """Return 63 bits that name a text."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
