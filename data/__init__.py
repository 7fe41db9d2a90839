"""Preferences as token tries: reading, encoding, merging, ordering. Imports nothing local."""

from data.batches import (
    PairBatch,
    Steps,
    epoch_order,
    micro_batches,
    split_by_prompt,
    step_batches,
)
from data.encode import EncodedQuestion, Encoding, encode, encoding_file, of_all_lengths
from data.gather import Reading, choose_source, load_preferences, read_preferences
from data.prepare import Prepared, prepare
from data.question import DataError, Preference, Turn
from data.report import Report, examine
from data.table import Table
from data.trees import (
    TreeBatch,
    Trie,
    ancestor_mask,
    build_trie,
    collate,
    question_tries,
)

__all__ = [
    "DataError",
    "EncodedQuestion",
    "Encoding",
    "PairBatch",
    "Preference",
    "Prepared",
    "Reading",
    "Report",
    "Steps",
    "Table",
    "TreeBatch",
    "Trie",
    "Turn",
    "ancestor_mask",
    "build_trie",
    "choose_source",
    "collate",
    "encode",
    "encoding_file",
    "epoch_order",
    "examine",
    "load_preferences",
    "micro_batches",
    "of_all_lengths",
    "prepare",
    "question_tries",
    "read_preferences",
    "split_by_prompt",
    "step_batches",
]
