"""What a run will take, before it takes it: bytes, FLOPs and seconds (`--plan`).

The model is built on torch's meta device, where tensors have sizes and no content. The heaviest
micro-batch of the run goes through it, forward and backward, while every allocation is counted, so
that the prediction knows the architecture, the adapters and the head as they are.
"""

import itertools
import os
import resource
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import data
import dpo
import inputs
import lora
from config import Config, UsageError
from dpo.logps import TILE_CELLS, words_in_a_tile

LIBRARIES = 45 * 2**20  # on a CPU: what first products, pictures and samples load and compile
# oneDNN compiles bf16 products for each shape it meets, and keeps them: bytes a step, and at most
SHAPES = (int(4.5 * 2**20), 540 * 2**20)
LOGITS = 4 * 32  # rows of float32 logits that the drift holds at once
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight: codes, 8-bit scales, their own scales
USED = 0.6  # share of the matrix products' rate that a whole epoch reached on a CPU; RESULTS.md
GIB, MIB = 2**30, 2**20


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
    looking: int  # drift and samples at the end: rows of logits
    program: int  # what the process held before, and libraries that it will load
    on_cpu: bool
    free: int  # beyond that
    packed: int  # the weights' blocks, on a CPU, if they fit; lora/packing.py
    flops: float  # of the whole run with its reference pass and both evaluations, a process
    rate: float  # FLOP/s of matrix products here, just measured
    shards: int = 1  # processes that the base's layers are split among
    budgets: Mapping[str, int] = field(default_factory=dict)  # tokens fed at once, see `make`

    @property
    def peak(self) -> int:
        """Return the memory that the run holds at most.

        A GPU's allocator gives the memory of one phase to the next. The C library of a CPU keeps
        most of it in pieces that do not fit, so that there the phases add up; but blocks are small
        enough for what scoring left, and are given back when training ends.
        """
        held = self.program + self.weights + self.adapters
        if not self.on_cpu:
            return held + max(self.step, self.scoring, self.looking)
        return held + self.step + max(self.scoring + self.looking, self.packed)

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
        blocks = f", in blocks {self.packed / MIB:,.0f} MiB more" if self.packed else ""
        return [
            ("plan", f"weights {self.weights / MIB:,.0f} MiB{blocks}; adapters, gradients "
                     f"and optimizer {self.adapters / MIB:,.1f} MiB ({share:.2%} of the "
                     f"parameters){split}"),
            ("", f"up to {self.step_tokens:,} tokens at once in training, "
                 f"{self.step / MIB:,.0f} MiB; scoring {self.scoring / MIB:,.0f} MiB"),
            ("", f"at most {self.peak / GIB:.2f} GiB with the program itself; "
                 f"{(self.free + self.program) / GIB:.1f} GiB are there"),
            ("", f"{self.flops / 1e12:,.1f} TFLOP, some {self.seconds:,.0f} s at {USED:.0%} of "
                 f"the {self.rate / 1e9:,.0f} GFLOP/s measured"),
        ]  # fmt: skip


