"""What settings gain and what they cost: runs of `train.py`, one after the other, as a table.

    python benchmarks/gain_and_cost.py --data TruthfulQA.csv --seeds 0 1 2 \
        --row "--anchor-weight 0 --lr 5e-4" --row "--anchor-weight 1 --lr 1e-3"

Each row is a set of flags, run with each seed; a run that is there already is read, not repeated.
The table has the means over the seeds, and MC1's gain of each. Perplexity is that of the kind of
neutral text that suffered most.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parents[1]
HEADINGS = (
    "flags", "MC1 gain (each seed)", "MC2 gain", "pair accuracy gain", "KL a token",
    "chosen, rejected, nats", "worst perplexity", "anchors and training, s",
)  # fmt: skip


def run(folder: Path, data: str, seed: int, flags: list[str]) -> dict[str, Any]:
    """Return evaluation.json of a run, with its seconds; train where it is not there yet."""
    if not (folder / "summary.json").exists():
        argv = [
            sys.executable,
            ROOT / "train.py",
            "--model",
            "builtin",
            "--data",
            data,
            "--no-merge",
        ]
        argv += ["--seed", str(seed), "--output-dir", folder, *flags]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    found["seconds"] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["seconds"]
    return found


def line(flags: str, runs: list[dict[str, Any]]) -> str:
    """Return a row of the table: the means over seeds."""

    def gain(name: str) -> list[float]:
        return [run["after"][name] - run["before"][name] for run in runs]

    def drift(name: str) -> float:
        return fmean(run["drift"][name] for run in runs)

    worst = []
    for found in runs:
        after, before = (found["drift"][f"perplexities_{when}"] for when in ("after", "before"))
        rises = {kind: after[kind] / before[kind] - 1 for kind in before}
        worst.append(max(rises.items(), key=lambda item: item[1]))
    kind, rise = max(worst, key=lambda item: item[1])
    seconds = [run["seconds"]["reference"] + run["seconds"]["train"] for run in runs]
    cells = (
        f"`{flags}`",
        f"{fmean(gain('mc1')):+.3f} ({', '.join(f'{x:+.3f}' for x in gain('mc1'))})",
        f"{fmean(gain('mc2')):+.3f}", f"{fmean(gain('pair_accuracy')):+.3f}",
        f"{drift('kl_per_token'):.3f}", f"{drift('chosen'):+.1f}, {drift('rejected'):+.1f}",
        f"{rise:+.1%} ({kind})", f"{fmean(seconds):.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run every row, and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--row", action="append", required=True, metavar="FLAGS")
    parser.add_argument("--folder", type=Path, default=Path("runs/gain-and-cost"))
    args = parser.parse_args()
    print(f"| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}", flush=True)
    for flags in args.row:
        name = re.sub(r"\W+", "_", f"{Path(args.data).stem} {flags}")
        runs = [
            run(args.folder / f"{name}-{seed}", args.data, seed, shlex.split(flags))
            for seed in args.seeds
        ]
        print(line(flags, runs), flush=True)


if __name__ == "__main__":
    main()
