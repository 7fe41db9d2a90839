"""What a run will take, before it takes it: bytes, FLOPs and seconds (`--plan`)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import data
import dpo
import lora
from data.rows import row_length
from dpo import Budgets
from lora.base.checkpointing import Checkpointing
from lora.base.quantise import Quantise
from lora.base.sharding import Shard
from run import inputs
from run.anchors import tokens_of
from run.config import Config
from run.errors import UsageError
from run.graphs import why_not
from run.measuring import free_memory, matmul_rate, resident
from run.processes import World
from run.tracing import activations, shapes_of

# What was measured to stay of a micro-batch, whose nodes and edges are those of no other, of its
# shape if that is new, and at most: oneDNN's compiled bf16 products, and pieces of freed memory.
STAYS = (int(1.7 * 2**20), 15 * 2**20, 600 * 2**20)
STAYS_OF_LARGE = 300 * 2**20  # at most, where most batches give their pieces back
LARGE = 512  # tokens at once; to bring weights into blocks is little beside more, and so is to trim
LOGITS = 4 * 32  # rows of float32 logits that the drift holds at once
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight: codes, 8-bit scales, their own scales
USED = 0.6  # share of the matrix products' rate that a whole epoch reached on a CPU; RESULTS.md
GIB, MIB = 2**30, 2**20
DEFAULT = Budgets()
# Of rows with more columns than this on average a CPU computes half as many tokens at once faster.
LONG_ROWS = 512
FOR_LONG_ROWS = DEFAULT._replace(train=1024, score=2048)
SHARES = {1: "as much as suits", 2: "half as much", 4: "a quarter as much"}  # of its tokens


@dataclass(frozen=True)
class Plan:
    """What a run needs; bytes but for the counts."""

    parameters: int  # of the frozen base
    trained: int  # of the adapters
    weights: int
    adapters: int  # float32, with gradients and AdamW's two moments
    step: int  # the heaviest micro-batch: what backward needs, and the head's tile
    step_tokens: int  # fed in it
    scoring: int  # a batch of the reference pass or the evaluation
    checking: int  # the self-check
    looking: int  # drift and samples at the end: rows of logits
    program: int  # what the process held before, and what will stay of batches
    free: int  # beyond that
    blocks: int  # the weights once more in blocks, on a CPU, if they fit; lora/base/blocks.py
    flops: float  # of the whole run with its reference pass and both evaluations, a process
    rate: float  # FLOP/s of matrix products here, just measured
    evaluation: float = 0.0  # its share of the FLOPs
    shards: int = 1  # processes that the base's layers are split among
    budgets: Budgets = DEFAULT  # tokens fed at once
    checkpointing: Checkpointing = "off"  # whether layers are computed again backward
    no_graphs: str | None = None  # why a GPU's steps are not recorded; "" where they are

    @property
    def peak(self) -> int:
        """Return the memory that the run holds at most.

        A GPU's allocator gives the memory of one phase to the next, but for that of recorded steps,
        which keep a pool. The C library of a CPU keeps most of it in pieces that do not fit: there
        the phases add up, but blocks are small enough for what scoring left.
        """
        held = self.program + self.weights + self.adapters
        if self.no_graphs is None:  # a CPU
            run = self.step + max(self.scoring + self.looking, self.blocks)
            return held + max(self.checking, run)
        others = max(self.scoring, self.checking, self.looking)
        return held + (max(self.step, others) if self.no_graphs else self.step + others)

    @property
    def fits(self) -> bool:
        """Tell whether that much is free."""
        return self.peak - self.program <= self.free

    @property
    def seconds(self) -> float:
        """Return what reference, training and evaluation will take, roughly."""
        return self.flops / (self.rate * USED)

    def lines(self) -> list[tuple[str, str]]:
        """Say it, under headings."""
        share = self.trained / self.parameters
        split = f"; layers split among {self.shards} processes" if self.shards > 1 else ""
        graphs = f"none: {self.no_graphs}" if self.no_graphs else "one for each shape of batch"
        blocks = f", in blocks {self.blocks / MIB:,.0f} MiB more" if self.blocks else ""
        return [
            ("plan", f"weights {self.weights / MIB:,.0f} MiB{blocks}; adapters, gradients "
                     f"and optimizer {self.adapters / MIB:,.1f} MiB ({share:.2%} of the "
                     f"parameters){split}"),
            ("", f"up to {self.step_tokens:,} tokens at once in training, "
                 f"{self.step / MIB:,.0f} MiB; scoring {self.scoring / MIB:,.0f} MiB"),
            ("", f"at most {self.peak / GIB:.2f} GiB with the program itself; "
                 f"{(self.free + self.program) / GIB:.1f} GiB are there"),
            ("", f"{self.flops / 1e12:,.1f} TFLOP, some {self.seconds:,.0f} s at {USED:.0%} of "
                 f"the {self.rate / 1e9:,.0f} GFLOP/s measured; {self.evaluation:.0%} of it is "
                 "the evaluation"),
            *([] if self.no_graphs is None else [("graphs", graphs)]),
        ]  # fmt: skip


class Work(NamedTuple):
    """What is to be done."""

    config: Config
    questions: data.Prepared  # trained on, and held out
    steps: data.Steps
    processes: int = 1  # which share the questions, and with `--shard on` the base


def make(
    work: Work, folder: Path, device: torch.device, dtype: torch.dtype, budgets: Budgets
) -> Plan:
    """Plan a run, as one of its processes takes part in it.

    Of the base model's folder only the configuration is read.
    """
    config, on_cpu = work.config, device.type == "cpu"
    # flex attention is in no trace, and needs less
    attention = "eager" if config.attention == "flex" else config.attention
    model = lora.skeleton(folder, dtype, attention, device)
    head = model.get_output_embeddings().weight
    parameters = sum(p.numel() for p in model.parameters())  # tied ones count once
    embeddings = model.get_input_embeddings().weight
    shards = work.processes if config.shard == "on" else 1
    weights = bytes_of_weights(model, config.quantize, shards)
    layers = lora.decoder_layers(model)
    largest = max((p.nbytes for p in layers.parameters()), default=0)
    checking = dpo.bytes_of_check(model, layers) if len(layers) and shards == 1 else 0
    dequantised = largest if config.quantize != "none" else 0  # for one product at a time
    blocks = lora.bytes_of_blocks(model) if on_cpu and config.quantize == "none" else 0
    inputs.add_adapters(config, model)
    trained = sum(p.numel() for p in lora.adapter_parameters(model))
    fed, step, scoring = activations(model, config, work.questions, work.steps, budgets)
    body = parameters - head.numel() - (0 if embeddings is head else embeddings.numel())
    shapes = micro_batch_shapes(work, budgets)
    staying = bytes_that_stay(shapes) if on_cpu and dtype == torch.bfloat16 else 0
    if sum(area for area, _ in shapes) > LARGE * len(shapes):
        blocks, staying = 0, min(staying, STAYS_OF_LARGE)
    flops = epoch_flops(work, body, head.numel())
    return Plan(
        parameters=parameters,
        trained=trained,
        weights=weights,
        adapters=trained * 4 * 4,
        step=step + dequantised,
        step_tokens=fed,
        scoring=scoring + dequantised,
        checking=checking,
        looking=4 * LOGITS * head.shape[0],
        program=resident(device) + staying,
        free=free_memory(device),
        blocks=blocks if shards == 1 else 0,
        flops=flops / work.processes,
        rate=matmul_rate(device, dtype, head.shape[1]),
        evaluation=evaluation_flops(work, body, head.numel()) / max(flops, 1),
        shards=shards,
        budgets=budgets,
        checkpointing=config.checkpointing,
        no_graphs=None if on_cpu else why_not(config, device, "tries", shards),
    )


def micro_batch_shapes(work: Work, budgets: Budgets) -> list[tuple[int, int]]:
    """Return (tokens with padding, columns) of each micro-batch of the run, roughly."""
    tokens = (work.questions.train.column("as_tries") + tokens_of(work.config)).tolist()
    return [shape for pairs in work.steps.from_step()
            for shape in shapes_of(tokens, pairs, budgets.train)]  # fmt: skip


def bytes_that_stay(shapes: Sequence[tuple[int, int]]) -> int:
    """Return what stays of micro-batches of all these shapes."""
    each, new, most = STAYS
    distinct = {(row_length(area), row_length(width)) for area, width in shapes}
    return min(each * len(shapes) + new * len(distinct), most)


def bytes_of_weights(model: Any, quantise: Quantise, shards: int) -> int:
    """Return what a model's weights take, quantised or split among processes.

    bitsandbytes quantises linear layers but for the head: no embeddings, no experts in one piece.
    """
    head = model.get_output_embeddings()
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m is not head}
    weights = sum(_stored(p, quantise, id(p) not in linear) for p in model.parameters())
    if shards > 1:  # its share of all layers, and the one computed with the next one beside it
        layers = lora.decoder_layers(model)
        sizes = [sum(p.nbytes for p in layer.parameters()) for layer in layers]
        weights += sum(sizes) / shards + 2 * max(sizes) - sum(sizes)
    return round(weights)


def _stored(parameter: torch.Tensor, quantise: str, dense: bool) -> float:
    """Return the bytes that a parameter takes, quantised if it is not to stay dense."""
    each = {"none": 0.0, "nf4": NF4_BYTES, "int8": 1.0}[quantise]
    return parameter.nbytes if dense or not each else parameter.numel() * each


def epoch_flops(work: Work, body: int, head: int) -> float:
    """Return the FLOPs of a run's matrix products: 2 a weight, token and direction.

    The body sees each fed token forward and backward, the head each node that predicts, a prompt's
    last and an answer's, in two products; the reference pass and the evaluation are forward alone.
    """
    train = _tokens_and_nodes(work.questions.train)
    anchors = tokens_of(work.config) * len(work.questions.train.column("as_tries"))
    epochs = work.steps.pairs / max(sum(work.steps.counts), 1)
    reference = 1 if work.config.needs_reference else 0
    # Anchors are drawn token by token, which is one pass; a step is a pass each way.
    tokens, nodes = (t * reference + anchors + 2 * (t + anchors) * epochs for t in train)
    return 2 * (body * tokens + head * nodes) + evaluation_flops(work, body, head)


def evaluation_flops(work: Work, body: int, head: int) -> float:
    """Return those of scoring the held-out answers and neutral text, at each size, and the drift.

    Where the size is to be found, three more are tried on the text; its own is near a quarter.
    """
    tokens, nodes = _tokens_and_nodes(work.questions.held_out)
    if not tokens:
        return 0.0
    sizes = len(dpo.dial_sizes(work.config.size or 1.0))
    tried = 3 if work.config.size is None else 0
    text = (sizes + tried) * dpo.NEUTRAL_TOKENS + (sizes - 1) * dpo.DRIFT_TOKENS
    return 2 * (body * (sizes * tokens + text) + head * (sizes * nodes + text))


def _tokens_and_nodes(questions: Any) -> tuple[float, float]:
    """Return the tokens fed, and of these the nodes that predict an answer's token."""
    fed = questions.column("as_tries")
    return float(fed.sum()), float((fed - questions.column("prompt_length") + 1).sum())


