"""What a run did to its model, all of it together: gains, drift, samples, and their picture."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from data.encode import EncodedQuestion
from dpo.drift import Drift, measure_drift
from dpo.generate import samples
from dpo.measures import believed, compare, pair_margins
from dpo.reference import Scores


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
    model: Any,
    reference: Callable[[Any], AbstractContextManager[None]],
    tokenizer: Any,
    questions: Sequence[EncodedQuestion],
    old: Scores,
    new: Scores,
    shared: bool = True,
) -> Outcome:
    """Compare the policy with its reference on held-out questions.

    Args:
        model: the policy, in eval mode; within `reference(model)` it is the reference.
        reference: such as `lora.adapters_disabled`.
        tokenizer: the model's own.
        questions: held out.
        old: the reference's log-prob of each of their answers.
        new: the policy's.
        shared: False for models that tries do not suit.
    """
    about = (model, reference, tokenizer, questions)
    before, after = believed(questions, old), believed(questions, new)
    drift = measure_drift(*about, old, new, shared)
    results = compare(before, after, [q.category for q in questions])
    margins = (pair_margins(questions, old), pair_margins(questions, new))
    return Outcome({**results, "drift": drift._asdict()}, samples(*about), margins)
