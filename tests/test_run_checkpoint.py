"""A run that is stopped, killed or starved at any moment, and goes on as if nothing had been."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, python_process, small_model
from safetensors.torch import load_file

import data
import dpo
import train
from dpo import OutOfMemory, TokenBudget
from run import checkpoint
from run.commands import Stop
from run.config import Config, parse
from run.errors import Stopped, UsageError
from run.folder import claimed, log_line, metrics_log

LAST = Path("adapter") / "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def own_cache(private_cache, plain_pictures):
    return private_cache


@pytest.fixture
def run(model_folder, questions_csv, tmp_path):
    """Run with some settings into a folder of that name; return the folder."""

    def run(name, stop=None, **more):
        settings = {
            "model": str(model_folder), "data": str(questions_csv), "dtype": "float32",
            "device": "cpu", "dropout": 0.3, "epochs": 4, "lr": 1e-3, "merge": False,
            "batch_size": 5, "grad_accum": 1, "save_every": 3, "output_dir": str(tmp_path / name),
            "scale": "1",
        }  # fmt: skip
        return train.run(Config(**(settings | more)), stop)

    return run


class After(Stop):
    """A stop signal that arrives after a given step; the run sees it in the next one."""

    def __init__(self, step):
        super().__init__()
        self.steps, self.at = 0, step

    @property
    def received(self):
        return signal.SIGTERM if self.steps > self.at else 0

    @received.setter
    def received(self, _):
        pass


@pytest.fixture
def counted(monkeypatch):
    """Count the steps of a run in its stop."""

    def counted(stop):
        real = dpo.step_metrics

        def count(log, beta):
            stop.steps += 1
            return real(log, beta)

        monkeypatch.setattr(dpo, "step_metrics", count)
        return stop

    return counted


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("shuffle", ["questions", "pairs"])
@pytest.mark.parametrize(
    "more",
    [
        {}, {"reference_sync": 2}, {"eval_every": 2, "best": "mc2", "lr": 0.1},
        {"anchor_weight": 1.0, "anchor_samples": 2, "anchor_tokens": 5},
    ],
    ids=str,
)  # fmt: skip
def test_three_steps_a_stop_and_five_more_are_eight_steps_bit_for_bit(run, counted, shuffle, more):
    """10 pairs an epoch, 5 a step: 2 steps an epoch, 8 in all, dropout on."""
    more = more | {"shuffle": shuffle, "batch_size": 3, "max_steps": 8}  # 4 steps, the last short
    whole = run("whole", **more)
    with pytest.raises(Stopped, match="SIGTERM"):
        run("cut", counted(After(1)), **more)
    cut = whole.with_name("cut")
    assert len(lines(cut)) == 3 and not (cut / "adapter").exists()
    run("cut", resume="", **more)
    assert (cut / LAST).read_bytes() == (whole / LAST).read_bytes()
    assert lines(cut) == lines(whole)
    for name in ("before", "after"):
        first, second = (json.loads((f / "evaluation.json").read_text()) for f in (cut, whole))
        assert first[name] == second[name]
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (cut, whole))
    assert all(ours[name] == theirs[name] for name in ("tokens", "pairs", "best"))


def test_the_starting_adapter_stays_the_reference_also_when_its_scores_are_lost(
    run, counted, tmp_path, monkeypatch
):
    more = {"adapter": str(run("start", epochs=1) / "adapter")}
    whole = run("whole", **more)
    with pytest.raises(Stopped):
        run("cut", counted(After(3)), **more)
    empty = tmp_path / "empty"
    monkeypatch.setattr("run.folder.cache_folder", lambda name: empty / name)
    cut = run("cut", resume="", **more)
    assert (cut / LAST).read_bytes() == (whole / LAST).read_bytes()


def test_a_kill_between_two_checkpoints_loses_the_steps_between_them_and_nothing_else(
    run, monkeypatch
):
    whole = run("whole")
    real, calls = checkpoint.save, []

    def killed(folder, point, keep, log):
        calls.append(point.step)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(folder, point, keep, log)

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    monkeypatch.setattr(checkpoint, "save", real)
    cut = run("cut", resume="")
    assert calls == [3, 6] and lines(cut) == lines(whole)
    assert (cut / LAST).read_bytes() == (whole / LAST).read_bytes()


def test_the_newest_checkpoints_are_kept_and_each_can_be_gone_on_from(run):
    whole = run("whole", keep=2)
    kept = checkpoint.saved(whole)
    assert [path.name for path in kept] == ["step-00000008", "step-00000006"]
    again = (whole / LAST).read_bytes()
    run("whole", resume=str(kept[1]))
    assert (whole / LAST).read_bytes() == again
    for path in kept:
        assert {p.name for p in path.iterdir()} == {"state.safetensors", "state.json"}
        json.loads((path / "state.json").read_text())
        load_file(path / "state.safetensors")


def test_going_on_from_an_earlier_checkpoint_forgets_the_later_ones(run, counted):
    whole = run("whole", keep=9)
    assert [p.name[-1] for p in checkpoint.saved(whole)] == ["8", "6", "3"]
    with pytest.raises(Stopped):  # in its second step
        run("whole", counted(After(0)), resume=str(checkpoint.saved(whole)[-1]))
    assert [p.name[-1] for p in checkpoint.saved(whole)] == ["5", "3"]
    assert [line["step"] for line in lines(whole)] == [0, 1, 2, 3, 4]
    assert [line["step"] for line in lines(run("whole", resume=str(whole)))] == [*range(8)]


def test_a_stop_during_the_last_step_is_heeded_too(run, counted):
    with pytest.raises(Stopped):
        run("late", counted(After(7)))
    folder = checkpoint.saved(run("late", resume=""))[0].parents[1]
    assert (folder / "summary.json").is_file() and len(lines(folder)) == 8


def test_a_finished_run_without_checkpoints_is_not_begun_anew(run):
    whole = run("whole")
    log = (whole / "metrics.jsonl").read_text()
    shutil.rmtree(whole / "checkpoints")
    with pytest.raises(UsageError, match="is finished, and has no checkpoint to go on from"):
        run("whole", resume=str(whole))
    assert (whole / "metrics.jsonl").read_text() == log


def test_a_stop_while_old_checkpoints_are_removed_leaves_none_in_half(tmp_path, monkeypatch):
    def save(step):
        point = checkpoint.Checkpoint(step, {"a": {0: torch.ones(2)}}, {"config": {}})
        with (tmp_path / "metrics.jsonl").open("a") as log:
            checkpoint.save(tmp_path, point, 2, log)

    def stopped(path, **_):
        if (path / checkpoint.FACTS).exists():
            (path / checkpoint.FACTS).unlink()
            raise KeyboardInterrupt

    save(1), save(2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", lambda path, **_: None)
        save(3)  # as if it were killed before it removed anything
        assert len(list((tmp_path / "checkpoints").iterdir())) > 2
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.shutil, "rmtree", stopped)
        save(4)
    assert [checkpoint.load(path).step for path in checkpoint.saved(tmp_path)] == [4, 3]
    save(5)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000004", "step-00000005"]


def test_more_epochs_may_be_added_and_a_finished_run_changes_nothing(run):
    short = run("short", epochs=2)
    before = (short / LAST).read_bytes()
    run("short", resume="", epochs=2)
    assert (short / LAST).read_bytes() == before and len(lines(short)) == 4
    run("short", resume="", epochs=3)
    assert len(lines(short)) == 6 and (short / LAST).read_bytes() != before


@pytest.mark.parametrize(
    "more, complaint",
    [
        ({"lr": 2e-3}, "--lr was 0.001 and is 0.002"),
        ({"rank": 4, "beta": 0.5}, "--rank was 8 and is 4, --beta was 0.05 and is 0.5"),
        ({"seed": 3}, "--seed was 0 and is 3"),
        ({"epochs": 1}, "--epochs was 4 and is 1"),
        ({"max_steps": 3}, "--max-steps was None and is 3"),
        ({"loss": "hinge"}, "--loss was sigmoid"),
        ({"target_modules": ("q_proj",)}, "--target-modules was"),
    ],
    ids=str,
)
def test_a_changed_setting_that_makes_another_run_is_refused_by_name(run, more, complaint):
    folder = run("out")
    before = (folder / LAST).read_bytes()
    with pytest.raises(UsageError, match=complaint):
        run("out", resume="", **more)
    assert (folder / LAST).read_bytes() == before


def test_what_may_change_does_and_settings_of_before_are_understood():
    config = Config(epochs=2)
    assert config.changes(config.settings()) == ""
    assert Config(epochs=3, keep=5, save_every=7, merge=False).changes(config.settings()) == ""
    assert Config(epochs=2).changes({}) == ""  # settings that an earlier version did not know


def test_other_data_or_another_base_is_refused(run, questions_csv, model_folder, tmp_path):
    run("out", epochs=1)
    text = questions_csv.read_text()
    questions_csv.write_text(text.replace("Bats are blind", "Bats cannot see"))
    with pytest.raises(UsageError, match="the data is not the one"):
        run("out", resume="", epochs=1)
    questions_csv.write_text(text)
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    small_model("gemma2", scale=0.2, vocab_size=352).save_pretrained(other)
    with pytest.raises(UsageError, match="--model was"):
        run("out", resume="", epochs=1, model=str(other))


def test_a_checkpoint_cut_or_changed_anywhere_is_passed_over_for_the_one_before(run, capsys):
    """100 places of each file: cut there, or one bit flipped."""
    folder = run("out")
    newest, before = checkpoint.saved(folder)
    passed = 0
    for name in ("state.safetensors", "state.json"):
        whole = (newest / name).read_bytes()
        for i in range(50):
            at = i * len(whole) // 50
            flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
            for damaged in (whole[:at], flipped):
                (newest / name).write_bytes(damaged)
                found = checkpoint.newest(folder)
                harmless = name == "state.json" and found.path == newest
                if harmless:  # the last digit of a number, which is read as the same one
                    assert json.loads(damaged) == json.loads(whole)
                    continue
                assert found.path == before
                passed += 1
                assert str(newest) in capsys.readouterr().out
        (newest / name).write_bytes(whole)
    assert passed >= 150
    (newest / "state.json").unlink()
    (before / "state.json").write_text("{}")
    with pytest.raises(UsageError, match="step-00000006 cannot be used: it lacks 'format'"):
        checkpoint.newest(folder)
    with pytest.raises(UsageError, match="step-00000006 cannot be used"):
        checkpoint.find(str(before), folder)


def test_a_checkpoint_of_an_older_format_is_refused_by_its_number(run):
    folder = run("out", epochs=1)
    for path in checkpoint.saved(folder):
        facts = json.loads((path / checkpoint.FACTS).read_text())
        (path / checkpoint.FACTS).write_text(json.dumps(facts | {"format": 2}))
    said = r"step-00000002 cannot be used: its format is 2, and this program reads 5"
    with pytest.raises(UsageError, match=said):
        run("out", resume="", epochs=1)


def test_what_a_killed_write_left_is_removed_when_the_folder_is_claimed_again(tmp_path):
    """A process that is killed within `whole` leaves its hidden folder, whatever is in it."""
    code = (
        "import os, signal; from pathlib import Path; from lora.files import whole, whole_folder\n"
        "with whole(Path('run/README.md')) as file, whole_folder(Path('run/merged')) as folder:\n"
        "    file.write_text('half'); (folder / 'model.safetensors').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert python_process(tmp_path, ["-c", code]).returncode == -signal.SIGKILL
    run = tmp_path / "run"
    (run / "config.yaml").write_text("rank: 8\n")
    (run / ".mine").write_text("kept")
    assert len(list(run.glob(".*.part"))) == 2
    with claimed(str(run), resume=True):
        assert sorted(os.listdir(run)) == [".mine", "config.yaml"]


def test_a_folder_in_use_is_refused_and_a_dead_process_holds_no_lock(tmp_path):
    code = (
        "import sys, time; from run.folder import claimed\n"
        f"with claimed({str(tmp_path / 'run')!r}):\n    print('in', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "in\n"
    with pytest.raises(UsageError, match="in use by another run"), claimed(str(tmp_path / "run")):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    with claimed(str(tmp_path / "run"), resume=True) as folder:
        assert folder.is_dir()


def test_a_folder_that_nothing_came_of_is_removed(tmp_path):
    with pytest.raises(RuntimeError), claimed(str(tmp_path / "runs/today/run")):
        raise RuntimeError
    assert not (tmp_path / "runs").exists()  # made for it, as the two within
    (tmp_path / "mine").mkdir()
    for folder in ("mine", "mine/run"):
        with pytest.raises(RuntimeError), claimed(str(tmp_path / folder)):
            raise RuntimeError
    assert not any((tmp_path / "mine").iterdir())  # it was there before


def test_the_log_goes_on_where_the_checkpoint_stood(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"ste')
    with metrics_log(tmp_path, 2) as log:
        log_line(log, {"step": 2})
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n'


def test_a_run_whose_folder_vanishes_says_so(run, monkeypatch, tmp_path):
    real = checkpoint.save

    def vanish(*args):
        shutil.rmtree(tmp_path / "out")
        return real(*args)

    monkeypatch.setattr(checkpoint, "save", vanish)
    with pytest.raises(FileNotFoundError, match="the run's folder is gone"):
        run("out")
    assert not (tmp_path / "out" / "adapter").exists()


def poisoned(monkeypatch, at):
    """Make the loss of the given calls not a number."""
    real, calls = train.dpo_loss, []

    def loss(*args, **more):
        calls.append(1)
        result = real(*args, **more)
        return result._replace(loss=result.loss * float("nan")) if len(calls) in at else result

    monkeypatch.setattr(train, "dpo_loss", loss)


def test_a_loss_that_is_not_finite_stops_before_anything_is_changed(run, monkeypatch, tmp_path):
    poisoned(monkeypatch, at=[5])
    with pytest.raises(dpo.NumericError) as error:
        run("out")
    message = str(error.value)
    assert "step 4: loss, grad_norm not finite" in message and "questions.csv, line" in message
    assert "the largest activation" in message and "model.layers" in message
    assert checkpoint.newest(tmp_path / "out").step == 3
    monkeypatch.undo()


def test_steps_that_are_not_finite_may_be_skipped_and_counted(run, monkeypatch):
    poisoned(monkeypatch, at=[2, 5])
    folder = run("out", skip_nonfinite=True)
    assert json.loads((folder / "summary.json").read_text())["skipped"] == 2
    assert [line.get("skipped") for line in lines(folder)] == [None, 1, None, None, 2] + [None] * 3
    assert all(tensor.isfinite().all() for tensor in load_file(folder / LAST).values())


class Late(train.Training):
    """The log of a GPU's run, which comes a step later."""

    def __init__(self, *given):
        super().__init__(*given)
        self.late = True


