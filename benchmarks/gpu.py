"""What a GPU makes of Gemma-2 9B: floor, eager steps, recorded steps, whole runs, TRL + PEFT.

    python benchmarks/gpu.py --dry-run            # the whole script with a small model on a CPU
    python benchmarks/gpu.py --out gpu.jsonl      # on a CUDA GPU, at most 8 minutes

Weights are random, since speed needs no trained ones; batches are those of train.py's own steps of
8 pairs. Every part is a process of its own under its own limit of time, and writes a line as soon
as it has one, so that one that fails or hangs costs no other its figures. The riskiest come last.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from against_trl import of_batch, rows_of, step_times, trl
from one_base import GEMMA_2_9B
from torch.nn.utils import clip_grad_norm_

import data
import lora
import train
from data.buckets import bucket_for
from data.encode import EncodedQuestion
from run import inputs
from run.config import Config
from run.graphs import CudaGraph, Given, Graphs, buckets_of

SHARED = Path(__file__).parents[2] / "shared" / "truthfulqa" / "TruthfulQA.csv"
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16,
}  # fmt: skip
STEPS = 23
TOKENS = 112  # of a row, for the floor


class Bench:
    """What all parts need: the sizes, the batches, and where lines go."""

    def __init__(self, args):
        self.args, self.dry = args, args.dry_run
        self.device = torch.device("cpu" if self.dry else "cuda")
        self.config = Config(
            model="builtin", data=str(args.data), device=self.device.type, dtype="bfloat16",
            anchor_weight=0.0, checkpointing="off", merge=False, eval_fraction=args.held_out,
            save_every=10**6, max_steps=2 if self.dry else None,
        )  # fmt: skip

    def say(self, part, **facts):
        """Write a line now."""
        line = json.dumps({"part": part, **facts})
        print(line, flush=True)
        with self.args.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def sizes(self):
        """Return Gemma-2 9B's sizes, or small ones, with a word for each id of the tokenizer."""
        words = max(GEMMA_2_9B["vocab_size"], 262_144)
        return GEMMA_2_9B | {"vocab_size": words} | (SMALL if self.dry else {})

    def model(self, dropout=0.0, attention="eager"):
        """Return the model with random weights and adapters, as training has it."""
        config = transformers.Gemma2Config(**self.sizes())
        with self.device:
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation=attention
            )
        model.eval().requires_grad_(False)
        if dropout is not None:
            lora.add_lora(model, 8, 16, dropout)
            with torch.no_grad():
                for b in lora.adapter_parameters(model, "B"):
                    b.normal_(std=0.01)
            lora.train_adapters(model)
        return model

    def batches(self, count=STEPS):
        """Return the batches of the first steps, and the buckets of a run."""
        tokenizer, text = inputs.load_tokenizer(self.config)
        questions = inputs.read_questions(self.config, tokenizer, text)
        steps = inputs.steps_of(self.config, questions.train)
        buckets = buckets_of(questions.train, steps, 2048, "pair", 1)
        found = [
            batch
            for pairs in itertools.islice(steps.from_step(), count)
            for batch in data.step_batches(questions.train, pairs, 2048)
        ]
        return found, buckets

    def sync(self):
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def median_ms(self, work, times=20):
        """Return the median of some calls, each waited for, after two to warm up."""
        taken = []
        for _ in range(2 + (2 if self.dry else times)):
            started = time.perf_counter()
            work()
            self.sync()
            taken.append(1000 * (time.perf_counter() - started))
        return round(statistics.median(taken[2:]), 3)

    def gib(self):
        """Return the memory held at most, and reserved."""
        if self.dry:
            return {}
        most, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"gib": round(most / 2**30, 2), "reserved_gib": round(reserved / 2**30, 2)}


def optimized(model, config, step):
    """Return a whole step: backward, clipping, AdamW."""
    parameters = lora.adapter_parameters(model)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def whole(batch, logps):
        log = step(model, batch, Given(logps), config)
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return log

    return whole


def zeros(batch, device="cpu"):
    """Return log-probs of a reference."""
    return torch.zeros(batch.trees.answers, device=device)


