"""metrics.jsonl as a picture: what a person looks at while a run goes on, and afterwards."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # apart for the colour-blind, and in print
LINES = ((BLUE, "-"), (ORANGE, "--"))
PANELS: Sequence[tuple[str, Mapping[str, str]]] = (  # title, and its lines: metric -> label
    ("loss", {"loss": ""}),
    ("reward margin", {"rewards/margins": "all", "rewards/worst_margin": "worst"}),
    ("share won", {"rewards/accuracies": "pairs", "rewards/all_beaten": "all K of a question"}),
    ("log-probs, nats", {"logps/chosen": "chosen", "logps/rejected": "rejected"}),
    ("gradient norm", {"grad_norm": ""}),
    ("learning rate", {"learning_rate": ""}),
)  # fmt: skip

EVALUATED = {  # squares: the same on held-out questions, with --eval-every
    "rewards/accuracies": "eval/pair_accuracy", "rewards/all_beaten": "eval/all_beaten",
}  # fmt: skip


def smoothed(values: Sequence[float], span: int) -> list[float]:
    """Return m_t = sum_i a^i v_(t-i) / sum_i a^i over i <= t, with a = 1 - 1 / span.

    An exponential average over some `span` steps that is not drawn to 0 at the start.
    """
    keep, total, weight, means = 1 - 1 / span, 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means


def curves_figure(log: Iterable[Mapping[str, float]], width: float = 10.0) -> Any:
    """Draw the lines of a log as a matplotlib figure of six panels, `width` inches wide."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    lines = [line for line in log if "loss" in line]  # a skipped step has none
    steps = [line["step"] for line in lines]
    span = max(1, len(lines) // 15)
    drawn = Figure(figsize=(width, 0.55 * width), layout="constrained")
    for axes, (title, metrics) in zip(drawn.subplots(2, 3).flat, PANELS, strict=True):
        for (metric, label), (color, dashes) in zip(metrics.items(), LINES, strict=False):
            values = [line[metric] for line in lines]
            key = EVALUATED.get(metric, "")
            held_out = [(line["step"], line[key]) for line in lines if key in line]
            if metric == "learning_rate":
                axes.plot(steps, values, color=color)
                continue
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smoothed(values, span), dashes, color=color, label=label)
            if held_out:
                axes.plot(*zip(*held_out, strict=True), "s", color=color, markersize=4)
        axes.set_title(title + " (squares: held out)" * bool(held_out), fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if any(metrics.values()):
            axes.legend(frameon=False, fontsize=8)
        if title == "loss":
            axes.axhline(0.6931, color=GREY, linewidth=0.8, linestyle=":")
        if title == "share won":
            axes.set_ylim(-0.02, 1.02)
    drawn.supxlabel(f"optimizer step (bold: averaged over some {span} steps)", fontsize=9)
    return drawn
