"""Layers computed again backward: the same gradients, dropout included, from fewer kept bytes."""

import pytest
import torch
from conftest import randomise, relative_error, small_model

from data import build_trie, collate
from dpo import answer_logps
from lora import (
    ModelError,
    adapter_parameters,
    add_lora,
    decoder_layers,
    layers_as_asked,
    layers_checkpointed,
    train_adapters,
)

BATCH = collate([build_trie((1, 5, 6, 7, 8, 9), [(10, 11, 12, 2), (10, 13, 2), (14, 2)])])


def gradients(model, on):
    """Of a step with dropout, and the bytes that its forward keeps for backward."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    train_adapters(model)
    with (
        layers_checkpointed(model, on),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        loss = answer_logps(model, BATCH).square().sum()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with layers_checkpointed(model, on):
        loss.backward()
    found = torch.cat([p.grad.flatten() for p in adapter_parameters(model)])
    model.zero_grad()
    return found, sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "qwen3"])
def test_gradients_are_the_same_and_less_is_kept(architecture):
    model = small_model(architecture)
    add_lora(model, rank=4, alpha=8, dropout=0.3)
    randomise(model)
    plain, all_kept = gradients(model, on=False)
    again, few_kept = gradients(model, on=True)
    assert relative_error(again, plain) < 1e-6
    assert few_kept < all_kept / 3
    assert not any("forward" in vars(layer) for layer in decoder_layers(model))


def test_compiling_and_computing_again_do_not_go_together():
    model = small_model("llama")
    with pytest.raises(ModelError, match="do not go together"):
        with layers_as_asked(model, "on", "on", 5000):
            pass
    with layers_as_asked(model, "auto", "on", 5000):  # auto gives way
        assert decoder_layers(model)[0]._compiled_call_impl is None
        assert "forward" in vars(decoder_layers(model)[0])