@contextlib.contextmanager
def by_hand(model):
    """Within the block layers are as they are in training."""
    with lora.norms_by_hand(model), lora.attention_by_hand(model):
        yield


def floor(bench):
    """Time the bare products of a step: every weight forward and backward, as one graph."""
    model = bench.model(dropout=None)
    weights = [m.weight for m in model.modules() if type(m) is torch.nn.Linear]
    widths = {size for w in weights for size in w.shape}
    x = {n: torch.randn(TOKENS, n, dtype=torch.bfloat16, device=bench.device) for n in widths}

    def products():
        for w in weights:
            x[w.shape[1]] @ w.T
            x[w.shape[0]] @ w
        return x[min(widths)]

    with torch.no_grad():
        replay = products if bench.dry else CudaGraph()(products, [])
        size = sum(w.nbytes for w in weights) / 2**30
        bench.say("floor", ms=bench.median_ms(replay), gib_of_weights=round(size, 2))


def eager(bench):
    """Time a step whose kernels start one by one, and count them."""
    model, (batches, _) = bench.model(dropout=0.05), bench.batches(8)
    moved = itertools.cycle([(b.to(bench.device), zeros(b, bench.device)) for b in batches])
    step = optimized(model, bench.config, train.backward)
    with by_hand(model):
        bench.say("eager", ms=bench.median_ms(lambda: step(*next(moved))), **bench.gib())
        kinds = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[kinds.CPU if bench.dry else kinds.CUDA]) as seen:
            step(*next(moved))
            bench.sync()
        bench.say("eager kernels", count=len(seen.events()))


def few(bench):
    """Time a step of compiled small functions, started one by one, and count its kernels."""
    model, (batches, _) = bench.model(dropout=0.05), bench.batches(8)
    moved = itertools.cycle([(b.to(bench.device), zeros(b, bench.device)) for b in batches])
    parameters = lora.adapter_parameters(model)

    def backward(*given):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        with lora.adapters_cast(model):
            return train.backward(*given)

    step, compiler = optimized(model, bench.config, backward), []
    if bench.dry:
        compiler = [lambda function: function]
    with by_hand(model), lora.few_kernels(model, *compiler) as taken:
        started = time.perf_counter()
        step(*next(moved))
        bench.sync()
        first = round(time.perf_counter() - started, 1)
        ms = bench.median_ms(lambda: step(*next(moved)))
        bench.say("few kernels", ms=ms, compiling_s=first, parts=taken)


def graphs(bench):
    """Record the buckets, replay them, and compare their gradients with eager ones."""
    model, (batches, buckets) = bench.model(), bench.batches()
    bench.say("buckets", buckets=[[b.rows, b.columns, b.nodes, b.pairs] for b in buckets])
    recorder = (lambda step, _: step) if bench.dry else CudaGraph()
    recorded = Graphs(model, bench.config, recorder, buckets)
    parameters = lora.adapter_parameters(model)

    def gradients(step, batch, logps):
        step(model, batch, Given(logps), bench.config)
        found = [p.grad.clone() for p in parameters]
        model.zero_grad()
        return torch.cat([g.flatten() for g in found])

    with by_hand(model):
        started = time.perf_counter()
        step = recorded.of(train.backward)
        bench.sync()
        bench.say("recorded", graphs=len(recorded.recorded),
                  seconds=round(time.perf_counter() - started, 1), **bench.gib())  # fmt: skip
        apart = []
        for batch in batches[: 2 if bench.dry else 8]:
            own = gradients(train.backward, batch.to(bench.device), zeros(batch, bench.device))
            found = gradients(step, batch, scores_for(batch, buckets))
            apart.append(float((found - own).norm() / own.norm()))
        bench.say("gradients against eager", relative=[float(f"{a:.2g}") for a in apart])
        turns = itertools.cycle(batches)
        whole = optimized(model, bench.config, step)
        taken = bench.median_ms(lambda: stepped(whole, next(turns), buckets), STEPS)
        bench.say("recorded step", ms=taken, pairs_a_second=round(8000 / taken, 1))
        batch = batches[0]
        replay = recorded.recorded and next(iter(recorded.recorded.values())).replay
        if replay:
            recorded.keep_gradients()
            bench.say("replay of the largest bucket alone", ms=bench.median_ms(replay))
    recorded.recorded = None  # and its pool is free
    dropped(bench, model, batch, bucket_for(batch, buckets))


