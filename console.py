"""What a person sees while the program works: bars on a terminal, a line now and then elsewhere."""

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

import data
import dpo
import lora
from config import Config

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Count done units of a known total, with their rate and the time left."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, 0
        self.started = self.printed = time.monotonic()
        self.bar = None
        if sys.stdout.isatty():
            self.bar = tqdm(
                total=total, desc=label, unit=f" {unit}", file=sys.stdout, dynamic_ncols=True
            )

    def advance(self, count: int, note: str = "") -> None:
        """Add `count` units, with a few words on how it goes."""
        self.done += count
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.printed >= SECONDS_BETWEEN_LINES or self.done >= self.total:
            self.printed = now
            rate = self.done / max(now - self.started, 1e-9)
            left = (self.total - self.done) / rate
            print(
                f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.1f} a second, "
                f"{left:.0f} s left{', ' + note if note else ''}",
                flush=True,
            )

    def close(self) -> None:
        """Leave the finished bar standing."""
        if self.bar is not None:
            self.bar.close()


def track(
    items: Sequence[Item], label: str, unit: str, size: Callable[[Item], int]
) -> Iterator[Item]:
    """Yield the items; show how many of their units are done."""
    if not items:
        return
    progress = Progress(label, sum(map(size, items)), unit)
    for item in items:
        yield item
        progress.advance(size(item))
    progress.close()


def table(rows: Iterable[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])])
        for first, *rest in rows
    )


def print_plan(
    config: Config,
    base: lora.Base,
    encoding: data.Encoding,
    held_out: int,
    check: dpo.SelfCheck,
    pairs: int,
    steps: int,
    tokens: dict[str, int],
) -> None:
    """Say what will be done, before anything that takes long."""
    model, questions = base.model, len(encoding.questions)
    patched = lora.lora_layers(model)
    trained = sum(p.numel() for p in lora.adapter_parameters(model))
    total = sum(p.numel() for p in model.parameters())
    ranks = ", ".join(map(str, sorted({layer.rank for layer in patched.values()})))
    where = f"{str(model.dtype).removeprefix('torch.')}, {model.device}"
    saved = tokens["as_pairs"] / tokens["as_tries"]
    fed = (
        f"{tokens['as_tries']:,} as {'tries' if check.shared else 'rows'}: {saved:.1f} times fewer"
    )
    rows = [
        ("model", f"{base.name} ({total - trained:,} frozen parameters, {where})"),
        ("LoRA", f"{len(patched)} layers, {trained:,} trained parameters (rank {ranks})"),
        ("data", f"{config.data}: {questions} questions, {held_out} of them held out"),
        ("text", f"{config.template} template"),
        ("training", f"{pairs} pairs in {steps} steps"),
        ("tokens", f"{tokens['as_pairs']:,} as pairs, {fed}"),
        ("self-check", check.reason),
    ]  # fmt: skip
    if not check.shared:
        rows.append(("", "so answers are trained as plain padded rows: right, but slower"))
    if encoding.boundary_merges:
        rows.append(("", f"{encoding.boundary_merges} answers would fuse with their prompt's end"))
    for name, text in rows:
        print(f"{name:<12}{text}")
    for prompt in encoding.too_long:
        print(f"left out, too long: {prompt!r}")
    sys.stdout.flush()


def print_summary(folder: Path, results: dict[str, Any], summary: dict[str, Any]) -> None:
    """Show the held-out table, what the run took, and what to do next."""
    before, after = results["before"], results["after"]
    print(f"\nHeld out: {results['questions']} questions")
    names = {"mc1": "MC1", "mc2": "MC2", "pair_accuracy": "pair accuracy"}
    rows = [("", "before", "after", "gain")]
    for key, name in names.items():
        gain = after[key] - before[key]
        rows.append((name, f"{before[key]:.3f}", f"{after[key]:.3f}", f"{gain:+.3f}"))
    print(table(rows))
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items())
    print(
        f"\n{summary['pairs']} pairs, {summary['pairs_per_second']:.1f} a second with the reference"
        f" pass; {summary['peak_memory_bytes'] / 2**30:.1f} GiB at most\nseconds: {seconds}\n"
    )
    print(f"Written to {folder}: adapter/ (PEFT's format)" + ", merged/" * summary["merged"])
    print(f"Repeat it:  python train.py --config {shlex.quote(f'{folder}/config.yaml')}")
