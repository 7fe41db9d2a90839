"""The reference: which model it is, scored once, kept under a name that changes when it must."""

import json

import pytest
import torch
from conftest import randomise, relative_error, small_model

import lora
from data import (
    EncodedQuestion,
    Split,
    Steps,
    TextSettings,
    prepare,
    read_preferences,
    step_batches,
)
from dpo import Scorer, all_answers, answer_logps, scoring_batches, trained_answers
from run.config import Config
from run.processes import World
from run.reference import Reference, in_words, read_cache, starting_reference, write_cache

QUESTIONS = [
    EncodedQuestion((1, 10 + q), (20, 21, 2), tuple((30 + k, 31 + q, 2) for k in range(1 + q % 3)))
    for q in range(7)
]
WANTED = [all_answers(q) for q in QUESTIONS]


def test_another_split_seed_learning_rate_or_rank_hits(tmp_path):
    """Nothing but the base, its dtype and the token ids is in an entry's name."""
    file = tmp_path / "reference" / "base.json"
    scores = Scorer(small_model()).scores("", [WANTED])
    write_cache(file, scores)
    known = read_cache(file)
    assert known == scores  # floats survive the file bit for bit
    assert list(scoring_batches(known, WANTED[::-1], 8)) == []
    assert [p.name for p in file.parent.iterdir()] == ["base.json"]


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"a": "x"}', '{"a": null}', "null"])
def test_a_damaged_cache_knows_nothing_and_is_named(tmp_path, text, capsys):
    file = tmp_path / "base.json"
    file.write_text(text)
    assert read_cache(file) == {}
    assert f"The reference's cache {file} is damaged" in capsys.readouterr().out
    assert read_cache(tmp_path / "none.json") == {}


def test_cache_files_are_plain_json(tmp_path):
    write_cache(tmp_path / "x.json", {"k": -1.5})
    assert json.loads((tmp_path / "x.json").read_text()) == {"k": -1.5}


@pytest.fixture(autouse=True)
def own_cache(private_cache):
    return private_cache


@pytest.fixture
def model():
    model = small_model()
    lora.add_lora(model, rank=2, alpha=4)
    randomise(model)
    return model


@pytest.fixture
def batch():
    (batch,) = step_batches(QUESTIONS, [(0, 0), (2, 1), (2, 0), (4, 0)], 4096)
    return batch


def reference_of(model, scores=None, **settings):
    """Of a model with adapters; `scores` are what a run would have scored."""
    made = Reference(Config(**settings), model, "hash")
    made.scores = scores or {}
    return made


@torch.no_grad()
def logps_of(model, batch):
    return answer_logps(model, batch.trees)


@torch.no_grad()
def test_the_frozen_base_answers_from_scores_without_a_pass(model, batch, monkeypatch):
    with lora.adapters_disabled(model):
        expected = logps_of(model, batch)
        scores = Scorer(model).scores("", [WANTED])
    reference = reference_of(model, scores)
    monkeypatch.setattr("dpo.answer_logps", None)
    torch.testing.assert_close(reference.logps(batch), expected)
    assert reference.passes == 1 and reference.state_dict() == {}


@pytest.mark.parametrize(
    "free", [{"reference_free": True}, {"loss": "simpo"}, {"loss": "orpo,sft"}]
)
def test_without_a_reference_every_answer_scores_0(model, batch, free):
    found = reference_of(model, **free).logps(batch)
    assert found.tolist() == [0.0] * batch.trees.answers


@torch.no_grad()
def test_the_adapter_that_a_run_starts_from_stays_the_reference_as_the_policy_moves(model, batch):
    before = logps_of(model, batch)
    settings = {"adapter": "some/adapter", "reference": "adapter"}
    reference = reference_of(model, **settings)
    assert reference.hash != reference_of(model).hash == "hash"
    randomise(model, seed=2)
    moved = logps_of(model, batch)
    assert relative_error(moved, before) > 0.01
    with reference.active(model):
        assert torch.equal(logps_of(model, batch), before)
    assert torch.equal(logps_of(model, batch), moved)
    assert reference_of(model, **settings).hash != reference.hash


def test_what_the_first_process_knows_is_what_all_know(model):
    """Each has a disk of its own, and all must score the same answers together."""
    reference, asked = reference_of(model, {"mine": 1.0}), []

    class Second(World):
        def of_first(self, make, *given):
            return {"yours": 2.0}

        def scores(self, scorer, label, to_score, known):
            asked.append(dict(known))
            return {"new": 3.0}

    reference.add(None, Second(1, 2), [])
    assert asked == [{"yours": 2.0}]
    assert reference.scores == {"yours": 2.0, "new": 3.0}


def test_the_same_matrices_with_another_alpha_are_another_reference(model):
    """What is cached under the one must not be read as the other."""
    settings = {"adapter": "some/adapter", "reference": "adapter"}
    first = reference_of(model, **settings).hash
    assert reference_of(model, **settings).hash == first
    for layer in lora.lora_layers(model).values():
        layer.alpha *= 4
        layer.scale *= 4
    assert reference_of(model, **settings).hash != first


