"""Every loss of the family and every divergence against numbers worked out by hand."""

import itertools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo import Loss, dpo_loss
from dpo.losses import (
    DIVERGENT,
    FORMULAS,
    REFERENCE_FREE,
    Constants,
    divergence_score,
    log_odds,
    loss_terms,
    needs_reference,
    plackett_luce,
    ranks,
)

# The family. A pair has c = s+ and r = s-; with beta 1 and answers of one token, m = c - r.
# Without a reference, c and r are log pi(y+) and log pi(y-) themselves.


def family(name, c, r=0.0, beta=1.0, dtype=torch.float64, lengths=(1, 1), **more):
    """(loss, d loss/dc, d loss/dr) of one pair; dpop's lambda is 1 and simpo's gamma ln 3."""
    if name in ("robust", "exo"):
        more.setdefault("label_smoothing", 0.25)
    more.setdefault("constants", Constants(dpop_lambda=1.0, simpo_gamma=LN3))
    c, r = (torch.tensor([x], dtype=dtype, requires_grad=True) for x in (c, r))
    zero = torch.zeros(1, dtype=dtype)
    loss = dpo_loss(
        c, r, zero, zero, beta, name, chosen_lengths=torch.tensor(lengths[:1]),
        rejected_lengths=torch.tensor(lengths[1:]), questions=torch.tensor([5]),
        chosen_answers=torch.tensor([2]), **more,
    ).loss  # fmt: skip
    loss.sum().backward()
    return loss.item(), *(0.0 if x.grad is None else x.grad.item() for x in (c, r))


LN2, LN3 = math.log(2), math.log(3)
SURE = 3.0**-20  # sigma(-20 ln 3) / sigma(20 ln 3), the odds that discopop's w gives at m = ln 3

# sigma(ln 3) = 3/4, sigma(-ln 3) = 1/4, softplus(-ln 3) = ln 4/3, softplus(ln 3) = ln 4
# name: at c = 0, ln 3, -ln 3 (r = 0), slope in c and in r at zero; robust, exo: e = 1/4
BY_HAND = {
    "sigmoid": (LN2, math.log(4 / 3), math.log(4), -1 / 2, 1 / 2),
    "hinge": (1, 0, 1 + LN3, -1, 1),
    "ipo": (1 / 4, (LN3 - 1 / 2) ** 2, (LN3 + 1 / 2) ** 2, -1, 1),
    # (3/4 l(m) - 1/4 l(-m)) / (1/2), and its slope (-3/8 - 1/8) / (1/2)
    "robust": (
        LN2,
        1.5 * math.log(4 / 3) - 0.5 * math.log(4),
        1.5 * math.log(4) - 0.5 * math.log(4 / 3),
        -1,
        1,
    ),
    # zero: 1/2 ln (1/2 / 3/4) + 1/2 ln (1/2 / 1/4); ln 3 is the very distribution (3/4, 1/4);
    # its slope sigma' (m + ln e/(1 - e)) = 1/4 (-ln 3)
    "exo": (math.log(4 / 3) / 2, 0, LN3 / 2, -LN3 / 4, LN3 / 4),
    "nca": (
        2 * LN2,
        math.log(4 / 3) + math.log(4) / 2 + LN2 / 2,
        math.log(4) + math.log(4 / 3) / 2 + LN2 / 2,
        -1 / 2 + 1 / 4,
        1 / 4,
    ),
    "bco": (2 * LN2, math.log(4 / 3) + LN2, math.log(4) + LN2, -1 / 2, 1 / 2),
    "sppo": (1 / 2, (LN3 - 1 / 2) ** 2 + 1 / 4, (LN3 + 1 / 2) ** 2 + 1 / 4, -1, 1),
    "apo-zero": (1, 1 / 4 + 1 / 2, 3 / 4 + 1 / 2, -1 / 4, 1 / 4),
    "apo-down": (1, 3 / 4 + 1 / 4, 1 / 4 + 3 / 4, 1 / 4 - 1 / 4, 1 / 4),
    # w = sigma(20 m): 1/2; 1 / (1 + 3^-20); 3^-20 / (1 + 3^-20). Its slope at zero is 20/4 = 5:
    # -5 ln 2 - 1/2 1/2 + 5 - 1/2
    "discopop": (
        LN2 / 2 + 1 / 2,
        (SURE * math.log(4 / 3) + 1 / 3) / (1 + SURE),
        (math.log(4) + SURE * 3) / (1 + SURE),
        4.25 - 5 * LN2,
        5 * LN2 - 4.25,
    ),
    "sigmoid-norm": (LN2, math.log(4 / 3), math.log(4), -1 / 2, 1 / 2),
    "group": (LN2, math.log(4 / 3), math.log(4), -1 / 2, 1 / 2),
    "ranking": (LN2, math.log(4 / 3), math.log(4), -1 / 2, 1 / 2),
    # -ln 3 - 1 max(0, ln 3) = -2 ln 3, softplus(2 ln 3) = ln (1 + 9); the penalty is flat at c = 0
    "dpop": (LN2, math.log(4 / 3), math.log(10), -1 / 2, 1 / 2),
    # softplus(gamma - m), gamma = ln 3: softplus(ln 3), softplus(0), softplus(2 ln 3)
    "simpo": (math.log(4), LN2, math.log(10), -3 / 4, 3 / 4),
    "sft": (0, -LN3, LN3, -1, 0),
}
# At c = 0 an answer is certain and its odds infinite, so that orpo has its numbers further down.
NAMES = (*BY_HAND, "orpo")
A_TOKEN = ("ipo", "sigmoid-norm", "simpo", "orpo", "sft")  # those that divide sums by lengths


