"""What alignment cost: how far the policy moved from its reference, beyond the held-out answers."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.encode import EncodedQuestion
from data.gather import unwatched
from data.trees import Tokens
from dpo.evaluation.generate import Drawing, answers, contiguous_head
from dpo.scoring import Scorer, Scores, answer_key

NEUTRAL = Path(__file__).with_name("neutral.txt")  # of no topic that anybody trains on
PROMPTS = 24  # of which an answer is drawn for the KL ...
LONGEST = 32  # ... and its tokens at most


class Drift(NamedTuple):
    """How far a policy moved; log-probs and KL in nats."""

    kl: float  # KL(pi || pi_ref) of an answer of at most `LONGEST` tokens, over held-out prompts
    kl_per_token: float
    chosen: float  # mean change of log pi of the held-out chosen answers
    rejected: float
    perplexity_before: float  # of the neutral text
    perplexity_after: float


def kl_to_reference(
    model: Any,
    reference: Callable[[Any], AbstractContextManager[None]],
    prompts: Sequence[Tokens],
    stop: int,
    drawing: Drawing = Drawing(LONGEST, temperature=1.0),
) -> tuple[float, float]:
    """Return KL(pi || pi_ref) an answer and a token, in nats, averaged over prompts.

        KL = E_{y ~ pi} sum_t sum_v pi(v | x, y_<t) log (pi(v | x, y_<t) / pi_ref(v | x, y_<t))

    One answer a prompt is drawn from the policy; of each of its positions the sum over the
    vocabulary is exact, which varies far less than log pi(y|x) - log pi_ref(y|x) and has the same
    expectation, by the chain rule. Long answers are cut.

    Args:
        model: the policy; within `reference(model)` it is the reference.
        reference: such as `lora.adapters_disabled`.
        prompts: token ids.
        stop: the token that ends an answer.
        drawing: how the answers are drawn: at temperature 1, or they are not the policy's.
    """
    total, tokens = 0.0, 0
    drawn = answers(model, prompts, stop, drawing)
    for prompt, (said, stopped) in zip(prompts, drawn, strict=True):
        count = len(said) + stopped  # T: the stop token is an answer's last
        ids = torch.tensor([(*prompt, *said)[: len(prompt) + count - 1]], device=model.device)
        policy = _next_token_logps(model, ids, count)  # (T, V)
        with reference(model):
            anchor = _next_token_logps(model, ids, count)
        apart = anchor.neg_().add_(policy)  # in place, since the vocabulary is long
        total += float(policy.exp_().mul_(apart).sum())  # eq. (18) of docs/math.md
        tokens += count
    return total / len(prompts), total / tokens


@torch.no_grad()
def _next_token_logps(model: Any, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Return log softmax of the last `count` positions, float32."""
    with contiguous_head(model):
        logits = model(input_ids=ids, logits_to_keep=count, use_cache=False).logits[0]
    return torch.log_softmax(logits[-count:].float(), -1)


def perplexity(scorer: Scorer, tokenizer: Any, text: str = "") -> float:
    """Return exp(-mean log-prob a token) of a text, by default the neutral one.

    Paragraphs are read one by one, behind BOS, or else without their first token's own score.
    """
    start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    paragraphs = (text or NEUTRAL.read_text(encoding="utf-8")).strip().split("\n\n")
    encoded = [(*start, *tokenizer(p, add_special_tokens=False).input_ids) for p in paragraphs]

    def score(ids: Tokens) -> float:  # alone: paragraphs behind the same BOS would be one trie
        return sum(scorer.scores("", [[(ids[:1], [ids[1:]])]]).values())

    return math.exp(-sum(map(score, encoded)) / sum(len(ids) - 1 for ids in encoded))


def change(questions: Sequence[EncodedQuestion], old: Scores, new: Scores) -> tuple[float, float]:
    """Return the mean change of log pi of the chosen and of the rejected answers, in nats."""

    def mean(which: Callable[[EncodedQuestion], Sequence[Tokens]]) -> float:
        keys = [answer_key(q.prompt, answer) for q in questions for answer in which(q)]
        return sum(new[key] - old[key] for key in keys) / len(keys)

    return mean(lambda q: (q.chosen,)), mean(lambda q: q.rejected)


def measure_drift(
    scorer: Scorer,
    reference: Callable[[Any], AbstractContextManager[None]],
    tokenizer: Any,
    questions: Sequence[EncodedQuestion],
    old: Scores,
    new: Scores,
) -> Drift:
    """Measure a policy's drift on held-out questions.

    Args:
        scorer: of the policy, in eval mode; within `reference(model)` it is the reference.
        reference: such as `lora.adapters_disabled`.
        tokenizer: the model's own.
        questions: held out.
        old: the reference's log-prob of each of their answers.
        new: the policy's.
    """
    scorer = replace(scorer, watch=unwatched, kept_in_step=None)  # all processes make all passes
    some = [questions[i] for i in range(min(PROMPTS, len(questions)))]
    prompts, stop = [q.prompt for q in some], some[0].chosen[-1]
    after = perplexity(scorer, tokenizer)
    with reference(scorer.model):
        before = perplexity(scorer, tokenizer)
    kl = kl_to_reference(scorer.model, reference, prompts, stop)
    return Drift(*kl, *change(questions, old, new), before, after)


def remark(drift: Drift) -> str:
    """Say what of a drift should make a person look; "" if nothing does."""
    said = []
    if drift.chosen < 0 and drift.rejected < 0:
        said.append(
            f"The log-probs of chosen answers fell too ({drift.chosen:+.1f} nats, those of "
            f"rejected ones {drift.rejected:+.1f}): both became less likely than what the model "
            "writes instead. A lower --lr, a larger --beta or an --sft-weight holds them up."
        )
    if drift.perplexity_after > 1.1 * drift.perplexity_before:
        said.append(
            f"A neutral text became harder to predict: perplexity {drift.perplexity_before:.1f} -> "
            f"{drift.perplexity_after:.1f}."
        )
    return " ".join(said)
