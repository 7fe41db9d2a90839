"""Training beside another process that computes: what is left of the speed that it has alone.

    python benchmarks/busy.py --data TruthfulQA.csv:40 --repetitions 3

The other process multiplies matrices on one core. Alone and beside it take turns, with `--threads
auto` and with as many threads as the machine has cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
OTHER = "import torch; torch.set_num_threads(1); a = torch.rand(1024, 1024)\nwhile True: a @ a"


@contextmanager
def other_process(on):
    """Within the block another process computes, if `on`."""
    process = subprocess.Popen([sys.executable, "-c", OTHER]) if on else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def rate(data, threads, folder):
    """Return the pairs a second of a run's training, and how many threads it had."""
    argv = [
        sys.executable, ROOT / "train.py", "--model", "builtin", "--data", data, "--no-merge",
        "--eval-fraction", "0", "--anchor-weight", "0", "--threads", threads,
        "--output-dir", folder,
    ]  # fmt: skip
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    (line,) = (line for line in config.splitlines() if line.startswith("threads:"))
    return summary["pairs"] / summary["seconds"]["train"], line.split()[-1].strip("'")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    rates = {}
    with tempfile.TemporaryDirectory() as scratch:
        for repetition in range(args.repetitions):
            for threads in ("auto", str(os.cpu_count())):
                for busy in (False, True):
                    folder = Path(scratch) / f"{threads}-{busy}-{repetition}"
                    with other_process(busy):
                        found, count = rate(args.data, threads, folder)
                    rates.setdefault((threads, busy), []).append(found)
                    beside = "beside another process" if busy else "alone"
                    print(f"--threads {threads} {beside}: {found:.2f} pairs/s, {count} threads",
                          flush=True)  # fmt: skip
    for threads in ("auto", str(os.cpu_count())):
        pairs = zip(rates[threads, True], rates[threads, False], strict=True)
        shares = sorted(beside / alone for beside, alone in pairs)
        middle = statistics.median(shares)
        print(f"--threads {threads}: {middle:.0%} ({shares[0]:.0%} to {shares[-1]:.0%}) is left")


if __name__ == "__main__":
    main()
