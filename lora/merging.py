"""Merge by addition: W' = round(W + dW), added in float32 and rounded once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lora.adapter import lora_layers
from lora.base import Base
from lora.files import written_whole
from lora.layer import LoRALinear, ModelError
from lora.quantise import dense_linear, dense_weight, dequantise, is_quantised

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # nats a token, mean


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


def merged_weight(layer: LoRALinear, dtype: torch.dtype | None = None) -> Tensor:
    """Return round(W + dW) as (out, in), in `dtype` or the base weight's own; W dequantised."""
    weight = dense_weight(layer.base)
    return (weight.float() + layer.delta()).to(dtype or weight.dtype)  # eq. (3) of docs/math.md


@torch.no_grad()
def merge_rounding(model: nn.Module, dtype: torch.dtype | None = None) -> Rounding:
    """Measure, before merging, how much of the deltas a merge into `dtype` would keep."""
    sums = RoundingSums()
    for layer in lora_layers(model).values():
        sums.add(dense_weight(layer.base), layer.delta(), merged_weight(layer, dtype))
    return sums.result()


@torch.no_grad()
def merge_lora(model: Any, dtype: torch.dtype | None = None) -> Any:
    """Replace every LoRALinear by its base layer with the delta added; return the model.

    The sum is float32 and rounded once. With `dtype`, the whole model is returned in it; into
    float32 nothing of a delta is lost, into bfloat16 deltas below 2^-9 of a weight are.

    A quantised base is dequantised as a whole, which gives the policy that was trained and
    evaluated; quantising the sum again would erase the adapter.

    Raises:
        ModelError: there is nothing to merge (merging twice).
    """
    layers = lora_layers(model)
    if not layers:
        raise ModelError("the model has no LoRA layer to merge; was it merged before?")
    quantised = any(is_quantised(layer.base) for layer in layers.values())
    stored: Any = dtype or (model.dtype if quantised else None)
    for name, layer in layers.items():
        model.set_submodule(name, dense_linear(layer.base, merged_weight(layer, stored)))
    if quantised:
        dequantise(model, stored)
    for parameter in model.parameters() if dtype else ():
        parameter.data = parameter.data.to(dtype)  # buffers, such as RoPE's frequencies, stay
    return model


def save_merged(model: Any, base: Base, folder: Path) -> None:
    """Write a merged model and its tokenizer so that `from_pretrained(folder)` loads both."""
    with written_whole(folder) as new:
        model.save_pretrained(new)
        base.tokenizer.save_pretrained(new)


def rounding_explains(stored: torch.dtype, computed: torch.dtype, moved: float) -> float:
    """Return how far apart base + adapter and merged model may be, in nats a token, on average.

    What the tolerance of either dtype allows, or a quarter of what the adapter moves: a delta left
    out moves the scores by all of that, one of the wrong sign by twice as much.

    Args:
        stored: the merged weights' dtype.
        computed: that of base + adapter.
        moved: the mean difference between the base and base + adapter, in nats a token.
    """
    return max(TOLERANCE[stored], TOLERANCE[computed], moved / 4)


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of a stored model's weights, by the largest tensor of its first shard."""
    with safe_open(min(folder.glob("*.safetensors")), framework="pt") as file:
        sizes: Mapping[str, Any] = {k: file.get_slice(k).get_shape() for k in file.keys()}
        largest = max(sizes, key=lambda k: torch.Size(sizes[k]).numel())
        dtype: torch.dtype = file.get_tensor(largest).dtype
        return dtype
