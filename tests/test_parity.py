"""Parity with PEFT, an oracle of the optional extra: never needed at run time."""

import json
import warnings

import pytest
import torch
import transformers
from conftest import randomise, relative_error, small_model

from lora import Patterns, add_lora, load_adapter, save_adapter
from lora.adapter import adapter_parameters, lora_layers

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # between PEFT and newer transformers
]
peft = pytest.importorskip("peft", reason="needs the extra [parity]")
TOKENS = torch.arange(1, 13)[None]
FOUR = ["llama", "gemma2", "gemma3", "qwen2"]


def tame_model(architecture):
    """Weights of a size that does not amplify rounding: 1e-6 is a claim about the adapter."""
    return small_model(architecture, scale=0.1)


@torch.no_grad()
def same_logits(first, second):
    assert relative_error(first(TOKENS).logits, second(TOKENS).logits) < 1e-6


VARIANTS = {
    "plain": {},
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*layers\.[02]\.self_attn\.(q|o)_proj"},
    "whole names": {"target_modules": ["model.layers.1.self_attn.q_proj", "mlp.up_proj"]},
    "patterns": {
        "rank_pattern": {"v_proj": 2, r"layers\.3\.self_attn\.q_proj": 5},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 9},
    },
    "rslora": {"rslora": True, "rank_pattern": {"v_proj": 2}},
}


def ours_of(rank_pattern=None, alpha_pattern=None, rslora=False, **settings):
    """A variant's settings as `add_lora` takes them."""
    return settings | {"patterns": Patterns(rank_pattern, alpha_pattern, rslora)}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", FOUR)
def test_our_adapter_gives_the_same_logits_in_peft(architecture, variant, tmp_path):
    model = tame_model(architecture)
    add_lora(model, rank=3, alpha=6, **ours_of(**VARIANTS[variant]))
    randomise(model, scale=0.1)
    save_adapter(model, tmp_path, base_model="some/base")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns where keys do not match
        theirs = peft.PeftModel.from_pretrained(tame_model(architecture), tmp_path)
    same_logits(theirs, model)
    ours = tame_model(architecture)
    load_adapter(ours, tmp_path)
    with torch.no_grad():
        assert torch.equal(ours(TOKENS).logits, model(TOKENS).logits)


def pefts(architecture, **settings):
    settings = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | settings
    model = peft.get_peft_model(
        tame_model(architecture), peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    )
    torch.manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", FOUR)
def test_pefts_adapter_gives_the_same_logits_here(architecture, variant, tmp_path):
    settings = dict(VARIANTS[variant])
    settings["use_rslora"] = settings.pop("rslora", False)
    theirs = pefts(architecture, **settings)
    theirs.save_pretrained(tmp_path)
    ours = tame_model(architecture)
    load_adapter(ours, tmp_path)
    same_logits(ours, theirs)


@pytest.mark.parametrize("architecture", FOUR)
def test_twenty_steps_follow_pefts_trajectory_from_the_same_start(architecture, tmp_path):
    theirs = pefts(architecture)
    theirs.save_pretrained(tmp_path)
    ours = tame_model(architecture)
    load_adapter(ours, tmp_path)
    mine = adapter_parameters(ours)
    named = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    twins = [
        named[f"base_model.model.{name}.lora_{letter}.default.weight"]
        for name in lora_layers(ours)
        for letter in "AB"
    ]
    assert len(named) == len(mine) == len(twins)
    optimizers = [torch.optim.SGD(p, lr=0.05, momentum=0.9) for p in (mine, twins)]
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        tokens = torch.randint(3, 97, (2, 9), generator=generator)
        for model in (ours, theirs):
            model(tokens, labels=tokens).loss.backward()
        if step == 0:
            for a, b in zip(mine, twins, strict=True):
                assert relative_error(a.grad, b.grad.T) < 1e-5
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(mine, twins, strict=True):
        assert relative_error(a.detach(), b.detach().T) < 1e-5


def test_our_adapter_loads_by_transformers_own_from_pretrained(tmp_path):
    base = tame_model("llama")
    base.save_pretrained(tmp_path / "base")
    model = tame_model("llama")
    add_lora(model, rank=3, alpha=6)
    randomise(model, scale=0.1)
    save_adapter(model, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "adapter", attn_implementation="eager"
    )
    same_logits(loaded, model)


def test_a_dora_adapter_of_peft_is_refused(tmp_path):
    from lora import ModelError

    pefts("llama", use_dora=True).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="use_dora"):
        load_adapter(tame_model("llama"), tmp_path)


def test_an_adapter_with_saved_embeddings_is_refused(tmp_path):
    from lora import ModelError

    model = pefts("llama")
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(ModelError, match="embeddings or a head"):
        load_adapter(tame_model("llama"), tmp_path)


def test_the_settings_we_write_are_settings_peft_knows(tmp_path):
    model = tame_model("llama")
    add_lora(model, rank=3, alpha=6)
    save_adapter(model, tmp_path, base_model="some/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    known = peft.LoraConfig(task_type="CAUSAL_LM").to_dict()
    assert set(config) <= set(known)
