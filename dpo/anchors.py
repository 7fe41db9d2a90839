"""Anchors: answers that the reference writes by itself, which the policy is to keep likely.

DPO holds the policy near its reference on the answers in the data alone. Anchors add the forward
divergence at the prompts that are trained on, estimated from a few answers y drawn from pi_ref:

    KL(pi_ref || pi) = E_{y ~ pi_ref} [log pi_ref(y|x) - log pi(y|x)]

They are drawn once. In training they are further answers of their question's trie, so that they
share its prompt. `docs/math.md` derives the term and says what it cannot see. Shape legend: A
answers, K anchors, B prompts, N samples of each, T tokens at most, V vocabulary.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from data.batches import PairBatch
from data.encode import Anchor
from data.trees import Tokens
from dpo.evaluation.generate import contiguous_head, left_padded

CELLS = 2**24  # float32 scores of all rows that are drawn at once, B x N x V
ROWS = 16  # of which the probabilities are summed up at a time


class Sampling(NamedTuple):
    """How many answers of a prompt are drawn, and how long they may be."""

    samples: int = 2
    tokens: int = 24


def anchor_gaps(logps: Tensor, batch: PairBatch, tokens: int) -> Tensor:
    """Return (K,): how much less likely than for the reference each anchor y is, in nats a token.

        [log pi_ref(y|x) - log pi(y|x)] / T

    `logps` (A,) are log pi(y|x) of all answers of the batch, and `tokens` is T. Before the first
    step a gap is 0, up to rounding. The mean estimates KL(pi_ref || pi) of answers of at most T
    tokens, a token. All are divided by the same T: divided by its own length, a short answer would
    weigh more than pi_ref gives it, and the policy would learn to be brief.
    """
    return (batch.anchor_logps - logps[batch.anchors]) / tokens  # eq. (23) of docs/math.md


def draw_anchors(
    model: Any, prompts: Sequence[Tokens], stop: int, sampling: Sampling, shared: bool = True
) -> Iterator[tuple[Tokens, tuple[Anchor, ...]]]:
    """Yield each distinct prompt with N answers drawn from the model at temperature 1.

    What is drawn depends on the prompt's tokens and on the model, and not on the other prompts: the
    random numbers of a prompt are seeded by its ids. Prompts are taken by their length, some at
    once. With `shared` a prompt is read once for its N answers; without it N times, by whatever
    architecture.

    Args:
        model: a causal language model of transformers, in eval mode, as the reference.
        prompts: token ids, the BOS included.
        stop: ends an answer, and is its last token. One of T tokens without it was cut off.
        sampling: N and T.
        shared: the model keeps keys and values in a `DynamicCache`.
    """
    at_once = max(1, CELLS // (model.get_output_embeddings().weight.shape[0] * sampling.samples))
    ordered = sorted(dict.fromkeys(prompts), key=lambda prompt: (len(prompt), prompt))
    for first in range(0, len(ordered), at_once):
        some = ordered[first : first + at_once]
        yield from zip(some, _drawn(model, some, stop, sampling, shared), strict=True)


@torch.no_grad()
def _drawn(
    model: Any, prompts: Sequence[Tokens], stop: int, sampling: Sampling, shared: bool
) -> list[tuple[Anchor, ...]]:
    """Return the anchors of some prompts, which are read together."""
    n = sampling.samples
    ids, mask = (x.to(model.device) for x in left_padded(prompts, stop))
    given: dict[str, Any] = {}
    if shared and ids.shape[1] > 1:
        cache = DynamicCache(config=model.config.get_text_config())
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        read = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "use_cache": True}
        model.base_model(**read, position_ids=places[:, :-1], past_key_values=cache)
        cache.batch_repeat_interleave(n)
        given["past_key_values"] = cache
    draw = Draw(np.concatenate([_uniform(prompt, sampling) for prompt in prompts]))
    rows, seen = (x.repeat_interleave(n, 0) for x in (ids, mask))
    with contiguous_head(model), _as_it_is(model):
        out = model.generate(
            input_ids=rows, attention_mask=seen, max_new_tokens=sampling.tokens, do_sample=False,
            eos_token_id=stop, pad_token_id=stop, logits_processor=LogitsProcessorList([draw]),
            **given,
        )  # fmt: skip
    found = []
    logps = torch.stack(draw.logps, 1).tolist()
    for row, scores in zip(out[:, ids.shape[1] :].tolist(), logps, strict=True):
        count = row.index(stop) + 1 if stop in row else len(row)
        found.append(Anchor(tuple(row[:count]), sum(scores[:count])))
    return [tuple(found[i : i + n]) for i in range(0, len(found), n)]


def _uniform(prompt: Tokens, sampling: Sampling) -> np.ndarray:
    """Return (N, T) numbers from 0 to 1 that the prompt alone decides."""
    seed = int.from_bytes(hashlib.sha256(str(prompt).encode()).digest()[:8], "big")
    return np.random.default_rng(seed).random(sampling)


class Draw(LogitsProcessor):  # type: ignore[misc]
    """Draw each row's next token from softmax(z) by a number u that is given: inverse sampling.

    The token is the first one whose cumulated probability is above u. All others become impossible.
    """

    def __init__(self, uniform: np.ndarray) -> None:  # (B x N, T)
        self.uniform = uniform
        self.logps: list[Tensor] = []  # of each token so far, (B x N,) log pi_ref, nats

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B x N, V) that leave one token of each row."""
        u = torch.from_numpy(self.uniform[:, len(self.logps)]).to(scores.device, scores.dtype)
        logps = []
        for some, numbers in zip(scores.split(ROWS), u[:, None].split(ROWS), strict=True):
            p = some.softmax(-1)
            up_to = p.cumsum(-1)  # which may end a little beside 1
            token = torch.searchsorted(up_to, numbers * up_to[:, -1:], right=True)
            token.clamp_(max=some.shape[-1] - 1)
            logps.append(p.gather(1, token).log().squeeze(1))
            some.fill_(-torch.inf).scatter_(1, token, 0.0)
        self.logps.append(torch.cat(logps))
        return scores


@contextmanager
def _as_it_is(model: Any) -> Iterator[None]:
    """Within the block the model's own settings of generation, as a repetition penalty, are off."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
