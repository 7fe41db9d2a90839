"""`python -m run evaluate`: the figures of a run again, of any model, with the authors' prompt."""

import json

import pytest
import torch
from conftest import relative_error

from data import load_preferences
from data.templates import TRUTHFULQA_PROMPT
from run.__main__ import main

TRIVIAL = ["--dtype", "float32", "--device", "cpu"]


@pytest.fixture(autouse=True)
def own_cache(private_cache, plain_pictures):
    return private_cache


@pytest.fixture
def measured(tmp_path):
    def measured(*argv):
        out = tmp_path / "figures.json"
        assert main(["evaluate", *map(str, argv), *TRIVIAL, "--output", str(out)]) == 0
        return json.loads(out.read_text())

    return measured


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name


def test_a_runs_figures_are_those_it_wrote_itself(finished, measured):
    expected = json.loads((finished / "evaluation.json").read_text())
    found = measured(finished)
    assert found["questions"] == expected["questions"] == 1
    close(found["before"], expected["before"])
    close(found["after"], expected["after"])


def test_the_merged_model_measured_on_the_same_split_is_the_tuned_one(
    finished, measured, questions_csv
):
    expected = json.loads((finished / "evaluation.json").read_text())
    found = measured(finished / "merged", "--data", questions_csv, "--eval-fraction", 0.2)
    assert found["questions"] == 1
    for name, value in expected["after"].items():
        assert found["model"][name] == pytest.approx(value, abs=1e-2), name


def test_a_model_is_measured_on_all_questions_and_an_adapter_beside_it(
    finished, measured, model_folder, questions_csv, capsys
):
    alone = measured(model_folder, "--data", questions_csv)
    assert alone["questions"] == 5 and "before" not in alone
    assert "95% interval" in capsys.readouterr().out
    both = measured(model_folder, "--data", questions_csv, "--adapter", finished / "adapter")
    close(both["before"], alone["model"])
    assert both["after"] != both["before"]
    assert set(both["by_category"]) == {"One", "Two"}


@torch.no_grad()
def test_the_authors_prompt_by_hand(measured, model_folder, questions_csv):
    """Six examples, the question, then each answer's own tokens and no stop token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = AutoModelForCausalLM.from_pretrained(model_folder).config
    config.max_position_embeddings = 2048
    how = {"config": config, "attn_implementation": "eager"}  # the one that caps its scores
    model = AutoModelForCausalLM.from_pretrained(model_folder, **how).eval()
    model.save_pretrained(questions_csv.parent / "long")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.save_pretrained(questions_csv.parent / "long")
    wins = masses = 0.0
    for p in load_preferences(str(questions_csv)):
        start = TRUTHFULQA_PROMPT.replace("{}", p.prompt)
        assert start.endswith(f"\n\nQ: {p.prompt}\nA:")
        prompt = [tokenizer.bos_token_id, *tokenizer(start, add_special_tokens=False).input_ids]
        scores = []
        for answer in p.answers:
            ids = tokenizer(f" {answer}", add_special_tokens=False).input_ids
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            logps = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])
            scores.append(float(logps.sum()))
        incorrect = scores[1 : 1 + len(p.rejected)]
        correct = torch.tensor([scores[0], *scores[1 + len(p.rejected) :]])
        wins += scores[0] > max(incorrect)
        e = torch.tensor(scores).logsumexp(0)
        masses += float((correct - e).exp().sum())
    found = measured(
        questions_csv.parent / "long", "--data", questions_csv, "--prompt", "truthfulqa"
    )
    assert found["model"]["mc1"] == wins / 5
    assert relative_error(
        torch.tensor(found["model"]["mc2"]), torch.tensor(masses / 5)
    ) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["none/of/these"], "there is no such folder"),
        (["RUN", "--eval-fraction", "0.5"], "--eval-fraction is the run's own"),
        (["RUN", "--adapter", "none"], "none"),
        (["RUN", "--data", "none.csv"], "none.csv"),
    ],
)
def test_wrong_arguments_end_with_one_line(argv, complaint, finished, capsys):
    assert main(["evaluate", *(str(finished) if a == "RUN" else a for a in argv)]) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1
