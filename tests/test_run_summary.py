"""What a run leaves for people to look at: whole files, the pictures among them."""

import json

from test_dpo_evaluation_dial import DIAL
from test_dpo_evaluation_pictures import results

from dpo import Outcome
from run.summary import write_outcome


def test_equal_margins_are_drawn_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    said, found = [{"prompt": "Why?"}], {**results({}), "dial": DIAL}
    asked = {"held_out": 9, "questions": []}
    write_outcome(tmp_path, Outcome(found, said, ([0.0, 0.0], [0.0, 0.0]), asked), 0.5)
    pictures = {"evaluation.png", "dial.png"}
    for name in pictures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "evaluation.json").read_text()) == found
    assert json.loads((tmp_path / "samples.json").read_text()) == said
    assert json.loads((tmp_path / "questions.json").read_text()) == asked
    written = {*pictures, "evaluation.json", "samples.json", "questions.json", "metrics.jsonl"}
    assert {p.name for p in tmp_path.iterdir()} == written  # and nothing is left beside them
