"""Several processes: the same gradients as one, one writer, and a word when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import QUESTIONS_CSV, ROOT, relative_error, small_model
from safetensors.torch import load_file

from run import checkpoint, processes
from run.errors import ProcessDied

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
GRADIENTS = """
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from conftest import randomise, small_model
from safetensors.torch import save_file
from data import EncodedQuestion, step_batches
from dpo import answer_logps, dpo_loss
from lora import (
    Base, adapters_disabled, add_lora, base_hash, layers_checkpointed, load_sharded,
    skeleton, take_part
)
from lora.adapter import adapter_parameters
from run import processes

world = processes.join()

def work():
    model = small_model("gemma2", scale=0.1)
    if sharded := sys.argv[2] != "whole":
        meta = skeleton(Path(sys.argv[3]), torch.float32)
        model.config = meta.config
        whole, expected = Base(model, "", None, Path()), base_hash(model)
        base = load_sharded(lambda: whole, meta, torch.device("cpu"))
        model = base.model
        parts = sum(getattr(p, "to_local", lambda: p)().numel() for p in model.parameters())
        assert parts < sum(p.numel() for p in model.parameters()) * 0.7
        assert base.hash == expected
        assert all(hasattr(layer, "unshard") for layer in model.model.layers)  # one at a time
        assert model.lm_head.weight is model.model.embed_tokens.weight
        pace = partial(world.in_step, idle=partial(take_part, model))
    add_lora(model, rank=2, alpha=4)
    randomise(model, scale=0.1)
    questions = [
        EncodedQuestion((1, 10 + q), (20, 2), tuple((30 + k, 31 + q, 2) for k in range(1 + q % 3)))
        for q in range({count})
    ]
    pairs = [(q, k) for q, question in enumerate(questions) for k in range(len(question.rejected))]
    share = (world.rank, world.size)
    with layers_checkpointed(model, sys.argv[2] == "checkpointed"):
        cut = step_batches(questions, pairs, 20, weight_by="question", share=share)
        for batch in pace(cut, passes=2) if sharded else cut:
            with torch.no_grad(), adapters_disabled(model):
                anchors = answer_logps(model, batch.trees)
            logps = answer_logps(model, batch.trees)
            c, r = batch.chosen, batch.rejected
            loss = dpo_loss(
                logps[c], logps[r], anchors[c], anchors[r], loss="group", questions=batch.questions
            )
            (loss.loss @ batch.weights).backward()
    parameters = adapter_parameters(model)
    world.sum_gradients(parameters)
    assert world.gather(world.rank) == list(range(world.size))
    if world.first:
        save_file({{str(i): p.grad for i, p in enumerate(parameters)}}, sys.argv[1])

work()
world.leave()
for _ in range(100):  # a thread that was joined stays listed for a moment
    left = []
    for thread in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):
            left += [name for name in [thread.read_text()] if "gloo" in name]
    if not left:
        break
    time.sleep(0.05)
if torch.__version__ >= (2, 13):  # 2.11 keeps those of FSDP2
    assert not left, left  # one left may abort the exit
