"""A step's kernels as one graph of the GPU, recorded once for each shape of batch (`--graphs`).

Started one by one, the seven thousand kernels of a step of Gemma-2 9B take twenty times as long as
the GPU needs to read the weights. A recorded step reads its batch, its reference's log-probs and
the adapters from where they lie, and adds to the gradients that lie there. Clipping, AdamW and the
log stay outside. Batches are padded to a few shapes, see `data.buckets`.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

import data
import dpo
import lora
from data.buckets import Bucket, bucket_for, choose_buckets, nothing, padded, sizes
from run.config import Config
from run.errors import UsageError

ALIGNED = 16  # bytes that tensors begin at a multiple of
LOOKED_AT = 512  # steps, whose batches buckets are chosen by
WARM_UPS = 2  # steps, in which kernels are compiled and libraries start

Backward = Callable[[Any, data.PairBatch, Any, Config], dpo.StepLog]
Replay = Callable[[], Tensor]


class Record(Protocol):
    """Records what a function without arguments does, and returns what does it again."""

    def __call__(self, step: Callable[[], Tensor], tensors: Sequence[Tensor]) -> Replay:
        """Record `step`, which reads these tensors and adds to some of them."""


class Given(NamedTuple):
    """A reference whose log-probs are there already."""

    scores: Tensor  # (A,)

    def logps(self, _: data.PairBatch) -> Tensor:
        """Return (A,) log pi_ref(y|x), nats."""
        return self.scores


class CudaGraph:
    """Records CUDA graphs, all of them in one pool of memory and on one stream."""

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], Tensor], tensors: Sequence[Tensor]) -> Replay:
        """Record `step`. The random numbers that it draws before do not count."""
        state = torch.cuda.get_rng_state()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(self.stream)
        torch.cuda.set_rng_state(state)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            out = step()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


class Packed:
    """Batches of one shape, with their reference's log-probs, as one run of bytes each."""

    def __init__(self, batch: data.PairBatch) -> None:
        leaves, self.form = tree_flatten(self._parts(batch, torch.zeros(batch.trees.answers)))
        self.leaves, self.places, self.bytes = leaves, dict[int, int](), 0
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self.places[number] = self.bytes
                self.bytes += leaf.nbytes + -leaf.nbytes % ALIGNED

    @staticmethod
    def _parts(batch: data.PairBatch, logps: Tensor) -> tuple[Any, Tensor]:
        bare: Any = batch._replace(answers=[], ids=[], as_pairs=0, fed=0)
        return bare, logps

    def pack(self, batch: data.PairBatch, logps: Tensor) -> Tensor:
        """Return (bytes,) uint8 on the CPU: all tensors of a batch."""
        packed = torch.empty(self.bytes, dtype=torch.uint8)
        leaves, _ = tree_flatten(self._parts(batch, logps))
        for number, start in self.places.items():
            flat = leaves[number].contiguous().flatten()
            packed[start : start + flat.nbytes] = flat.view(torch.uint8)
        return packed

    def unpack(self, packed: Tensor) -> tuple[data.PairBatch, Tensor]:
        """Return the batch and the log-probs in such bytes, as views of them."""
        leaves = list(self.leaves)
        for number, start in self.places.items():
            like = leaves[number]
            flat = packed[start : start + like.nbytes].view(like.dtype)
            leaves[number] = flat.view(like.shape)
        batch, logps = tree_unflatten(leaves, self.form)
        return batch, logps


class Recorded:
    """One recorded step: batches of one bucket, forward, loss and backward."""

    def __init__(self, graphs: "Graphs", backward: Backward, bucket: Bucket) -> None:
        model, config = graphs.model, graphs.config
        example = padded(nothing(bucket.words), bucket)
        self.packed = Packed(example)
        packed = self.packed.pack(example, torch.zeros(bucket.answers))
        self.bytes = packed.to(model.device)  # what a step reads

        def step() -> Tensor:
            batch, logps = self.packed.unpack(self.bytes)
            with lora.adapters_cast(model):
                log = backward(model, batch, Given(logps), config)
            anchor = torch.as_tensor(log.anchor).expand(bucket.pairs)
            return torch.stack([*(column.float() for column in log.pairs), anchor])

        tensors = [self.bytes, *graphs.parameters, *graphs.gradients]
        self.replay = graphs.record(step, tensors)

    def __call__(self, batch: data.PairBatch, logps: Tensor) -> Tensor:
        """Add the gradient of a batch of this bucket; return its log, a row for each column."""
        packed = self.packed.pack(batch, logps)
        if self.bytes.is_cuda:
            packed = packed.pin_memory()  # one copy, which the host does not wait for
        self.bytes.copy_(packed, non_blocking=True)
        return self.replay().clone()


