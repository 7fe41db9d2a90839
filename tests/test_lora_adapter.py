"""Adding, switching off, saving and loading adapters."""

import json

import pytest
import torch
from conftest import randomise, small_model
from safetensors.torch import load_file, save_file

from lora import (
    ModelError,
    adapter_swapped,
    adapters_disabled,
    add_lora,
    copy_adapter,
    load_adapter,
    remove_lora,
    save_adapter,
)
from lora.adapter import adapter_parameters, lora_layers, train_adapters

TOKENS = torch.arange(1, 13)[None]


@pytest.fixture
def model():
    model = small_model("gemma2")
    add_lora(model, rank=2, alpha=4, dropout=0.5)
    randomise(model)
    return model


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def test_every_layer_of_a_target_is_patched():
    model = small_model("llama")
    names = add_lora(model, rank=2, alpha=4)
    layers = range(4)
    targets = ("q_proj", "v_proj")
    assert sorted(names) == sorted(
        f"model.layers.{i}.self_attn.{t}" for i in layers for t in targets
    )
    # q: (32 + 32) * 2, v: (32 + 16) * 2 for each of 4 layers
    assert sum(p.numel() for p in adapter_parameters(model)) == 4 * (128 + 96)


def test_gemma_2_9b_has_4472832_trained_parameters():
    """3584 -> 16 x 256 (q) and 3584 -> 8 x 256 (v), 42 layers, r = 8."""
    import transformers

    config = transformers.Gemma2Config(
        hidden_size=3584, num_hidden_layers=42, num_attention_heads=16, num_key_value_heads=8,
        head_dim=256, intermediate_size=14336, vocab_size=256000,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
        names = add_lora(model, rank=8, alpha=16)
    assert len(names) == 84
    assert sum(p.numel() for p in adapter_parameters(model)) == 4_472_832


@pytest.mark.parametrize(
    "targets, complaint",
    [
        (["q_proj", "query"], "'query' matches no module.*q_proj"),
        (["proj"], "'proj' matches no module"),  # part of a name is no name
        (["self_attn"], "LlamaAttention; LoRA here wraps nn.Linear"),
        (["embed_tokens"], "Embedding; LoRA here wraps nn.Linear layers, not embeddings"),
        (["lm_head"], "the output head lm_head: scores are read off its weight"),
        (r".*\.query", "matches no module"),
        ("(", "is no regular expression"),
    ],
)
def test_a_target_that_matches_nothing_linear_is_refused_and_nothing_changes(targets, complaint):
    model = small_model("llama")
    before = dict(model.named_modules())
    with pytest.raises(ModelError, match=complaint):
        add_lora(model, rank=2, alpha=4, target_modules=targets)
    assert dict(model.named_modules()) == before


def test_patching_twice_is_refused(model):
    with pytest.raises(ModelError, match="already has LoRA"):
        add_lora(model, rank=2, alpha=4)


def test_a_rank_larger_than_a_layer_is_refused_with_the_largest_that_fits():
    with pytest.raises(ModelError, match="rank 20 does not fit a 32 x 16 layer; choose 1 to 16"):
        add_lora(small_model("llama"), rank=20, alpha=4)


def test_base_policy_base_is_bitwise_the_base(model):
    base = logits(small_model("gemma2"))
    policy = logits(model)
    assert not torch.equal(policy, base)
    with adapters_disabled(model):
        assert torch.equal(logits(model), base)
        with adapters_disabled(model):
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), base)  # the inner block does not switch them on
    assert torch.equal(logits(model), policy)


def test_taking_the_adapter_off_restores_the_base_bitwise(model):
    before = small_model("gemma2").state_dict()
    remove_lora(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(model), logits(small_model("gemma2")))


def test_the_switch_does_not_leak_when_the_body_raises(model):
    policy = logits(model)
    train_adapters(model)
    modes = [m.training for m in model.modules()]
    with pytest.raises(KeyboardInterrupt), adapters_disabled(model):
        raise KeyboardInterrupt
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(logits(model.eval()), policy)


