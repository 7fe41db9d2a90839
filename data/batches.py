"""Order: which pairs make an optimizer step, and which tries go through the model together."""

import itertools
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor

from data.encode import Anchor, EncodedQuestion
from data.question import DataError
from data.rows import padded_tokens
from data.trees import Tokens, TreeBatch, Trie, Way, collate, question_tries

Pair = tuple[int, int]  # (question, which of its pairs)
Shuffle = Literal["questions", "pairs"]
WeightBy = Literal["pair", "question"]
BatchBy = Literal["pairs", "questions"]

LOOKAHEAD = 64  # questions of which the fitting ones are put into a step


def epoch_order(
    counts: Sequence[int], pairs_per_step: int, seed: int, epoch: int, shuffle: Shuffle
) -> list[Pair]:
    """Return every (question, which of its pairs) exactly once, in the order of this epoch.

    `counts` has the number of pairs of each question. `questions` keeps the pairs of a question
    together, so that they meet in one trie; `pairs` shuffles them freely. The order depends on
    nothing but the arguments.
    """
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(counts)))
    rng.shuffle(order)  # as `question_order`
    if shuffle == "questions":
        return _few_cut(order, counts, min(pairs_per_step, sum(counts)))
    pairs = [(q, k) for q in order for k in range(counts[q])]
    rng.shuffle(pairs)
    return pairs


