"""Preferences as token tries: reading, encoding, merging, ordering. Imports nothing local."""

from data.batches import (
    PairBatch,
    count_tokens,
    epoch_order,
    micro_batches,
    optimizer_steps,
    step_batches,
)
from data.encode import EncodedQuestion, Encoding, encode
from data.preferences import choose_source, load_preferences, split_by_question
from data.question import DataError, Preference
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
    "TreeBatch",
    "Trie",
    "ancestor_mask",
    "build_trie",
    "choose_source",
    "collate",
    "count_tokens",
    "encode",
    "epoch_order",
    "load_preferences",
    "micro_batches",
    "optimizer_steps",
    "question_tries",
    "split_by_question",
    "step_batches",
]