class Graphs:
    """The recorded steps of a run, and its buckets, which must survive a kill.

    Args:
        model: with adapters, as they are trained.
        config: the settings.
        record: how a step is recorded.
        buckets: the shapes that batches are padded to, the largest first.
    """

    def __init__(
        self, model: Any, config: Config, record: Record, buckets: Sequence[Bucket] = ()
    ) -> None:
        self.model, self.config, self.record, self.buckets = model, config, record, list(buckets)
        self.parameters = lora.adapter_parameters(model)
        self.gradients: list[Tensor] = []
        self.recorded: dict[Bucket, Recorded] | None = None  # none yet

    def of(self, backward: Backward) -> Backward:
        """Return `backward` as one graph where a batch has a bucket, and itself elsewhere.

        Raises:
            UsageError: it cannot be recorded, and `--graphs on` asks for it.
        """
        if self.recorded is None:
            self.recorded = {}
            self._record_all(backward)
        return partial(self._step, backward)

    def _record_all(self, backward: Backward) -> None:
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        try:
            self.keep_gradients()
            with lora.few_kernels(self.model, *self._uncompiled()):
                found = {bucket: Recorded(self, backward, bucket) for bucket in self.buckets}
            self.recorded = found
        except Exception as error:  # whatever it is, steps can be made without
            if self.config.graphs == "on":
                raise UsageError(f"--graphs on: a step cannot be recorded; {error}") from error
            print(f"Graphs: none, a step cannot be recorded ({lora.reason(error)})", flush=True)
        self.model.zero_grad()

    def _uncompiled(self) -> list[Any]:
        """Return the compiler of small functions where it is none, since the layers are."""
        on_gpu = self.model.device.type == "cuda"
        return [] if on_gpu and self.config.compile != "on" else [lambda function: function]

    def _step(
        self, backward: Backward, model: Any, batch: data.PairBatch, reference: Any, config: Config
    ) -> dpo.StepLog:
        bucket = bucket_for(batch, list(self.recorded or ()))
        if bucket is None or not self.recorded:
            return backward(model, batch.to(model.device), reference, config)
        whole = padded(batch, bucket)
        self.keep_gradients()
        columns = self.recorded[bucket](whole, reference.logps(whole))[:, : len(batch.chosen)]
        log = dpo.PairLog(*columns[:-1])
        return dpo.StepLog(log, batch.as_pairs, batch.fed, columns[-1, 0])

    def keep_gradients(self) -> None:
        """Let the gradients lie where a recorded step adds to them; those that are none are 0."""
        if all(p.grad is g for p, g in zip(self.parameters, self.gradients, strict=True)):
            return
        torch._foreach_zero_(self.gradients)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is not None:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient

    def state_dict(self) -> dict[str, Any]:
        """Return the buckets: with others, dropout would draw others."""
        return {"buckets": [list(bucket) for bucket in self.buckets]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the buckets of before."""
        self.buckets = [Bucket(*sizes) for sizes in state["buckets"]]


def why_not(config: Config, device: torch.device, way: str, shards: int) -> str:
    """Say why steps are not recorded; "" where they are."""
    reasons = {
        "they are off (--graphs auto records them)": config.graphs == "off",
        "they are for CUDA": device.type != "cuda",
        "layers are computed again (--checkpointing on)": config.checkpointing == "on",
        "the base is split over processes (--shard on)": shards > 1,
        f"the base is quantised (--quantize {config.quantize})": config.quantize != "none",
        "the reference moves (--reference-sync)": config.reference_sync is not None,
        "answers are read as plain rows": way != "tries",
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def buckets_of(
    questions: Any, steps: data.Steps, tokens: int, weight_by: Any, processes: int
) -> list[Bucket]:
    """Return buckets for the batches of a run's first steps, those of all its processes."""
    return choose_buckets(
        sizes(batch)
        for pairs in itertools.islice(steps.from_step(), LOOKED_AT)
        for rank in range(processes)
        for batch in data.step_batches(
            questions, pairs, tokens, "tries", weight_by, (rank, processes)
        )
    )