@torch.no_grad()
def test_a_continued_adapter_is_the_reference_unless_the_base_is_asked_for(model, batch):
    adapter = logps_of(model, batch)
    with lora.adapters_disabled(model):
        base = logps_of(model, batch)
    for choice, expected in (("auto", adapter), ("adapter", adapter), ("base", base)):
        reference = reference_of(model, adapter="some/adapter", reference=choice)
        with reference.active(model):
            assert torch.equal(logps_of(model, batch), expected), choice
    with reference_of(model).active(model):
        assert torch.equal(logps_of(model, batch), base)  # where nothing is continued


@torch.no_grad()
def test_a_moving_reference_of_a_continued_adapter_starts_as_that_adapter(model, batch):
    start = logps_of(model, batch)
    reference = reference_of(model, adapter="some/adapter", reference_sync=2)
    randomise(model, seed=2)
    reference.follow(1)
    with reference.active(model):
        assert torch.equal(logps_of(model, batch), start)
    moved = logps_of(model, batch)
    reference.follow(2)
    assert torch.equal(reference.logps(batch), moved)


@pytest.mark.parametrize(
    ("settings", "line", "before"),
    [
        ({}, "the frozen base", "the frozen base"),
        ({"reference": "base"}, "the frozen base", "the frozen base"),
        (
            {"adapter": "a"},
            "the adapter that training starts from (--reference base takes the bare base)",
            "the adapter that training starts from",
        ),
        (
            {"adapter": "a", "reference": "base"},
            "the bare base, without the adapter that training starts from",
            "the bare base, without the adapter that training starts from",
        ),
        (
            {"adapter": "a", "reference_sync": 10},
            "the adapter that training starts from (--reference base takes the bare base); "
            "every 10 steps the policy",
            "the adapter that training starts from",
        ),
        ({"reference_sync": 1}, "the frozen base; every step the policy", "the frozen base"),
        (
            {"adapter": "a", "reference_free": True},
            "none: answers are scored by log pi(y|x) alone (--reference-free)",
            "the adapter that training starts from",
        ),
    ],
)
def test_a_run_says_which_reference_it_has_and_what_before_is(settings, line, before):
    (config := Config(**settings)).validate()
    assert (in_words(config), starting_reference(config)) == (line, before)


@torch.no_grad()
def test_a_moving_reference_is_the_policy_of_the_last_multiple_of_steps(model, batch):
    """Every 2 steps: at steps 0 and 1 it is the base, then the policy as it was at 2, and at 4."""
    with lora.adapters_disabled(model):
        scores = Scorer(model).scores("", [WANTED])
        base = logps_of(model, batch)
    reference = reference_of(model, scores, reference_sync=2)
    policies, found = [], []
    for step in range(6):
        randomise(model, seed=step)
        policies.append(logps_of(model, batch))
        reference.follow(step)
        found.append(reference.logps(batch))
        assert torch.equal(logps_of(model, batch), policies[-1])  # the policy is as it was
        assert reference.passes == (1 if step < 2 else 2)
    for step, policy in enumerate([base, base, *[policies[2]] * 2, *[policies[4]] * 2]):
        torch.testing.assert_close(found[step], policy)


@torch.no_grad()
def test_a_reference_that_had_moved_goes_on_from_its_state(model, batch):
    reference = reference_of(model, reference_sync=1)
    reference.follow(1)
    saved = reference.state_dict()
    expected = logps_of(model, batch)
    randomise(model, seed=2)
    again = reference_of(model, reference_sync=1)
    again.load_state_dict(saved)
    assert torch.equal(again.logps(batch), expected) and again.passes == 2


@pytest.mark.parametrize("free", [{}, {"reference_free": True}, {"loss": "orpo=1,sft=2"}], ids=str)
def test_held_out_questions_are_scored_whole_and_others_as_far_as_pairs_use_them(
    tokenizer, questions_csv, tmp_path, own_cache, free, monkeypatch
):
    """Of the first 2 steps alone; what is on disk is not scored again, by this run or another."""
    split = Split(0.4, 0)
    questions = prepare(
        read_preferences(str(questions_csv)), tokenizer, TextSettings(), split, tmp_path
    )
    steps = Steps(questions.train.column("pairs").tolist(), 2, 1, 0, "questions", max_steps=2)
    model = small_model(vocab_size=len(tokenizer))
    lora.add_lora(model, rank=2, alpha=4)
    reference = reference_of(model, **free)
    reference.score(Scorer(model), World(), questions, steps)
    used = {q for pairs in steps.from_step() for q, _ in pairs}
    assert 0 < len(used) < len(questions.train)
    wanted = [all_answers(q) for q in questions.held_out]
    wanted += [trained_answers(questions.train[q]) for q in used if not free]
    expected = Scorer(model).scores("", [wanted])
    assert reference.scores == pytest.approx(expected, rel=1e-5)
    assert read_cache(own_cache / "reference" / "hash.json") == reference.scores

    monkeypatch.setattr("dpo.scoring.answer_logps", None)  # nothing is scored again
    again = Reference(Config(**free), model, "hash")
    again.score(Scorer(model), World(), questions, steps)
    assert again.scores == reference.scores
