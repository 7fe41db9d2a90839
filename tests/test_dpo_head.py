"""The fused head against autograd through all logits, and against numbers worked out by hand."""

import itertools
import math

import pytest
import torch
from conftest import relative_error, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dpo.head import (
    TILE_CELLS,
    Head,
    _words_that_count,
    cells_of,
    head_of,
    token_logps,
    words_in_a_tile,
)


def head(vocabulary=40, width=7, dtype=torch.float64, **more):
    torch.manual_seed(0)
    return Head(torch.randn(vocabulary, width, dtype=dtype), more.pop("bias", None), **more)


def naive(hidden, targets, head):
    """The oracle: all logits, autograd."""
    z = hidden @ head.weight.T
    if head.bias is not None:
        z = z + head.bias
    z = z * head.scale
    if head.softcap:
        z = head.softcap * torch.tanh(z / head.softcap)
    return z.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


HEADS = {
    "plain": {},
    "soft-capped": {"softcap": 3.0},
    "scaled": {"scale": 0.25},
    "biased": {"bias": torch.linspace(-2, 2, 40)},
    "all": {"softcap": 2.0, "scale": 0.5, "bias": torch.linspace(-2, 2, 40)},
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("cells", [1, 2**20])
def test_the_fused_head_equals_autograd_through_all_logits(kind, cells, monkeypatch):
    monkeypatch.setitem(TILE_CELLS, "cpu", cells)
    monkeypatch.setattr("dpo.head.SMALLEST_TILE", 2 if cells == 1 else 512)
    h = head(dtype=torch.float32, **HEADS[kind])
    hidden = torch.randn(9, 7, requires_grad=True)
    targets = torch.randint(0, 40, (9,))
    weights = torch.linspace(-1, 1, 9)
    found, expected = token_logps(hidden, targets, h), naive(hidden, targets, h)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad((found * weights).sum(), hidden)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), hidden)
    assert relative_error(gradient, wanted) < 1e-5


def siblings_of(node):
    """The ordered pairs of targets that one row predicts."""
    pairs = itertools.permutations(range(len(node)), 2)
    return torch.tensor([pair for pair in pairs if node[pair[0]] == node[pair[1]]]).T


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("cells", [1, 2**20])
def test_targets_of_one_row_are_scored_as_if_each_had_a_row_of_its_own(kind, cells, monkeypatch):
    monkeypatch.setitem(TILE_CELLS, "cpu", cells)
    monkeypatch.setattr("dpo.head.SMALLEST_TILE", 2 if cells == 1 else 512)
    h = head(dtype=torch.float32, **HEADS[kind])
    hidden = torch.randn(4, 7, requires_grad=True)
    node = torch.tensor([2, 0, 0, 3, 2, 0, 1, 0])
    targets = torch.tensor([5, 38, 0, 7, 39, 39, 6, 1])  # 38 and 39, 0 and 1 meet in a tile of 2
    weights = torch.linspace(-1, 1, 8)
    found = token_logps(hidden, targets, h, node, siblings_of(node))
    expected = naive(hidden[node], targets, h)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad((found * weights).sum(), hidden)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), hidden)
    assert relative_error(gradient, wanted) < 1e-5


def test_a_row_may_predict_every_word():
    hidden = torch.randn(1, 7, dtype=torch.float64, requires_grad=True)
    node, targets, h = torch.zeros(3, dtype=torch.long), torch.tensor([2, 0, 1]), head(3)
    found = token_logps(hidden, targets, h, node, siblings_of(node))
    torch.testing.assert_close(found, naive(hidden[node], targets, h))
    weights = torch.tensor([1.0, -2.0, 3.0]).double()
    (gradient,) = torch.autograd.grad((found * weights).sum(), hidden, retain_graph=True)
    (wanted,) = torch.autograd.grad((naive(hidden[node], targets, h) * weights).sum(), hidden)
    assert relative_error(gradient, wanted) < 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(1, 6), st.integers(0, 10_000))
