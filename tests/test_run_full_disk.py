"""A disk, or a file, that has no more room: one line, whole files only, and `--resume` finishes."""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, python_process
from tokenizers import Tokenizer

import lora
import train
from run.console import print_rows
from run.folder import log_line, metrics_log, write_refused

LEVELS = 20


@pytest.fixture(autouse=True)
def own_cache(private_cache):
    return private_cache


@pytest.fixture(autouse=True)
def large_pictures(monkeypatch):
    """Pictures as large as real ones, which are not rendered."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path, **how: path.write_bytes(b"drawn" * 20_000)
    )


@contextlib.contextmanager
def files_up_to(size):
    """Within the block no file may be larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def disk(tmp_path):
    """A small file system, of a size that can be changed; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")

    def resized(size):
        command = ["mount", "-o", f"remount,size={size // 1024 + 1}k", str(folder)]
        subprocess.run(command, check=True)
        return folder

    yield resized
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def run(model_folder, questions_csv, capsys):
    """Run train.py into a folder; return its status and the one line that it ended with."""

    def run(folder, *more):
        argv = [
            "--model", model_folder, "--data", questions_csv, "--dtype", "float32", "--device",
            "cpu", "--epochs", "2", "--anchor-weight", "0", "--save-every", "3", "--compile", "off",
            "--output-dir", folder, *more,
        ]  # fmt: skip
        status = train.main([*map(str, argv)])
        said = capsys.readouterr().err
        assert said.count("\n") <= 1 and "Traceback" not in said
        return status, said

    return run


def sizes(folder):
    return {p.relative_to(folder): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def check_stopped_and_finish(run, folder, stopped, whole):
    """What is left is whole, and the run goes on from there to the same adapter."""
    status, said = stopped
    assert status in (0, 1)
    if status:
        assert f"{folder}" in said and "cannot be written or read: " in said
        if os.strerror(errno.ENOSPC) in said:
            assert "MiB are free in " in said
    if folder.exists():
        for path in folder.rglob("*"):
            assert not path.name.startswith("."), path
            if path.suffix in (".json", ".jsonl"):
                text = path.read_text()
                for value in text.splitlines() if path.suffix == ".jsonl" else [text]:
                    json.loads(value)
    assert run(folder, "--resume")[0] == 0
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert sizes(folder).keys() == sizes(whole).keys()


SOME = pytest.mark.parametrize(
    "levels", [(2, 14, 19), pytest.param(range(LEVELS), marks=pytest.mark.slow)], ids=str
)


@SOME
def test_a_file_that_may_not_grow_ends_a_run_that_then_goes_on(run, tmp_path, levels):
    run(whole := tmp_path / "whole")
    largest = max(sizes(whole).values())
    for level in levels:
        folder = tmp_path / f"out-{level}"
        with files_up_to(level * largest // LEVELS):
            stopped = run(folder)
        assert stopped[0] == 1
        check_stopped_and_finish(run, folder, stopped, whole)


@SOME
def test_a_disk_that_is_full_ends_a_run_that_then_goes_on(run, disk, tmp_path, levels):
    run(whole := tmp_path / "whole")
    pages = sum(size // 4096 + 2 for size in sizes(whole).values())
    for level in levels:
        folder = disk(max(level * pages // LEVELS, 1) * 4096) / f"out-{level}"
        stopped = run(folder)
        check_stopped_and_finish(run, disk(2**27) / folder.name, stopped, whole)
        shutil.rmtree(folder)


def test_a_line_of_the_log_is_whole_or_absent(disk):
    folder = disk(8192)
    with metrics_log(folder, 0) as log, pytest.raises(OSError, match="metrics.jsonl") as error:
        for step in range(10_000):
            log_line(log, {"step": step})
    assert error.value.errno == errno.ENOSPC
    assert "metrics.jsonl cannot be written or read: No space left on device; 0.0 MiB are free" in (
        write_refused(error.value)
    )
    text = (folder / "metrics.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in text.splitlines()]
    assert text.endswith("\n") and steps == list(range(len(steps))) and len(steps) > 100


def test_lines_of_the_log_that_a_disk_has_damaged_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\n{"st\xff\xfe": 1}\n\0\0\n{"step": 2}\n')
    with metrics_log(tmp_path, 3) as log:
        log_line(log, {"step": 3})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [0, 2, 3]


def test_libraries_in_rust_are_understood_and_other_errors_are_left_alone(tmp_path, tokenizer):
    path = tmp_path / "tokenizer.json"
    with files_up_to(100), pytest.raises(OSError, match="tokenizer.json") as error:
        with lora.writing(path):
            Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()).save(str(path))
    assert error.value.errno == errno.EFBIG and error.value.filename == str(path)
    with pytest.raises(RuntimeError, match="something else"), lora.writing(path):
        raise RuntimeError("something else (os error 2)")
    with pytest.raises(PermissionError) as error, lora.writing(path):
        raise PermissionError(errno.EACCES, "no", "elsewhere")
    assert error.value.filename == "elsewhere"


def test_an_output_that_is_closed_is_no_trouble(monkeypatch, capsys):
    monkeypatch.setattr(train, "run", lambda *_: print_rows([("a", "b")]))
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", None)
        assert train.main([]) == 0
        sys.stdout.close()
    assert capsys.readouterr().err == ""


def test_an_output_that_has_no_room_is_one_line(tmp_path):
    code = (
        "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        f"sys.path.insert(0, {str(ROOT)!r}); import train\n"
        "train.run = lambda *_: print('x', flush=True)\n"
        "sys.exit(train.main([]))"
    )
    done = python_process(tmp_path, ["-c", code])
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr
