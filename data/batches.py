"""Order: which pairs make an optimizer step, and which tries go through the model together."""

import itertools
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor

from data.encode import EncodedQuestion
from data.question import DataError
from data.trees import Tokens, TreeBatch, Trie, collate, question_tries

Pair = tuple[int, int]  # (question, which of its rejected answers)
Shuffle = Literal["questions", "pairs"]
WeightBy = Literal["pair", "question"]

LOOKAHEAD = 64  # questions of which the fitting ones are put into a step


def epoch_order(
    counts: Sequence[int], pairs_per_step: int, seed: int, epoch: int, shuffle: Shuffle
) -> list[Pair]:
    """Return every (question, rejected answer) pair exactly once, in the order of this epoch.

    `counts` has the number of rejected answers of each question. `questions` keeps the pairs of a
    question together, so that they meet in one trie; `pairs` shuffles them freely. The order
    depends on nothing but the arguments.
    """
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(counts)))
    rng.shuffle(order)
    if shuffle == "questions":
        return _few_cut(order, counts, pairs_per_step)
    pairs = [(q, k) for q in order for k in range(counts[q])]
    rng.shuffle(pairs)
    return pairs


def _few_cut(order: Iterable[int], counts: Sequence[int], n: int) -> list[Pair]:
    """Return the pairs of the questions in `order`, some moved up: the end of a step cuts few.

    What is cut is computed twice. A step of `n` pairs takes the question that has waited longest
    and those, as early as can be, that fill it up with it. Where none do, it takes those that leave
    the least room, and there some pairs of the first of the others.
    """
    questions = iter(order)
    waiting: list[list[Pair]] = []
    pairs: list[Pair] = []
    while True:
        enter = itertools.islice(questions, max(LOOKAHEAD, n) - len(waiting))
        waiting += ([(q, k) for k in range(counts[q])] for q in enter)
        if not waiting:
            return pairs
        sums = [1]  # bit s of sums[i]: waiting[0] and some of waiting[1:i] have s <= n pairs
        for question in waiting:
            others = sums[-1] if len(sums) > 1 else 0
            sums.append((sums[-1] << len(question) | others) & ((2 << n) - 1))
            if sums[-1] >> n:
                break
        left = filled = max(sums[-1].bit_length() - 1, 0)
        taken = set[int]()
        for place in reversed(range(len(sums) - 1)):
            if left and not sums[place] >> left & 1:
                taken.add(place)
                left -= len(waiting[place])
        pairs += (pair for place in sorted(taken) for pair in waiting[place])
        waiting = [question for place, question in enumerate(waiting) if place not in taken]
        if waiting:
            pairs += waiting[0][: n - filled]
            waiting[0] = waiting[0][n - filled :]