def test_within_the_block_the_adapter_is_the_copy_and_afterwards_itself_again():
    model = small_model()
    add_lora(model, rank=2, alpha=4, dropout=0.5)
    randomise(model, seed=1)
    tokens = torch.arange(1, 9)[None]
    first = model(tokens).logits
    copy = copy_adapter(model)
    randomise(model, seed=2)
    second = model(tokens).logits
    assert not torch.equal(first, second)
    train_adapters(model)
    with pytest.raises(KeyboardInterrupt), adapter_swapped(model, copy):
        assert torch.equal(model(tokens).logits, first)  # and no dropout
        raise KeyboardInterrupt
    assert model(tokens).logits.isfinite().all() and lora_layers(model).popitem()[1].training
    assert torch.equal(model.eval()(tokens).logits, second)


def test_swapping_between_forward_and_backward_changes_no_gradient():
    model = small_model()
    add_lora(model, rank=2, alpha=4)
    randomise(model)
    tokens = torch.arange(1, 9)[None]

    def gradients(swap):
        loss = model(tokens).logits.square().mean()
        if swap:
            with torch.no_grad(), adapter_swapped(model, [p * 0 for p in copy_adapter(model)]):
                model(tokens)
        return torch.autograd.grad(loss, adapter_parameters(model))

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(a, b)


def test_the_reference_has_no_dropout_not_even_the_bases_own(model):
    model.model.layers[0].register_forward_hook(
        lambda module, _, out: torch.nn.functional.dropout(out, 0.5, module.training)
    )
    model.train()
    assert not torch.equal(logits(model), logits(model))
    with adapters_disabled(model):
        assert torch.equal(logits(model), logits(model))


def test_training_switches_lora_dropout_on_and_leaves_the_base_in_eval_mode(model):
    train_adapters(model)
    assert not torch.equal(logits(model), logits(model))
    assert {type(m).__name__ for m in model.modules() if m.training} == {"LoRALinear"}


def test_a_saved_adapter_loads_bit_for_bit(model, tmp_path):
    save_adapter(model, tmp_path / "a", base_model="some/base", revision="main")
    other = small_model("gemma2")
    load_adapter(other, tmp_path / "a")
    assert torch.equal(logits(other), logits(model))
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]  # nothing is left beside it


def test_the_files_are_pefts_by_name_shape_and_content(model, tmp_path):
    save_adapter(model, tmp_path, base_model="some/base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert set(tensors) == {
        f"base_model.model.model.layers.{i}.self_attn.{t}.lora_{ab}.weight"
        for i in range(4)
        for t in ("q_proj", "v_proj")
        for ab in "AB"
    }
    key = "base_model.model.model.layers.0.self_attn.v_proj.lora_"
    assert tensors[f"{key}A.weight"].shape == (2, 32)  # (r, in)
    assert tensors[f"{key}B.weight"].shape == (16, 2)  # (out, r)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    layer = lora_layers(model)["model.layers.0.self_attn.v_proj"]
    assert torch.equal(tensors[f"{key}A.weight"], layer.A.T)
    text = (tmp_path / "adapter_config.json").read_text()
    config = json.loads(text)
    assert text == json.dumps(config, indent=2, sort_keys=True) + "\n"
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 4, 0.5)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert config["base_model_name_or_path"] == "some/base"


