"""Anchors: answers that the reference writes by itself, which hold the policy near it.

DPO holds the policy near its reference on the answers in the data alone. Anchors add the forward
divergence at the prompts that are trained on. By the chain rule it is a sum over places:

    KL(pi_ref || pi) = E_{y ~ pi_ref} sum_t KL(pi_ref(. | x, y_<t) || pi(. | x, y_<t))

A few answers y are drawn once. At each of their places the inner KL is computed from the k tokens
that the reference finds likeliest, and all others as one. So at pi = pi_ref each place has the
gradient zero, not only their average. In training anchors are further answers of their question's
trie, so that they share its prompt. `docs/math.md` derives the term and says what it cannot see.

Shape legend: A answers, E edges, D nodes that predict, H hidden, V vocabulary, M places of all
anchors, k words, B prompts, N samples of each, T tokens at most.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList

from data.batches import PairBatch
from data.encode import Anchor
from data.trees import Tokens
from dpo.evaluation.generate import as_it_is, contiguous_head, keeps_cache, left_padded
from dpo.head import head_of, token_logits, token_logps
from dpo.logps import over_paths, own_scores, predicting

CELLS = 2**24  # float32 scores of all rows that are drawn at once, B x N x V
WORDS = 32  # k: what the reference finds likeliest at each place of an anchor
ROWS = 16  # of which the probabilities are summed up at a time


class Sampling(NamedTuple):
    """How many answers of a prompt are drawn, and how long they may be."""

    samples: int
    tokens: int


def policy_logps(
    model: Any, batch: PairBatch, tile_cells: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return log pi(y|x) of all answers (A,), as `answer_logps`, and the KL at each place (M,).

    One pass over the tries serves both.
    """
    trees, anchors = batch.trees, batch.anchors
    if trees.way == "logits":
        scores = own_scores(model, trees)  # (E, V)
        edges = scores.gather(1, trees.edge_token[:, None]).squeeze(1)
        words = scores[anchors.edges].gather(1, anchors.words)
        return over_paths(edges, trees), divergence(anchors.logps, words)
    hidden, head = predicting(model, trees), head_of(model, tile_cells)
    edges = token_logps(hidden, trees.edge_token, head, trees.edge_node, trees.siblings)
    if not len(anchors.edges):
        return over_paths(edges, trees), edges.new_zeros(0)
    at = hidden[trees.edge_node[anchors.edges]].to(edges.dtype)  # (M, H)
    said = trees.edge_token[anchors.edges][:, None]  # (M, 1)
    normaliser = token_logits(at, said, head).squeeze(1) - edges[anchors.edges]  # (M,) log sum e^z
    words = token_logits(at, anchors.words, head) - normaliser[:, None]  # (M, k)
    return over_paths(edges, trees), divergence(anchors.logps, words)


def divergence(reference: Tensor, policy: Tensor) -> Tensor:
    """Return (M,): KL(p || q), where all but k words are one.

        sum_v p_v log (p_v / q_v) + p_rest log (p_rest / q_rest)        p_rest = 1 - sum_v p_v

    Both arguments are (M, k) log-probs of the same words, nats. Taking words together can only
    lower a KL, and leaves it zero where p = q.
    """
    p, rest = reference.exp(), _rest(reference)
    kept = (p * (reference - policy)).sum(-1)
    return kept + rest * (rest.log() - _rest(policy).log())  # eq. (23) of docs/math.md


def _rest(logps: Tensor) -> Tensor:
    """Return (M,): the probability of all other words; float32 knows none below its epsilon."""
    return (1 - logps.exp().sum(-1)).clamp(min=torch.finfo(logps.dtype).eps)


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
    with contiguous_head(model), as_it_is(model):
        out = model.generate(
            input_ids=rows, attention_mask=seen, max_new_tokens=sampling.tokens, do_sample=False,
            eos_token_id=stop, pad_token_id=stop, logits_processor=LogitsProcessorList([draw]),
            use_cache=shared or keeps_cache(model), **given,
        )  # fmt: skip
    found = []
    words, logps = (torch.stack(x, 1).cpu().numpy() for x in (draw.words, draw.logps))
    for row, likely, scores in zip(out[:, ids.shape[1] :].tolist(), words, logps, strict=True):
        count = row.index(stop) + 1 if stop in row else len(row)
        kept = likely[:count].astype(np.int32), scores[:count]
        found.append(Anchor(tuple(row[:count]), *kept, sampling.tokens))
    return [tuple(found[i : i + n]) for i in range(0, len(found), n)]


def _uniform(prompt: Tokens, sampling: Sampling) -> np.ndarray:
    """Return (N, T) numbers from 0 to 1 that the prompt alone decides."""
    seed = int.from_bytes(hashlib.sha256(str(prompt).encode()).digest()[:8], "big")
    return np.random.default_rng(seed).random(sampling)


class Draw:
    """Draw each row's next token from softmax(z) by a number u that is given: inverse sampling.

    The token is the first one whose cumulated probability is above u. It becomes the likeliest one.
    """

    def __init__(self, uniform: np.ndarray) -> None:  # (B x N, T)
        self.uniform = uniform
        # of each place so far, (B x N, k): the likeliest tokens, and log pi_ref of them
        self.words: list[Tensor] = []
        self.logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B x N, V) of which the drawn token of each row is the largest."""
        u = torch.from_numpy(self.uniform[:, len(self.logps)]).to(scores.device, scores.dtype)
        likeliest = []
        for some, numbers in zip(scores.split(ROWS), u[:, None].split(ROWS), strict=True):
            p = some.softmax(-1)
            up_to = p.cumsum(-1)  # which may end a little beside 1
            token = torch.searchsorted(up_to, numbers * up_to[:, -1:], right=True)
            token.clamp_(max=some.shape[-1] - 1)
            likeliest.append(p.topk(min(WORDS, p.shape[-1])))
            some.scatter_(1, token, torch.inf)
        self.words.append(torch.cat([top.indices for top in likeliest]))
        least = torch.finfo(scores.dtype).tiny  # where a probability is too small to be one
        self.logps.append(torch.cat([top.values for top in likeliest]).clamp(min=least).log())
        return scores
