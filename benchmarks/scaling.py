"""Time and memory of one optimizer step as the questions grow in one direction at a time.

    pip install -e '.[bench]'
    python benchmarks/scaling.py --save scaling.svg

Starts from 8 questions of 4 rejected answers, prompts of 24 tokens, answers of 16, 8 of 16 shared
with a sibling, random ids, and grows K, the prompt, the answers, the questions of a step, the
vocabulary and the rank, each alone. Every point is a process of its own: a step to warm up, and
the best of the next two. "As rows" is each answer a plain row of its own through the model's own
forward, which is what this program does where tries do not fit a model. Memory is the peak of the
process above what it held before the first step. On a GPU all points share one process and base.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from one_base import base_loaded_once
from torch import nn

import dpo
import lora
from data import EncodedQuestion, step_batches
from dpo import Budgets
from run.measuring import peak_memory

START = {"K": 4, "prompt": 24, "answer": 16, "questions": 8, "vocabulary": 256000, "rank": 8}
GROW = {
    "K": (1, 2, 4, 8), "prompt": (24, 100, 400), "answer": (8, 16, 64),
    "questions": (2, 8, 32, 64, 128), "vocabulary": (32768, 131072, 256000),
    "rank": (4, 8, 64, 256),
}  # fmt: skip


def measure(name, point):
    """Make three steps at this point; return seconds of the best warm one and bytes of memory."""
    torch.manual_seed(0)
    device = lora.choose_device()
    model = lora.load_base(name, device, lora.choose_dtype("auto", device)).model
    head = model.get_output_embeddings()
    whole, head.weight = head.weight, nn.Parameter(head.weight[: point["vocabulary"]], False)
    try:
        return measured(model, point)
    finally:
        head.weight = whole


def measured(model, point):
    """Do it with a base that predicts so many words."""
    device = model.device
    lora.add_lora(model, point["rank"], 2 * point["rank"], 0.05, ("q_proj", "v_proj"))
    lora.train_adapters(model)
    parameters = lora.adapter_parameters(model)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def tokens(count):
        return tuple(torch.randint(10, point["vocabulary"], (count,)).tolist())

    def question():
        opening, rest = point["answer"] // 2, point["answer"] - point["answer"] // 2
        shared = [tokens(opening) for _ in range(1 + point["K"] // 2)]  # by two answers each
        answers = [shared[k // 2] + tokens(rest) for k in range(1 + point["K"])]
        return EncodedQuestion(tokens(point["prompt"]), answers[0], tuple(answers[1:]))

    def step(questions):
        pairs = [(q, k) for q in range(len(questions)) for k in range(point["K"])]
        budget = Budgets().train if point["shared"] else Budgets().plain
        for batch in step_batches(questions, pairs, budget, point["shared"]):
            batch = batch.to(device)
            logps = dpo.answer_logps(model, batch.trees)
            zero = torch.zeros_like(logps)
            sides = (logps[batch.chosen], logps[batch.rejected])
            result = dpo.dpo_loss(*sides, zero[batch.chosen], zero[batch.rejected])
            (result.loss @ batch.weights).backward()
            last = logps[0].detach()
            del logps, sides, result  # as the loop of train.py does
        optimizer.step()
        optimizer.zero_grad()
        return float(last)

    steps = [[question() for _ in range(point["questions"])] for _ in range(3)]
    for weight in model.parameters():  # read from disk before, so that a step is not charged for it
        weight.sum()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:  # what loading took at most is forgotten
        Path("/proc/self/clear_refs").write_text("5")
    before, seconds = peak_memory(device), []
    with lora.layers_as_asked(model, "off", "off", len(steps)):
        for questions in steps:
            started = time.perf_counter()
            step(questions)  # which waits for the device
            seconds.append(time.perf_counter() - started)
    return {"seconds": min(seconds[1:]), "bytes": peak_memory(device) - before}


def measure_alone(name, point):
    """Measure a point, on a CPU in a process of its own, whose peak of memory is the point's."""
    if lora.choose_device().type == "cuda":
        return measure(name, point)
    command = [sys.executable, __file__, "--model", name, "--point", json.dumps(point)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw(results, path):
    """Draw time and memory against each size, on logarithmic axes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(GROW), figsize=(2.3 * len(GROW), 4.6), sharey="row")
    for column, what in enumerate(GROW):
        for shared, style, color in ((True, "o-", "#0072B2"), (False, "s--", "#D55E00")):
            points = [r for r in results if r["what"] == what and r["shared"] == shared]
            sizes = [r["size"] for r in points]
            label = "as tries" if shared else "as rows"
            for row, name, unit in ((0, "seconds", 1), (1, "bytes", 2**30)):
                values = [r[name] / unit for r in points]
                axes[row, column].plot(sizes, values, style, color=color, label=label, ms=4)
        for row, ticks in ((0, (0.3, 1, 3, 10, 30)), (1, (0.1, 0.3, 1, 3))):
            axes[row, column].set(xscale="log", yscale="log")
            axes[row, column].set_yticks(ticks, map(str, ticks))
            axes[row, column].set_xticks(GROW[what], [f"{n:,}" for n in GROW[what]], fontsize=7)
            axes[row, column].minorticks_off()
        axes[1, column].set_xlabel(what)
    axes[0, 0].set_ylabel("seconds a step")
    axes[1, 0].set_ylabel("GiB of a step")
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", help="write the picture to this .svg, the numbers beside it")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        return print(json.dumps(measure(args.model, json.loads(args.point))))
    with base_loaded_once():
        return grow(args)


def grow(args):
    """Measure all points, print the table, and save it with its picture."""
    results = []
    print(
        "| grown | size | as tries | memory | as rows | memory |" + "\n| ---" + " | ---" * 5 + " |"
    )
    for what, sizes in GROW.items():
        for size in sizes:
            line = f"| {what} | {size:,} "
            for shared in (True, False) if what in ("K", "prompt", "answer") else (True,):
                point = START | {what: size, "shared": shared}
                result = measure_alone(args.model, point)
                results.append({"what": what, "size": size, "shared": shared, **result})
                line += f"| {result['seconds']:.2f} s | {result['bytes'] / 2**30:.2f} GiB "
            print(line + "|", flush=True)
    if args.save:
        Path(args.save).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        draw(results, args.save)


if __name__ == "__main__":
    main()
