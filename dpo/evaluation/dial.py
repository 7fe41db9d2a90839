"""The dial: what an adapter gains and what it costs at several sizes, delta times 0 to 1.

A smaller size moves the model less. What it gains falls, and so does what it costs, and usually not
at the same rate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dpo.evaluation.curves import BLUE, GREY, ORANGE
from dpo.evaluation.drift import Drift
from dpo.evaluation.measures import Metrics

SIZES = (0.0, 0.25, 0.5, 0.75, 1.0)  # measured of every adapter, with the one that is left
NEAR = 1 / 16  # to measure two sizes so near each other tells nothing more
STEPS = 32  # the sizes that `largest_within` tries are so many parts of the whole
TICKS = (0, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000)  # percent
GREEN, PURPLE = "#009E73", "#CC79A7"
COLOURS = ((BLUE, "o"), (ORANGE, "D"), (GREEN, "s"), (PURPLE, "^"))  # told apart without colour too
GAINS = {"mc1": "MC1", "mc2": "MC2", "pair_accuracy": "pair accuracy"}


class Point(NamedTuple):
    """One size of an adapter: log-probs and KL in nats, shares from 0 to 1."""

    scale: float  # what the trained delta is multiplied by
    mc1: float
    mc2: float
    pair_accuracy: float
    kl_per_token: float
    chosen: float  # mean change of log pi of the held-out chosen answers
    rejected: float
    perplexity: float  # of all neutral text
    perplexities: Mapping[str, float]  # of each kind of it

    @classmethod
    def of(cls, scale: float, measured: Metrics, drift: Drift) -> "Point":
        """Return the point of a size that was measured."""
        return cls(
            scale, measured.mc1, measured.mc2, measured.pair_accuracy, drift.kl_per_token,
            drift.chosen, drift.rejected, drift.perplexity_after, drift.perplexities_after,
        )  # fmt: skip


def largest_within(rise: Callable[[float], float], limit: float) -> float:
    """Return the largest size up to 1, in steps of 1/32, at which `rise(size) <= limit`.

    It is found by bisection, which asks for 6 sizes at most and takes the rise to
    grow with the size: of one that comes and goes it finds one end. 0 means that no step holds.
    """
    if rise(1.0) <= limit:
        return 1.0
    low, high = 0, STEPS  # size 0 is the base, and 1 is too much
    while high - low > 1:
        middle = (low + high) // 2
        within = rise(middle / STEPS) <= limit  # NaN is not
        low, high = (middle, high) if within else (low, middle)
    return low / STEPS


def dial_sizes(size: float) -> list[float]:
    """Return the sizes to measure where `size` is left, which stands for a quarter that is near."""
    others = (s for s in SIZES if s in (0, 1) or abs(s - size) > NEAR)
    return sorted({size, *others})


def dial_rows(dial: Sequence[Mapping[str, Any]], size: float) -> list[tuple[str, ...]]:
    """Return a table of `evaluation.json`'s dial, headings first; `*` marks the size that is left.

    Perplexities are shown as what they rose by since the first row.
    """
    kinds = list(dial[0]["perplexities"])
    rows = [("size", "MC1", "MC2", "pairs", "KL/token", "chosen", "rejected", *kinds)]
    for point in dial:
        gains = [f"{point[name]:.3f}" for name in GAINS]
        moved = [f"{point[name]:+.1f}" for name in ("chosen", "rejected")]
        rises = [f"{rise:+.1%}" for rise in _rises(dial, kinds, point)]
        marked = f"{point['scale']:.5g}" + " *" * (point["scale"] == size)
        rows.append((marked, *gains, f"{point['kl_per_token']:.3f}", *moved, *rises))
    return rows


def _rises(
    dial: Sequence[Mapping[str, Any]], kinds: Sequence[str], point: Mapping[str, Any]
) -> list[float]:
    """Return after / before - 1 of each kind's perplexity; before is the first point's."""
    return [point["perplexities"][kind] / dial[0]["perplexities"][kind] - 1 for kind in kinds]


def dial_figure(dial: Sequence[Mapping[str, Any]], size: float, width: float = 10.0) -> Any:
    """Draw `evaluation.json`'s dial: gains against the KL, and perplexities against the size."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    drawn = Figure(figsize=(width, 0.42 * width), layout="constrained")
    left, right = drawn.subplots(1, 2)
    _draw_gains(left, dial, size)
    _draw_rises(right, dial, size)
    for axes in (left, right):
        axes.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return drawn


def _draw_gains(axes: Any, dial: Sequence[Mapping[str, Any]], size: float) -> None:
    """Draw what each size gains against its KL; sizes stand below their points."""
    costs = [point["kl_per_token"] for point in dial]
    gains = {name: [100 * (p[name] - dial[0][name]) for p in dial] for name in GAINS}
    for (name, label), (color, marker) in zip(GAINS.items(), COLOURS, strict=False):
        axes.plot(costs, gains[name], color=color, marker=marker, markersize=5, label=label)
    for point, cost, here in zip(dial, costs, zip(*gains.values(), strict=True), strict=True):
        weight = "bold" if point["scale"] == size else "normal"
        axes.annotate(
            f"{point['scale']:.5g}", (cost, min(here)), (5, -11), textcoords="offset points",
            fontsize=8, weight=weight,
        )  # fmt: skip
    axes.margins(x=0.06, y=0.12)
    axes.set_title("gain on held-out questions, points, at each size", fontsize=10)
    axes.set_xlabel("KL to the reference, nats a token", fontsize=9)


def _draw_rises(axes: Any, dial: Sequence[Mapping[str, Any]], size: float) -> None:
    """Draw how much harder each kind of neutral text became against the size.

    Where something rose by more than a half, the axis is logarithmic from 10% on.
    """
    sizes, kinds = [point["scale"] for point in dial], list(dial[0]["perplexities"])
    percent = [[100 * rise for rise in _rises(dial, kinds, point)] for point in dial]
    for kind, values, (color, marker) in zip(
        kinds, zip(*percent, strict=True), COLOURS, strict=False
    ):
        axes.plot(sizes, values, color=color, marker=marker, markersize=5, label=kind)
    finite = [value for values in percent for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)  # at size 0 nothing rose
    if high > 50:
        axes.set_yscale("symlog", linthresh=10)
        axes.set_yticks([tick for tick in TICKS if tick < 1.4 * high])
        axes.yaxis.set_major_formatter("{x:.0f}")
        axes.set_ylim(low - 1.5, 1.4 * high)
    else:
        room = max(0.05 * (high - low), 1)  # less than a percent looks like nothing
        axes.set_ylim(low - room, high + room)
    axes.axvline(size, color=GREY, linewidth=1, linestyle="--")
    shown = [s for s in sizes if s == size or abs(s - size) > 0.05]  # or their labels would meet
    axes.set_xticks(shown, [f"{s:.5g}" for s in shown])
    axes.set_title("rise of the perplexity of neutral text, %", fontsize=10)
    axes.set_xlabel("size of the adapter (dashed: the one that is left)", fontsize=9)
