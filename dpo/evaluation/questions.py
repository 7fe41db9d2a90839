"""Held-out questions in words: what each answer's log-prob was before training, and is after."""

from collections.abc import Sequence
from typing import Any, TypeVar

from data.encode import EncodedQuestion
from dpo.scoring import Scores, answer_key

QUESTIONS = 500  # kept at most
Item = TypeVar("Item")


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many of the items, in their order and evenly spaced."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def in_words(
    questions: Sequence[EncodedQuestion], tokenizer: Any, old: Scores, new: Scores
) -> dict[str, Any]:
    """Return what questions.json holds: up to 500 questions, chosen evenly, with every answer.

    An answer has its text, its kind, its number of tokens, and log pi(y|x) in nats before and after
    training. `old` and `new` have the log-probs.
    """

    def words(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    told = []
    for q in evenly(questions, QUESTIONS):
        kinds = ("chosen", *("rejected",) * len(q.rejected), *("correct",) * len(q.correct))
        keys = [answer_key(q.prompt, answer) for answer in q.answers]
        answers = [
            {"text": words(ids), "kind": kind, "tokens": len(ids), "before": old[key],
             "after": new[key]}
            for ids, kind, key in zip(q.answers, kinds, keys, strict=True)
        ]  # fmt: skip
        told.append({"prompt": words(q.prompt), "category": q.category, "answers": answers})
    return {"held_out": len(questions), "questions": told}
