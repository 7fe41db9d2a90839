"""Order: every pair once an epoch, nothing dropped, and plans that bound memory alone."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.batches import (
    Steps,
    _few_cut,
    epoch_order,
    micro_batches,
    split_by_prompt,
    step_batches,
)
from data.encode import EncodedQuestion
from data.question import DataError


def question(number, rejected):
    return EncodedQuestion((1, number), (10, 2), tuple((20 + k, 2) for k in range(rejected)))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(0, 99), st.booleans())
def test_every_pair_is_seen_exactly_once_an_epoch(sizes, seed, by_question):
    shuffle = "questions" if by_question else "pairs"
    order = epoch_order(sizes, 4, seed, 0, shuffle)
    assert sorted(order) == [(q, k) for q, size in enumerate(sizes) for k in range(size)]
    steps = list(Steps(sizes, 4, 1, seed, shuffle).from_step())
    assert [p for step in steps for p in step] == order  # the last partial step is kept
    assert all(len(step) == 4 for step in steps[:-1]) and 1 <= len(steps[-1]) <= 4


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 20)),
)
def test_the_order_goes_on_from_any_step_as_if_it_had_never_stopped(counts, n, epochs, limit):
    steps = Steps(counts, n, epochs, 7, "pairs", limit)
    whole = list(steps.from_step())
    assert len(whole) == steps.total and sum(map(len, whole)) == steps.pairs
    for first in range(len(whole) + 1):
        assert list(steps.from_step(first)) == whole[first:]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 12)),
)
def test_steps_of_questions_cut_none_and_see_every_pair_once_an_epoch(counts, n, epochs, limit):
    steps = Steps(counts, n, epochs, 7, "questions", limit, batch_by="questions")
    whole = list(steps.from_step())
    assert len(whole) == steps.total and steps.per_epoch == -(-len(counts) // n)
    everything = [(q, k) for q, count in enumerate(counts) for k in range(count)]
    for start in range(0, len(whole), steps.per_epoch):
        epoch = whole[start : start + steps.per_epoch]
        seen = [pair for step in epoch for pair in step]
        assert len(set(seen)) == len(seen)
        if len(epoch) == steps.per_epoch:
            assert sorted(seen) == everything
    for step in whole:
        held = {q for q, _ in step}
        assert len(held) <= n
        assert sorted(step) == [(q, k) for q, k in everything if q in held]
    for number in range(len(whole) + 1):
        assert steps.pairs_before(number) == sum(map(len, whole[:number]))
        assert list(steps.from_step(number)) == whole[number:]
    assert steps.pairs == steps.pairs_before(len(whole) + 1) == sum(map(len, whole))


def test_steps_of_questions_by_hand():
    """3 questions of 2, 1 and 3 pairs, two to a step: 2 steps an epoch, of 6 pairs together."""
    steps = Steps([2, 1, 3], 2, 2, 0, "questions", batch_by="questions")
    assert (steps.per_epoch, steps.total, steps.pairs, steps.pairs_before(2)) == (2, 4, 12, 6)
    assert steps.pairs_before(1) == 6 - len(list(steps.from_step())[1])
    by_pairs = Steps([2, 1, 3], 2, 2, 0, "questions")
    assert (by_pairs.per_epoch, by_pairs.pairs_before(1), by_pairs.pairs_before(4)) == (3, 2, 8)
    assert Steps([2, 1, 3], 2, 9, 0, "questions", 3, "questions").total == 3


def test_the_order_is_a_function_of_seed_and_epoch():
    questions = [3] * 20
    for shuffle in ("questions", "pairs"):
        assert epoch_order(questions, 8, 7, 1, shuffle) == epoch_order(questions, 8, 7, 1, shuffle)
        assert epoch_order(questions, 8, 7, 1, shuffle) != epoch_order(questions, 8, 7, 2, shuffle)
        assert epoch_order(questions, 8, 7, 1, shuffle) != epoch_order(questions, 8, 8, 1, shuffle)


def parts(order, n):
    """Return the (question, pairs of it) of each step of `n` pairs."""
    return [
        [(q, len(list(group))) for q, group in itertools.groupby(q for q, _ in order[i : i + n])]
        for i in range(0, len(order), n)
    ]


def test_shuffling_questions_keeps_their_pairs_together():
    order = epoch_order([3] * 9, 3, 0, 0, "questions")
    assert [k for _, k in order] == [0, 1, 2] * 9
    assert [q for q, _ in order[::3]] != list(range(9))


def test_questions_that_fill_a_step_move_up_so_that_few_are_cut():
    """Steps of 8: 3 + 4 leave room for 1, but 3 + 5 for none. With 4 go 2 and 2.

    Of 6 and 9 no sum is 8. So 6 takes 2 of the 9, and 7 are left.
    """
    order = _few_cut(range(7), [3, 4, 5, 2, 6, 2, 9], 8)
    filled = [[(0, 3), (2, 5)], [(1, 4), (3, 2), (5, 2)]]
    assert parts(order, 8) == [*filled, [(4, 6), (6, 2)], [(6, 7)]]
    assert parts(_few_cut([1, 0], [1, 19], 8), 8) == [[(1, 8)], [(1, 8)], [(1, 3), (0, 1)]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 9))
def test_no_step_could_have_been_filled_with_fewer_cuts(counts, n):
    """The oracle tries every set of what waits, among them what a cut has left of a question."""
    left = dict(enumerate(counts))
    order = _few_cut(range(len(counts)), counts, n)
    assert sorted(order) == [(q, k) for q, count in enumerate(counts) for k in range(count)]
    for step in parts(order, n):
        first, *others = left
        sums = {
            left[first] + sum(left[q] for q in some)
            for size in range(len(others) + 1)
            for some in itertools.combinations(others, size)
        }
        whole = [q for q, pairs in step if pairs == left[q]]
        assert sum(left[q] for q in whole) == max([s for s in sums if s <= n], default=0)
        assert first in dict(step) and len(step) - len(whole) <= 1
        left = {q: c for q, count in left.items() if (c := count - dict(step).get(q, 0))}


def test_a_pair_to_a_question_stays_where_the_shuffle_put_it():
    assert _few_cut([4, 2, 0, 3, 1], [1] * 5, 2) == [(q, 0) for q in (4, 2, 0, 3, 1)]


@pytest.mark.parametrize("way", ["tries", "rows"])
@pytest.mark.parametrize("budget", [1, 8, 1000])
@pytest.mark.parametrize("shuffle", ["questions", "pairs"])
def test_a_step_scores_each_of_its_pairs_once_under_any_plan(way, budget, shuffle):
    questions = [question(i, k) for i, k in enumerate([3, 1, 4])]
    pairs = epoch_order([3, 1, 4], 8, 0, 0, shuffle)
    seen = []
    for batch in step_batches(questions, pairs, budget, way):
        assert batch.trees.answers == len(batch.answers)
        assert batch.ids == [
            (questions[q].prompt, questions[q].answers[a]) for q, a in batch.answers
        ]
        for c, r in zip(batch.chosen.tolist(), batch.rejected.tolist(), strict=True):
            (q, zero), (same, k) = batch.answers[c], batch.answers[r]
            assert (same, zero) == (q, 0)
            seen.append((q, k - 1))
    assert sorted(seen) == sorted(pairs)


def test_pairs_of_a_question_meet_in_one_trie_whatever_the_shuffling():
    questions = [question(0, 2), question(1, 2)]
    (batch,) = step_batches(questions, [(0, 0), (1, 1), (0, 1)], 1000)
    assert batch.answers == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)]  # a chosen answer only once


def test_tokens_are_counted_over_the_steps_by_hand():
    """Prompt (Q, :), answers (a b .), (a .), (c d): see the docstring of data/trees.py.

    As pairs, (2 + 3) + (2 + 2) twice. In one trie 5 tokens are fed; in two steps (Q : a b) and
    (Q : a b c); as plain rows (Q : a b), (Q : a), (Q : c).
    """
    questions = [EncodedQuestion((1, 2), (3, 4, 7), ((3, 7), (5, 6)))]

    def count(pairs, way="tries"):
        batches = list(step_batches(questions, pairs, 1000, way))
        return sum(b.as_pairs for b in batches), sum(b.fed for b in batches)

    assert count([(0, 0), (0, 1)]) == (18, 5)
    assert [count([(0, 0)]), count([(0, 1)])] == [(5 + 4, 4), (5 + 4, 5)]
    assert count([(0, 0), (0, 1)], way="rows") == (18, 4 + 3 + 3)


@pytest.mark.parametrize("budget", [1, 1000])
def test_weights_of_a_step_sum_to_one_by_pair_or_by_question(budget):
    """Questions with K = 3 and 1. By question: 1/3 each against 1, of 2 whole: 1/6, 1/6, 1/6, 1/2.

    A step that holds one pair of the first and the second question: 1/3 and 1, of 4/3.
    """
    questions = [question(0, 3), question(1, 1)]

    def weights(pairs, by):
        found = {}
        for batch in step_batches(questions, pairs, budget, weight_by=by):
            for q, r, w in zip(batch.questions, batch.rejected, batch.weights, strict=True):
                found[int(q), batch.answers[int(r)][1] - 1] = float(w)
        return [found[pair] for pair in pairs]

    pairs = [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert weights(pairs, "pair") == pytest.approx([1 / 4] * 4)
    assert weights(pairs, "question") == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert weights([(0, 1), (1, 0)], "question") == pytest.approx([1 / 4, 3 / 4])


def test_all_pairs_of_graded_answers_by_hand():
    """Answers 0 to 3 with the grades 3, 2, 1, 3: pairs 01, 02, 12, 31, 32.

    Prompt of 2 tokens; answers of 1, 2, 3 and 4. As pairs, 2 x 2 + 1 + 2, and so on.
    """
    answers = [(9,), (8, 9), (7, 7, 9), (6, 6, 6, 9)]
    q = EncodedQuestion((1, 2), answers[0], tuple(answers[1:3]), (answers[3],),
                        grades=(3, 2, 1, 3), every=True)  # fmt: skip
    assert q.pairs == [(0, 1), (0, 2), (1, 2), (3, 1), (3, 2)]
    (batch,) = step_batches([question(7, 1), q], [(1, k) for k in range(5)], 1000)
    assert batch.answers == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert (batch.chosen.tolist(), batch.rejected.tolist()) == ([0, 0, 1, 3, 3], [1, 2, 2, 1, 2])
    assert batch.questions.tolist() == [1] * 5 and batch.lengths.tolist() == [1, 2, 3, 4]
    assert batch.as_pairs == 5 * 4 + (1 + 2) + (1 + 3) + (2 + 3) + (4 + 2) + (4 + 3)
    (batch,) = step_batches([question(7, 1), q], [(1, 4), (1, 2)], 1000)  # 32 and 12
    assert batch.answers == [(1, 3), (1, 2), (1, 1)]
    assert (batch.chosen.tolist(), batch.rejected.tolist()) == ([0, 2], [1, 1])


def test_lengths_are_those_of_the_answers_stop_token_included():
    (batch,) = step_batches([EncodedQuestion((1, 2), (3, 4, 7), ((3, 7), (5, 6, 7, 7)))],
                            [(0, 0), (0, 1)], 1000)  # fmt: skip
    assert batch.lengths.tolist() == [3, 2, 4]
    assert batch.to("cpu").lengths.tolist() == [3, 2, 4]


def test_micro_batches_respect_the_budget_and_keep_a_question_whole():
    lengths = [[5], [3], [9], [4], [20]]
    groups = list(micro_batches(lengths, 10))
    assert groups == [[4], [2], [0, 3], [1]]  # 20 alone; 9; 5 + 4; 3


def test_micro_batches_count_the_padding_of_long_tries_and_of_plain_rows():
    """400 + 290 + 210 = 900 tokens, but three rows of 400: within 1,000 are two of them.

    Of 120 + 90 + 60 tokens, which one row holds, three plain rows have 360 tokens.
    """
    assert list(micro_batches([[210], [400], [290]], 1000)) == [[1, 2], [0]]
    assert list(micro_batches([[210], [400], [290]], 1200)) == [[1, 2, 0]]
    short = [[90, 60], [120]]  # a question of two rows and one of one
    assert list(micro_batches(short, 300)) == [[1, 0]]
    assert list(micro_batches(short, 300, "rows")) == [[1], [0]]
    assert list(micro_batches(short, 360, "rows")) == [[1, 0]]


def test_held_out_prompts_are_disjoint_from_training_and_depend_on_the_seed():
    keys = list(range(100))
    train, held_out = split_by_prompt(keys, 0.2, seed=0)
    assert len(held_out) == 20 and sorted(train + held_out) == keys
    assert split_by_prompt(keys, 0.2, seed=0) == (train, held_out)
    assert split_by_prompt(keys, 0.2, seed=1) != (train, held_out)
    with pytest.raises(DataError, match="--eval-fraction"):
        split_by_prompt([1, 2], 0.1, seed=0)


def test_questions_with_the_same_prompt_stay_on_one_side():
    keys = [number % 10 for number in range(40)]
    for seed in range(5):
        train, held_out = split_by_prompt(keys, 0.3, seed)
        assert len(held_out) == 12
        assert not {keys[i] for i in train} & {keys[i] for i in held_out}


def test_a_step_may_hold_more_pairs_than_there_are():
    steps = Steps([3, 1, 2], 2**62, 1, 0, "questions")
    ((*pairs,),) = steps.from_step()
    assert sorted(pairs) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)] and steps.total == 1
