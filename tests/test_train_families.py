"""Whole runs on hybrid and state-space models, and on models that have layers of other kinds."""

import math
import re

import pytest
import torch
import transformers
from families import HYBRID, ROTARY, family_model, length_dependent
from safetensors.torch import load_file
from test_run_checkpoint import LAST, After, counted, lines, own_cache  # noqa: F401

import train
from lora import load_adapter, merge_files
from run.config import Config
from run.errors import Stopped


@pytest.fixture
def run(tokenizer, questions_csv, tmp_path):
    """Run with a model into a folder of that name; return the folder."""

    def run(name, model, stop=None, **more):
        folder = tmp_path / model.config.model_type
        if not folder.exists():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        settings = {
            "model": str(folder), "data": str(questions_csv), "dtype": "float32", "device": "cpu",
            "rank": 2, "lr": 1e-2, "epochs": 4, "output_dir": str(tmp_path / name), "scale": "1",
            "beta": 0.1,
        }  # fmt: skip
        return train.run(Config(**(settings | more)), stop)

    return run


def logits(folder, adapter=None):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    if adapter:
        load_adapter(model, adapter)
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 30)[None]).logits


@pytest.mark.parametrize("family", HYBRID)
def test_a_default_run_trains_goes_on_after_a_stop_and_merges(
    run, tokenizer, tmp_path, counted, family  # noqa: F811
):  # fmt: skip
    model = family_model(family, vocab_size=len(tokenizer))
    with pytest.raises(Stopped):
        run("out", model, counted(After(1)))
    folder = run("out", model, resume="")
    steps = lines(folder)
    assert [s["step"] for s in steps] == list(range(8))
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.01
    base = tmp_path / model.config.model_type
    policy, bare = logits(base, folder / "adapter"), logits(base)
    assert (policy - bare).abs().max() > 1e-2
    torch.testing.assert_close(logits(folder / "merged"), policy, rtol=1e-4, atol=1e-4)
    merge_files(base, folder / "adapter", tmp_path / "from-files")
    torch.testing.assert_close(logits(tmp_path / "from-files"), policy, rtol=1e-4, atol=1e-4)


def test_a_hybrid_models_run_goes_on_bit_for_bit(run, tokenizer, counted):  # noqa: F811
    model = family_model("bamba", vocab_size=len(tokenizer))
    more = {"dropout": 0.3, "merge": False, "max_steps": 6}
    whole = run("whole", model, **more)
    with pytest.raises(Stopped):
        run("cut", model, counted(After(2)), **more)
    cut = run("cut", model, resume="", **more)
    assert (cut / LAST).read_bytes() == (whole / LAST).read_bytes()
    assert lines(cut) == lines(whole)


@pytest.mark.parametrize(
    "family, others",
    [
        ("jamba", ["mamba.dt_proj.weight", "feed_forward.router.weight"]),
        ("llama4", ["feed_forward.router.weight", "feed_forward.experts.gate_up_proj"]),
        ("deepseek_v3", ["mlp.gate.weight", "mlp.experts.down_proj"]),
    ],
)
def test_all_linear_says_what_it_leaves_out(run, tokenizer, capsys, family, others):
    model = family_model(family, vocab_size=len(tokenizer))
    folder = run("out", model, target_modules=("all-linear",), max_steps=1, merge=False)
    (said,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("all-linear: no"))
    assert all(f".*.{name}" in said for name in others), said
    named = said.removeprefix("all-linear: no adapter for ").partition(";")[0].split(", ")
    sizes = [(re.sub(r"\.\d+\.", ".*.", n), p.numel()) for n, p in model.named_parameters()]
    share = sum(size for n, size in sizes if n in named) / sum(size for _, size in sizes)
    assert f"they stay frozen: {share:.1%} of its parameters" in said and share > 0.05
    assert not any(f".{others[0].split('.')[1]}." in key for key in load_file(folder / LAST))


@pytest.mark.parametrize("kind", ROTARY)
def test_where_rotary_frequencies_depend_on_the_length_a_run_starts_at_ln_2(
    run, tokenizer, capsys, kind
):
    """Texts have up to 23 tokens, the window 16; at a rate of 0 all steps are like the first."""
    model = length_dependent(kind, window=16, vocab_size=len(tokenizer))
    more = {"max_length": 512, "epochs": 1, "lr": 0.0, "batch_size": 3, "grad_accum": 1}
    folder = run("out", model, merge=False, shuffle="pairs", **more)
    assert [s["loss"] for s in lines(folder)] == [pytest.approx(math.log(2), abs=1e-5)] * 4
    assert "plain rows" in capsys.readouterr().out


def test_a_model_whose_weights_are_in_layers_of_its_own_is_refused_in_one_line(
    tokenizer, questions_csv, tmp_path, capsys
):
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    config = transformers.GPT2Config(vocab_size=len(tokenizer), **size)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    more = ["--data", str(questions_csv), "--output-dir", str(tmp_path / "out")]
    assert train.main(["--model", str(tmp_path / "gpt2"), *more]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "'auto' matches no module; this model has no nn.Linear layers" in said
    assert "Conv1D" in said


def test_a_family_whose_own_forward_fails_is_refused_in_one_line(
    tokenizer, questions_csv, tmp_path, capsys, monkeypatch
):
    def forward(*args, **inputs):
        raise KeyError("full_attention")

    family_model("bamba", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "bamba")
    tokenizer.save_pretrained(tmp_path / "bamba")
    monkeypatch.setattr(transformers.BambaForCausalLM, "forward", forward)
    more = ["--data", str(questions_csv), "--output-dir", str(tmp_path / "out")]
    assert train.main(["--model", str(tmp_path / "bamba"), *more]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "the model's own forward fails ('full_attention'); choose another --model" in said
