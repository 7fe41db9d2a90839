"""The run's surroundings: its folder, the Hub token, the clock, the memory it took."""

import json
import os
import resource
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from dotenv import dotenv_values
from platformdirs import user_cache_path

from config import UsageError


def new_folder(name: str | None) -> Path:
    """Return the path of a run's folder, not yet made.

    Raises:
        UsageError: it holds something already, or could not be made.
    """
    folder = Path(name or f"runs/{datetime.now():%Y-%m-%d-%H%M%S}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"--output-dir {folder} exists and is not empty; name another or remove it first"
        )
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"--output-dir {folder} cannot be made: {parent} is not writable")
    return folder


def hub_token() -> str | None:
    """Return HF_TOKEN or ACCESS_TOKEN from the environment or `.env`, in this order."""
    file = dotenv_values(".env")
    names = ("HF_TOKEN", "ACCESS_TOKEN")
    return next(filter(None, [*map(os.environ.get, names), *map(file.get, names)]), None)


def cache_folder(name: str) -> Path:
    """Return a folder that outlives the run, or a temporary one where none can be made."""
    folder = user_cache_path("trie-dpo") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="trie-dpo-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="trie-dpo-"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` in one step."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


class Clock:
    """Seconds that each named part of the run took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Book the time since the last call under `name`."""
        now = time.monotonic()
        self.seconds[name] = now - self._last
        self._last = now


def peak_memory(device: torch.device) -> int:
    """Return the bytes this process held at most: on the GPU, or in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
