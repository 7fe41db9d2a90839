"""What a run leaves for people to look at: whole files, the picture among them."""

import json

from test_dpo_evaluation_pictures import results

from dpo import Outcome
from run.summary import write_outcome


def test_equal_margins_are_drawn_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    said = [{"prompt": "Why?"}]
    write_outcome(tmp_path, Outcome(results({}), said, ([0.0, 0.0], [0.0, 0.0])))
    assert (tmp_path / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "evaluation.json").read_text()) == results({})
    assert json.loads((tmp_path / "samples.json").read_text()) == said
    written = {"evaluation.png", "evaluation.json", "samples.json", "metrics.jsonl"}
    assert {p.name for p in tmp_path.iterdir()} == written  # and nothing is left beside them
