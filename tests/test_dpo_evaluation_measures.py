"""MC1, MC2, pair accuracy and how sure they are, by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from data import EncodedQuestion
from dpo import Beliefs, Metrics, answer_key, intervals, measure, pair_margins
from dpo.evaluation import measures
from dpo.evaluation.measures import by_category, mc1, mc2, p_values

LN = math.log


def test_mc2_by_hand():
    """True answers with ln .5 and ln .3, a false one with ln .2: (.5 + .3) / 1 = .8."""
    assert mc2(torch.tensor([LN(0.5), LN(0.3)]), torch.tensor([LN(0.2)])) == pytest.approx(0.8)


def test_mc2_does_not_underflow():
    """e^-800 is 0 in any float; shifting all by -800 must change nothing."""
    shifted = mc2(torch.tensor([LN(0.5), LN(0.3)]) - 800, torch.tensor([LN(0.2)]) - 800)
    assert shifted == pytest.approx(0.8, abs=1e-4)


def test_mc1_asks_the_best_answer_to_beat_every_incorrect_one():
    best = torch.tensor(-1.0)
    assert mc1(best, torch.tensor([-2.0, -3.0])) == 1
    assert mc1(best, torch.tensor([-2.0, -0.5])) == 0
    assert mc1(best, torch.tensor([-1.0, -3.0])) == 0.5


def test_a_whole_evaluation_by_hand():
    """First question: best ln .5, incorrect ln .2 and ln .6, further correct ln .1.

    MC1 0 (ln .6 wins), MC2 (.5 + .1) / 1.4, one of two pairs right. Second: a tie, all halves.
    """
    first = EncodedQuestion((1,), (10,), ((11,), (12,)), ((13,),))
    second = EncodedQuestion((2,), (10,), ((11,),))
    scores = {answer_key((1,), (10 + i,)): LN(p) for i, p in enumerate([0.5, 0.2, 0.6, 0.1])}
    scores |= {answer_key((2,), (10,)): -3.0, answer_key((2,), (11,)): -3.0}
    metrics = measure([first, second], scores)
    assert metrics.mc1 == metrics.mc1_per_token == pytest.approx((0 + 0.5) / 2)
    assert metrics.mc2 == metrics.mc2_per_token == pytest.approx((0.6 / 1.4 + 0.5) / 2)
    assert metrics.pair_accuracy == pytest.approx((1 + 0 + 0.5) / 3)
    assert metrics.all_beaten == 0  # a tie beats nobody
    assert metrics.margin == pytest.approx((LN(0.5 / 0.2) + LN(0.5 / 0.6) + 0) / 3, abs=1e-6)


def test_per_token_measures_divide_by_the_length_of_the_answer():
    """Best: ln .09 over 2 tokens, .3 a token; incorrect: ln .16 over one, so that it wins twice.

    Another incorrect one has ln .008 over 3 tokens, .2 a token: beaten only a token.
    """
    question = EncodedQuestion((1,), (2, 3), ((4,), (5, 6, 7)))
    logps = {(2, 3): LN(0.09), (4,): LN(0.16), (5, 6, 7): LN(0.008)}
    metrics = measure([question], {answer_key((1,), a): p for a, p in logps.items()})
    assert metrics.mc2 == pytest.approx(0.09 / (0.09 + 0.16 + 0.008))
    assert metrics.mc2_per_token == pytest.approx(0.3 / (0.3 + 0.16 + 0.2))
    assert (metrics.mc1, metrics.mc1_per_token) == (0, 1)
    assert (metrics.pair_accuracy, metrics.pair_accuracy_per_token) == (0.5, 1)


def beliefs(values, pairs=None):
    """All measures alike: these values, weighted by `pairs` where pairs count."""
    v, k = np.array(values, dtype=float), np.array(pairs or [1] * len(values), dtype=float)
    weights = {n: k if n in measures.BY_PAIR else np.ones_like(k) for n in Metrics._fields}
    return Beliefs({name: v for name in Metrics._fields}, weights)


def test_intervals_are_those_of_every_possible_draw():
    """Two questions, 0 and 1: draws have means 0, 1/2, 1/2, 1; with one million they are 0 to 1.

    With K = 3 and 1 a draw of both has the pair-weighted mean 1/4.
    """
    one = beliefs([0, 1], [3, 1])
    found = intervals(one, one)
    assert found["before"]["mc1"] == [0, 1] and found["difference"]["mc1"] == [0, 0]
    draws = measures._resampled(one, np.array([[2, 0], [1, 1], [0, 2]]))
    by_name = dict(zip(Metrics._fields, draws.T.tolist(), strict=True))
    assert by_name["mc1"] == [0, 0.5, 1] and by_name["pair_accuracy"] == [0, 0.25, 1]


def test_intervals_of_a_share_are_near_the_normal_ones():
    """p = .3 of 200 questions: .3 +- 1.96 sqrt(.3 .7 / 200) = .3 +- .0635."""
    before, after = beliefs([1] * 60 + [0] * 140), beliefs([1] * 120 + [0] * 80)
    found = intervals(before, after)
    assert found["before"]["mc1"] == pytest.approx([0.2365, 0.3635], abs=0.008)
    # the difference is paired: 60 of 200 rose by 1, so .3 +- .0635, not the sum of two variances
    assert found["difference"]["mc1"] == pytest.approx([0.2365, 0.3635], abs=0.008)


def test_p_values_are_the_share_of_sign_flips():
    """Five questions all better by 1: of 32 flips 2 sum to +-5, p = 1/16. None changed: p = 1."""
    found = p_values(beliefs([0] * 5), beliefs([1] * 5))
    assert found["mc1"] == pytest.approx(1 / 16, abs=0.01)
    exact = [sum(s) for s in itertools.product((-1, 1), (-2, 2), (-1, 1))]
    expected = sum(abs(s) >= 2 for s in exact) / len(exact)  # changes 1, 2, -1 sum to 2
    found = p_values(beliefs([0, 0, 1]), beliefs([1, 2, 0]))
    assert found["mc1"] == pytest.approx(expected, abs=0.02)
    assert p_values(beliefs([0.5, 1]), beliefs([0.5, 1]))["mc1"] == 1


def test_the_margin_of_every_pair_is_chosen_less_rejected():
    """-1 against -3 and -0.5: 2 and -0.5; -2 against -2: 0. Further correct answers are no pair."""
    one = EncodedQuestion((1,), (10,), ((11,), (12,)), ((13,),))
    two = EncodedQuestion((2,), (10,), ((11,),))
    scores = dict(
        zip(
            [answer_key(q.prompt, a) for q in (one, two) for a in q.answers],
            [-1.0, -3.0, -0.5, -9.0, -2.0, -2.0],
            strict=True,
        )
    )
    assert pair_margins([one, two], scores) == [2, -0.5, 0]


def test_categories_are_means_of_their_own_questions_and_the_nameless_are_left_out():
    values = {name: np.array([1.0, 0.0, 1.0, 0.5]) for name in Metrics._fields}
    weights = {name: np.array([1.0, 3.0, 1.0, 1.0]) for name in Metrics._fields}
    beliefs = Beliefs(values, weights)
    found = by_category(beliefs, beliefs, ["Law", "Law", "Art", ""])
    assert list(found) == ["Law", "Art"]
    assert found["Law"]["questions"] == 2
    assert found["Law"]["after"]["mc1"] == pytest.approx(1 / 4)  # (1 x 1 + 3 x 0) / 4
    assert found["Art"]["before"]["mc1"] == 1
    assert by_category(beliefs, beliefs, [""] * 4) == {}
