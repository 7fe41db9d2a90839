"""Weights in blocks: the very products, for more memory and less time."""

import gc
from types import SimpleNamespace

import pytest
import torch
from conftest import randomise, relative_error, small_model
from torch import nn

from data import build_trie, collate
from dpo import answer_logps
from lora import (
    adapter_parameters,
    add_lora,
    bytes_of_blocks,
    merge_lora,
    train_adapters,
    weights_in_blocks,
)
from lora.base import blocks as blocks_of
from lora.base.blocks import LinearInBlocks, blocks_work
from lora.base.compiling import layers_compiled

BATCH = collate([build_trie((1, 5, 6, 7), [(10, 11, 12, 2), (10, 13, 2), (14, 2)])])

pytestmark = pytest.mark.skipif(not blocks_work(), reason="no bfloat16 products in oneDNN here")


def adapted(architecture="gemma2", dtype=torch.bfloat16):
    model = small_model(architecture, scale=0.1).to(dtype)
    add_lora(model, rank=4, alpha=8)
    randomise(model)
    train_adapters(model)
    return model


def step(model):
    logps = answer_logps(model, BATCH)
    logps.sum().backward()
    found = torch.cat([p.grad.flatten() for p in adapter_parameters(model)])
    model.zero_grad()
    return logps.detach(), found


@pytest.mark.parametrize("rows", [1, 48, 96, 500])
@pytest.mark.parametrize("bias", [False, True])
def test_products_and_gradients_are_those_of_the_weight_as_stored(rows, bias):
    torch.manual_seed(0)
    layer = nn.Linear(640, 256, bias=bias).bfloat16().requires_grad_(False)
    model = SimpleNamespace(base_model=layer, device=torch.device("cpu"))
    x = torch.randn(2, rows, 640).bfloat16().requires_grad_()
    dy = torch.randn(2, rows, 256).bfloat16()

    def both():
        y = layer(x)
        return y.detach(), torch.autograd.grad(y, x, dy)[0]

    plain = both()
    exact = layer.weight.double()
    truth = x.double() @ exact.T + (layer.bias.double() if bias else 0), dy.double() @ exact
    with weights_in_blocks(model) as count:
        assert count == 1 and type(layer) is LinearInBlocks
        mine = both()
    for found, stored, true in zip(mine, plain, truth, strict=True):
        error = relative_error(found.double(), true)
        assert error <= 1.01 * relative_error(stored.double(), true) < 2**-8


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen2"])
def test_a_model_in_blocks_has_the_scores_and_gradients_it_had(architecture, monkeypatch):
    model = adapted(architecture)
    plain, expected = step(model)
    calls = []
    product = blocks_of._product

    def counted(*given):
        calls.append(given)
        return product(*given)

    with weights_in_blocks(model) as count:
        assert count == 4 * 7  # q, k, v, o, gate, up, down of four layers
        monkeypatch.setattr(blocks_of, "_product", counted)
        logps, found = step(model)
    # Forward all; backward what has an adapter below it, of the first layer's three inputs none.
    assert len(calls) == 2 * count - 3
    assert all(map(torch.equal, step(model), (plain, expected)))  # as they were again
    assert len(calls) == 2 * count - 3
    assert relative_error(logps, plain) < 2**-8
    assert relative_error(found, expected) < 0.05
    assert type(model.get_output_embeddings()) is nn.Linear


def test_the_blocks_take_the_bytes_that_are_planned():
    model = adapted()
    expected = sum(2 * m.weight.nbytes for m in model.model.modules() if type(m) is nn.Linear)
    assert bytes_of_blocks(model) == bytes_of_blocks(model.to("meta")) == expected > 0
    assert bytes_of_blocks(adapted(dtype=torch.float32)) == 0


class OtherLinear(nn.Linear):
    """A linear layer with a way of its own."""


def test_elsewhere_layers_stay_as_they_are(monkeypatch):
    def count(model, on=True):
        with weights_in_blocks(model, on) as found:
            return found

    assert count(adapted()) == 4 * 7
    assert count(adapted(dtype=torch.float32)) == count(adapted(), on=False) == 0
    assert count(adapted().to("meta")) == 0
    model = adapted()
    model.model.layers[0].mlp.up_proj.__class__ = OtherLinear  # such as a quantised one
    assert count(model) == 4 * 7 - 1
    assert type(model.model.layers[0].mlp.up_proj) is OtherLinear
    monkeypatch.setattr(blocks_of, "_in_blocks", lambda weight: weight.flip(0))
    assert not blocks_work()
    assert count(adapted()) == 0

    def lacking(weight):
        raise AttributeError("no such operator")

    monkeypatch.setattr(blocks_of, "_in_blocks", lacking)
    assert not blocks_work()


def test_a_changed_weight_is_read_as_it_is_stored():
    model = adapted()
    layer = model.model.layers[1].mlp.up_proj
    x = torch.randn(3, 32).bfloat16()
    with weights_in_blocks(model), torch.no_grad():
        layer.weight.mul_(2)
        assert torch.equal(layer(x), x @ layer.weight.T)
        layer.weight.data = torch.zeros_like(layer.weight)
        assert not layer(x).any()


def test_a_merged_model_multiplies_by_the_merged_weights():
    model = adapted()
    expected, _ = step(model)
    moved = small_model("gemma2", scale=0.1).bfloat16()
    before = answer_logps(moved, BATCH).detach()
    with weights_in_blocks(model):
        merged = answer_logps(merge_lora(model), BATCH).detach()
    assert relative_error(merged, expected) < 0.1 * relative_error(before, expected)


def test_blocks_go_at_the_end_and_where_something_fails(monkeypatch):
    model = adapted()
    blocks = blocks_of._blocks
    with weights_in_blocks(model):
        assert len(blocks) == 4 * 7
    assert not blocks
    made, in_blocks = [], blocks_of._in_blocks

    def failing(weight):
        if len(made) == 20 and len(weight) != 64:  # not in the trial
            raise MemoryError
        made.append(weight)
        return in_blocks(weight)

    monkeypatch.setattr(blocks_of, "_in_blocks", failing)
    with pytest.raises(MemoryError), weights_in_blocks(model):
        pass
    gc.collect()
    assert not blocks
    assert not any(type(layer) is LinearInBlocks for layer in model.modules())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_layers_multiply_by_the_blocks(monkeypatch):
    model = adapted()
    expected = step(model)
    calls, product = [], blocks_of._product

    def counted(*given):
        calls.append(given)
        return product(*given)

    monkeypatch.setattr(blocks_of, "_product", counted)
    with layers_compiled(model, "on", steps=1), weights_in_blocks(model):
        found = step(model)
    assert len(calls) >= 2 * 4 * 7 - 3
    assert not torch._dynamo.utils.counters["graph_break"]
    for mine, other in zip(found, expected, strict=True):
        assert relative_error(mine, other) < 0.05
