"""Checkpoints: all that a run needs to go on, bit for bit, as if it had never stopped.

RUN/checkpoints/step-00000050/ has `state.safetensors` (adapter, optimizer, random states) and
`state.json` (the step, settings, hashes, counts, and the digest of what both files say). A folder
is written beside, flushed to disk and renamed, so that whatever has the name is complete; a disk
that damages it later is found out by the digest.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils._pytree import (
    keystr,
    tree_flatten_with_path,
    tree_unflatten,
    treespec_dumps,
    treespec_loads,
)

import lora
from run.config import Config
from run.errors import UsageError
from run.folder import claimed, others_may_not_read
from run.processes import World

FORMAT = 5
TENSORS, FACTS = "state.safetensors", "state.json"
# RuntimeError: another torch may keep the structure of parts in another way.
UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError,
)  # fmt: skip


class Part(Protocol):
    """Something that must survive a kill: an optimizer, counts, random generators."""

    def state_dict(self) -> dict[Any, Any]:
        """Return all that it needs to go on."""

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        """Go on from there."""


class Checkpoint(NamedTuple):
    """A run after so many optimizer steps."""

    step: int
    parts: dict[str, dict[Any, Any]]  # the state of every part, by its name
    facts: dict[str, Any]  # what must be the same for a run to go on: settings, hashes
    path: Path | None = None


class AdapterPart:
    """Every A and B, as a part of a checkpoint."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def state_dict(self) -> dict[Any, Tensor]:
        """Return the adapter as it stands."""
        return dict(enumerate(lora.copy_adapter(self.model)))

    def load_state_dict(self, state: dict[Any, Tensor]) -> None:
        """Make the saved adapter this model's.

        Raises:
            UsageError: it is another one.
        """
        shapes = [parameter.shape for parameter in lora.adapter_parameters(self.model)]
        if [tensor.shape for tensor in state.values()] != shapes:
            raise UsageError("the checkpoint's adapter has other shapes than this run's")
        lora.restore_adapter(self.model, list(state.values()))


def save(run: Path, point: Checkpoint, keep: int, log: IO[Any]) -> None:
    """Write a checkpoint of the run next to its log, and remove all but the newest `keep`.

    Raises:
        OSError: the disk is full, or the folder is gone or cannot be written.
    """
    leaves, structure = tree_flatten_with_path(point.parts)
    named = {keystr(path): leaf for path, leaf in leaves}
    tensors = {name: t.cpu().contiguous() for name, t in named.items() if isinstance(t, Tensor)}
    content = safetensors.torch.save(tensors)
    facts = {
        "format": FORMAT, "step": point.step, **point.facts, "structure": treespec_dumps(structure),
        "parts": {name: None if name in tensors else leaf for name, leaf in named.items()},
    }  # fmt: skip
    facts["sha256"] = _digest(content, facts)
    os.fsync(log.fileno())
    if not os.fstat(log.fileno()).st_nlink:  # written to, and in no folder any more
        raise FileNotFoundError(2, "the run's folder is gone", str(run))
    with lora.whole_folder(run / "checkpoints" / f"step-{point.step:08d}") as new:
        (new / TENSORS).write_bytes(content)
        (new / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    _remove(run, saved(run)[keep:])


def forget(run: Path, after: int) -> None:
    """Remove the checkpoints of later steps than this one: the run goes on from here instead."""
    _remove(run, [path for path in saved(run) if int(path.name.removeprefix("step-")) > after])


def _remove(run: Path, paths: Sequence[Path]) -> None:
    for path in paths:  # renamed first: a reader never finds half of one
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
        if _digest(content, facts) != facts["sha256"]:
            raise ValueError("it is not what was written")
        step, settings = facts["step"], facts["config"]
        if type(step) is not int or step < 0 or not isinstance(settings, dict):
            raise ValueError(f"{FACTS} has no valid step or settings")
        leaves = facts["parts"] | safetensors.torch.load(content)
        parts = tree_unflatten(leaves.values(), treespec_loads(facts["structure"]))
        counts = parts.get("counts", {}) | {"the checkpoint's": step}
        if wrong := [n for n in counts.values() if type(n) is not int or not 0 <= n < 2**63]:
            raise ValueError(f"{wrong[0]!r:.40} is no count of steps or tokens")
        if counts.get("step", step) != step:
            raise ValueError(f"it counts {counts['step']} steps, and calls itself step {step}")
        return Checkpoint(step, parts, facts, path)
    except UNREADABLE as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UsageError(f"the checkpoint {path} cannot be used: {what}") from error


def _digest(content: bytes, facts: Mapping[str, Any]) -> str:
    """Name all that a checkpoint says: the tensors' file, and the facts but for this digest."""
    rest = json.dumps({name: fact for name, fact in facts.items() if name != "sha256"})
    return hashlib.sha256(content + rest.encode()).hexdigest()


def newest(run: Path) -> Checkpoint | None:
    """Return the newest checkpoint that can be used; others are named and passed over.

    Raises:
        UsageError: there are checkpoints, and none can be used.
    """
    paths = saved(run)
    for path in paths:
        try:
            return load(path)
        except UsageError as error:
            if path == paths[-1]:
                raise
            print(f"Passing over it: {error}", flush=True)
    return None


def find(resume: str, run: Path) -> Checkpoint | None:
    """Return the checkpoint that `--resume` means: one by its folder, or the newest of the run."""
    named = Path(resume)
    if not re.fullmatch(r"step-\d{8}", named.name):
        return newest(run)
    if not named.exists():
        left = ", ".join(str(path) for path in saved(run))
        raise UsageError(f"--resume {named}: there is no such checkpoint; there are {left}")
    return load(named)


@contextmanager
def open_run(config: Config, world: World) -> Iterator[tuple[Path, Checkpoint | None]]:
    """Claim the run's folder for the block; yield it with the checkpoint to go on from, if any.

    Raises:
        UsageError: as `claimed` and `find`.
    """
    resume = config.resume is not None
    private = others_may_not_read(*config.sources)
    claim = claimed(config.output_dir, resume, private) if world.first else nullcontext(Path())
    with claim as folder:
        point = find(config.resume or str(folder), folder) if resume and world.first else None
        if resume and world.first and point is None and (folder / "summary.json").is_file():
            raise UsageError(
                f"--resume: {folder} is finished, and has no checkpoint to go on from; repeat it: "
                f"python train.py --config {shlex.quote(str(folder / 'config.yaml'))}"
            )
        try:
            yield folder, world.gather(point)[0]
        except BaseException as error:
            if world.first and saved(folder) and not isinstance(error, UsageError):
                print(f"Go on:  python train.py --resume {shlex.quote(str(folder))}", flush=True)
            raise


def check_same_run(point: Checkpoint, config: Config, hashes: Mapping[str, str]) -> None:
    """Refuse to go on as a different run.

    Raises:
        UsageError: a setting, the data or the base model is another one, which is named.
    """
    if changed := config.changes(point.facts["config"]):
        raise UsageError(f"--resume would continue as a different run: {changed}")
    for name, value in hashes.items():
        if point.facts.get(name) != value:
            raise UsageError(
                f"--resume: the {name} is not the one that {point.path} was trained on"
            )
