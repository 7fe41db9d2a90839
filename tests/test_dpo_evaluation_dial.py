"""The dial: sizes of an adapter, the largest that a limit allows, the table and the picture."""

import math

import pytest

from dpo import Drift, Metrics, dial_figure, dial_rows, dial_sizes, largest_within
from dpo.evaluation.dial import SIZES, Point


def watched(rise):
    """The rise, and the sizes that were asked for."""
    asked = []

    def rises(size):
        asked.append(size)
        return rise(size)

    return rises, asked


def test_a_rise_within_the_limit_leaves_the_whole_adapter_at_one_question():
    rises, asked = watched(lambda size: 0.1 * size)
    assert largest_within(rises, 0.1) == 1.0 and asked == [1.0]


def test_the_largest_size_by_hand():
    """The rise is size squared, so .1 is reached at .316, which is 10.1 / 32: 10 / 32 is left.

    Bisection asks 32, 16, 8, 12, 10, 11 of 32; a half and a quarter are of the dial.
    """
    rises, asked = watched(lambda size: size**2)
    assert largest_within(rises, 0.1) == 10 / 32
    assert asked == [1, 16 / 32, 8 / 32, 12 / 32, 10 / 32, 11 / 32]
    assert set(asked[:3]) <= set(SIZES)


@pytest.mark.parametrize("steps", [1, 2, 15, 16, 17, 31])
def test_the_size_is_the_last_step_that_holds(steps):
    assert largest_within(lambda size: size, steps / 32 + 0.001) == steps / 32
    assert largest_within(lambda size: size, steps / 32) == steps / 32  # at most, and not below


def test_nothing_holds_where_every_size_costs_more_or_no_number():
    assert largest_within(lambda size: 1.0, 0.1) == 0
    assert largest_within(lambda size: math.nan, 0.1) == 0


@pytest.mark.parametrize(
    "size, measured",
    [
        (1, [0, 0.25, 0.5, 0.75, 1]),
        (0.5, [0, 0.25, 0.5, 0.75, 1]),
        (25 / 32, [0, 0.25, 0.5, 25 / 32, 1]),  # 1/32 above three quarters
        (13 / 16, [0, 0.25, 0.5, 13 / 16, 1]),  # 1/16 above
        (0.82, [0, 0.25, 0.5, 0.75, 0.82, 1]),
        (1 / 32, [0, 1 / 32, 0.25, 0.5, 0.75, 1]),  # the bare base and the whole are always there
        (31 / 32, [0, 0.25, 0.5, 0.75, 31 / 32, 1]),
        (1.5, [0, 0.25, 0.5, 0.75, 1, 1.5]),
    ],
)
def test_the_size_that_is_left_stands_for_a_quarter_that_is_near(size, measured):
    assert dial_sizes(size) == measured


def point(scale, mc1, kl, prose, code):
    measured = Metrics(mc1, mc1 + 0.1, mc1 + 0.2, *[0.0] * 6)
    kinds = {"prose": prose, "code": code}
    drift = Drift(9.0, kl, -scale, -2 * scale, 20.0, 25.0, {"prose": 20.0, "code": 4.0}, kinds)
    return Point.of(scale, measured, drift)._asdict()


DIAL = [
    point(0.0, 0.2, 0.0, 20.0, 4.0),
    point(0.5, 0.3, 0.1, 21.0, 4.0),
    point(1.0, 0.4, 0.3, 30.0, 5.0),
]


def test_a_point_has_what_was_measured_and_what_it_cost():
    assert DIAL[2] == {
        "scale": 1.0, "mc1": 0.4, "mc2": 0.5, "pair_accuracy": pytest.approx(0.6),
        "kl_per_token": 0.3, "chosen": -1.0, "rejected": -2.0, "perplexity": 25.0,
        "perplexities": {"prose": 30.0, "code": 5.0},
    }  # fmt: skip


def test_the_table_marks_the_size_that_is_left():
    """20 -> 21 is +5%, 20 -> 30 +50%, 4 -> 5 +25%."""
    rows = dial_rows(DIAL, 0.5)
    assert rows[0][:2] == ("size", "MC1") and rows[0][-2:] == ("prose", "code")
    assert [row[0] for row in rows[1:]] == ["0", "0.5 *", "1"]
    assert rows[2][1:5] == ("0.300", "0.400", "0.500", "0.100")
    assert rows[2][5:] == ("-0.5", "-1.0", "+5.0%", "+0.0%")
    assert rows[3][-2:] == ("+50.0%", "+25.0%")


def test_the_picture_draws_gains_in_points_against_the_kl_and_rises_in_percent():
    left, right = dial_figure(DIAL, 0.5).axes
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines["MC1"].get_xdata()) == [0, 0.1, 0.3]
    for name in ("MC1", "MC2", "pair accuracy"):
        assert list(lines[name].get_ydata()) == pytest.approx([0, 10, 20])
    assert [text.get_text() for text in left.texts] == ["0", "0.5", "1"]
    assert [text.get_weight() for text in left.texts] == ["normal", "bold", "normal"]
    lines = {line.get_label(): line for line in right.lines}
    assert list(lines["prose"].get_xdata()) == [0, 0.5, 1]
    assert list(lines["prose"].get_ydata()) == pytest.approx([0, 5, 50])
    assert list(lines["code"].get_ydata()) == pytest.approx([0, 0, 25])


def test_large_rises_leave_room_for_small_ones():
    """From 10% on the scale is logarithmic, where something rose by more than a half."""
    axes = dial_figure([*DIAL[:2], point(1.0, 0.4, 0.3, 200.0, 5.0)], 1.0).axes[1]
    assert axes.get_yscale() == "symlog"
    assert dial_figure([*DIAL[:2], point(1.0, 0.4, 0.3, 29.0, 5.0)], 1.0).axes[1].get_yscale() == (
        "linear"
    )


def test_a_size_that_gives_no_number_leaves_the_rest_of_the_picture():
    axes = dial_figure([*DIAL[:2], point(1.0, 0.4, 0.3, math.nan, math.inf)], 1.0).axes[1]
    assert 5 < axes.get_ylim()[1] < 10  # the largest rise that is one is 5%


def test_where_nothing_moved_the_picture_shows_nothing():
    """Less than a percent is drawn as such, and not as wide as the picture."""
    still = [point(size, 0.2, 0.0, 20.0, 4.0) for size in SIZES]
    low, high = dial_figure(still, 1.0).axes[1].get_ylim()
    assert low <= -1 and high >= 1
