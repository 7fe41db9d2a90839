"""Merging an adapter into its base: W' = round(W + dW), added in float32 and rounded once."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora.adapter import lora_layers
from lora.base.quantise import dense_linear, dense_weight, dequantise, is_quantised
from lora.errors import ModelError
from lora.files import whole_folder
from lora.layer import LoRALinear


def merged_weight(layer: LoRALinear, dtype: torch.dtype | None = None) -> Tensor:
    """Return round(W + dW), (out, in), in `dtype` or the base weight's own.

    Of a quantised base, W is the dequantised weight.
    """
    weight = dense_weight(layer.base)
    return (weight.float() + layer.delta()).to(dtype or weight.dtype)  # eq. (3) of docs/math.md


@torch.no_grad()
def merge_lora(model: Any, dtype: torch.dtype | None = None) -> Any:
    """Replace every LoRALinear by its base layer with the delta added; return the model.

    The sum is float32 and rounded once. With `dtype`, the whole model is returned in it. Rounding
    to bfloat16 (8 significant bits) loses deltas below 2^-9 of a weight; float32 keeps them.

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
    if dtype:
        for parameter in model.parameters():  # buffers, such as RoPE's frequencies, stay
            parameter.data = parameter.data.to(dtype)
    return model


def save_merged(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a merged model and its tokenizer so that `from_pretrained(folder)` loads both."""
    with whole_folder(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