def scores_for(batch, buckets):
    """Return as many log-probs as the batch's bucket has answers."""
    bucket = bucket_for(batch, buckets)
    return torch.zeros(bucket.answers if bucket else batch.trees.answers)


def stepped(whole, batch, buckets):
    """Make a step; read its log, as a run does."""
    log = whole(batch, scores_for(batch, buckets))
    return log.pairs.loss.cpu()


def dropped(bench, model, batch, bucket):
    """Look whether dropout draws anew at each replay, and as the generator says."""
    for layer in lora.lora_layers(model).values():
        layer.dropout = 0.05
    recorder = (lambda step, _: step) if bench.dry else CudaGraph()
    with by_hand(model):
        step = Graphs(model, bench.config, recorder, [bucket]).of(train.backward)

        def drawn():
            step(model, batch, Given(torch.zeros(bucket.answers)), bench.config)
            found = torch.cat([p.grad.flatten() for p in lora.adapter_parameters(model)])
            model.zero_grad()
            return found

        torch.manual_seed(1)
        one, two = drawn(), drawn()
        torch.manual_seed(1)
        bench.say("dropout", differs=not torch.equal(one, two), repeats=torch.equal(drawn(), one))


def compiled(bench):
    """Time compiled layers: to the end of the second step, and a step."""
    model, (batches, _) = bench.model(dropout=0.05), bench.batches(4)
    moved = itertools.cycle([(b.to(bench.device), zeros(b, bench.device)) for b in batches])
    step = optimized(model, bench.config, train.backward)
    started = time.perf_counter()
    with lora.layers_as_asked(model, "on", "off", STEPS):
        for _ in range(2):
            step(*next(moved))
            bench.sync()
        second = round(time.perf_counter() - started, 1)
        bench.say("compiled layers", to_second_step_s=second)
        bench.say("compiled layers", ms=bench.median_ms(lambda: step(*next(moved))))


