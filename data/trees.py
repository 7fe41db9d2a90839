"""Preferences as token tries: every token that answers share is computed once.

A question's prompt and its answers form one tree of tokens. A token may attend to itself and to its
ancestors, so each path from the root reads exactly what that answer alone would have read.

Nodes are stored depth-first, which makes a subtree a contiguous range:

    node:     0    1    2    3    4          prompt = (Q, :)
    token:    Q    :    a    b    c          answers = (a b .), (a .), (c d)
    ends:     5    5    4    4    5          node j is an ancestor of i  <=>  j <= i < ends[j]

A node is a token that is fed to the model. Every token of an answer is an *edge*: it leads from the
node that predicts it to the token predicted. The last token of a branch (`.`, `.` and `d` above) is
predicted but never fed, since nothing follows it. Edges of one node are *siblings*, which are read
off the same logits: above, `a` and `c` after `:`, and `b` and `.` after `a`.

Shape legend: B rows, L tokens in a row, D nodes that predict, E edges, S ordered pairs of siblings,
A answers, N tokens of all answers, where a shared one counts once for each answer.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from data.rows import pack_rows, row_length

Tokens = tuple[int, ...]
# How a model reads answers: as tries; as plain rows of one answer each, without a tree mask; or as
# plain rows of which it makes the logits itself.
Way = Literal["tries", "rows", "logits"]


class Trie(NamedTuple):
    """One question's tokens, depth-first, with each token that is fed or predicted stored once."""

    tokens: list[int]  # the fed tokens
    depths: list[int]  # their positions in the text, 0 for the first
    ends: list[int]  # one past the last node of each node's subtree
    edge_from: list[int]  # the node that predicts ...
    edge_token: list[int]  # ... this token
    paths: list[list[int]]  # for each answer the edges it walks, in order


class TreeBatch(NamedTuple):
    """Tries packed into rows of equal length; what `dpo.answer_logps` scores."""

    tokens: Tensor  # (B, L) int64, 0 where padded
    positions: Tensor  # (B, L) int64, the depth in the own trie
    # (B, L) int64, the column after the node's subtree; j + 1 where column j is padded
    ends: Tensor
    nodes: Tensor  # (D,) int64, the nodes that predict, each once, as places among B * L
    edge_node: Tensor  # (E,) int64 into `nodes`
    edge_token: Tensor  # (E,) int64
    siblings: Tensor  # (2, S) int64, an edge and another edge of its node
    path_edges: Tensor  # (N,) int64, the edges of every answer, one answer after the other
    path_answers: Tensor  # (N,) int64, the answer each of them belongs to
    answers: int  # A
    way: Way

    @property
    def edge_from(self) -> Tensor:
        """Return (E,) int64: the node that predicts each edge's token, as a place among B * L."""
        return self.nodes[self.edge_node]

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with its tensors on `device`."""
        fields: Any = (f.to(device) if isinstance(f, Tensor) else f for f in self)
        return type(self)(*fields)


def build_trie(prompt: Tokens, answers: Sequence[Tokens]) -> Trie:
    """Merge the answers to one prompt into a trie; `paths` keeps the order of `answers`.

    Answers are inserted in sorted order, so that those with a common opening are neighbours. A
    token becomes a node when something follows it. Every node is therefore appended after its
    parent and before any node of a later branch, which is depth-first order.

    Raises:
        ValueError: the prompt or an answer has no token, so that nothing could be predicted.
    """
    if not prompt or not all(answers):
        raise ValueError("a trie needs a prompt and answers of at least one token each")
    tokens, depths = list(prompt), list(range(len(prompt)))
    parents = [max(i - 1, 0) for i in range(len(prompt))]  # of the root, itself
    edge_from: list[int] = []
    edge_token: list[int] = []
    paths: list[list[int]] = [[] for _ in answers]
    node_of: dict[int, int] = {}  # edge -> the node its token became

    def node_after(edge: int) -> int:
        """Return the node of an edge's token; append it to the fed tokens if it is new."""
        if edge not in node_of:
            node_of[edge] = len(tokens)
            parents.append(edge_from[edge])
            depths.append(depths[edge_from[edge]] + 1)
            tokens.append(edge_token[edge])
        return node_of[edge]

    previous: Tokens = ()
    path: list[int] = []  # the edges of `previous`
    for k in sorted(range(len(answers)), key=answers.__getitem__):
        answer = answers[k]
        path = path[: common_prefix(previous, answer)]  # a copy: `paths` keeps the longer one
        for token in answer[len(path) :]:
            edge_from.append(node_after(path[-1]) if path else len(prompt) - 1)
            edge_token.append(token)
            path.append(len(edge_from) - 1)
        paths[k] = path
        previous = answer

    ends = list(range(1, len(tokens) + 1))
    for i in reversed(range(1, len(tokens))):
        ends[parents[i]] = max(ends[parents[i]], ends[i])
    return Trie(tokens, depths, ends, edge_from, edge_token, paths)


