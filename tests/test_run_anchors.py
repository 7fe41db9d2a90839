"""The anchors of a run: drawn once, kept on disk, the same when a run goes on."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import randomise, relative_error, small_model

import dpo
import lora
import train
from data import step_batches
from run import inputs
from run.anchors import Anchors, as_planned, prompt_key, read_drawn, tokens_of, write_drawn
from run.config import Config
from run.errors import UsageError
from run.processes import World
from run.reference import Reference


@pytest.fixture(autouse=True)
def own_cache(private_cache, plain_pictures):
    return private_cache


@pytest.fixture
def run(model_folder, questions_csv, tmp_path):
    def run(name, **more):
        settings = {
            "model": str(model_folder), "data": str(questions_csv), "dtype": "float32",
            "device": "cpu", "merge": False, "batch_size": 5, "grad_accum": 1, "lr": 3e-3,
            "epochs": 8, "output_dir": str(tmp_path / name), "anchor_weight": 1.0,
            "anchor_samples": 3, "anchor_tokens": 6, "scale": "1",
        }  # fmt: skip
        return train.run(Config(**(settings | more)))

    return run


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_another_seed_or_rate_finds_the_anchors_that_were_drawn(run, own_cache, monkeypatch):
    """Four questions are trained on, three answers each; seed 1 holds another question out."""
    run("first")
    (file,) = (own_cache / "anchors").iterdir()
    assert [len(drawn) for drawn in read_drawn(file).values()] == [3] * 4
    drawn = []
    real = dpo.draw_anchors
    monkeypatch.setattr(dpo, "draw_anchors", lambda model, prompts, *more: (
        drawn.extend(prompts) or real(model, prompts, *more)))  # fmt: skip
    run("rate", lr=1e-4, loss="ipo")
    assert drawn == []
    run("seed", seed=1)
    assert len(drawn) == 1 and len(read_drawn(file)) == 5
    run("longer", anchor_tokens=7)
    assert len(drawn) == 1 + 4 and len(list((own_cache / "anchors").iterdir())) == 2


def test_the_term_starts_at_zero_and_without_a_weight_there_is_none(run):
    """Without a weight the run is that of the paper."""
    near, far = logged(run("near")), logged(run("far", anchor_weight=0.0))
    assert near[0]["anchor"] == pytest.approx(0, abs=1e-5)
    assert near[0]["loss"] == pytest.approx(far[0]["loss"], abs=1e-5)
    assert all(line["anchor"] == 0 for line in far)
    assert weights(run("again", anchor_weight=0.0)) == weights(run("more", anchor_weight=0.0,
                                                                   anchor_tokens=9))  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [{"reference_free": True}, {"loss": "group"}, {"reference_sync": 3}, {"loss": "ranking"}],
    ids=str,
)
def test_anchors_go_with_every_loss_and_reference(run, more):
    lines = logged(run("out", **more))
    assert lines[0]["anchor"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["anchor"] != 0 and all("skipped" not in line for line in lines)


def test_micro_batches_and_plain_rows_change_no_gradient(run, monkeypatch):
    expected = logged(run("whole", dropout=0.0, max_steps=4))
    monkeypatch.setattr("run.plan.DEFAULT", dpo.Budgets(16, 64, 16))
    cut = logged(run("cut", dropout=0.0, max_steps=4))
    for name in ("loss", "anchor", "grad_norm"):
        found = [line[name] for line in cut]
        assert found == pytest.approx([line[name] for line in expected], rel=1e-3, abs=1e-5)


def of(reference_model, folder, **settings):
    drawing = Anchors(dpo.Sampling(2, 5), folder)
    return drawing, Reference(Config(**settings), reference_model, "hash")


def questions():
    from test_run_reference import QUESTIONS  # seven, with prompts of their own

    class Some(list):
        def select(self, numbers):
            return Some(self[i] for i in numbers)

        def map(self, function):
            return Some(map(function, self))

    return Some(QUESTIONS)


class Trained:
    """Steps of one question each."""

    def __init__(self, *order):
        self.order, self.total = order, len(order)

    def questions(self, steps=None):
        return sorted(self.order[:steps])


def test_they_are_drawn_from_the_reference_and_not_from_the_policy(tmp_path):
    model = small_model("llama", scale=0.2)
    base = dict(dpo.draw_anchors(model, [q.prompt for q in questions()], 2, dpo.Sampling(2, 5)))
    lora.add_lora(model, rank=2, alpha=4)
    randomise(model)
    drawing, reference = of(model, tmp_path)
    before = torch.get_rng_state()
    found = drawing.draw(reference, World(), questions(), Trained(5, 0, 2), "tries")
    assert torch.equal(torch.get_rng_state(), before)  # the run's own draws are not moved
    for number, question in enumerate(found):
        drawn = base[question.prompt] if number in (0, 2, 5) else ()
        assert [a.tokens for a in question.anchors] == [a.tokens for a in drawn]
    tuned = dict(dpo.draw_anchors(model, [q.prompt for q in questions()], 2, dpo.Sampling(2, 5)))
    assert tuned != base


def test_a_run_goes_on_with_the_anchors_it_had_or_not_at_all(own_cache, tmp_path):
    model = small_model("llama", scale=0.2)
    lora.add_lora(model, rank=2, alpha=4)
    first, reference = of(model, tmp_path)
    first.draw(reference, World(), questions(), Trained(4, 1), "tries")
    second, _ = of(model, tmp_path)
    second.load_state_dict(first.state_dict())
    more = Trained(4, 1, 0, 2)  # --max-steps grew
    before = second.draw(reference, World(), questions(), more, "tries")
    for file in (own_cache / "anchors").iterdir():
        file.unlink()
    third, _ = of(model, tmp_path)  # the cache is lost, and the run keeps its own
    third.load_state_dict(second.state_dict())
    again = third.draw(reference, World(), questions(), more, "tries")
    assert repr([q.anchors for q in again]) == repr([q.anchors for q in before])
    known = read_drawn(third.kept)
    key = prompt_key(questions()[4].prompt)
    one, *rest = known[key]
    write_drawn(third.kept, known | {key: (one._replace(logps=one.logps - 0.1), *rest)})
    with pytest.raises(UsageError, match="--resume: the anchors are not those"):
        third.draw(reference, World(), questions(), more, "tries")


def test_a_run_whose_steps_grow_goes_on_with_more_questions(run, own_cache):
    """One step of five pairs has two questions, the next one the others."""
    folder = run("out", max_steps=1)
    assert len(logged(run("out", max_steps=3, resume=str(folder)))) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"\x08\0\0\0\0\0\0\0{}      ", b"\0" * 99])
def test_a_damaged_file_has_no_anchors_and_is_named(tmp_path, content, capsys):
    file = tmp_path / "anchors.safetensors"
    file.write_bytes(content)
    assert read_drawn(file) == {}
    assert f"The anchors in {file} are damaged" in capsys.readouterr().out
    assert read_drawn(tmp_path / "none.safetensors") == {}


def test_anchors_survive_the_file_bit_for_bit(tmp_path):
    model = small_model("llama", scale=0.2)
    drawn = {prompt_key(prompt): anchors for prompt, anchors in dpo.draw_anchors(
        model, [(1, 5, n) for n in range(3, 30)], 2, dpo.Sampling(2, 6))}  # fmt: skip
    assert any(len(a.tokens) < 6 for anchors in drawn.values() for a in anchors)
    write_drawn(tmp_path / "anchors.safetensors", drawn)
    found = read_drawn(tmp_path / "anchors.safetensors")
    assert found.keys() == drawn.keys()
    for key, anchors in drawn.items():
        for ours, theirs in zip(anchors, found[key], strict=True):
            assert (ours.tokens, ours.longest) == (theirs.tokens, theirs.longest)
            assert (ours.words == theirs.words).all() and (ours.logps == theirs.logps).all()


def test_the_plan_counts_anchors_at_their_longest():
    """2 x 5 tokens, of which none is shared; without a weight none."""
    config = Config(anchor_weight=1.0, anchor_samples=2, anchor_tokens=5)
    planned = as_planned(questions(), config)
    (question,) = planned[:1]
    assert [len(a.tokens) for a in question.anchors] == [5, 5]
    assert len({token for a in question.anchors for token in a.tokens}) == 10 == tokens_of(config)
    assert tokens_of(Config(anchor_weight=0.0)) == 0
    assert as_planned(questions(), Config(anchor_weight=0.0))[0].anchors == ()


def test_the_first_lines_say_what_the_reference_writes():
    shown = dict(inputs.remarks(Config(anchor_weight=0.5, anchor_samples=2, anchor_tokens=9), 10))
    assert shown["anchors"] == (
        "2 answers of at most 9 tokens that the reference writes to each prompt, weight 0.5 "
        "(--anchor-weight 0 is DPO alone)"
    )
    assert "anchors" not in dict(inputs.remarks(Config(anchor_weight=0), 10))


def test_what_a_nat_that_a_chosen_answer_lost_weighs():
    """.5 x .3 / 10 = .015; nothing without a reference, and nothing without anchors."""
    config = Config(anchor_weight=0.5, anchor_chosen=0.3, anchor_tokens=10)
    assert config.fall_weight == pytest.approx(0.015)
    for other in ({"reference_free": True}, {"loss": "simpo"}, {"anchor_weight": 0.0}):
        assert replace(config, **other).fall_weight == 0


def test_a_chosen_answer_is_pushed_back_to_its_reference_and_not_beyond():
    """Two questions, a pair each: of one the chosen answer lost 2 nats, of the other it gained 3.

    The added gradient is that of -1/2 log pi(y+) of the first, times the weight of a nat.
    """
    model = small_model("llama")
    lora.add_lora(model, rank=2, alpha=4)
    randomise(model)
    parameters = lora.adapter_parameters(model)
    (batch,) = step_batches(questions()[:2], [(0, 0), (1, 0)], 1000)
    logps = dpo.answer_logps(model, batch.trees)
    first, second = batch.chosen.tolist()
    given = logps.detach().clone()
    given[first] += 2.0
    given[second] -= 3.0
    reference = SimpleNamespace(logps=lambda batch: given)
    found = []
    for chosen in (0.0, 0.8):
        model.zero_grad()
        config = Config(anchor_weight=0.5, anchor_chosen=chosen, anchor_tokens=4)
        train.backward(model, batch, reference, config)
        found.append(torch.cat([p.grad.flatten() for p in parameters]))
    (gradient,) = [torch.autograd.grad(-0.5 * logps[first], parameters)]
    expected = 0.5 * 0.8 / 4 * torch.cat([g.flatten() for g in gradient])
    assert relative_error(found[1] - found[0], expected) < 1e-3
