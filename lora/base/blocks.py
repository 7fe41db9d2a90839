"""Frozen weights once more, in the blocks that a CPU's matrix units read.

oneDNN multiplies bfloat16 matrices block by block, and brings a weight into blocks at every
product. At the hundred tokens of a step that takes a quarter of the product's time; here it is done
once for y = x W and once for its gradient dL/dx = dL/dy W^T, at the price of two more copies of the
weight. PyTorch's own compiler packs the weights of models that it freezes by the same operators.
"""

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 96  # for which oneDNN chooses the blocks; with AMX they are the same for all numbers of rows


@dataclass(eq=False)
class _Blocks:
    """A weight (out, in) as stored, and in blocks: for x W and for dy W^T."""

    weight: Tensor  # kept, so that no other comes to lie at its address
    version: int
    ahead: Tensor
    back: Tensor


# By the address of the weight, since a compiled graph hands on nothing but plain tensors. A layer
# owns its blocks, and they go with it.
_blocks = weakref.WeakValueDictionary[int, _Blocks]()


def _of(weight: Tensor) -> _Blocks | None:
    """Return a weight's blocks, if it has some and was not changed since, as by a merge."""
    found = _blocks.get(weight.data_ptr())
    return found if found and found.version == weight._version else None


def _product(x: Tensor, blocks: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W + b from W in blocks."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")
    return y


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    blocks = _of(weight)
    return _product(x, blocks.ahead, bias) if blocks else F.linear(x, weight, bias)


def _linear_backward(dy: Tensor, weight: Tensor) -> Tensor:
    blocks = _of(weight)
    return _product(dy, blocks.back) if blocks else dy @ weight


# Operators, so that the compiler, which cannot look into blocks, takes them as they are.
_library = torch.library.Library("trie_dpo", "DEF")
_library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.define("linear_backward(Tensor dy, Tensor weight) -> Tensor")
_library.impl("linear", _linear, "CPU")
_library.impl("linear_backward", _linear_backward, "CPU")
torch.library.register_autograd(
    "trie_dpo::linear",  # dL/dx alone: weight and bias are frozen
    lambda ctx, dy: (torch.ops.trie_dpo.linear_backward(dy, *ctx.saved_tensors), None, None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
    lib=_library,
)
_shapes = partial(torch.library.register_fake, lib=_library)
_shapes("trie_dpo::linear", lambda x, w, bias: x.new_empty(*x.shape[:-1], w.shape[0]))
_shapes("trie_dpo::linear_backward", lambda dy, w: dy.new_empty(*dy.shape[:-1], w.shape[1]))


class LinearInBlocks(nn.Linear):
    """A frozen linear layer whose weight lies there in blocks, too."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W + b: x (..., in) -> (..., out)."""
        y: Tensor = torch.ops.trie_dpo.linear(x, self.weight, self.bias)
        return y


def _can_have_blocks(model: Any) -> list[nn.Linear]:
    return [
        layer
        for layer in model.base_model.modules()
        if type(layer) is nn.Linear  # no quantised one
        and layer.weight.dtype == torch.bfloat16
        and not hasattr(layer.weight, "full_tensor")  # nor one split among processes
    ]


def bytes_of_blocks(model: Any) -> int:
    """Return what the blocks of a model take on a CPU; a model on the meta device will do."""
    return sum(2 * layer.weight.nbytes for layer in _can_have_blocks(model)) if blocks_work() else 0


@contextmanager
def weights_in_blocks(model: Any, on: bool = True) -> Iterator[int]:
    """Within the block the model's frozen linear layers have their blocks, if `on`; yield how many.

    Elsewhere than on a CPU, in another dtype than bfloat16 and where PyTorch lacks the operators
    none have some. A weight that is changed or replaced is read as it is stored again.
    """
    layers = _can_have_blocks(model) if on and model.device.type == "cpu" and blocks_work() else []
    try:
        for layer in layers:
            weight = layer.weight.detach()
            blocks = _Blocks(weight, weight._version, _in_blocks(weight), _in_blocks(weight.T))
            vars(layer)["blocks"] = _blocks[weight.data_ptr()] = blocks
            layer.__class__ = LinearInBlocks
        yield len(layers)
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear
            vars(layer).pop("blocks", None)
        if layers:
            trim_memory()


def _in_blocks(weight: Tensor) -> Tensor:
    blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    return blocks


def blocks_work() -> bool:
    """Tell whether this build of PyTorch multiplies by blocks here, found by trial."""
    weight = torch.sin(torch.arange(64 * 32.0)).view(64, 32).bfloat16()
    try:
        found = _product(weight, _in_blocks(weight))
    except (AttributeError, RuntimeError):  # no oneDNN, or none for bfloat16
        return False
    return torch.allclose(found, F.linear(weight, weight), rtol=2**-7, atol=2**-7)


def trim_memory() -> None:
    """Give the system back what was freed; glibc keeps it, in pieces that later tensors do not fit.

    Another C library has no such call, and then nothing is done.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
