"""Order: which pairs make an optimizer step, and which tries go through the model together."""

import random
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from data.encode import EncodedQuestion
from data.trees import TreeBatch, Trie, collate, question_tries

Pair = tuple[int, int]  # (question, which of its rejected answers)
Shuffle = Literal["questions", "pairs"]


def epoch_order(
    questions: Sequence[EncodedQuestion], seed: int, epoch: int, shuffle: Shuffle
) -> list[Pair]:
    """Return every (question, rejected answer) pair exactly once, in the order of this epoch.

    `questions` keeps the pairs of a question together, so that they meet in one trie; `pairs`
    shuffles them freely. The order depends on nothing but the arguments.
    """
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(questions)))
    rng.shuffle(order)
    pairs = [(q, k) for q in order for k in range(len(questions[q].rejected))]
    if shuffle == "pairs":
        rng.shuffle(pairs)
    return pairs


def optimizer_steps(pairs: Sequence[Pair], pairs_per_step: int) -> list[Sequence[Pair]]:
    """Cut the epoch into steps of `pairs_per_step`; the last one holds what is left."""
    return [pairs[i : i + pairs_per_step] for i in range(0, len(pairs), pairs_per_step)]


def gather(pairs: Sequence[Pair]) -> dict[int, list[int]]:
    """Return {question: its rejected answers among `pairs`}: pairs of a question share a trie."""
    by_question: dict[int, list[int]] = {}
    for question, rejected in pairs:
        by_question.setdefault(question, []).append(rejected)
    return by_question


def micro_batches(questions: Sequence[Sequence[Trie]], token_budget: int) -> Iterator[list[int]]:
    """Yield indices of questions, longest first, whose fed tokens fit `token_budget` together.

    A question's tries stay together, since its pairs compare their answers; one larger than the
    budget goes alone. Like lengths meet, which keeps padding small. Gradients do not depend on
    this plan: it only bounds the memory.
    """
    sizes = [sum(len(trie.tokens) for trie in tries) for tries in questions]
    group: list[int] = []
    used = 0
    for k in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        if group and used + sizes[k] > token_budget:
            yield group
            group, used = [], 0
        group.append(k)
        used += sizes[k]
    if group:
        yield group


class PairBatch(NamedTuple):
    """Some pairs of an optimizer step, as tries, and where their answers are among the A scored."""

    trees: TreeBatch
    answers: list[tuple[int, int]]  # (question, its answer: 0 chosen, 1 + k rejected k), A of them
    chosen: Tensor  # (P,) int64 into the A answers
    rejected: Tensor  # (P,) int64


def step_batches(
    questions: Sequence[EncodedQuestion],
    pairs: Sequence[Pair],
    token_budget: int,
    shared: bool = True,
) -> Iterator[PairBatch]:
    """Yield the micro-batches of one optimizer step; pairs of a question meet in one trie."""
    by_question = gather(pairs)
    numbers = {q: [0, *(1 + k for k in rejected)] for q, rejected in by_question.items()}
    order = list(by_question)
    tries = [
        question_tries(questions[q].prompt, [questions[q].answers[a] for a in numbers[q]], shared)
        for q in order
    ]
    for group in micro_batches(tries, token_budget):
        answers = [(order[g], a) for g in group for a in numbers[order[g]]]
        place = {answer: i for i, answer in enumerate(answers)}
        members = [(order[g], k) for g in group for k in by_question[order[g]]]
        yield PairBatch(
            collate([trie for g in group for trie in tries[g]], shared),
            answers,
            torch.tensor([place[q, 0] for q, _ in members]),
            torch.tensor([place[q, 1 + k] for q, k in members]),
        )


def count_tokens(
    questions: Sequence[EncodedQuestion], steps: Sequence[Sequence[Pair]], shared: bool = True
) -> dict[str, int]:
    """Count the tokens of these steps.

    `as_pairs`: each pair as two whole texts without padding; `as_tries`: what is fed here, in
    tries or, unshared, in plain rows.
    """
    as_pairs = as_tries = 0
    for pairs in steps:
        for q, rejected in gather(pairs).items():
            prompt, answers = questions[q].prompt, questions[q].trained
            trained = [answers[0], *(answers[1 + k] for k in rejected)]
            as_pairs += sum(2 * len(prompt) + len(trained[0]) + len(a) for a in trained[1:])
            as_tries += sum(len(t.tokens) for t in question_tries(prompt, trained, shared))
    return {"as_pairs": as_pairs, "as_tries": as_tries}
