"""Quantised bases: trained after an evaluation pass, merged dense, never quantised again."""

import gc
import json
from pathlib import Path

import pytest
import torch
import transformers
from conftest import relative_error, small_model, small_tokenizer

from data import EncodedQuestion
from dpo import check_sharing, selfcheck
from lora import adapters_disabled, add_lora, decoder_layers, load_base, merge_lora, merge_rounding
from lora.adapter import adapter_parameters, train_adapters
from lora.base.quantise import dense_weight
from lora.merging import save_merged

TOKENS = torch.arange(1, 13)[None]
ERROR = {"nf4": 0.12, "int8": 0.02}  # relative, of a Gaussian weight; NF4's own is .09


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    small_model("gemma2", scale=0.1, hidden_size=64).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


def quantised(folder, kind):
    device = torch.device("cpu")
    return load_base(str(folder), device, torch.bfloat16, quantise=kind)


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("kind", ERROR)
def test_linear_layers_are_quantised_and_head_and_embeddings_are_not(folder, kind):
    model = quantised(folder, kind).model
    original = small_model("gemma2", scale=0.1, hidden_size=64)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    layer = model.model.layers[0].mlp.up_proj
    assert not layer.weight.is_floating_point()
    expected = original.model.layers[0].mlp.up_proj.weight
    assert 0 < relative_error(dense_weight(layer).float(), expected.detach()) < ERROR[kind]


def test_the_settings_of_nf4_are_those_of_qlora(folder):
    settings = quantised(folder, "nf4").model.config.quantization_config
    assert settings.bnb_4bit_quant_type == "nf4"
    assert settings.bnb_4bit_use_double_quant
    assert settings.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what is mapped")
@pytest.mark.parametrize("kind", ERROR)
def test_no_weights_file_stays_in_memory_beside_the_quantised_weights(tmp_path, kind):
    """A dense base lies in its file's pages, and a quantised one in memory of its own."""

    def mapped():
        return str(tmp_path / "model.safetensors") in Path("/proc/self/maps").read_text()

    small_model("gemma2", scale=0.1, hidden_size=64).bfloat16().save_pretrained(tmp_path)
    base = load_base(str(tmp_path), torch.device("cpu"), torch.bfloat16)
    assert mapped()
    del base
    gc.collect()
    base = quantised(tmp_path, kind)
    assert not mapped() and base.model.lm_head.weight is base.model.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ERROR)
def test_after_an_evaluation_pass_every_a_and_b_still_has_a_gradient(folder, kind):
    """bitsandbytes repacks 4-bit weights in place at an evaluation on CPUs with AVX512-BF16."""
    model = quantised(folder, kind).model
    layer = model.model.layers[0].mlp.up_proj
    before = dense_weight(layer).clone()
    add_lora(model, rank=2, alpha=4, target_modules="all-linear")
    for p in adapter_parameters(model, "B"):
        p.data.normal_(std=0.1)
    with torch.no_grad(), adapters_disabled(model):
        reference = model(TOKENS).logits
    assert torch.equal(dense_weight(layer), before)
    train_adapters(model)
    model(TOKENS).logits.float().square().mean().backward()
    for parameter in adapter_parameters(model):
        assert parameter.grad is not None and parameter.grad.any()
    with torch.no_grad(), adapters_disabled(model):
        assert torch.equal(model(TOKENS).logits, reference)


@pytest.mark.parametrize("kind", ERROR)
def test_tries_suit_a_quantised_base_whose_layers_cannot_be_made_exact(folder, kind, monkeypatch):
    model, allowed = quantised(folder, kind).model, []
    compare = selfcheck.compared
    monkeypatch.setattr(
        selfcheck, "compared", lambda *about: allowed.append(about[2]) or compare(*about)
    )
    questions = [EncodedQuestion((3, 4), (5, 6, 2), ((5, 7, 2), (8, 2)))]
    check = check_sharing(model, questions, 0, decoder_layers(model))
    assert check.way == "tries", check.reason
    assert allowed == [selfcheck.COARSE, selfcheck.TOLERANCE[torch.bfloat16]]


@pytest.mark.parametrize("kind", ERROR)
def test_a_merge_is_into_the_dequantised_base_and_saves_a_plain_model(folder, kind, tmp_path):
    base = quantised(folder, kind)
    model = base.model
    add_lora(model, rank=2, alpha=4)
    for p in adapter_parameters(model, "B"):
        p.data.normal_(std=0.1)
    with torch.no_grad():
        policy = model(TOKENS).logits.float()
    assert merge_rounding(model, torch.float32).error < 1e-3
    merged = merge_lora(model, torch.float32)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    save_merged(merged, small_tokenizer(), tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", attn_implementation="eager"
    )
    with torch.no_grad():
        found = loaded(TOKENS).logits
    assert relative_error(found, policy) < 0.02  # the policy computes in bfloat16 or int8
