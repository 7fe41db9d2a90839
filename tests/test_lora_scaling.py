"""The size of an adapter: the delta times a factor, for a while or for good."""

import json

import pytest
import torch
from conftest import randomise, small_model
from safetensors.torch import load_file
from torch import nn

from lora import (
    adapter_scaled,
    adapter_swapped,
    adapters_disabled,
    add_lora,
    copy_adapter,
    load_adapter,
    lora_layers,
    save_adapter,
    scale_adapter,
)

TOKENS = torch.arange(1, 13)[None]


@pytest.fixture
def model():
    model = small_model("gemma2")
    add_lora(model, rank=2, alpha=4)
    randomise(model)
    return model


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def test_half_an_adapter_by_hand():
    """x = (1, 2), W = 0, A = (1, 1) as a column, B = (10, 20), alpha / r = 3.

    x A = 3, so x dW = 3 * 3 * (10, 20) = (90, 180), and half of it is (45, 90).
    """
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    add_lora(model, rank=1, alpha=3, target_modules=["0"])
    model[0].base.weight.data.zero_()
    model[0].A.data.fill_(1)
    model[0].B.data.copy_(torch.tensor([[10.0, 20.0]]))
    x = torch.tensor([[1.0, 2.0]])
    assert model(x).tolist() == [[90, 180]]
    with adapter_scaled(model, 0.5):
        assert model(x).tolist() == [[45, 90]]
        assert model[0].delta().tolist() == [[15, 15], [30, 30]]  # (out, in), half of 3 A B
        with adapter_scaled(model, 4):  # factors multiply: twice the whole
            assert model(x).tolist() == [[180, 360]]
        assert model(x).tolist() == [[45, 90]]
    assert model(x).tolist() == [[90, 180]]
    scale_adapter(model, 0.1)
    assert model(x).tolist() == [[pytest.approx(9), pytest.approx(18)]]


def test_size_0_is_the_base_and_size_1_the_whole(model):
    whole = logits(model)
    with adapters_disabled(model):
        base = logits(model)
    with adapter_scaled(model, 0.0):
        assert torch.equal(logits(model), base)
    with adapter_scaled(model, 1.0):
        assert torch.equal(logits(model), whole)
    assert not torch.equal(whole, base)


def test_every_b_is_the_same_tensor_afterwards_also_when_the_body_raises(model):
    before = [(layer.B, layer.B.data_ptr()) for layer in lora_layers(model).values()]
    values = [b.detach().clone() for b, _ in before]
    with pytest.raises(ZeroDivisionError), adapter_scaled(model, 1 / 3):
        with adapter_scaled(model, 1 / 7):
            raise ZeroDivisionError
    after = [(layer.B, layer.B.data_ptr()) for layer in lora_layers(model).values()]
    assert [(id(b), place) for b, place in after] == [(id(b), place) for b, place in before]
    assert all(torch.equal(b, value) for (b, _), value in zip(after, values, strict=True))


def test_another_adapter_within_the_block_keeps_its_own_size(model):
    """Such as a reference that the policy is compared with."""
    start = copy_adapter(model)
    expected = logits(model)
    randomise(model, seed=2)
    with adapter_scaled(model, 0.25):
        quarter = logits(model)
        with adapter_swapped(model, start):
            assert torch.equal(logits(model), expected)
        assert torch.equal(logits(model), quarter)


def test_a_scaled_adapter_is_saved_with_its_alpha_and_rank_and_a_smaller_b(model, tmp_path):
    save_adapter(model, tmp_path / "whole", "base")
    with adapter_scaled(model, 0.25):
        quarter = logits(model)
    scale_adapter(model, 0.25)
    assert torch.equal(logits(model), quarter)
    save_adapter(model, tmp_path / "quarter", "base")
    settings = [
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("whole", "quarter")
    ]
    assert settings[0] == settings[1]
    whole, less = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "quarter")
    )
    for name, tensor in whole.items():
        factor = 0.25 if "lora_B" in name else 1
        assert torch.equal(less[name], tensor * factor)
    again = small_model("gemma2")
    load_adapter(again, tmp_path / "quarter")
    assert torch.equal(logits(again), quarter)