class Steps(NamedTuple):
    """Which pairs make which optimizer step: a function of these settings, for any process."""

    counts: Sequence[int]  # rejected answers of each question
    pairs_per_step: int
    epochs: int
    seed: int
    shuffle: Shuffle
    max_steps: int | None = None

    @property
    def an_epoch(self) -> int:
        """The last step of an epoch holds what is left."""
        return -(-sum(self.counts) // self.pairs_per_step)

    @property
    def total(self) -> int:
        """All optimizer steps."""
        return min(self.epochs * self.an_epoch, self.max_steps or sys.maxsize)

    @property
    def pairs(self) -> int:
        """The pairs of all steps; one counts in each epoch that it is seen in."""
        return self.pairs_before(self.total)

    def pairs_before(self, step: int) -> int:
        """Count the pairs of the steps before this one."""
        epochs, steps = divmod(min(step, self.total), self.an_epoch)
        return epochs * sum(self.counts) + min(steps * self.pairs_per_step, sum(self.counts))

    def from_step(self, first: int = 0) -> Iterator[list[Pair]]:
        """Yield the pairs of each optimizer step, from step `first` on."""
        n, an_epoch = self.pairs_per_step, self.an_epoch
        order: list[Pair] = []
        for step in range(first, self.total):
            epoch, place = divmod(step, an_epoch)
            if not order or not place:
                order = epoch_order(self.counts, n, self.seed, epoch, self.shuffle)
            yield order[place * n : (place + 1) * n]


def gather(pairs: Sequence[Pair]) -> dict[int, list[int]]:
    """Return {question: its rejected answers among `pairs`}: pairs of a question share a trie."""
    by_question: dict[int, list[int]] = {}
    for question, rejected in pairs:
        by_question.setdefault(question, []).append(rejected)
    return by_question


def micro_batches(questions: Sequence[Sequence[Trie]], token_budget: int) -> Iterator[list[int]]:
    """Yield indices of questions, longest first, whose fed tokens fit `token_budget` together.

    A question's tries stay together, since its pairs compare their answers; one larger than the
    budget goes alone. Like lengths meet, which keeps padding small. The plan bounds the memory. It
    changes no gradient but by the masks that dropout then draws.
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
    ids: list[tuple[Tokens, Tokens]]  # (prompt, answer) of each
    chosen: Tensor  # (P,) int64 into the A answers
    rejected: Tensor  # (P,) int64
    lengths: Tensor  # (A,) int64, tokens of each answer, its stop token included
    questions: Tensor  # (P,) int64, the question of each pair
    weights: Tensor  # (P,) float32, of the pair in its step, whose weights sum to 1
    as_pairs: int  # tokens that P pairs of whole texts would have, without padding
    fed: int  # tokens fed here

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with its tensors on `device`."""
        moved = (f.to(device) if isinstance(f, Tensor | TreeBatch) else f for f in self)
        return type(self)(*cast(Any, moved))


def step_batches(
    questions: Sequence[EncodedQuestion],
    pairs: Sequence[Pair],
    token_budget: int,
    shared: bool = True,
    weight_by: WeightBy = "pair",
    share: tuple[int, int] = (0, 1),
) -> Iterator[PairBatch]:
    """Yield the micro-batches of one optimizer step; pairs of a question meet in one trie.

    Of several processes, process `share[0]` of `share[1]` gets every `share[1]`-th question.

    `weight_by="question"` gives a pair 1 / K of its question's weight, where the question has K
    rejected answers in all, so that every question weighs the same in an epoch.
    """
    by_question = gather(pairs)
    numbers = {q: [0, *(1 + k for k in rejected)] for q, rejected in by_question.items()}
    read = {q: questions[q] for q in by_question}
    order = list(by_question)[share[0] :: share[1]]
    tries = [
        question_tries(read[q].prompt, [read[q].trained[a] for a in numbers[q]], shared)
        for q in order
    ]
    shares = {q: 1.0 if weight_by == "pair" else 1 / len(read[q].rejected) for q in read}
    whole = sum(shares[q] for q, _ in pairs)
    for group in micro_batches(tries, token_budget):
        answers = [(order[g], a) for g in group for a in numbers[order[g]]]
        place = {answer: i for i, answer in enumerate(answers)}
        members = [(order[g], k) for g in group for k in by_question[order[g]]]
        fed = [trie for g in group for trie in tries[g]]
        yield PairBatch(
            collate(fed, shared),
            answers,
            [(read[q].prompt, read[q].trained[a]) for q, a in answers],
            torch.tensor([place[q, 0] for q, _ in members]),
            torch.tensor([place[q, 1 + k] for q, k in members]),
            torch.tensor([len(read[q].trained[a]) for q, a in answers]),
            torch.tensor([q for q, _ in members]),
            torch.tensor([shares[q] / whole for q, _ in members]),
            sum(
                2 * len(read[q].prompt) + len(read[q].chosen) + len(read[q].rejected[k])
                for q, k in members
            ),
            sum(len(trie.tokens) for trie in fed),
        )


def split_by_prompt(keys: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split question numbers into (training, held-out); the same prompt stays on one side.

    `keys` name the prompt of each question, without case, spacing and punctuation. Splitting pairs
    instead would put nearly every held-out question's chosen answer into training.

    Raises:
        DataError: one of the sides would be empty.
    """
    prompts = list(dict.fromkeys(keys))
    held_out = round(len(prompts) * fraction)
    if held_out >= len(prompts) or (fraction > 0 and held_out == 0):
        raise DataError(
            f"--eval-fraction {fraction} of {len(prompts)} questions leaves "
            f"{len(prompts) - held_out} to train on and {held_out} to evaluate; "
            "choose another fraction or bring more questions"
        )
    order = list(range(len(prompts)))
    random.Random(f"split/{seed}").shuffle(order)
    evaluated = {prompts[i] for i in order[:held_out]}
    sides: tuple[list[int], list[int]] = ([], [])
    for number, key in enumerate(keys):
        sides[key in evaluated].append(number)
    return sides
