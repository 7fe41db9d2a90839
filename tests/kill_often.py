"""Kill a real training run at random instants, resume each, and compare with one left alone.

    python tests/kill_often.py --kills 50

Each trial starts `train.py` on a small model, sends SIGKILL after a random time, resumes, and asks
that the final adapter is bitwise that of the uninterrupted run. A trial may be killed several times
before it ends; `--kills` counts the kills that hit a living process.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import QUESTIONS_CSV, ROOT, small_model, small_tokenizer

FILES = ("adapter/adapter_model.safetensors", "metrics.jsonl", "evaluation.json")


def start(folder, name, *argv):
    """Start a run of 40 steps with dropout, saved after every third."""
    program = [sys.executable, str(ROOT / "train.py")]
    settings = [
        "--model", "model", "--data", "questions.csv", "--dtype", "float32", "--device", "cpu",
        "--dropout", "0.3", "--batch-size", "3", "--grad-accum", "1", "--epochs", "10",
        "--save-every", "3", "--rank", "2", "--output-dir", name, *argv,
    ]  # fmt: skip
    return subprocess.Popen(
        [*program, *settings], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                                     "XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    kills = trials = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = small_tokenizer()
        small_model("gemma2", vocab_size=len(tokenizer)).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        (folder / "questions.csv").write_text(QUESTIONS_CSV, encoding="utf-8")
        began = time.monotonic()
        said, _ = (alone := start(folder, "alone")).communicate()
        assert alone.returncode == 0, said
        length = time.monotonic() - began
        while kills < args.kills:
            trials += 1
            name = f"trial-{trials}"
            while True:
                resume = ["--resume"] if (folder / name).exists() else []
                began, process = time.monotonic(), start(folder, name, *resume)
                try:
                    said, _ = process.communicate(timeout=rng.uniform(0.3, 1.15) * length)
                    assert process.returncode == 0, said
                    if not resume:  # on a busy machine the first run may have been a slow one
                        length = min(length, time.monotonic() - began)
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
                    kills += 1
            for file in FILES:
                expected = (folder / "alone" / file).read_bytes()
                assert (folder / name / file).read_bytes() == expected, (name, file)
            shutil.rmtree(folder / name)
    print(
        f"{kills} kills in {trials} runs: every final adapter, log and evaluation is bitwise equal"
    )


if __name__ == "__main__":
    main()
