"""Rows a second and memory of reading, encoding and batching 10 thousand to a million pairs.

    python benchmarks/data_scale.py --rows 10000 100000 1000000

Each size runs in a process of its own: it writes synthetic rows of the shape of UltraFeedback in
small (prompts of some 12 words, answers of some 25, one pair a prompt), then reads, encodes with
the built-in model's tokenizer and cuts a thousand optimizer steps into micro-batches, and does it
all again from the store. Memory is the most that the process held for itself (anonymous pages),
which the system cannot take back; the mapped files are not in it.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def write(path, rows):
    """Write rows of random words, reproducibly."""
    rng = random.Random(0)
    words = [f"{a}{b}" for a in ("ra", "lo", "mi", "be", "ta") for b in ("n", "st", "rk", "le")]
    words += ["the", "is", "of", "and", "not", "it"]

    def text(n):
        return " ".join(rng.choices(words, k=rng.randint(n // 2, n * 3 // 2)))

    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {"prompt": f"{number} {text(12)}?", "chosen": text(25), "rejected": text(25)}
            file.write(json.dumps(row) + "\n")


def own_memory():
    """Bytes of anonymous memory that this process holds."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def measure(path, cache):
    """Read, encode and batch once; return seconds of each and the peak of own memory."""
    import data
    import lora

    peak, done = [0], threading.Event()

    def watch_memory():
        while not done.wait(0.05):
            peak[0] = max(peak[0], own_memory())

    tokenizer, _ = lora.load_tokenizer("builtin")
    start = own_memory()
    watcher = threading.Thread(target=watch_memory, daemon=True)
    watcher.start()
    seconds, last = {}, time.monotonic()

    def lap(name):
        nonlocal last
        seconds[name] = time.monotonic() - last
        last = time.monotonic()

    reading = data.read_preferences(str(path), folder=cache)
    lap("read")
    text = data.TextSettings(template="plain")
    file = data.encoding_file(cache, reading, tokenizer, text)
    encoding = data.encode(reading.preferences, tokenizer, text, file)
    lap("encode")
    questions = encoding.questions
    split = data.split_by_prompt(questions.column("key").tolist(), 0.01, 0)
    train = questions.select(split[0])
    steps = data.Steps(train.column("pairs").tolist(), 8, 1, 0, "questions")
    lap("order")
    for _, pairs in zip(range(1000), steps.from_step(), strict=False):
        for _ in data.step_batches(train, pairs, 2048):
            pass
    lap("1000 steps")
    data.examine([reading], [encoding], tokenizer, split, text)
    lap("report")
    done.set()
    watcher.join()
    return {"seconds": seconds, "before": start, "peak": peak[0], "pairs": steps.pairs}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(Path(args.child[0]), Path(args.child[1]))))
        return
    print("| rows | file | | read | encode | order | 1000 steps | report | rows/s | own memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write(path, rows)
            for which in ("first", "second"):
                done = subprocess.run(
                    [sys.executable, __file__, "--child", str(path), f"{folder}/cache"],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                found = json.loads(done.stdout.splitlines()[-1])
                s = found["seconds"]
                rate = rows / (s["read"] + s["encode"])
                print(
                    f"| {rows:,} | {path.stat().st_size / 2**20:.0f} MiB | {which} | "
                    f"{s['read']:.1f} s | {s['encode']:.1f} s | {s['order']:.1f} s | "
                    f"{s['1000 steps']:.1f} s | {s['report']:.1f} s | {rate:,.0f} | "
                    f"{found['before'] / 2**20:.0f} -> {found['peak'] / 2**20:.0f} MiB |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
