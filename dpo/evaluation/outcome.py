"""What a run did to its model, all of it together: gains, drift, samples, and their pictures."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.encode import EncodedQuestion, stop_of
from dpo.evaluation.dial import Point
from dpo.evaluation.drift import PROMPTS, Drift, change, kl_to_reference
from dpo.evaluation.generate import AsReference
from dpo.evaluation.measures import believed, compare, pair_margins
from dpo.evaluation.neutral import Texts, perplexities, perplexity
from dpo.evaluation.questions import in_words
from dpo.scoring import Answers, Scores


class Outcome(NamedTuple):
    """What a run leaves for people to look at."""

    results: dict[str, Any]  # evaluation.json
    samples: list[dict[str, Any]]  # samples.json
    margins: tuple[Sequence[float], Sequence[float]]  # of the held-out pairs, before and after
    questions: Mapping[str, Any]  # questions.json

    @property
    def drift(self) -> Drift:
        """Return the drift that is in the results."""
        return Drift(**self.results["drift"])


class MeasuredOn(NamedTuple):
    """What nobody trained on, and a model is measured on."""

    questions: Sequence[EncodedQuestion]  # held out
    texts: Texts  # the neutral ones

    @property
    def paragraphs(self) -> list[Answers]:
        """Return those of all kinds of neutral text."""
        return [paragraph for kind in self.texts.values() for paragraph in kind]

    def drift(self, old: Scores, new: Scores, kl: tuple[float, float] = (0.0, 0.0)) -> Drift:
        """Return how far a model is from its reference, by their log-probs and a KL."""
        texts, every = self.texts, self.paragraphs
        return Drift(
            *kl, *change(self.questions, old, new), perplexity(every, old), perplexity(every, new),
            perplexities(texts, old), perplexities(texts, new),
        )  # fmt: skip


class AtSize(NamedTuple):
    """An adapter at one size."""

    scores: Scores  # log-probs of every answer to the questions
    drift: Drift


def drift_of(model: Any, reference: AsReference, on: MeasuredOn, old: Scores, new: Scores) -> Drift:
    """Return how far a model, in eval mode, is from its reference.

    `old` and `new` are the log-probs of all answers and paragraphs, by the reference and by the
    model. Within `reference(model)` the model is its reference.
    """
    some = [on.questions[i] for i in range(min(PROMPTS, len(on.questions)))]
    kl = kl_to_reference(model, reference, [q.prompt for q in some], stop_of(on.questions))
    return on.drift(old, new, kl)


def outcome_of(
    on: MeasuredOn,
    old: Scores,
    measured: Mapping[float, AtSize],
    size: float,
    samples: list[dict[str, Any]],
    tokenizer: Any,
) -> Outcome:
    """Compare the adapter at one of its measured sizes with the reference, whose scores are `old`.

    The dial has all of those sizes, the smallest first.
    """
    questions = on.questions
    now = measured[size]
    before, after = believed(questions, old), believed(questions, now.scores)
    results = compare(before, after, [q.category for q in questions])
    dial = [
        Point.of(scale, believed(questions, at.scores).means(), at.drift)._asdict()
        for scale, at in sorted(measured.items())
    ]
    margins = (pair_margins(questions, old), pair_margins(questions, now.scores))
    results |= {"drift": now.drift._asdict(), "dial": dial}
    return Outcome(results, samples, margins, in_words(questions, tokenizer, old, now.scores))
