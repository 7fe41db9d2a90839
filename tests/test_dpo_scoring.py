"""Scoring: every distinct answer once, whatever the sources, the order and the batches."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from conftest import randomise, small_model

from data import EncodedQuestion, Steps, TreeBatch, Way, step_batches
from dpo import (
    Budgets,
    OutOfMemory,
    PairLog,
    Scorer,
    StepLog,
    all_answers,
    answer_key,
    answer_logps,
    dpo_loss,
    mean_difference,
    scoring_batches,
    step_metrics,
    trained_answers,
)
from lora import adapters_disabled, add_lora
from lora.adapter import train_adapters

QUESTIONS = [
    EncodedQuestion((1, 10 + q), (20, 21, 2), tuple((30 + k, 31 + q, 2) for k in range(1 + q % 3)))
    for q in range(7)
]
WANTED = [all_answers(q) for q in QUESTIONS]


def score_all(model, budget=64, way="tries"):
    return Scorer(model, way, Budgets(score=budget, plain=budget)).scores("", [WANTED])


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 16, 4096])
@pytest.mark.parametrize("way", get_args(Way))
def test_every_distinct_answer_is_scored_once_and_by_its_own_name(budget, way):
    model = small_model()
    keys = [k for keys, _ in scoring_batches({}, WANTED * 2, budget, way) for k in keys]
    assert len(keys) == len(set(keys)) == sum(len(q.answers) for q in QUESTIONS)
    scores = score_all(model, budget, way)
    for q in QUESTIONS:
        for answer in q.answers:
            own = model(torch.tensor([q.prompt + answer])).logits[0].log_softmax(-1)
            expected = sum(own[len(q.prompt) - 1 + i, t] for i, t in enumerate(answer))
            assert scores[answer_key(q.prompt, answer)] == pytest.approx(float(expected), rel=1e-5)


def test_what_is_known_is_not_scored_again():
    scores = score_all(small_model())
    assert list(scoring_batches(scores, WANTED, 64)) == []
    missing = dict(list(scores.items())[1:])
    ((keys, _),) = scoring_batches(missing, WANTED, 64)
    assert keys == [next(iter(scores))]


def test_several_sources_are_scored_together_and_what_they_share_once():
    """Questions 0 to 3 with all their answers, 2 to 6 with those of pairs; some are known."""
    seen = []

    def watch(batches, label, total):
        seen.append((label, total))
        for keys, trees in batches:
            seen.append(keys)
            yield keys, trees

    questions = [q._replace(correct=((90, 2),)) for q in QUESTIONS]
    whole = Scorer(small_model()).scores("", [[all_answers(q) for q in questions]])
    sources = [map(all_answers, questions[:4]), map(trained_answers, questions[2:])]
    sources = [list(source) for source in sources]
    wanted = {answer_key(prompt, a) for source in sources for prompt, some in source for a in some}
    assert wanted < whole.keys()  # not the further correct answers of 4, 5 and 6
    known = {answer_key(questions[2].prompt, questions[2].chosen): 7.0}
    found = Scorer(small_model(), watch=watch).scores("Both", sources, known)
    assert found.keys() == wanted - known.keys()
    assert found == pytest.approx({key: whole[key] for key in found}, rel=1e-5)
    (label, total), *batches = seen
    keys = [key for batch in batches for key in batch]
    assert label == "Both" and sorted(keys) == sorted(found)
    assert total == len(keys) + 4 + 2 - 1  # 2 and 3 are counted in both sources, one is known


def test_where_memory_runs_out_what_is_scored_already_stays(monkeypatch, capsys):
    """The second batch is too large; the first one is not scored again."""
    expected, scored = score_all(small_model()), []

    def starved(model, trees):
        if trees.tokens.numel() > 16 and scored:
            raise MemoryError
        scored.append(trees.answers)
        return answer_logps(model, trees)

    monkeypatch.setattr("dpo.scoring.answer_logps", starved)
    assert score_all(small_model(), 32) == pytest.approx(expected, rel=1e-5)
    assert sum(scored) == len(expected)
    assert "going on with 16 tokens" in capsys.readouterr().out


def test_the_mean_difference_by_hand():
    """|-4 + 2| / 2 = 1 and |-3 + 6| / 1 = 3, on average 2; what has no length does not count."""
    first, second = {"a": -4.0, "b": -3.0, "c": 0.0}, {"a": -2.0, "b": -6.0}
    assert mean_difference(first, second, {"a": 2, "b": 1}) == 2


def test_more_questions_than_are_taken_at_once_are_scored_the_same(monkeypatch):
    whole = score_all(small_model())
    monkeypatch.setattr("dpo.scoring.QUESTIONS_AT_ONCE", 2)
    batches = list(scoring_batches({}, WANTED * 2, 4096))
    keys = [key for keys, _ in batches for key in keys]
    assert len(batches) == 4 and sorted(keys) == sorted(whole)  # the repeated ones only once
    assert score_all(small_model()) == pytest.approx(whole, rel=1e-5)


def test_where_others_wait_the_batches_are_paced_and_nothing_is_tried_again(monkeypatch):
    paced = []

    def kept_in_step(batches):
        for batch in batches:
            paced.append(batch)
            yield batch

    model = small_model()
    scorer = Scorer(model, budgets=Budgets(score=16), kept_in_step=kept_in_step)
    found = scorer.scores("", [WANTED])
    assert found == pytest.approx(score_all(model, 16), rel=1e-5)
    assert len(paced) == len(list(scoring_batches({}, WANTED, 16))) > 1

    def starved(*_):
        raise MemoryError

    monkeypatch.setattr("dpo.scoring.answer_logps", starved)
    paced.clear()
    with pytest.raises(OutOfMemory, match="more processes"):
        replace(scorer, budgets=Budgets(score=4096)).scores("", [WANTED])
    assert len(paced) == 1


def test_two_reference_passes_are_equal_although_dropout_is_on_in_training():
    model = small_model()
    add_lora(model, rank=2, alpha=4, dropout=0.5)
    randomise(model)
    train_adapters(model)
    with adapters_disabled(model):
        first = score_all(model)
    with adapters_disabled(model):
        assert score_all(model) == first
    assert score_all(model) != score_all(model)  # the policy in training has dropout


def test_another_token_has_another_key():
    assert answer_key((1, 2), (3,)) != answer_key((1, 2), (4,))
    assert answer_key((1, 2), (3,)) != answer_key((1,), (2, 3))


@pytest.mark.parametrize("shuffle", ["questions", "pairs"])
@pytest.mark.parametrize("budget", [4, 4096])
def test_at_step_0_of_a_shuffled_run_rewards_are_0_and_the_loss_is_ln_2(shuffle, budget):
    model = small_model()
    scores = score_all(model)
    assert len({round(s, 3) for s in scores.values()}) > 10  # misplaced ones would show
    add_lora(model, rank=2, alpha=4)
    pairs = next(Steps([len(q.rejected) for q in QUESTIONS], 8, 1, 3, shuffle).from_step())
    logs = []
    for batch in step_batches(QUESTIONS, pairs, budget):
        assert isinstance(batch.trees, TreeBatch)
        logps = answer_logps(model, batch.trees)
        anchors = torch.tensor([scores[answer_key(*ids)] for ids in batch.ids])
        chosen, rejected = batch.chosen, batch.rejected
        result = dpo_loss(logps[chosen], logps[rejected], anchors[chosen], anchors[rejected])
        log = (*result, logps[chosen], logps[rejected], batch.weights, batch.questions)
        logs.append(StepLog(PairLog(*(column.detach() for column in log))))
    metrics = step_metrics(StepLog.joined(logs).pairs, beta=0.1)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    assert metrics["rewards/rejected"] == pytest.approx(0, abs=1e-5)
