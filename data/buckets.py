"""Few shapes of training batches: a GPU records what it does once for each shape.

A batch is padded to one of some buckets. What is added is a text of its own that no token of the
batch sees: rows and columns, nodes and edges, an answer, and pairs and places of weight 0. Losses
and gradients stay what they were; only dropout, which draws a mask for every token fed, draws
others. Shape legend as in `data.trees` and `data.batches`.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from data.batches import AnchorBatch, PairBatch
from data.trees import TreeBatch

PADDING = 0.15  # of the tokens fed, at most
ROOM = 1 / 8  # more of whatever is not fed, for later steps
MULTIPLE = 16  # of its sizes
SHAPES = 48  # of which buckets are joined; more of them are rounded up first
UNLIKELY = -20.0  # nats: the log-prob of a padded anchor's words


class Bucket(NamedTuple):
    """The sizes of all that is in a batch."""

    rows: int  # B
    columns: int  # L
    nodes: int  # D
    edges: int  # E
    siblings: int  # S
    steps: int  # N, of all answers' paths
    answers: int  # A
    pairs: int  # P
    places: int  # M, of anchors
    words: int  # k, of such a place

    @property
    def tokens(self) -> int:
        """Return what is fed."""
        return self.rows * self.columns

    def joined(self, other: "Bucket") -> "Bucket":
        """Return the smallest one that holds both."""
        return Bucket(*map(max, self, other))

    def holds(self, other: "Bucket") -> bool:
        """Tell whether a batch of the other sizes can be padded to these."""
        return all(mine >= its for mine, its in zip(self, other, strict=True))


def sizes(batch: PairBatch) -> Bucket:
    """Return a batch's own sizes, with one node, edge and answer more, which padding reads."""
    trees, places = batch.trees, batch.anchors.words
    rows, columns = trees.tokens.shape
    return Bucket(
        rows, columns, len(trees.nodes) + 1, len(trees.edge_node) + 1,
        trees.siblings.shape[1], len(trees.path_edges), trees.answers + 1, len(batch.chosen),
        len(places), places.shape[1],
    )  # fmt: skip


def choose_buckets(found: Iterable[Bucket], padding: float = PADDING) -> list[Bucket]:
    """Return few buckets that hold batches of these sizes, the largest first.

    Two that cost the fewest tokens are joined again and again, as long as padding is at most a
    share `padding` of the tokens of all batches.
    """
    counts = Counter(found)
    own = sum(shape.tokens * count for shape, count in counts.items())
    while len(counts) > SHAPES:  # neighbours first, which have nearly the same number of tokens
        ordered = sorted(counts, key=lambda shape: (shape.tokens, shape))
        joined = Counter[Bucket]()
        for one, other in zip(ordered[::2], ordered[1::2] + ordered[-1:], strict=False):
            joined[one.joined(other)] += counts[one] + (counts[other] if other != one else 0)
        counts = joined
    buckets = dict(counts)
    while len(buckets) > 1:
        one, other = min(itertools.combinations(buckets, 2), key=lambda two: added(buckets, *two))
        whole = sum(shape.tokens * count for shape, count in buckets.items())
        if whole + added(buckets, one, other) > (1 + padding) * own:
            break
        number = buckets.pop(one) + buckets.pop(other)
        join = one.joined(other)
        buckets[join] = buckets.get(join, 0) + number
    return sorted(map(roomy, buckets), key=lambda shape: (shape.tokens, shape), reverse=True)


def roomy(bucket: Bucket) -> Bucket:
    """Return the bucket with some room for what is not fed; where there is none, none comes."""
    kept = "rows", "columns", "words"
    return Bucket(
        **{
            name: size if name in kept else math.ceil(size * (1 + ROOM) / MULTIPLE) * MULTIPLE
            for name, size in bucket._asdict().items()
        }
    )


