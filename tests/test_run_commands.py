"""The command line as people meet it: wrong flags, the Hub, Ctrl-C, a second run."""

import dataclasses
import errno
import io
import os
import re
import signal
import sys
from typing import get_args

import pytest
import yaml
from conftest import QUESTIONS_CSV, ROOT, python_process
from hub import hub

import train
from dpo import Loss
from lora import ModelError
from run.__main__ import COMMANDS, main
from run.config import Config, parse
from run.console import Progress, sparkline
from run.errors import HubError, Stopped, UsageError


@pytest.mark.parametrize(
    "argv, complaint",
    [
        ("--rnak 8", "there is no flag --rnak; did you mean --rank?"),
        ("--rank eight", "argument --rank: invalid int value: 'eight'"),
        ("--rank", "argument --rank: expected one argument"),
        ("--ran 8", "there is no flag --ran"),
        ("--loss sigmund", "--loss sigmund: unknown loss 'sigmund'; did you mean sigmoid?"),
        ("--loss sigmoid=x", "--loss sigmoid=x: the weight 'x' of sigmoid is not a number above 0"),
        ("--loss sft,sft=2", "--loss sft,sft=2: sft stands twice"),
        ("--dpop-lambda -1", "--dpop-lambda -1.0 must be 0 or more"),
        ("--simpo-gamma -1", "--simpo-gamma -1.0 must be 0 or more"),
        ("--rank 0", "--rank 0 must be 1 or more"),
        ("--alpha -1", "--alpha -1.0 must be above 0"),
        ("--dropout 1", "--dropout 1.0 must be 0 or more and below 1"),
        ("--beta 0", "--beta 0.0 must be above 0"),
        ("--label-smoothing 0.5", "--label-smoothing 0.5 must be"),
        ("--eval-fraction 1", "--eval-fraction 1.0 must be 0 or more and below 1"),
        ("--lr nan", "--lr nan must be above 0"),
        ("--warmup-ratio 2", "--warmup-ratio 2.0 must be 0 to 1"),
        ("--lora-plus-ratio 0", "--lora-plus-ratio 0.0 must be above 0"),
        ("--rank-pattern v_proj", "--rank-pattern 'v_proj' is not NAME=NUMBER"),
        ("--rank-pattern v_proj=x", "--rank-pattern 'v_proj=x' is not NAME=NUMBER"),
        ("--alpha-pattern (=2", "--alpha-pattern '(=2' is not NAME=NUMBER"),
        ("--reference adapter", "--reference adapter needs --adapter DIR"),
        ("--compile on --checkpointing on", "--compile on and --checkpointing on do not go"),
        (
            "--reference base --reference-free",
            "--reference base names a reference that --reference",
        ),
        (
            "--adapter a --reference adapter --reference-free",
            "--reference adapter names a reference that --reference-free does",
        ),
        ("--reference start", "argument --reference: invalid choice: 'start'"),
        ("--shard on --quantize nf4", "--shard on is for bases that are not quantised"),
        ("--shard on --compile on", "--shard on and --compile on do not go together"),
        ("--loss group --shuffle pairs", "--loss group needs a question's answers in one step"),
        ("--loss hinge --label-smoothing 0.1", "--loss hinge: label smoothing is defined for"),
        ("--prompt-format Q:", "--prompt-format 'Q:' must hold {} once"),
        ("--reference-sync 3 --reference-free", "a reference that --reference-free does without"),
        ("--reference-sync 3 --loss simpo", "a reference that --loss simpo does without"),
        (
            "--reference adapter --adapter a --loss orpo=1,sft=2",
            "--reference adapter names a reference that --loss orpo=1,sft=2 does without",
        ),
        ("--lr inf", "--lr inf must be finite"),
        ("--beta 1e31", "--beta 1e+31 must be finite, 1e+30 at most"),
        ("--alpha-pattern v_proj=inf", "--alpha-pattern 'v_proj=inf' is not NAME=NUMBER"),
        ("--alpha-pattern v_proj=nan", "--alpha-pattern 'v_proj=nan' is not NAME=NUMBER"),
        ("--rank-pattern ((((a{99}){99}){99}){99})=2", "is not NAME=NUMBER"),
        (f"--rank-pattern {'(' * 5000}=2", "is not NAME=NUMBER"),
        ("--threads 99999999999", "--threads 99999999999 must be 1 to 1024, or auto"),
        ("--threads 0", "--threads 0 must be 1 to 1024, or auto"),
        (f"--template chat --template-kwargs a={'[' * 9999} --loss no", "--loss no: unknown loss"),
        ("--scale 0", "--scale 0 must be above 0 and up to 2, or auto"),
        ("--scale 2.1", "--scale 2.1 must be above 0 and up to 2, or auto"),
        ("--scale nan", "--scale nan must be above 0 and up to 2, or auto"),
        ("--scale full", "--scale full must be above 0 and up to 2, or auto"),
        ("--max-drift 0", "--max-drift 0.0 must be above 0"),
        ("--seed -1", "--seed -1 must be 0 or more"),
        ("--config none.yaml", "--config none.yaml: it cannot be read"),
    ],
)
def test_a_wrong_flag_or_value_is_one_line_and_status_2(argv, complaint, capsys):
    assert train.main(argv.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("train.py: ") and complaint in err


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("rnak: 8", "unknown setting 'rnak'; did you mean rank?"),
        ("rank: eight", "argument --rank: invalid int value: 'eight'"),
        ("rank: 1.5", "argument --rank: invalid int value: '1.5'"),
        ("rank: [8]", "rank: [8] is no value"),
        ("rank: null", "rank: None is no value"),
        ("merge: 1", "merge: 1 is no value"),
        ("target_modules: 3", "target_modules: 3 is no value"),
        ("target_modules: [1]", "target_modules: [1] is no value"),
        ("no_merge: true", "unknown setting 'no_merge'; write `merge: false`"),
        ("debug: true", "unknown setting 'debug'"),
        ("1: 2", "unknown setting 1"),
        ("rank", "holds no `name: value` lines"),
        ("loss: sigmund", "--loss sigmund: unknown loss 'sigmund'"),
        ("epochs: 0", "--epochs 0 must be 1 or more"),
        ("rank: [", "cannot be read"),
    ],
)
def test_a_wrong_configuration_file_is_named(tmp_path, text, complaint):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(complaint)) as error:
        parse(["--config", str(path)])
    assert str(error.value).startswith(f"--config {path}: ")


