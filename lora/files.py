"""Files and folders that are complete or absent, never half-written."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"  # ends the name of what is being written beside
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: on the disk, of a quota, in a file


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of a disk that is full which file it has no room for.

    Whoever writes to an open file raises an OSError without a name, and libraries in Rust an error
    of their own that ends in `(os error 28)`.

    Raises:
        OSError: with the file's name; its `errno` is one of `FULL`.
    """
    try:
        yield
    except Exception as error:
        said = re.search(r"(?:os error|errno) (\d+)", str(error), re.IGNORECASE)
        number = getattr(error, "errno", None) or (int(said[1]) if said else 0)
        if number not in FULL:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def expanded(name: str | Path) -> Path:
    """Return the path with `~` in its place; that of a user who is not here stays as it is."""
    return Path(os.path.expanduser(name))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path to write a file or a folder to, which takes the name `path` when the block ends.

    It is flushed to disk first, so that not even a power cut leaves a part of it under the name. If
    the block raises, nothing of it remains, and what stood at `path` before stands there still.

    Raises:
        OSError: it cannot be written. Where the disk is full, it has the name `path`.
    """
    with writing(path):
        made = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".", suffix=PART, dir=path.parent))
        new, old = scratch / path.name, scratch / PART
        try:
            yield new
            for written in (*new.rglob("*"), new):
                _flush(written)
            if path.is_dir() or (new.is_dir() and path.exists()):  # not replaced in one step
                os.replace(path, old)
            os.replace(new, path)
            _flush(path.parent)
        finally:
            if old.exists() and not path.exists():  # interrupted between the two
                os.replace(old, path)
            shutil.rmtree(scratch, ignore_errors=True)
            remove_empty(made)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, innermost first, as long as they are empty: nothing came of them."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill, which takes the name `path` when the block ends; see `whole`."""
    with whole(path) as new:
        new.mkdir()
        yield new


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step; bytes of a file's name that are no UTF-8 show their code."""
    with whole(path) as new:
        new.write_text(text, encoding="utf-8", errors="backslashreplace")


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
