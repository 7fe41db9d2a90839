"""Log-probs: by hand on a bigram table, then against models' own forwards, one answer at a time."""

import itertools
import math
import shutil

import pytest
import torch
from conftest import ARCHITECTURES, WINDOW, randomise, relative_error, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from data.trees import TreeBatch, build_trie, collate, question_tries
from dpo import answer_logps, edge_logps
from dpo.logps import TILE_CELLS, Head, _words_that_count, token_logps
from lora import add_lora
from lora.adapter import adapter_parameters

# Prompt and answers of a question that branch early, late and not at all; longer than the window.
PROMPT = tuple(range(3, 14))
ANSWERS = [
    (20, 21, 22, 23, 24, 25, 26, 27, 28, 2),
    (20, 21, 22, 23, 24, 25, 26, 40, 2),
    (20, 41, 42, 2),
    (50, 51, 52, 53, 54, 55, 56, 57, 2),
    (50, 51, 52, 2),
]
OTHER = ((3, 4, 60), [(61, 62, 2), (61, 2), (63, 64, 65, 66, 67, 68, 69, 2)])
assert len(PROMPT) + len(ANSWERS[0]) > 2 * WINDOW


class Bigram(torch.nn.Module):
    """log p(next | last) = log P[last, next]: a model whose every score is known."""

    def __init__(self, table):
        super().__init__()
        self.embedding = torch.nn.Embedding.from_pretrained(torch.eye(len(table)))
        self.head = torch.nn.Linear(len(table), len(table), bias=False)
        self.head.weight = torch.nn.Parameter(torch.tensor(table).log().T, requires_grad=False)
        self.dtype = torch.float32
        self.config = type("Config", (), {"get_text_config": lambda self: self})()

    def get_output_embeddings(self):
        return self.head

    def base_model(self, input_ids, **_):
        return type("Out", (), {"last_hidden_state": self.embedding(input_ids)})

    def forward(self, input_ids, **_):
        return type("Out", (), {"logits": self.head(self.embedding(input_ids))})


TABLE = [[0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]]  # P[1, 2] = .3, P[2, 2] = .6


@pytest.mark.parametrize("shared", [True, False])
def test_a_bigram_table_by_hand(shared):
    """Prompt (0, 1): (2, 2) scores log(.3 * .6) = log .18, and (0, 1) scores log(.1 * .5)."""
    batch = collate(question_tries((0, 1), [(2, 2), (0, 1)], shared), shared)
    expected = torch.tensor([0.18, 0.05]).log()
    torch.testing.assert_close(answer_logps(Bigram(TABLE), batch), expected)


def test_an_answers_score_is_the_sum_over_its_tokens_not_the_mean():
    batch = collate(question_tries((0, 1), [(2, 2, 2), (2,)]))
    first, second = answer_logps(Bigram(TABLE), batch).tolist()
    assert first == pytest.approx(math.log(0.3 * 0.6 * 0.6))
    assert second == pytest.approx(math.log(0.3))
    assert first / 3 == pytest.approx(math.log(0.108) / 3)  # what a mean would give


def plain_logp(model, prompt, answer):
    """The oracle: one text, the model's own forward, its own logits."""
    text = torch.tensor([prompt + answer])
    scores = model(text, use_cache=False).logits[0].float().log_softmax(-1)
    steps = range(len(prompt), text.shape[1])
    return sum(scores[i - 1, text[0, i]] for i in steps)


def adapted(architecture, attention="eager"):
    model = small_model(architecture, attention)
    add_lora(model, rank=3, alpha=6, target_modules=["q_proj", "v_proj", "o_proj", "up_proj"])
    randomise(model, scale=0.1)
    return model


def scores_and_gradients(model, logps):
    """Scores (A,) and the gradient of a weighted sum of them in every A and B."""
    weights = torch.linspace(-1, 1, len(logps), device=logps.device)
    gradients = torch.autograd.grad((logps * weights).sum(), adapter_parameters(model))
    return logps.detach(), gradients


CASES = [(a, "eager") for a in ARCHITECTURES] + [
    (a, "sdpa")
    for a in ARCHITECTURES
    if a != "gemma2"  # soft-capping needs eager
]


@pytest.mark.parametrize("architecture, attention", CASES)
def test_tries_give_the_scores_and_gradients_of_separate_texts(architecture, attention):
    model = adapted(architecture, attention)
    questions = [(PROMPT, ANSWERS), OTHER]
    oracle = torch.stack([plain_logp(model, p, a) for p, answers in questions for a in answers])
    tries = [t for p, answers in questions for t in question_tries(p, answers)]
    found = answer_logps(model, collate(tries))

    expected, expected_gradients = scores_and_gradients(model, oracle)
    scores, gradients = scores_and_gradients(model, found)
    assert relative_error(scores, expected) < 1e-5
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert wanted.norm() > 1e-3  # a comparison of zeros would prove nothing
        assert relative_error(gradient, wanted) < 1e-5


@pytest.mark.parametrize("architecture", ["gemma2", "llama"])
def test_plain_rows_give_the_scores_and_gradients_of_separate_texts(architecture):
    model = adapted(architecture)
    oracle = torch.stack([plain_logp(model, PROMPT, a) for a in ANSWERS])
    found = answer_logps(model, collate(question_tries(PROMPT, ANSWERS, False), False))
    expected, expected_gradients = scores_and_gradients(model, oracle)
    scores, gradients = scores_and_gradients(model, found)
    assert relative_error(scores, expected) < 1e-5
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, wanted) < 1e-5


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("architecture", ["gemma2", "llama", "mistral"])
def test_flex_attention_sees_what_eager_attention_sees(architecture):
    """Soft-capping and windows included; backward too on a GPU, tests/test_gpu.py."""
    models = [adapted(architecture, attention) for attention in ("eager", "flex_attention")]
    tries = [t for p, answers in [(PROMPT, ANSWERS), OTHER] for t in question_tries(p, answers)]
    batch = collate(tries)
    with torch.no_grad():
        expected, found = (answer_logps(model, batch) for model in models)
    assert relative_error(found, expected) < 1e-5


