"""`python -m run merge`, and what a run merges at its end: checked, whole or absent."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
import transformers
from conftest import CHAT_TEMPLATE, ROOT, small_model, small_tokenizer
from safetensors.torch import load_file
from test_lora_merge_files import make, merged_weights

from lora import Base, ModelError, load_adapter, load_base, merge_lora
from lora.peft_format import saved_delta
from run.__main__ import main
from run.config import Config
from run.merge import end_at, write_merged

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_run_is_merged_from_its_files_as_from_memory(tmp_path, dtype):
    """And what an earlier end of the run has merged is replaced."""
    model = make(tmp_path, "gemma2", torch.float32, "50KB")
    base, tokenizer = Base(model, "", None, tmp_path / "base"), small_tokenizer()
    embeddings = model.get_input_embeddings().weight
    embeddings.full_tensor = None  # what a weight has that is split among processes
    found = write_merged(model, base, tokenizer, tmp_path, Config(merge_dtype=dtype))
    del embeddings.full_tensor
    assert found == write_merged(
        model, base, tokenizer, tmp_path / "memory", Config(merge_dtype=dtype)
    )
    expected = merged_weights(tmp_path / "memory" / "merged")
    for name, weight in merged_weights(tmp_path / "merged").items():
        assert weight.dtype == (torch.float32 if dtype == "auto" else torch.bfloat16)
        assert torch.equal(weight, expected[name]), name
    embeddings.full_tensor = None
    assert write_merged(model, base, tokenizer, tmp_path, Config(merge_dtype=dtype)) == found


def test_tokenizer_and_generation_settings_come_along(tmp_path):
    make(tmp_path)
    assert main(["merge", str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")]) == 0
    names = {p.name for p in (tmp_path / "base").iterdir()}
    assert names == {p.name for p in (tmp_path / "merged").iterdir()}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("Do bats see?").input_ids == small_tokenizer()("Do bats see?").input_ids


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_run_merges_into_what_it_was_trained_on_or_the_original(tmp_path, kind, capsys):
    make(tmp_path, "gemma2", torch.bfloat16)
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "adapter").rename(run / "adapter")
    (run / "config.yaml").write_text(f"quantize: {kind}\n")
    base = load_base(str(tmp_path / "base"), torch.device("cpu"), torch.bfloat16, quantise=kind)
    load_adapter(base.model, run / "adapter")
    policy = merge_lora(base.model, torch.float32).state_dict()
    output = tmp_path / "dense"
    assert main(["merge", str(run), "--output", str(output), "--merge-dtype", "float32"]) == 0
    assert "nats a token from base + adapter" in capsys.readouterr().out
    for name, weight in merged_weights(output).items():
        torch.testing.assert_close(weight, policy[name], rtol=1e-5, atol=1e-6)
    argv = ["merge", str(run), "--output", str(tmp_path / "original"), "--base", "original"]
    assert main(argv) == 0
    original = load_file(tmp_path / "base" / "model.safetensors")
    found = merged_weights(tmp_path / "original")
    untouched = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(found[untouched], original[untouched])
    assert not torch.equal(merged_weights(output)[untouched], original[untouched].float())


def test_a_run_is_merged_as_it_says_also_by_the_folder_of_its_adapter(tmp_path, capsys):
    make(tmp_path, "gemma2", torch.bfloat16)
    (tmp_path / "config.yaml").write_text("quantize: nf4\nmerge_dtype: float32\n")
    for folder in ("", "adapter"):
        output = tmp_path / f"merged{folder}"
        assert main(["merge", str(tmp_path / folder), "--output", str(output)]) == 0
        assert f"Merged into {output} in float32" in capsys.readouterr().out
    whole, part = (merged_weights(tmp_path / name) for name in ("merged", "mergedadapter"))
    original = load_file(tmp_path / "base" / "model.safetensors")
    for name, weight in whole.items():
        assert weight.dtype == torch.float32 and torch.equal(weight, part[name])
    untouched = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(whole[untouched], original[untouched].float())
    (tmp_path / "config.yaml").write_text("dtype: float32\n")
    output = tmp_path / "computed"
    assert main(["merge", str(tmp_path), "--output", str(output)]) == 0
    assert "in float32" in capsys.readouterr().out
    (tmp_path / "config.yaml").unlink()
    argv = ["merge", str(tmp_path / "adapter"), "--output", str(tmp_path / "x")]
    assert main([*argv, "--base", "dequantized"]) == 2
    assert "--base is for a run" in capsys.readouterr().err


def test_a_place_that_cannot_be_is_refused_before_the_merge(tmp_path, capsys):
    make(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for name, complaint in (("link", "exists"), ("file/x", "is not writable")):
        argv = ["merge", str(tmp_path / "adapter"), "--output", str(tmp_path / name)]
        assert main(argv) == 2
        assert complaint in capsys.readouterr().err


def test_a_merge_that_differs_from_base_and_adapter_is_not_kept(tmp_path, monkeypatch, capsys):
    make(tmp_path)
    monkeypatch.setattr(sys.modules["lora.merge_files"], "saved_delta", lambda *a: -saved_delta(*a))
    assert main(["merge", str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")]) == 2
    assert "differs from base + adapter by" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"base", "adapter"}


def quantise_on_disk(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "spoil, complaint",
    [
        (
            lambda f: (f / "adapter" / "adapter_config.json").unlink(),
            "adapter_config.json is missing",
        ),
        (lambda f: (f / "base" / "model.safetensors").write_bytes(b"\x00" * 99), "cannot be read"),
        (lambda f: (f / "base" / "config.json").write_text("{"), "is not a valid JSON file"),
        (lambda f: (f / "merged").mkdir(), "exists; name another"),
        (lambda f: quantise_on_disk(f / "base"), "is stored quantised"),
        (lambda f: small_model("llama").save_pretrained(f / "base"), "does not fit this model"),
    ],
)
def test_what_does_not_fit_is_one_message_and_leaves_nothing(tmp_path, spoil, complaint, capsys):
    make(tmp_path)
    spoil(tmp_path)
    before = {p.name for p in tmp_path.iterdir()}
    assert main(["merge", str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")]) == 2
    assert complaint in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == before


def test_a_killed_merge_leaves_no_model_under_the_name(tmp_path):
    make(tmp_path, shard="20KB")
    argv = [sys.executable, "-m", "run", "merge", str(tmp_path / "adapter"), "--output"]
    for attempt in range(2):
        output = tmp_path / f"merged-{attempt}"
        process = subprocess.Popen([*argv, str(output)], cwd=ROOT, env=os.environ)
        while process.poll() is None and not list(tmp_path.glob(f".*.part/{output.name}")):
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert process.returncode != 0 and not output.exists()


def test_generation_ends_where_the_answers_of_a_chat_did(tmp_path, capsys):
    """A base that ends at </s> (2), and a template that ends an answer with <end>."""
    tokenizer = small_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    end = tokenizer.convert_tokens_to_ids("<end>")
    for template, ends in (("plain", 2), ("chat", [2, end])):
        model = make(tmp_path / template, "gemma2", torch.float32, "50KB")
        base = Base(model, "", None, tmp_path / template / "base")
        write_merged(model, base, tokenizer, tmp_path / template, Config(template=template))
        path = tmp_path / template / "merged" / "generation_config.json"
        assert json.loads(path.read_text())["eos_token_id"] == ends
        merged = transformers.AutoModelForCausalLM.from_pretrained(path.parent)
        assert merged.generation_config.eos_token_id == ends
        said = f"ends at token {end} as well" if template == "chat" else ""
        assert said.replace("ends", "end") in capsys.readouterr().out


def test_a_run_merged_from_its_files_keeps_its_own_chat_template(tmp_path):
    make(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "adapter").rename(tmp_path / "run" / "adapter")
    own = "{# mine #}" + CHAT_TEMPLATE
    (tmp_path / "own.jinja").write_text(own)
    Config(chat_template=str(tmp_path / "own.jinja")).save(tmp_path / "run" / "config.yaml")
    assert main(["merge", str(tmp_path / "run"), "--output", str(tmp_path / "merged")]) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == own


@pytest.mark.parametrize(
    "settings, ends",
    [({"eos_token_id": [1, 7]}, [1, 7]), ({"eos_token_id": 1}, [1, 7]), ({"top_k": 3}, [7]),
     (None, [2, 7])],
    ids=str,
)  # fmt: skip
def test_a_stop_token_is_added_to_those_that_there_are(tmp_path, settings, ends):
    (tmp_path / "config.json").write_text('{"eos_token_id": 2, "hidden_size": 8}')
    path = tmp_path / "generation_config.json"
    if settings is not None:
        path.write_text(json.dumps(settings))
    end_at(tmp_path, None)
    assert path.exists() == (settings is not None)
    end_at(tmp_path, 7)
    assert json.loads(path.read_text()) == {**(settings or {}), "eos_token_id": ends}


def test_a_generation_config_that_holds_no_settings_is_named(tmp_path):
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ModelError, match="generation_config.json cannot be read"):
        end_at(tmp_path, 7)
