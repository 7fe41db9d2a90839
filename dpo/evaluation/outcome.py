"""What a run did to its model, all of it together: gains, drift, samples, and their picture."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from data.encode import EncodedQuestion
from dpo.evaluation.drift import Drift, measure_drift
from dpo.evaluation.generate import samples
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
    reference: Callable[[Any], AbstractContextManager[None]],
    tokenizer: Any,
    questions: Sequence[EncodedQuestion],
    old: Scores,
    new: Scores,
) -> Outcome:
    """Compare the policy with its reference on held-out questions; arguments of `measure_drift`."""
    before, after = believed(questions, old), believed(questions, new)
    drift = measure_drift(scorer, reference, tokenizer, questions, old, new)
    results = compare(before, after, [q.category for q in questions])
    margins = (pair_margins(questions, old), pair_margins(questions, new))
    answered = samples(scorer.model, reference, tokenizer, questions)
    return Outcome({**results, "drift": drift._asdict()}, answered, margins)
