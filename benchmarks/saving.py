"""What saving costs: the same run with checkpoints and without, in turns.

    python benchmarks/saving.py --repetitions 3 --save-every 10

Prints the seconds of the loop with and without, and the seconds that a checkpoint took, from which
follows the share of saving every 50 steps.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from run import checkpoint
from run.config import Config


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--max-steps", type=int, default=60)
    args = parser.parse_args()
    saves, loops, real = [], {"saving": [], "not saving": []}, checkpoint.save

    def timed(*arguments):
        began = time.monotonic()
        real(*arguments)
        saves.append(time.monotonic() - began)

    with (
        tempfile.TemporaryDirectory() as scratch,
        mock.patch.object(checkpoint, "save", timed),
        mock.patch("run.folder.cache_folder", lambda name: Path(scratch) / "cache" / name),
    ):
        for repetition in range(args.repetitions + 1):  # the first fills the reference's cache
            for name, every in (("saving", args.save_every), ("not saving", 10**6)):
                folder = Path(scratch) / f"{repetition}-{name}"
                config = Config(
                    model="builtin", data="builtin", max_steps=args.max_steps, merge=False,
                    save_every=every, output_dir=str(folder), anchor_weight=0.0,
                )  # fmt: skip
                with contextlib.redirect_stdout(io.StringIO()):
                    train.run(config)
                seconds = json.loads((folder / "summary.json").read_text())["seconds"]["train"]
                if repetition:
                    loops[name].append(seconds)
                    print(f"{name}: {seconds:.2f} s for {args.max_steps} steps", flush=True)
    step = statistics.median(loops["not saving"]) / args.max_steps
    save = statistics.median(saves)
    ratios = [a / b for a, b in zip(loops["saving"], loops["not saving"], strict=True)]
    print(
        f"with / without, saving every {args.save_every} steps: median "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})\n"
        f"a checkpoint takes {save * 1000:.0f} ms ({min(saves) * 1000:.0f} to "
        f"{max(saves) * 1000:.0f}), a step {step * 1000:.0f} ms: saving every 50 steps costs "
        f"{save / (50 * step):.2%}"
    )


if __name__ == "__main__":
    main()
