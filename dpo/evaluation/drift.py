"""What alignment cost: how far the policy moved from its reference, beyond the held-out answers."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from data.encode import EncodedQuestion
from data.trees import Tokens
from dpo.evaluation.generate import AsReference, Drawing, answers, contiguous_head
from dpo.scoring import Scores, answer_key

PROMPTS = 12  # of which an answer is drawn for the KL ...
LONGEST = 32  # ... and its tokens at most
DRIFT_TOKENS = 3 * PROMPTS * LONGEST  # read for one: drawn, and read by policy and reference
FELL = 0.5  # nats; chosen answers that lose more are worth a word,
HARDER = 1.1  # and so is a perplexity that grows by more than this factor


class Drift(NamedTuple):
    """How far a policy moved; log-probs and KL in nats."""

    kl: float  # KL(pi || pi_ref) of an answer of at most `LONGEST` tokens, over held-out prompts
    kl_per_token: float
    chosen: float  # mean change of log pi of the held-out chosen answers
    rejected: float
    perplexity_before: float  # of all neutral text
    perplexity_after: float
    perplexities_before: Mapping[str, float] = MappingProxyType({})  # of each kind of it;
    perplexities_after: Mapping[str, float] = MappingProxyType({})  # runs of before have none

    @property
    def worst_kind(self) -> tuple[str, float, float]:
        """Return (name, perplexity before, after) of the neutral text that suffered most."""
        before, after = self.perplexities_before, self.perplexities_after
        if not before:
            return "neutral text", self.perplexity_before, self.perplexity_after
        kind = max(before, key=lambda kind: after[kind] / before[kind])
        return kind, before[kind], after[kind]


def kl_to_reference(
    model: Any,
    reference: AsReference,
    prompts: Sequence[Tokens],
    stop: int,
    drawing: Drawing = Drawing(LONGEST, temperature=1.0),
) -> tuple[float, float]:
    """Return KL(pi || pi_ref) an answer and a token, in nats, averaged over prompts.

        KL = E_{y ~ pi} sum_t sum_v pi(v | x, y_<t) log (pi(v | x, y_<t) / pi_ref(v | x, y_<t))

    One answer a prompt is drawn from the policy; of each of its positions the sum over the
    vocabulary is exact, which varies far less than log pi(y|x) - log pi_ref(y|x) and has the same
    expectation, by the chain rule. Long answers are cut.

    `stop` ends an answer. Answers are drawn at temperature 1: others would not be the policy's.
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


def change(questions: Sequence[EncodedQuestion], old: Scores, new: Scores) -> tuple[float, float]:
    """Return the mean change of log pi of the chosen and of the rejected answers, in nats."""
    chosen = [answer_key(q.prompt, q.chosen) for q in questions]
    rejected = [answer_key(q.prompt, answer) for q in questions for answer in q.rejected]
    c, r = (sum(new[key] - old[key] for key in keys) / len(keys) for keys in (chosen, rejected))
    return c, r


def remark(drift: Drift) -> str:
    """Say what of a drift should make a person look; "" if nothing does."""
    said = []
    if drift.chosen < -FELL and drift.rejected < 0:
        said.append(
            f"The log-probs of chosen answers fell too ({drift.chosen:+.1f} nats, those of "
            f"rejected ones {drift.rejected:+.1f}): both became less likely than what the model "
            "writes instead. With anchors a larger "
            "--anchor-chosen holds them up; else a lower --lr, a larger --beta or an --sft-weight."
        )
    kind, before, after = drift.worst_kind
    if max(drift.perplexity_after / drift.perplexity_before, after / before) > HARDER:
        of_kind = f", of {kind} {before:.1f} -> {after:.1f}" if drift.perplexities_before else ""
        said.append(
            f"Neutral text became harder to predict: perplexity {drift.perplexity_before:.1f} -> "
            f"{drift.perplexity_after:.1f}{of_kind}. A smaller size of the adapter costs less "
            "(python -m run scale)."
        )
    return " ".join(said)
