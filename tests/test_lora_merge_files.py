"""The merge of files: the same as in memory, shard by shard, whole or absent."""

import json

import pytest
import torch
import transformers
from conftest import randomise, small_model, small_tokenizer
from safetensors.torch import load_file, save_file

from lora import ModelError, Patterns, add_lora, merge_files, merge_lora, save_adapter
from lora.merge_files import INDEX

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def make(folder, architecture="llama", dtype=torch.float32, shard="1GB", **variant):
    """A base in shards and an adapter for it; return the model with the adapter."""
    model = small_model(architecture, scale=0.1, vocab_size=400, hidden_size=64)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder / "base", max_shard_size=shard)
    small_tokenizer().save_pretrained(folder / "base")
    add_lora(model, rank=3, alpha=6, **variant)
    randomise(model, scale=0.1)
    save_adapter(model, folder / "adapter", base_model=str(folder / "base"))
    return model


def merged_weights(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize("shard", ["1GB", "50KB"])
@pytest.mark.parametrize("to", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_files_hold_bitwise_what_merging_in_memory_gives(tmp_path, dtype, to, shard):
    model = make(tmp_path, "gemma2", dtype, shard, patterns=Patterns({"v_proj": 2}, rslora=True))
    shards = sorted(p.name for p in (tmp_path / "base").glob("*.safetensors"))
    assert (len(shards) > 3) == (shard == "50KB")
    merge_files(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", to)
    assert sorted(p.name for p in (tmp_path / "merged").glob("*.safetensors")) == shards
    expected = merge_lora(model, to).state_dict()
    found = merged_weights(tmp_path / "merged")
    assert "lm_head.weight" not in found  # tied, and stored once
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {to or dtype}
    if shard == "50KB":
        index = json.loads((tmp_path / "merged" / INDEX).read_text())
        assert set(index["weight_map"]) == set(found)
        assert index["metadata"]["total_size"] == sum(w.nbytes for w in found.values())


def test_files_that_are_no_part_of_the_model_stay_behind(tmp_path):
    """Weights in the form of another library would hold no delta; others are nobody's business."""
    make(tmp_path)
    base = tmp_path / "base"
    (base / "consolidated.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    for name in ("credentials.json", "notes.txt", "LICENSE.txt", "merges.txt"):
        (base / name).write_text("{}")
    merge_files(base, tmp_path / "adapter", tmp_path / "merged")
    names = {p.name for p in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "LICENSE.txt"} <= names
    assert "merges.txt" in names
    assert not names & {"consolidated.safetensors", "credentials.json", "notes.txt"}


def test_a_base_of_float64_is_merged_and_one_of_another_shape_is_named(tmp_path):
    make(tmp_path, dtype=torch.float64)
    merge_files(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert {w.dtype for w in merged_weights(tmp_path / "merged").values()} == {torch.float64}
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({**weights, name: weights[name][:8].contiguous()}, file, {"format": "pt"})
    with pytest.raises(ModelError, match="config.json promises"):
        merge_files(tmp_path / "base", tmp_path / "adapter", tmp_path / "deep" / "down" / "again")
    assert {p.name for p in tmp_path.iterdir()} == {"base", "adapter", "merged"}


def test_what_the_check_refuses_does_not_take_the_place_of_what_stood_there(tmp_path):
    make(tmp_path)
    seen = []

    def refuse(merged):
        seen.append({p.name for p in merged.iterdir()})
        raise ModelError("refused")

    for stood in ({}, {"old": "first"}):
        for name, text in stood.items():
            (tmp_path / "merged").mkdir()
            (tmp_path / "merged" / name).write_text(text)
        with pytest.raises(ModelError, match="refused"):
            merge_files(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", check=refuse)
        found = {p.name: p.read_text() for p in (tmp_path / "merged").glob("*")}
        assert found == stood
        assert {p.name for p in tmp_path.iterdir()} - {"merged"} == {"base", "adapter"}
    complete = {p.name for p in (tmp_path / "base").iterdir()}
    assert seen == [complete, complete]  # the check sees the merged model as it would be
