"""How near an epoch comes to what its matrix products alone would take, and where the rest goes.

    python benchmarks/limit.py --data TruthfulQA.csv --questions 80

The floor is the time of the bare matrix products of the very batches that train.py computed, of
their tokens without padding, with the model's own weights, in the same process.
For each fed token the body's linear layers forward (2 N FLOPs) and, in training, backward (2 N);
for each scored token the head (2 V H) and, in training, its gradient (2 V H). N counts the weights
of the body's linear layers, V H those of the head.

The parts are shares of another run, under torch.profiler, which slows small operations more than
large ones; on a GPU they are shares of its kernels' time. An operation belongs to the nearest
labelled part around it; one of the backward pass to the part of the forward operation that it is
the gradient of.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from one_base import base_loaded_once
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

import data
import dpo
import train
from lora.base.blocks import LinearInBlocks
from lora.layer import LoRALinear
from run.config import Config
from run.measuring import Clock


def once(args, csv, folder):
    """Run train.py; return its summary, the model and the sizes of all batches."""
    batches, models, laps = [], [], []
    lap = Clock.lap

    def watched(owner, name):
        score = getattr(owner, name)

        def wrapped(model, batch):
            if "load" in laps and "train" not in laps:  # not the plan nor what is looked at after
                models[:] = [model]
                trees = getattr(batch, "trees", batch)
                batches.append((fed(trees), len(trees.nodes), torch.is_grad_enabled()))
            return score(model, batch)

        return mock.patch.object(owner, name, wrapped)

    def lapped(clock, name):
        laps.append(name)
        lap(clock, name)

    config = Config(
        model=args.model, data=str(csv), output_dir=str(folder), merge=False, epochs=args.epochs,
        eval_fraction=1 / (args.questions + 1), compile=args.compile, anchor_weight=0.0,
    )  # fmt: skip
    cache = mock.patch("run.folder.cache_folder", lambda name: folder.with_name("cache") / name)
    mine, reference = watched(train, "policy_logps"), watched(dpo.scoring, "answer_logps")
    clock = mock.patch.object(Clock, "lap", lapped)
    with mine, reference, cache, clock, contextlib.redirect_stdout(io.StringIO()):
        train.run(config)
    return json.loads((folder / "summary.json").read_text()), models[0], batches


def fed(batch):
    """Count tokens without padding, which is what has position 0 after a row's first column."""
    starts = (batch.positions == 0) & (
        batch.ends > torch.arange(1, batch.ends.shape[1] + 1).to(batch.ends)
    )
    return int((batch.positions > 0).sum() + starts.sum())


def products(model, batches):
    """Return seconds and FLOPs of the bare matrix products, by part."""
    wrapped = [m.base for m in model.modules() if isinstance(m, LoRALinear)]
    linear = [m for m in model.base_model.modules() if type(m) is nn.Linear]
    weights = [m.weight for m in {id(m): m for m in (*linear, *wrapped)}.values()]
    head = model.get_output_embeddings().weight
    tiles = head.split(8192)
    seconds, flops = Counter(), Counter()

    def timed(part, operands):
        started = time.perf_counter()
        for a, b in operands:
            a @ b
        if head.is_cuda:
            torch.cuda.synchronize()
        seconds[part] += time.perf_counter() - started
        flops[part] += sum(2 * len(a) * b.numel() for a, b in operands)

    with torch.no_grad():
        for tokens, nodes, training in batches:
            name = "training" if training else "reference"
            sizes = {size for w in weights for size in w.shape}
            x = {n: torch.randn(tokens, n, dtype=head.dtype, device=head.device) for n in sizes}
            h = torch.randn(nodes, head.shape[1], dtype=head.dtype, device=head.device)
            timed(f"{name}, body forward", [(x[w.shape[1]], w.T) for w in weights])
            timed(f"{name}, head forward", [(tile, h.T) for tile in tiles])
            if training:
                z = torch.randn(nodes, 8192, dtype=head.dtype, device=head.device)
                timed("training, body backward", [(x[w.shape[0]], w) for w in weights])
                timed("training, head gradient", [(z[:, : len(t)], t) for t in tiles])
    return seconds, flops


