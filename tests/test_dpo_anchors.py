"""Anchors: what the reference writes by itself, drawn once and kept likely."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import randomise, relative_error, small_model
from hypothesis import given
from hypothesis import strategies as st

import lora
from data import Anchor, EncodedQuestion, Way, step_batches
from dpo import Sampling, answer_logps, dpo_loss, draw_anchors, policy_logps
from dpo import anchors as module
from dpo.anchors import Draw, _uniform, divergence

STOP = 2
PROMPTS = [(1, 5, 6, 7), (1, 9), (1, 8, 8, 8, 8, 3, 4, 4, 4), (1, 30, 31)]


def anchor(*tokens, words=((5, 6),), probabilities=((0.5, 0.25),), longest=4):
    """An anchor with the same likeliest words at every place, if one is given."""
    words, p = (np.array(x * len(tokens) if len(x) == 1 else x) for x in (words, probabilities))
    return Anchor(tokens, words, np.log(p).astype(np.float32), longest)


def anchored(number, rejected, *anchors):
    """A question with answers of two and three tokens, and with anchors."""
    answers = tuple((20 + k, 21, 2) for k in range(rejected))
    return EncodedQuestion((1, number), (10, 2), answers, anchors=anchors)


def test_the_divergence_of_a_place_by_hand():
    """p = (1/2, 1/4, rest 1/4), q = (1/4, 1/4, rest 1/2): 1/2 log 2 + 0 - 1/4 log 2.

    Where p has no rest, q = (1/2, 1/4, rest 1/4) of p = (3/4, 1/4): 3/4 log (3/2).
    """
    p = torch.tensor([[0.5, 0.25], [0.75, 0.25]]).log()
    q = torch.tensor([[0.25, 0.25], [0.5, 0.25]]).log()
    found = divergence(p, q).tolist()
    assert found == pytest.approx([math.log(2) / 4, 0.75 * math.log(1.5)], abs=1e-5)
    assert divergence(p, p).tolist() == pytest.approx([0, 0], abs=1e-6)


@given(st.lists(st.floats(-8, 8), min_size=6, max_size=6), st.integers(1, 5))
def test_words_taken_together_only_lower_the_divergence_and_never_below_zero(numbers, k):
    p, q = (torch.tensor(part).log_softmax(-1) for part in (numbers[:3], numbers[3:]))
    whole = float((p.exp() * (p - q)).sum())
    some = float(divergence(p[None, : min(k, 3)], q[None, : min(k, 3)]))
    assert -1e-5 <= some <= whole + 1e-3 + 1e-3 * whole


@pytest.mark.parametrize("budget", [1, 1000])
@pytest.mark.parametrize("way", get_args(Way))
def test_every_prompt_of_a_step_weighs_the_same_however_many_anchors_it_has(budget, way):
    """Three questions of which two have anchors, 2 and 1, T = 4: 1/4, 1/4, 1/2 of an anchor.

    Each place has a quarter of that: 3 places of 1/16, 1 of 1/16, 2 of 1/8.
    """
    questions = [
        anchored(5, 2, anchor(40, 41, 43), anchor(42, words=((7, 8),))),
        anchored(6, 1),
        anchored(7, 3, anchor(44, 2)),
    ]
    found = {}
    for batch in step_batches(questions, [(0, 0), (0, 1), (1, 0), (2, 1)], budget, way):
        _, words, logps, weights = batch.anchors
        assert logps.exp().tolist() == [[0.5, 0.25]] * len(words)
        said = batch.trees.edge_token[batch.anchors.edges].tolist()
        found |= dict(zip(said, zip(weights.tolist(), words.tolist(), strict=True), strict=True))
        for place, ids in zip(batch.answers, batch.ids, strict=True):
            assert (ids is None) == (place[1] > len(questions[place[0]].rejected))
    five, seven = [5, 6], [7, 8]
    assert found == {40: (1 / 16, five), 41: (1 / 16, five), 43: (1 / 16, five),
                     42: (1 / 16, seven), 44: (1 / 8, five), 2: (1 / 8, five)}  # fmt: skip


def test_anchors_are_in_no_pair_and_count_as_no_answer():
    with_anchors = anchored(5, 2, anchor(40, 41))
    plain = with_anchors._replace(anchors=())
    assert with_anchors.answers == plain.answers and with_anchors.pairs == plain.pairs
    (batch,), (bare,) = (step_batches([q], [(0, 0), (0, 1)], 100) for q in (with_anchors, plain))
    assert batch.as_pairs == bare.as_pairs and batch.fed == bare.fed + 1  # 40; 41 is predicted
    assert torch.equal(batch.chosen, bare.chosen) and torch.equal(batch.weights, bare.weights)
    assert [len(part) for part in bare.anchors] == [0] * 4


@pytest.mark.parametrize("way", get_args(Way))
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_gradient_equals_that_of_a_pass_of_its_own(architecture, way, monkeypatch):
    """Pairs and anchors in one trie; or pairs alone, and each anchor as a plain row.

    The slow way takes the model's own logits, place by place. One anchor opens as an answer does.
    """
    monkeypatch.setattr(module, "WORDS", 2)
    model = small_model(architecture, scale=0.2)
    prompts = [(1, 5), (1, 6)]
    anchors = dict(draw_anchors(model, prompts, STOP, Sampling(2, 4)))
    questions = [
        anchored(5, 2, *anchors[1, 5], anchor(10, 41)), anchored(6, 1, *anchors[1, 6])
    ]  # fmt: skip
    lora.add_lora(model, rank=2, alpha=4)
    randomise(model)
    parameters = lora.adapter_parameters(model)
    pairs, zeros, weight = [(0, 0), (0, 1), (1, 0)], torch.zeros(3), 0.7

    (batch,) = step_batches(questions, pairs, 1000, way)
    logps, held = policy_logps(model, batch)
    torch.testing.assert_close(logps, answer_logps(model, batch.trees))
    loss = dpo_loss(logps[batch.chosen], logps[batch.rejected], zeros, zeros).loss
    (loss @ batch.weights + weight * (held @ batch.anchors.weights)).backward()
    found = torch.cat([p.grad.flatten() for p in parameters])

    def plain(prompt, answer):
        z = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        return z[len(prompt) - 1 : -1]  # before each token of the answer

    def logp(prompt, answer):
        return plain(prompt, answer)[range(len(answer)), list(answer)].sum()

    slow = torch.zeros(())
    for q, k in pairs:
        question = questions[q]
        margin = logp(question.prompt, question.chosen) - logp(
            question.prompt, question.rejected[k]
        )
        slow = slow - torch.nn.functional.logsigmoid(0.1 * margin) / 3
    for question in questions:
        for one in question.anchors:
            q = plain(question.prompt, one.tokens)
            for t in range(len(one.tokens)):
                p, likely = torch.tensor(one.logps[t]).exp(), list(one.words[t])
                kl = (p * (p.log() - q[t, likely])).sum()
                kl = kl + (1 - p.sum()) * (
                    (1 - p.sum()).log() - (1 - q[t, likely].exp().sum()).log()
                )
                slow = slow + weight * kl / 4 / len(question.anchors) / 2
    grads = torch.autograd.grad(slow, parameters)
    assert relative_error(found, torch.cat([g.flatten() for g in grads])) < 1e-4


def all_answers_of(vocabulary, tokens):
    """Every answer that ends with the stop token or is cut off after so many tokens."""
    for length in range(1, tokens + 1):
        for answer in itertools.product(range(vocabulary), repeat=length):
            if STOP not in answer[:-1] and (answer[-1] == STOP or length == tokens):
                yield answer


def expected_term(policy, prompt, tokens, k):
    """(The term's average over all answers of the reference, its gradient.)

    The reference is the policy with its adapters off. Each answer is an anchor, with its k
    likeliest words, and weighs what the reference gives it.
    """
    answers = list(all_answers_of(policy.config.vocab_size, tokens))
    anchors = []
    for answer in answers:
        with torch.no_grad(), lora.adapters_disabled(policy):
            z = policy(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        top = z[len(prompt) - 1 : -1].topk(k)
        anchors.append(Anchor(answer, top.indices.numpy(), top.values.numpy(), tokens))
    question = EncodedQuestion(prompt, answers[0], (answers[1],), anchors=tuple(anchors))
    (batch,) = step_batches([question], [(0, 0)], 10**6)
    with torch.no_grad(), lora.adapters_disabled(policy):
        shares = answer_logps(policy, batch.trees)[2:].exp()
    assert shares.sum().item() == pytest.approx(1, abs=1e-5)  # they are all there are
    _, held = policy_logps(policy, batch)
    shares = [p for p, answer in zip(shares, answers, strict=True) for _ in answer]
    value = held @ torch.stack(shares) / tokens
    grads = torch.autograd.grad(value, lora.adapter_parameters(policy, "B"))
    return value.item(), torch.cat([g.flatten() for g in grads]), held


@pytest.fixture
def tiny():
    model = small_model("llama", scale=0.4, vocab_size=5).double()
    lora.add_lora(model, rank=2, alpha=4)
    return model


def test_on_average_the_term_is_the_kl_and_its_gradient_at_the_reference_is_zero(tiny):
    """A vocabulary of 5, T = 3: 1 + 4 + 4 x 4 x 5 = 85 answers, all of them.

    The KL is worked out another way: as the sum over whole answers of pi_ref log (pi_ref / pi).
    At the reference even each place by itself is zero.
    """
    prompt, tokens = (1, 3), 3
    value, gradient, held = expected_term(tiny, prompt, tokens, k=4)
    assert value == pytest.approx(0, abs=1e-6) and held.abs().max() < 1e-5
    assert gradient.norm() < 1e-5

    randomise(tiny)
    answers = list(all_answers_of(5, tokens))
    question = EncodedQuestion(prompt, answers[0], tuple(answers[1:]))
    (batch,) = step_batches([question], [(0, k) for k in range(len(answers) - 1)], 10**6)
    with torch.no_grad():
        policy = answer_logps(tiny, batch.trees)
        with lora.adapters_disabled(tiny):
            reference = answer_logps(tiny, batch.trees)
    kl = float((reference.exp() * (reference - policy)).sum())
    value, gradient, _ = expected_term(tiny, prompt, tokens, k=4)
    assert value == pytest.approx(kl / tokens, rel=1e-3) and value > 0.01
    assert gradient.norm() > 0.01
    fewer, _, _ = expected_term(tiny, prompt, tokens, k=2)
    assert 0 < fewer < value


def test_inverse_sampling_by_hand():
    """Probabilities .2, .5, .3 add up to .2, .7, 1: the first sum above u names the token."""
    numbers = np.array([[0.0, 0.3], [0.19, 0.3], [0.21, 0.3], [0.69, 0.3], [0.71, 0.3], [0.99, 0]])
    draw = Draw(numbers)
    scores = torch.tensor([[0.2, 0.5, 0.3]]).log().repeat(6, 1)
    left = draw(None, scores.clone())
    assert left.argmax(-1).tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.isposinf(left).sum(-1).tolist() == [1] * 6  # one token is above all others
    assert draw.words[0].tolist() == [[1, 2, 0]] * 6
    assert draw.logps[0].exp()[0].tolist() == pytest.approx([0.5, 0.3, 0.2])
    sure = torch.tensor([[-torch.inf, 5.0, -torch.inf]]).repeat(6, 1)
    assert draw(None, sure).argmax(-1).tolist() == [1] * 6  # nothing impossible is drawn, at u = 0


def one_by_one(model, prompt, numbers, tokens):
    """Draw an answer token by token, without padding and cache."""
    said = []
    for u in numbers[:tokens]:
        with torch.no_grad():
            p = model(torch.tensor([[*prompt, *said]])).logits[0, -1].float().softmax(-1)
        said.append(next(k for k, up_to in enumerate(p.cumsum(-1).tolist()) if up_to > u))
        if said[-1] == STOP:
            break
    return tuple(said)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "qwen3"])
def test_anchors_are_what_each_prompt_alone_would_draw(architecture, shared, monkeypatch):
    """Also where the text is longer than a sliding window, which is 6 tokens here."""
    monkeypatch.setattr(module, "CELLS", 3 * 2 * 97)  # three prompts at once
    model = small_model(architecture, scale=0.2)
    if architecture == "gemma3":  # which else would repeat one token for ever
        model.get_output_embeddings().weight.data.mul_(0.05)
    sampling = Sampling(samples=2, tokens=7)
    found = dict(draw_anchors(model, [*PROMPTS, PROMPTS[0]], STOP, sampling, shared))
    assert sorted(found) == sorted(PROMPTS)
    for prompt, anchors in found.items():
        numbers = _uniform(prompt, sampling)
        assert numbers.shape == (2, 7)
        expected = [one_by_one(model, prompt, row, 7) for row in numbers]
        assert [anchor.tokens for anchor in anchors] == expected
        for one in anchors:
            ids = torch.tensor([[*prompt, *one.tokens]])
            with torch.no_grad():
                z = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            top = z.topk(32)
            assert one.logps == pytest.approx(top.values.numpy(), rel=1e-3, abs=1e-3)
            assert one.words[:, 0].tolist() == top.indices[:, 0].tolist()
    assert len({anchor.tokens for anchors in found.values() for anchor in anchors}) == 8


def test_an_answer_that_ended_has_its_stop_token_and_one_that_was_cut_off_has_none():
    model = small_model("llama", scale=0.2)
    prompts = [(1, 5, n) for n in range(3, 60)]
    anchors = [a for _, drawn in draw_anchors(model, prompts, STOP, Sampling(4, 6)) for a in drawn]
    ended = [a for a in anchors if STOP in a.tokens]
    assert 1 < len(ended) < len(anchors)
    assert all(a.tokens.index(STOP) == len(a.tokens) - 1 <= 5 for a in ended)
    assert all(len(a.tokens) == 6 for a in anchors if STOP not in a.tokens)


def test_a_probability_that_float32_cannot_hold_leaves_the_kl_finite():
    """One word 200 nats above the others: e^-200 is 0 in float32, and its log minus infinity."""
    draw = Draw(np.array([[0.5]]))
    scores = torch.full((1, 40), -200.0)
    scores[0, 7] = 0.0
    draw(torch.tensor([[1]]), scores)
    assert draw.words[0][0, 0] == 7 and draw.logps[0].isfinite().all()
    policy = torch.full((1, 32), -200.0).index_fill_(1, torch.tensor([0]), 0.0).requires_grad_()
    kl = divergence(draw.logps[0], policy)
    kl.sum().backward()
    assert kl.item() == pytest.approx(0, abs=1e-6) and policy.grad.isfinite().all()


def test_the_models_own_settings_of_generation_change_nothing_that_is_drawn():
    model = small_model("llama", scale=0.2)
    expected = list(draw_anchors(model, PROMPTS, STOP, Sampling(1, 5)))
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.suppress_tokens = list(range(3, 60))
    found = list(draw_anchors(model, PROMPTS, STOP, Sampling(1, 5)))
    assert [a.tokens for _, (a,) in found] == [a.tokens for _, (a,) in expected]
    assert model.generation_config.repetition_penalty == 9.0


def test_drawn_answers_have_the_models_probabilities():
    """4,000 first tokens after one prompt against softmax(z): a chi-squared test.

    Of 97 tokens the 8 likeliest and the rest: 8 degrees of freedom, 26.1 at p = .001.
    """
    model = small_model("llama", scale=0.2)
    with torch.no_grad():
        p = model(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1).numpy()
    count = 4000
    ((_, anchors),) = draw_anchors(model, PROMPTS[:1], STOP, Sampling(count, 1))
    seen = np.bincount([anchor.tokens[0] for anchor in anchors], minlength=97)
    top = np.argsort(-p)[:8]
    observed = np.append(seen[top], count - seen[top].sum())
    expected = count * np.append(p[top], 1 - p[top].sum())
    assert ((observed - expected) ** 2 / expected).sum() < 26.1
