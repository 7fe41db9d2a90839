"""Two versions of this program train in turns, step by step, so that slow minutes meet both.

    git worktree add ../before COMMIT
    python benchmarks/in_turns.py ../before -- --data TruthfulQA.csv --threads 2 --max-steps 120

What follows `--` are flags of train.py, which both get; `--only-now`, before the folder, has some
that the other version does not know. One starts when the other has made its first step, and from
then on each waits while the other makes one. The first eighth of the steps does not count. It
prints the ratio of this version's time to the other's, with an interval of 95% by drawing steps
anew.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def race(args):
    """Start both, wait for them and compare their steps."""
    import numpy as np

    ours, theirs = socket.socketpair()
    flags = ["--eval-fraction", "0", "--no-merge", *args.flags]
    running, seconds = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder, end, given in (
            ("now", HERE, ours, [*flags, *args.only_now.split()]),
            ("before", Path(args.before).resolve(), theirs, flags),
        ):
            file = f"{scratch}/{name}.json"
            given = [*given, "--output-dir", f"{scratch}/{name}"]
            task = ["--step", str(folder), str(end.fileno()), file, *given]
            command = [sys.executable, __file__, *task]
            running.append((subprocess.Popen(command, pass_fds=[end.fileno()]), file))
            end.close()
        for process, file in running:
            if process.wait():
                sys.exit(f"one of them ended with status {process.returncode}")
            seconds.append(json.loads(Path(file).read_text()))
    steps = min(map(len, seconds))
    now, before = (np.array(each)[steps // 8 : steps] for each in seconds)
    drawn = np.random.default_rng(0).integers(0, len(now), (2000, len(now)))
    low, high = np.percentile(now[drawn].sum(1) / before[drawn].sum(1), [2.5, 97.5])
    print(f"{len(now)} steps, medians {np.median(now):.3f} and {np.median(before):.3f} s; "
          f"{now.sum() / before.sum():.3f} ({low:.3f} to {high:.3f}) of the time")  # fmt: skip


def train(folder, end, file, *flags):
    """Train as the version in `folder`, giving the turn away after each step."""
    sys.path.insert(0, folder)
    from torch.optim.optimizer import register_optimizer_step_post_hook

    turn, seconds, started = socket.socket(fileno=int(end)), [], []

    def stepped(*_):
        if started:
            seconds.append(time.perf_counter() - started.pop())
        try:
            turn.send(b"x")
            turn.recv(1)
        except OSError:
            pass  # the other one has made all its steps
        started.append(time.perf_counter())

    register_optimizer_step_post_hook(stepped)
    if folder != str(HERE):
        turn.recv(1)
    import train as program

    status = program.main(list(flags))
    Path(file).write_text(json.dumps(seconds))
    turn.close()
    sys.exit(status)


def main():
    if sys.argv[1:2] == ["--step"]:
        return train(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", help="a folder with the other version")
    parser.add_argument("--only-now", default="", help='as "--threads 2 --anchor-weight 0"')
    parser.add_argument("flags", nargs="*", help="after `--`: flags of train.py")
    race(parser.parse_args())


if __name__ == "__main__":
    main()