@contextlib.contextmanager
def labelled(profiler):
    """Profile the reference pass and the training; let it see what part an operation belongs to."""

    def label(owner, name, part):
        work = getattr(owner, name)

        def wrapped(*args, **kwargs):
            with record_function(f"part: {part}"):
                result = work(*args, **kwargs)
                return iter(list(result)) if name == "step_batches" else result

        return mock.patch.object(owner, name, wrapped)

    lap = Clock.lap

    def lapped(clock, name):
        lap(clock, name)
        if name == "load":
            profiler.start()
        if name == "train":
            profiler.stop()

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(Clock, "lap", lapped))
        for owner, name, part in (
            (nn.Linear, "forward", "products of the body"),
            (LinearInBlocks, "forward", "products of the body"),
            (LoRALinear, "forward", "LoRA"),
            (dpo.logps, "token_logps", "head"),
            (dpo.anchors, "token_logps", "head"),
            (dpo.logps, "attention_masks", "attention"),
            (train, "clip_grad_norm_", "optimizer"),
            (torch.optim.AdamW, "step", "optimizer"),
            (data, "step_batches", "encoding, tries"),
            (data, "prepare", "encoding, tries"),
            *((kind, "forward", "attention") for kind in attention_kinds()),
        ):
            stack.enter_context(label(owner, name, part))
        yield


def attention_kinds():
    """Return the attention modules of the architectures loaded so far."""
    modules = [m for name, m in sys.modules.items() if ".modeling_" in name]
    kinds = {v for m in modules for k, v in vars(m).items() if k.endswith("Attention")}
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, nn.Module)]


def parts(events, on_gpu):
    """Return the seconds of each part's operations by themselves, forward and backward.

    On a GPU it is the time of the kernels that they started.
    """

    def around(event):
        while event is not None:
            yield event
            event = event.cpu_parent

    def part(event):
        names = (
            e.name.removeprefix("part: ") for e in around(event) if e.name.startswith("part: ")
        )
        return next(names, None)

    forward = {}
    for event in events:
        if event.sequence_nr >= 0 and not event.name.startswith("autograd::"):
            forward.setdefault(event.sequence_nr, part(event))
    seconds = Counter()
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue  # a kernel, which counts with the operation that started it
        engine = next((e for e in around(event) if e.name.startswith("autograd::engine")), None)
        if engine is None:
            name = part(event) or "everything else (Python, norms, activations, loss)"
        else:
            name = f"{forward.get(engine.sequence_nr) or 'norms, activations, loss'}, backward"
        seconds[name] += (
            event.self_device_time_total if on_gpu else event.self_cpu_time_total
        ) / 1e6
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a CSV in TruthfulQA's columns")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--questions", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--compile", choices=("on", "off"), default="off")
    args = parser.parse_args()
    lines = Path(args.data).read_text(encoding="utf-8-sig").splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as scratch, base_loaded_once():
        csv = Path(scratch) / "questions.csv"
        csv.write_text("".join(lines[: args.questions + 2]), encoding="utf-8")  # header, 1 held out
        once(args, csv, Path(scratch) / "warm" / "run")
        summary, model, batches = once(args, csv, Path(scratch) / "measured" / "run")
        seconds, flops = products(model, batches)
        on_gpu = model.device.type == "cuda"
        kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
        profiler = profile(activities=kinds)
        with labelled(profiler):
            once(args, csv, Path(scratch) / "profiled" / "run")
    took = summary["seconds"]
    whole = took["reference"] + took["train"]
    print(f"{summary['model']}, {summary['pairs']} pairs, {summary['steps']} steps, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads")  # fmt: skip
    print("\n| matrix products alone | GFLOP | seconds | GFLOP/s |\n| --- | --- | --- | --- |")
    for name, value in seconds.items():
        work = flops[name] / 1e9
        print(f"| {name} | {work:,.0f} | {value:.2f} | {work / value:,.0f} |")
    for name, total in (("reference", took["reference"]), ("training", took["train"]), ("", whole)):
        floor = sum(value for part, value in seconds.items() if part.startswith(name))
        print(f"{name or 'whole epoch'}: {total:.2f} s, floor {floor:.2f} s, {floor / total:.0%}")
    spent = parts(profiler.events(), on_gpu)
    if on_gpu:
        print(f"the kernels of a profiled run take {sum(spent.values()):.2f} s")
    print("\n| part of a profiled run | share |\n| --- | --- |")
    for name, value in spent.most_common():
        print(f"| {name} | {value / sum(spent.values()):.1%} |")


if __name__ == "__main__":
    main()