def long_rows(bench):
    """Time rows of some two thousand tokens: by hand, layers computed again, flex attention."""
    unit = 20 if bench.dry else 1
    draw = torch.Generator().manual_seed(0)

    def text(n):
        return tuple(torch.randint(10, 9_999, (n // unit,), generator=draw).tolist())

    asked = [EncodedQuestion(text(200), text(900), (text(900),)) for _ in range(4)]
    batch = next(data.step_batches(asked, [(q, 0) for q in range(4)], 10**5)).to(bench.device)
    for way in ("by hand", "computed again", "flex"):
        if way == "flex" and bench.dry:
            continue  # it has no backward on a CPU
        attention = "flex_attention" if way == "flex" else "eager"
        model = bench.model(dropout=0.05, attention=attention)
        if not bench.dry:
            torch.cuda.reset_peak_memory_stats()
        step = optimized(model, bench.config, train.backward)
        again = "on" if way == "computed again" else "off"
        with lora.layers_as_asked(model, "off", again, STEPS):
            ms = bench.median_ms(lambda step=step: step(batch, zeros(batch, bench.device)), 5)
        tokens = list(batch.trees.tokens.shape)
        bench.say("long rows", way=way, ms=ms, tokens=tokens, **bench.gib())
        del model, step


@contextlib.contextmanager
def random_base(bench):
    """Within the block every base that is loaded is the model with random weights."""
    made = functools.cache(lambda: bench.model(dropout=None))

    def load(name, *rest, **more):
        lora.remove_lora(made())  # of the run before
        return lora.Base(made().eval(), name, None, lora.folder_of("builtin"), "random")

    def skeleton(*rest, **more):
        config = transformers.Gemma2Config(**bench.sizes())
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation="eager"
            )
        return model.eval().requires_grad_(False)

    with tempfile.TemporaryDirectory() as scratch:
        cache = mock.patch("run.folder.cache_folder", lambda name: Path(scratch) / "cache" / name)
        loaded = mock.patch.object(lora, "load_base", load)
        with cache, loaded, mock.patch.object(lora, "skeleton", skeleton):
            yield Path(scratch)


def run(bench):
    """Run train.py: 23 steps, and then an epoch of all questions with its reference."""
    with random_base(bench) as scratch:
        for name, steps in (("23 steps", STEPS), ("an epoch", None)):
            times = step_times()
            steps = 2 if bench.dry else steps
            out = str(scratch / name)
            config = replace(bench.config, max_steps=steps, output_dir=out, graphs="auto")
            with contextlib.redirect_stdout(io.StringIO()) as said:
                train.run(config)
            facts = json.loads((scratch / name / "summary.json").read_text())
            apart = [1000 * (b - a) for a, b in itertools.pairwise(times)]
            bench.say(
                f"train.py, {name}", median_ms=round(statistics.median(apart), 2),
                seconds={k: round(v, 2) for k, v in facts["seconds"].items()},
                pairs=facts["pairs"], planned=facts["planned_memory_bytes"],
                peak=facts["peak_memory_bytes"],
                graphs=[x for x in said.getvalue().splitlines() if x.lower().startswith("graphs")],
            )  # fmt: skip


def peer(bench):
    """Run TRL + PEFT on the same 23 steps: batch 2 x 4, and its defaults."""
    common = {"gradient_checkpointing": False, "precompute_ref_log_probs": False}
    settings = {
        "batch 2 x 4": of_batch(2) | common | {"attention": "eager"},
        "defaults": of_batch(8) | common | {"attention": "eager", "gradient_checkpointing": True},
    }
    rows = rows_of(bench.args.data, bench.args.held_out)
    with random_base(bench) as scratch:
        for name, given in settings.items():
            task = {
                "folder": str(scratch / "trl"), "max_steps": 2 if bench.dry else STEPS,
                "model": "builtin", "rows": rows, "settings": given,
            }  # fmt: skip
            started = time.perf_counter()
            device = mock.patch.object(lora, "choose_device", lambda *_: bench.device)
            try:
                with device:
                    found = trl(task)
            except ImportError as error:
                bench.say("TRL + PEFT", setting=name, missing=str(error))
                continue
            rate = found["pairs"] / (found["reference"] + found["train"])
            bench.say("TRL + PEFT", setting=name, pairs_a_second=round(rate, 2),
                      seconds=round(time.perf_counter() - started, 1), **bench.gib())  # fmt: skip


PARTS = {  # and the seconds that each may take on a GPU
    floor: 35, eager: 45, graphs: 80, run: 95, peer: 85, few: 45, compiled: 50, long_rows: 45,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="a small model, on a CPU")
    parser.add_argument("--data", type=Path, default=SHARED, help="a CSV in TruthfulQA's columns")
    parser.add_argument("--held-out", type=float, default=0.0, help="share of the questions")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="where lines are added")
    parser.add_argument("--parts", nargs="+", choices=[p.__name__ for p in PARTS])
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.data.exists():
        parser.error(f"--data {args.data}: there is no such file")
    bench = Bench(args)
    if args.part:
        return next(part for part in PARTS if part.__name__ == args.part)(bench)
    where = "cpu" if args.dry_run else torch.cuda.get_device_name()
    bench.say("versions", torch=torch.__version__, transformers=transformers.__version__, on=where)
    failed = 0
    for part, limit in PARTS.items():
        if args.parts and part.__name__ not in args.parts:
            continue
        own = [sys.executable, __file__, *sys.argv[1:], "--part", part.__name__]
        started = time.perf_counter()
        try:
            done = subprocess.run(own, check=False, capture_output=True, text=True,
                                  timeout=600 if args.dry_run else limit)  # fmt: skip
            print(done.stdout, end="", flush=True)
            trouble = done.stderr.strip().splitlines()[-12:] if done.returncode else []
        except subprocess.TimeoutExpired as error:
            trouble = [f"stopped after {error.timeout} s"]
        seconds = round(time.perf_counter() - started, 1)
        bench.say("end of a part", name=part.__name__, seconds=seconds, trouble=trouble)
        failed += bool(trouble)
    return sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