def test_every_loss_of_the_family_has_its_numbers_here():
    assert set(NAMES) == {"sigmoid", *FORMULAS} == set(get_args(Loss))


@pytest.mark.parametrize("name", BY_HAND)
def test_values_at_0_and_ln_3_and_slopes_at_0_by_hand(name):
    at_zero, at_plus, at_minus, slope_c, slope_r = BY_HAND[name]
    assert family(name, 0.0) == pytest.approx((at_zero, slope_c, slope_r), abs=1e-12)
    assert family(name, LN3)[0] == pytest.approx(at_plus, abs=1e-12)
    assert family(name, -LN3)[0] == pytest.approx(at_minus, abs=1e-12)


@pytest.mark.parametrize("name", sorted(set(BY_HAND) - {"ipo", "sppo", "sft"}))
def test_beta_scales_the_log_ratios(name):
    assert family(name, 2 * LN3, -LN3, 0.5)[0] == pytest.approx(family(name, LN3, -LN3 / 2)[0])


def test_beta_sets_the_target_of_ipo_and_sppo_by_hand():
    """beta = 1/4: 1/(2 beta) = 2. ipo: (3 - (-1) - 2)^2; sppo: (3 - 2)^2 + (-1 + 2)^2."""
    assert family("ipo", 3.0, -1.0, 0.25)[0] == pytest.approx((4 - 2) ** 2)
    assert family("sppo", 3.0, -1.0, 0.25)[0] == pytest.approx(1 + 1)


def test_lengths_divide_the_sums_of_ipo_and_sigmoid_norm_by_hand():
    """c = 6 over 3 tokens, r = 4 over 4: 2 - 1 = 1. The others do not look at lengths."""
    assert family("ipo", 6.0, 4.0, lengths=(3, 4))[0] == pytest.approx((1 - 1 / 2) ** 2)
    normed = family("sigmoid-norm", 3 * LN3 + 3, 4.0, lengths=(3, 4))[0]
    assert normed == pytest.approx(math.log(4 / 3))
    for name in set(NAMES) - set(A_TOKEN):
        assert family(name, 1.0, 2.0, lengths=(3, 4)) == family(name, 1.0, 2.0)


@pytest.mark.parametrize("name", A_TOKEN)
def test_sums_over_n_tokens_are_n_times_what_one_token_has(name):
    """And their slopes a n-th of it."""
    loss, slope_c, slope_r = family(name, -0.5, -1.5)
    expected = (loss, slope_c / 3, slope_r / 4)
    assert family(name, -1.5, -6.0, lengths=(3, 4)) == pytest.approx(expected)


def test_apo_down_by_hand_where_it_differs_from_apo_zero():
    """c = 0, r = -ln 3: sigma(0) + 1 - sigma(ln 3) = 1/2 + 1/4."""
    assert family("apo-down", 0.0, -LN3)[0] == pytest.approx(3 / 4)
    assert family("apo-zero", 0.0, -LN3)[0] == pytest.approx(1 / 2 + 1 / 4)
    assert family("apo-down", LN3, 0.0)[0] != pytest.approx(family("apo-zero", LN3, 0.0)[0])


def test_label_smoothing_of_zero_is_the_loss_without_it():
    assert family("robust", 1.3, label_smoothing=0.0)[0] == pytest.approx(family("sigmoid", 1.3)[0])
    assert family("sigmoid", 1.3, label_smoothing=0.0) == family("sigmoid", 1.3)


@pytest.mark.parametrize("name", NAMES)
def test_which_losses_see_the_margin_alone(name):
    """Shifting both answers changes nothing for those that compare them, and for others it does."""
    shifted, still = family(name, -0.5, -1.5)[0], family(name, -1.0, -2.0)[0]
    looks_at_each = name in (
        "nca", "bco", "sppo", "apo-zero", "apo-down", "dpop", "orpo", "sft",
    )  # fmt: skip
    assert (shifted != pytest.approx(still)) == looks_at_each