def added(counts: dict[Bucket, int], one: Bucket, other: Bucket) -> int:
    """Return the tokens that batches of two buckets feed more where the two are one."""
    whole = one.joined(other).tokens
    return sum((whole - shape.tokens) * counts[shape] for shape in (one, other))


def bucket_for(batch: PairBatch, buckets: Sequence[Bucket]) -> Bucket | None:
    """Return the smallest bucket that holds a batch; None where none does."""
    own = sizes(batch)
    return next((bucket for bucket in reversed(buckets) if bucket.holds(own)), None)


def padded(batch: PairBatch, bucket: Bucket) -> PairBatch:
    """Return the batch with the sizes of a bucket that holds it.

    Whatever is added has to do with the last node, edge and answer, which are added too.
    """
    trees, anchors = batch.trees, batch.anchors
    pairs, places = bucket.pairs, bucket.places
    edge, answer = bucket.edges - 1, bucket.answers - 1
    words = torch.zeros(bucket.places, bucket.words, dtype=torch.long)
    logps = torch.full(words.shape, UNLIKELY)
    m, k = anchors.words.shape
    words[:m, :k], logps[:m, :k] = anchors.words, anchors.logps
    return batch._replace(
        trees=padded_trees(trees, bucket),
        ids=[*batch.ids, *[None] * (bucket.answers - trees.answers)],
        anchors=anchors._replace(
            edges=filled(anchors.edges, places, edge), words=words, logps=logps,
            weights=filled(anchors.weights, places, 0.0),
        ),
        chosen=filled(batch.chosen, pairs, answer),
        rejected=filled(batch.rejected, pairs, answer),
        lengths=filled(batch.lengths, bucket.answers, 1),
        questions=filled(batch.questions, pairs, -1),  # one that there is not
        weights=filled(batch.weights, pairs, 0.0),
    )  # fmt: skip


def padded_trees(trees: TreeBatch, bucket: Bucket) -> TreeBatch:
    """Return tries with the sizes of a bucket."""
    rows, columns = trees.tokens.shape
    ends = torch.arange(1, bucket.columns + 1).repeat(bucket.rows, 1)  # padding sees itself
    ends[:rows, :columns] = trees.ends
    tokens, positions = torch.zeros_like(ends), torch.zeros_like(ends)
    tokens[:rows, :columns], positions[:rows, :columns] = trees.tokens, trees.positions
    places = trees.nodes // columns * bucket.columns + trees.nodes % columns
    siblings = torch.full((2, bucket.siblings), bucket.edges - 1)
    siblings[:, : trees.siblings.shape[1]] = trees.siblings
    return trees._replace(
        tokens=tokens, positions=positions, ends=ends,
        nodes=filled(places, bucket.nodes, tokens.numel() - 1),
        edge_node=filled(trees.edge_node, bucket.edges, bucket.nodes - 1),
        edge_token=filled(trees.edge_token, bucket.edges, 0),
        siblings=siblings,
        path_edges=filled(trees.path_edges, bucket.steps, bucket.edges - 1),
        path_answers=filled(trees.path_answers, bucket.steps, bucket.answers - 1),
        answers=bucket.answers,
    )  # fmt: skip


def nothing(words: int) -> PairBatch:
    """Return a batch without anything, whose anchors would have so many words: all is padding."""
    none = torch.zeros(0, dtype=torch.long)
    row = torch.zeros(0, 1, dtype=torch.long)
    trees = TreeBatch(row, row, row, none, none, none, none.view(2, 0), none, none, 0, "tries")
    of_words = torch.zeros(0, words)
    anchors = AnchorBatch(none, of_words.long(), of_words, of_words[:, :0].flatten())
    return PairBatch(
        trees, [], [], anchors, none, none, none, none, of_words[:, :0].flatten(), 0, 0
    )


def filled(values: Tensor, size: int, value: float) -> Tensor:
    """Return (size,): the values, and then one value in all places that are left."""
    return torch.cat([values, values.new_full((size - len(values),), value)])
