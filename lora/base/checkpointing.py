"""Gradient checkpointing: a decoder layer keeps its input and computes the rest again backward.

Chen et al. 2016, arXiv 1604.06174. A third more computing for a fraction of the memory; gradients
are the same, since the random generators are set back too.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from torch.utils.checkpoint import checkpoint

from lora.base.layers import decoder_layers

Checkpointing = Literal["auto", "on", "off"]


@contextmanager
def layers_checkpointed(model: Any, on: bool) -> Iterator[None]:
    """Within the block the decoder layers keep no activations for backward, if `on`."""
    layers: Iterable[Any] = decoder_layers(model) if on else ()
    try:
        for layer in layers:  # an instance's `forward` goes before its class's
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
