"""What a run's folder holds, as far as the run got."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lora
from run.card import settings_of
from run.errors import UsageError


class Run(NamedTuple):
    """What a run's folder holds; what is not there is empty."""

    name: str
    config: Mapping[str, Any]
    facts: Mapping[str, Any]  # summary.json
    results: Mapping[str, Any]  # evaluation.json
    samples: Sequence[Mapping[str, Any]]
    questions: Mapping[str, Any]  # questions.json
    log: Sequence[Mapping[str, Any]]  # metrics.jsonl

    @property
    def measured(self) -> bool:
        """Tell whether it was measured on held-out questions."""
        return bool(self.results.get("questions"))


def titles(runs: Sequence[Run]) -> list[str]:
    """Return the runs' names, with a number where two have the same."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


def read_run(folder: Path) -> Run:
    """Read what a run left so far.

    Raises:
        UsageError: it has no config.yaml, or a file is not what a run writes.
    """
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder} is no run: it has no config.yaml")
    found: dict[str, Any] = {}
    for name in ("summary", "evaluation", "samples", "questions"):
        path = folder / f"{name}.json"
        with lora.reading(f"{path} cannot be read", UsageError):
            kind = list if name == "samples" else dict
            found[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else kind()
            if not isinstance(found[name], kind):
                raise ValueError(f"it holds no {'list' if kind is list else 'object'}")
    path = folder / "metrics.jsonl"
    with lora.reading(f"{path} cannot be read", UsageError):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        log = [json.loads(line) for line in lines if line.endswith("}")]  # a kill cuts the last one
    with lora.reading(f"{folder / 'config.yaml'} cannot be read", UsageError):
        config = settings_of(folder)
    return Run(folder.resolve().name, config, found["summary"], found["evaluation"],
               found["samples"], found["questions"], log)  # fmt: skip
