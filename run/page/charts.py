"""The charts of a page as lines of numbers: the dial, and the curves of metrics.jsonl."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dpo
from dpo.evaluation.curves import EVALUATED, PANELS, smoothed
from dpo.evaluation.dial import GAINS
from run.page.reading import Run, titles

POINTS = 800  # of a line; of several runs together
Dial = Sequence[Mapping[str, Any]]  # of evaluation.json


def dials(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return each run's dial as a table: title, headings, (size, cells), what was before."""
    found = []
    for title, run in zip(titles(runs), runs, strict=True):
        if dial := run.results.get("dial"):
            headings, *cells = dpo.dial_rows(dial, run.facts.get("scale", 1.0))
            rows = list(zip((point["scale"] for point in dial), cells, strict=True))
            before = run.facts.get("before", "the frozen base")
            found.append({"run": title, "headings": headings, "rows": rows, "before": before})
    return found


def sizes(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the sizes that the slider moves through, what is said at each, and where it starts."""
    named = [(title, run) for title, run in zip(titles(runs), runs, strict=True)
             if run.results.get("dial")]  # fmt: skip
    said: dict[float, list[str]] = {}
    for title, run in named:
        for point in run.results["dial"]:
            gains = ", ".join(f"{name} {point[key]:.3f}" for key, name in GAINS.items())
            harder = dpo.rise(run.results["dial"][0]["perplexities"], point["perplexities"])
            text = (
                f"{gains}; KL {point['kl_per_token']:.3f} nats a token, chosen answers "
                f"{point['chosen']:+.1f} nats, neutral text at most {harder:+.1%} harder to predict"
            )
            whose = f"{title}: " if len(named) > 1 else ""
            said.setdefault(point["scale"], []).append(whose + text)
    start = named[0][1].facts.get("scale", 1.0) if named else 0
    return {"start": start, "said": sorted(said.items())}


def dial_panels(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the dial as charts: gains against the KL, and the rise of perplexities by size.

    Of one run a chart has a line for each measure, or kind of text. Of several there is a chart for
    each measure, with a line for each run. `sizes` are those of a line's points.
    """
    named = [(title, run.results["dial"]) for title, run in zip(titles(runs), runs, strict=True)
             if run.results.get("dial")]  # fmt: skip
    if not named:
        return []

    def gain(label: str, key: str, dial: Dial) -> dict[str, Any]:
        gains = [100 * (point[key] - dial[0][key]) for point in dial]
        return _line(
            label, [p["kl_per_token"] for p in dial], gains, sizes=[p["scale"] for p in dial]
        )

    def rise(label: str, kinds: Iterable[str], dial: Dial) -> dict[str, Any]:
        scales, first = [point["scale"] for point in dial], dial[0]["perplexities"]
        ratios = [max(p["perplexities"][kind] / first[kind] for kind in kinds) for p in dial]
        return _line(label, scales, [100 * (ratio - 1) for ratio in ratios], sizes=scales)

    across, along = "KL to the reference, nats a token", "size of the adapter"
    gained, harder = (
        "gain on held-out questions, points",
        "rise of the perplexity of neutral text, %",
    )
    if len(named) == 1:
        dial = named[0][1]
        kinds = list(dial[0]["perplexities"])
        return [
            _panel(gained, across, [gain(name, key, dial) for key, name in GAINS.items()]),
            _panel(harder, along, [rise(kind, [kind], dial) for kind in kinds]),
        ]
    panels = [
        _panel(f"{name}, gain in points", across, [gain(title, key, dial) for title, dial in named])
        for key, name in GAINS.items()
    ]
    worst = [rise(title, list(dial[0]["perplexities"]), dial) for title, dial in named]
    return [*panels, _panel(f"{harder}, the worst kind", along, worst)]


def curve_panels(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return metrics.jsonl as charts, the same as in curves.png: a thin line, and its average.

    Several runs have their averages alone. A point may be the mean of some steps.
    """
    found = []
    for title, metrics in PANELS:
        lines: list[dict[str, Any]] = []
        for place, (name, run) in enumerate(zip(titles(runs), runs, strict=True)):
            lines += _curves(run, metrics, None if len(runs) == 1 else (name, place, len(runs)))
        found.append(_panel(title, "optimizer step", [line for line in lines if line["x"]]))
    more: dict[str, dict[str, Any]] = {
        "loss": {"guide": math.log(2)},
        "share won": {"range": [0, 1]},
    }
    return [panel | more.get(panel["title"], {}) for panel in found if panel["lines"]]


def _curves(
    run: Run, metrics: Mapping[str, str], among: tuple[str, int, int] | None
) -> list[dict[str, Any]]:
    """Return the lines of a run in one chart; `among` has its title and place among how many."""
    log = [line for line in run.log if "loss" in line]  # a skipped step has none
    steps, span = [line["step"] for line in log], max(1, len(log) // 15)
    title, place, count = among or ("", 0, 1)
    lines = []
    for which, (metric, label) in enumerate(metrics.items()):
        label = ", ".join(filter(None, (title, label)))
        look: dict[str, Any] = {"colour": which, "dash": which}
        if among:
            look = {"colour": place, "dash": place, "thin": which > 0}
        values = [line[metric] for line in log]
        smooth = values if metric == "learning_rate" else smoothed(values, span)
        if not among and smooth is not values:
            lines.append(_thinned("", steps, values, POINTS) | look | {"faint": True})
        lines.append(_thinned(label, steps, smooth, max(POINTS // count, 50)) | look)
        key = EVALUATED.get(metric, "")
        evaluated = [line for line in log if key in line]
        x, y = ([line[name] for line in evaluated] for name in ("step", key))
        lines.append(_line(f"{label}, held out", x, y, alone=True) | look)
    return lines


def _panel(title: str, across: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a chart; a line without a colour has that of its place."""
    return {
        "title": title,
        "across": across,
        "lines": [{"colour": i, "dash": i} | line for i, line in enumerate(lines)],
    }


def _line(label: str, x: Iterable[float], y: Iterable[float], **more: Any) -> dict[str, Any]:
    """Return a line of a chart, with 5 digits of each number."""
    return {"label": label, "x": [*map(short, x)], "y": [*map(short, y)], **more}


def short(value: float) -> float:
    """Return a number with 5 digits."""
    return float(f"{value:.5g}")


def _thinned(label: str, x: Sequence[float], y: Sequence[float], points: int) -> dict[str, Any]:
    """Return a line of at most so many points, each the mean of as many neighbours."""
    width = -(-len(x) // points) or 1
    groups = [slice(i, i + width) for i in range(0, len(x), width)]
    means = ([sum(values[g]) / len(values[g]) for g in groups] for values in (x, y))
    return _line(label, *means)
