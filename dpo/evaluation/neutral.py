"""Neutral text of several kinds, and how hard a model finds it to predict.

It was written for this project and is of no topic that anybody trains on. Alignment tends to harm
some kinds of text before others, so that each kind has a perplexity of its own.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo.scoring import Answers, Scores, answer_key

FOLDER = Path(__file__).with_name("neutral")
KINDS = ("prose", "dialogue", "instructions", "code")  # of about 1,000 tokens each
LONGEST = 1_200  # tokens that are read of a kind: a tokenizer of letters makes many more
NEUTRAL_TOKENS = 1_000 * len(KINDS)  # of all, roughly

Texts = Mapping[str, Sequence[Answers]]  # kind -> its paragraphs: what is read first, and the rest


def neutral_texts(tokenizer: Any, longest: int | None = None) -> dict[str, list[Answers]]:
    """Return {kind: paragraphs} of the texts in `neutral/`, as token ids.

    Of a kind that has more than `LONGEST` tokens, the last paragraphs are left out. Of a paragraph
    the first `longest` tokens are read, if a model reads no more.
    """
    texts = {}
    for kind in KINDS:
        text = (FOLDER / f"{kind}.txt").read_text(encoding="utf-8")
        parts = paragraphs(text, tokenizer, longest)
        ends = itertools.accumulate(len(answer) for _, (answer,) in parts)
        texts[kind] = [p for p, end in zip(parts, ends, strict=True) if end <= LONGEST]
    return texts


def paragraphs(text: str, tokenizer: Any, longest: int | None = None) -> list[Answers]:
    """Return the paragraphs of a text, which blank lines part, as answers to be scored.

    Each is an answer to BOS. Without a BOS, its first token is what the rest is an answer to, and
    has no score of its own.
    """
    start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    parts = text.strip().split("\n\n")
    encoded = [(*start, *tokenizer(p, add_special_tokens=False).input_ids) for p in parts]
    return [(ids[:1], [ids[1:longest]]) for ids in encoded]


def perplexity(paragraphs: Iterable[Answers], scores: Scores) -> float:
    """Return exp(-sum of log-probs / sum of tokens) over paragraphs, whose `scores` are in nats."""
    total, tokens = 0.0, 0
    for prompt, (answer,) in paragraphs:
        total += scores[answer_key(prompt, answer)]
        tokens += len(answer)
    return math.exp(min(-total / tokens, 700.0))  # beyond it a float overflows


def perplexities(texts: Texts, scores: Scores) -> dict[str, float]:
    """Return {kind: perplexity}."""
    return {kind: perplexity(some, scores) for kind, some in texts.items()}


def rise(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Return the largest relative rise of a perplexity, after / before - 1, over all kinds.

    It is NaN where one of them is, which no limit allows.
    """
    rises = [after[kind] / before[kind] - 1 for kind in before]
    return max(rises) if all(map(math.isfinite, rises)) else math.nan