def test_a_wrong_flag_beside_a_configuration_file_is_not_the_files(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("loss: hinge\n")
    for argv in (["--loss", "sigmund"], ["--loss=sigmund"]):
        with pytest.raises(UsageError, match="^--loss sigmund: unknown loss"):
            parse(["--config", str(path), *argv])


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("rank: 4\nlr: 1e-5\ntarget_modules: o_proj\nmax_steps: null\nalpha: 3\n")
    config = parse(["--config", str(path), "--rank", "2", "--no-merge"])
    assert (config.rank, config.lr, config.target_modules) == (2, 1e-5, ("o_proj",))
    assert (config.merge, config.beta, config.alpha) == (False, 0.05, 3.0)


def test_a_configuration_does_not_change(tmp_path):
    config = parse(["--rank", "3"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rank = 4
    assert dataclasses.replace(config, rank=4).rank == 4 and config.rank == 3


def test_a_saved_configuration_reads_back_the_same(tmp_path):
    config = parse(["--rank", "3", "--lr", "1e-5", "--target-modules", "a", "b", "--rslora"])
    config.save(tmp_path / "config.yaml")
    assert parse(["--config", str(tmp_path / "config.yaml")]) == config


@pytest.mark.parametrize("loss", ["hinge", "sigmoid=0.8,sft=0.2", "apo-zero, sft = 1e-1"])
def test_a_loss_or_a_mixture_in_a_file_is_that_of_the_flag(tmp_path, loss):
    config = parse(["--loss", loss, "--dpop-lambda", "50", "--simpo-gamma", "1"])
    config.save(tmp_path / "config.yaml")
    assert parse(["--config", str(tmp_path / "config.yaml")]) == config and config.loss == loss
    assert config.loss_settings()["constants"] == (50.0, 1.0)
    (tmp_path / "plain.yaml").write_text(f"loss: {loss}\n")
    assert parse(["--config", str(tmp_path / "plain.yaml")]).loss == loss


def test_the_help_names_every_loss(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # no name is broken at its hyphen
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert ", ".join(get_args(Loss)) in shown


def test_local_paths_are_saved_whole_and_keywords_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.csv", "builtin"):
        (tmp_path / name).write_text("")
    Config(data="mine.csv", model="builtin").save(tmp_path / "config.yaml")
    config = parse(["--config", str(tmp_path / "config.yaml")])
    assert (config.data, config.model) == ((str(tmp_path / "mine.csv"),), "builtin")
    Config(data=("mine.csv:0.5", "owner/name:train:9"), eval_data="mine.csv").save(
        tmp_path / "config.yaml"
    )
    config = parse(["--config", str(tmp_path / "config.yaml")])
    assert config.data == (f"{tmp_path}/mine.csv:0.5", "owner/name:train:9")
    assert config.eval_data == (f"{tmp_path}/mine.csv",)


def test_the_help_names_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as leaving:
        parse(["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    for name in vars(Config()):
        assert f"--{'no-' if name == 'merge' else ''}{name.replace('_', '-')}" in text
    assert "(default: 0.05)" in text and "(default: auto)" in text
    assert "(default: None)" not in text and "(default: ())" not in text


def test_a_folder_that_holds_something_is_never_written_into(tmp_path, capsys):
    (tmp_path / "summary.json").write_text("{}")
    assert train.main(["--output-dir", str(tmp_path)]) == 2
    assert (
        "is not empty; name another, remove it first or go on with --resume"
        in capsys.readouterr().err
    )
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    assert train.main(["--output-dir", str(tmp_path / "summary.json" / "x")]) == 2


def test_an_empty_folder_may_be_given(tmp_path, model_folder, questions_csv):
    argv = ["--model", str(model_folder), "--data", str(questions_csv), "--max-steps", "1"]
    assert train.main([*argv, "--no-merge", "--output-dir", str(tmp_path / "new" / "run")]) == 0
    (tmp_path / "empty").mkdir()
    assert train.main([*argv, "--no-merge", "--output-dir", str(tmp_path / "empty")]) == 0


def test_ctrl_c_ends_with_130_and_no_traceback(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", interrupted)
    assert train.main([]) == 130
    assert "Traceback" not in capsys.readouterr().err


def failing(error):
    def command(*_):
        raise error

    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_in_one_line_and_its_status(name, capsys, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "merged/model.safetensors")
    for error, status, line in (
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (full, 1, "merged/model.safetensors cannot be written or read: No space left on device"),
        (ModelError("it does not fit"), 2, "it does not fit"),
        (UsageError("no such run"), 2, "no such run"),
        (HubError("no answer"), 1, "no answer"),
    ):
        monkeypatch.setattr(f"run.{name}.command", failing(error))
        assert main([name, "x"]) == status
        room = r"(; [\d,]+\.\d MiB are free in .*)?" if error is full else ""
        said = capsys.readouterr().err
        assert re.fullmatch(f"python -m run {name}: {re.escape(line)}{room}\n", said)


@pytest.mark.parametrize(
    "argv, complaint",
    [
        ("evalute", "python -m run evalute: there is no such command; did you mean evaluate?"),
        ("xyz", "python -m run xyz: there is no such command (see --help)"),
        ("evaluate run --promt x", "there is no flag --promt; did you mean --prompt?"),
        ("evaluate run --prompt x", "argument --prompt: invalid choice: 'x'"),
        ("sample", "the following arguments are required: RUN"),
        ("sample run --count 0", "--count and --max-tokens must be 1 or more"),
        ("scale run new", "the following arguments are required: --scale"),
        ("merge run", "the following arguments are required: --output"),
        ("merge run --outptu x --output y", "--outptu; did you mean --output?"),
        ("publish run", "the following arguments are required: OWNER/NAME"),
        ("merge run --outptu x", "there is no flag --outptu; did you mean --output?"),
        ("publish run ann/tuned --udpate", "--udpate; did you mean --update?"),
        ("data --colunms x", "there is no flag --colunms; did you mean --columns?"),
        ("data --rank 0", "--rank 0 must be 1 or more"),
    ],
)
def test_an_unknown_command_or_flag_is_one_line_and_status_2(argv, complaint, capsys):
    assert main(argv.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"python -m run {argv.split()[0]}: ") and complaint in err


def test_the_commands_are_listed(capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        said = capsys.readouterr().out
        assert all(f"  {name} " in said for name in COMMANDS)


def test_a_full_disk_ends_a_merge_with_one_line_and_leaves_nothing(finished):
    """No file may be larger than 40 KiB, and the model's is."""
    code = (
        "import resource, sys; from run.__main__ import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40 * 1024, resource.RLIM_INFINITY))\n"
        "sys.exit(main(['merge', 'finished', '--output', 'new']))"
    )
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    done = python_process(finished.parent, ["-c", code], TQDM_DISABLE="1")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("python -m run merge: ")
    assert os.strerror(errno.EFBIG) in done.stderr
    assert not list(finished.parent.glob("*new*")) and not list(finished.parent.glob(".*"))
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_merge_with_one_line_and_leaves_nothing(
    finished, capsys, monkeypatch, number, status
):
    """It arrives when the first shard is written."""
    module = sys.modules["lora.merge_files"]
    real = module.save_file

    def interrupted(*args, **more):
        real(*args, **more)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(module, "save_file", interrupted)
    new = finished.parent / "new"
    assert main(["merge", str(finished), "--output", str(new)]) == status
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("python -m run merge: ") and "Traceback" not in said
    assert not list(finished.parent.glob("*new*"))
    monkeypatch.undo()
    assert main(["merge", str(finished), "--output", str(new)]) == 0  # nothing is in its way
    assert (new / "model.safetensors").is_file()


def test_debug_shows_the_traceback():
    with pytest.raises(UsageError):
        train.main(["--rank", "0", "--debug"])


def test_the_readmes_commands_are_understood():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"python train\.py([^`\n]*)", text)
    assert len(commands) >= 4
    for command in commands:
        argv = command.replace("SEED", "1").split()
        if not {"--help", "--config", "--resume"} & set(argv):  # those name a run
            parse(argv)


@pytest.fixture
def program(tmp_path, model_folder):
    """Run train.py as a process of its own, against a Hub of ours or none."""

    def program(*argv, endpoint="http://127.0.0.1:1", **environment):
        return python_process(tmp_path, [str(ROOT / "train.py"), *argv], endpoint, **environment)

    return program


@pytest.fixture(scope="session")
def truthfulqa_repo(tmp_path_factory):
    """The Hub's data set in small: one Parquet file for config `generation`, split `validation`."""
    import csv
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("truthful_qa")
    rows = [
        {
            "type": r["Type"], "category": r["Category"], "question": r["Question"],
            "best_answer": r["Best Answer"],
            "correct_answers": [a.strip() for a in r["Correct Answers"].split(";")],
            "incorrect_answers": [a.strip() for a in r["Incorrect Answers"].split(";")],
            "source": r["Source"],
        }
        for r in csv.DictReader(io.StringIO(QUESTIONS_CSV))
    ]  # fmt: skip
    (folder / "generation").mkdir()
    pq.write_table(
        pa.Table.from_pylist(rows), folder / "generation" / "validation-00000-of-00001.parquet"
    )
    card = {
        "configs": [
            {"config_name": "generation",
             "data_files": [{"split": "validation", "path": "generation/validation-*"}]}
        ]
    }  # fmt: skip
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    return folder


def test_model_and_questions_come_from_the_hub(program, model_folder, truthfulqa_repo, tmp_path):
    repos = {"models/org/small": model_folder, "datasets/truthfulqa/truthful_qa": truthfulqa_repo}
    with hub(repos) as (endpoint, log):
        done = program(
            "--model", "org/small", "--output-dir", "out", "--revision", "main", endpoint=endpoint
        )
    assert done.returncode == 0, done.stderr
    assert "Data: truthfulqa, since the Hub answers" in done.stdout
    assert "5 questions, 13 pairs" in done.stdout
    assert any("model.safetensors" in line for line in log)
    config = yaml.safe_load((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/small" and config["revision"] == "main"


@pytest.mark.parametrize(
    "argv, complaint",
    [
        (["--model", "org/none"], "--model org/none is neither a folder here nor a model"),
        (["--model", "org/gated"], "--model org/gated is gated: accept its terms"),
        (["--model", "org/small", "--revision", "v9"], "--revision v9: org/small has no such"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_line(program, model_folder, argv, complaint, tmp_path):
    with hub({"models/org/small": model_folder}, gated=["models/org/gated"]) as (endpoint, _):
        done = program(*argv, "--output-dir", "out", endpoint=endpoint)
    assert done.returncode == 2
    assert complaint in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_network_models_and_data_of_the_hub_are_refused_quickly(program, model_folder):
    done = program("--model", "org/small")
    assert done.returncode == 2 and "the Hub cannot be reached" in done.stderr
    done = program("--model", str(model_folder), "--data", "truthfulqa")
    assert done.returncode == 2 and "the Hub does not answer for the data set" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_from_the_environment_or_dotenv_opens_a_gated_model(
    program, model_folder, tmp_path, questions_csv
):
    argv = ["--model", "org/gated", "--data", str(questions_csv), "--no-merge", "--output-dir"]
    repos = {"models/org/gated": model_folder}
    with hub(repos, gated=["models/org/gated"]) as (endpoint, _):
        done = program(*argv, "a", endpoint=endpoint, ACCESS_TOKEN="hf_right")
        assert done.returncode == 0, done.stderr
        (tmp_path / ".env").write_text("HF_TOKEN=hf_right\n")
        done = program(*argv, "b", endpoint=endpoint, HF_HOME=str(tmp_path / "other"))
        assert done.returncode == 0, done.stderr
    for path in [p for run in "ab" for p in (tmp_path / run).rglob("*") if p.is_file()]:
        assert b"hf_right" not in path.read_bytes(), path
    assert "hf_right" not in done.stdout + done.stderr


def test_a_sparkline_by_hand():
    """Eight steps of height; longer courses as means of equal parts: 0, 2 | 4, 6 -> 1 and 5."""
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 2, 4, 6], width=2) == "▁█"
    assert sparkline([3.0] * 3) == "▁▁▁" and sparkline([]) == ""
    assert len(sparkline(range(1000))) == 16


def test_on_a_terminal_the_course_of_the_loss_is_drawn_beside_the_bar(monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    progress = Progress("Training", 4, "pairs")
    for value in (4.0, 3.0, 2.0, 1.0):
        progress.advance(1, f"loss {value}", value)
    progress.close()
    assert "█▆▃▁ loss 1.0" in terminal.getvalue().replace("\r", "\n")
