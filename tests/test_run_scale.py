"""The size of what a run leaves: --scale, --scale auto, and a finished run anew at another size."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

import dpo
import lora
import train
from dpo.evaluation.neutral import neutral_texts, perplexities
from run import inputs
from run.__main__ import main
from run.card import model_card
from run.config import Config, parse
from run.reference import read_cache
from run.sizes import Sizes


@pytest.fixture(autouse=True)
def own_cache(private_cache, plain_pictures):
    return private_cache


@pytest.fixture
def run(model_folder, questions_csv, tmp_path):
    """Run with some settings into a folder of that name; return the folder."""

    def run(name, **more):
        settings = {
            "model": str(model_folder), "data": str(questions_csv), "dtype": "float32",
            "device": "cpu", "dropout": 0.0, "epochs": 6, "lr": 1e-2,
            "output_dir": str(tmp_path / name), "scale": "1",
        }  # fmt: skip
        return train.run(Config(**(settings | more)))

    return run


def scale(*argv):
    return main(["scale", *map(str, argv)])


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def check_size(found, whole, factor, rtol=1e-6):
    """Every B is the whole one times the factor, and every A the whole one."""
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        expected = tensor * (factor if "lora_B" in name else 1)
        torch.testing.assert_close(found[name], expected, rtol=rtol, atol=0)


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def text_perplexities(folder, size):
    """Of neutral text by the run's base with its adapter at a share of its size."""
    finished = inputs.finished_run(folder)
    tokenizer, _ = inputs.load_tokenizer(finished.config)
    model = inputs.load_model(finished.config).model
    lora.load_adapter(model, finished.adapter)
    lora.scale_adapter(model.eval(), size)
    texts = neutral_texts(tokenizer)
    every = [part for kind in texts.values() for part in kind]
    return perplexities(texts, dpo.Scorer(model, joined=False).scores("", [every]))


def test_the_dial_begins_with_the_base_and_ends_with_the_whole_adapter(run, capsys):
    folder = run("whole", merge=False)
    results, (zero, *_, one) = read(folder, "evaluation"), read(folder, "evaluation")["dial"]
    assert [point["scale"] for point in results["dial"]] == [0, 0.25, 0.5, 0.75, 1]
    for point, when in ((zero, "before"), (one, "after")):
        for measure in ("mc1", "mc2", "pair_accuracy"):
            assert point[measure] == results[when][measure]
        assert point["perplexity"] == results["drift"][f"perplexity_{when}"]
        assert point["perplexities"] == results["drift"][f"perplexities_{when}"]
    assert (zero["kl_per_token"], zero["chosen"], zero["rejected"]) == (0, 0, 0)
    for name in ("kl_per_token", "chosen", "rejected"):
        assert one[name] == results["drift"][name] != 0
    for point in results["dial"]:
        expected = text_perplexities(folder, point["scale"])
        assert point["perplexities"] == pytest.approx(expected, rel=1e-5)
    said = capsys.readouterr().out
    assert "The dial: " in said and re.search(r"^1 \* +\d\.\d{3}", said, re.M)
    card = (folder / "README.md").read_text()
    assert "## The dial" in card and "| 0.25 |" in card and r"| 1 \* |" in card
    assert "times the trained delta" not in card and read(folder, "summary")["scale"] == 1


def test_half_the_adapter_is_saved_merged_and_measured(run, model_folder):
    whole, half = run("whole", merge=False), run("half", scale="0.5")
    check_size(adapter(half), adapter(whole), 0.5)
    of_whole, results = read(whole, "evaluation"), read(half, "evaluation")
    point = next(point for point in of_whole["dial"] if point["scale"] == 0.5)
    for measure in ("mc1", "mc2", "pair_accuracy"):
        assert results["after"][measure] == point[measure]
    assert results["drift"]["perplexities_after"] == point["perplexities"]
    assert results["dial"] == of_whole["dial"]  # it is of the trained adapter
    merged = transformers.AutoModelForCausalLM.from_pretrained(half / "merged").eval()
    ours = transformers.AutoModelForCausalLM.from_pretrained(model_folder).eval()
    lora.load_adapter(ours, whole / "adapter")
    tokens = torch.arange(1, 20)[None]
    with torch.no_grad(), lora.adapter_scaled(ours, 0.5):
        torch.testing.assert_close(merged(tokens).logits, ours(tokens).logits, rtol=1e-4, atol=1e-4)
    assert read(half, "summary")["scale"] == 0.5
    assert "The adapter here is 0.5 times the trained delta." in (half / "README.md").read_text()
    assert yaml.safe_load((half / "config.yaml").read_text())["scale"] == "0.5"


