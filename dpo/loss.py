"""The DPO loss and its family: pure functions of log-probs, one formula each."""

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

Loss = Literal["sigmoid"]


class DPOLoss(NamedTuple):
    """Per-pair losses and the implicit rewards beta * s behind them, each (P,), in nats."""

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
    loss: Loss = "sigmoid",
    label_smoothing: float = 0.0,
) -> DPOLoss:
    """Return the DPO loss of each pair (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

        s(y) = log pi(y|x) - log pi_ref(y|x)
        loss = log(1 + exp(-beta (s+ - s-))) = softplus(-beta (s+ - s-))

    With label smoothing e, the share of pairs labelled the wrong way round (cDPO, Mitchell 2023):

        loss = (1 - e) softplus(-beta (s+ - s-)) + e softplus(beta (s+ - s-))

    Args:
        policy_chosen: (P,) log pi(y+|x), summed over the answer's tokens, nats.
        policy_rejected: (P,) log pi(y-|x).
        reference_chosen: (P,) log pi_ref(y+|x); zeros make the loss reference-free.
        reference_rejected: (P,) log pi_ref(y-|x).
        beta: > 0; a larger one keeps the policy closer to the reference.
        loss: the name of the formula.
        label_smoothing: e, 0 <= e < 0.5.

    Raises:
        ValueError: an unknown loss, or beta or e out of range.
    """
    if loss != "sigmoid":
        raise ValueError(f"unknown loss {loss!r}; there is 'sigmoid'")
    if beta <= 0 or not 0 <= label_smoothing < 0.5:
        raise ValueError(f"beta {beta} must be positive and 0 <= {label_smoothing} < 0.5")
    chosen = policy_chosen - reference_chosen  # s+
    rejected = policy_rejected - reference_rejected  # s-
    margin = beta * (chosen - rejected)
    losses = F.softplus(-margin)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses + label_smoothing * F.softplus(margin)
    return DPOLoss(losses, (beta * chosen).detach(), (beta * rejected).detach())
