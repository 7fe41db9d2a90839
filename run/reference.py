"""The reference of DPO: what the policy is compared with, and where its log-probs come from."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import data
import dpo
import lora
from run import folder
from run.config import Config
from run.processes import World


class Reference:
    """log pi_ref(y|x), of one of four models.

    It is the frozen base, which is the policy with its adapters off; or the adapter that the run
    started from (`--adapter`, unless `--reference base`); or the policy of some steps ago
    (`--reference-sync`, TR-DPO); or none, which scores every answer 0 (`--reference-free`, or a
    loss that has no use for one). One that does not move scores each distinct answer once, and its
    scores are kept on disk from run to run.
    """

    def __init__(self, config: Config, model: Any, base_hash: str) -> None:
        self.model = model
        self.free, self.every = not config.needs_reference, config.reference_sync
        self.hash = base_hash  # of all that its scores depend on but the token ids
        self._start: list[Tensor] = []  # the adapter that is the reference, if one is
        self._moved: list[Tensor] = []  # the policy of some steps ago
        if config.starts_at_reference:
            self._start = lora.copy_adapter(model)
            layers = lora.lora_layers(model).items()
            scales = {name: layer.scale for name, layer in layers}
            self.hash = lora.fingerprint(f"{base_hash} {scales}", enumerate(self._start))
        self._file = folder.cache_folder("reference") / f"{self.hash}.json"
        self.scores: dpo.Scores = read_cache(self._file)

    @property
    def is_base(self) -> bool:
        """Tell whether the reference that a run starts with is the bare base."""
        return not self._start

    @contextmanager
    def active(self, model: Any) -> Iterator[None]:
        """Within the block the model is the reference that a run starts with."""
        start = self._start
        with lora.adapter_swapped(model, start) if start else lora.adapters_disabled(model):
            yield

    def score(
        self, scorer: dpo.Scorer, world: World, questions: data.Prepared, steps: data.Steps
    ) -> None:
        """Score what the cache lacks: all held-out answers, and those of the pairs of all steps."""
        to_score = [questions.held_out.map(dpo.all_answers)]
        if not self.free:
            used = questions.train.select(steps.questions())
            to_score.append(used.map(dpo.trained_answers))
        self.add(scorer, world, to_score)

    def add(self, scorer: dpo.Scorer, world: World, to_score: Sequence[Any]) -> None:
        """Score those of some answers that the cache lacks, and keep their scores."""
        self.scores = world.of_first(lambda: self.scores)  # another one's disk may know others
        with self.active(self.model):
            new = world.scores(scorer, "Reference", to_score, self.scores)
        self.scores = {**self.scores, **new}
        if new and world.first:
            write_cache(self._file, self.scores)

    @torch.no_grad()
    def logps(self, batch: data.PairBatch) -> Tensor:
        """Return (A,) float32 log pi_ref(y|x) of a batch's answers, in nats."""
        if self._moved:
            with lora.adapter_swapped(self.model, self._moved):
                return dpo.answer_logps(self.model, batch.trees)
        known = [
            0.0 if self.free or ids is None else self.scores[dpo.answer_key(*ids)]
            for ids in batch.ids  # an anchor brings its own
        ]
        return torch.tensor(known, device=batch.chosen.device)

    def follow(self, step: int) -> None:
        """Make the policy the reference, every so many steps (TR-DPO, arXiv 2404.09656, hard)."""
        if self.every and step and step % self.every == 0:
            self._moved = lora.copy_adapter(self.model)

    @property
    def passes(self) -> int:
        """Return how many forward passes a training batch takes, the policy's included."""
        return 2 if self._moved else 1

    def state_dict(self) -> dict[Any, Tensor]:
        """Return the adapter that a moving reference has."""
        return dict(enumerate(self._moved))

    def load_state_dict(self, state: dict[Any, Tensor]) -> None:
        """Go on with a reference that had moved."""
        self._moved = [tensor.to(self.model.device) for tensor in state.values()]


def starting_reference(config: Config) -> str:
    """Say which model a run starts to be compared with, and measured against as "before"."""
    if config.starts_at_reference:
        return "the adapter that training starts from"
    if config.adapter:
        return "the bare base, without the adapter that training starts from"
    return "the frozen base"


def in_words(config: Config) -> str:
    """Say which reference a run has, whether it moves, and how to choose the other one."""
    if not config.needs_reference:
        why = "--reference-free" if config.reference_free else f"--loss {config.loss}"
        return f"none: answers are scored by log pi(y|x) alone ({why})"
    every = config.reference_sync
    moves = f"; every {f'{every} steps' if every != 1 else 'step'} the policy" if every else ""
    other = " (--reference base takes the bare base)" if config.starts_at_reference else ""
    return f"{starting_reference(config)}{other}{moves}"


def read_cache(file: Path) -> dict[str, float]:
    """Return the scores in `file`; one that is missing or damaged knows nothing, and is named."""
    try:
        scores = json.loads(file.read_text(encoding="utf-8"))
        return {str(k): float(score) for k, score in scores.items() if math.isfinite(score)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        print(f"The reference's cache {file} is damaged and is made anew ({error}).", flush=True)
        return {}


def write_cache(file: Path, scores: dpo.Scores) -> None:
    """Replace `file` in one step; one that cannot be written costs time and no result."""
    finite = {key: score for key, score in scores.items() if math.isfinite(score)}
    try:
        lora.write_text(file, json.dumps(finite))
    except OSError as error:
        print(f"The reference is not cached: {error}", flush=True)