def choose_plan(config: Config, questions: data.Prepared, steps: data.Steps, world: World) -> Plan:
    """Plan the run; say what does not fit, and which setting would; settle what is `auto`.

    Raises:
        UsageError: not even the weights fit.
    """
    work = Work(config, questions, steps, world.size)
    tried: list[Plan] = []
    budgets = suited_budgets(work, inputs.place_of(config)[0])
    ways = ["off", "on"] if config.checkpointing == "auto" else [config.checkpointing]
    for shard, again, share in itertools.product(_splits(config, world.size), ways, SHARES):
        found = _planned(work, budgets.fewer(share), shard=shard, checkpointing=again)
        tried.append(found if found.fits else replace(found, blocks=0))
        if tried[-1].fits:
            break
    plan = min(tried, key=lambda way: way.peak)
    if plan.budgets != budgets:
        print(f"Memory: {SHARES[budgets.train // plan.budgets.train]} is fed at once", flush=True)
    if plan.checkpointing == "on" and len(ways) > 1:
        print("Memory: activations are computed again backward (--checkpointing on)", flush=True)
    if config.graphs == "on" and plan.no_graphs != "":
        raise UsageError(f"--graphs on: {plan.no_graphs or 'they are for CUDA'}; leave it out")
    if not plan.fits:
        _say_what_would_fit(plan, work)
    # Where one process splits the base, all of them make the same passes.
    return replace(plan, shards=max(world.gather(plan.shards)))


