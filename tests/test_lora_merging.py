"""Merging: W' = round(W + dW), added in float32, rounded once."""

import json

import pytest
import torch
import transformers
from conftest import randomise, small_model
from test_lora_layer import layer_2x2

from lora import ModelError, add_lora, lora_layers, merge_lora, merged_weight, save_merged

TOKENS = torch.arange(1, 13)[None]


def test_the_merged_weight_by_hand():
    """W = 1, dW = [[6, 8], [12, 16]] as (in, out): W' = [[7, 8], [12, 17]], stored transposed."""
    assert merged_weight(layer_2x2()).tolist() == [[7, 12], [8, 17]]


def adapted(architecture="llama", dtype=torch.float32, scale=0.3):
    model = small_model(architecture)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    add_lora(model, rank=2, alpha=4)
    randomise(model, scale=scale)
    return model


@torch.no_grad()
def test_the_merged_model_computes_what_base_and_adapter_did():
    model = adapted("gemma2")
    before = model(TOKENS).logits
    merged = merge_lora(model)
    assert not lora_layers(merged)
    torch.testing.assert_close(merged(TOKENS).logits, before, rtol=1e-4, atol=1e-4)


def test_merging_twice_is_refused():
    model = merge_lora(adapted())
    with pytest.raises(ModelError, match="merged before"):
        merge_lora(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_is_rounded_once(dtype):
    model = adapted(dtype=dtype)
    expected = {
        name: (layer.base.weight.float() + layer.delta()).to(dtype)
        for name, layer in lora_layers(model).items()
    }
    merge_lora(model)
    for name, weight in expected.items():
        assert torch.equal(model.get_submodule(name).weight, weight)


def test_only_patched_weights_change_and_by_at_most_rank():
    base, model = small_model("llama"), merge_lora(adapted())
    for (name, before), (same, after) in zip(
        base.named_parameters(), model.named_parameters(), strict=True
    ):
        assert name == same
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            assert torch.linalg.matrix_rank(after - before, rtol=1e-4) == 2
        else:
            assert torch.equal(before, after)


def test_merging_into_float32_gives_a_float32_model():
    model = adapted(dtype=torch.bfloat16)
    expected = merged_weight(next(iter(lora_layers(model).values())), torch.float32)
    merged = merge_lora(model, torch.float32)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert torch.equal(merged.model.layers[0].self_attn.q_proj.weight, expected)


def test_adding_and_subtracting_is_not_exact_so_the_merge_keeps_nothing_to_undo():
    """2^-9 + 1 rounds to 1 in bfloat16: W + dW - dW = 0, and W = 2^-9 is gone. So W is kept."""
    w, delta = torch.tensor([2.0**-9]).bfloat16(), torch.tensor([1.0])
    merged = (w.float() + delta).bfloat16()
    assert (merged.float() - delta).item() == 0
    layer = layer_2x2()
    before = layer.base.weight.clone()
    merged_weight(layer)
    assert torch.equal(layer.base.weight, before)  # a pure function: W is untouched


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_saved_merge_loads_elsewhere_with_its_ties_and_dtype(architecture, tmp_path, tokenizer):
    model = adapted(architecture, torch.bfloat16)
    tied = model.config.tie_word_embeddings
    assert tied == (architecture == "gemma2")
    merged = merge_lora(model)
    save_merged(merged, tokenizer, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", attn_implementation="eager", dtype="auto"
    )
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    embeddings, head = loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight
    assert (embeddings.data_ptr() == head.data_ptr()) == tied
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, merged(TOKENS).logits)
    text = "Do bats see?"
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert other(text).input_ids == tokenizer(text).input_ids
