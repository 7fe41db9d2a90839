"""Checkpoints: all that a run needs to go on, bit for bit, as if it had never stopped.

RUN/checkpoints/step-00000050/ has `state.safetensors` (adapter, optimizer, random states) and
`state.json` (the step, settings, fingerprints, and the other file's digest). A folder is written
beside, flushed to disk and renamed, so that whatever has the name is complete; a disk that damages
it later is found out by the digest.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from config import Config, UsageError
from lora.files import written_whole
from processes import World
from workspace import claimed, others_may_not_read

FORMAT = 2
TENSORS, FACTS = "state.safetensors", "state.json"


class Checkpoint(NamedTuple):
    """A run after so many optimizer steps."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]  # settings, fingerprints, counts
    path: Path | None = None


def save(run: Path, point: Checkpoint, keep: int, log: TextIO) -> None:
    """Write a checkpoint of the run behind its log, and remove all but the newest `keep`.

    Raises:
        OSError: the disk is full, or the folder is gone or cannot be written.
    """
    content = safetensors.torch.save(point.tensors)
    digest = hashlib.sha256(content).hexdigest()
    facts = {"format": FORMAT, "step": point.step, "sha256": digest, **point.facts}
    os.fsync(log.fileno())
    if not os.fstat(log.fileno()).st_nlink:  # written to, and in no folder any more
        raise FileNotFoundError(2, "the run's folder is gone", str(run))
    with written_whole(run / "checkpoints" / f"step-{point.step:08d}") as new:
        (new / TENSORS).write_bytes(content)
        (new / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for path in saved(run)[keep:]:  # renamed first: a reader never finds half of one
        path.rename(path.with_name(f".{path.name}"))
    for path in (run / "checkpoints").glob(".*"):  # and what a kill left of others
        shutil.rmtree(path, ignore_errors=True)


def saved(run: Path) -> list[Path]:
    """Return the folders of the run's checkpoints, the newest first."""
    return sorted((run / "checkpoints").glob("step-" + "[0-9]" * 8), reverse=True)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UsageError: it is damaged, or no checkpoint of this program.
    """
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        content = (path / TENSORS).read_bytes()
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']}, and this program reads {FORMAT}")
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise ValueError(f"{TENSORS} is not what was written")
        step, settings = facts["step"], facts["config"]
        if type(step) is not int or step < 0 or not isinstance(settings, dict):
            raise ValueError(f"{FACTS} has no valid step or settings")
        return Checkpoint(step, safetensors.torch.load(content), facts, path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UsageError(f"the checkpoint {path} cannot be used: {what}") from error


def newest(run: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; a damaged one is named and passed over.

    Raises:
        UsageError: there are checkpoints, and all of them are damaged.
    """
    damaged = None
    for path in saved(run):
        try:
            return load(path)
        except UsageError as error:
            print(f"Passing over a damaged checkpoint: {error}", flush=True)
            damaged = error
    if damaged:
        raise damaged
    return None


def find(resume: str, run: Path) -> Checkpoint | None:
    """Return the checkpoint that `--resume` means: one by its folder, or the newest of the run."""
    named = Path(resume)
    return load(named) if re.fullmatch(r"step-\d{8}", named.name) else newest(run)


@contextmanager
def opened(config: Config, world: World) -> Iterator[tuple[Path, Checkpoint | None]]:
    """Claim the run's folder for the block; yield it with the checkpoint to go on from, if any.

    Raises:
        UsageError: as `claimed` and `find`.
    """
    resume = config.resume is not None
    private = others_may_not_read(config.data, config.model, config.adapter)
    claim = claimed(config.output_dir, resume, private) if world.first else nullcontext(Path())
    with claim as folder:
        point = find(config.resume or str(folder), folder) if resume and world.first else None
        config.output_dir = str(folder)
        try:
            yield folder, world.gather(point)[0]
        except BaseException:
            if world.first and saved(folder):
                print(f"Go on:  python train.py --resume {shlex.quote(str(folder))}", flush=True)
            raise


def check_same_run(point: Checkpoint, config: Config, **fingerprints: str) -> None:
    """Refuse to go on as a different run.

    Raises:
        UsageError: a setting, the data or the base model is another one, which is named.
    """
    if changed := config.changes(point.facts["config"]):
        raise UsageError(f"--resume would continue as a different run: {changed}")
    for name, value in fingerprints.items():
        if point.facts.get(name) != value:
            raise UsageError(
                f"--resume: the {name} is not the one that {point.path} was trained on"
            )


def pack(
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    copies: Mapping[str, Sequence[Tensor]],
    random: Sequence[Sequence[Tensor]],
) -> dict[str, Tensor]:
    """Return the state of training as named tensors; `copies` are further adapters by name."""
    tensors = {f"adapter/{i}": p.detach() for i, p in enumerate(parameters)}
    for copy, kept in copies.items():
        tensors |= {f"{copy}/{i}": p for i, p in enumerate(kept)}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": value for name, value in state.items()}
    for rank, states in enumerate(random):
        tensors |= {f"random/{rank}/{i}": state for i, state in enumerate(states)}
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def unpack(
    tensors: Mapping[str, Tensor],
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    copies: Iterable[str],
    rank: int,
) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """Put the state back; return the named copies and this process' random states.

    Raises:
        UsageError: the state is of another adapter.
    """
    device = parameters[0].device
    own = _numbered(tensors, "adapter")
    if [t.shape for t in own] != [p.shape for p in parameters]:
        raise UsageError("the checkpoint's adapter has other shapes than this run's")
    with torch.no_grad():
        for parameter, value in zip(parameters, own, strict=True):
            parameter.copy_(value)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, number, what = name.split("/")
            state.setdefault(int(number), {})[what] = value.clone()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    kept = {copy: [t.to(device) for t in _numbered(tensors, copy)] for copy in copies}
    return kept, _numbered(tensors, f"random/{rank}")


def _numbered(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    count = sum(key.startswith(f"{name}/") for key in tensors)
    return [tensors[f"{name}/{i}"] for i in range(count)]
