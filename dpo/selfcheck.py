"""The self-check at start-up: do tries give this model's own log-probs?

Tree masks, positions and the head are read off a model's configuration. Where that reading is wrong
for an architecture, training falls back to plain padded rows through the model's own forward.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from data.encode import EncodedQuestion
from data.trees import collate, question_tries
from dpo.logps import answer_logps

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.08, torch.float16: 0.02}


class SelfCheck(NamedTuple):
    """Whether tries may be used, and why."""

    shared: bool
    reason: str


@torch.no_grad()
def check_sharing(model: Any, questions: Sequence[EncodedQuestion], sample: int = 3) -> SelfCheck:
    """Compare tries with plain rows on the longest question and on `sample - 1` others.

    The longest path is the one that leaves a sliding window. Tries pass if the mean difference per
    scored token is below the dtype's tolerance, which lies above the rounding noise between two
    orders of summation and far below the effect of one wrongly visible token.
    """
    by_length = sorted(questions, key=lambda q: -max(map(len, q.answers)) - len(q.prompt))
    spread = [by_length[i * len(by_length) // sample] for i in range(min(sample, len(by_length)))]
    tolerance = TOLERANCE.get(model.dtype, 1e-3)
    worst = 0.0
    for q in spread:
        answers = [q.chosen, *q.rejected][:4]
        plain, tried = (
            collate(question_tries(q.prompt, answers, shared), shared).to(model.device)
            for shared in (False, True)
        )
        expected = answer_logps(model, plain)
        try:
            found = answer_logps(model, tried)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError) as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            return SelfCheck(False, f"the model does not take a tree mask ({text})")
        lengths = torch.tensor([len(a) for a in answers], device=found.device)
        difference = ((found - expected).abs() / lengths).max().item()
        worst = max(worst, difference)
        if not difference <= tolerance:  # NaN fails too
            return SelfCheck(
                False, f"tries differ from plain rows by {difference:.2g} nats a token"
            )
    return SelfCheck(True, f"tries equal plain rows within {worst:.1g} nats a token")