def _planned(work: Work, budgets: Budgets, **changes: Any) -> Plan:
    """Plan the work with some settings changed."""
    config = replace(work.config, **changes)
    folder = lora.folder_of(config.model, config.revision)
    return make(work._replace(config=config), folder, *inputs.place_of(config), budgets)


def suited_budgets(work: Work, device: torch.device) -> Budgets:
    """Return the tokens that are best fed at once, memory apart."""
    widths = [width for _, width in micro_batch_shapes(work, DEFAULT)]
    long = sum(widths) > LONG_ROWS * len(widths)
    return FOR_LONG_ROWS if long and device.type == "cpu" else DEFAULT


def _splits(config: Config, processes: int) -> list[Shard]:
    """Return the ways of splitting the base that are tried, one after the other."""
    if processes == 1:
        if config.shard == "on":
            print("Memory: one process holds the whole base; torchrun starts several", flush=True)
        return ["off"]
    if config.shard != "auto":
        return [config.shard]
    # Processes share a CPU's memory, and four bits are not split.
    on_cpu = lora.choose_device(config.device).type == "cpu"
    return ["off"] if on_cpu or config.quantize != "none" else ["off", "on"]


def _say_what_would_fit(plan: Plan, work: Work) -> None:
    needs = f"the run needs some {(plan.peak - plan.program) / GIB:.1f} GiB"
    there = f"{plan.free / GIB:.1f} GiB are free"
    advice = "choose a smaller --model or a shorter --max-length"
    if work.config.quantize == "none":
        again = plan.checkpointing
        smaller = _planned(work, DEFAULT, quantize="nf4", shard="off", checkpointing=again)
        if smaller.fits:
            advice = f"--quantize nf4 would need {(smaller.peak - smaller.program) / GIB:.1f} GiB"
    if plan.weights > plan.free:
        raise UsageError(f"{needs} and {there}; {advice}")
    print(f"Memory: {needs} and {there}; {advice}", flush=True)
