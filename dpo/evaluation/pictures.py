"""What a run changed, as a picture: margins of the held-out pairs, and its effect by category."""

from collections.abc import Mapping, Sequence
from typing import Any

from dpo.evaluation.curves import BLUE, GREY, ORANGE

CATEGORIES = 14  # shown; the others are one line


def shown_categories(results: Mapping[str, Any]) -> list[tuple[str, int, float, float]]:
    """Return (name, questions, pair accuracy before, after) of the largest categories.

    The rest is one line, weighted by questions. Without categories there is one line, of all.
    """
    found = [
        (name, c["questions"], c["before"]["pair_accuracy"], c["after"]["pair_accuracy"])
        for name, c in (results["by_category"] or {"all": results}).items()
    ]
    first, rest = found[:CATEGORIES], found[CATEGORIES:]
    if rest:
        count = sum(n for _, n, _, _ in rest)
        old, new = (sum(c[1] * c[i] for c in rest) / count for i in (2, 3))
        first.append((f"{len(rest)} others", count, old, new))
    return first


def evaluation_figure(
    results: Mapping[str, Any], before: Sequence[float], after: Sequence[float], width: float = 10.0
) -> Any:
    """Draw `evaluation.json` and the margins of the held-out pairs in nats, before and after."""
    import numpy as np
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, 0.45 * width), layout="constrained")
    left, right = drawn.subplots(1, 2)
    # what is beyond the 1st and the 99th percentile is counted in the outer bins
    low, high = np.percentile([*before, *after, 0.0], [1, 99])
    bins = np.linspace(low, high if high > low else low + 1, 31)
    for values, color, label, style in (
        (before, BLUE, "before", {"alpha": 0.45}),
        (after, ORANGE, "after", {"histtype": "step", "linewidth": 1.8}),
    ):
        left.hist(np.clip(values, bins[0], bins[-1]), bins, color=color, label=label, **style)
    left.axvline(0, color=GREY, linewidth=1, linestyle=":")
    left.set_title("log-prob of the best answer above an incorrect one, nats", fontsize=10)
    left.set_ylabel("held-out pairs", fontsize=9)
    left.legend(frameon=False, fontsize=9)

    lines = shown_categories(results)[::-1]  # matplotlib draws from below
    rows = range(len(lines))
    old, new = ([line[i] for line in lines] for i in (2, 3))
    right.hlines(rows, old, new, color=GREY, linewidth=1.2)
    right.plot(old, rows, "o", color=BLUE, markersize=5, markerfacecolor="white", label="before")
    right.plot(new, rows, "D", color=ORANGE, markersize=5, label="after")
    right.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    names = [f"{name if len(name) < 26 else name[:24] + '…'} ({n})" for name, n, _, _ in lines]
    names = [name.replace("$", r"\$") for name in names]  # which would begin a formula
    right.set_yticks(rows, names, fontsize=8)
    right.set_xlim(-0.02, 1.02)
    right.set_title("pair accuracy by category (questions)", fontsize=10)
    right.legend(
        frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.05)
    )
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return drawn
