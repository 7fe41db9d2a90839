"""Tries: every shared token stored once, every path exactly what the answer alone would read."""

import random
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.rows import pack_rows
from data.trees import Way, ancestor_mask, build_trie, collate, question_tries, trie_size

# The example of the module's docstring: Q=1 :=2 a=3 b=4 c=5 d=6 .=7
PROMPT, ANSWERS = (1, 2), [(3, 4, 7), (3, 7), (5, 6)]


def test_the_example_of_the_docstring_by_hand():
    trie = build_trie(PROMPT, ANSWERS)
    assert trie.tokens == [1, 2, 3, 4, 5]
    assert trie.depths == [0, 1, 2, 3, 2]
    assert trie.ends == [5, 5, 4, 4, 5]
    # edges in the order they appear: a after ':', b after a, '.' after b, '.' after a, c, d after c
    assert trie.edge_token == [3, 4, 7, 7, 5, 6]
    assert trie.edge_from == [1, 2, 3, 2, 1, 4]
    assert trie.paths == [[0, 1, 2], [0, 3], [4, 5]]


def test_the_edges_of_a_node_know_each_other():
    """Of the example, 1 predicts a and c, 2 b and a full stop; a second trie follows in its row."""
    batch = collate([build_trie(PROMPT, ANSWERS), build_trie((8,), [(9, 7)])])
    assert batch.nodes.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.edge_node.tolist() == [0, 1, 2, 1, 0, 3, 4, 5]
    assert batch.edge_from.tolist() == [1, 2, 3, 2, 1, 4, 5, 6]
    assert batch.siblings.T.tolist() == [[0, 4], [4, 0], [1, 3], [3, 1]]
    assert collate([build_trie((8,), [(9, 7)])]).siblings.shape == (2, 0)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=8))
def test_tokens_are_counted_without_building_the_trie(answers):
    answers = [tuple(answer) for answer in answers]
    trie = build_trie(PROMPT, answers)
    assert trie_size(PROMPT, answers) == len(trie.tokens)


def test_the_mask_of_the_example_by_hand():
    batch = collate([build_trie(PROMPT, ANSWERS)])
    expected = [
        [1, 0, 0, 0, 0],  # Q
        [1, 1, 0, 0, 0],  # :
        [1, 1, 1, 0, 0],  # a
        [1, 1, 1, 1, 0],  # b
        [1, 1, 0, 0, 1],  # c sees the prompt, not its siblings a and b
    ]
    mask = ancestor_mask(batch.positions, batch.ends)[0].int()
    assert mask.shape == (16, 16)  # rows are a multiple of 16 long
    assert mask[:5, :5].tolist() == expected
    assert mask[5:, 5:].tolist() == torch.eye(11).int().tolist() and not mask[:5, 5:].any()


def test_a_sliding_window_counts_positions_not_columns():
    batch = collate([build_trie(PROMPT, ANSWERS)])
    windowed = ancestor_mask(batch.positions, batch.ends, window=2)[0, :5, :5].int().tolist()
    assert windowed[3] == [0, 0, 1, 1, 0]  # b sees a and itself
    assert windowed[4] == [0, 1, 0, 0, 1]  # c (column 4, position 2) still sees ':' (position 1)


def test_padding_sees_itself_alone():
    batch = collate([build_trie((1,), [(2, 3, 4)]), build_trie((1,), [(2,)])], way="rows")
    mask = ancestor_mask(batch.positions, batch.ends)
    assert batch.tokens.tolist() == [[1, 2, 3], [1, 0, 0]]
    assert mask[1].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_a_token_that_nothing_follows_is_not_fed():
    assert build_trie((1,), [(5, 9)]).tokens == [1, 5]
    assert build_trie((1,), [(5,), (5, 9)]).tokens == [1, 5]  # fed once another answer goes on


@pytest.mark.parametrize("prompt, answers", [((), [(1,)]), ((1,), [()]), ((1,), [(2,), ()])])
def test_nothing_to_predict_from_or_to_predict_is_an_error(prompt, answers):
    with pytest.raises(ValueError, match="at least one token"):
        build_trie(prompt, answers)


tokens = st.integers(0, 3)
prompts = st.lists(tokens, min_size=1, max_size=4).map(tuple)
answer_sets = st.lists(st.lists(tokens, min_size=1, max_size=5).map(tuple), min_size=1, max_size=8)


