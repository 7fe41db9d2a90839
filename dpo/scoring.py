"""Scoring answers in large batches: the log-prob of each distinct answer, once.

An answer is known by its token ids and its prompt's, so that another split, seed or learning rate
finds what was computed before.
"""

import hashlib
import itertools
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from data.batches import micro_batches, sizes_of
from data.encode import EncodedQuestion
from data.gather import Watch, unwatched
from data.trees import Tokens, TreeBatch, Way, collate, question_tries
from dpo.logps import answer_logps
from dpo.memory import Budgets, TokenBudget

QUESTIONS_AT_ONCE = 4096
Scores = Mapping[str, float]  # answer_key -> log pi(y|x), nats
Answers = tuple[Tokens, Sequence[Tokens]]  # a prompt, and some answers to it
NOTHING: Scores = MappingProxyType({})


def answer_key(prompt: Tokens, answer: Tokens) -> str:
    """Name an answer by its token ids and its prompt's."""
    return hashlib.sha256(f"{prompt} {answer}".encode()).hexdigest()[:32]


def all_answers(question: EncodedQuestion) -> Answers:
    """Return a question's prompt and every answer that it has."""
    return question.prompt, question.answers


def trained_answers(question: EncodedQuestion) -> Answers:
    """Return a question's prompt and the answers that pairs are made of."""
    return question.prompt, question.trained


@dataclass
class Scorer:
    """How answers are scored: what every command uses."""

    model: Any  # a causal language model of transformers; its adapters as they are switched
    way: Way = "tries"
    budgets: Budgets = Budgets()
    watch: Watch = unwatched  # shows progress, given batches, a label and the answers in all
    # where processes make the same passes: yields the batches and waits for those of the others
    kept_in_step: Callable[[Iterable[Any]], Iterable[Any]] | None = None
    joined: bool = True  # False makes no single trie of a prompt that comes again

    @torch.no_grad()
    def scores(
        self, label: str, to_score: Iterable[Iterable[Answers]], known: Scores = NOTHING
    ) -> dict[str, float]:
        """Return {key: log pi(y|x)} in nats for every answer that `known` lacks.

        The sources of answers are read twice, to count and to score. A prompt may come again.
        Progress is shown under the label.
        """
        sources = list(to_score)
        total = sum(len(new) for _, new in unknown(known, itertools.chain(*sources)))
        found: dict[str, float] = {}  # what is scored already stays, where memory runs out
        tokens = self.budgets.scoring(self.way)
        budget = TokenBudget(tokens, alone=self.kept_in_step is None)
        while True:
            with budget:
                have = ChainMap(found, dict(known))
                answers = itertools.chain(*sources)
                batches = scoring_batches(have, answers, budget.tokens, self.way, self.joined)
                shown = self.watch(batches, label, total - len(found))
                for keys, trees in self.kept_in_step(shown) if self.kept_in_step else shown:
                    logps = answer_logps(self.model, trees.to(self.model.device))
                    found.update(zip(keys, logps.tolist(), strict=True))
                return found


def unknown(
    known: Scores, to_score: Iterable[Answers]
) -> Iterator[tuple[Tokens, dict[str, Tokens]]]:
    """Yield (prompt, {key: answer}) with the answers that `known` lacks."""
    for prompt, answers in to_score:
        keyed = {answer_key(prompt, answer): answer for answer in answers}
        if new := {key: answer for key, answer in keyed.items() if key not in known}:
            yield prompt, new


def scoring_batches(
    known: Scores,
    to_score: Iterable[Answers],
    token_budget: int,
    way: Way = "tries",
    joined: bool = True,
) -> Iterator[tuple[list[str], TreeBatch]]:
    """Yield (keys, batch) covering once each answer that `known` lacks.

    Some thousand questions are taken at once, the longest first, however many there are. A prompt
    that comes again is one question, unless they are not `joined`: paragraphs of a text all begin
    with BOS, and would be one large trie.
    """
    new_answers, seen = unknown(known, to_score), set[str]()
    while some := list(itertools.islice(new_answers, QUESTIONS_AT_ONCE)):
        merged: dict[Any, tuple[Tokens, dict[str, Tokens]]] = {}
        for place, (prompt, answers) in enumerate(some):
            new = {key: answer for key, answer in answers.items() if key not in seen}
            merged.setdefault(prompt if joined else place, (prompt, {}))[1].update(new)
            seen.update(new)
        questions = [(prompt, answers) for prompt, answers in merged.values() if answers]
        tries = [question_tries(prompt, list(new.values()), way) for prompt, new in questions]
        for group in micro_batches([*map(sizes_of, tries)], token_budget, way):
            keys = [key for q in group for key in questions[q][1]]
            yield keys, collate([trie for q in group for trie in tries[q]], way)


def mean_difference(first: Scores, second: Scores, lengths: Mapping[str, int]) -> float:
    """Return how far apart two models score answers of these lengths, in nats a token, on average.

    mean over answers of |log pi_1(y|x) - log pi_2(y|x)| / |y|
    """
    apart = (abs(first[key] - second[key]) / length for key, length in lengths.items())
    return sum(apart) / len(lengths)
