"""The size of an adapter: its delta times a factor, dW = factor (alpha / r) A B.

B is what is multiplied. The alpha and the rank stay, so that an adapter of any size is saved as any
other, and layers stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lora.adapter import adapter_parameters, data_swapped


@contextmanager
def adapter_scaled(model: nn.Module, factor: float) -> Iterator[None]:
    """Within the block every delta is `factor` times its size; 0 makes the model its base.

    Afterwards every B is the tensor that it was, also when the body raises. Blocks nest, and their
    factors multiply.
    """
    parameters = adapter_parameters(model, "B")
    with data_swapped(parameters, [parameter.data * factor for parameter in parameters]):
        yield


@torch.no_grad()
def scale_adapter(model: nn.Module, factor: float) -> None:
    """Multiply every delta by `factor` for good."""
    for parameter in adapter_parameters(model, "B"):
        parameter.mul_(factor)
