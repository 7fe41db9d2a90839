"""Every recipe: its settings are flags, and it runs to its end with a small model in its place."""

import itertools
import json
import re

import pytest
import yaml
from conftest import ROOT

import train
from lora import decoder_layers
from run.config import parse
from run.rates import USUAL, largest_rate

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_to_its_end_on_a_small_model(
    recipe, model_folder, questions_csv, private_cache, tmp_path
):
    """As people run it, with --model and --data in place of what the Hub has."""
    argv = [
        "--config", recipe, "--model", model_folder, "--data", questions_csv, "--device", "cpu",
        "--output-dir", tmp_path / "run", "--max-steps", "2",
    ]  # fmt: skip
    assert train.main([*map(str, argv)]) == 0
    written = yaml.safe_load(recipe.read_text())
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    for name, value in written.items():
        if name not in ("model", "data"):
            expected = float(value) if name == "lr" else value
            assert kept[name] == expected, name
    assert (tmp_path / "run" / "merged").is_dir() == written.get("merge", True)
    measured = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert measured["questions"] == (0 if recipe.stem.startswith("seed") else 1)  # a fifth of five


def test_recipes_name_the_models_and_settings_of_the_mission():
    for recipe in RECIPES:
        config = parse(["--config", str(recipe)])
        assert config.batch_size * config.grad_accum == 8 and config.epochs == 1
        assert (config.rank, config.alpha, config.dropout) == (8, 16, 0.05)
        assert config.target_modules == ("q_proj", "v_proj")
        if recipe.stem.startswith("seed"):
            assert config.beta == 1 and config.model == "google/gemma-2-9b"
            assert config.reference_free == ("reference-free" in recipe.stem)
        assert (config.quantize == "nf4") == ("nf4" in recipe.stem)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_where_its_rate_was_measured_or_that_it_was_not(recipe):
    """And what it names is there: the section of RESULTS with this rate, the examples' largest."""
    rate = float(yaml.safe_load(recipe.read_text())["lr"])
    lines = recipe.read_text().splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("lr:")]
    comments = itertools.takewhile(lambda line: line.startswith("#"), reversed(lines[:at]))
    said = " ".join(line.removeprefix("# ") for line in reversed(list(comments)))
    small = "270m" in recipe.stem
    name = "The learning rate, and what it costs"
    if small:
        name = "What does a run gain, and what does it cost?"
    assert f"(benchmarks/RESULTS.md, {name})" in said
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    section = results.split(f"### {name}\n")[1].split("\n### ")[0]
    size = re.search(r"(\d+)b", recipe.stem if "gemma" in recipe.stem else "9b")
    if small:
        assert said.startswith("The rate was measured on this model")
        assert f"`--lr {rate:.0e}`".replace("e-0", "e-") in section
    else:
        assert said.startswith("The rate is unmeasured at this size")
        assert "2e-4, which is not measured there" in section and rate == 2e-4
        assert "up to 2e-4" in said and largest_rate(int(size[1]) * 10**9) == rate
        assert "most of them 5e-6" in said and USUAL == 5e-6
        guide = (ROOT / "docs" / "guide.md").read_text()
        assert "(docs/guide.md, Rates for larger models)" in said
        assert "\n### Rates for larger models\n" in guide


def test_the_layers_are_computed_again_where_the_recipe_says_so(
    model_folder, questions_csv, private_cache, tmp_path, monkeypatch
):
    seen = []
    real = train.policy_logps

    def watched(model, batch):
        seen.append("forward" in vars(decoder_layers(model)[0]))
        return real(model, batch)

    monkeypatch.setattr(train, "policy_logps", watched)
    argv = [
        "--config", ROOT / "recipes" / "gemma-2-9b-nf4-8gb.yaml", "--model", model_folder,
        "--data", questions_csv, "--device", "cpu", "--output-dir", tmp_path / "run",
    ]  # fmt: skip
    assert train.main([*map(str, argv)]) == 0
    assert True in seen
