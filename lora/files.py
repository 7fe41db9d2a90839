"""Folders that are complete or absent, never half-written."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder` to fill, which takes its name and place at the end.

    It is flushed to disk first, so that not even a power cut leaves a part of it under the name. If
    the body raises, nothing of it remains and what stood at `folder` before stands there still.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    new, old = scratch / "new", scratch / "old"
    new.mkdir()
    try:
        yield new
        for path in (*new.rglob("*"), new):
            _flush(path)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        _flush(folder.parent)
    finally:
        if old.exists() and not folder.exists():  # interrupted between the two
            os.replace(old, folder)
        shutil.rmtree(scratch, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
