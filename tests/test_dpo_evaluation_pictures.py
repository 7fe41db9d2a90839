"""The picture of what a run changed: what is drawn is what evaluation.json says."""

import pytest

from dpo import evaluation_figure
from dpo.evaluation.pictures import CATEGORIES, shown_categories


def results(categories):
    """Categories as {name: (questions, before, after)}."""
    return {
        "questions": 9,
        "before": {"pair_accuracy": 0.4},
        "after": {"pair_accuracy": 0.7},
        "by_category": {
            name: {
                "questions": count,
                "before": {"pair_accuracy": old},
                "after": {"pair_accuracy": new},
            }
            for name, (count, old, new) in categories.items()
        },
    }


def test_small_categories_are_one_line_weighted_by_questions():
    """(3 of .2 + 1 of .6) / 4 = .3; (3 of .4 + 1 of .8) / 4 = .5."""
    large = {f"c{i}": (5, 0.1, 0.9) for i in range(CATEGORIES)}
    shown = shown_categories(results(large | {"a": (3, 0.2, 0.4), "b": (1, 0.6, 0.8)}))
    assert len(shown) == CATEGORIES + 1
    assert shown[0] == ("c0", 5, 0.1, 0.9)
    assert shown[-1] == ("2 others", 4, pytest.approx(0.3), pytest.approx(0.5))
    assert shown_categories(results({})) == [("all", 9, 0.4, 0.7)]


def test_the_points_and_the_counts_are_those_of_the_results():
    found = results({"Law $5": (3, 0.2, 0.4), "A very long name of a category": (2, 0.5, 0.25)})
    drawn = evaluation_figure(found, [-3.0, 1.0, 2.0], [4.0, 5.0, 6.0, 7.0])
    left, right = drawn.axes
    before, after = (line.get_xdata() for line in right.lines[:2])
    assert list(before) == [0.5, 0.2] and list(after) == [0.25, 0.4]  # drawn from below
    names = [label.get_text() for label in right.get_yticklabels()]
    assert names == ["A very long name of a ca… (2)", r"Law \$5 (3)"]
    heights = [patch.get_height() for patch in left.patches if hasattr(patch, "get_height")]
    assert sum(heights) == 3  # the bars; the outline after is one patch
