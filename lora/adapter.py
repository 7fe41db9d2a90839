"""Adding adapters to a model, and switching them off."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lora.layer import LoRALinear
from lora.targets import Patterns, Targets, check_ranks, match_targets


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    target_modules: Targets = ("q_proj", "v_proj"),
    patterns: Patterns = Patterns(),
) -> list[str]:
    """Freeze `model`, wrap the linear layers that the targets mean, return their names.

    Args:
        model: any module; its parameters are frozen.
        rank: r.
        alpha: deltas are scaled by alpha / r.
        dropout: share of x dropped on the LoRA path.
        target_modules: see `match_targets`.
        patterns: the rank and alpha of layers that differ, and whether the scale is rsLoRA's.

    Raises:
        ModelError: a target matches nothing or no linear layer, an adapter is there already, or a
            rank does not fit. No layer is replaced then.
    """
    bases: Any = {n: model.get_submodule(n) for n in match_targets(model, target_modules)}
    own = {name: patterns.of(name, rank, alpha) for name in bases}  # (r, alpha)
    check_ranks(bases, {name: r for name, (r, _) in own.items()})
    found: dict[str, LoRALinear] = {}
    first: dict[tuple[int, int], str] = {}  # layers that share their weights share the adapter
    for name, base in bases.items():
        twin = first.setdefault((id(base.weight), id(base.bias)), name)
        found[name] = found.get(twin) or LoRALinear(base, *own[name], dropout)
    model.requires_grad_(False)
    for name, layer in found.items():
        model.set_submodule(name, layer)
    return list(found)


def remove_lora(model: nn.Module) -> None:
    """Put every base layer back where its adapter was: the model is bitwise what it was before."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.base)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return {module name: layer} of every LoRALinear; one at two places has both names."""
    every = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in every if isinstance(module, LoRALinear)}


def adapter_parameters(model: nn.Module, names: str = "AB") -> list[nn.Parameter]:
    """Return every A and B, all that is trained, or those of one name."""
    layers = dict.fromkeys(lora_layers(model).values())
    return [getattr(layer, name) for layer in layers for name in names]


def train_adapters(model: nn.Module) -> None:
    """Switch LoRA dropout on and keep the base in eval mode.

    Dropout of the base itself would differ between policy and reference, which share it.
    """
    model.eval()
    for layer in lora_layers(model).values():
        layer.training = True  # `layer.train()` would switch its base too


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Within the block the model is its frozen base in eval mode: the DPO reference.

    Nests, and restores every layer's switch and every module's mode also when the body raises.
    """
    switches = [(layer, layer.enabled) for layer in lora_layers(model).values()]
    try:
        for layer, _ in switches:
            layer.enabled = False
        with _eval_mode(model):
            yield
    finally:
        for layer, enabled in switches:
            layer.enabled = enabled


def copy_adapter(model: nn.Module) -> list[Tensor]:
    """Return a copy of every A and B, for `adapter_swapped` and `restore_adapter`."""
    return [parameter.detach().clone() for parameter in adapter_parameters(model)]


@torch.no_grad()
def restore_adapter(model: nn.Module, copy: Sequence[Tensor]) -> None:
    """Copy the values of `copy_adapter` back into every A and B, which stay what is trained."""
    for parameter, value in zip(adapter_parameters(model), copy, strict=True):
        parameter.copy_(value)


@contextmanager
def adapter_swapped(model: nn.Module, copy: Sequence[Tensor]) -> Iterator[None]:
    """Within the block the adapter is one from `copy_adapter`, in eval mode; nothing is copied."""
    with data_swapped(adapter_parameters(model), copy), _eval_mode(model):
        yield


@contextmanager
def data_swapped(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Within the block each parameter holds another tensor; afterwards the one that it had."""
    current = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, current, strict=True):
            parameter.data = value


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Within the block every module is in eval mode, and afterwards in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
