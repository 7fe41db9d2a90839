"""The run's surroundings: its folder, the Hub token, the clock, the memory it took."""

import atexit
import contextlib
import fcntl
import json
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch
from dotenv import dotenv_values
from platformdirs import user_cache_path

from config import Config, UsageError
from data.batches import Steps


class HubError(RuntimeError):
    """The Hub cannot be reached, or failed; the message says what to do."""


class Stopped(BaseException):
    """A signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """SIGINT and SIGTERM while a run goes on, as a context.

    Where the run is `patient`, between whose steps it can be saved, the first signal is only noted
    for it to see; a second one, or any signal elsewhere, leaves at once.
    """

    def __init__(self) -> None:
        self.received = 0
        self.patient = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        if self.received or not self.patient:
            raise Stopped(number)
        self.received = number
        print("\nFinishing this step, to save it; once more leaves at once.", flush=True)


@contextmanager
def claimed(name: str | None, resume: bool = False, private: bool = False) -> Iterator[Path]:
    """Make a run's folder and keep other runs out of it until the block ends.

    The lock is the system's: a process that died holds none. A `private` folder is its owner's.

    Raises:
        UsageError: the folder holds something already and is not resumed, cannot be made, or is
            in use by another run.
    """
    folder = Path(name or f"runs/{datetime.now():%Y-%m-%d-%H%M%S}")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output-dir {folder} is a file; name a folder")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"--output-dir {folder} cannot be made: {parent} is not writable")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            made = False
            raise UsageError(f"--output-dir {folder} is in use by another run") from None
        if not resume and any(folder.iterdir()):
            raise UsageError(
                f"--output-dir {folder} exists and is not empty; name another, remove it first "
                f"or go on with --resume {folder}"
            )
        yield folder
    finally:
        if made and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()  # nothing came of it
        os.close(handle)


def others_may_not_read(*sources: str | None) -> bool:
    """Tell whether one of these files or folders, if local, is closed to other users."""
    paths = [Path(source).expanduser() for source in sources if source]
    return any(path.exists() and not path.stat().st_mode & 0o004 for path in paths)


def hub_token() -> str | None:
    """Return HF_TOKEN or ACCESS_TOKEN from the environment or `.env`, in this order."""
    file = dotenv_values(".env")
    names = ("HF_TOKEN", "ACCESS_TOKEN")
    return next(filter(None, [*map(os.environ.get, names), *map(file.get, names)]), None)


def cache_folder(name: str) -> Path:
    """Return a folder that outlives the run, or a temporary one where none can be made."""
    folder = user_cache_path("trie-dpo") / name
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.access(folder, os.W_OK):
        return folder
    temporary = tempfile.mkdtemp(prefix="trie-dpo-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def write_json(path: Path, value: Any) -> None:
    """Write `value` in one step."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


def metrics_log(folder: Path | None, step: int) -> TextIO:
    """Open the log of a run to go on at `step`: lines from there on are of a part that was lost.

    Without a folder nothing is kept.
    """
    if folder is None:
        return open(os.devnull, "w", encoding="utf-8")
    path, kept = folder / "metrics.jsonl", []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                break  # the line that a kill cut off
    beside = path.with_name(f".{path.name}")
    beside.write_text("".join(kept), encoding="utf-8")
    os.replace(beside, path)
    return path.open("a", buffering=1, encoding="utf-8")  # a reader sees whole lines


class Clock:
    """Seconds that each named part of the run took."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Book the time since the last call under `name`."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def peak_memory(device: torch.device) -> int:
    """Return the bytes this process held at most: on the GPU, or in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):  # getrusage counts what the parent held, too
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(x for x in lines if x.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere


def hardware(device: torch.device) -> str:
    """Say what computed."""
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    return f"{torch.get_num_threads()} threads of {platform.machine()}, {device.type}"


def summary(
    config: Config,
    model: str,
    device: torch.device,
    steps: Steps,
    clock: Clock,
    counted: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what summary.json holds, `counted` included; speed counts the reference pass."""
    busy = clock.seconds["reference"] + clock.seconds["train"]
    return {
        "pairs": steps.pairs,
        "steps": steps.total,
        "seconds": clock.seconds,
        "pairs_per_second": steps.pairs / busy,
        "peak_memory_bytes": peak_memory(device),
        "model": model,
        "data": config.data,
        "merged": config.merge,
        "hardware": hardware(device),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        **counted,
    }
