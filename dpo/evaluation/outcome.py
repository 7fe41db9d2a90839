"""What a run did to its model, all of it together: gains, drift, samples, and their picture."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from data.encode import EncodedQuestion
from data.gather import unwatched
from dpo.evaluation.drift import PROMPTS, Drift, change, kl_to_reference, perplexity
from dpo.evaluation.generate import AsReference, samples
from dpo.evaluation.measures import believed, compare, pair_margins
from dpo.scoring import Scorer, Scores


class Outcome(NamedTuple):
    """What a run leaves for people to look at."""

    results: dict[str, Any]  # evaluation.json
    samples: list[dict[str, Any]]  # samples.json
    margins: tuple[Sequence[float], Sequence[float]]  # of the held-out pairs, before and after

    @property
    def drift(self) -> Drift:
        """Return the drift that is in the results."""
        return Drift(**self.results["drift"])


def outcome_of(
    scorer: Scorer,
    reference: AsReference,
    tokenizer: Any,
    questions: Sequence[EncodedQuestion],
    old: Scores,
    new: Scores,
) -> Outcome:
    """Compare the policy, which `scorer` scores in eval mode, with its reference.

    The questions are held out. `old` are the reference's log-probs of each answer to them, `new`
    the policy's.
    """
    before, after = believed(questions, old), believed(questions, new)
    results = compare(before, after, [q.category for q in questions])
    margins = (pair_margins(questions, old), pair_margins(questions, new))
    scorer = replace(scorer, watch=unwatched, kept_in_step=None)  # all processes make all passes
    text_after = perplexity(scorer, tokenizer)
    with reference(scorer.model):
        text_before = perplexity(scorer, tokenizer)
    some = [questions[i] for i in range(min(PROMPTS, len(questions)))]
    kl = kl_to_reference(scorer.model, reference, [q.prompt for q in some], some[0].chosen[-1])
    drift = Drift(*kl, *change(questions, old, new), text_before, text_after)
    answered = samples(scorer.model, reference, tokenizer, questions)
    return Outcome({**results, "drift": drift._asdict()}, answered, margins)
