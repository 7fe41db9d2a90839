"""Seconds, memory and speed, measured on the machine at hand."""

import platform
import resource
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import psutil
import torch


class Clock:
    """Seconds that each named part of the run took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Book the time since the last call under `name`."""
        now = time.monotonic()
        self.seconds[name] += now - self._last
        self._last = now

    def state_dict(self) -> dict[str, float]:
        """Return the seconds so far."""
        return dict(self.seconds)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Add the seconds of the run before it was interrupted."""
        for name, seconds in state.items():
            self.seconds[name] += seconds


def matmul_rate(
    device: torch.device, dtype: torch.dtype, width: int, seconds: float = 0.15
) -> float:
    """Return the FLOP/s of products as they occur: some 128 tokens, width by 4 width."""
    x = torch.ones(128, width, device=device, dtype=dtype)
    weight = torch.ones(4 * width, width, device=device, dtype=dtype)

    def run() -> None:
        x @ weight.T
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:  # torch's own Timer would set the threads anew
        run()
        count += 1
    return count * 2 * 128 * width * 4 * width / (time.perf_counter() - started)


def resident(device: torch.device) -> int:
    """Return what this process holds now of the memory that the plan is about."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def free_memory(device: torch.device) -> int:
    """Return what more this process may take, of the GPU or of the machine or its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        free = min(free, int((group / "memory.max").read_text()) - used)
    return free


def peak_memory(device: torch.device) -> int:
    """Return the bytes this process held at most: on the GPU, or in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):  # getrusage counts what the parent held, too
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(x for x in lines if x.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere


def hardware(device: torch.device) -> str:
    """Say what computed."""
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    many = "s" if threads > 1 else ""
    return f"{threads} thread{many} of {platform.machine()}, {device.type}"
