"""Scoring answers in large batches, and the frozen reference's scores kept on disk.

An entry is one answer after one prompt, so that another split, seed or learning rate finds what was
computed before. A cache file holds the entries of one base model in one dtype.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from data.batches import micro_batches
from data.encode import EncodedQuestion
from data.trees import Tokens, TreeBatch, collate, question_tries
from dpo.logps import answer_logps

Scores = Mapping[str, float]  # answer_key -> log pi(y|x), nats


def answer_key(prompt: Tokens, answer: Tokens) -> str:
    """Name an answer by its token ids and its prompt's."""
    return hashlib.sha256(f"{prompt} {answer}".encode()).hexdigest()[:32]


def scores_of(scores: Scores, question: EncodedQuestion) -> list[float]:
    """Return the scores of the chosen and each rejected answer of a question."""
    return [scores[answer_key(question.prompt, a)] for a in question.trained]


def scoring_batches(
    known: Scores,
    questions: Iterable[tuple[Tokens, Iterable[Tokens]]],
    token_budget: int,
    shared: bool = True,
) -> list[tuple[list[str], TreeBatch]]:
    """Return (keys, batch) covering once each answer that `known` lacks, longest questions first.

    Args:
        known: scores that need no second look.
        questions: (prompt, answers); the same prompt may come twice.
        token_budget: fed tokens in a batch.
        shared: False scores every answer as a plain row of its own.
    """
    missing: dict[Tokens, dict[Tokens, str]] = {}
    for prompt, answers in questions:
        for answer in answers:
            if (key := answer_key(prompt, answer)) not in known:
                missing.setdefault(prompt, {})[answer] = key
    prompts = list(missing)
    tries = [question_tries(prompt, list(missing[prompt]), shared) for prompt in prompts]
    return [
        (
            [key for q in group for key in missing[prompts[q]].values()],
            collate([trie for q in group for trie in tries[q]], shared),
        )
        for group in micro_batches(tries, token_budget)
    ]


@torch.no_grad()
def score_answers(model: Any, batches: Iterable[tuple[list[str], TreeBatch]]) -> dict[str, float]:
    """Return {key: log pi(y|x)} in nats for every answer of the batches."""
    scores: dict[str, float] = {}
    for keys, batch in batches:
        logps = answer_logps(model, batch.to(model.device))
        scores.update(zip(keys, logps.tolist(), strict=True))
    return scores


def base_fingerprint(model: Any) -> str:
    """Hash every weight, dtype and setting of a model that has no adapters yet."""
    config = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    digest = hashlib.sha256(config.encode())
    seen: set[int] = set()  # tied weights once; the state holds a quantised base's scales too
    for name, weight in model.state_dict().items():
        if isinstance(weight, torch.Tensor) and weight.data_ptr() not in seen:
            seen.add(weight.data_ptr())
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            raw: Any = weight.detach().cpu().reshape(-1).view(torch.uint8).numpy()
            digest.update(raw)
    return digest.hexdigest()


def read_cache(file: Path) -> dict[str, float]:
    """Return the scores in `file`; one that is missing or damaged knows nothing."""
    try:
        scores = json.loads(file.read_text(encoding="utf-8"))
        return {str(k): float(score) for k, score in scores.items() if math.isfinite(score)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def write_cache(file: Path, scores: Scores) -> None:
    """Replace `file` in one step, so that a reader never sees half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    finite = {key: score for key, score in scores.items() if math.isfinite(score)}
    beside.write_text(json.dumps(finite), encoding="utf-8")
    os.replace(beside, file)