@given(prompts, answer_sets)
def test_each_path_spells_its_answer_and_edges_are_unique(prompt, answers):
    trie = build_trie(prompt, answers)
    for answer, path in zip(answers, trie.paths, strict=True):
        assert tuple(trie.edge_token[e] for e in path) == answer
    prefixes = {a[: i + 1] for a in answers for i in range(len(a))}
    assert len(trie.edge_token) == len(prefixes)
    assert len(set(zip(trie.edge_from, trie.edge_token, strict=True))) == len(prefixes)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(prompts, answer_sets), min_size=1, max_size=5),
    st.sampled_from(get_args(Way)),
)
def test_in_a_batch_every_edge_reads_its_own_text_and_nothing_else(questions, way):
    """The oracle: what a node may attend to, read in position order, is its answer's own prefix."""
    tries = [t for p, answers in questions for t in question_tries(p, answers, way)]
    batch = collate(tries, way)
    mask = ancestor_mask(batch.positions, batch.ends)
    flat = [(p, a) for p, answers in questions for a in answers]
    assert batch.answers == len(flat)
    for number, (prompt, answer) in enumerate(flat):
        edges = batch.path_edges[batch.path_answers == number]
        assert batch.edge_token[edges].tolist() == list(answer)
        for i, edge in enumerate(edges):
            row, column = divmod(int(batch.edge_from[edge]), batch.tokens.shape[1])
            visible = mask[row, column].nonzero().squeeze(1)
            assert batch.tokens[row, visible].tolist() == [*prompt, *answer[:i]]
            assert batch.positions[row, visible].tolist() == list(range(len(visible)))


def test_short_tries_share_rows_and_rows_are_filled_evenly():
    tries = [build_trie(tuple(range(1, 101)), [(1, 2)]) for _ in range(4)]  # 101 tokens each
    assert collate(tries).tokens.shape == (2, 208)  # two rows of about 256 at most, 202 long
    assert collate(tries[:3]).tokens.shape == (3, 112)  # and never 256 + 47 padded to 512
    assert collate(tries[:2]).tokens.shape == (1, 208)
    assert collate(tries, way="rows").tokens.shape == (4, 101)


def test_packing_by_hand():
    """500 tokens want two rows or more: 150 + 100 twice. 450 want two, and three waste nothing."""
    assert pack_rows([100, 150, 100, 150]) == [(0, 150), (0, 0), (1, 150), (1, 0)]
    assert pack_rows([150, 150, 150]) == [(0, 0), (1, 0), (2, 0)]
    assert pack_rows([7]) == [(0, 0)]
    # Two rows would be 163 long and three 110: 326 against 330 tokens, but 2 x 176 > 3 x 112.
    assert pack_rows([110, 105, 54, 53]) == [(0, 0), (1, 0), (2, 0), (2, 54)]


def test_long_tries_fill_rows_that_are_little_longer_than_the_longest():
    """900 + 500 + 400: two rows of 912, where a row for each 256 tokens would make three of 912.

    Two rows of 1,000 + 600 + 500 tokens are 1,104 long, and three 1,008. Alone, each has its own.
    """
    assert pack_rows([500, 900, 400]) == [(1, 0), (0, 0), (1, 500)]
    assert pack_rows([1000, 600, 500]) == [(0, 0), (1, 0), (1, 600)]
    assert pack_rows([1000, 900]) == [(0, 0), (1, 0)]
    assert pack_rows([300, 290, 280]) == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_questions_like_truthfulqas_hold_less_than_five_percent_of_padding(seed):
    rng = random.Random(seed)
    sizes = [round(min(max(rng.lognormvariate(4.0, 0.5), 20), 250)) for _ in range(70)]
    rows: dict[int, int] = {}
    for (row, column), size in zip(pack_rows(sizes), sizes, strict=True):
        rows[row] = max(rows.get(row, 0), column + size)
    assert sum(sizes) > 0.95 * len(rows) * max(rows.values())


def test_a_batch_moves_to_a_device_whole():
    batch = collate([build_trie(PROMPT, ANSWERS)]).to("meta")
    assert all(t.is_meta for t in batch if isinstance(t, torch.Tensor))