def test_the_fused_head_by_finite_differences(vocabulary, rows, seed):
    torch.manual_seed(seed)
    h = Head(torch.randn(vocabulary, 4), None, softcap=5.0)
    hidden = torch.randn(rows, 4)
    targets = torch.randint(0, vocabulary, (rows,))
    probe = hidden.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(token_logps(probe, targets, h).sum(), probe)
    direction, step = torch.randn(rows, 4).double(), 1e-4
    wide = h._replace(weight=h.weight.double())
    ahead, behind = (
        naive(hidden.double() + sign * step * direction, targets, wide).sum() for sign in (1, -1)
    )
    slope = float((ahead - behind) / (2 * step))
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("confidence", [0.994, 0.9999, 1 - 1e-7])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_gradient_is_right_for_confident_tokens(confidence, dtype, tolerance):
    """Two words, W = [[1], [-1]], h such that p(first) is the confidence.

    d log p / dh = (1 - p) (W_0 - W_1) = 2 (1 - p). Formed as W_y - sum_v p_v W_v from a p rounded
    to bfloat16, it would be off by up to 2^-9 / (1 - p): a third at .994, everything near 1.
    """
    logit = math.log(confidence / (1 - confidence)) / 2
    hidden = torch.tensor([[logit]], dtype=dtype, requires_grad=True)
    p_rest = 1 / (1 + math.exp(2 * hidden.item()))  # at the rounded h
    h = Head(torch.tensor([[1.0], [-1.0]], dtype=dtype), None)
    logp = token_logps(hidden, torch.tensor([0]), h)
    logp.sum().backward()
    assert logp.item() == pytest.approx(math.log1p(-p_rest), rel=tolerance)
    assert hidden.grad.item() == pytest.approx(2 * p_rest, rel=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_confident_token_and_its_siblings_do_not_cancel(dtype, tolerance):
    """W = [[1], [-1], [-1]], h = 8, targets 0 and 1 of one row: 1 - p_0 = 2 / (e^16 + 2).

    d log p_0/dh = (1 - p_0) (1 + 1). Taking word 1 out of a finished sum that holds e^8 would leave
    nothing of e^-8 in float32.
    """
    hidden = torch.tensor([[8.0]], dtype=dtype, requires_grad=True)
    h = Head(torch.tensor([[1.0], [-1.0], [-1.0]], dtype=dtype), None)
    node = torch.tensor([0, 0])
    sure, unlikely = token_logps(hidden, torch.tensor([0, 1]), h, node, siblings_of(node))
    sure.backward()
    p_rest = 2 / (math.exp(16) + 2)
    assert sure.item() == pytest.approx(math.log1p(-p_rest), rel=tolerance)
    assert unlikely.item() == pytest.approx(-math.log(math.exp(16) + 2), rel=tolerance)
    assert hidden.grad.item() == pytest.approx(2 * p_rest, rel=tolerance)


def test_words_are_left_out_as_long_as_their_sum_stays_within_the_slack():
    """Two rows of 256 words, one of 1 and 255 of 2^-20 in each: 2 words count, 254 do not.

    They come with words of zeros, which make a sixteenth in all. Light is 2^-10 of the slack.
    """
    part = torch.arange(256.0)[:, None]
    z = torch.full((256, 2), 2.0**-20)
    z[3, 0] = z[7, 1] = 1
    total, others = z.sum(0), 254 * 2.0**-20

    def words(slack, before=(0.0, 0.0), z=z):
        left_out = torch.tensor(before)
        few, rows = _words_that_count(z, z.sum(0), part, slack * total, left_out, 2.0**-10)
        counted = few.any(1)
        kept = rows[counted].flatten()
        torch.testing.assert_close(few[counted], z[kept.long()])
        assert len(rows) in (16, 256)
        return kept.tolist(), left_out.tolist()

    everything = [float(v) for v in range(256)]
    assert words(2.0**-8) == ([3, 7], [others, others])
    assert words(2.0**-8, (2.0**-10, 0.0)) == ([3, 7], [2.0**-10 + others, others])
    assert words(2.0**-8, (0.0, 2.0**-8)) == (everything, [0.0, 2.0**-8])  # earlier tiles had it
    assert words(2.0**-10) == ([3, 7], [others, others])  # 2^-20 is not above 2^-10 of it
    assert words(2.0**-11) == (everything, [0.0, 0.0])
    assert words(2.0**-8, z=torch.ones(256, 2)) == (everything, [0.0, 0.0])


def test_many_words_that_count_together_are_not_left_out(monkeypatch):
    """W = 5 for the target, 0 once, w = -12.625 n = 4,094 times; h = 1. Each e^w is below 2^-18.

    That is light here, 2^-10 of the slack. Together they are n e^w = .0135, more than 2^-8. With
    them the rest's mean weight is w n e^w / (1 + n e^w) = -.168, and d log p_y/dh =
    (1 - p_y) (5 + .168).
    """
    monkeypatch.setattr("dpo.head.LIGHT", 4096 * 2.0**-10)
    n, w = 4094, -12.625
    weight = torch.tensor([5.0, 0.0] + [w] * n).bfloat16()[:, None]
    hidden = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    token_logps(hidden, torch.tensor([0]), Head(weight, None)).sum().backward()
    rest = 1 + n * math.exp(w)
    mean = w * n * math.exp(w) / rest
    assert hidden.grad.item() == pytest.approx(rest / (rest + math.exp(5)) * (5 - mean), rel=5e-3)


def test_what_was_left_out_shrinks_with_the_total_as_the_maximum_grows(monkeypatch):
    """Tiles of 512 whose maxima are 0, 10, 20; 511 e^-12.5 is .0019, half of 2^-8, in each."""
    monkeypatch.setitem(TILE_CELLS, "cpu", 1)
    monkeypatch.setattr("dpo.head.LIGHT", 1536 * 2.0**-10)  # e^-12.5 is .00095 of 2^-8
    weight = torch.tensor([peak - 12.5 for peak in (0.0, 10.0, 20.0) for _ in range(512)])
    weight[[100, 600, 1100]] = torch.tensor([0.0, 10.0, 20.0])
    kept = []

    def counted(*args):
        found = _words_that_count(*args)
        kept.append(len(found[1]))
        return found

    monkeypatch.setattr("dpo.head._words_that_count", counted)
    hidden = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    token_logps(hidden, torch.tensor([3]), Head(weight.bfloat16()[:, None], None))
    assert kept == [32, 32, 32]


@pytest.mark.parametrize("cells", [2**14, 2**20])
@pytest.mark.parametrize("softcap", [None, 50.0])
def test_the_gradient_lacks_no_more_than_half_an_epsilon_of_the_largest_weight(
    cells, softcap, monkeypatch
):
    """Leaving out a share s of q moves the mean weight by s |W| and the rest's by as much."""
    monkeypatch.setitem(TILE_CELLS, "cpu", cells)
    torch.manual_seed(0)
    h = Head(torch.randn(8192, 16).bfloat16(), None, softcap=softcap)
    hidden = (2 * torch.randn(12, 16)).bfloat16()
    targets = torch.randint(0, 8192, (12,))
    kept = []

    def gradient(choose):
        monkeypatch.setattr("dpo.head._words_that_count", choose)
        probe = hidden.clone().requires_grad_()
        token_logps(probe, targets, h).sum().backward()
        return probe.grad.float()

    def counted(*args):
        found = _words_that_count(*args)
        kept.append(len(found[1]))
        return found

    few, every = gradient(counted), gradient(lambda z, _, part, *__: (z, part))
    assert 0 < sum(kept) < 8192 / 2
    rounding = 2.0**-8 * every.abs()
    assert ((few - every).abs() <= 2.0**-8 * h.weight.abs().max().float() + rounding).all()
    wide = h._replace(weight=h.weight.double())
    exact = hidden.double().requires_grad_()
    naive(exact, targets, wide).sum().backward()
    errors = [relative_error(found, exact.grad) for found in (few, every)]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


def test_an_impossible_token_has_a_finite_score_and_gradient():
    hidden = torch.tensor([[1e4]], requires_grad=True)
    logp = token_logps(hidden, torch.tensor([1]), Head(torch.tensor([[1.0], [-1.0]]), None))
    logp.sum().backward()
    assert logp.item() == -2e4 and hidden.grad.item() == -2


@pytest.mark.parametrize("kind", HEADS)
def test_the_fused_head_in_float64_by_finite_differences(kind):
    h = head(
        **{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in HEADS[kind].items()}
    )
    hidden = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 40, (5,))
    assert torch.autograd.gradcheck(lambda x: token_logps(x, targets, h), hidden)


