"""Folders that are complete or absent, never half-written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder` to fill, which takes its name and place at the end.

    If the body raises, nothing of it remains and what stood at `folder` before stands there still.
    """
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    before = folder.with_name(f"{beside.name}.old")
    beside.mkdir(parents=True)
    try:
        yield beside
        if folder.exists():
            os.replace(folder, before)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