def test_a_log_that_comes_a_step_later_has_the_same_lines(run, monkeypatch):
    """Saved after steps 3, 6 and 8, and evaluated after 4 and 8: there it is awaited.

    Step 1 is not finite, and is skipped without anybody knowing before step 2 is made.
    """
    poisoned(monkeypatch, at=[2])
    settings = {"skip_nonfinite": True, "eval_every": 4}
    whole = run("whole", **settings)
    poisoned(monkeypatch, at=[2])
    seen, accumulate, step_metrics = [], train.accumulate, dpo.step_metrics
    monkeypatch.setattr(train, "Training", Late)
    monkeypatch.setattr(train, "accumulate", lambda *a: seen.append("made") or accumulate(*a))
    monkeypatch.setattr(
        dpo, "step_metrics", lambda log, beta: seen.append("logged") or step_metrics(log, beta)
    )
    late = run("late", **settings)
    after_each = [0, 1, 2, 1, 0, 2, 0, 2]
    assert seen == [one for count in after_each for one in ["made", *["logged"] * count]]
    assert lines(late) == lines(whole) and lines(late)[1] == {"step": 1, "skipped": 1}
    assert (late / LAST).read_bytes() == (whole / LAST).read_bytes()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate ..."),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_halves_the_budget_and_repeats_the_step_exactly(run, monkeypatch, error):
    """In the third micro-batch of training; without dropout the adapters come out the same."""
    whole = load_file(run("whole", dropout=0.0) / LAST)
    real, budgets = data.step_batches, []

    def starved(questions, pairs, budget, *more):
        budgets.append(budget)
        for batch in real(questions, pairs, budget, *more):
            if len(budgets) == 6:  # the first three are the plan
                raise error
            yield batch

    monkeypatch.setattr(data, "step_batches", starved)
    folder = run("starved", dropout=0.0)
    assert budgets == [2048] * 6 + [1024] * 6
    for name, tensor in load_file(folder / LAST).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-6)
    assert checkpoint.newest(folder).parts["counts"]["budget"] == 1024


