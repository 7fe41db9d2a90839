"""Parity with PEFT, an oracle of the optional extra: never needed at run time."""

import warnings

import pytest
import torch
from conftest import randomise, relative_error, small_model

from lora import add_lora, load_adapter, save_adapter
from lora.adapter import lora_layers

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # between PEFT and newer transformers
]
peft = pytest.importorskip("peft", reason="needs the extra [parity]")
TOKENS = torch.arange(1, 13)[None]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "qwen2"])
def test_our_adapter_gives_the_same_logits_in_peft(architecture, tmp_path):
    model = small_model(architecture)
    add_lora(model, rank=3, alpha=6)
    randomise(model, scale=0.1)
    save_adapter(model, tmp_path, base_model="some/base")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns where keys do not match
        theirs = peft.PeftModel.from_pretrained(small_model(architecture), tmp_path)
    with torch.no_grad():
        assert relative_error(theirs(TOKENS).logits, model(TOKENS).logits) < 1e-6


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "qwen2"])
def test_pefts_adapter_gives_the_same_logits_and_gradients_here(architecture, tmp_path):
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(small_model(architecture), config)
    torch.manual_seed(2)
    for name, weight in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    theirs.save_pretrained(tmp_path)
    ours = small_model(architecture)
    load_adapter(ours, tmp_path)
    expected, found = theirs(TOKENS).logits, ours(TOKENS).logits
    assert relative_error(found, expected) < 1e-6

    expected.square().mean().backward()
    found.square().mean().backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert len(gradients) == 2 * len(lora_layers(ours))
    for name, layer in lora_layers(ours).items():
        for letter, parameter in (("A", layer.A), ("B", layer.B)):
            wanted = gradients[f"base_model.model.{name}.lora_{letter}.default.weight"].T
            assert relative_error(parameter.grad, wanted) < 1e-5
