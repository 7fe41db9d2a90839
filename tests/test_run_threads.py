"""The number of threads: found by trying a step, kept by the run, and watched while it goes on."""

import time

import pytest
import torch
import yaml

import dpo
import train
from run import threads
from run.config import Config, parse
from run.errors import UsageError
from run.threads import WINDOW, Pace, fastest


@pytest.fixture
def run(model_folder, questions_csv, tmp_path):
    def run(name, **more):
        settings = {
            "model": str(model_folder), "data": str(questions_csv), "dtype": "float32",
            "device": "cpu", "merge": False, "epochs": 8, "output_dir": str(tmp_path / name),
            "scale": "1",
        }  # fmt: skip
        return train.run(Config(**(settings | more)))

    return run


@pytest.fixture
def cores(monkeypatch):
    """A machine on which a step takes so many seconds with so many threads."""

    class Machine:
        count, clock, tried = 8, 0.0, []

        def step(self):
            self.tried.append(self.count)
            self.clock += self.seconds[self.count]

    machine = Machine()
    machine.tried = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: machine.count)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: setattr(machine, "count", n))
    monkeypatch.setattr(time, "perf_counter", lambda: machine.clock)
    return machine


@pytest.mark.parametrize(
    "seconds, count",
    [
        ({8: 1.0, 4: 2.0}, 8),
        ({8: 1.0, 4: 0.95}, 8),  # less than a tenth is noise
        ({8: 9.0, 4: 5.0, 2: 6.0}, 4),
        ({8: 9.0, 4: 5.0, 2: 3.0, 1: 1.0}, 1),
    ],
    ids=str,
)
def test_threads_are_halved_as_long_as_that_is_faster(cores, seconds, count):
    cores.seconds = seconds
    assert fastest(cores.step) == cores.count == count
    assert set(cores.tried) == set(seconds)  # and no further


def test_the_best_of_some_times_counts(cores):
    cores.seconds = {8: 1.0, 4: 0.5, 2: 0.1, 1: 0.2}
    honest = cores.step

    def at_first_slow():
        first = cores.count not in cores.tried
        honest()
        cores.clock += 100.0 * first

    assert fastest(at_first_slow) == cores.count == 2


def test_a_pace_is_slower_than_before_once_it_lasts_and_is_said_once():
    """A second for ten tokens; three windows later four seconds, of which half must be seen."""
    pace = Pace()
    assert not any(pace.slower(1.0, 10) for _ in range(3 * WINDOW))
    assert not pace.slower(60.0, 10)  # one alone, as at a save
    told = [pace.slower(4.0, 10) for _ in range(WINDOW)]
    assert [times for times in told if times] == [4.0]
    assert not any(pace.slower(40.0, 10) for _ in range(2 * WINDOW))


def test_longer_steps_of_more_tokens_are_not_slower():
    pace = Pace()
    assert not any(pace.slower(1.0, 10) for _ in range(WINDOW))
    assert not any(pace.slower(10.0, 100) for _ in range(WINDOW))


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5", ""])
def test_other_numbers_of_threads_are_refused(wrong):
    with pytest.raises(UsageError, match="--threads .* must be 1 to 1024, or auto"):
        parse([f"--threads={wrong}"])


def test_a_run_keeps_the_number_that_was_found_and_one_that_is_given_wins(run, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(threads, "fastest", lambda step: step() or 3)
    folder = run("out", max_steps=1, anchor_weight=0.0)
    stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert stored["threads"] == "3" and seen == []
    monkeypatch.setattr(threads, "fastest", lambda step: pytest.fail("it was known"))
    run("out", resume=str(folder), max_steps=2, anchor_weight=0.0, threads="3")
    assert seen == [3]
    assert parse(["--config", str(folder / "config.yaml")]).given_threads == 3
    given = Config(threads="5")
    assert given.changes(stored | {"threads": "3"}).count("threads") == 0
    run("other", threads="5", max_steps=1)
    assert seen == [3, 5]


def test_trying_threads_changes_nothing_of_the_run(run, monkeypatch):
    """Dropout draws what it would have drawn, and no gradient is left over."""
    expected = (run("plain", max_steps=2, threads="1") / "metrics.jsonl").read_text("utf-8")
    tried = []
    monkeypatch.setattr(threads, "fastest", lambda step: tried.append([step(), step()]) or 1)
    assert (run("tried", max_steps=2) / "metrics.jsonl").read_text("utf-8") == expected
    assert tried


def test_threads_are_tried_on_a_question_that_is_cut_short(run, monkeypatch):
    """A long one would take a minute: 3 tokens of its prompt and 2 of each answer are read."""
    read, scores = [], dpo.answer_logps
    monkeypatch.setattr(dpo.selfcheck, "PROMPT", 3)
    monkeypatch.setattr(dpo.selfcheck, "ANSWER", 2)
    monkeypatch.setattr(dpo, "answer_logps", lambda *a: read.append(a[1]) or scores(*a))
    monkeypatch.setattr(threads, "fastest", lambda step: step() or 1)
    run("out", max_steps=1)
    (trees,) = (trees for trees in read if trees.tokens.device.type == "cpu")  # others are planned
    assert trees.positions.max() == 3  # the last token is only predicted


def test_a_run_that_becomes_slow_says_what_would_help(run, monkeypatch, capsys):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads, "fastest", lambda step: 2)
    monkeypatch.setattr(Pace, "slower", lambda self, seconds, tokens: 4.2 * (tokens > 0))
    folder = run("out", max_steps=2)
    said = capsys.readouterr().out
    assert "Steps take 4 times as long as before" in said
    assert f"python train.py --resume {folder} --threads 1" in said
