"""The processes of a run: one, or those that `torchrun` started, joined by torch.distributed.

Adapters are small and the base is frozen, so that each process holds the whole model, takes its
share of a step's questions, and sums its gradients with the others'. That is what
DistributedDataParallel does too; its hooks sit on a model's forward, which tries go around. A base
that fits no single device is split by `lora.load_sharded`, and then all keep step.
"""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpo import Scorer, Scores, random_states, restore_random
from dpo.scoring import NOTHING
from lora.errors import reading
from run.errors import ProcessDied, UsageError

Item = TypeVar("Item")


class World(NamedTuple):
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Only the first process prints and writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process' part of what all of them go through."""
        return items[self.rank :: self.size]

    def scores(
        self, scorer: Scorer, label: str, to_score: Sequence[Any], known: Scores = NOTHING
    ) -> dict[str, float]:
        """Return what the processes score together, each its share; see `Scorer.scores`."""
        mine = scorer.scores(label, [self.share(answers) for answers in to_score], known)
        return {key: score for part in self.gather(mine) for key, score in part.items()}

    def gather(self, value: Item) -> list[Item]:
        """Return what every process gave, in their order.

        Raises:
            ProcessDied: one of them is gone.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise _died(error) from error
        return values

    def of_first(self, make: Callable[..., Item], *given: Any) -> Item:
        """Return what the first process makes; the others take it from there."""
        mine: Any = make(*given) if self.first else None
        made: Item = self.gather(mine)[0]
        return made

    def in_step(
        self, batches: Iterable[Item], passes: int = 1, *, idle: Callable[[int], None]
    ) -> Iterator[Item]:
        """Yield the batches; then call `idle(passes)` as long as another process has some."""
        for batch in batches:
            self.gather(True)
            yield batch
        while any(self.gather(False)):
            idle(passes)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradients by their sums over all processes, in one message.

        Raises:
            ProcessDied: one of them is gone.
        """
        if self.size == 1:
            return
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([part.flatten() for part in parts])
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:
            raise _died(error) from error
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parts]), strict=True):
            parameter.grad = part.view_as(parameter)

    def leave(self) -> None:
        """Part from the others at the end, when no model is left that they held together."""
        if self.size > 1:
            _forget_meshes()
            dist.destroy_process_group()


def join() -> World:
    """Join the processes that `torchrun` started; without it this one is alone.

    Raises:
        UsageError: the environment says that there are others, and they cannot be joined.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return World()
    # Its functions keep the group that stands when they are first imported. Were that ours, its
    # threads would outlive `leave`, and one that drops a message as Python ends aborts the process.
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp
    import torch.distributed.nn

    backends = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backends = "cpu:gloo,cuda:nccl"  # --device may still be the CPU
    with reading("WORLD_SIZE is set, and the processes of torchrun cannot be joined", UsageError):
        dist.init_process_group(backends)
    return World(dist.get_rank(), dist.get_world_size())


class Generators:
    """The random generators that the processes draw dropout from: CPU, then GPU, of each."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.seed = world, seed
        self._saved: list[Tensor] = []

    def state_dict(self) -> dict[Any, list[Tensor]]:
        """Return {rank: states} of all processes' generators; all of them call this."""
        return dict(enumerate(self.world.gather(random_states())))

    def load_state_dict(self, state: dict[Any, list[Tensor]]) -> None:
        """Keep this process' states for `start`, if a process of its rank saved some."""
        self._saved = state.get(self.world.rank, [])

    def start(self, step: int) -> None:
        """Let this process draw numbers of its own from here on.

        A run that was saved goes on where it was. The first process of a new run goes on from where
        the adapters were drawn.
        """
        if self._saved:
            restore_random(self._saved)
        elif step or self.world.rank:  # other processes than before, or a further one
            torch.manual_seed(hash((self.seed, step, self.world.rank)) % 2**63)


def _forget_meshes() -> None:
    """Empty torch's caches of how operations are split: they hold the group, as `join` says."""
    if "torch.distributed.tensor" in sys.modules:
        debug: Any = importlib.import_module("torch.distributed.tensor.debug")
        getattr(debug, "_clear_sharding_prop_cache", lambda: None)()
        gc.collect()


def _died(error: RuntimeError) -> ProcessDied:
    return ProcessDied(f"another process of this run is gone ({str(error).splitlines()[0]})")
