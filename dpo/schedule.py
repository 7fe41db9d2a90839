"""The learning rate over the steps of a run."""

import math
from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]


def schedule_factor(step: int, steps: int, warmup_ratio: float, schedule: Schedule) -> float:
    """Return what step 0 <= step < steps multiplies the peak learning rate by, above 0 to 1.

    warmup is `warmup_ratio` of the steps, rounded:

    warm-up    (step + 1) / (warmup + 1), so that no step is spent at rate 0
    linear     (steps - step) / (steps - warmup)
    cosine     (1 + cos(pi (step - warmup) / (steps - warmup))) / 2
    constant   1
    """
    warmup = round(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / (steps - warmup)
    return 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
