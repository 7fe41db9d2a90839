"""Drift: the KL is that of whole answers; every number can be worked out by hand."""

import math
from contextlib import contextmanager, nullcontext

import pytest
import torch
from conftest import randomise, small_model

from data import EncodedQuestion
from dpo import Drawing, Drift, answer_key, remark
from dpo.evaluation import drift
from dpo.evaluation.drift import LONGEST, change, kl_to_reference
from lora import adapters_disabled, add_lora

STOP, PROMPT = 2, (1, 5, 6)


@pytest.fixture
def model():
    model = small_model("llama", scale=0.2, vocab_size=11)
    add_lora(model, rank=2, alpha=4)
    randomise(model, scale=1.0)
    return model


@torch.no_grad()
def next_logps(model, ids):
    return model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)


def every_answer():
    """All answers of at most two tokens: the stop token alone, or any other with one after it."""
    yield ((), True)
    for first in range(11):
        for second in range(11) if first != STOP else ():
            yield ((first,), True) if second == STOP else ((first, second), False)


def logp(model, answer):
    said, stopped = answer
    ids = [*said, STOP] if stopped else list(said)
    return sum(float(next_logps(model, [*PROMPT, *ids[:t]])[ids[t]]) for t in range(len(ids)))


def test_the_kl_is_that_of_whole_answers(model, monkeypatch):
    """sum_y pi(y) log (pi(y) / ref(y)) over all 111 answers is the mean of what one draw gives."""
    with adapters_disabled(model):
        reference = {answer: logp(model, answer) for answer in every_answer()}
    policy = {answer: logp(model, answer) for answer in every_answer()}
    assert sum(map(math.exp, policy.values())) == pytest.approx(1)
    whole = sum(math.exp(policy[y]) * (policy[y] - reference[y]) for y in policy)
    mean = 0.0
    for answer, score in policy.items():
        monkeypatch.setattr(drift, "answers", lambda *_, drawn=answer: [drawn])
        mean += math.exp(score) * kl_to_reference(model, adapters_disabled, [PROMPT], STOP)[0]
    assert mean == pytest.approx(whole, rel=1e-4)
    assert whole > 0.1


def test_the_kl_of_one_token_needs_no_luck(model):
    """With answers of one token nothing of it depends on what is drawn."""
    prompts = [PROMPT, (1, 9)]
    expected = 0.0
    for prompt in prompts:
        policy = next_logps(model, prompt)
        with adapters_disabled(model):
            reference = next_logps(model, prompt)
        expected += float((policy.exp() * (policy - reference)).sum()) / 2
    for seed in range(3):
        found = kl_to_reference(model, adapters_disabled, prompts, STOP, Drawing(1, 1.0, seed))
        assert found == pytest.approx((expected, expected), rel=1e-4)


def test_without_adapters_nothing_drifts(model):
    assert kl_to_reference(model, lambda model: nullcontext(), [PROMPT], STOP, Drawing(4, 1.0)) == (
        0,
        0,
    )


def test_answers_are_drawn_from_the_policy(model, monkeypatch):
    """And not from the reference: it is the policy's expectation."""
    inside = []

    @contextmanager
    def reference(model):
        inside.append(True)
        yield
        inside.pop()

    def watched(model, prompts, stop, drawing):
        assert not inside and drawing.temperature == 1.0 and drawing.max_tokens == LONGEST
        return [((5,), True)]

    monkeypatch.setattr(drift, "answers", watched)
    kl_to_reference(model, reference, [PROMPT], STOP)


def test_the_change_of_chosen_and_rejected_by_hand():
    """Chosen -2 -> -5 and -4 -> -3: mean -1. Rejected -1 -> -9, -2 -> -2, -3 -> -4: mean -3."""
    one = EncodedQuestion((1,), (10,), ((11,), (12,)))
    two = EncodedQuestion((2,), (10,), ((11,),))
    keys = [answer_key(q.prompt, a) for q in (one, two) for a in q.answers]
    old = dict(zip(keys, [-2.0, -1.0, -2.0, -4.0, -3.0], strict=True))
    new = dict(zip(keys, [-5.0, -9.0, -2.0, -3.0, -4.0], strict=True))
    assert change([one, two], old, new) == (-1, -3)


def test_a_word_where_both_fall_and_where_neutral_text_suffers():
    fine = Drift(1.0, 0.1, 2.0, -3.0, 20.0, 21.0)
    assert remark(fine) == ""
    assert "chosen answers fell too" in remark(fine._replace(chosen=-2.0))
    assert "fell too" not in remark(fine._replace(chosen=-2.0, rejected=1.0))
    assert "perplexity 20.0 -> 23.0" in remark(fine._replace(perplexity_after=23.0))


def test_nothing_is_said_where_nothing_moved():
    """Neither of a hundredth of a nat, which float32 and bfloat16 make by themselves."""
    assert remark(Drift(0.0, 0.0, 0.0, 0.0, 20.0, 20.0, {"code": 4.0}, {"code": 4.0})) == ""
    assert remark(Drift(0.0, 0.0, -0.01, -0.02, 20.0, 20.01)) == ""


def test_the_kind_that_suffers_most_is_named_also_where_the_whole_does_not():
    """Code 4 -> 5 is a quarter more; prose 30 -> 32 is less than a tenth."""
    before, after = {"prose": 30.0, "code": 4.0}, {"prose": 32.0, "code": 5.0}
    drift = Drift(1.0, 0.1, 2.0, -3.0, 20.0, 21.0, before, after)
    assert drift.worst_kind == ("code", 4.0, 5.0)
    assert "perplexity 20.0 -> 21.0, of code 4.0 -> 5.0" in remark(drift)
    assert remark(drift._replace(perplexities_after={"prose": 32.0, "code": 4.3})) == ""