def test_a_scoring_pass_keeps_what_it_has_when_memory_runs_out(run, monkeypatch):
    expected = json.loads((run("whole") / "evaluation.json").read_text())
    real, calls = dpo.scoring.answer_logps, []

    def starved(model, batch):
        calls.append(1)
        if len(calls) in (1, 3):
            raise MemoryError
        return real(model, batch)

    monkeypatch.setattr(dpo.scoring, "answer_logps", starved)
    found = json.loads((run("starved") / "evaluation.json").read_text())
    assert found["after"] == pytest.approx(expected["after"], abs=1e-3)


def within_memory(work, tokens, **more):
    """Do it as a step does; return what it gave, and the tokens that it was done with."""
    budget = TokenBudget(tokens, **more)
    while True:
        with budget:
            return work(budget.tokens), budget.tokens


def test_the_random_numbers_of_a_repeated_step_are_the_same():
    drawn = []

    def work(budget):
        drawn.append(torch.rand(3))
        if len(drawn) < 3:
            raise MemoryError
        return budget

    assert within_memory(work, 1000) == (250, 250)
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[1], drawn[2])
    with pytest.raises(OutOfMemory, match="even with one question at a time"):
        within_memory(hungry, 16)
    with pytest.raises(RuntimeError, match="something else"):
        within_memory(wrong, 1000)
    calls = []
    with pytest.raises(OutOfMemory, match="more processes"):  # others wait in the middle of it
        within_memory(lambda budget: calls.append(budget) or hungry(budget), 1000, alone=False)
    assert calls == [1000]


