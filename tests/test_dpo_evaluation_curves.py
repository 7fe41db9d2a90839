"""The picture of a log: its numbers, by hand, and that what is drawn is what was logged."""

import pytest

from dpo import curves_figure
from dpo.evaluation.curves import PANELS, smoothed


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
    drawn = curves_figure(lines)
    steps = [line["step"] for line in lines if "loss" in line]
    for axes, (title, metrics) in zip(drawn.axes, PANELS, strict=True):
        assert axes.get_title() == title
        found = {tuple(line.get_ydata()) for line in axes.lines}
        for metric in metrics:
            assert tuple(line[metric] for line in lines if "loss" in line) in found
        assert list(axes.lines[0].get_xdata()) == steps
