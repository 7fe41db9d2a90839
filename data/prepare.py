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
    def few(self) -> list[EncodedQuestion]:
        """Return some questions of all lengths, the longest first."""
        return of_all_lengths(self.every)


def prepare(
    source: str,
    reading: Reading,
    tokenizer: Any,
    settings: TextSettings,
    folder: Path,
    eval_fraction: float,
    seed: int,
    watch: Watch = unwatched,
) -> Prepared:
    """Encode what was read, hold some questions out, and report; `folder` keeps large sources.

    Raises:
        DataError: as `encode` and `split_by_prompt`.
    """
    file = encoding_file(folder, reading, tokenizer, settings)
    encoding = encode(reading.preferences, tokenizer, **settings, file=file, watch=watch)
    questions = encoding.questions
    split = split_by_prompt(questions.column("key").tolist(), eval_fraction, seed)
    report = examine(source, reading, encoding, tokenizer, split, settings)
    train, held_out = map(questions.select, split)
    return Prepared(train, held_out, questions, encoding.largest_id, report)
