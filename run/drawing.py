"""A run's pictures, written into its folder in one step each."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo import curves_figure, evaluation_figure
from lora import whole


def draw_curves(run: Path, at_most_every: float = 0.0) -> None:
    """Write curves.png of a run from its metrics.jsonl.

    One that is not `at_most_every` seconds old stays; before the first the run's start counts.
    """
    picture = run / "curves.png"
    last = picture if picture.exists() else run / "config.yaml"
    if at_most_every and time.time() - last.stat().st_mtime < at_most_every:
        return
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    if any("loss" in line for line in log):
        with whole(picture) as new:
            curves_figure(log).savefig(new, format="png", dpi=120)


def draw_evaluation(
    run: Path, results: Mapping[str, Any], before: Sequence[float], after: Sequence[float]
) -> None:
    """Write evaluation.png: the margins of the held-out pairs, and the effect by category."""
    with whole(run / "evaluation.png") as new:
        evaluation_figure(results, before, after).savefig(new, format="png", dpi=120)