def test_the_samples_are_of_the_size_that_is_left(run, monkeypatch):
    answering = []

    def watched(model, *_):
        answering.extend(layer.B.detach().T.clone() for layer in lora.lora_layers(model).values())
        return []

    monkeypatch.setattr(dpo, "samples", watched)
    saved = adapter(run("half", merge=False, scale="0.5"))
    saved = [tensor for name, tensor in saved.items() if "lora_B" in name]
    assert len(answering) == len(saved) == 8
    for found in answering:
        assert any(torch.equal(found, tensor) for tensor in saved)


def test_a_size_beyond_the_five_is_on_the_dial_too(run):
    folder = run("more", scale="1.5", merge=False)
    dial = read(folder, "evaluation")["dial"]
    assert [point["scale"] for point in dial] == [0, 0.25, 0.5, 0.75, 1, 1.5]
    assert dial[-1]["mc2"] == read(folder, "evaluation")["after"]["mc2"]


def test_auto_leaves_the_largest_size_whose_cost_is_within_the_limit(run, capsys):
    """At the next 32nd some kind of text rises by more. The held-out questions have no say."""
    whole = run("whole", merge=False)
    none, all_of_it = (text_perplexities(whole, size) for size in (0, 1))
    limit = dpo.rise(none, all_of_it) / 3
    assert limit > 0.001
    found = run("auto", merge=False, scale="auto", max_drift=limit)
    size = read(found, "summary")["scale"]
    assert 0 < size < 1 and size * 32 == int(size * 32)
    assert dpo.rise(none, text_perplexities(whole, size)) <= limit
    assert dpo.rise(none, text_perplexities(whole, size + 1 / 32)) > limit
    check_size(adapter(found), adapter(whole), size)
    assert f"Size: {size:.5g} of the trained adapter" in capsys.readouterr().out
    blind = run("blind", merge=False, scale="auto", max_drift=10.0)
    check_size(adapter(blind), adapter(whole), 1)
    for kind in ("README.md", "config.yaml"):
        assert "auto" in (found / kind).read_text()
    usual = run("usual", merge=False, scale=None, max_drift=limit)  # since it has anchors
    assert read(usual, "summary")["scale"] == size
    assert inputs.finished_run(usual).config.scale == "auto"


def test_auto_needs_no_held_out_questions(run):
    whole = run("whole", merge=False, eval_fraction=0.0)
    limit = dpo.rise(text_perplexities(whole, 0), text_perplexities(whole, 0.6))
    settings = {"eval_fraction": 0.0, "scale": "auto", "max_drift": 1.001 * limit}
    folder = run("out", merge=False, **settings)
    size = read(folder, "summary")["scale"]
    assert size == 19 / 32 and read(folder, "evaluation") == {"questions": 0}  # the last below .6
    check_size(adapter(folder), adapter(whole), size)
    assert not (folder / "dial.png").exists()


