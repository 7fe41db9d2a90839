"""What is drawn into a run's folder: a whole picture, now and then, and none of nothing."""

import json

from test_dpo_evaluation_curves import log

from run.folder import draw_curves


def test_the_file_is_a_picture_and_no_log_is_none(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    draw_curves(tmp_path)
    assert not (tmp_path / "curves.png").exists()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in log(range(1))))
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in log(range(9))))
    before = (tmp_path / "curves.png").read_bytes()
    draw_curves(tmp_path, at_most_every=30)  # it is young, and stays
    assert (tmp_path / "curves.png").read_bytes() == before
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
