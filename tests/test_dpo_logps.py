"""Log-probs: by hand on a bigram table, then against models' own forwards, one answer at a time."""

import math
import shutil
from typing import get_args

import pytest
import torch
from conftest import ARCHITECTURES, WINDOW, randomise, relative_error, small_model
from families import HYBRID, MIXTURES, family_model

from data.trees import TreeBatch, Way, build_trie, collate, question_tries
from dpo import answer_logps, edge_logps
from dpo.logps import over_paths
from lora import add_lora, layers_as_asked
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


@pytest.mark.parametrize("way", get_args(Way))
def test_a_bigram_table_by_hand(way):
    """Prompt (0, 1): (2, 2) scores log(.3 * .6) = log .18, and (0, 1) scores log(.1 * .5)."""
    batch = collate(question_tries((0, 1), [(2, 2), (0, 1)], way), way)
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
    found = answer_logps(model, collate(question_tries(PROMPT, ANSWERS, "rows"), "rows"))
    expected, expected_gradients = scores_and_gradients(model, oracle)
    scores, gradients = scores_and_gradients(model, found)
    assert relative_error(scores, expected) < 1e-5
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, wanted) < 1e-5


@pytest.mark.slow
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
@pytest.mark.parametrize("way", get_args(Way))
def test_padding_and_what_it_holds_change_nothing(way, attention):
    model = small_model("llama", attention)
    batch = collate(question_tries(PROMPT, ANSWERS, way), way)
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
    assert over_paths(edges, batch).item() == -1000
    stuck = torch.tensor(0.0, dtype=torch.bfloat16)
    for _ in range(1000):
        stuck -= 1
    assert stuck.item() == -256


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


@pytest.mark.parametrize("checkpointing", ["off", "on"])
@pytest.mark.parametrize("family, way", [
    *((family, "logits") for family in HYBRID | MIXTURES),
    *((family, "rows") for family in HYBRID if family != "falcon_h1"),  # whose head has a factor
])  # fmt: skip
def test_plain_rows_of_every_family_give_what_its_own_forward_gives_each_text(
    family, way, checkpointing
):
    """Also with all that makes layers fast to train through."""
    model = family_model(family)
    add_lora(model, rank=2, alpha=4, target_modules="auto")
    randomise(model, scale=0.1)
    oracle = torch.stack([plain_logp(model, PROMPT, answer) for answer in ANSWERS])
    expected, expected_gradients = scores_and_gradients(model, oracle)
    rows = collate(question_tries(PROMPT, ANSWERS, way), way)
    with layers_as_asked(model, "off", checkpointing, 1):
        scores, gradients = scores_and_gradients(model, answer_logps(model, rows))
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-4)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, wanted) < 1e-4
