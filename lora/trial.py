"""How a model uses its linear layers, found by trial: it calls them, or reads their weights itself.

An adapter changes what a layer returns when it is called. A model that reads the layer's weight or
bias, as Mamba does its `dt_proj`'s, goes past the adapter.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn


class Watched(nn.Module):
    """Stands in for a linear layer, and remembers what an adapter in its place would not bear."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.used = base, ""

    def forward(self, x: Tensor) -> Any:
        """Return what the layer returns, which should be one tensor."""
        base: Any = self.base
        y = base(x)
        if not isinstance(y, Tensor):
            self.used = f"it returns a {type(y).__name__}"
        elif (x.shape[-1], *y.shape) != (base.in_features, *x.shape[:-1], base.out_features):
            self.used = "it computes something else than a product with its weight"
        return y

    def __getattr__(self, name: str) -> Any:
        """Give what an adapter lacks, and remember it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            self.used = f"the model reads its {name} itself"
            return getattr(self.base, name)


@torch.no_grad()
def used_otherwise(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Return {name: how} of those linear layers that the model does more with than call them.

    The model reads two tokens. What is seen of one layer holds for all whose names end alike, since
    two tokens do not meet every expert. Of a model that cannot read them nothing is known.
    """
    watched = {name: Watched(model.get_submodule(name)) for name in names}
    try:
        for name, layer in watched.items():
            model.set_submodule(name, layer)
        with suppress(Exception):  # on torch's meta device, say
            tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
            model(input_ids=tokens, use_cache=False)
    finally:
        for name, layer in watched.items():
            model.set_submodule(name, layer.base)
    found = {name.rpartition(".")[2]: layer.used for name, layer in watched.items() if layer.used}
    ends = {name: name.rpartition(".")[2] for name in watched}
    return {name: found[end] for name, end in ends.items() if end in found}