def question_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return the numbers of all questions in the order of this epoch."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


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

    counts: Sequence[int]  # pairs of each question
    per_step: int  # pairs, or questions with all of theirs
    epochs: int
    seed: int
    shuffle: Shuffle
    max_steps: int | None = None
    batch_by: BatchBy = "pairs"

    @property
    def per_epoch(self) -> int:
        """The steps of an epoch, of which the last one holds what is left."""
        whole = len(self.counts) if self.batch_by == "questions" else sum(self.counts)
        return -(-whole // self.per_step)

    @property
    def total(self) -> int:
        """All optimizer steps."""
        return min(self.epochs * self.per_epoch, self.max_steps or sys.maxsize)

    @property
    def pairs(self) -> int:
        """The pairs of all steps; one counts in each epoch that it is seen in."""
        return self.pairs_before(self.total)

    def pairs_before(self, step: int) -> int:
        """Count the pairs of the steps before this one."""
        epochs, steps = divmod(min(step, self.total), self.per_epoch)
        done = epochs * sum(self.counts)
        if self.batch_by == "pairs":
            return done + min(steps * self.per_step, sum(self.counts))
        order = question_order(len(self.counts), self.seed, epochs) if steps else []
        return done + sum(self.counts[q] for q in order[: steps * self.per_step])

    def questions(self, steps: int | None = None) -> list[int]:
        """Return the numbers of the questions that the first steps train on; all by default."""
        return sorted({q for pairs in itertools.islice(self.from_step(), steps) for q, _ in pairs})

    def from_step(self, first: int = 0) -> Iterator[list[Pair]]:
        """Yield the pairs of each optimizer step, from step `first` on."""
        an_epoch = self.per_epoch
        order: list[list[Pair]] = []
        for step in range(first, self.total):
            epoch, place = divmod(step, an_epoch)
            if not order or not place:
                order = self._steps_of(epoch)
            yield order[place]

    def _steps_of(self, epoch: int) -> list[list[Pair]]:
        n, counts = self.per_step, self.counts
        if self.batch_by == "questions":
            order = question_order(len(counts), self.seed, epoch)
            groups = (order[i : i + n] for i in range(0, len(order), n))
            return [[(q, k) for q in group for k in range(counts[q])] for group in groups]
        pairs = epoch_order(counts, n, self.seed, epoch, self.shuffle)
        return [pairs[i : i + n] for i in range(0, len(pairs), n)]


def gather(pairs: Sequence[Pair]) -> dict[int, list[int]]:
    """Return {question: its pairs among `pairs`}: pairs of a question share a trie."""
    by_question: dict[int, list[int]] = {}
    for question, pair in pairs:
        by_question.setdefault(question, []).append(pair)
    return by_question


def micro_batches(
    sizes: Sequence[Sequence[int]], token_budget: int, way: Way = "tries"
) -> Iterator[list[int]]:
    """Yield indices of questions, longest first, whose tokens fit `token_budget` together.

    `sizes` are the tokens of each question's tries; what counts are the tokens of a batch with its
    padding. A question's tries stay together, since its pairs compare their answers; one larger
    than the budget goes alone. Like lengths meet, which keeps padding small. The plan bounds the
    memory. How a step is cut changes no gradient but by the masks that dropout then draws.
    """
    group: list[int] = []
    used: list[int] = []
    for k in sorted(range(len(sizes)), key=lambda k: -max(sizes[k])):
        if group and padded_tokens([*used, *sizes[k]], way == "tries") > token_budget:
            yield group
            group, used = [], []
        group.append(k)
        used += sizes[k]
    if group:
        yield group


def sizes_of(tries: Sequence[Trie]) -> list[int]:
    """Return the tokens that each of a question's tries feeds."""
    return [len(trie.tokens) for trie in tries]


class AnchorBatch(NamedTuple):
    """The M places of all anchors of a micro-batch, each with the k likeliest tokens there.

    The weights of a step sum to 1 where all anchors have T tokens: every prompt weighs the same,
    every anchor of a prompt too, and every place 1 / T of its anchor.
    """

    edges: Tensor  # (M,) int64 into the E edges: what the anchor says at this place
    words: Tensor  # (M, k) int64, what the reference finds likeliest there
    logps: Tensor  # (M, k) float32, their log-probs under the reference, nats
    weights: Tensor  # (M,) float32

    def to(self, device: torch.device | str) -> Self:
        """Return the same on `device`."""
        return type(self)(*(tensor.to(device) for tensor in self))


class PairBatch(NamedTuple):
    """Some pairs of an optimizer step, as tries, and where their answers are among the A scored.

    Anchors stand after the other answers of their question, in the same trie.
    """

    trees: TreeBatch
    answers: list[tuple[int, int]]  # (question, its place among the question's answers), A of them
    ids: list[tuple[Tokens, Tokens] | None]  # (prompt, answer) of each; None of an anchor
    anchors: AnchorBatch
    chosen: Tensor  # (P,) int64 into the A answers
    rejected: Tensor  # (P,) int64
    lengths: Tensor  # (A,) int64, tokens of each answer, its stop token included
    questions: Tensor  # (P,) int64, the question of each pair
    weights: Tensor  # (P,) float32, of the pair in its step, whose weights sum to 1
    as_pairs: int  # tokens that P pairs of whole texts would have, without padding
    fed: int  # tokens fed here

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with its tensors on `device`."""
        kinds = Tensor | TreeBatch | AnchorBatch
        moved = (f.to(device) if isinstance(f, kinds) else f for f in self)
        return type(self)(*cast(Any, moved))


def step_batches(
    questions: Sequence[EncodedQuestion],
    pairs: Sequence[Pair],
    token_budget: int,
    way: Way = "tries",
    weight_by: WeightBy = "pair",
    share: tuple[int, int] = (0, 1),
) -> Iterator[PairBatch]:
    """Yield the micro-batches of one optimizer step; pairs of a question meet in one trie.

    Of several processes, process `share[0]` of `share[1]` gets every `share[1]`-th question.

    `weight_by="question"` gives a pair 1 / K of its question's weight, where the question has K
    pairs in all, so that every question weighs the same in an epoch.
    """
    by_question = gather(pairs)
    read = {q: questions[q] for q in by_question}
    pairs_of = {q: read[q].pairs for q in read}
    taken = {q: [pairs_of[q][k] for k in some] for q, some in by_question.items()}
    numbers = {q: list(dict.fromkeys(itertools.chain(*some))) for q, some in taken.items()}
    texts = {q: _texts(read[q], numbers[q]) for q in read}
    order = list(by_question)[share[0] :: share[1]]
    tries = [question_tries(read[q].prompt, list(texts[q].values()), way) for q in order]
    shares = {q: 1.0 if weight_by == "pair" else 1 / len(pairs_of[q]) for q in read}
    whole = sum(shares[q] for q, _ in pairs)
    prompts = sum(bool(q.anchors) for q in read.values())  # of the whole step
    for group in micro_batches([*map(sizes_of, tries)], token_budget, way):
        answers = [(order[g], a) for g in group for a in texts[order[g]]]
        place = {answer: i for i, answer in enumerate(answers)}
        members = [(order[g], *pair) for g in group for pair in taken[order[g]]]
        anchors = [a for g in group for a in read[order[g]].anchors]
        each = [len(read[order[g]].anchors) for g in group for _ in read[order[g]].anchors]
        fed = [trie for g in group for trie in tries[g]]
        trees = collate(fed, way)
        places = [i for i, (q, a) in enumerate(answers) if a >= len(read[q].answers)]
        yield PairBatch(
            trees=trees,
            answers=answers,
            ids=[(read[q].prompt, texts[q][a]) if a in numbers[q] else None for q, a in answers],
            anchors=_anchor_batch(trees, places, anchors, [1 / (n * prompts) for n in each]),
            chosen=torch.tensor([place[q, better] for q, better, _ in members]),
            rejected=torch.tensor([place[q, worse] for q, _, worse in members]),
            lengths=torch.tensor([len(texts[q][a]) for q, a in answers]),
            questions=torch.tensor([q for q, _, _ in members]),
            weights=torch.tensor([shares[q] / whole for q, _, _ in members]),
            as_pairs=sum(
                2 * len(read[q].prompt) + len(texts[q][better]) + len(texts[q][worse])
                for q, better, worse in members
            ),
            fed=sum(sizes_of(fed)),
        )


def _anchor_batch(
    trees: TreeBatch, places: Sequence[int], anchors: Sequence[Anchor], weights: Sequence[float]
) -> AnchorBatch:
    """Collect anchors, which are answers of these numbers and weights in a batch."""
    lengths = torch.bincount(trees.path_answers, minlength=trees.answers)
    first = (lengths.cumsum(0) - lengths).tolist()  # of an answer's edges among all paths
    edges = [trees.path_edges[first[k] : first[k] + len(a.tokens)]
             for k, a in zip(places, anchors, strict=True)]  # fmt: skip
    if not anchors:
        none = torch.zeros(0)
        return AnchorBatch(none.long(), none.long()[:, None], none[:, None], none)
    return AnchorBatch(
        torch.cat(edges),
        torch.cat([torch.as_tensor(a.words, dtype=torch.long) for a in anchors]),
        torch.cat([torch.as_tensor(a.logps) for a in anchors]),
        torch.tensor([
            w / a.longest for w, a in zip(weights, anchors, strict=True) for _ in a.tokens
        ]),
    )  # fmt: skip


def _texts(question: EncodedQuestion, numbers: Sequence[int]) -> dict[int, Tokens]:
    """Return the answers of these numbers, and the anchors numbered after all of them."""
    answers = question.answers
    anchors = enumerate(question.anchors, start=len(answers))
    return {k: answers[k] for k in numbers} | {k: anchor.tokens for k, anchor in anchors}


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
        counted = "1 question" if len(prompts) == 1 else f"{len(prompts)} questions"
        raise DataError(
            f"--eval-fraction {fraction} of {counted} leaves {len(prompts) - held_out} to train on "
            f"and {held_out} to evaluate; bring more questions, choose another fraction, or say "
            "--eval-fraction 0 to train on all of them and measure nothing"
        )
    order = list(range(len(prompts)))
    random.Random(f"split/{seed}").shuffle(order)
    evaluated = {prompts[i] for i in order[:held_out]}
    sides: tuple[list[int], list[int]] = ([], [])
    for number, key in enumerate(keys):
        sides[key in evaluated].append(number)
    return sides
