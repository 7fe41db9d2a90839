"""The reference: scored once per distinct answer, kept under a name that changes when it must."""

import json
import math

import pytest
import torch
from conftest import randomise, small_model

from data import EncodedQuestion, Steps, TreeBatch, step_batches
from dpo import (
    OutOfMemory,
    answer_key,
    answer_logps,
    dpo_loss,
    pair_columns,
    read_cache,
    score_answers,
    scoring_batches,
    step_metrics,
    write_cache,
)
from lora import adapters_disabled, add_lora, base_fingerprint
from lora.adapter import train_adapters

QUESTIONS = [
    EncodedQuestion((1, 10 + q), (20, 21, 2), tuple((30 + k, 31 + q, 2) for k in range(1 + q % 3)))
    for q in range(7)
]
WANTED = [(q.prompt, q.answers) for q in QUESTIONS]


def score_all(model, budget=64, shared=True):
    return score_answers(model, lambda: WANTED, budget, shared)


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 16, 4096])
@pytest.mark.parametrize("shared", [True, False])
def test_every_distinct_answer_is_scored_once_and_by_its_own_name(budget, shared):
    model = small_model()
    keys = [k for keys, _ in scoring_batches({}, WANTED * 2, budget, shared) for k in keys]
    assert len(keys) == len(set(keys)) == sum(len(q.answers) for q in QUESTIONS)
    scores = score_all(model, budget, shared)
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


def test_more_questions_than_are_taken_at_once_are_scored_the_same(monkeypatch):
    whole = score_all(small_model())
    monkeypatch.setattr("dpo.reference.QUESTIONS_AT_ONCE", 2)
    batches = list(scoring_batches({}, WANTED * 2, 4096))
    keys = [key for keys, _ in batches for key in keys]
    assert len(batches) == 4 and sorted(keys) == sorted(whole)  # the repeated ones only once
    assert score_all(small_model()) == pytest.approx(whole, rel=1e-5)


def test_where_others_wait_the_batches_are_paced_and_nothing_is_tried_again(monkeypatch):
    paced = []

    def pace(batches):
        for batch in batches:
            paced.append(batch)
            yield batch

    model = small_model()
    found = score_answers(model, lambda: WANTED, 16, pace=pace)
    assert found == pytest.approx(score_all(model, 16), rel=1e-5)
    assert len(paced) == len(list(scoring_batches({}, WANTED, 16))) > 1

    def starved(*_):
        raise MemoryError

    monkeypatch.setattr("dpo.reference.answer_logps", starved)
    paced.clear()
    with pytest.raises(OutOfMemory, match="more processes"):
        score_answers(model, lambda: WANTED, 4096, pace=pace)
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


def test_a_changed_token_weight_or_dtype_misses():
    model = small_model()
    name = base_fingerprint(model)
    assert base_fingerprint(small_model()) == name
    weight = model.model.layers[3].mlp.down_proj.weight
    weight.data[5, 7] += 2**-10
    assert base_fingerprint(model) != name
    half = small_model()
    for parameter in half.parameters():
        parameter.data = parameter.data.bfloat16()
    assert base_fingerprint(half) != name
    assert base_fingerprint(small_model(rms_norm_eps=1e-4)) != name
    assert answer_key((1, 2), (3,)) != answer_key((1, 2), (4,))
    assert answer_key((1, 2), (3,)) != answer_key((1,), (2, 3))


def test_another_split_seed_learning_rate_or_rank_hits(tmp_path):
    """Nothing but the base, its dtype and the token ids is in an entry's name."""
    file = tmp_path / "reference" / "base.json"
    scores = score_all(small_model())
    write_cache(file, scores)
    known = read_cache(file)
    assert known == scores  # floats survive the file bit for bit
    assert list(scoring_batches(known, list(reversed(WANTED)), 8)) == []
    assert [p.name for p in file.parent.iterdir()] == ["base.json"]


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"a": "x"}', '{"a": null}', "null"])
def test_a_damaged_cache_knows_nothing_and_is_named(tmp_path, text, capsys):
    file = tmp_path / "base.json"
    file.write_text(text)
    assert read_cache(file) == {}
    assert f"The reference's cache {file} is damaged" in capsys.readouterr().out
    assert read_cache(tmp_path / "none.json") == {}


@pytest.mark.parametrize("shuffle", ["questions", "pairs"])
@pytest.mark.parametrize("budget", [4, 4096])
def test_at_step_0_of_a_shuffled_run_rewards_are_0_and_the_loss_is_ln_2(shuffle, budget):
    model = small_model()
    scores = score_all(model)
    assert len({round(s, 3) for s in scores.values()}) > 10  # misplaced ones would show
    add_lora(model, rank=2, alpha=4)
    pairs = next(Steps([len(q.rejected) for q in QUESTIONS], 8, 1, 3, shuffle).from_step())
    columns = []
    for batch in step_batches(QUESTIONS, pairs, budget):
        assert isinstance(batch.trees, TreeBatch)
        logps = answer_logps(model, batch.trees)
        anchors = torch.tensor([scores[answer_key(*ids)] for ids in batch.ids])
        chosen, rejected = batch.chosen, batch.rejected
        result = dpo_loss(logps[chosen], logps[rejected], anchors[chosen], anchors[rejected])
        columns.append(
            pair_columns(result, logps[chosen], logps[rejected], batch.weights, batch.questions)
        )
    metrics = step_metrics(torch.cat(columns, 1))
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    assert metrics["rewards/rejected"] == pytest.approx(0, abs=1e-5)


def test_cache_files_are_plain_json(tmp_path):
    write_cache(tmp_path / "x.json", {"k": -1.5})
    assert json.loads((tmp_path / "x.json").read_text()) == {"k": -1.5}
