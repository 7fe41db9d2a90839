"""What a training step logs, under the field's names."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dpo.loss import DPOLoss


def pair_columns(
    result: DPOLoss, chosen: Tensor, rejected: Tensor, weights: Tensor, questions: Tensor
) -> Tensor:
    """Stack what is logged of a micro-batch's pairs: (7, P), for `step_metrics` to average.

    Log-probs of the chosen and the rejected answers, the weight of each pair and its question.
    """
    return torch.stack([*result, chosen, rejected, weights, questions]).detach()


def step_metrics(columns: Tensor) -> dict[str, float]:
    """Average `pair_columns` of all pairs of a step: (7, P); log-probs and rewards in nats.

    `loss` is what was minimised: weighted as it was. `rewards/accuracies` is the share of pairs
    whose chosen reward is the higher one; a tie, as every pair is before the first step, counts
    half, and what float32 rounds off the two log-probs makes no winner. Of the step's questions,
    `rewards/all_beaten` is the share whose chosen answer beats every rejected one, and
    `rewards/worst_margin` the mean margin to the strongest of them.
    """
    loss, chosen_rewards, rejected_rewards, chosen, rejected, weights, questions = columns.cpu()
    margins = chosen_rewards - rejected_rewards
    rounding = torch.finfo(torch.float32).eps * (chosen.abs() + rejected.abs())
    won = (torch.where(margins.abs() <= rounding, 0, margins.sign()) + 1) / 2
    by_question = [questions == q for q in questions.unique()]
    worst = torch.stack([margins[one].min() for one in by_question])
    logged = {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/accuracies": won,
        "rewards/margins": margins,
        "rewards/all_beaten": torch.stack([won[one].min() for one in by_question]),
        "rewards/worst_margin": worst,
        "logps/chosen": chosen,
        "logps/rejected": rejected,
    }
    means = {name: float(values.double().mean()) for name, values in logged.items()}
    return {"loss": float((loss.double() * weights).sum()), **means}


def not_finite(metrics: Mapping[str, float]) -> str:
    """Say which of a step's metrics are not finite; "" if all are."""
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    return f"{', '.join(wrong)} not finite" if wrong else ""


def in_short(metrics: Mapping[str, float]) -> str:
    """Say how a step went, in a few words."""
    if "loss" not in metrics:
        return f"{metrics['skipped']} steps skipped"
    return f"loss {metrics['loss']:.3f}, accuracy {metrics['rewards/accuracies']:.2f}"