def padded(batch: TreeBatch, columns, token=0) -> TreeBatch:
    """Append padding columns that hold `token`."""
    rows, length = batch.tokens.shape
    wide = torch.arange(1, length + columns + 1).repeat(rows, 1)
    wide[:, :length] = batch.ends
    old_row, old_column = batch.nodes // length, batch.nodes % length
    return batch._replace(
        tokens=torch.nn.functional.pad(batch.tokens, (0, columns), value=token),
        positions=torch.nn.functional.pad(batch.positions, (0, columns)),
        ends=wide,
        nodes=old_row * (length + columns) + old_column,
    )


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("shared", [True, False])
def test_padding_and_what_it_holds_change_nothing(shared, attention):
    model = small_model("llama", attention)
    batch = collate(question_tries(PROMPT, ANSWERS, shared), shared)
    expected = answer_logps(model, batch)
    for token in (0, 5):
        torch.testing.assert_close(answer_logps(model, padded(batch, 7, token)), expected)


@torch.no_grad()
def test_scores_equal_the_models_own_logits_soft_capping_included():
    model = small_model("gemma2")
    assert model.config.final_logit_softcapping == 3.0
    batch = collate(question_tries(PROMPT, ANSWERS[:1]))
    own = model(torch.tensor([PROMPT + ANSWERS[0]])).logits.log_softmax(-1)[0]
    expected = [own[len(PROMPT) - 1 + i, t] for i, t in enumerate(ANSWERS[0])]
    torch.testing.assert_close(edge_logps(model, batch), torch.stack(expected))
    uncapped = small_model("gemma2", final_logit_softcapping=None)
    assert (edge_logps(uncapped, batch) - torch.stack(expected)).abs().max() > 0.1


@torch.no_grad()
def test_bfloat16_scores_stay_near_float32_and_sums_are_float32():
    model = small_model("gemma3")
    batch = collate(question_tries(PROMPT, ANSWERS))
    exact = answer_logps(model, batch)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    rounded = answer_logps(model, batch)
    assert rounded.dtype == torch.float32
    lengths = torch.tensor([len(a) for a in ANSWERS])
    assert ((rounded - exact).abs() / lengths).max() < 0.25  # nats a token, on a wild random model


def test_a_long_sum_of_bfloat16_scores_does_not_stop_growing():
    """1,000 tokens of log-prob -1 each: a bfloat16 sum would stick at -256."""
    edges = torch.full((1000,), -1.0, dtype=torch.float32)
    batch = collate(question_tries((1,), [tuple(range(1000))]))
    total = torch.zeros(1).index_add(0, batch.path_answers, edges[batch.path_edges])
    assert total.item() == -1000
    stuck = torch.tensor(0.0, dtype=torch.bfloat16)
    for _ in range(1000):
        stuck -= 1
    assert stuck.item() == -256


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
    monkeypatch.setattr("dpo.logps.SMALLEST_TILE", 2 if cells == 1 else 512)
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
    monkeypatch.setattr("dpo.logps.SMALLEST_TILE", 2 if cells == 1 else 512)
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
    monkeypatch.setattr("dpo.logps.LIGHT", 4096 * 2.0**-10)
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
    monkeypatch.setattr("dpo.logps.LIGHT", 1536 * 2.0**-10)  # e^-12.5 is .00095 of 2^-8
    weight = torch.tensor([peak - 12.5 for peak in (0.0, 10.0, 20.0) for _ in range(512)])
    weight[[100, 600, 1100]] = torch.tensor([0.0, 10.0, 20.0])
    kept = []

    def counted(*args):
        found = _words_that_count(*args)
        kept.append(len(found[1]))
        return found

    monkeypatch.setattr("dpo.logps._words_that_count", counted)
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
        monkeypatch.setattr("dpo.logps._words_that_count", choose)
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


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["gemma2", "llama"])
def test_scores_equal_the_models_own_logits_with_tied_and_untied_embeddings(architecture, tied):
    model = small_model(architecture, tie_word_embeddings=tied)
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert same == tied
    batch = collate([build_trie((1, 5), [(7, 8, 2), (9, 2)])])
    found = answer_logps(model, batch).detach()
    for score, answer in zip(found, [(7, 8, 2), (9, 2)], strict=True):
        own = model(torch.tensor([(1, 5, *answer)])).logits[0].log_softmax(-1).detach()
        assert float(score) == pytest.approx(
            float(sum(own[1 + i, token] for i, token in enumerate(answer))), rel=1e-5
        )


def test_edges_are_tokens_and_answers_are_their_sums():
    model = small_model()
    batch = collate([build_trie((1, 5), [(7, 8, 2), (7, 2)])])
    with torch.no_grad():
        edges, answers = edge_logps(model, batch), answer_logps(model, batch)
    first = batch.path_edges[batch.path_answers == 0]
    assert float(edges[first].sum()) == pytest.approx(float(answers[0]), rel=1e-6)
    assert len(edges) == 4  # 7 is scored once for both answers
