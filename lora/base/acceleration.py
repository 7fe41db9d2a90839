"""What makes the frozen layers fast to train through, all of it together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora.base.attention import attention_by_hand
from lora.base.blocks import weights_in_blocks
from lora.base.checkpointing import Checkpointing, layers_checkpointed
from lora.base.compiling import Compile, layers_compiled
from lora.base.norms import norms_by_hand
from lora.errors import ModelError


@contextmanager
def layers_as_asked(
    model: Any, compiled: Compile, checkpointing: Checkpointing, steps: int, in_blocks: bool = False
) -> Iterator[None]:
    """Within the block the decoder layers are compiled, or computed again backward, as asked.

    Eager attention is computed by hand, and so are RMS norms where layers are not compiled, which
    fuses them by itself. With `in_blocks` the weights lie in blocks too, where that can be.

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
        weights_in_blocks(model, in_blocks),
    ):
        yield