def hungry(budget):
    raise MemoryError


def wrong(budget):
    raise RuntimeError("something else")


@pytest.mark.parametrize(
    "argv, complaint",
    [
        (["--resume"], "--resume needs the run's folder"),
        (["--resume", "none"], "--resume none: there is no such folder"),
        (["--save-every", "0"], "--save-every 0 must be 1 or more"),
        (["--keep", "0"], "--keep 0 must be 1 or more"),
    ],
)
def test_a_resume_that_cannot_be_is_refused(argv, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse(argv)


def test_a_folder_that_is_no_run_is_not_gone_on_with(tmp_path):
    (tmp_path / "README.md").write_text("Mine.\n")
    with pytest.raises(UsageError, match=r"--resume: .* is no run, since it has no config.yaml"):
        train.run(parse(["--resume", str(tmp_path)]))
    assert (tmp_path / "README.md").read_text() == "Mine.\n" and len([*tmp_path.iterdir()]) == 1


def test_resume_takes_its_settings_from_the_run(tmp_path):
    point = tmp_path / "run" / "checkpoints" / "step-00000003"
    point.mkdir(parents=True)
    Config(lr=3e-4, epochs=2).save(tmp_path / "run" / "config.yaml")
    for argv in (
        ["--resume", str(tmp_path / "run")],
        ["--resume", str(point)],
        ["--resume", str(point.parent)],
        ["--resume", "--output-dir", str(tmp_path / "run")],
        ["--resume", str(tmp_path / "run"), "--config", str(tmp_path / "run" / "config.yaml")],
    ):
        config = parse([*argv, "--epochs", "5"])
        assert (config.lr, config.epochs) == (3e-4, 5)
        assert config.output_dir == str(tmp_path / "run") and config.resume is not None
    with pytest.raises(UsageError, match="is no part of --output-dir"):
        parse(["--resume", str(point), "--output-dir", str(tmp_path / "other")])


# Real processes: signals, a full disk, a token.


@pytest.fixture
def started(model_folder, questions_csv, tmp_path):
    """Start train.py as a process; return it and the output folder."""

    def started(*argv, name="out", wrapper=(), **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ACCESS_TOKEN"))}
        program = [
            *wrapper, sys.executable, str(ROOT / "train.py"), "--model", str(model_folder),
            "--data", str(questions_csv), "--dtype", "float32", "--device", "cpu", "--no-merge",
            "--batch-size", "1", "--grad-accum", "1", "--save-every", "1", "--output-dir", name,
            "--compile", "off",
            *argv,
        ]  # fmt: skip
        return subprocess.Popen(
            program, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=clean | {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache"),
                         "OMP_NUM_THREADS": "1"} | environment,
        )  # fmt: skip

    return started


def wait_for(path, lines=3):
    for _ in range(600):
        if path.exists() and path.read_text().count("\n") >= lines:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(started, tmp_path, number, status):
    process = started("--epochs", "500")
    wait_for(tmp_path / "out" / "metrics.jsonl")
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert "Go on:  python train.py --resume out" in said and "Traceback" not in said
    steps = len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert checkpoint.newest(tmp_path / "out").step == steps
    again = started("--resume", "out", "--epochs", "500")
    wait_for(tmp_path / "out" / "metrics.jsonl", steps + 2)
    again.send_signal(number)
    again.communicate(timeout=60)
    assert again.returncode == status
    assert checkpoint.newest(tmp_path / "out").step > steps


def test_a_second_signal_leaves_at_once_with_whole_files(started, tmp_path):
    process = started("--epochs", "500")
    wait_for(tmp_path / "out" / "metrics.jsonl")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode in (130, 143) and "Traceback" not in said
    for path in checkpoint.saved(tmp_path / "out"):
        checkpoint.load(path)


def test_a_full_disk_ends_with_one_line_and_the_last_checkpoint_whole(started, tmp_path):
    """No file may be larger than 40 KiB: the log grows beyond it after some hundred steps."""
    limit = ["bash", "-c", 'ulimit -f 40; exec "$@"', "limited"]
    process = started("--epochs", "500", wrapper=limit)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert os.strerror(errno.EFBIG) in said and "Traceback" not in said
    assert "Go on:  python train.py --resume out" in said or not checkpoint.saved(tmp_path / "out")
    for path in checkpoint.saved(tmp_path / "out"):
        checkpoint.load(path)


def test_the_token_is_nowhere_in_what_a_run_writes_and_prints(started, tmp_path):
    token = "hf_" + "S3cretS3cretS3cretS3cretS3cret"
    (tmp_path / ".env").write_text(f"HF_TOKEN={token}\n")
    process = started(
        "--epochs", "2", "--debug", ACCESS_TOKEN=token, HF_TOKEN=token, HF_HUB_VERBOSITY="debug"
    )
    arguments = Path(f"/proc/{process.pid}/cmdline")
    while process.poll() is None:
        with open(arguments, "rb") as file:
            assert token.encode() not in file.read()
        time.sleep(0.2)
    said = process.stdout.read()
    process.stdout.close()
    assert process.returncode == 0, said
    failing = started("--model", "org/none", "--debug", name="b", ACCESS_TOKEN=token)
    said += failing.communicate(timeout=60)[0]
    assert failing.returncode == 1 and token not in said  # --debug raises
    (tmp_path / ".env").unlink()
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 10
    for path in files:
        assert token.encode() not in path.read_bytes(), path


def test_what_other_users_may_not_read_is_not_made_readable(run, questions_csv, model_folder):
    model_folder.chmod(0o755)  # folders of tests are closed
    assert run("open", epochs=1).stat().st_mode & 0o077  # as the system's mask has it
    questions_csv.chmod(0o600)
    assert run("closed", epochs=1).stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_runs_killed_at_random_instants_come_out_bit_for_bit():
    """A few kills; `python tests/kill_often.py --kills 50` does it at length."""
    script = ROOT / "tests" / "kill_often.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "4"], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0 and "bitwise equal" in done.stdout, done.stderr


def test_env_files_are_ignored_by_git():
    assert ".env" in (ROOT / ".gitignore").read_text().split()


def test_settings_in_a_checkpoint_are_those_of_the_run(run):
    folder = run("out", epochs=1)
    facts = checkpoint.newest(folder).facts
    assert facts["config"] == yaml.safe_load((folder / "config.yaml").read_text())


def edited(path, remade=True, **changes):
    """Change facts of a checkpoint, and make its digest anew as a careful hand would."""
    facts = json.loads((path / checkpoint.FACTS).read_text()) | changes
    if remade:
        facts["sha256"] = checkpoint._digest((path / checkpoint.TENSORS).read_bytes(), facts)
    (path / checkpoint.FACTS).write_text(json.dumps(facts))


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of step 3, without a run around it."""
    parts = {"adapter": {0: torch.ones(2)}, "counts": {"step": 3, "budget": 64}}
    with (tmp_path / "metrics.jsonl").open("a") as log:
        checkpoint.save(tmp_path, checkpoint.Checkpoint(3, parts, {"config": {"lr": 1.0}}), 2, log)
    (path,) = checkpoint.saved(tmp_path)
    assert checkpoint.load(path).step == 3
    return path


@pytest.mark.parametrize(
    "changes", [{"step": 2}, {"config": {"lr": 2.0}}, {"parts": {}}, {"data": "0"}], ids=str
)
def test_a_changed_fact_is_named_like_a_flipped_tensor(saved, changes):
    edited(saved, remade=False, **changes)
    with pytest.raises(UsageError, match=r"step-00000003 cannot be used: it is not what was"):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", ["format", "step", "config", "parts", "structure", "sha256"])
def test_a_fact_that_is_missing_is_named(saved, name):
    facts = json.loads((saved / checkpoint.FACTS).read_text())
    del facts[name]
    (saved / checkpoint.FACTS).write_text(json.dumps(facts))
    with pytest.raises(UsageError, match=rf"cannot be used: it (lacks '{name}'|is not what)"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"step": 2}, "it counts 3 steps, and calls itself step 2"),
        ({"step": 10**30}, "is no count of steps or tokens"),
        ({"step": -1}, "no valid step"),
        ({"step": True}, "no valid step"),
        ({"config": 3}, "no valid step or settings"),
        ({"parts": {"['adapter'][0]": None, "['counts']['step']": 3, "['counts']['budget']": -1}},
         "-1 is no count of steps or tokens"),
        ({"parts": {"['adapter'][0]": None, "['counts']['step']": 3, "['counts']['budget']": "x"}},
         "'x' is no count"),
        ({"parts": {"['adapter'][0]": None, "['counts']['step']": 3, "['counts']['budget']": 1e9}},
         "1000000000.0 is no count"),
        ({"structure": "[" * 100_000}, "cannot be used"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_numbers_out_of_range_are_named_also_where_the_digest_was_made_anew(saved, changes, said):
    edited(saved, **changes)
    with pytest.raises(UsageError, match="step-00000003 cannot be used: ") as error:
        checkpoint.load(saved)
    assert said in str(error.value)


def test_a_part_that_is_missing_or_of_another_form_is_named(run, tmp_path):
    folder = run("out", epochs=1, keep=1)
    (path,) = checkpoint.saved(folder)
    whole = checkpoint.load(path)
    for parts in (
        {name: part for name, part in whole.parts.items() if name != "optimizer"},
        whole.parts | {"optimizer": {"state": {}, "param_groups": []}},
        whole.parts | {"best": {}},
    ):
        with (folder / "metrics.jsonl").open("a") as log:
            facts = {n: whole.facts[n] for n in ("config", "data", "base")}
            checkpoint.save(folder, whole._replace(parts=parts, facts=facts), 1, log)
        with pytest.raises(UsageError, match=r"the checkpoint .* cannot be used"):
            run("out", resume="", epochs=1)
