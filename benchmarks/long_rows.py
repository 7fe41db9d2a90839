"""Long texts with one rejected answer each: this program against TRL + PEFT, speed and memory.

    pip install -e '.[bench]'
    python benchmarks/long_rows.py --data conversations.json --rows 32 --repetitions 3

The file has conversations of one turn, as LLaMA-Factory's: `conversations`, `chosen`, `rejected`.
TRL runs with sdpa and eager attention, with and without gradient checkpointing; its best is the one
with the highest median. All take turns, each in a process of its own, as in `against_trl.py`, where
the clock is explained. With `--kept` nothing is raced: it says which lines of code keep how much of
a step for backward.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from against_trl import DEFAULTS, PEER, contest, of_batch, report, short

from data.templates import ANSWER_FORMAT, PROMPT_FORMAT


def rows_of(file, count):
    """Return the first conversations of one turn, as prompt, chosen and rejected."""
    found = [
        {
            "prompt": row["conversations"][0]["value"],
            "chosen": row["chosen"]["value"],
            "rejected": row["rejected"]["value"],
        }
        for row in json.loads(Path(file).read_text(encoding="utf-8"))
        if len(row["conversations"]) == 1
    ]
    return found[:count]


def race(args):
    """Run everyone in turns."""
    rows = rows_of(args.data, args.rows)
    ways = itertools.product(("sdpa", "eager"), (True, False))
    peers = [
        DEFAULTS | of_batch(2) | {"attention": attention, "gradient_checkpointing": again}
        for attention, again in ways
    ]
    formats = {"prompt": PROMPT_FORMAT, "chosen": ANSWER_FORMAT, "rejected": ANSWER_FORMAT}
    theirs = [{name: formats[name].format(row[name]) for name in formats} for row in rows]
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = {"csv": str(file), "held_out": 0.0, "model": args.model, "rows": theirs}
        for repetition in range(args.repetitions):
            cache = {"cache": f"{scratch}/cache-{repetition}"}
            turns = [
                ("ours", "ours", task | cache),
                ("ours, reference cached", "ours", task | cache),
            ]
            turns += [(PEER + short(how), "trl", task | {"settings": how}) for how in peers]
            for name, who, what in turns:
                result = contest(who, what) | {"repetition": repetition}
                results.setdefault(name, []).append(result)
                print(name, {k: v for k, v in result.items() if k != "losses"}, flush=True)
    report(results, None)


def kept(args):
    """Print what a step of two rows of 912 tokens keeps for backward, by the line that made it."""
    import torch

    import data
    import lora
    from dpo import answer_logps

    base = lora.load_base(args.model, torch.device("cpu"), torch.bfloat16)
    lora.add_lora(base.model, rank=8, alpha=16, dropout=0.05)
    lora.train_adapters(base.model)
    ids = [tuple(range(5 + k, 5 + k + 912)) for k in (0, 3000)]
    trees = data.collate([data.build_trie(row[:200], [(*row[200:], 1)]) for row in ids])
    weights = {p.untyped_storage().data_ptr() for p in base.model.parameters()}
    seen, bytes_of = set(weights), Counter()

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            alive.append(tensor)  # so that no other comes to lie at its address
            frame = sys._getframe(1)
            while "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            code = frame.f_code
            place = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}"
            bytes_of[f"{place} {str(tensor.dtype).removeprefix('torch.')}"] += storage.nbytes()
        return tensor

    alive = []
    with lora.layers_as_asked(base.model, "off", "off", 1):
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            answer_logps(base.model, trees).sum()
    print(f"rows {tuple(trees.tokens.shape)}; kept {sum(bytes_of.values()) / 2**20:,.0f} MiB")
    for what, size in bytes_of.most_common(14):
        print(f"{size / 2**20:8.1f} MiB  {what}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a JSON file of conversations")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--kept", action="store_true", help="say what is kept for backward instead")
    args = parser.parse_args()
    return kept(args) if args.kept else race(args)


if __name__ == "__main__":
    main()
