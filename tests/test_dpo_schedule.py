"""The learning rate's course, by hand."""

import math

import pytest

from dpo import schedule_factor


def test_the_learning_rate_by_hand():
    """Of 6 steps a third are 2 of warm-up, and two fifths are 2.4, rounded to 2."""
    linear = [schedule_factor(s, 6, 1 / 3, "linear") for s in range(6)]
    assert linear == pytest.approx([1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4])
    cosine = [schedule_factor(s, 6, 0.4, "cosine") for s in range(6)]
    root = math.sqrt(0.5)
    assert cosine == pytest.approx([1 / 3, 2 / 3, 1, (1 + root) / 2, 1 / 2, (1 - root) / 2])
    assert [schedule_factor(s, 3, 0, "constant") for s in range(3)] == [1, 1, 1]
    assert schedule_factor(0, 1, 0, "linear") == 1
