"""When memory runs out: the same work again with half the tokens at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.trees import Way

# How a RuntimeError says that a CPU has no more memory, or Apple's GPU.
PLAIN = ("can't allocate memory", "not enough memory", "MPS backend out of memory")
SMALLEST = 16  # tokens; a question larger than the budget goes alone in any case


class Budgets(NamedTuple):
    """Tokens that are fed at once."""

    train: int = 2048
    score: int = 4096
    plain: int = 512  # where a model makes the logits itself, all are kept
    text: int = 1024  # of the neutral text: few, so that it sets no peak of its own

    def training(self, way: Way) -> int:
        """Return the tokens of a training batch."""
        return self.plain if way == "logits" else self.train

    def scoring(self, way: Way) -> int:
        """Return the tokens of a scoring batch."""
        return self.plain if way == "logits" else self.score

    def fewer(self, share: int) -> "Budgets":
        """Return a share of each."""
        return Budgets(*(tokens // share for tokens in self))


class OutOfMemory(RuntimeError):
    """Not even one question at a time fits; the message says what to change."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether a device or the machine ran out of memory; CPU and MPS in a plain error."""
    said = any(text in str(error) for text in PLAIN)
    plain = isinstance(error, RuntimeError) and said
    return plain or isinstance(error, torch.OutOfMemoryError | MemoryError)


def random_states() -> list[Tensor]:
    """Return the states of the random generators, the CPU's and then the GPU's."""
    return [device.get_rng_state() for device in _generators()]


def restore_random(states: Sequence[Tensor]) -> None:
    """Let the generators go on from these states; one of a GPU counts only where there is one."""
    for device, state in zip(_generators(), states, strict=False):
        device.set_rng_state(state)


def _generators() -> list[Any]:
    """Return what has a generator of random numbers here."""
    gpus = (torch.cuda.is_available(), torch.cuda), (torch.backends.mps.is_available(), torch.mps)
    return [torch, *(gpu for there, gpu in gpus if there)]


@dataclass
class TokenBudget:
    """The tokens that may be fed at once, as a context; halved where memory runs out within it.

        while True:
            with budget:
                return work(budget.tokens)

    Then the block ends without an error, so that the work is done once more, and the random
    generators start again where they were. How a step is cut into micro-batches changes no gradient
    but by the masks that dropout then draws.
    """

    tokens: int  # to begin with
    undo: Callable[[], Any] = lambda: None  # takes back what the block had done
    alone: bool = True  # False where others wait within the work: it cannot be tried again then
    _failed = False

    def __enter__(self) -> "TokenBudget":
        if self._failed and torch.cuda.is_available():
            torch.cuda.empty_cache()  # only now are the failed work's tensors gone
        self._failed = False
        self._random = random_states()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        """Halve the budget where memory ran out; let any other error pass.

        Raises:
            OutOfMemory: the budget cannot be halved any more, or not alone.
        """
        if not is_out_of_memory(error):
            return False
        if not self.alone:
            raise OutOfMemory(
                "out of memory; try --checkpointing on, a shorter --max-length, more processes"
            ) from error
        if self.tokens // 2 < SMALLEST:
            raise OutOfMemory(
                "out of memory even with one question at a time; use a shorter --max-length, a "
                "lower --rank, --quantize nf4 or a smaller model"
            ) from error
        self.tokens //= 2
        self._failed = True
        self.undo()
        restore_random(self._random)
        print(f"Out of memory: going on with {self.tokens} tokens at once.", flush=True)
        return True
