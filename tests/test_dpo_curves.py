"""The picture of a log: its numbers, by hand, and that what is drawn is what was logged."""

import json

import pytest
from dpo.curves import PANELS, draw_curves, figure, smoothed


def log(steps):
    names = [metric for _, metrics in PANELS for metric in metrics]
    return [{"step": t, **{name: t / 10 + i for i, name in enumerate(names)}} for t in steps]


def test_the_smoothing_by_hand():
    """a = 1/2: 4; (4/2 + 1) / (1/2 + 1) = 2; (3/2 + 6.5) / (3/4 + 1) = 32/7."""
    assert smoothed([4, 1, 6.5], 2) == pytest.approx([4, 2, 32 / 7])
    assert smoothed([3.0] * 5, 7) == pytest.approx([3.0] * 5)  # not drawn to 0 at the start
    assert smoothed([4, 1, 6.5], 1) == [4, 1, 6.5]


def test_every_metric_is_drawn_as_it_was_logged_and_skipped_steps_are_left_out():
    lines = [*log(range(40)), {"step": 40, "skipped": 1}, *log(range(41, 60))]
    drawn = figure(lines)
    steps = [line["step"] for line in lines if "loss" in line]
    for axes, (title, metrics) in zip(drawn.axes, PANELS, strict=True):
        assert axes.get_title() == title
        found = {tuple(line.get_ydata()) for line in axes.lines}
        for metric in metrics:
            assert tuple(line[metric] for line in lines if "loss" in line) in found
        assert list(axes.lines[0].get_xdata()) == steps


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