def damage(folder, tensors=None, **settings):
    """Change an adapter's files: None deletes."""
    if tensors is not None:
        save_file(tensors, folder / "adapter_model.safetensors")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda t: t.popitem(), "1 tensors differ.*missing"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(2, 2)}),
         "lm_head.lora_A.weight is \\(2, 2\\) in the file and unknown here"),
        (lambda t: t.update({k: v[:, :1].clone() for k, v in t.items()
                             if "0.self_attn.q_proj.lora_A" in k}),
         "q_proj.lora_A.weight is \\(2, 1\\) in the file and \\(2, 32\\) here"),
        (lambda t: [t.update({k.replace("base_model.model.", ""): t.pop(k)}) for k in list(t)],
         "32 tensors differ"),
        (lambda t: [t.update({k.replace("_A.", "_A.default."): t.pop(k)}) for k in list(t)
                    if "_A." in k], "16 tensors differ"),
    ],
)  # fmt: skip
def test_a_tensor_missing_extra_misnamed_or_misshaped_is_an_error(
    model, tmp_path, change, complaint
):
    save_adapter(model, tmp_path, base_model="some/base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change(tensors)
    damage(tmp_path, tensors)
    other = small_model("gemma2")
    with pytest.raises(ModelError, match=complaint):
        load_adapter(other, tmp_path)
    assert not lora_layers(other)


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"r": None}, "lacks 'r'"),
        ({"lora_alpha": None}, "lacks 'lora_alpha'"),
        ({"use_dora": True}, "uses use_dora"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"bias": "all"}, "uses bias"),
    ],
)
def test_a_setting_that_is_missing_or_not_supported_is_an_error(
    model, tmp_path, settings, complaint
):
    save_adapter(model, tmp_path, base_model="some/base")
    damage(tmp_path, **settings)
    with pytest.raises(ModelError, match=complaint):
        load_adapter(small_model("gemma2"), tmp_path)


def test_a_rank_that_peft_allows_and_no_layer_here_can_have_is_named(model, tmp_path):
    save_adapter(model, tmp_path, base_model="some/base")
    damage(tmp_path, r=40, rank_pattern={}, lora_alpha=8, alpha_pattern={})
    file = tmp_path / "adapter_model.safetensors"
    tensors = {k: torch.zeros(40, v.shape[1]) if ".lora_A." in k else torch.zeros(len(v), 40)
               for k, v in load_file(file).items()}  # fmt: skip
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"has rank 40 for model.layers.0.self_attn.\w_proj"):
        load_adapter(small_model("gemma2"), tmp_path)


def test_missing_and_damaged_files_are_named(model, tmp_path):
    with pytest.raises(ModelError, match=r"adapter_config.json is missing"):
        load_adapter(small_model("gemma2"), tmp_path)
    with pytest.raises(ModelError, match=r"/none is no adapter: there is no such folder"):
        load_adapter(small_model("gemma2"), tmp_path / "none")
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ModelError, match=rf"a run's folder, of which {tmp_path}/adapter is the"):
        load_adapter(small_model("gemma2"), tmp_path)
    save_adapter(model, tmp_path, base_model="some/base")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ModelError, match="cannot be read"):
        load_adapter(small_model("gemma2"), tmp_path)
    with pytest.raises(ModelError, match="no LoRA layer to save"):
        save_adapter(small_model("llama"), tmp_path / "x", base_model="some/base")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "rename, hint",
    [
        (
            lambda k: k.replace("model.model.", "model._orig_mod.model."),
            "saved from a compiled model",
        ),
        (lambda k: k.replace("_A.weight", "_A.default.weight"), "keys hold an adapter's name"),
    ],
)
def test_misnamed_keys_come_with_what_went_wrong(model, tmp_path, rename, hint):
    save_adapter(model, tmp_path, base_model="org/the-base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    damage(tmp_path, {rename(k): v for k, v in tensors.items()})
    with pytest.raises(ModelError, match=f"made for org/the-base, does not fit.*{hint}"):
        load_adapter(small_model("gemma2"), tmp_path)


def test_an_adapter_of_another_base_is_refused_by_its_shapes(model, tmp_path):
    save_adapter(model, tmp_path, base_model="org/the-base")
    other = small_model("gemma2", hidden_size=64)
    with pytest.raises(
        ModelError, match=r"made for org/the-base.*\(2, 32\) in the file.*\(2, 64\)"
    ):
        load_adapter(other, tmp_path)
