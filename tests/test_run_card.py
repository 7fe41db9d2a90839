"""The model card: valid metadata, the run's own figures, and nothing that data could make of it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import lora
from run.card import base_on_hub, fenced, literal, model_card, public_name

HOSTILE = [
    "a | b | c",
    "<script>alert(1)</script>",
    "[click](http://evil.example) ![x](http://evil.example/x.png)",
    "# Title\n---\n- [ ] item\n1. one",
    "`code` ``more`` ```\nfence\n```",
    "*bold* _it_ ~~gone~~ $x^2$ &amp; &lt; \\* :smile: @somebody",
    "---\nlicense: mit\n---",
]


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_is_shown_as_it_is_and_means_nothing(text):
    (paragraph, inline, end) = MarkdownIt("commonmark").enable("table").parse(literal(text))
    assert (paragraph.type, end.type) == ("paragraph_open", "paragraph_close")
    assert all(child.type in ("text", "text_special") for child in inline.children)
    shown = "".join(child.content for child in inline.children)
    assert shown == " ".join(text.split())


@pytest.mark.parametrize("text", [*HOSTILE, "````", "``````\n# out\n`````"])
def test_fenced_text_stays_in_its_block(text):
    tokens = MarkdownIt("commonmark").parse(fenced(text) + "\n\nafter")
    assert [t.type for t in tokens][:2] == ["fence", "paragraph_open"]
    assert tokens[0].content == text + "\n"


def test_the_metadata_is_valid_and_complete(run):
    text = (run / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data
    assert data.library_name == "transformers" and data.pipeline_tag == "text-generation"
    assert "dpo" in data.tags and data.base_model is None  # a local folder is nobody's base
    measured = json.loads((run / "evaluation.json").read_text())["after"]
    found = {e.metric_type: e.metric_value for e in data.eval_results}
    assert found == {n: round(measured[n], 4) for n in ("mc1", "mc2", "pair_accuracy")}


def test_the_card_has_the_runs_figures_and_no_folder_of_this_machine(run):
    text = (run / "README.md").read_text(encoding="utf-8")
    results = json.loads((run / "evaluation.json").read_text())
    for measure in ("mc1", "mc2", "pair_accuracy", "margin"):
        before, after = results["before"][measure], results["after"][measure]
        low, high = results["intervals"]["difference"][measure]
        row = f"| {before:.3f} | {after:.3f} | {after - before:+.3f} | {low:+.3f} to {high:+.3f} |"
        assert row in text
    drift = results["drift"]
    assert f"{drift['kl']:.2f} nats an answer" in text
    assert f"{drift['perplexity_before']:.2f} before" in text
    assert "rank: 8" in text and "questions.csv" in text
    assert str(run.parent) not in text and str(run.parent.parent) not in text
    sample = json.loads((run / "samples.json").read_text())[0]
    assert sample["prompt"] in text and sample["tuned"]["text"] in text
    assert "not loaded again" in text  # nothing was published, so nothing was checked


def test_every_setting_that_shapes_a_run_is_in_its_card_and_no_folder_of_this_machine(run):
    """An adapter is named as others may know it: by the last part of its path."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    shown = {
        "reference": "adapter", "lora_plus_ratio": 16.0, "divergence_alpha": 0.3,
        "truncate": "prompt", "rank_pattern": ["v_proj=2"], "alpha_pattern": ["q_proj=3"],
        "prompt_format": "Q: {}", "answer_format": "A: {}", "seed": 7, "dropout": 0.0,
    }  # fmt: skip
    before = model_card(run).text
    for name in ("adapter", "rank_pattern", "alpha_pattern", "prompt_format"):
        assert f"\n{name}: " not in before  # off by default
    changed = config | shown | {"adapter": str(run.parent / "elsewhere" / "first-adapter")}
    (run / "config.yaml").write_text(yaml.safe_dump(changed))
    text = model_card(run).text
    for name, value in (shown | {"adapter": "first-adapter"}).items():
        assert f"\n{name}: {value}\n" in text
    assert str(run.parent) not in text and "elsewhere" not in text


def test_what_data_and_samples_say_cannot_change_the_card(run):
    """The same card with hostile names and answers has the same headings and metadata."""
    plain = ModelCard((run / "README.md").read_text(encoding="utf-8"))
    samples = json.loads((run / "samples.json").read_text())
    samples[0] |= {"prompt": "```\n# Own heading\n<b>", "tuned": {"text": HOSTILE[6], "alarms": []}}
    (run / "samples.json").write_text(json.dumps(samples))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] = "/tmp/x\n# Own heading | <img src=x>.csv"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    hostile = model_card(run)

    def headings(made):
        tokens = MarkdownIt("commonmark").parse(made.content.split("---", 2)[2])
        return [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]

    assert headings(hostile)[1:] == headings(plain)[1:]
    assert len(headings(plain)) == 8
    tokens = MarkdownIt("commonmark").parse(hostile.content.split("---", 2)[2])
    assert not [t for t in tokens if t.type == "html_block"]
    found, expected = hostile.data.to_dict(), plain.data.to_dict()
    assert found.pop("model-index") != expected.pop("model-index")  # the data set's name
    assert found == expected


def test_a_model_trained_on_truthfulqa_says_that_it_is_contaminated(run):
    assert "contaminated" not in str(model_card(run))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"data": ["truthfulqa"]}))
    made = model_card(run)
    assert "**This model is contaminated for TruthfulQA**" in made.text
    assert made.data.datasets == ["truthfulqa/truthful_qa"]


def test_the_best_step_and_falling_log_probs_get_their_word(run):
    facts = json.loads((run / "summary.json").read_text())
    facts["best"] = {"step": 3, "metric": "mc2", "value": 0.5}
    (run / "summary.json").write_text(json.dumps(facts))
    results = json.loads((run / "evaluation.json").read_text())
    results["drift"] |= {"chosen": -4.0, "rejected": -9.0}
    (run / "evaluation.json").write_text(json.dumps(results))
    text = str(model_card(run))
    assert "that of step 3, the best of several by MC2" in text
    assert "log-probs of chosen answers fell too" in text


def test_a_run_of_before_whose_samples_have_base_gets_its_card_too(run):
    text = model_card(run).text
    samples = json.loads((run / "samples.json").read_text())
    old = [{"base": sample.pop("before"), **sample} for sample in samples]
    (run / "samples.json").write_text(json.dumps(old))
    assert model_card(run).text == text


def test_names_are_public_ones(tmp_path, monkeypatch):
    (tmp_path / "secret.csv").write_text("")
    assert public_name(str(tmp_path / "secret.csv")) == "secret.csv"
    assert public_name("builtin") == "builtin" and public_name("org/data") == "org/data"
    assert base_on_hub("builtin") == "google/gemma-3-270m"
    assert base_on_hub(str(lora.builtin_path())) == "google/gemma-3-270m"
    assert base_on_hub(str(tmp_path)) is None and base_on_hub("org/model") == "org/model"
