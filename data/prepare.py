"""From a source to what is trained on: read, encoded, some questions held out, reported."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from data.batches import split_by_prompt
from data.encode import EncodedQuestion, TextSettings, encode, encoding_file, of_all_lengths
from data.gather import Reading, Watch, unwatched
from data.report import Report, examine
from data.table import Table


class Prepared(NamedTuple):
    """The questions of a run."""

    train: Table[EncodedQuestion]
    held_out: Table[EncodedQuestion]
    every: Table[EncodedQuestion]
    largest_id: int
    report: Report

    @property
    def fingerprint(self) -> str:
        """Name the training questions by their token ids, in their order."""
        return hashlib.sha256(self.train.column("ids_key").tobytes()).hexdigest()

    @property
    def check_questions(self) -> list[EncodedQuestion]:
        """Return some questions of all lengths, the longest first."""
        return of_all_lengths(self.every)


class Split(NamedTuple):
    """Which questions are held out."""

    fraction: float
    seed: int


def prepare(
    reading: Reading,
    tokenizer: Any,
    text: TextSettings,
    split: Split,
    folder: Path,
    watch: Watch = unwatched,
) -> Prepared:
    """Encode what was read, hold some questions out, and report; `folder` keeps large sources.

    Raises:
        DataError: as `encode` and `split_by_prompt`.
    """
    file = encoding_file(folder, reading, tokenizer, text)
    encoding = encode(reading.preferences, tokenizer, text, file, watch)
    questions = encoding.questions
    sides = split_by_prompt(questions.column("key").tolist(), split.fraction, split.seed)
    report = examine(reading, encoding, tokenizer, sides, text)
    train, held_out = map(questions.select, sides)
    return Prepared(train, held_out, questions, encoding.largest_id, report)
