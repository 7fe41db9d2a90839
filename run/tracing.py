"""The memory of a step before it is made: every allocation of a model without weights, counted.

The model is built on torch's meta device, where tensors have sizes and no content. The heaviest
micro-batch of the run goes through it, forward and backward, so that the count knows the
architecture, the adapters and the head as they are.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import data
import dpo
import lora
from data.rows import padded_tokens
from data.trees import Tokens, Way
from dpo import Budgets
from dpo.head import cells_of, words_in_a_tile
from lora.base.attention import WIDTHS
from run.anchors import as_planned, tokens_of
from run.config import Config

# As many tokens as the neutral text has at most, in paragraphs of a hundred.
NEUTRAL: list[tuple[Tokens, list[Tokens]]] = [
    ((1,), [tuple(range(100 * i, 100 * i + 100))]) for i in range(48)
]


def activations(
    model: Any, config: Config, questions: data.Prepared, steps: data.Steps, budgets: Budgets
) -> tuple[int, int, int]:
    """Return the tokens of the heaviest micro-batch, its bytes, and those of a scoring batch.

    A model that tries do not suit reads plain rows; of one that cannot be traced nothing is known.
    """
    train = as_planned(questions.train, config)
    to_score = [dpo.trained_answers(q) for q in data.of_all_lengths(train, 512)]
    cells = cells_of(lora.choose_device(config.device).type)
    for way in get_args(Way):
        batches = [  # of questions, and of the text that the dial reads
            next(dpo.scoring_batches({}, to_score, budgets.scoring(way), way))[1],
            next(
                dpo.scoring_batches(
                    {}, NEUTRAL, min(budgets.text, budgets.scoring(way)), way, joined=False
                )
            )[1],
        ]
        scored = max(batches, key=lambda trees: trees.tokens.numel()).to("meta")
        try:
            lora.train_adapters(model)
            again = lora.layers_checkpointed(model, config.checkpointing == "on")
            with again, lora.norms_by_hand(model), lora.attention_by_hand(model):
                step, fed = max(
                    (peak_by_layers(model, partial(_backward, model, batch, cells)), batch.fed)
                    for batch in heaviest(
                        train, steps, tokens_of(config), budgets, way, columns_kept(model)
                    )
                )
            model.eval()
            with torch.no_grad(), two_tiles(model, scored, cells):
                score = partial(dpo.answer_logps, model, scored, cells)
                return fed, step, peak_by_layers(model, score)
        except Exception:  # whatever it is, there is another way or no figure
            continue
    return 0, 0, 0


def _backward(model: Any, batch: data.PairBatch, cells: int) -> None:
    logps, held = dpo.policy_logps(model, batch.to("meta"), cells)
    (logps.sum() + held.sum()).backward()


def heaviest(
    train: Any, steps: data.Steps, anchors: int, budgets: Budgets, way: Way, kept: float = math.inf
) -> list[data.PairBatch]:
    """Return the micro-batches of all steps that may need the most bytes.

    Bytes grow with the tokens, padding included. Where attention keeps its weights P, which it does
    in rows of at most `kept` columns, they grow with tokens times columns. So there are up to three
    batches: the largest by tokens, by their product, and by that among those that keep P. `anchors`
    are the tokens that they add to a question.
    """
    tokens = (train.column("as_tries") + anchors).tolist()
    budget, found = budgets.training(way), {}
    for power, most in ((0, math.inf), (1, math.inf), (1, kept)):

        def weight(pairs: Sequence[data.Pair], power: int = power, most: float = most) -> int:
            shapes = shapes_of(tokens, pairs, budget)
            return max((area * width**power for area, width in shapes if width <= most), default=0)

        step = data.step_batches(train, max(steps.from_step(), key=weight), budget, way)
        shapes = {batch.trees.tokens.shape: batch for batch in step}
        fit = [shape for shape in shapes if shape[1] <= most]
        if fit:
            shape = max(fit, key=lambda shape: shape.numel() * shape[1] ** power)
            found[shape] = shapes[shape]
    return list(found.values())


def shapes_of(
    tokens: Sequence[int], pairs: Sequence[data.Pair], token_budget: int
) -> list[tuple[int, int]]:
    """Return (tokens with padding, columns) of each micro-batch of a step, roughly.

    `tokens` are those of each question's trie, of which none is built.
    """
    sizes = [[tokens[q]] for q in dict.fromkeys(q for q, _ in pairs)]
    groups = ([sizes[k][0] for k in group] for group in data.micro_batches(sizes, token_budget))
    return [(padded_tokens(group), max(group)) for group in groups]


def columns_kept(model: Any) -> float:
    """Return the columns up to which attention keeps its weights for backward."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    width: float = getattr(config, "head_dim", None) or config.hidden_size / heads
    return WIDTHS * width


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
def two_tiles(model: Any, trees: data.TreeBatch, cells: int) -> Iterator[None]:
    """Within the block the head has the words of two tiles, since all further ones are alike.

    Thousands of tokens have hundreds of tiles, which take a second to trace.
    """
    head = model.get_output_embeddings()
    whole = head.weight
    words = 2 * words_in_a_tile(len(trees.nodes), cells)
    if trees.way != "logits":
        head.weight = torch.nn.Parameter(whole[:words], requires_grad=False)
    try:
        yield
    finally:
        head.weight = whole