class Allocations(TorchDispatchMode):
    """Count the bytes of the tensors that are alive, and their peak, within the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it allocated."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage: Any) -> None:
        """Count a storage once, until it is gone."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        """Forget a storage."""
        self.seen.discard(key)
        self.alive -= size


def traced_peak(model: Any, work: Callable[[], Any]) -> int:
    """Return the bytes that `work` on a meta model allocates at most, its parameters left out."""
    with Allocations() as counted:
        for tensor in (*model.parameters(), *model.buffers()):
            counted.seen.add(tensor.untyped_storage()._cdata)
        work()
    peak: int = counted.peak
    return peak


def peak_by_layers(model: Any, work: Callable[[], Any]) -> int:
    """Return what `traced_peak` would, from two and three layers where all are alike.

    Each further one then adds the same bytes; to trace them all would take seconds.
    """
    layers = lora.decoder_layers(model)
    kinds = {(type(layer), *(p.shape for p in layer.parameters())) for layer in layers}
    if len(layers) < 4 or len(kinds) > 1:
        return traced_peak(model, work)

    def peak_of_first(count: int) -> int:
        others = list(layers[count:])
        del layers[count:]
        try:
            return traced_peak(model, work)
        finally:
            layers.extend(others)

    try:
        two, three = peak_of_first(2), peak_of_first(3)
    except IndexError:  # a model that counts its layers by its configuration
        return traced_peak(model, work)
    return two + (len(layers) - 2) * (three - two)


@contextmanager
def two_tiles(model: Any, trees: data.TreeBatch) -> Iterator[None]:
    """Within the block the head has the words of two tiles, since all further ones are alike.

    Thousands of tokens have hundreds of tiles, which take a second to trace. Plain rows have none.
    """
    head = model.get_output_embeddings()
    whole = head.weight
    words = 2 * words_in_a_tile(len(trees.nodes), "meta")
    if trees.shared:
        head.weight = torch.nn.Parameter(whole[:words], requires_grad=False)
    try:
        yield
    finally:
        head.weight = whole


def make(
    config: Config,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    questions: data.Prepared,
    steps: data.Steps,
    budgets: Mapping[str, int],
    processes: int = 1,
) -> Plan:
    """Plan a run, as one of so many processes takes part in it.

    Args:
        config: its settings.
        folder: of the base model; only its configuration is read.
        device: where it will run.
        dtype: of the weights.
        questions: encoded, trained on and held out.
        steps: the order of the pairs.
        budgets: tokens fed at once to `train` and to `score`, and as `plain` rows.
        processes: which share the questions, and with `--shard on` the base.
    """
    train, on_cpu = questions.train, device.type == "cpu"
    # flex attention is in no trace, and needs less
    attention = "eager" if config.attention == "flex" else config.attention
    model = lora.skeleton(folder, dtype, attention, device)
    head = model.get_output_embeddings().weight
    frozen = {id(p): p for p in model.parameters()}.values()  # tied ones once
    weights = sum(_stored(p, config.quantize, p is head or p.dim() < 2) for p in frozen)
    embeddings = model.get_input_embeddings().weight
    if config.quantize != "none" and embeddings is not head:  # they stay as they are, too
        weights += round(embeddings.nbytes - _stored(embeddings, config.quantize, False))
    layers = [[p.nbytes for p in layer.parameters()] for layer in lora.decoder_layers(model)]
    largest = max((max(layer) for layer in layers), default=0)
    dequantised = largest if config.quantize != "none" else 0  # for one product at a time
    shards = processes if config.shard == "on" else 1
    if shards > 1:  # its share of all layers, and the one computed with the next one beside it
        sizes = [sum(layer) for layer in layers]
        weights += sum(sizes) / shards + 2 * max(sizes) - sum(sizes)
    parameters = sum(p.numel() for p in frozen)
    packed = lora.packed_bytes(model) if on_cpu and config.quantize == "none" and shards == 1 else 0
    inputs.add_adapters(config, model)
    trained = sum(p.numel() for p in lora.adapter_parameters(model))
    TILE_CELLS["meta"] = TILE_CELLS.get(device.type, TILE_CELLS["cuda"])  # which it stands for
    fed, step, scoring = activations(model, config, train, steps, budgets)
    step, scoring = step + dequantised, scoring + dequantised
    body = parameters - head.numel() - (0 if embeddings is head else embeddings.numel())
    rate = matmul_rate(device, dtype, head.shape[1])
    compiled = min(SHAPES[0] * steps.total, SHAPES[1]) if dtype == torch.bfloat16 else 0
    libraries = LIBRARIES + compiled if on_cpu else 0
    return Plan(
        parameters, trained, round(weights), trained * 4 * 4, step, fed, scoring,
        4 * LOGITS * head.shape[0],
        resident(device) + libraries, on_cpu, free_memory(device), packed,
        epoch_flops(body, head.numel(), questions, steps, config) / processes, rate, shards,
        budgets,
    )  # fmt: skip


def activations(
    model: Any, config: Config, train: Any, steps: data.Steps, budgets: Mapping[str, int]
) -> tuple[int, int, int]:
    """Return the tokens of the heaviest micro-batch, its bytes, and those of a scoring batch.

    A model that tries do not suit reads plain rows; of one that cannot be traced nothing is known.
    """

    def backward(trees: data.TreeBatch) -> None:
        dpo.answer_logps(model, trees).sum().backward()

    pairs = heaviest(train, steps)
    asked = [(q.prompt, q.trained) for q in data.of_all_lengths(train, 512)]
    for shared in (True, False):
        most = [budgets[name] if shared else budgets["plain"] for name in ("train", "score")]
        batch = next(data.step_batches(train, pairs, most[0], shared)).to("meta")
        scored = next(dpo.scoring_batches({}, asked, most[1], shared))[1].to("meta")
        try:
            lora.train_adapters(model)
            again = lora.layers_checkpointed(model, config.checkpointing == "on")
            with again, lora.norms_by_hand(model), lora.attention_by_hand(model):
                step = peak_by_layers(model, partial(backward, batch.trees))
            model.eval()
            with torch.no_grad(), two_tiles(model, scored):
                scoring = peak_by_layers(model, partial(dpo.answer_logps, model, scored))
                return batch.fed, step, scoring
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError):
            continue
    return 0, 0, 0


def _stored(parameter: torch.Tensor, quantise: str, dense: bool) -> float:
    """Return the bytes that a parameter takes; quantised ones but for the head and vectors."""
    each = {"none": 0.0, "nf4": NF4_BYTES, "int8": 1.0}[quantise]
    return parameter.nbytes if dense or not each else parameter.numel() * each


def heaviest(train: Any, steps: data.Steps) -> list[tuple[int, int]]:
    """Return the pairs of the step that feeds the most tokens, as whole questions would."""
    tokens = train.column("as_tries").tolist()
    return max(steps.from_step(), key=lambda pairs: sum(tokens[q] for q in {q for q, _ in pairs}))


def epoch_flops(
    body: int, head: int, questions: data.Prepared, steps: data.Steps, config: Config
) -> float:
    """Return the FLOPs of a run's matrix products: 2 a weight, token and direction.

    The body sees each fed token forward and backward, the head each node that predicts, a prompt's
    last and an answer's, in two products; the reference pass and the two evaluations are forward
    alone.
    """
    train, held_out = (
        [float(fed.sum()), float((fed - side.column("prompt_length") + 1).sum())]
        for side in (questions.train, questions.held_out)
        for fed in [side.column("as_tries")]
    )
    epochs = steps.pairs / max(sum(steps.counts), 1)
    reference = 0 if config.reference_free else 1
    forward = [t * reference + 2 * h for t, h in zip(train, held_out, strict=True)]
    both = [2 * t * epochs for t in train]
    return 2 * (body * (forward[0] + both[0]) + head * (forward[1] + both[1]))


def matmul_rate(
    device: torch.device, dtype: torch.dtype, width: int, seconds: float = 0.15
) -> float:
    """Return the FLOP/s of products as they occur: some 128 tokens, width by 4 width."""
    x = torch.ones(128, width, device=device, dtype=dtype)
    weight = torch.ones(4 * width, width, device=device, dtype=dtype)

    def run() -> None:
        x @ weight.T
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        run()
        count += 1
    return count * 2 * 128 * width * 4 * width / (time.perf_counter() - started)


def resident(device: torch.device) -> int:
    """Return what this process holds now of the memory that the plan is about."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory(device: torch.device) -> int:
    """Return what more this process may take, of the GPU or of the machine or its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        free.append(int(available.split()[1]) * 1024)
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        free.append(int((group / "memory.max").read_text()) - used)
    return min(free, default=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def settle(
    config: Config,
    token: str | None,
    questions: data.Prepared,
    steps: data.Steps,
    budgets: Mapping[str, int],
    processes: int = 1,
) -> Plan:
    """Plan the run; say what does not fit, and which setting would; settle what is `auto`.

    The arguments are those of `make`.

    Raises:
        UsageError: not even the weights fit.
    """
    folder = lora.folder_of(config.model, config.revision, token)
    device = lora.choose_device(config.device)
    dtype = lora.choose_dtype(config.dtype, device)

    def planned(share: int = 1, **changes: Any) -> Plan:
        settings = replace(config, **changes)
        fewer = {name: tokens // share for name, tokens in budgets.items()}
        return make(settings, folder, device, dtype, questions, steps, fewer, processes)

    ways = ["off", "on"] if config.checkpointing == "auto" else [config.checkpointing]
    split = ["off", "on"] if config.shard == "auto" else [config.shard]
    if processes == 1:
        split = ["off"]
        if config.shard == "on":
            print("Memory: one process holds the whole base; torchrun starts several", flush=True)
    elif device.type == "cpu" or config.quantize != "none":
        split = split[:1]  # processes share a CPU's memory; four bits are not split
    tried = list[tuple[Plan, Any]]()
    for shard, checkpointing, share in itertools.product(split, ways, (1, 4)):
        found = planned(share, shard=shard, checkpointing=checkpointing)
        if not found.fits:
            found = replace(found, packed=0)
        tried.append((found, checkpointing))
        if found.fits:
            break
    plan, config.checkpointing = min(tried, key=lambda way: way[0].peak)
    if plan.budgets != budgets:
        print("Memory: a quarter of the tokens is fed at once", flush=True)
    if config.checkpointing == "on" and len(ways) > 1:
        print("Memory: activations are computed again backward (--checkpointing on)", flush=True)
    if plan.fits:
        return plan
    needs = f"the run needs some {(plan.peak - plan.program) / GIB:.1f} GiB"
    there = f"{plan.free / GIB:.1f} GiB are free"
    advice = "choose a smaller --model or a shorter --max-length"
    if config.quantize == "none" and (smaller := planned(quantize="nf4", shard="off")).fits:
        advice = f"--quantize nf4 would need {(smaller.peak - smaller.program) / GIB:.1f} GiB"
    if plan.weights > plan.free:
        raise UsageError(f"{needs} and {there}; {advice}")
    print(f"Memory: {needs} and {there}; {advice}", flush=True)
    return plan
