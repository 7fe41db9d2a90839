"""The DPO loss against numbers worked out by hand."""

import math

import pytest
import torch

from dpo import Constants, dpo_loss


def loss_of(margin, beta=1.0, **more):
    """The loss of one pair whose s+ - s- is `margin`."""
    zero = torch.zeros(1)
    return dpo_loss(torch.tensor([float(margin)]), zero, zero, zero, beta, **more).loss.item()


def test_at_zero_margin_the_loss_is_ln_2():
    assert loss_of(0) == pytest.approx(math.log(2))


def test_values_at_plus_and_minus_ln_3_by_hand():
    """softplus(-ln 3) = ln(1 + 1/3) = ln 4/3; softplus(ln 3) = ln 4."""
    assert loss_of(math.log(3)) == pytest.approx(math.log(4 / 3))
    assert loss_of(-math.log(3)) == pytest.approx(math.log(4))
    assert loss_of(2 * math.log(3), beta=0.5) == pytest.approx(math.log(4 / 3))


def test_a_whole_pair_by_hand():
    """s+ = -1 + 3 = 2, s- = -5 + 4 = -1, beta = ln(3) / 3: beta (s+ - s-) = ln 3."""
    beta = math.log(3) / 3
    result = dpo_loss(*(torch.tensor([v]) for v in (-1.0, -5.0, -3.0, -4.0)), beta=beta)
    assert result.loss.item() == pytest.approx(math.log(4 / 3))
    assert result.chosen_rewards.item() == pytest.approx(2 * beta)
    assert result.rejected_rewards.item() == pytest.approx(-beta)


def test_label_smoothing_by_hand():
    """cDPO with e = .25 at margin ln 3: .75 ln 4/3 + .25 ln 4."""
    expected = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert loss_of(math.log(3), label_smoothing=0.25) == pytest.approx(expected)


def test_the_gradient_by_hand():
    """d loss / d s+ = -beta sigma(-beta margin): -beta / 2 at zero, -beta / 4 at ln 3 / beta."""
    for margin, share in [(0.0, 1 / 2), (math.log(3), 1 / 4)]:
        chosen = torch.tensor([margin / 0.1], requires_grad=True)
        rejected = torch.zeros(1, requires_grad=True)
        dpo_loss(chosen, rejected, torch.zeros(1), torch.zeros(1), beta=0.1).loss.sum().backward()
        assert chosen.grad.item() == pytest.approx(-0.1 * share)
        assert rejected.grad.item() == pytest.approx(0.1 * share)


@pytest.mark.parametrize("margin", [1e4, -1e4, 1e6, -1e6])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_are_finite_at_any_margin(margin, smoothing):
    chosen = torch.tensor([margin], requires_grad=True)
    zero = torch.zeros(1)
    result = dpo_loss(chosen, zero, zero, zero, beta=1.0, label_smoothing=smoothing)
    result.loss.sum().backward()
    slope = smoothing if margin > 0 else -(1 - smoothing)  # of the only term that is not flat
    assert result.loss.item() == pytest.approx(slope * margin)
    assert chosen.grad.item() == pytest.approx(slope)


def test_only_the_difference_of_differences_counts():
    torch.manual_seed(0)
    pc, pr, rc, rr = torch.randn(4, 5)
    loss = dpo_loss(pc, pr, rc, rr).loss
    torch.testing.assert_close(dpo_loss(pc + 7, pr + 7, rc, rr).loss, loss)
    torch.testing.assert_close(dpo_loss(pc + 7, pr, rc + 7, rr).loss, loss)


def test_the_loss_is_per_pair_in_the_inputs_dtype_and_rewards_carry_no_gradient():
    policy = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    result = dpo_loss(policy, policy * 2, policy.detach(), policy.detach())
    assert result.loss.shape == (3,) and result.loss.dtype == torch.float64
    assert not result.chosen_rewards.requires_grad and not result.rejected_rewards.requires_grad


@pytest.mark.parametrize(
    "more, complaint",
    [
        ({"loss": "sigmoid2"}, "unknown loss 'sigmoid2'"),
        ({"divergence": "kl"}, "unknown divergence 'kl'"),
        ({"beta": 0.0}, "beta 0.0"),
        ({"beta": math.nan}, "beta nan"),
        ({"label_smoothing": 0.5}, "label smoothing 0.5 must be"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "sigmoid, robust, exo, not for hinge"),
        ({"loss": "exo"}, "needs label smoothing above 0"),
        ({"loss": "bco", "divergence": "js"}, "js is defined for .*, not for bco"),
        ({"divergence_alpha": 1.0}, "divergence_alpha 1.0 must be between"),
        ({"loss": "ipo"}, "needs chosen_lengths and rejected_lengths"),
        ({"loss": "sigmoid-norm"}, "needs chosen_lengths and rejected_lengths"),
        ({"loss": "group"}, "needs the question of each pair"),
        ({"sft_weight": 1.0}, "needs chosen_lengths"),
        ({"loss": "sft"}, "needs chosen_lengths"),
        ({"loss": "simpo"}, "needs chosen_lengths and rejected_lengths"),
        ({"loss": "orpo"}, "needs chosen_lengths and rejected_lengths"),
        ({"loss": "sigmoid,group=2"}, "needs the question of each pair"),
        ({"loss": "dpop", "constants": Constants(dpop_lambda=-1.0)}, "dpop_lambda=-1.0.* 0 or"),
        ({"loss": "simpo", "constants": Constants(simpo_gamma=math.nan)}, "simpo_gamma=nan"),
    ],
)
def test_settings_that_make_no_loss_are_refused_by_name(more, complaint):
    with pytest.raises(ValueError, match=complaint):
        dpo_loss(*torch.zeros(4, 1), **more)
