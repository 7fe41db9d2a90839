"""Anchors: what the reference writes by itself, drawn once and kept likely."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import randomise, relative_error, small_model

import lora
from data import Anchor, EncodedQuestion, step_batches
from dpo import Sampling, anchor_gaps, answer_key, answer_logps, dpo_loss, draw_anchors
from dpo import anchors as module
from dpo.anchors import Draw, _uniform
from dpo.scoring import Scorer

STOP = 2
PROMPTS = [(1, 5, 6, 7), (1, 9), (1, 8, 8, 8, 8, 3, 4, 4, 4), (1, 30, 31)]


def anchored(number, rejected, anchors):
    """A question with answers of two and three tokens, and with anchors."""
    answers = tuple((20 + k, 21, 2) for k in range(rejected))
    return EncodedQuestion((1, number), (10, 2), answers, anchors=anchors)


def test_a_gap_by_hand():
    """log pi_ref = -3 and -5, log pi = -4 and -4.5, T = 4: 1 / 4 and -.5 / 4."""
    question = anchored(5, 1, (Anchor((40, 41), -3.0), Anchor((42,), -5.0)))
    (batch,) = step_batches([question], [(0, 0)], 100)
    assert batch.anchors.tolist() == [2, 3] and batch.anchor_weights.tolist() == [0.5, 0.5]
    logps = torch.tensor([-9.0, -9.0, -4.0, -4.5])
    assert anchor_gaps(logps, batch, 4).tolist() == [0.25, -0.125]


@pytest.mark.parametrize("budget", [1, 1000])
@pytest.mark.parametrize("shared", [True, False])
def test_every_prompt_of_a_step_weighs_the_same_however_many_anchors_it_has(budget, shared):
    """Three questions of which two have anchors, 2 and 1: 1/4, 1/4 and 1/2."""
    two = (Anchor((40, 41, 43), -3.0), Anchor((42,), -5.0))
    questions = [anchored(5, 2, two), anchored(6, 1, ()), anchored(7, 3, (Anchor((44, 2), -1.0),))]
    pairs = [(0, 0), (0, 1), (1, 0), (2, 1)]
    found = {}
    for batch in step_batches(questions, pairs, budget, shared):
        for k, logp, weight in zip(batch.anchors.tolist(), batch.anchor_logps.tolist(),
                                   batch.anchor_weights.tolist(), strict=True):  # fmt: skip
            assert batch.ids[k] is None  # none of the reference's scores is looked up
            found[batch.answers[k]] = (logp, weight, int(batch.lengths[k]))
    assert found == {  # numbered behind all answers of the question: 3 and 4, and 4
        (0, 3): (-3.0, 0.25, 3), (0, 4): (-5.0, 0.25, 1), (2, 4): (-1.0, 0.5, 2),
    }  # fmt: skip


def test_anchors_are_in_no_pair_and_count_as_no_answer():
    with_anchors = anchored(5, 2, (Anchor((40, 41), -3.0),))
    plain = with_anchors._replace(anchors=())
    assert with_anchors.answers == plain.answers and with_anchors.pairs == plain.pairs
    (batch,), (bare,) = (step_batches([q], [(0, 0), (0, 1)], 100) for q in (with_anchors, plain))
    assert batch.as_pairs == bare.as_pairs and batch.fed == bare.fed + 1  # 40; 41 is predicted
    assert torch.equal(batch.chosen, bare.chosen) and torch.equal(batch.weights, bare.weights)
    assert bare.anchors.shape == bare.anchor_weights.shape == (0,)


@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_equals_that_of_a_pass_of_its_own(shared):
    """Pairs and anchors in one trie; or pairs alone, and each anchor as a plain row.

    The slow way takes the model's own logits, position by position.
    """
    model = small_model("gemma2")
    lora.add_lora(model, rank=2, alpha=4)
    randomise(model)
    parameters = lora.adapter_parameters(model)
    anchors = (Anchor((10, 41, 43), -3.0), Anchor((42, 2), -5.0))  # one opens as an answer does
    questions = [anchored(5, 2, anchors), anchored(6, 1, (Anchor((20, 44), -2.0),))]
    pairs = [(0, 0), (0, 1), (1, 0)]
    zeros = torch.zeros(3)
    weight, tokens = 0.7, 3

    (batch,) = step_batches(questions, pairs, 1000, shared)
    logps = answer_logps(model, batch.trees)
    loss = dpo_loss(logps[batch.chosen], logps[batch.rejected], zeros, zeros).loss
    term = anchor_gaps(logps, batch, tokens) @ batch.anchor_weights
    (loss @ batch.weights + weight * term).backward()
    found = torch.cat([p.grad.flatten() for p in parameters])

    def plain(prompt, answer):
        z = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        return sum(z[len(prompt) - 1 + t, token] for t, token in enumerate(answer))

    slow = torch.zeros(())
    for q, k in pairs:
        question = questions[q]
        margin = plain(question.prompt, question.chosen) - plain(
            question.prompt, question.rejected[k]
        )
        slow = slow - torch.nn.functional.logsigmoid(0.1 * margin) / 3
    for question in questions:
        for anchor in question.anchors:
            gap = (anchor.logp - plain(question.prompt, anchor.tokens)) / tokens
            slow = slow + weight * gap / len(question.anchors) / 2
    grads = torch.autograd.grad(slow, parameters)
    assert relative_error(found, torch.cat([g.flatten() for g in grads])) < 1e-5


def all_answers_of(vocabulary, tokens):
    """Every answer that ends with the stop token or is cut off after so many tokens."""
    for length in range(1, tokens + 1):
        for answer in itertools.product(range(vocabulary), repeat=length):
            if STOP not in answer[:-1] and (answer[-1] == STOP or length == tokens):
                yield answer


def enumerated(policy, prompt, tokens, divide):
    """(E_ref [(log pi_ref - log pi) / divide(y)], its gradient) over all answers.

    The reference is the policy with its adapters off.
    """
    answers = list(all_answers_of(policy.config.vocab_size, tokens))
    question = EncodedQuestion(prompt, answers[0], tuple(answers[1:]))
    (batch,) = step_batches([question], [(0, k) for k in range(len(answers) - 1)], 10**6)
    with torch.no_grad(), lora.adapters_disabled(policy):
        reference = answer_logps(policy, batch.trees)
    assert reference.exp().sum().item() == pytest.approx(1)  # they are all there are
    logps = answer_logps(policy, batch.trees)
    gaps = (reference - logps) / torch.tensor([divide(answer) for answer in answers])
    value = (reference.exp() * gaps).sum()
    grads = torch.autograd.grad(value, lora.adapter_parameters(policy, "B"))
    return value.item(), torch.cat([g.flatten() for g in grads])


@pytest.fixture
def tiny():
    model = small_model("llama", scale=0.4, vocab_size=5).double()
    lora.add_lora(model, rank=2, alpha=4)
    return model


def test_on_average_the_term_is_the_kl_and_its_gradient_at_the_reference_is_zero(tiny):
    """A vocabulary of 5, T = 3: 1 + 4 + 4 x 4 x 5 = 85 answers, all of them.

    The KL is worked out another way: position by position, over whole distributions.
    """
    prompt, tokens = (1, 3), 3
    value, gradient = enumerated(tiny, prompt, tokens, lambda answer: tokens)
    assert value == pytest.approx(0, abs=1e-12)
    assert gradient.norm() < 1e-12

    randomise(tiny)

    def kl(text, left):
        with torch.no_grad():
            policy = tiny(torch.tensor([text])).logits[0, -1].log_softmax(-1)
            with lora.adapters_disabled(tiny):
                reference = tiny(torch.tensor([text])).logits[0, -1].log_softmax(-1)
        total = float((reference.exp() * (reference - policy)).sum())
        for token, share in enumerate(reference.exp().tolist()):
            if token != STOP and left > 1:
                total += share * kl([*text, token], left - 1)
        return total

    value, gradient = enumerated(tiny, prompt, tokens, lambda answer: tokens)
    assert value == pytest.approx(kl(list(prompt), tokens) / tokens) and value > 0.01
    assert gradient.norm() > 0.01


def test_divided_by_its_own_length_an_answer_would_pull_the_reference_away_from_itself(tiny):
    """Why all are divided by the same T."""
    _, gradient = enumerated(tiny, (1, 3), 3, len)
    assert gradient.norm() > 0.001


def test_inverse_sampling_by_hand():
    """Probabilities .2, .5, .3 add up to .2, .7, 1: the first sum above u names the token."""
    numbers = np.array([[0.0, 0.3], [0.19, 0.3], [0.21, 0.3], [0.69, 0.3], [0.71, 0.3], [0.99, 0]])
    draw = Draw(numbers)
    scores = torch.tensor([[0.2, 0.5, 0.3]]).log().repeat(6, 1)
    left = draw(None, scores.clone())
    assert left.argmax(-1).tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.isinf(left).sum() == 2 * 6  # of three tokens one is left
    expected = [math.log(p) for p in (0.2, 0.2, 0.5, 0.5, 0.3, 0.3)]
    assert draw.logps[0].tolist() == pytest.approx(expected)
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
        scores = Scorer(model).scores("", [[(prompt, expected)]])
        for anchor in anchors:
            key = answer_key(prompt, anchor.tokens)
            assert anchor.logp == pytest.approx(scores[key], rel=1e-4, abs=1e-4)
    assert len({anchor.tokens for anchors in found.values() for anchor in anchors}) == 8


def test_an_answer_that_ended_has_its_stop_token_and_one_that_was_cut_off_has_none():
    model = small_model("llama", scale=0.2)
    prompts = [(1, 5, n) for n in range(3, 60)]
    anchors = [a for _, drawn in draw_anchors(model, prompts, STOP, Sampling(4, 6)) for a in drawn]
    ended = [a for a in anchors if STOP in a.tokens]
    assert 1 < len(ended) < len(anchors)
    assert all(a.tokens.index(STOP) == len(a.tokens) - 1 <= 5 for a in ended)
    assert all(len(a.tokens) == 6 for a in anchors if a not in ended)


def test_the_models_own_settings_of_generation_change_nothing_that_is_drawn():
    model = small_model("llama", scale=0.2)
    expected = list(draw_anchors(model, PROMPTS, STOP, Sampling(1, 5)))
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.suppress_tokens = list(range(3, 60))
    assert list(draw_anchors(model, PROMPTS, STOP, Sampling(1, 5))) == expected
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
