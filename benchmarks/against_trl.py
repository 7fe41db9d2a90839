"""Pairs a second of this program and of TRL + PEFT: the same questions, model, dtype and threads.

    pip install -e '.[bench]'
    python benchmarks/against_trl.py --data TruthfulQA.csv --questions 40 --repetitions 3

Both do one epoch with their reference passes, 8 pairs an optimizer step, in turns within one
process, so that a slow minute of the machine hits both. Ours is timed from the first reference
batch to the last optimizer step, the held-out question included; TRL over `trainer.train()` alone,
its tokenisation excluded.
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

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers

import lora
import train
from config import Config
from data import load_preferences, split_by_prompt
from data.encode import ANSWER_FORMAT, PROMPT_FORMAT


def ours(csv, model, held_out, folder):
    """Run train.py's own `run` with an empty reference cache; return its summary."""
    train.cache_folder = lambda name: folder / "cache" / name
    config = Config(
        model=model, data=str(csv), output_dir=str(folder / "run"), merge=False,
        eval_fraction=held_out,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        train.run(config)
    return json.loads((folder / "run" / "summary.json").read_text())


def trl(questions, model, dtype, settings):
    """Train with TRL's DPOTrainer through PEFT on the same pairs; return (pairs, seconds)."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    rows = [
        {
            "prompt": PROMPT_FORMAT.format(q.prompt),
            "chosen": ANSWER_FORMAT.format(q.chosen),
            "rejected": ANSWER_FORMAT.format(rejected),
        }
        for q in questions
        for rejected in q.rejected
    ]
    device = lora.choose_device()
    base = lora.load_base(model, device, dtype)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        args = DPOConfig(
            output_dir=folder, report_to="none", save_strategy="no", disable_tqdm=True,
            logging_steps=1000, num_train_epochs=1, learning_rate=1e-3, beta=0.1,
            use_cpu=device.type == "cpu", bf16=False, seed=0, **settings,
        )  # fmt: skip
        trainer = DPOTrainer(
            base.model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=base.tokenizer,
            peft_config=LoraConfig(
                r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"],
                task_type="CAUSAL_LM",
            ),
        )  # fmt: skip
        started = time.monotonic()
        trainer.train()
        return len(rows), time.monotonic() - started


TRL_SETTINGS = {  # faster than its defaults, which checkpoint activations; not swept here
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": False,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a CSV in TruthfulQA's columns")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()

    lines = Path(args.data).read_text(encoding="utf-8-sig").splitlines(keepends=True)
    dtype = lora.choose_dtype("auto", lora.choose_device())
    rates = {"ours": [], "ours, reference cached": [], "TRL + PEFT": []}
    with tempfile.TemporaryDirectory() as scratch:
        csv = Path(scratch) / "questions.csv"
        csv.write_text("".join(lines[: args.questions + 2]), encoding="utf-8")  # header, 1 held out
        held_out = 1 / (args.questions + 1)
        questions = load_preferences(str(csv))
        trained, _ = split_by_prompt(range(len(questions)), held_out, Config.seed)
        trained = [questions[number] for number in trained]
        for repetition in range(args.repetitions):
            folder = Path(scratch) / str(repetition)
            summary = ours(csv, args.model, held_out, folder)
            seconds = summary["seconds"]
            rates["ours"].append(summary["pairs_per_second"])
            rates["ours, reference cached"].append(summary["pairs"] / seconds["train"])
            pairs, seconds = trl(trained, args.model, dtype, TRL_SETTINGS)
            rates["TRL + PEFT"].append(pairs / seconds)
            print({name: round(values[-1], 2) for name, values in rates.items()}, flush=True)

    versions = ", ".join(
        f"{m} {__import__(m).__version__}" for m in ("torch", "transformers", "trl", "peft")
    )
    print(f"\n{summary['model']}, {dtype}, {torch.get_num_threads()} threads; {versions}")
    print(f"{args.questions} questions, {pairs} pairs, 8 pairs a step, 1 epoch")
    base = rates["TRL + PEFT"]
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, base, strict=True)]
        print(
            f"{name:<24}{statistics.median(values):8.2f} pairs/s "
            f"({min(values):.2f} to {max(values):.2f}), "
            f"{statistics.median(ratios):6.2f} times TRL ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
