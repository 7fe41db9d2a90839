"""What a person sees while the program works: bars on a terminal, a line now and then elsewhere."""

import itertools
import shlex
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

import data
import dpo
import lora

Item = TypeVar("Item")
MEASURES = {  # of evaluation.json, as people call them
    "mc1": "MC1", "mc2": "MC2", "pair_accuracy": "pair accuracy", "all_beaten": "all K beaten",
    "margin": "mean margin, nats", "mc1_per_token": "MC1 per token",
    "mc2_per_token": "MC2 per token", "pair_accuracy_per_token": "pair accuracy per token",
    "graded_accuracy": "all graded pairs",
}  # fmt: skip
SECONDS_BETWEEN_LINES = 10.0
FEW = 30  # questions, whose bootstrapped intervals are too narrow as a rule
BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """Draw the course of some values as a row of bars, each the mean of as many of them."""
    bins = min(width, len(values))
    edges = [len(values) * i // bins for i in range(bins + 1)] if bins else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    steps = ((mean - low) / ((high - low) or 1) * (len(BARS) - 1) for mean in means)
    return "".join(BARS[round(step)] for step in steps)


class Progress:
    """Count done units of a known total, with their rate and the time left."""

    def __init__(self, label: str, total: int | None, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit, self.done, self.before = label, total, unit, done, done
        self.started = self.printed = time.monotonic()
        self.bar, self.values = None, list[float]()
        if sys.stdout.isatty():
            how: Any = {"desc": label, "unit": f" {unit}", "dynamic_ncols": True}
            self.bar = tqdm(total=total, initial=done, file=sys.stdout, **how)

    def advance(self, count: int, note: str = "", value: float | None = None) -> None:
        """Add `count` units, with a few words on how it goes and a value to watch the course of."""
        self.done += count
        if self.bar is not None:
            self.values += [] if value is None else [value]
            drawn = sparkline(self.values) if "utf" in (sys.stdout.encoding or "").lower() else ""
            self.bar.set_postfix_str(f"{drawn} {note}".strip(), refresh=False)
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.printed >= SECONDS_BETWEEN_LINES or self.done == self.total:
            self.printed = now
            rate = (self.done - self.before) / max(now - self.started, 1e-9)
            of = left = ""
            if self.total is not None:
                of, left = f"/{self.total}", f", {(self.total - self.done) / rate:.0f} s left"
            said = f"{self.label}: {self.done}{of} {self.unit}, {rate:.1f} a second{left}"
            print(", ".join(filter(None, (said, note))), flush=True)

    def close(self) -> None:
        """Leave the finished bar standing."""
        if self.bar is not None:
            self.bar.close()


def watch_answers(
    batches: Iterable[Any], label: str, total: int | None, unit: str = "answers"
) -> Iterator[Any]:
    """Yield batches of (keys, trees); show how many of all their answers are scored."""
    if not total:
        return
    progress = Progress(label, total, unit)
    for keys, trees in batches:
        yield keys, trees
        progress.advance(len(keys))
    progress.close()


def watch(items: Iterable[Item], label: str, total: int | None) -> Iterator[Item]:
    """Yield the items; once that takes more than two seconds, show how many are through."""
    started, progress, waiting = time.monotonic(), None, 0
    for item in items:
        yield item
        waiting += 1
        if waiting % 100 == 0 and time.monotonic() - started > 2:
            progress = progress or Progress(label, total, "rows")
            progress.advance(waiting)
            waiting = 0
    if progress:
        progress.advance(waiting)
        progress.close()


def table(rows: Iterable[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])])
        for first, *rest in rows
    )


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print headings with their text beside them."""
    for heading, text in rows:
        print(f"{heading:<12}{text}")
    sys.stdout.flush()


def print_start(
    base: lora.Base, check: dpo.SelfCheck, steps: data.Steps, plan: list[tuple[str, str]]
) -> None:
    """Say what will be done and what it takes, before anything that takes long."""
    model = base.model
    patched = lora.lora_layers(model)
    trained = sum(p.numel() for p in lora.adapter_parameters(model))
    total = sum(p.numel() for p in model.parameters())
    ranks = ", ".join(map(str, sorted({layer.rank for layer in patched.values()})))
    where = f"{str(model.dtype).removeprefix('torch.')}, {model.device}"
    plural = "s" * (steps.total != 1)
    per_epoch = f"; an epoch has {steps.per_epoch:,}" if steps.total != steps.per_epoch else ""
    if "gemma" in model.config.model_type:
        print(lora.GEMMA_TERMS)
    print_rows([
        ("model", f"{base.name} ({total - trained:,} frozen parameters, {where})"),
        ("LoRA", f"{len(patched)} layers, {trained:,} trained parameters (rank {ranks})"),
        ("training", f"{steps.pairs:,} pairs in {steps.total:,} step{plural}{per_epoch}"),
        ("self-check", check.reason),
        *plan,
    ])  # fmt: skip
    if check.way != "tries":
        slower = ": right, but slower and larger" if check.way == "logits" else ""
        print_rows([("", f"so answers are trained as plain rows{slower}")])


def print_changes(results: dict[str, Any], names: Mapping[str, str]) -> None:
    """Show the table of what held-out questions say before and after."""
    before, after = results["before"], results["after"]
    rows = [("", "before", "after", "gain", "95% interval")]
    for key, name in names.items():
        low, high = results["intervals"]["difference"][key]
        gain = f"{after[key] - before[key]:+.3f}"
        interval = f"{low:+.3f} to {high:+.3f}"
        rows.append((name, f"{before[key]:.3f}", f"{after[key]:.3f}", gain, interval))
    print(table(rows))


def print_measures(results: dict[str, Any]) -> None:
    """Show what `python -m run evaluate` measured."""
    print(f"\n{results['questions']} questions of {results['data']}, prompt: {results['prompt']}")
    if "model" not in results:
        print_changes(results, MEASURES)
        return
    rows = [("", "value", "95% interval")]
    for key, name in MEASURES.items():
        low, high = results["intervals"]["model"][key]
        rows.append((name, f"{results['model'][key]:.4f}", f"{low:.3f} to {high:.3f}"))
    print(table(rows))


def print_merge(rounding: lora.Rounding) -> None:
    """Say what rounding to the merged dtype kept of the deltas."""
    print(
        f"Merged: {rounding.changed:.0%} of the patched weights moved; "
        f"rounding changed their deltas by {rounding.error:.0%}."
    )


def print_summary(folder: Path, found: dpo.Outcome | None, summary: dict[str, Any]) -> None:
    """Show the held-out table, what it cost, what the run took, and what to do next."""
    print_outcome(found, summary)
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items())
    print(
        f"\n{summary['pairs']} pairs, {summary['pairs_per_second']:.1f} a second with the reference"
        f" pass; {summary['peak_memory_bytes'] / 2**30:.2f} GiB at most, planned were "
        f"{summary['planned_memory_bytes'] / 2**30:.2f}\nseconds: {seconds}\n"
    )
    print_next(folder, summary)


def print_next(folder: Path, summary: dict[str, Any]) -> None:
    """Say what was written, and what to do with it."""
    print(f"Written to {folder}: adapter/ (PEFT's format)" + ", merged/" * summary["merged"])
    run = shlex.quote(str(folder))
    print(f"Look:       {run}/report.html, in a browser; {run}/README.md, the model card")
    print(f"Ask it:     python -m run sample {run}")
    print(f"Publish it: python -m run publish {run} OWNER/NAME")
    print(f"Repeat it:  python train.py --config {shlex.quote(f'{folder}/config.yaml')}")


def print_outcome(found: dpo.Outcome | None, summary: dict[str, Any]) -> None:
    """Show what held-out questions say before and after, what that cost, and the dial."""
    if not found:
        print("\nNothing was held out, so nothing was measured (--eval-fraction 0).")
        return
    results, drift = found.results, found.drift
    few = ", few: their intervals are rough" if results["questions"] < FEW else ""
    print(f"\nHeld out: {results['questions']} questions{few}; before: {summary['before']}")
    names = ("mc1", "mc2", "pair_accuracy")
    print_changes(results, {name: MEASURES[name] for name in names})
    if best := summary["best"]:
        print(f"The adapter of step {best['step']}, the best by {MEASURES[best['metric']]} here.")
    print(
        f"\nDrift: KL {drift.kl_per_token:.3f} nats a token; log-probs of chosen answers "
        f"{drift.chosen:+.1f}, of rejected ones {drift.rejected:+.1f} nats; perplexity of "
        f"neutral text {drift.perplexity_before:.1f} -> {drift.perplexity_after:.1f}"
    )
    print(
        f"\nThe dial: the adapter at other sizes (*: this one). KL and log-probs against "
        f"{summary['before']};\non the right the rise of the perplexity of neutral text since size "
        "0, the bare base."
    )
    print(table(dpo.dial_rows(results["dial"], summary["scale"])))
    if remark := dpo.remark(drift):
        print(textwrap.fill(f"Note: {remark}", 96))
