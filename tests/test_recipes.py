"""Every recipe: its settings are flags, and it runs to its end with a small model in its place."""

import json

import pytest
import yaml
from conftest import ROOT

import train
from lora import decoder_layers
from run.config import parse

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


def test_the_layers_are_computed_again_where_the_recipe_says_so(
    model_folder, questions_csv, private_cache, tmp_path, monkeypatch
):
    seen = []
    real = train.answer_logps

    def watched(model, trees):
        seen.append("forward" in vars(decoder_layers(model)[0]))
        return real(model, trees)

    monkeypatch.setattr(train, "answer_logps", watched)
    argv = [
        "--config", ROOT / "recipes" / "gemma-2-9b-nf4-8gb.yaml", "--model", model_folder,
        "--data", questions_csv, "--device", "cpu", "--output-dir", tmp_path / "run",
    ]  # fmt: skip
    assert train.main([*map(str, argv)]) == 0
    assert True in seen
