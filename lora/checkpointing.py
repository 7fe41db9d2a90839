"""Gradient checkpointing: a decoder layer keeps its input and computes the rest again backward.

Chen et al. 2016, arXiv 1604.06174. A third more computing for a fraction of the memory; gradients
are the same, since the random generators are set back too.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from torch.utils.checkpoint import checkpoint

from lora.attention import attention_by_hand
from lora.compiling import Compile, decoder_layers, layers_compiled
from lora.layer import ModelError
from lora.norms import norms_by_hand
from lora.packing import packed

Checkpointing = Literal["auto", "on", "off"]


@contextmanager
def layers_as_asked(
    model: Any, compiled: Compile, checkpointing: Checkpointing, steps: int, in_blocks: bool = False
) -> Iterator[None]:
    """Within the block the decoder layers are compiled, or computed again backward, as asked.

    Eager attention is computed by hand, and so are RMS norms where layers are not compiled, which
    fuses them by itself. With `in_blocks` weights are packed where that can be.

    Raises:
        ModelError: both are asked for; or as `layers_compiled`.
    """
    again = checkpointing == "on"
    if again and compiled == "on":
        raise ModelError("--compile on and --checkpointing on do not go together; choose one")
    with (
        layers_checkpointed(model, again),
        layers_compiled(model, "off" if again else compiled, steps) as on,
        norms_by_hand(model, not on),
        attention_by_hand(model),
        packed(model, in_blocks),
    ):
        yield


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
