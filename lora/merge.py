"""Merge by addition: W' = round(W + dW), added in float32 and rounded once."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora.adapter import lora_layers
from lora.base import Base
from lora.files import written_whole
from lora.layer import LoRALinear, ModelError


class Rounding(NamedTuple):
    """What rounding to the merged dtype does to the deltas, over all patched weights."""

    changed: float  # share of weights whose stored value moved, 0 to 1
    error: float  # |realised delta - delta| / |delta|, Frobenius: 0 is exact, 1 is nothing kept


def merged_weight(layer: LoRALinear, dtype: torch.dtype | None = None) -> Tensor:
    """Return round(W + dW) as (out, in), in `dtype` or the base weight's own."""
    weight = layer.base.weight
    return (weight.float() + layer.delta()).to(dtype or weight.dtype)


@torch.no_grad()
def merge_rounding(model: nn.Module, dtype: torch.dtype | None = None) -> Rounding:
    """Measure, before merging, how much of the deltas a merge into `dtype` would keep."""
    moved = weights = 0
    error = norm = 0.0
    for layer in lora_layers(model).values():
        before = layer.base.weight.float()
        realised = merged_weight(layer, dtype).float() - before
        delta = layer.delta()
        moved += int((realised != 0).sum())
        weights += realised.numel()
        error += float((realised - delta).square().sum())
        norm += float(delta.square().sum())
    return Rounding(moved / max(weights, 1), (error / norm) ** 0.5 if norm else 0.0)


@torch.no_grad()
def merge_lora(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Replace every LoRALinear by its base layer with the delta added; return the model.

    The sum is float32 and rounded once. With `dtype`, the whole model is returned in it; into
    float32 nothing of a delta is lost, into bfloat16 deltas below 2^-9 of a weight are.

    Raises:
        ModelError: there is nothing to merge (merging twice), or a base layer is quantised.
    """
    layers = lora_layers(model)
    if not layers:
        raise ModelError("the model has no LoRA layer to merge; was it merged before?")
    for name, layer in layers.items():
        if not layer.base.weight.is_floating_point():
            raise ModelError(f"{name} is quantised; requantising would erase the adapter")
    for name, layer in layers.items():
        layer.base.weight = nn.Parameter(merged_weight(layer, dtype), requires_grad=False)
        model.set_submodule(name, layer.base)
    for parameter in model.parameters() if dtype else ():
        parameter.data = parameter.data.to(dtype)  # buffers, such as RoPE's frequencies, stay
    return model


def save_merged(model: Any, base: Base, folder: Path) -> None:
    """Write a merged model and its tokenizer so that `from_pretrained(folder)` loads both."""
    with written_whole(folder) as new:
        model.save_pretrained(new)
        base.tokenizer.save_pretrained(new)
