"""What a training step logs, under the field's names."""

import torch
from torch import Tensor

from dpo.loss import DPOLoss


def pair_columns(result: DPOLoss, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Stack what is logged of a micro-batch's pairs: (5, P), for `step_metrics` to average."""
    return torch.stack([*result, chosen, rejected]).detach()


def step_metrics(columns: Tensor) -> dict[str, float]:
    """Average `pair_columns` of all pairs of a step: (5, P); log-probs and rewards in nats.

    `rewards/accuracies` is the share of pairs whose chosen reward is the higher one; a tie, as
    every pair is before the first step, counts half.
    """
    loss, chosen_rewards, rejected_rewards, chosen, rejected = columns.cpu()
    margins = chosen_rewards - rejected_rewards
    logged = {
        "loss": loss,
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/accuracies": (margins.sign() + 1) / 2,
        "rewards/margins": margins,
        "logps/chosen": chosen,
        "logps/rejected": rejected,
    }
    return {name: float(values.double().mean()) for name, values in logged.items()}