def trie_size(prompt: Tokens, answers: Sequence[Tokens]) -> int:
    """Count the tokens that the trie of these answers feeds, without building it.

    In sorted order, an answer adds an edge for every token after those that it shares with the
    answer before. Every edge becomes a node but the last one of each branch.
    """
    ordered = sorted(set(answers))
    shared = [common_prefix(a, b) for a, b in itertools.pairwise(ordered)]
    edges = sum(map(len, ordered)) - sum(shared)
    branches = 1 + sum(s < len(a) for s, a in zip(shared, ordered, strict=False))
    return len(prompt) + edges - branches


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading items `a` and `b` share."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def collate(tries: Sequence[Trie], way: Way = "tries") -> TreeBatch:
    """Pack tries into rows and number their answers 0 ... A-1 in the order given.

    But for "tries" every trie must be a single path, and gets a row of its own.
    """
    sizes = [len(trie.tokens) for trie in tries]
    place = pack_rows(sizes) if way == "tries" else [(row, 0) for row in range(len(tries))]
    rows = 1 + max(row for row, _ in place)
    longest = max(column + size for (_, column), size in zip(place, sizes, strict=True))
    length = row_length(longest) if way == "tries" else longest
    tokens = torch.zeros(rows, length, dtype=torch.long)
    positions = torch.zeros(rows, length, dtype=torch.long)
    # Padding sees itself, since a softmax over nothing is NaN.
    ends = torch.arange(1, length + 1).repeat(rows, 1)
    edge_from: list[int] = []  # (E), places among B * L
    edge_token: list[int] = []  # (E)
    path_edges: list[int] = []  # (N)
    path_answers: list[int] = []  # (N)
    answers = 0
    for trie, (row, column) in zip(tries, place, strict=True):
        span = slice(column, column + len(trie.tokens))
        tokens[row, span] = torch.tensor(trie.tokens)
        positions[row, span] = torch.tensor(trie.depths)
        ends[row, span] = torch.tensor(trie.ends) + column
        for path in trie.paths:
            path_edges += (len(edge_from) + edge for edge in path)
            path_answers += [answers] * len(path)
            answers += 1
        edge_from += (row * length + column + node for node in trie.edge_from)
        edge_token += trie.edge_token
    children: dict[int, list[int]] = {}  # a node that predicts -> its edges
    for edge, node in enumerate(edge_from):
        children.setdefault(node, []).append(edge)
    number = {node: k for k, node in enumerate(children)}
    siblings = [pair for edges in children.values() for pair in itertools.permutations(edges, 2)]
    return TreeBatch(
        tokens,
        positions,
        ends,
        nodes=torch.tensor(list(children)),
        edge_node=torch.tensor([number[node] for node in edge_from]),
        edge_token=torch.tensor(edge_token),
        siblings=torch.tensor(siblings, dtype=torch.long).reshape(-1, 2).T,
        path_edges=torch.tensor(path_edges),
        path_answers=torch.tensor(path_answers),
        answers=answers,
        way=way,
    )


def question_tries(prompt: Tokens, answers: Sequence[Tokens], way: Way = "tries") -> list[Trie]:
    """Return one trie for all answers or, as rows, a trie of a single path for each."""
    groups = [answers] if way == "tries" else [[answer] for answer in answers]
    return [build_trie(prompt, group) for group in groups]


def ancestor_mask(positions: Tensor, ends: Tensor, window: int | None = None) -> Tensor:
    """Return (B, L, L) bool: may token i (row) attend to token j (column)?

    `j <= i < ends[j]` holds exactly when j is i or an ancestor of i, as the picture above shows;
    `build_trie` makes `ends`. A sliding window counts positions in the text, not columns:
    `positions[i] - positions[j] < window`.
    """
    column = torch.arange(ends.shape[1], device=ends.device)
    i, j = column[:, None], column[None, :]
    mask = (j <= i) & (i < ends[:, None, :])  # eq. (9) of docs/math.md
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window  # eq. (10) of docs/math.md
    return mask
