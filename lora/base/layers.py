"""The decoder layers of a causal language model."""

from typing import Any

from torch import nn


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the layers of the model's body: its longest list of modules."""
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())
