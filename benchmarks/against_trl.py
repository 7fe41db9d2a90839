"""This program against TRL + PEFT: the same questions, pairs a step, model, dtype and threads.

    pip install -e '.[bench]'
    python benchmarks/against_trl.py --data TruthfulQA.csv --questions 40 --repetitions 3

Everyone trains one epoch on the same pairs, 8 an optimizer step, each in a process of its own, one
after the other and in turns, so that a slow minute of the machine hits them all. TRL runs at its
defaults and at the fastest settings of a small sweep, whose few steps say little on a noisy
machine: TRL's best is the one of these with the highest median over whole epochs. The clock of an
epoch starts with the reference pass, or else with the training, and ends with the last optimizer
step; loading, tokenising, evaluation and saving are outside of it, for both. TRL sets the dropout
to 0, whatever is asked; so do we. Memory is the peak of the process, the loading included.

On a GPU, where a large model takes longer to load than to train, all run in one process and share
the base, whose weights count in everyone's memory; the time to the first step is then without them.
    python benchmarks/one_base.py gemma-2-9b --tokenizer FOLDER
    python benchmarks/against_trl.py --data TruthfulQA.csv --model gemma-2-9b
"""

import argparse
import contextlib
import io
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from one_base import base_loaded_once

import lora

DEFAULTS = {  # TRL's own; 8 pairs a step
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
    "gradient_checkpointing": True, "attention": "sdpa", "precompute_ref_log_probs": False,
}  # fmt: skip
BATCHES = (4, 2, 1)  # besides the defaults' 8; at the fastest, all combinations of the others:
OTHERS = {
    "attention": ("sdpa", "eager"),
    "gradient_checkpointing": (True, False),
    "precompute_ref_log_probs": (False, True),
}
PAIRS_A_STEP = 8
RATE, BETA = 1e-3, 0.1  # the learning rate and beta of all
PEER = "TRL + PEFT: "  # and its settings