"""


def environment(folder):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ACCESS_TOKEN"))}
    return clean | {
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "count, base",
    [
        (7, "whole"),
        *(
            pytest.param(count, base, marks=pytest.mark.slow)
            for count in (7, 1)  # with one question the second process has none
            for base in ("whole", "sharded", "checkpointed")
            if (count, base) != (7, "whole")
        ),
    ],
)
def test_gradients_of_two_processes_are_those_of_one(tmp_path, count, base):
    """The base whole in each (DDP), split over both (FSDP2), and with layers computed again."""
    script = tmp_path / "gradients.py"
    script.write_text(
        GRADIENTS.format(root=str(ROOT), tests=str(ROOT / "tests"), count=count), encoding="utf-8"
    )
    config = str(tmp_path / "config")  # written once: no process reads half a file of another's
    small_model("gemma2").config.save_pretrained(config)
    for size in (1, 2):
        output, kind = str(tmp_path / f"{size}.safetensors"), "whole" if size == 1 else base
        command = [*TORCHRUN, str(size), str(script), output, kind, config]
        done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / f"{size}.safetensors") for size in (1, 2))
    assert len(one) == 16
    for name, gradient in one.items():
        assert relative_error(two[name], gradient) < 1e-6, name


@pytest.fixture
def started(model_folder, tmp_path):
    """Start train.py in some processes; return what torchrun runs as."""
    (tmp_path / "questions.csv").write_text(QUESTIONS_CSV, encoding="utf-8")

    def started(size, name, *argv):
        program = [
            *TORCHRUN, str(size), str(ROOT / "train.py"), "--model", str(model_folder),
            "--data", "questions.csv", "--dtype", "float32", "--device", "cpu", "--dropout",
            "0", "--batch-size", "3", "--grad-accum", "1", "--save-every", "2", "--output-dir",
            name, *argv,
        ]  # fmt: skip
        return subprocess.Popen(
            program, cwd=tmp_path, text=True, env=environment(tmp_path),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return started


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["off", "on"])
def test_a_run_of_two_processes_is_that_of_one_and_goes_on_as_one(started, tmp_path, shard):
    """With `--reference-sync` every batch takes two forward passes, from the third step on."""
    for size in (1, 2):
        process = started(
            size, f"run-{size}", "--epochs", "2", "--shard", shard, "--reference-sync", "3"
        )
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
        assert said.count("Held out:") == 1  # one process speaks
        assert ("split among 2 processes" in said) == (size == 2 and shard == "on")
    one, two = (lines(tmp_path / f"run-{size}") for size in (1, 2))
    assert len(one) == len(two) == 8
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-6)
    for file in ("adapter/adapter_model.safetensors", "merged/model.safetensors"):
        first, second = (load_file(tmp_path / f"run-{size}" / file) for size in (1, 2))
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-5)
    measured = [
        json.loads((tmp_path / f"run-{size}" / "evaluation.json").read_text()) for size in (1, 2)
    ]
    assert measured[1]["after"] == pytest.approx(measured[0]["after"], rel=1e-3)
    for one, two in zip(*(m["dial"] for m in measured), strict=True):
        kinds = one.pop("perplexities"), two.pop("perplexities")
        assert kinds[1] == pytest.approx(kinds[0], rel=1e-2)
        assert two == pytest.approx(one, rel=1e-2, abs=1e-3)
    assert len(checkpoint.newest(tmp_path / "run-2").parts["generators"][1][0]) > 0

    other = {"on": "off", "off": "on"}[shard]
    for size in (1, 2):  # each goes on as the other was
        process = started(3 - size, f"run-{size}", "--resume", "--epochs", "3", "--shard", other)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
        assert len(lines(tmp_path / f"run-{size}")) == 12


def workers(parent):
    """The processes that torchrun started, by their rank."""
    found = {}
    for child in subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False
    ).stdout.split():
        with open(f"/proc/{child}/environ", "rb") as file:
            names = dict(item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item)
        if b"RANK" in names:
            found[int(names[b"RANK"])] = int(child)
    return found


@pytest.mark.slow
def test_when_a_process_dies_the_run_ends_with_whole_files_and_goes_on_with_fewer(
    started, tmp_path
):
    process = started(2, "run", "--epochs", "60")
    log = tmp_path / "run" / "metrics.jsonl"
    for _ in range(1200):
        if log.exists() and log.read_text().count("\n") > 5:
            break
        time.sleep(0.05)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    point = checkpoint.newest(tmp_path / "run")
    assert point is not None and point.step >= 2
    assert point.step < 240 and not (tmp_path / "run" / "adapter").exists()
    said, _ = (again := started(1, "run", "--resume", "--epochs", "60")).communicate(timeout=240)
    assert again.returncode == 0 and f"step {point.step} of 240" in said, said
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(240))


def test_a_lost_process_is_said_in_one_line(monkeypatch):
    def gone(*_, **__):
        raise RuntimeError("Connection closed by peer\nmore")

    monkeypatch.setattr(torch.distributed, "all_gather_object", gone)
    monkeypatch.setattr(torch.distributed, "all_reduce", gone)
    world = processes.World(0, 2)
    with pytest.raises(ProcessDied, match=r"another process of this run is gone \(Conn"):
        world.gather(1)
    with pytest.raises(ProcessDied):
        world.sum_gradients([torch.nn.Parameter(torch.zeros(2))])


def test_questions_are_shared_out_without_loss_or_repetition():
    shares = [list(processes.World(rank, 3).share(range(10))) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(10))
    assert [len(share) for share in shares] == [4, 3, 3]
