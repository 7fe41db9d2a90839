"""Preferences as token tries: reading, encoding, merging, ordering. Imports nothing local."""

from data.batches import (
    Pair,
    PairBatch,
    Steps,
    epoch_order,
    micro_batches,
    split_by_prompt,
    step_batches,
)
from data.buckets import Bucket
from data.encode import (
    Anchor,
    EncodedQuestion,
    Encoding,
    encode,
    encoding_file,
    of_all_lengths,
    stop_of,
)
from data.gather import Reading, choose_source, load_preferences, read_preferences
from data.mixture import ReadSettings, read_sources, split_share
from data.prepare import Prepared, Split, prepare
from data.question import DataError, Preference, Turn
from data.report import Report, examine
from data.table import Table
from data.templates import stop_id
from data.text import TextSettings
from data.trees import TreeBatch, Trie, Way, ancestor_mask, build_trie, collate, question_tries
