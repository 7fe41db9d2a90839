"""Files and folders that are complete or absent, never half-written."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # ends the name of what is being written beside


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path to write a file or a folder to, which takes the name `path` when the block ends.

    It is flushed to disk first, so that not even a power cut leaves a part of it under the name. If
    the block raises, nothing of it remains, and what stood at `path` before stands there still.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent))
    new, old = scratch / path.name, scratch / f"{path.name}.old"
    try:
        yield new
        for written in (*new.rglob("*"), new):
            _flush(written)
        if path.is_dir() or (new.is_dir() and path.exists()):  # nothing replaces those in one step
            os.replace(path, old)
        os.replace(new, path)
        _flush(path.parent)
    finally:
        if old.exists() and not path.exists():  # interrupted between the two
            os.replace(old, path)
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill, which takes the name `path` when the block ends; see `whole`."""
    with whole(path) as new:
        new.mkdir()
        yield new


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    with whole(path) as new:
        new.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
