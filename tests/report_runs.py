"""Runs made by hand, as their files, for the tests of what is shown of them."""

import json
import math

from test_dpo_evaluation_dial import DIAL

from dpo import Metrics
from run.config import Config

HOSTILE = [
    "<script>window.obeyed = 1</script>",
    "</script><script>window.obeyed = 2</script>",
    "<img src=x onerror='window.obeyed = 3'>",
    "<!-- <script> -->",
    '"\' onmouseover="window.obeyed = 4" &lt;b&gt; &amp;',
    "javascript:alert(1) {{ 7 * 7 }} {% raw %} ${7 * 7}",
    "# Title\n**bold** [a](http://evil.example) | `code`",
    "\u05e9\u05dc\u05d5\u05dd \u202eevil\u202c \u2028\u2029 end",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u4f60\u597d e\u0301 \x00 \x1b[31m",
]


def question(prompt, before, after, kinds=("chosen", "rejected"), category="", texts=None):
    """One whose answers have these probabilities, of which only the ratios count."""
    answers = [
        {"text": texts[i] if texts else f"{prompt} {kind} {i}", "kind": kind, "tokens": 3,
         "before": math.log(before[i]), "after": math.log(after[i])}
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    return {"prompt": prompt, "category": category, "answers": answers}


QUESTIONS = [  # in the order of the data; MC2 before and after are the first of each two
    question("Up", (0.4, 0.6), (0.7, 0.3)),
    question("Down", (0.9, 0.1), (0.2, 0.8), category="Animals"),
    question("Held", (0.6, 0.4), (0.65, 0.35)),
    question("Never", (0.1, 0.9), (0.15, 0.85)),
]


def write_run(folder, questions=(), steps=40, without=(), held_out=None, **config):
    """Write a run's files; `without` are names of some that are left out."""
    folder.mkdir(parents=True)
    Config(**{"model": "builtin", "data": "questions.csv", **config}).save(folder / "config.yaml")
    names = Metrics._fields
    before, after = dict.fromkeys(names, 0.4), dict.fromkeys(names, 0.6)
    drift = {"kl": 1.5, "kl_per_token": 0.1, "chosen": -0.1, "rejected": -2.0,
             "perplexity_before": 16.0, "perplexity_after": 16.8,
             "perplexities_before": {"prose": 20.0},
             "perplexities_after": {"prose": 21.0}}  # fmt: skip
    interval = {name: [0.05, 0.35] for name in names}
    held_out = len(questions) if held_out is None else held_out
    files = {
        "summary": {
            "pairs": 320, "steps": steps, "seconds": {"load": 1.0, "train": 9.0}, "scale": 0.5,
            "pairs_per_second": 35.6, "peak_memory_bytes": 2**30, "planned_memory_bytes": 2**30,
            "model": "m", "before": "the frozen base", "data": "questions.csv", "best": {},
            "sources": [{"source": "questions.csv", "questions": 100, "held_out": False}],
            "merged": True, "hardware": "a machine", "versions": {"torch": "2"}, "skipped": 0,
            "tokens": {"as_pairs": 300, "as_tries": 100}, "audit": {"questions": 100},
            "data_report": [["kept", "99 of 100 rows (99%)"],
                            ["note", "empty answers, left out: 1 (questions.csv, line 7)"],
                            ["text", "plain"]],
        },
        "evaluation": {
            "questions": held_out, "before": before, "after": after, "drift": drift, "dial": DIAL,
            "intervals": {"difference": interval}, "p_values": dict.fromkeys(names, 0.01),
            "by_category": {},
        },
        "samples": [{"prompt": "Why?", "before": {"text": "Because", "alarms": []},
                     "tuned": {"text": "For a reason", "alarms": ["did not end"]}}],
        "questions": {"held_out": held_out, "questions": list(questions)},
    }  # fmt: skip
    for name, value in files.items():
        if name not in without:
            (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as log:
        for step in range(steps):
            log.write(json.dumps({"step": step, **step_of(step, steps)}) + "\n")
    return folder


def step_of(step, steps):
    """What a step logs, falling or rising in a straight line."""
    done = step / steps
    return {
        "loss": 0.7 - 0.3 * done, "rewards/margins": done, "rewards/worst_margin": done - 0.5,
        "rewards/accuracies": 0.5 + done / 2, "rewards/all_beaten": done / 2,
        "logps/chosen": -30 - done, "logps/rejected": -30 - 9 * done, "grad_norm": 1.0,
        "learning_rate": 1e-3 * (1 - done),
    }  # fmt: skip


def told(folder, change):
    """Change each text that a run's files hold, but for words of the program's own."""

    def walked(value):
        if isinstance(value, dict):
            kept = ("kind", "source")
            return {name: inner if name in kept else walked(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [walked(inner) for inner in value]
        return change(value) if isinstance(value, str) and value not in ("kept", "note") else value

    for path in folder.glob("*.json"):
        path.write_text(json.dumps(walked(json.loads(path.read_text()))), encoding="utf-8")