def step_times():
    """Return a list that grows by the time of each optimizer step, whoever makes it."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    times = []
    register_optimizer_step_post_hook(lambda *_: times.append(time.monotonic()))
    return times


def ours(task):
    """Run train.py's own `run`, with a cache of its own."""
    import train
    from run.config import Config

    cache, times = Path(task["cache"]), step_times()
    own = mock.patch("run.folder.cache_folder", lambda name: cache / name)
    config = Config(
        model=task["model"], data=task["csv"], output_dir=task["folder"], merge=False,
        eval_fraction=task["held_out"], epochs=task["epochs"], dropout=0.0, anchor_weight=0.0,
        beta=BETA, lr=RATE, save_every=10**6,  # no checkpoint, as with TRL below
        **task["settings"],
    )  # fmt: skip
    with own, contextlib.redirect_stdout(io.StringIO()):
        train.run(config)
    folder = Path(task["folder"])
    summary = json.loads((folder / "summary.json").read_text())
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds, later = summary["seconds"], task["epochs"] - 1
    an_epoch = seconds["train"]
    if later:  # the mean of all but the first
        an_epoch = (times[-1] - times[len(times) // task["epochs"] - 1]) / later
    return {
        "pairs": summary["pairs"] // task["epochs"], "reference": seconds["reference"],
        "train": an_epoch, "first_step": times[0], "losses": [line["loss"] for line in log],
    }  # fmt: skip


def trl(task):
    """Train with TRL's DPOTrainer through PEFT."""
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    class Timed(DPOTrainer):
        reference_seconds = 0.0

        def _precompute_ref_logps(self, *args):
            started = time.monotonic()
            dataset = super()._precompute_ref_logps(*args)
            self.reference_seconds = time.monotonic() - started
            return dataset

    transformers.utils.logging.set_verbosity_error()
    times, settings = step_times(), dict(task["settings"])
    device = lora.choose_device()
    dtype = lora.choose_dtype("auto", device)
    base = lora.load_base(task["model"], device, dtype, settings.pop("attention"))
    with contextlib.redirect_stdout(io.StringIO()):
        config = DPOConfig(
            output_dir=task["folder"], report_to="none", save_strategy="no", disable_tqdm=True,
            logging_steps=1, num_train_epochs=1, max_steps=task["max_steps"], learning_rate=RATE,
            beta=BETA, warmup_steps=0.1, use_cpu=device.type == "cpu", bf16=False, seed=0,
            **settings,
        )  # fmt: skip
        trainer = Timed(
            base.model,
            args=config,
            train_dataset=Dataset.from_list(task["rows"]),
            processing_class=lora.load_tokenizer(task["model"])[0],
            peft_config=LoraConfig(
                r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"],
                task_type="CAUSAL_LM",
            ),
        )  # fmt: skip
        started = time.monotonic()
        trainer.train()
    trainer.model.unload()  # the base without adapters, should another contestant need it
    pairs = len(task["rows"])
    return {
        "pairs": min(pairs, task["max_steps"] * PAIRS_A_STEP) if task["max_steps"] > 0 else pairs,
        "reference": trainer.reference_seconds, "train": times[-1] - started,
        "first_step": times[0],
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
    }  # fmt: skip


def contest(who, task):
    """Run a contestant, on a CPU in a process of its own; return what it measured of itself."""
    with tempfile.TemporaryDirectory() as scratch:
        task = {"folder": f"{scratch}/run", "max_steps": -1, "epochs": 1, "settings": {}} | task
        path = Path(scratch) / "task.json"
        path.write_text(json.dumps(task), encoding="utf-8")
        started = time.monotonic()
        if lora.choose_device().type == "cuda":
            result = {"ours": ours, "trl": trl}[who](task)
            peak = {"peak_on_device": torch.cuda.max_memory_allocated()}
            return result | peak | {"first_step": result["first_step"] - started}
        done = subprocess.run(
            [sys.executable, __file__, "--contestant", who, str(path)],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{who} failed:\n{done.stderr[-3000:]}")
        result = json.loads(done.stdout.splitlines()[-1])
    return result | {"first_step": result["first_step"] - started}


def be_contestant(who, path):
    """In the process of a contestant: do the task and print what was measured."""
    result = {"ours": ours, "trl": trl}[who](json.loads(Path(path).read_text()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result | {"peak": peak}))


def sweep(task, steps, finalists):
    """Return TRL's fastest settings, tried on a few steps, the reference pass included."""
    tried = []

    def rate(settings):
        result = contest("trl", task | {"settings": settings, "max_steps": steps})
        if settings["precompute_ref_log_probs"]:  # its reference pass covers all rows
            result["reference"] *= result["pairs"] / len(task["rows"])
        rate = result["pairs"] / (result["reference"] + result["train"])
        print(f"TRL, {steps} steps, {rate:6.2f} pairs/s: {short(settings)}", flush=True)
        tried.append((rate, settings))
        return rate

    batches = [DEFAULTS, *(DEFAULTS | of_batch(size) for size in BATCHES)]
    best = max(batches, key=rate)
    for values in list(itertools.product(*OTHERS.values()))[1:]:
        rate(best | dict(zip(OTHERS, values, strict=True)))
    fastest = sorted(tried, key=lambda found: -found[0])
    return [settings for _, settings in fastest[:finalists]]


def of_batch(size):
    """Return TRL's settings for a batch of this size, 8 pairs a step."""
    accumulated = PAIRS_A_STEP // size
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}


def short(settings):
    """Say TRL's settings in a few words."""
    return (
        f"batch {settings['per_device_train_batch_size']} x "
        f"{settings['gradient_accumulation_steps']}, {settings['attention']}"
        + ", checkpointing" * settings["gradient_checkpointing"]
        + ", reference precomputed" * settings["precompute_ref_log_probs"]
    )


def spread(values, form="{:.2f}"):
    """Return median and range as text."""
    low, middle, high = (form.format(f(values)) for f in (min, statistics.median, max))
    return f"{middle} ({low} to {high})"


def draw(curves, path):
    """Lay the loss curves over each other."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for (name, losses), dashes in zip(curves.items(), ((), (5, 2), (1, 1)), strict=False):
        axes.plot(losses, label=name, dashes=dashes)
    axes.set(xlabel="optimizer step", ylabel="loss of its 8 pairs, in its own order")
    axes.axhline(0.6931, color="grey", linewidth=0.5)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def rows_of(csv, held_out):
    """Return what TRL trains on: the pairs of the questions that ours does not hold out."""
    from data import load_preferences, split_by_prompt
    from data.templates import ANSWER_FORMAT, PROMPT_FORMAT
    from run.config import Config

    questions = load_preferences(str(csv))
    trained, _ = split_by_prompt(range(len(questions)), held_out, Config.seed)
    return [
        {
            "prompt": PROMPT_FORMAT.format(questions[n].prompt),
            "chosen": ANSWER_FORMAT.format(questions[n].chosen),
            "rejected": ANSWER_FORMAT.format(rejected),
        }
        for n in trained
        for rejected in questions[n].rejected
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a CSV in TruthfulQA's columns")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sweep-steps", type=int, default=4)
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--save", help="write what was measured to this JSON file, and a .svg")
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        return be_contestant(*args.contestant)
    with base_loaded_once():
        return compete(args)


def compete(args):
    """Find TRL's best settings, and run everyone in turns."""
    lines = Path(args.data).read_text(encoding="utf-8-sig").splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as scratch:
        csv = Path(scratch) / "questions.csv"
        csv.write_text("".join(lines[: args.questions + 2]), encoding="utf-8")  # header, 1 held out
        held_out = 1 / (args.questions + 1)
        task = {"csv": str(csv), "held_out": held_out, "model": args.model}
        peer = task | {"rows": rows_of(csv, held_out)}
        best = sweep(peer, args.sweep_steps, args.finalists)
        compiled = {"epochs": 4, "settings": {"compile": "on"}}
        singly = {"settings": {"shuffle": "pairs"}}
        results = {}
        for repetition in range(args.repetitions):
            turns = []
            for place, settings in enumerate(best):  # ours are short, and run before each of them
                cache = {"cache": f"{scratch}/cache-{repetition}-{place}"}
                turns += [
                    ("ours", "ours", task | cache),
                    ("ours, reference cached", "ours", task | cache),  # by the run before
                    (PEER + short(settings), "trl", peer | {"settings": settings}),
                    ("ours, compiled, second epoch on", "ours", task | cache | compiled),
                ]
            turns += [
                ("ours, pairs shuffled singly", "ours", task | cache | singly),
                ("TRL + PEFT, defaults", "trl", peer | {"settings": DEFAULTS}),
            ]
            for name, who, what in turns:
                result = contest(who, what) | {"repetition": repetition}
                results.setdefault(name, []).append(result)
                print(name, {k: v for k, v in result.items() if k != "losses"}, flush=True)
    report(results, args.save)


def report(results, save):
    """Print the table; with `save`, write the measurements and the picture."""

    def whole(result):
        return result["pairs"] / (result["reference"] + result["train"])

    def training(result):
        return result["pairs"] / result["train"]

    best = max(
        (name for name in results if name.startswith(PEER)),
        key=lambda name: statistics.median(map(whole, results[name])),
    )
    peers = results[best]
    print(f"\nBest: {best}. {torch.get_num_threads()} threads; pairs: {peers[0]['pairs']}")
    print("| | pairs a second | times TRL's best | peak memory | to the first step |")
    print("| --- | --- | --- | --- | --- |")
    for name, mine in results.items():
        cached = name.startswith("ours, ")
        rates = [training(m) if cached else whole(m) for m in mine]
        rivals = [peers[m["repetition"]] for m in mine]
        ratios = [rate / whole(rival) for rate, rival in zip(rates, rivals, strict=True)]
        memory = [m.get("peak_on_device") or m["peak"] for m in mine]
        print(
            f"| {name} | {spread(rates)} | {spread(ratios)} | "
            f"{spread([m / 2**30 for m in memory])} GiB | "
            f"{spread([m['first_step'] for m in mine], '{:.1f}')} s |"
        )
    if save:
        Path(save).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        drawn = ("ours", "ours, pairs shuffled singly", best)
        curves = {name: results[name][0]["losses"] for name in drawn}
        draw(curves, Path(save).with_suffix(".svg"))


if __name__ == "__main__":
    main()
