"""From a source to what is trained on: read, encoded, some questions held out, reported."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from data.batches import split_by_prompt
from data.encode import EncodedQuestion, encode, encoding_file, of_all_lengths
from data.gather import Reading, Watch, unwatched
from data.question import DataError
from data.report import Report, examine, losses_of
from data.table import Table, joined
from data.text import TextSettings


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
    apart: Reading | None = None  # a source of their own, in place of the fraction


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
        DataError: as `encode` and `split_by_prompt`; it says first what was left out before.
    """
    read = [reading, split.apart] if split.apart else [reading]
    encodings = [
        encode(one.preferences, tokenizer, text, encoding_file(folder, one, tokenizer, text), watch)
        for one in read
    ]
    questions = joined([encoding.questions for encoding in encodings])
    losses = losses_of(read, encodings)
    if split.apart:
        count = len(encodings[0].questions)
        sides = (list(range(count)), list(range(count, len(questions))))
    else:
        try:
            keys = questions.column("key").tolist()
            sides = split_by_prompt(keys, split.fraction, split.seed)
        except DataError as error:
            raise DataError("; ".join([*losses, str(error)])) from None
    report = examine(read, encodings, tokenizer, sides, text)
    train, held_out = map(questions.select, sides)
    largest = max(encoding.largest_id for encoding in encodings)
    return Prepared(train, held_out, questions, largest, report)
