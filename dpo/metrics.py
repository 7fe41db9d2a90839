"""What a training step logs, under the field's names."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class PairLog(NamedTuple):
    """What is logged of some pairs; every tensor is (P,), in nats where not said."""

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    chosen_logps: Tensor  # log pi(y+|x)
    rejected_logps: Tensor
    weights: Tensor  # of the pair in its step, whose weights sum to 1
    questions: Tensor  # the pair's question, a number

    def detached(self) -> Self:
        """Return the same numbers without the graph that made them."""
        return type(self)(*(tensor.detach() for tensor in self))


class StepLog(NamedTuple):
    """What is logged of an optimizer step, or of a part of it."""

    pairs: PairLog
    as_pairs: int = 0  # tokens that its pairs of whole texts would have, without padding
    as_tries: int = 0  # tokens fed
    anchor: Tensor | float = 0.0  # mean over its prompts of KL(pi_ref || pi), nats a token
    stopped: int = 0  # a signal that asked for the end

    @classmethod
    def joined(cls, parts: Iterable["StepLog"], stopped: int = 0) -> "StepLog":
        """Join the logs of micro-batches, or of processes, in their order."""
        parts = list(parts) or [cls(PairLog(*torch.zeros(len(PairLog._fields), 0)))]
        logs, as_pairs, as_tries, anchors, signals = zip(*parts, strict=True)
        columns = [torch.cat(column).float() for column in zip(*logs, strict=True)]
        # A float32 holds a question's number exactly up to 2^24.
        pairs = PairLog(*torch.stack(columns))
        return cls(pairs, sum(as_pairs), sum(as_tries), sum(anchors), max(stopped, *signals))

    def to(self, device: Any, non_blocking: bool = False) -> "StepLog":
        """Return the same log with its numbers on a device."""
        columns = torch.stack(self.pairs).to(device, non_blocking=non_blocking)
        anchor = torch.as_tensor(self.anchor).to(device, non_blocking=non_blocking)
        return self._replace(pairs=PairLog(*columns), anchor=anchor)


def step_metrics(log: PairLog, beta: float) -> dict[str, float]:
    """Average over the pairs of a step; log-probs and rewards, beta times log-ratios, are in nats.

    `loss` is that of the preferences, weighted as it was. `rewards/accuracies` is the share of
    pairs whose chosen reward is the higher one. Ties count half, and so do differences that
    float32's rounding of the two log-probs explains: before the first step every pair is a tie.
    Of the step's questions, `rewards/all_beaten` is the share that has all its pairs in the right
    order, and `rewards/worst_margin` the mean of their smallest margins.
    """
    margins = log.chosen_rewards - log.rejected_rewards
    rounding = torch.finfo(torch.float32).eps * (log.chosen_logps.abs() + log.rejected_logps.abs())
    won = (torch.where(margins.abs() <= beta * rounding, 0, margins.sign()) + 1) / 2
    by_question = [log.questions == q for q in log.questions.unique()]
    logged = {
        "rewards/chosen": log.chosen_rewards,
        "rewards/rejected": log.rejected_rewards,
        "rewards/accuracies": won,
        "rewards/margins": margins,
        "rewards/all_beaten": torch.stack([won[one].min() for one in by_question]),
        "rewards/worst_margin": torch.stack([margins[one].min() for one in by_question]),
        "logps/chosen": log.chosen_logps,
        "logps/rejected": log.rejected_logps,
    }
    means = {name: float(values.double().mean()) for name, values in logged.items()}
    return {"loss": float((log.loss.double() * log.weights).sum()), **means}


def spoilt(log: StepLog, norm: Tensor) -> Tensor:
    """Return () 1 where a number of a step, or the norm of its gradients, is not finite, else 0."""
    here = log.to(norm.device)
    columns = (column.sum() for column in here.pairs)
    numbers = torch.stack([*columns, torch.as_tensor(here.anchor), norm])
    return 1 - numbers.isfinite().all().float()


def not_finite(metrics: Mapping[str, float]) -> str:
    """Say which of a step's metrics are not finite; "" if all are."""
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    return f"{', '.join(wrong)} not finite" if wrong else ""


def in_short(metrics: Mapping[str, float]) -> str:
    """Say how a step went, in a few words."""
    if "loss" not in metrics:
        return f"{metrics['skipped']} steps skipped"
    return f"loss {metrics['loss']:.3f}, accuracy {metrics['rewards/accuracies']:.2f}"
