"""MC1 and MC2 are lm-eval's, on its own task over a local copy of the questions."""

import json

import pytest
import yaml
from conftest import ROOT, small_model

from data import load_preferences
from run.__main__ import main

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
lm_eval = pytest.importorskip("lm_eval", reason="needs the extra [parity]")


def task(name, file):
    """lm-eval's task of that name, its data read from our file."""
    from pathlib import Path

    from lm_eval.api.task import ConfigurableTask

    folder = Path(lm_eval.__file__).parent / "tasks" / "truthfulqa"
    config = yaml.safe_load((folder / "truthfulqa_mc1.yaml").read_text())
    config |= {"task": name, "dataset_path": "json", "dataset_name": None}
    config |= {"dataset_kwargs": {"data_files": {"validation": str(file)}}}
    if name == "truthfulqa_mc2":
        from lm_eval.tasks.truthfulqa.utils import process_results_mc2

        config["doc_to_choice"] = "{{mc2_targets.choices}}"
        config["process_results"] = process_results_mc2
    config.pop("tag")
    return ConfigurableTask(config=config)


def test_mc1_and_mc2_equal_lm_evals(tmp_path, private_cache, tokenizer):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path / "model"
    model = small_model("gemma2", vocab_size=len(tokenizer), max_position_embeddings=2048)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preferences = load_preferences(str(ROOT / "data" / "misconceptions.csv"))[:60]
    docs = []
    for p in preferences:
        mc2 = [p.chosen, *p.correct, *p.rejected]
        labels = [1] * (1 + len(p.correct)) + [0] * len(p.rejected)
        docs.append({
            "question": p.prompt,
            "mc1_targets": {
                "choices": [p.chosen, *p.rejected], "labels": [1] + [0] * len(p.rejected),
            },
            "mc2_targets": {"choices": mc2, "labels": labels},
        })  # fmt: skip
    file = tmp_path / "docs.json"
    file.write_text("\n".join(map(json.dumps, docs)))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(
        json.dumps({
            "question": p.prompt, "best_answer": p.chosen, "correct_answers": list(p.correct),
            "incorrect_answers": list(p.rejected),
        })
        for p in preferences
    ))  # fmt: skip

    theirs = simple_evaluate(
        model=HFLM(str(folder), device="cpu", dtype="float32", batch_size=8, add_bos_token=True),
        tasks=[task("truthfulqa_mc1", file), task("truthfulqa_mc2", file)],
        bootstrap_iters=0,
    )["results"]
    out = tmp_path / "ours.json"
    argv = [
        "evaluate", str(folder), "--data", str(rows), "--prompt", "truthfulqa",
        "--dtype", "float32", "--device", "cpu", "--output", str(out),
    ]  # fmt: skip
    assert main(argv) == 0
    ours = json.loads(out.read_text())["model"]
    assert ours["mc1"] == pytest.approx(theirs["truthfulqa_mc1"]["acc,none"], abs=1e-6)
    assert ours["mc2"] == pytest.approx(theirs["truthfulqa_mc2"]["acc,none"], abs=1e-6)
    assert 0 < ours["mc1"] < 1
