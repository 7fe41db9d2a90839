"""The DPO loss: a pure function of four log-probs a pair.

    s(y) = log pi(y|x) - log pi_ref(y|x)        loss = log(1 + exp(-beta (s+ - s-)))

s(y) is the log-ratio of policy to reference, in nats. The loss is the negative log-likelihood of a
person's choice, if y+ is preferred to y- with probability sigma(beta (s+ - s-)). `docs/math.md`
derives it, and `dpo.losses` has seventeen other losses. Shape legend: P pairs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo.losses import (
    FORMULAS,
    Constants,
    Divergence,
    Pairs,
    check_loss,
    divergence_score,
    loss_terms,
    sft,
)


class DPOLoss(NamedTuple):
    """Per-pair losses and the implicit rewards beta * s behind them, each (P,), in nats."""

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def sigmoid(p: Pairs) -> Tensor:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7): -log sigma(m) = softplus(-m).

    m = beta (c - r), with c = s(y+) and r = s(y-). Written as softplus it overflows at no margin.
    With label smoothing e, the share of pairs labelled the wrong way round (cDPO, Mitchell 2023):
    (1 - e) softplus(-m) + e softplus(m). In TRL 1.16 this loss ignores label smoothing.
    """
    loss = F.softplus(-p.margin)  # p.margin = beta (s+ - s-), eq. (6) of docs/math.md
    if p.label_smoothing:
        loss = (1 - p.label_smoothing) * loss + p.label_smoothing * F.softplus(p.margin)
    return loss


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
    *,
    divergence: Divergence = "reverse-kl",
    divergence_alpha: float = 0.5,
    sft_weight: float = 0.0,
    constants: Constants = Constants(),
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    questions: Tensor | None = None,
    chosen_answers: Tensor | None = None,
) -> DPOLoss:
    """Return the loss of each pair: log(1 + exp(-beta (s+ - s-))) or another of the family.

        s(y) = log pi(y|x) - log pi_ref(y|x)

    Args:
        policy_chosen: (P,) log pi(y+|x), summed over the answer's tokens, nats.
        policy_rejected: (P,) log pi(y-|x).
        reference_chosen: (P,) log pi_ref(y+|x); zeros make the loss reference-free.
        reference_rejected: (P,) log pi_ref(y-|x).
        beta: > 0; a larger one keeps the policy closer to the reference.
        loss: `sigmoid` is DPO; for the others see `dpo.losses`. `sigmoid=0.8,sft=0.2` is a sum.
        label_smoothing: e, 0 <= e < 0.5, for the losses that define it.
        divergence: measures how far the policy is from the reference; see `divergence_score`.
        divergence_alpha: between 0 and 1, for the divergence `alpha`.
        sft_weight: adds this much of the loss `sft`, -log pi(y+|x) / |y+|.
        constants: lambda of dpop and gamma of simpo.
        chosen_lengths: (P,) tokens of y+, for the losses that take log-probs a token.
        rejected_lengths: (P,) tokens of y-, likewise.
        questions: (P,) the question of each pair, for the losses group and ranking.
        chosen_answers: (P,) the chosen answer of each pair, a number, for the ranking loss.

    Raises:
        ValueError: the settings do not make a loss, or lengths or questions are missing.
    """
    check_loss(loss, beta, label_smoothing, divergence, divergence_alpha, constants)
    s_chosen = policy_chosen - reference_chosen  # (P,) s+, eq. (5) of docs/math.md
    s_rejected = policy_rejected - reference_rejected  # (P,) s-
    pairs = Pairs(  # whose margin is beta (c - r); c is s+ itself for reverse-kl
        divergence_score(s_chosen, divergence, divergence_alpha),
        divergence_score(s_rejected, divergence, divergence_alpha),
        policy_chosen, policy_rejected, beta, label_smoothing, constants,
        chosen_lengths, rejected_lengths, questions, chosen_answers,
    )  # fmt: skip
    losses = sft_weight * sft(pairs) if sft_weight else torch.zeros_like(policy_chosen)
    for name, weight in loss_terms(loss).items():
        losses = losses + weight * (sigmoid if name == "sigmoid" else FORMULAS[name])(pairs)
    # Rewards are beta s whatever the divergence: eq. (7) of docs/math.md
    return DPOLoss(losses, (beta * s_chosen).detach(), (beta * s_rejected).detach())
