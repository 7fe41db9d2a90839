"""Scoring answers in large batches, and the frozen reference's scores kept on disk.

An entry is one answer after one prompt, so that another split, seed or learning rate finds what was
computed before. A cache file holds the entries of one base model in one dtype.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from data.batches import micro_batches
from data.encode import EncodedQuestion
from data.trees import Tokens, TreeBatch, collate, question_tries
from dpo.logps import answer_logps
from dpo.memory import within_memory

QUESTIONS_AT_ONCE = 4096
Scores = Mapping[str, float]  # answer_key -> log pi(y|x), nats


def answer_key(prompt: Tokens, answer: Tokens) -> str:
    """Name an answer by its token ids and its prompt's."""
    return hashlib.sha256(f"{prompt} {answer}".encode()).hexdigest()[:32]


def asked(
    share: Callable[[Iterable[Any]], Iterable[Any]],
    *sides: tuple[Iterable[EncodedQuestion], Literal["answers", "trained"]],
) -> Callable[[], Iterator[tuple[Tokens, Iterable[Tokens]]]]:
    """Return what yields (prompt, answers) of the questions of each side, this process' share.

    A side is its questions and which of their answers to score: all, or those that are trained.
    """

    def questions() -> Iterator[tuple[Tokens, Iterable[Tokens]]]:
        for side, which in sides:
            yield from ((q.prompt, getattr(q, which)) for q in share(side))

    return questions


def anchors(answers: Iterable[tuple[Tokens, Tokens]], scores: Scores | None) -> list[float]:
    """Return the reference's score of each (prompt, answer); zeros without a reference."""
    return [0.0 if scores is None else scores[answer_key(*ids)] for ids in answers]


def missing(
    known: Scores, questions: Iterable[tuple[Tokens, Iterable[Tokens]]]
) -> Iterator[tuple[Tokens, dict[str, Tokens]]]:
    """Yield (prompt, {key: answer}) for each answer of the questions that `known` lacks."""
    for prompt, answers in questions:
        keyed = {answer_key(prompt, answer): answer for answer in answers}
        if new := {key: answer for key, answer in keyed.items() if key not in known}:
            yield prompt, new


def scoring_batches(
    known: Scores,
    questions: Iterable[tuple[Tokens, Iterable[Tokens]]],
    token_budget: int,
    shared: bool = True,
) -> Iterator[tuple[list[str], TreeBatch]]:
    """Yield (keys, batch) covering once each answer that `known` lacks.

    Some thousand questions are taken at once, the longest first, however many there are.

    Args:
        known: scores that need no second look.
        questions: (prompt, answers); the same prompt may come twice.
        token_budget: fed tokens in a batch.
        shared: False scores every answer as a plain row of its own.
    """
    unknown, seen = missing(known, questions), set[str]()
    while some := list(itertools.islice(unknown, QUESTIONS_AT_ONCE)):
        merged: dict[Tokens, dict[str, Tokens]] = {}
        for prompt, answers in some:
            new = {key: answer for key, answer in answers.items() if key not in seen}
            merged.setdefault(prompt, {}).update(new)
            seen.update(new)
        asked = [(prompt, answers) for prompt, answers in merged.items() if answers]
        tries = [question_tries(prompt, list(new.values()), shared) for prompt, new in asked]
        for group in micro_batches(tries, token_budget):
            keys = [key for q in group for key in asked[q][1]]
            yield keys, collate([trie for q in group for trie in tries[q]], shared)


@torch.no_grad()
def score_answers(
    model: Any,
    questions: Callable[[], Iterable[tuple[Tokens, Iterable[Tokens]]]],
    token_budget: int,
    shared: bool = True,
    known: Scores = MappingProxyType({}),
    watch: Callable[[Iterable[Any], int], Iterable[Any]] = lambda batches, answers: batches,
    pace: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> dict[str, float]:
    """Return {key: log pi(y|x)} in nats for every answer that `known` lacks.

    `questions` is called twice: to count what `watch` shows the progress of, and to score. Where
    processes make the same passes, `pace` yields the batches and waits for the others'.
    """
    total = sum(len(new) for _, new in missing(known, questions()))
    scores: dict[str, float] = {}

    def score(budget: int) -> None:  # what is scored already stays, where memory runs out
        unknown = scoring_batches(ChainMap(scores, dict(known)), questions(), budget, shared)
        shown = watch(unknown, total - len(scores))
        for keys, batch in pace(shown) if pace else shown:
            logps = answer_logps(model, batch.to(model.device))
            scores.update(zip(keys, logps.tolist(), strict=True))

    within_memory(score, token_budget, alone=pace is None)
    return scores


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


def write_cache(file: Path, scores: Scores) -> None:
    """Replace `file` in one step, so that a reader never sees half of it.

    A cache that cannot be written costs time and no result: it is said, and no error.
    """
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    finite = {key: score for key, score in scores.items() if math.isfinite(score)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(finite), encoding="utf-8")
        os.replace(beside, file)
    except OSError as error:
        print(f"The reference is not cached: {error}", flush=True)
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
