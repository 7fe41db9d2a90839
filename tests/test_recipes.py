"""Every recipe: its settings are flags, and it runs to its end with a small model in its place."""

import itertools
import json
import re
from dataclasses import replace

import numpy
import pytest
import torch
import transformers
import yaml
from conftest import CHAT_TEMPLATE, ROOT, SMALL, small_tokenizer
from families import drawn
from test_data_forms import FORMS

import data
import train
from data import EncodedQuestion
from dpo import Budgets
from lora import decoder_layers
from run import plan
from run.config import parse
from run.rates import USUAL, largest_rate

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


# What these models' own configurations say, as they stand on the Hub; a small one for its runs.
INSTRUCT = {
    "qwen3-4b-nf4": (8, transformers.Qwen3Config(
        vocab_size=151_936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )),
    "smollm3-3b": (16, transformers.SmolLM3Config(
        vocab_size=128_256, hidden_size=2048, intermediate_size=11_008, num_hidden_layers=36,
        num_attention_heads=16, num_key_value_heads=4, tie_word_embeddings=True,
    )),
    "llama-3.1-8b-nf4": (16, LLAMA := transformers.LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
    )),
    "llama-3.1-8b": (24, LLAMA),
    "mistral-small-24b-nf4": (24, transformers.MistralConfig(
        vocab_size=131_072, hidden_size=5120, intermediate_size=32_768, num_hidden_layers=40,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, sliding_window=None,
    )),
    "gemma-2-9b-it-nf4": (16, transformers.Gemma2Config(
        vocab_size=256_000, hidden_size=3584, intermediate_size=14_336, num_hidden_layers=42,
        num_attention_heads=16, num_key_value_heads=8, head_dim=256, query_pre_attn_scalar=256,
    )),
}  # fmt: skip


@pytest.fixture(scope="module")
def chat_tokenizer():
    tokenizer = small_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture
def small_folder(chat_tokenizer, model_folder, tmp_path):
    """A small model of a recipe's own architecture, with a chat template where it asks for one."""

    def of(recipe):
        if recipe.stem not in INSTRUCT:
            return model_folder
        _, config = INSTRUCT[recipe.stem]
        small = type(config)(**SMALL | {"vocab_size": len(chat_tokenizer), "num_hidden_layers": 2})
        drawn(small, 0.3).save_pretrained(tmp_path / "small")
        chat_tokenizer.save_pretrained(tmp_path / "small")
        return tmp_path / "small"

    return of


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_to_its_end_on_a_small_model(
    recipe, small_folder, questions_csv, private_cache, plain_pictures, tmp_path
):
    """As people run it, with --model and --data in place of what the Hub has."""
    argv = [
        "--config", recipe, "--model", small_folder(recipe), "--data", questions_csv,
        "--device", "cpu", "--output-dir", tmp_path / "run", "--max-steps", "2",
    ]  # fmt: skip
    if recipe.stem in INSTRUCT:  # the same form as the data set that it names
        path = FORMS / "ultrafeedback_binarized.jsonl"
        argv += [
            "--data",
            path,
            "--eval-data",
            FORMS / "tulu3_preference.jsonl",
            "--max-steps",
            "1",
        ]
    assert train.main([*map(str, argv)]) == 0
    written = yaml.safe_load(recipe.read_text())
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    for name, value in written.items():
        if name not in ("model", "data", "eval_data"):
            expected = float(value) if name == "lr" else value
            assert kept[name] in (expected, [expected]), name
    assert (tmp_path / "run" / "merged").is_dir() == written.get("merge", True)
    measured = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    if recipe.stem not in INSTRUCT:
        expected = 0 if recipe.stem.startswith("seed") else 1  # a fifth of five
        assert measured["questions"] == expected


def test_recipes_name_the_models_and_settings_of_the_mission():
    for recipe in RECIPES:
        config = parse(["--config", str(recipe)])
        assert config.batch_size * config.grad_accum == 8 and config.epochs == 1
        assert (config.rank, config.alpha, config.dropout) == (8, 16, 0.05)
        instruct = recipe.stem in INSTRUCT
        assert config.target_modules == (("all-linear",) if instruct else ("q_proj", "v_proj"))
        if instruct:
            assert config.template == "chat" and config.beta == 0.1 and config.lr == USUAL
        if recipe.stem.startswith("seed"):
            assert config.beta == 1 and config.model == "google/gemma-2-9b"
            assert config.reference_free == ("reference-free" in recipe.stem)
        assert (config.quantize == "nf4") == ("nf4" in recipe.stem)


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTRUCT)
def test_the_memory_that_a_recipe_plans_is_what_it_says_and_fits_its_card(
    name, tmp_path, monkeypatch
):
    """Of a model without weights: a prompt of 512 tokens and two answers up to --max-length."""
    card, configuration = INSTRUCT[name]
    configuration.save_pretrained(tmp_path)
    recipe = ROOT / "recipes" / f"{name}.yaml"
    capped = getattr(configuration, "attn_logit_softcapping", None)
    config = parse(["--config", str(recipe), "--attention", "eager" if capped else "sdpa"])  # GPUs'
    prompt, answers = tuple(range(10, 522)), (tuple(range(600, 1112)), tuple(range(1200, 1712)))
    question = EncodedQuestion(prompt, answers[0], (answers[1],))
    assert len(prompt) + len(answers[0]) == config.max_length
    monkeypatch.setattr(data, "of_all_lengths", lambda questions, count: questions)

    class Few(list):
        def column(self, name):
            return numpy.array([{"as_tries": 1536, "prompt_length": 512}[name]])

        def map(self, change):
            return Few(map(change, self))

    sides = type("Q", (), {"train": Few([question]), "held_out": Few([question])})
    steps = data.Steps([1], 8, epochs=1, seed=0, shuffle="questions")
    work = plan.Work(config, sides, steps)
    made = plan.make(work, tmp_path, torch.device("cpu"), torch.bfloat16, Budgets())
    on_gpu = replace(made, program=0, blocks=0, no_graphs="no")
    peak = on_gpu.peak / 2**30
    said = float(re.search(r"Planned: ([\d.]+) GiB", recipe.read_text())[1])
    assert said == pytest.approx(peak, abs=0.06)
    assert peak < card * 10**9 / 2**30 - 0.6  # of which the driver takes some
    assert f"of {card} GB" in recipe.read_text()


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
    if recipe.stem in INSTRUCT:
        assert said.startswith("The rate is unmeasured at this size") and rate == USUAL
        billions = int(re.search(r"-(\d+)b", recipe.stem)[1])
        largest = largest_rate(billions * 10**9)
        assert f"up to {largest:.0e}".replace("e-0", "e-") in said and largest >= USUAL
        return
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
