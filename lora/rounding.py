"""What rounding to the merged dtype does to the deltas, and how far it may move the scores."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lora.adapter import lora_layers
from lora.base.folders import weight_files
from lora.base.quantise import dense_weight
from lora.merging import merged_weight

# What rounding alone was seen to move: nats a token, mean over answers.
BY_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


class Rounding(NamedTuple):
    """What rounding to the merged dtype does to the deltas, over all patched weights."""

    changed: float  # share of weights whose stored value moved, 0 to 1
    error: float  # |realised delta - delta| / |delta|, Frobenius: 0 is exact, 1 is nothing kept


class RoundingSums:
    """Gathers a `Rounding` weight by weight."""

    def __init__(self) -> None:
        self.moved = self.weights = 0
        self.error = self.norm = 0.0

    def add(self, before: Tensor, delta: Tensor, merged: Tensor) -> None:
        """Count one weight before and after its delta was added."""
        realised = merged.float() - before.float()
        self.moved += int((realised != 0).sum())
        self.weights += realised.numel()
        self.error += float((realised - delta).square().sum())
        self.norm += float(delta.square().sum())

    def result(self) -> Rounding:
        """Return the shares over all weights so far."""
        error = (self.error / self.norm) ** 0.5 if self.norm else 0.0
        return Rounding(self.moved / max(self.weights, 1), error)


@torch.no_grad()
def merge_rounding(model: nn.Module, dtype: torch.dtype | None = None) -> Rounding:
    """Measure, before merging, how much of the deltas a merge into `dtype` would keep."""
    sums = RoundingSums()
    for layer in lora_layers(model).values():
        sums.add(dense_weight(layer.base), layer.delta(), merged_weight(layer, dtype))
    return sums.result()


def allowed_difference(stored: torch.dtype, computed: torch.dtype, moved: float) -> float:
    """Return how far merged model and base + adapter may be apart, in nats a token, on average.

    It is a quarter of what the adapter moves, since a delta that was left out would move the scores
    by all of that, and one of the wrong sign by twice as much. It is no less than what rounding was
    seen to move by itself, and no more than five times that. Where both were scored in float32, the
    weights alone are rounded, and not the sums, which leaves a fifth of it.

    `stored` is the dtype of the merged weights, `computed` the one in which both were scored, and
    `moved` the mean difference between base and base + adapter, in nats a token.
    """
    finest = BY_ROUNDING[torch.float32]  # float64 rounds less
    least = max(BY_ROUNDING.get(dtype, finest) for dtype in (stored, computed))
    least /= 5 if computed == torch.float32 else 1
    return min(max(moved / 4, least), 5 * least)


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of a stored model's weights, by the largest tensor of its first shard."""
    with safe_open(weight_files(folder)[0], framework="pt") as file:
        largest = max(file.keys(), key=lambda key: math.prod(file.get_slice(key).get_shape()))
        dtype: torch.dtype = file.get_tensor(largest).dtype
        return dtype
