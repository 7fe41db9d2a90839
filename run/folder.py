"""Where a run writes: its folder, its log and pictures, and the cache that outlives it."""

import atexit
import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from data import split_share
from dpo import curves_figure
from lora.files import FULL, PART, remove_empty, whole, write_text, writing
from run.errors import UsageError


@contextmanager
def claimed(
    name: str | None, resume: bool = False, private: bool = False, flag: str = "--output-dir"
) -> Iterator[Path]:
    """Make a run's folder and keep other runs out of it until the block ends.

    The lock is the system's: a process that died holds none. A `private` folder is its owner's.
    Messages call it by its flag.

    Raises:
        UsageError: the folder holds something already and is not resumed, cannot be made, or is
            in use by another run.
    """
    folder = Path(name or f"runs/{datetime.now():%Y-%m-%d-%H%M%S}")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{flag} {folder} is a file; name a folder")
    check_place(folder, flag)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            made = []
            raise UsageError(f"{flag} {folder} is in use by another run") from None
        there = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if resume and there and not (folder / "config.yaml").is_file():
            raise UsageError(f"--resume: {folder} is no run, since it has no config.yaml")
        if not resume and any(folder.iterdir()):
            ways = "name another or remove it first"
            if flag == "--output-dir":
                ways = f"name another, remove it first or go on with --resume {folder}"
            raise UsageError(f"{flag} {folder} exists and is not empty; {ways}")
        for left in folder.glob(f".*{PART}"):  # by a kill, and nobody else writes here now
            shutil.rmtree(left, ignore_errors=True)
        yield folder
    finally:
        remove_empty(made)
        os.close(handle)


def check_place(folder: Path, flag: str) -> None:
    """Refuse a folder that cannot be made.

    Raises:
        UsageError: it may not be written, or its whole path is no UTF-8, which libraries in Rust
            do not take.
    """
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"{flag} {folder} cannot be made: {parent} is not writable")
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{flag} {folder}: its path is no UTF-8; name another folder") from None


def others_may_not_read(*sources: str | None) -> bool:
    """Tell whether one of these files or folders, if local, is closed to other users."""
    named = (split_share(source)[0] for source in sources if source)
    paths = [Path(os.path.expanduser(name)) for name in named]
    return any(path.exists() and not path.stat().st_mode & 0o004 for path in paths)


def write_refused(error: OSError) -> str:
    """Say which file the system refused, why, and of a full disk how much room there is."""
    said = f"{error.filename or 'a file'} cannot be written or read: {error.strerror or error}"
    if error.errno == errno.EFBIG:
        return f"{said}; `ulimit -f` says how large a file may be"
    if error.errno not in FULL:
        return said
    path = Path(os.path.abspath(error.filename or "."))
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return f"{said}; {shutil.disk_usage(there).free / 2**20:,.1f} MiB are free in {there}"


def cache_folder(name: str) -> Path:
    """Return a folder that outlives the run, or a temporary one where none can be made or trusted.

    What lies there is taken for scores and token ids, so that nobody else may have a hand in it.
    """
    folder = user_cache_path("trie-dpo") / name
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.access(folder, os.W_OK):
        if not (strange := _in_other_hands(folder)):
            return folder
        print(f"The cache {folder} is not used, and a private one is made: {strange}.", flush=True)
    temporary = tempfile.mkdtemp(prefix="trie-dpo-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def _in_other_hands(folder: Path) -> str:
    """Say which of a folder and its files other users own or may write; "" if none.

    What root owns is trusted, and a file's mode is no matter where nobody else reaches it.
    """
    closed = not folder.stat().st_mode & 0o077
    for path in (folder.resolve(), *folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # another run has just replaced it
            about = path.lstat()
            if about.st_uid not in (os.getuid(), 0):
                return f"{path} belongs to another user; remove it"
            if about.st_mode & 0o022 and not stat.S_ISLNK(about.st_mode) and not closed:
                return f"other users may write {path}; remove it"
    return ""


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def metrics_log(folder: Path | None, step: int) -> FileIO:
    """Open the log of a run to go on at `step`: lines from there on are of a part that was lost.

    Without a folder nothing is kept.
    """
    if folder is None:
        return open(os.devnull, "ab", buffering=0)
    path = folder / "metrics.jsonl"
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    write_text(path, "".join(f"{line}\n" for line in lines if _step_of(line) < step))
    return path.open("ab", buffering=0)


def log_line(log: FileIO, values: Mapping[str, Any]) -> None:
    """Write a line of the log, whole or not at all: a reader sees no part of one.

    Raises:
        OSError: the disk is full; it has the log's name.
    """
    rest, end = f"{json.dumps(values)}\n".encode(), log.seek(0, os.SEEK_END)
    with writing(Path(str(log.name))):
        try:
            while rest:  # a disk that becomes full takes a part, and then refuses
                rest = rest[log.write(rest) or 0 :]
        except BaseException:
            log.truncate(end)
            raise


def _step_of(line: str) -> float:
    """Return the step of a line of the log; infinity for one that a kill cut off."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def draw_curves(run: Path, at_most_every: float = 0.0) -> None:
    """Write curves.png of a run from its metrics.jsonl.

    One that is not `at_most_every` seconds old stays; before the first the run's start counts.
    """
    picture = run / "curves.png"
    last = picture if picture.exists() else run / "config.yaml"
    if at_most_every and time.time() - last.stat().st_mtime < at_most_every:
        return
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    if any("loss" in line for line in log):
        with whole(picture) as new:
            curves_figure(log).savefig(new, format="png", dpi=120)