def test_where_no_size_holds_the_run_stops_with_what_to_do_and_can_go_on(run, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(dpo.NumericError) as error:
        patch.setattr(Sizes, "rise", lambda self, size: 0.3 + size)
        run("out", merge=False, scale="auto")
    assert str(error.value).startswith("--scale auto: even 0.03125 of the adapter raises")
    assert "33.1%, more than --max-drift 0.05; give a larger one, or a number" in str(error.value)
    folder = Path(run("whole", merge=False)).with_name("out")
    assert not (folder / "adapter").exists() and not (folder / "summary.json").exists()
    train.run(parse(["--resume", str(folder), "--scale", "0.25"]))
    check_size(adapter(folder), adapter(folder.with_name("whole")), 0.25)


def test_a_finished_run_goes_on_at_another_size(run):
    """Its checkpoint has the trained adapter, of which 0.25 is a quarter, and not an eighth."""
    folder = run("out", merge=False, scale="0.5")
    half = adapter(folder)
    train.run(parse(["--resume", str(folder), "--scale", "0.25", "--max-drift", "0.2"]))
    check_size(adapter(folder), half, 0.5)
    assert read(folder, "summary")["scale"] == 0.25


def test_the_base_reads_neutral_text_once_for_all_runs(run, own_cache, monkeypatch):
    folder = run("first", merge=False)
    config = inputs.finished_run(folder).config
    (cache,) = (own_cache / "reference").iterdir()
    tokenizer, _ = inputs.load_tokenizer(config)
    texts = neutral_texts(tokenizer)
    known = read_cache(cache)
    before = read(folder, "evaluation")["drift"]["perplexities_before"]
    assert perplexities(texts, known) == before
    changed = {key: 2 * score for key, score in known.items()}
    cache.write_text(json.dumps(changed))
    again = read(run("second", merge=False), "evaluation")["drift"]["perplexities_before"]
    assert again == {kind: pytest.approx(value**2) for kind, value in before.items()}


def test_an_adapter_that_is_the_reference_is_not_scaled_with_the_policy(run):
    """Size 0 is the bare base: with --reference adapter it is not what the run is compared with."""
    start = run("start", merge=False)
    onward = run(
        "onward", merge=False, adapter=str(start / "adapter"), reference="adapter", max_steps=1
    )
    results = read(onward, "evaluation")
    zero, one = results["dial"][0], results["dial"][-1]
    assert zero["mc2"] == pytest.approx(read(start, "evaluation")["before"]["mc2"], rel=1e-5)
    assert results["before"]["mc2"] == pytest.approx(
        read(start, "evaluation")["after"]["mc2"], rel=1e-5
    )
    assert zero["kl_per_token"] > one["kl_per_token"] > 0  # one step moved less than all of them
    assert scale(onward, onward.with_name("half"), "--scale", "0.5") == 0
    found = read(onward.with_name("half"), "evaluation")
    assert found["before"] == pytest.approx(results["before"])
    for point, expected in zip(found["dial"], results["dial"], strict=True):
        assert flat(point) == pytest.approx(flat(expected), rel=1e-4, abs=1e-6)


def flat(point):
    return {**{k: v for k, v in point.items() if k != "perplexities"}, **point["perplexities"]}


def test_a_finished_run_is_made_anew_at_another_size(run, tmp_path, capsys):
    """As if it had been trained with that --scale, and nothing of it is touched."""
    whole, expected = run("whole"), run("expected", scale="0.5")
    before, out = files(whole), tmp_path / "half"
    capsys.readouterr()
    assert scale(whole, out, "--scale", "0.5") == 0
    assert files(whole) == before
    assert sorted(p.name for p in out.iterdir()) == sorted(
        p.name for p in whole.iterdir() if p.name != "checkpoints"
    )
    check_size(adapter(out), adapter(whole), 0.5)
    for name in ("config.yaml", "metrics.jsonl"):
        assert (out / name).read_bytes() == (expected / name).read_bytes()
    found, results = read(out, "evaluation"), read(expected, "evaluation")
    for when in ("before", "after"):
        assert found[when] == pytest.approx(results[when], rel=1e-5)
    assert [flat(p) for p in found["dial"]] == [
        pytest.approx(flat(p), rel=1e-4, abs=1e-6) for p in results["dial"]
    ]
    assert read(out, "samples") == read(expected, "samples")
    merged = [load_file(folder / "merged" / "model.safetensors") for folder in (out, expected)]
    for name, tensor in merged[0].items():
        torch.testing.assert_close(tensor, merged[1][name])
    kept = {"scale": 0.5, **{k: v for k, v in read(whole, "summary").items() if k != "scale"}}
    assert read(out, "summary") == kept
    assert (out / "README.md").read_text() == str(model_card(out))
    said = capsys.readouterr().out
    assert "Held out: 1 questions" in said and f"Written to {out}" in said
    assert main(["evaluate", str(out)]) == 0  # a run like any other


def test_sizes_are_shares_of_what_was_trained_also_of_a_run_that_was_scaled(run, tmp_path):
    """A half of the whole; then 1 is the whole again and .25 a quarter of it."""
    whole = run("whole", merge=False)
    for name, source, size in (("half", "whole", 0.5), ("one", "half", 1), ("less", "half", 0.25)):
        assert scale(tmp_path / source, tmp_path / name, "--scale", size) == 0
        check_size(adapter(tmp_path / name), adapter(whole), size)
        assert read(tmp_path / name, "summary")["scale"] == size
        dial = read(tmp_path / name, "evaluation")["dial"]
        assert [flat(p) for p in dial] == [
            pytest.approx(flat(p), rel=1e-4, abs=1e-5) for p in read(whole, "evaluation")["dial"]
        ]


def test_a_finished_run_may_be_scaled_by_its_cost(run, tmp_path):
    whole = run("whole", merge=False)
    limit = dpo.rise(text_perplexities(whole, 0), text_perplexities(whole, 0.6))
    out = tmp_path / "auto"
    assert scale(whole, out, "--scale", "auto", "--max-drift", 1.001 * limit) == 0
    assert read(out, "summary")["scale"] == 19 / 32  # the last 32nd below .6
    config = inputs.finished_run(out).config
    assert (config.scale, config.max_drift) == ("auto", pytest.approx(1.001 * limit))


def test_the_merged_model_may_be_left_out(run, tmp_path):
    whole = run("whole")
    assert scale(whole, tmp_path / "out", "--scale", "0.5", "--no-merge") == 0
    assert not (tmp_path / "out" / "merged").exists()
    assert read(tmp_path / "out", "summary")["merged"] is False
    assert inputs.finished_run(tmp_path / "out").config.merge is False
    assert scale(tmp_path / "out", tmp_path / "again", "--scale", "1") == 0
    assert not (tmp_path / "again" / "merged").exists()  # the run had none


def test_every_refusal_is_one_line_and_leaves_nothing(run, tmp_path, capsys):
    whole = run("whole", merge=False)
    before = files(tmp_path)
    (tmp_path / "no run").mkdir()
    out = tmp_path / "out"
    for argv, complaint in (
        ((whole, out, "--scale", "0"), "--scale 0 must be above 0 and up to 2, or auto"),
        ((whole, out, "--scale", "2.5"), "--scale 2.5 must be above 0 and up to 2, or auto"),
        ((whole, out, "--scale", "much"), "--scale much must be above 0 and up to 2, or auto"),
        ((whole, out, "--scale", "auto", "--max-drift", "0"), "--max-drift 0.0 must be above 0"),
        ((whole, out), "the following arguments are required: --scale"),
        ((tmp_path / "no run", out, "--scale", "1"), "no run is no finished run"),
        ((whole, whole, "--scale", "1"), "exists and is not empty; name another or remove it"),
        ((whole, whole / "half", "--scale", "1"), "lies within"),
        ((whole, whole / "config.yaml", "--scale", "1"), "config.yaml"),
    ):
        capsys.readouterr()
        assert scale(*argv) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and complaint in said, said
        assert said.startswith("python -m run scale: ")
        assert not out.exists()
    assert files(tmp_path) == before


def test_what_fails_midway_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    whole = run("whole")
    before = files(whole)

    def full(*_):
        raise OSError(28, "No space left on device", "merged")

    monkeypatch.setattr("run.scale.write_merged", full)
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        assert scale(whole, tmp_path / name, "--scale", "0.5") == 1
        assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "new").exists() and not list((tmp_path / "empty").iterdir())
    assert files(whole) == before


def test_runs_of_before_have_a_card_and_can_be_scaled(run, tmp_path):
    """Their evaluation.json has no dial and no kinds, and their summary.json no scale."""
    old = Path(shutil.copytree(run("whole", merge=False), tmp_path / "old"))
    results, facts = read(old, "evaluation"), read(old, "summary")
    del results["dial"], facts["scale"]
    for when in ("before", "after"):
        del results["drift"][f"perplexities_{when}"]
    (old / "evaluation.json").write_text(json.dumps(results))
    (old / "summary.json").write_text(json.dumps(facts))
    settings = yaml.safe_load((old / "config.yaml").read_text())
    del settings["scale"], settings["max_drift"]
    (old / "config.yaml").write_text(yaml.safe_dump(settings))
    card = model_card(old).text
    assert "perplexity of neutral text" in card and "The dial" not in card
    assert "max_drift" not in card
    assert scale(old, tmp_path / "half", "--scale", "0.5") == 0
    check_size(adapter(tmp_path / "half"), adapter(old), 0.5)


def test_a_size_may_be_given_as_a_number_in_a_file(tmp_path):
    (tmp_path / "x.yaml").write_text("scale: 0.5\nmax_drift: 0.03\n")
    config = parse(["--config", str(tmp_path / "x.yaml")])
    assert (config.size, config.max_drift) == (0.5, 0.03)
    assert replace(config, scale="auto").size is None and Config(scale="1").size == 1
    assert Config().size is None and Config(anchor_weight=0).size == 1
    assert Config(adapter="some").size == 1
