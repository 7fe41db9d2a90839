"""The adapters in the dtype that the model computes in, all of them cast at once.

A layer casts its A and B at every pass, and multiplies by its scale: six operations of the 700 or
so that two adapters a layer take in a step of Gemma-2 9B. Cast together, they are five in all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lora.adapter import lora_layers
from lora.dropout import drop
from lora.layer import LoRALinear


@contextmanager
def adapters_cast(model: Any) -> Iterator[None]:
    """Within the block every layer computes with A and scale * B, cast to the base's dtype.

    They are leaves of their own. At the block's end their gradients are added to those of A and B,
    which have some already: gradients are added in place.
    """
    layers: list[Any] = list(dict.fromkeys(lora_layers(model).values()))
    masters: list[Any] = [p for layer in layers for p in (layer.A, layer.B)]
    scales = [scale for layer in layers for scale in (1.0, layer.scale)]
    with torch.no_grad():
        casts: list[Any] = [torch.empty_like(p, dtype=model.dtype) for p in masters]
        scaled: list[Any] = list(torch._foreach_mul(masters, scales))
        torch._foreach_copy_(casts, scaled)
    for cast in casts:
        cast.requires_grad_()
    for layer, a, b in zip(layers, casts[::2], casts[1::2], strict=True):
        layer.forward = partial(_forward, layer, a, b)  # goes before its class's
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
    trained = [k for k, cast in enumerate(casts) if cast.grad is not None]
    if trained:
        wide = [scaled[k] for k in trained]
        with torch.no_grad():
            torch._foreach_copy_(wide, [casts[k].grad for k in trained])
            torch._foreach_mul_(wide, [scales[k] for k in trained])
            torch._foreach_add_([masters[k].grad for k in trained], wide)


def _forward(layer: LoRALinear, a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Return x W + dropout(x) a b for b that holds the scale."""
    y: Tensor = layer.base(x)
    if not layer.enabled:
        return y
    kept = 1.0
    if layer.training and layer.dropout:
        x, kept = drop(x, layer.dropout)
    low = x.reshape(-1, x.shape[-1]) @ a
    low = low if kept == 1 else low / kept
    return torch.addmm(y.reshape(-1, y.shape[-1]), low, b).view_as(y)
