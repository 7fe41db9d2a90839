"""Signals from the first instant to the last: no traceback, 128 + n, and nothing done twice."""

import os
import signal

import pytest
from conftest import ROOT, python_process

import train

NUMBERS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
PROGRAMS = {
    "train.py": f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')",
    "python -m run": "runpy.run_module('run', run_name='__main__', alter_sys=True)",
}
# A shell's background jobs ignore SIGINT, and so would what is started from one.
WHEN_IMPORTED = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Signal())
sys.argv = ['program', '--help']
{program}
"""
AT_EXIT = """
import atexit, os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(os.kill, os.getpid(), {number})
sys.argv = ['program', '--help']
{program}
"""


@pytest.mark.parametrize("number, status", NUMBERS)
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("module", ["torch", pytest.param("yaml", marks=pytest.mark.slow)])
def test_a_signal_while_libraries_load_leaves_without_a_word(
    tmp_path, module, program, number, status
):
    code = WHEN_IMPORTED.format(module=module, number=int(number), program=PROGRAMS[program])
    done = python_process(tmp_path, ["-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_a_signal_when_all_is_done_leaves_without_a_word(tmp_path):
    code = AT_EXIT.format(number=int(signal.SIGINT), program=PROGRAMS["train.py"])
    done = python_process(tmp_path, ["-c", code])
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("size", ["abc", "2"])
def test_processes_that_nobody_started_are_one_line(monkeypatch, capsys, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert train.main(["--plan"]) == 2
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1 and "WORLD_SIZE is set, and the processes of torchrun cannot" in said
    )


def test_a_program_that_ignores_signals_goes_on_ignoring_them(tmp_path):
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import run.leaving\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
        "assert signal.getsignal(signal.SIGTERM) is run.leaving._leave"
    )
    assert python_process(tmp_path, ["-c", code]).returncode == 0


@pytest.mark.parametrize(
    "late, number, status",
    [
        ("write_outcome", *NUMBERS[0]), ("write_merged", *NUMBERS[1]),
        ("write_summary", *NUMBERS[0]), ("print_summary", *NUMBERS[1]),
    ],
)  # fmt: skip
def test_after_the_adapter_is_written_resume_finishes_the_rest_without_training(
    model_folder, questions_csv, private_cache, plain_pictures, tmp_path, monkeypatch, capsys,
    late, number, status,
):  # fmt: skip
    argv = [
        "--model", model_folder, "--data", questions_csv, "--device", "cpu", "--dtype", "float32",
        "--max-steps", "1", "--anchor-weight", "0", "--output-dir", tmp_path / "out",
    ]  # fmt: skip
    real = getattr(train, late)

    def interrupted(*args):
        os.kill(os.getpid(), number)
        return real(*args)

    monkeypatch.setattr(train, late, interrupted)
    assert train.main([*map(str, argv)]) == status
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "Traceback" not in said.err
    assert f"Go on:  python train.py --resume {tmp_path / 'out'}" in said.out
    weights = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes()
    monkeypatch.setattr(train, late, real)
    monkeypatch.setattr(train, "accumulate", None)  # no step is taken
    assert train.main(["--resume", str(tmp_path / "out")]) == 0
    assert weights.read_bytes() == before
    assert (tmp_path / "out" / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_library_that_is_not_there_is_one_line(tmp_path, program):
    code = f"import runpy, sys; sys.modules['platformdirs'] = None\n{PROGRAMS[program]}"
    done = python_process(tmp_path, ["-c", code])
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "a library cannot be loaded: ModuleNotFoundError: import of platformdirs" in done.stderr
    assert "Traceback" in python_process(tmp_path, ["-c", code, "--debug"]).stderr
