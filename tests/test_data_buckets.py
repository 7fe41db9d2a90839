"""Buckets: few shapes that batches are padded to, and losses and gradients stay what they were."""

from typing import get_args

import numpy as np
import pytest
import torch
from conftest import randomise, relative_error, small_model
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_map_only

import data
import dpo
import lora
import train
from data.batches import step_batches
from data.buckets import Bucket, added, bucket_for, choose_buckets, nothing, padded, sizes
from data.encode import Anchor, EncodedQuestion
from run.config import Config
from run.graphs import Given


def question(seed, rejected, anchored=True):
    """A question with answers that share openings, one of them twice as long, and an anchor."""
    draw = np.random.default_rng(seed)

    def text(n):
        return tuple(map(int, draw.integers(5, 90, n)))

    opening = text(3)
    answers = [opening[: k % 4] + text(4 + k) + (2,) for k in range(1 + rejected)]
    words = np.array([draw.permutation(90)[:4] for _ in range(3)], np.int32)
    logps = np.log(draw.dirichlet(np.ones(5), 3)[:, :4]).astype(np.float32)
    anchors = (Anchor(text(3), words, logps, 4),) if anchored else ()
    return EncodedQuestion(text(6 + seed), answers[0], tuple(answers[1:]))._replace(anchors=anchors)


def batch_of(*rejected, anchored=True):
    """A batch of questions with so many rejected answers each."""
    asked = [question(seed, count, anchored) for seed, count in enumerate(rejected)]
    pairs = [(q, k) for q, count in enumerate(rejected) for k in range(count)]
    return next(step_batches(asked, pairs, 4096))


def roomier(batch, rows=1, columns=32):
    """A bucket that is larger in every respect."""
    own = sizes(batch)
    others = {n: v + 5 for n, v in own._asdict().items() if n not in ("rows", "columns", "words")}
    return own._replace(rows=own.rows + rows, columns=own.columns + columns, **others)


def in_dtype(batch, dtype):
    """The batch with its numbers in a dtype."""
    return tree_map_only(torch.Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, batch)


def adapted(architecture, dtype, **changes):
    model = small_model(architecture, **changes)
    lora.add_lora(model, rank=2, alpha=4, target_modules="all-linear")
    randomise(model)
    lora.train_adapters(model.to(dtype))
    return model


def gradients(model, batch, config):
    """The log of the step, and the gradients of all A and B."""
    scores = -9 + 0.1 * torch.arange(batch.trees.answers, dtype=model.dtype)
    log = train.backward(model, in_dtype(batch, model.dtype), Given(scores), config)
    found = [p.grad.clone() for p in lora.adapter_parameters(model)]
    model.zero_grad()
    return log, found


MODELS = {
    (a, d): adapted(a, d)
    for a in ("llama", "gemma2", "gemma3")
    for d in (torch.float32, torch.float64)
}


@pytest.mark.parametrize("loss", get_args(dpo.Loss))
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3"])
def test_padding_changes_no_gradient(architecture, loss):
    """Bit for bit in float64, unless rows are longer: then attention sums more zeros."""
    smoothing = 0.1 if loss == "exo" else 0.0
    config = Config(loss=loss, label_smoothing=smoothing, sft_weight=0.2, shuffle="questions")
    batch = batch_of(3, 1, 2)
    for dtype, columns, within in (
        (torch.float64, 0, 0.0), (torch.float64, 32, 1e-15), (torch.float32, 32, 5e-7),
    ):  # fmt: skip
        model, whole = MODELS[architecture, dtype], padded(batch, roomier(batch, 1, columns))
        (log, own), (other, theirs) = (gradients(model, b, config) for b in (batch, whole))
        for one, two in zip(log.pairs, other.pairs, strict=True):
            assert relative_error(two[: len(batch.chosen)].double(), one.double()) <= 2e-7
        for one, two in zip(own, theirs, strict=True):
            assert relative_error(two, one) <= within, dtype


@pytest.mark.parametrize("anchored", [True, False])
def test_a_padded_batch_has_the_sizes_of_its_bucket(anchored):
    batch = batch_of(2, 1, anchored=anchored)
    bucket = roomier(batch)
    whole = padded(batch, bucket)
    assert sizes(whole) == Bucket(*bucket[:2], *(
        size + (name in ("nodes", "edges", "answers"))
        for name, size in list(bucket._asdict().items())[2:]
    ))  # fmt: skip
    assert whole.weights.sum() == batch.weights.sum() and whole.fed == batch.fed
    assert len(whole.ids) == bucket.answers and whole.trees.tokens.shape == bucket[:2]
    empty = padded(nothing(bucket.words), bucket)
    assert sizes(empty) == sizes(whole) and not empty.weights.any()


def test_a_padded_token_sees_itself_alone_and_no_other_sees_it():
    batch = batch_of(2)
    trees = padded(batch, roomier(batch)).trees
    mask = data.ancestor_mask(trees.positions, trees.ends)
    rows, columns = batch.trees.tokens.shape
    own = data.ancestor_mask(batch.trees.positions, batch.trees.ends)
    assert torch.equal(mask[:rows, :columns, :columns], own)
    mask[:rows, :columns, :columns] = torch.eye(columns, dtype=torch.bool)
    assert torch.equal(mask, torch.eye(mask.shape[1], dtype=torch.bool).expand_as(mask))


def shape(rows, columns):
    return Bucket(rows, columns, *[columns] * 7, 4)


def test_buckets_are_joined_as_long_as_padding_costs_15_percent():
    """9 of 112 tokens and 1 of 96: together they feed 16 more of 1,104, which is 1.4%.

    2 of 240 with the ten would feed 10 times 128 more, which is more than the 1,584 allow.
    """
    found = [shape(1, 112)] * 9 + [shape(1, 96)] + [shape(1, 240)] * 2
    assert [b[:2] for b in choose_buckets(found)] == [(1, 240), (1, 112)]
    assert [b[:2] for b in choose_buckets(found, padding=0.0)] == [(1, 240), (1, 112), (1, 96)]
    assert [b[:2] for b in choose_buckets(found, padding=1.0)] == [(1, 240)]
    assert added({shape(1, 112): 9, shape(1, 96): 1}, shape(1, 112), shape(1, 96)) == 16


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 80)), min_size=1, max_size=200))
def test_every_batch_has_a_bucket_and_few_tokens_are_added(found):
    shapes = [shape(rows, 16 * columns) for rows, columns in found]
    buckets = choose_buckets(shapes)
    fed = 0
    for own in shapes:
        fits = [bucket for bucket in buckets if bucket.holds(own)]
        assert fits
        fed += min(bucket.tokens for bucket in fits)
    if len(set(shapes)) <= 48:
        assert fed <= 1.15 * sum(own.tokens for own in shapes)


def test_a_batch_takes_the_smallest_bucket_that_holds_it_and_a_larger_one_takes_none():
    batch = batch_of(2, 1)
    small, large = roomier(batch, 0, 0), roomier(batch, 1, 16)
    assert bucket_for(batch, [large, small]) == small
    assert bucket_for(batch, [large, small._replace(edges=3)]) == large
    assert bucket_for(batch, [small._replace(columns=16)]) is None