@pytest.mark.parametrize("name", BY_HAND)
def test_which_losses_treat_both_answers_alike(name):
    """Exchanging (c, r) for (-r, -c): chosen up as much as rejected down."""
    alike = family(name, 1.0, 0.25)[0] == pytest.approx(family(name, -0.25, -1.0)[0])
    assert alike == (name not in ("nca", "apo-down", "dpop", "sft"))


@pytest.mark.parametrize("name", sorted({"sigmoid", "group", "sigmoid-norm", "robust"}))
def test_the_logistic_ones_differ_by_the_margin_when_the_label_is_flipped(name):
    """softplus(-m) - softplus(m) = -m; robust divides it by 1 - 2 e = 1/2."""
    flipped = family(name, 0.7)[0] - family(name, -0.7)[0]
    assert flipped == pytest.approx(-0.7 * (2 if name == "robust" else 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [1e6, -1e6, 1e4, -1e4])
def test_every_loss_and_its_gradient_are_finite_at_any_margin(name, dtype, c):
    assert all(map(math.isfinite, family(name, c, dtype=dtype)))
    assert all(map(math.isfinite, family(name, 0.0, c, dtype=dtype)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_loss_keeps_the_dtype_and_gives_a_number_a_pair(name, dtype):
    e = 0.25 if name in ("robust", "exo") else 0.0
    ones = torch.ones(3, dtype=dtype)
    result = dpo_loss(
        ones, -ones, ones, ones, loss=name, label_smoothing=e, chosen_lengths=torch.ones(3),
        rejected_lengths=torch.ones(3), questions=torch.arange(3), chosen_answers=torch.arange(3),
    )  # fmt: skip
    assert result.loss.shape == (3,) and result.chosen_rewards.dtype == dtype
    assert result.loss.dtype == dtype or name in A_TOKEN  # lengths are wider


@pytest.mark.parametrize("name", (*NAMES, "orpo=0.3,dpop=2,sigmoid"))
def test_every_gradient_by_finite_differences(name):
    torch.manual_seed(0)
    scores = [torch.randn(6, dtype=torch.float64) for _ in range(2)]
    if "orpo" in name:  # which is for log-probs
        scores = [x - 3 for x in scores]
    scores = [x.requires_grad_() for x in scores]
    lengths = torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64)
    more = {"label_smoothing": 0.1} if name in ("robust", "exo") else {}

    def loss(c, r):
        return dpo_loss(
            c, r, torch.zeros_like(c), torch.zeros_like(c), 0.7, name, chosen_lengths=lengths,
            rejected_lengths=lengths.flip(0), questions=torch.tensor([0, 1, 0, 2, 1, 0]),
            chosen_answers=torch.tensor([4, 1, 0, 2, 1, 4]), **more,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, scores)


@pytest.mark.parametrize("name", sorted({*NAMES} - {*REFERENCE_FREE}))
def test_only_policy_against_reference_counts(name):
    """Adding to both sides of a log-ratio changes nothing, but for losses without a reference."""
    torch.manual_seed(0)
    pc, pr, rc, rr = torch.randn(4, 5, dtype=torch.float64)
    more = {
        "loss": name, "label_smoothing": 0.1 if name in ("robust", "exo") else 0.0,
        "chosen_lengths": torch.ones(5), "rejected_lengths": torch.ones(5),
        "questions": torch.zeros(5), "chosen_answers": torch.tensor([0, 0, 1, 2, 1]),
    }  # fmt: skip
    loss = dpo_loss(pc, pr, rc, rr, **more).loss
    torch.testing.assert_close(dpo_loss(pc + 7, pr - 3, rc + 7, rr - 3, **more).loss, loss)


# Without a reference


@pytest.mark.parametrize("name", REFERENCE_FREE)
def test_losses_without_a_reference_see_the_policy_alone_and_rewards_stay_log_ratios(name):
    scores = torch.tensor([[-2.0], [-5.0], [-3.0], [-4.0]])
    more = {"loss": name, "beta": 0.5, "chosen_lengths": torch.tensor([2])}
    more["rejected_lengths"] = torch.tensor([3])
    found = dpo_loss(*scores, **more)
    free = dpo_loss(*scores[:2], *torch.zeros(2, 1), **more)
    assert torch.equal(found.loss, free.loss) and not needs_reference(name)
    assert (found.chosen_rewards.item(), found.rejected_rewards.item()) == (0.5, -0.5)
    assert (free.chosen_rewards.item(), free.rejected_rewards.item()) == (-1.0, -2.5)


@pytest.mark.parametrize("name", sorted({*NAMES} - {*REFERENCE_FREE}))
def test_all_other_losses_ask_for_the_reference_alone_and_in_mixtures(name):
    assert needs_reference(name) and needs_reference(f"sft,{name}=0.1")
    assert not needs_reference("simpo,orpo=2,sft")


def test_dpop_by_hand():
    """Its penalty is for a chosen answer below the reference, and for nothing else.

    c = -ln 2, r = -3 ln 2, lambda = 3: c - r - 3 ln 2 = -ln 2 and softplus(ln 2) = ln 3, with
    sigma(ln 2) = 2/3. So the slope in c is -(1 + 3) 2/3, and in r 2/3. At c = +ln 2 it is DPO.
    """
    constants = Constants(dpop_lambda=3.0)
    fallen = family("dpop", -LN2, -3 * LN2, constants=constants)
    assert fallen == pytest.approx((math.log(3), -8 / 3, 2 / 3))
    halved = family("dpop", -2 * LN2, -6 * LN2, 0.5, constants=constants)  # beta acts on it all
    assert halved == pytest.approx((math.log(3), -4 / 3, 1 / 3))
    assert family("dpop", LN2, -LN2, constants=constants) == family("sigmoid", LN2, -LN2)
    none = Constants(dpop_lambda=0.0)
    assert family("dpop", -LN2, LN2, constants=none) == family("sigmoid", -LN2, LN2)


def test_under_dpop_a_chosen_answer_that_fell_rises_however_far_the_pair_is_won():
    """DPO's slope in c is near zero once r has fallen far; that of dpop at c = -1 is not.

    c = -1, r = -20, lambda = 50: the margin 19 is won, 19 - 50 is lost, sigma(31) = 1: slope -51.
    """
    assert family("sigmoid", -1.0, -20.0)[1] == pytest.approx(0, abs=1e-8)
    found = family("dpop", -1.0, -20.0, constants=Constants(dpop_lambda=50.0))
    assert found[1] == pytest.approx(-51)


def test_simpo_by_hand():
    """log pi(y+) = -2 over 2 tokens, log pi(y-) = -9 over 3: 2 nats a token apart.

    beta = ln 3 and gamma = ln 3: 2 ln 3 - ln 3, softplus(-ln 3) = ln 4/3, sigma(-ln 3) = 1/4; the
    slopes are -beta/4 over 2 tokens and beta/4 over 3. gamma / beta = 2 is reached: ln 2.
    """
    found = family("simpo", -2.0, -9.0, LN3, lengths=(2, 3))
    assert found == pytest.approx((math.log(4 / 3), -LN3 / 8, LN3 / 12))
    reached = family("simpo", -2.0, -9.0, 0.3, lengths=(2, 3), constants=Constants(simpo_gamma=0.6))
    assert reached[0] == pytest.approx(LN2)


def test_simpo_without_a_margin_is_sigmoid_norm_without_a_reference():
    none = Constants(simpo_gamma=0.0)
    for c, r in [(-3.0, -1.0), (-0.5, -8.0)]:
        simpo = family("simpo", c, r, 2.0, lengths=(2, 5), constants=none)
        assert simpo == pytest.approx(family("sigmoid-norm", c, r, 2.0, lengths=(2, 5)))


def test_orpo_by_hand():
    """Chances a token of 3/4 and 1/4 have the odds 3 and 1/3, whose quotient is 9.

    -log sigma(ln 9) = ln 10/9, so the loss is ln 4/3 + beta ln 10/9. A log odds rises by 1/(1 - P)
    a nat: 4 and 4/3. sigma(-ln 9) = 1/10: the slopes are -1 - beta 4/10 and beta (4/3)/10.
    """
    found = family("orpo", math.log(3 / 4), math.log(1 / 4), 0.5)
    expected = (math.log(4 / 3) + 0.5 * math.log(10 / 9), -1 - 0.5 * 4 / 10, 0.5 * 4 / 30)
    assert found == pytest.approx(expected)
    both = family("orpo", math.log(1 / 2), math.log(1 / 2), 0.5)
    assert both[0] == pytest.approx(LN2 + 0.5 * LN2)


@pytest.mark.parametrize("chance", [1e-300, 1e-6, 0.1, 0.4999, 0.5001, 0.9, 1 - 1e-6, 1 - 1e-12])
def test_log_odds_against_the_quotient(chance):
    found = log_odds(torch.tensor(chance, dtype=torch.float64).log())
    assert found.item() == pytest.approx(math.log(chance / (1 - chance)), rel=1e-5)


def test_log_odds_keep_their_digits_in_float32_near_certainty():
    """1 - e^-1e-6 = 1e-6 - 5e-13; formed from the rounded e^-1e-6 it would be 9.5e-7."""
    found = log_odds(torch.tensor(-1e-6)).item()
    assert found == pytest.approx(-math.log(1e-6), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orpo_is_finite_where_answers_are_certain_or_impossible(dtype):
    """The odds of a certain answer are held at 1 / eps, and those of a chance of e^-10,000 are it.

    Against a rejected answer of chance 1/2, whose log odds are 0: softplus(-ln 1/eps) = 0, and
    ln 2 + ln 1/eps the other way round. An impossible one: 10,000 + 10,000.
    """
    most = -math.log(torch.finfo(dtype).eps)
    assert family("orpo", 0.0, -LN2, dtype=dtype)[0] == pytest.approx(0, abs=1e-6)
    assert family("orpo", -LN2, 0.0, dtype=dtype)[0] == pytest.approx(LN2 + most, rel=1e-6)
    assert family("orpo", -1e4, -LN2, dtype=dtype)[0] == pytest.approx(2e4)
    edges = (0.0, -1e-45, -1e-30, -1e-9, -1e-7, -1e4)
    for c, r in itertools.product(edges, edges):
        loss, slope_c, slope_r = family("orpo", c, r, dtype=dtype)
        assert all(map(math.isfinite, (loss, slope_c, slope_r)))
        assert slope_c <= -1 and slope_r >= 0


def test_the_sft_loss_is_the_sft_term_alone():
    """log pi(y+) = -6 over 3 tokens: 2, its slope -1/3; the rejected answer has no part in it."""
    assert family("sft", -6.0, -1.0, lengths=(3, 1)) == pytest.approx((2, -1 / 3, 0))
    both = family("sigmoid", -6.0, -1.0, lengths=(3, 1), sft_weight=0.5)
    assert family("sigmoid,sft=0.5", -6.0, -1.0, lengths=(3, 1)) == pytest.approx(both)


# Mixtures


@pytest.mark.parametrize(
    "text, terms",
    [
        ("sigmoid", {"sigmoid": 1.0}),
        ("sigmoid=0.8,sft=0.2", {"sigmoid": 0.8, "sft": 0.2}),
        ("apo-zero , sft = 1e-1", {"apo-zero": 1.0, "sft": 0.1}),
        ("hinge=3", {"hinge": 3.0}),
    ],
)
def test_a_loss_is_read_as_names_and_weights(text, terms):
    assert loss_terms(text) == terms


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("sigmund", "unknown loss 'sigmund'; did you mean sigmoid\\?"),
        ("xyz=1", "unknown loss 'xyz'; there are sigmoid, hinge"),
        ("", "unknown loss ''; there are"),
        ("sigmoid,", "unknown loss ''; there are"),
        ("sigmoid=much", "the weight 'much' of sigmoid is not a number above 0"),
        ("sigmoid=", "the weight '' of sigmoid"),
        ("sft=0.2,sigmoid=0", "the weight '0' of sigmoid"),
        ("sigmoid=-1", "the weight '-1' of sigmoid"),
        ("sigmoid=nan", "the weight 'nan' of sigmoid"),
        ("sigmoid=inf", "the weight 'inf' of sigmoid"),
        ("sigmoid=0.5,sft,sigmoid=0.5", "sigmoid stands twice"),
    ],
)
def test_a_loss_that_cannot_be_read_is_refused_by_what_is_wrong(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        loss_terms(text)


def test_a_mixture_by_hand():
    """At c = -ln 3, r = 0 and one token: .8 ln 4 + .2 ln 3, the slopes -.8 3/4 - .2 and .8 3/4."""
    found = family("sigmoid=0.8,sft=0.2", -LN3)
    assert found == pytest.approx((0.8 * math.log(4) + 0.2 * LN3, -0.8, 0.6))


def test_each_term_of_a_mixture_sees_what_it_would_see_alone():
    """The policy's -4 over 2 tokens is 2 nats a token; it is ln 3 above the reference: ln 4/3."""
    chosen, reference = torch.tensor([-4.0]), torch.tensor([-4.0 - LN3])
    other = torch.tensor([-7.0])
    found = dpo_loss(
        chosen, other, reference, other, 1.0, "sigmoid,sft", chosen_lengths=torch.tensor([2])
    )
    assert found.loss.item() == pytest.approx(math.log(4 / 3) + 2)
    assert found.chosen_rewards.item() == pytest.approx(LN3)


@pytest.mark.parametrize("name", NAMES)
def test_a_mixture_is_the_weighted_sum_of_its_terms(name):
    """In the loss of each pair and in both slopes; the weights are not brought to a sum of 1."""
    other = "sppo" if name == "hinge" else "hinge"
    one, two = (family(n, -1.25, -4.0, 0.5, lengths=(3, 5)) for n in (name, other))
    more = {"label_smoothing": 0.25} if name in ("robust", "exo") else {}
    found = family(f"{name}=0.75,{other}=2", -1.25, -4.0, 0.5, lengths=(3, 5), **more)
    assert found == pytest.approx([0.75 * a + 2 * b for a, b in zip(one, two, strict=True)])


def test_label_smoothing_acts_on_the_terms_that_define_it_and_on_no_other():
    """e = 1/4 at m = ln 3: 3/4 ln 4/3 + 1/4 ln 4 for sigmoid, and hinge's 0 stays."""
    smoothed = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    found = family("sigmoid=2,hinge", LN3, label_smoothing=0.25)[0]
    assert found == pytest.approx(2 * smoothed)
    with pytest.raises(ValueError, match="sigmoid, robust, exo, not for hinge,sft"):
        family("hinge,sft", LN3, label_smoothing=0.25)
    with pytest.raises(ValueError, match="exo needs label smoothing"):
        family("sigmoid,exo", LN3, label_smoothing=0.0)


def test_a_divergence_goes_with_terms_that_compare_answers_and_such_as_see_no_reference():
    """Forward KL at s = ln 2: 1 - 1/2; hinge leaves 1/2 of it, and sft adds its -ln 2."""
    found = family("hinge,sft", LN2, divergence="forward-kl")[0]
    assert found == pytest.approx(1 - 1 / 2 - LN2)
    for loss, wrong in [("sigmoid,bco", "bco"), ("dpop", "dpop"), ("sft,simpo", "sft,simpo")]:
        with pytest.raises(ValueError, match=f"js is defined for .* not for {wrong}$"):
            family(loss, LN3, divergence="js")


def test_a_whole_question_in_a_mixture_by_hand():
    """group as below, 6 / (6 + 1 + 2 + 3) = 1/2, and half of each pair's own hinge: 1 - m."""
    rs = torch.tensor([0.0, LN2, LN3])
    zero, one = torch.zeros(3), torch.zeros(3, dtype=torch.long)
    loss = dpo_loss(
        torch.full((3,), math.log(6)), rs, zero, zero, 1.0, "group,hinge=0.5", questions=one
    ).loss
    margins = (math.log(6), math.log(3), LN2)
    assert loss.tolist() == pytest.approx([LN2 + max(0, 1 - m) / 2 for m in margins])


# A whole question


def group_loss(c, rs, beta=1.0):
    """By enumeration of the K + 1 answers."""
    powers = [math.exp(beta * x) for x in (c, *rs)]
    return -math.log(powers[0] / sum(powers))


def test_the_group_loss_by_hand():
    """c = ln 6, r = 0, ln 2, ln 3: 6 / (6 + 1 + 2 + 3) = 1/2."""
    rs = torch.tensor([0.0, LN2, LN3])
    c = torch.full((3,), math.log(6))
    zero, one = torch.zeros(3), torch.zeros(3, dtype=torch.long)
    loss = dpo_loss(c, rs, zero, zero, 1.0, "group", questions=one).loss
    assert loss.tolist() == pytest.approx([LN2] * 3)  # each pair carries its question's loss


def test_the_group_loss_and_its_gradient_against_enumeration():
    """d loss/dc = -beta (1 - p), d loss/dr_k = beta p_k, p the softmax over the K + 1 answers."""
    torch.manual_seed(0)
    beta, questions = 0.3, torch.tensor([7, 3, 7, 7, 3, 9])
    chosen = {7: 1.2, 3: -4.0, 9: 0.0}
    c = torch.tensor([chosen[int(q)] for q in questions], dtype=torch.float64, requires_grad=True)
    r = torch.randn(6, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(6, dtype=torch.float64)
    loss = dpo_loss(c, r, zero, zero, beta, "group", questions=questions).loss
    counts = torch.tensor([3, 2, 3, 3, 2, 1])
    (loss / counts).sum().backward()  # every question weighs 1
    for q, value in chosen.items():
        mine = (questions == q).nonzero().flatten()
        rs = r[mine].tolist()
        assert loss[mine].tolist() == pytest.approx([group_loss(value, rs, beta)] * len(rs))
        powers = [math.exp(beta * x) for x in (value, *rs)]
        shares = [p / sum(powers) for p in powers]
        assert c.grad[mine].sum().item() == pytest.approx(-beta * (1 - shares[0]))
        assert r.grad[mine].tolist() == pytest.approx([beta * p for p in shares[1:]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_one_rejected_answer_the_group_loss_is_sigmoid_dpo_bit_for_bit(dtype):
    torch.manual_seed(0)
    scores = torch.randn(4, 1000, dtype=dtype) * 50
    sigmoid = dpo_loss(*scores, loss="sigmoid").loss
    assert torch.equal(dpo_loss(*scores, loss="group", questions=torch.arange(1000)).loss, sigmoid)
    # numbered in another order, a pair may meet another lane of the processor's softplus
    mixed = dpo_loss(*scores, loss="group", questions=torch.randperm(1000)).loss
    torch.testing.assert_close(mixed, sigmoid, rtol=1e-6, atol=0)


# All grades of a question


def ranking_loss(scores, grades, beta=1.0):
    """By enumeration: each answer against itself and those of lower grade."""
    total = 0.0
    for s, grade in zip(scores, grades, strict=True):
        below = [
            math.exp(beta * t) for t, other in zip(scores, grades, strict=True) if other < grade
        ]
        total -= math.log(math.exp(beta * s) / (math.exp(beta * s) + sum(below)))
    return total


def graded(questions, beta):
    """The ranking loss of each question [(score, grade), ...], and its slope in every score."""
    scores = torch.tensor([s for q in questions for s, _ in q], dtype=torch.float64)
    scores.requires_grad_()
    grades = [g for q in questions for _, g in q]
    owner = [n for n, q in enumerate(questions) for _ in q]
    pairs = [
        (i, j) for i in range(len(grades)) for j in range(len(grades))
        if owner[i] == owner[j] and grades[i] > grades[j]
    ]  # fmt: skip
    better, worse = torch.tensor(pairs).T
    zero = torch.zeros(len(pairs), dtype=torch.float64)
    mine = torch.tensor([owner[i] for i, _ in pairs])
    losses = dpo_loss(
        scores[better], scores[worse], zero, zero, beta, "ranking", questions=mine + 70,
        chosen_answers=better,
    ).loss  # fmt: skip
    means = [losses[mine == q] for q in range(len(questions))]
    torch.stack([one.mean() for one in means]).sum().backward()
    return [one.tolist() for one in means], scores.grad.tolist()


def test_the_ranking_loss_by_hand():
    """s = ln 3, ln 2, 0 with grades 3, 2, 1: 3 / (3 + 2 + 1) and 2 / (2 + 1), so ln 2 + ln 3/2.

    With the grades 2, 1, 1 the two lower ones are not compared: ln 2 alone.
    """
    s = (LN3, LN2, 0.0)
    (losses,), _ = graded([list(zip(s, (3, 2, 1), strict=True))], 1.0)
    assert losses == pytest.approx([LN2 + math.log(3 / 2)] * 3)  # three pairs, one question
    (losses,), _ = graded([list(zip(s, (2, 1, 1), strict=True))], 1.0)
    assert losses == pytest.approx([LN2] * 2)


def test_the_ranking_loss_and_its_gradient_against_enumeration():
    """Of several questions, with answers of one grade; the slope by central differences."""
    questions = [
        [(0.3, 1), (-1.0, 1), (0.7, 0), (2.0, 0), (-0.2, 0)],  # two true, three false
        [(1.5, 9), (0.1, 5), (0.4, 3)],
        [(0.0, 2), (0.0, 1)],
        [(-3.0, 4), (1.0, 4), (0.5, 2), (0.6, 1)],
    ]
    beta, h = 0.4, 1e-6
    losses, slopes = graded(questions, beta)
    for q, found in zip(questions, losses, strict=True):
        scores, grades = zip(*q, strict=True)
        assert found == pytest.approx([ranking_loss(scores, grades, beta)] * len(found))
        for k in range(len(q)):
            up, down = (
                ranking_loss([s + d * (i == k) for i, s in enumerate(scores)], grades, beta)
                for d in (h, -h)
            )
            assert slopes.pop(0) == pytest.approx((up - down) / (2 * h), abs=1e-6)


def test_a_ranking_of_all_answers_is_a_product_of_picks_whose_chances_sum_to_one():
    """Plackett-Luce: over all 3! = 6 rankings of three answers the likelihoods sum to 1."""
    s = (0.2, -0.7, 1.1)
    chances = [
        math.exp(-graded([list(zip(s, order, strict=True))], 1.0)[0][0][0])
        for order in itertools.permutations((3, 2, 1))
    ]
    assert len(chances) == 6 and sum(chances) == pytest.approx(1)


def test_with_one_answer_above_the_rest_the_ranking_loss_is_the_group_loss_bit_for_bit():
    torch.manual_seed(0)
    questions = torch.tensor([0, 0, 0, 1, 1, 2])
    c, r = torch.randn(3)[questions], torch.randn(6)
    scores = (c, r, torch.randn(3)[questions], torch.randn(6))
    group = dpo_loss(*scores, loss="group", questions=questions).loss
    ranking = dpo_loss(
        *scores, loss="ranking", questions=questions, chosen_answers=questions + 10
    ).loss
    assert torch.equal(group, ranking)


def test_the_ranking_loss_stays_finite_at_margins_of_a_million():
    for size in (1e4, 1e6):
        for sign in (1, -1):
            (losses,), slopes = graded([[(sign * size, 3), (0.0, 2), (-sign * size, 1)]], 1.0)
            assert all(map(math.isfinite, [*losses, *slopes]))


# Other divergences


@pytest.mark.parametrize(
    "name, s, score",
    [
        ("reverse-kl", 1.7, 1.7),
        ("forward-kl", LN2, 1 - 1 / 2),
        ("js", LN3, math.log(2 * 3 / 4)),  # ln 2t/(1 + t)
        ("alpha", math.log(4), (1 - 4**-0.5) / 0.5),
    ],
)
def test_the_scores_of_the_divergences_by_hand(name, s, score):
    assert divergence_score(torch.tensor(s), name).item() == pytest.approx(score)
    assert divergence_score(torch.tensor(0.0), name).item() == pytest.approx(0, abs=1e-7)


ALPHA = 0.3
GENERATORS = {  # f of D_f(pi, pi_ref) = E_ref f(pi / pi_ref), f-DPO's table 1
    "reverse-kl": lambda u: u * u.log(),
    "forward-kl": lambda u: -u.log(),
    "js": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "alpha": lambda u: (u ** (1 - ALPHA) - (1 - ALPHA) * u - ALPHA) / (ALPHA * (ALPHA - 1)),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_divergence_scores_by_the_slope_of_its_generator(name):
    u = torch.tensor([0.2, 0.9, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    GENERATORS[name](u).sum().backward()
    slope = u.grad - u.grad[2]  # shifted so that pi = pi_ref scores 0
    scores = divergence_score(u.detach().log(), name, ALPHA)
    torch.testing.assert_close(scores, slope)


def test_alpha_lies_between_the_two_kl_divergences():
    s = torch.tensor([-1.5, 0.5, 2.0], dtype=torch.float64)
    near_zero, near_one = (divergence_score(s, "alpha", a) for a in (1e-6, 1 - 1e-6))
    torch.testing.assert_close(near_zero, divergence_score(s, "reverse-kl"), atol=1e-5, rtol=0)
    torch.testing.assert_close(near_one, divergence_score(s, "forward-kl"), atol=1e-4, rtol=0)


@pytest.mark.parametrize("divergence", ["forward-kl", "js", "alpha"])
@pytest.mark.parametrize("name", DIVERGENT)
def test_divergences_stay_finite_and_start_where_the_reverse_kl_does(name, divergence):
    """At pi = pi_ref the slope of f' is f''(1): 1, and 1/2 for Jensen-Shannon's."""
    value, *slopes = family(name, 0.0)
    curvature = 1 / 2 if divergence == "js" else 1
    expected = (value, *(curvature * slope for slope in slopes))
    assert family(name, 0.0, divergence=divergence) == pytest.approx(expected)
    for c in (1e6, -1e6):
        found = family(name, c, dtype=torch.float32, divergence=divergence)
        assert all(map(math.isfinite, found))


def test_an_sft_term_adds_the_chosen_answers_negative_log_prob_per_token_by_hand():
    """log pi(y+) = -6 over 3 tokens, weight 1/2: + 1/2 6/3 = 1, its slope -1/2 / 3."""
    with_term = family("sigmoid", -6.0, -6.0, lengths=(3, 1), sft_weight=0.5)
    without = family("sigmoid", -6.0, -6.0)
    assert with_term[0] == pytest.approx(without[0] + 1)
    assert with_term[1] == pytest.approx(without[1] - 1 / 6) and with_term[2] == without[2]


@given(st.lists(st.integers(-3, 6), min_size=1, max_size=12))
def test_ranks_are_the_inverse_of_unique_without_its_size(numbers):
    numbers = torch.tensor(numbers)
    assert torch.equal(ranks(numbers), numbers.unique(return_inverse=True)[1])


def test_places_of_no_group_have_no_loss_and_no_gradient_but_zero():
    """Pairs 0 and 2 are group 0, pair 1 is group 1; two more places are of no group."""
    margin = torch.tensor([0.0, 1.0, 0.0], requires_grad=True)
    terms = plackett_luce(margin, torch.tensor([0, 1, 0]))
    assert terms.tolist() == pytest.approx([LN3, math.log1p(math.exp(-1)), 0.0])
    terms.sum().backward()
    assert margin.grad.tolist() == pytest.approx([-1 / 3, -1 / (1 + math.e), -1 / 3])