class Largest(TorchDispatchMode):
    """Remember the most numbers that any tensor made on the way holds."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor._base is None:
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_neither_what_is_held_nor_what_is_kept_grows_with_the_vocabulary(monkeypatch):
    monkeypatch.setitem(TILE_CELLS, "cpu", 2**14)
    held, kept = [], []
    for vocabulary in (4_000, 40_000):
        h = head(vocabulary, 8, torch.float32, softcap=30.0)
        hidden = torch.randn(16, 8, requires_grad=True)
        saved = []
        with (
            torch.autograd.graph.saved_tensors_hooks(
                lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t
            ),
            Largest() as largest,
        ):
            token_logps(hidden, torch.arange(16), h).sum().backward()
        held.append(largest.numbers)
        kept.append(sum(saved))
    assert held == [2**14, 2**14]  # 16 rows of a tile of 1,024 words
    assert kept[0] == kept[1] < 3 * 16 * 8  # the gradient, the targets' rows of W, a few numbers


def test_a_tile_has_a_power_of_2_of_words_for_about_as_many_scores_as_suit_the_device():
    assert words_in_a_tile(16, 2**14) == 1024  # 16 x 1,024 scores
    assert words_in_a_tile(17, 2**14) == 512  # 17 x 963 would fit
    assert words_in_a_tile(1000, 2**14) == 512  # the smallest
    assert words_in_a_tile(1, 2**14) == 2**14
    assert cells_of("cpu") == TILE_CELLS["cpu"] < cells_of("cuda") == cells_of("mps")


@pytest.mark.parametrize("asked", [None, 2**10])
def test_the_scores_held_at_a_time_are_those_asked_for_or_what_suits_the_device(asked, monkeypatch):
    monkeypatch.setitem(TILE_CELLS, "cpu", 2**13)
    monkeypatch.setattr("dpo.head.SMALLEST_TILE", 1)
    h = head(4_000, 8, torch.float32)._replace(tile_cells=asked)
    with torch.no_grad(), Largest() as largest:
        token_logps(torch.randn(16, 8), torch.arange(16), h)
    assert largest.numbers == (asked or 2**13)


def test_a_models_head_is_read_with_its_scales_and_its_soft_cap():
    model = small_model("gemma2")
    found = head_of(model, 7)
    assert found.weight is model.get_output_embeddings().weight
    assert (found.bias, found.scale, found.softcap, found.tile_cells) == (None, 1.0, 3.0, 7)
    model.config.logit_scale, model.config.logits_scaling = 0.5, 4.0
    assert head_of(model).scale == 0.125 and head_of(model).tile_cells is None
