"""The trained adapter at any size: which one --scale means, and what it gains and costs there.

Sizes are shares of the trained delta: 1 is what training left, and 0 the bare base.
"""

from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import data
import dpo
import lora
from run.config import Config
from run.console import watch_answers
from run.processes import World
from run.reference import Reference


class Sizes:
    """What a model with a trained adapter, in eval mode, is at each size of the adapter.

    Several processes make the same calls, and each scores its share.

    Args:
        scorer: of the model.
        reference: what it is compared with.
        world: the processes.
        tokenizer: of the neutral text.
        held_out: the questions, if there are any.
    """

    def __init__(
        self, scorer: dpo.Scorer, reference: Reference, world: World, tokenizer: Any,
        held_out: data.Table[data.EncodedQuestion],
    ) -> None:  # fmt: skip
        self.scorer, self.reference, self.world = scorer, reference, world
        self.tokenizer, self.model = tokenizer, scorer.model
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.on = dpo.MeasuredOn(held_out, dpo.neutral_texts(tokenizer, longest))
        self._answers = [held_out.map(dpo.all_answers)]
        self._paragraphs = [self.on.paragraphs]
        smaller = scorer.budgets._replace(score=min(scorer.budgets.score, scorer.budgets.text))
        watch = partial(watch_answers, unit="paragraphs")
        self._apart = replace(scorer, joined=False, budgets=smaller, watch=watch)
        self._seen: dict[float, dpo.Scores] = {}  # of the paragraphs, at each size

    def chosen(self, config: Config) -> float:
        """Return the size that --scale asks for; say how `auto` came to it.

        Raises:
            NumericError: no size holds --max-drift.
        """
        if config.size is not None:
            return config.size
        size = dpo.largest_within(self.rise, config.max_drift)
        limit = f"--max-drift {config.max_drift:g}"
        if not size:
            smallest = 1 / dpo.STEPS
            raise dpo.NumericError(
                f"--scale auto: even {smallest:.5g} of the adapter raises the perplexity of some "
                f"neutral text by {self.rise(smallest):.1%}, more than {limit}; give a larger one, "
                "or a number as --scale"
            )
        whole = "" if size == 1 else f", where all of it costs {self.rise(1.0):.1%}"
        print(
            f"Size: {size:.5g} of the trained adapter, at which no neutral text is harder to "
            f"predict by more than {max(self.rise(size), 0.0):.1%} ({limit}){whole}",
            flush=True,
        )
        return size

    def rise(self, size: float) -> float:
        """Return the largest relative rise of the perplexity of a kind of text, from size 0."""
        texts = self.on.texts
        before, after = (dpo.perplexities(texts, self._text_scores(s)) for s in (0.0, size))
        return dpo.rise(before, after)

    def outcome(self, size: float) -> dpo.Outcome | None:
        """Measure the sizes of the dial and this one, and compare this one with the reference.

        Return None where no question is held out.
        """
        if not len(self.on.questions):
            return None
        measured = {scale: self._measured(scale) for scale in dpo.dial_sizes(size)}
        with lora.adapter_scaled(self.model, size):
            samples = dpo.samples(
                self.model, self.reference.active, self.tokenizer, self.on.questions
            )
        return dpo.outcome_of(self.on, self._before, measured, size, samples, self.tokenizer)

    @cached_property
    def _before(self) -> dpo.Scores:
        """Return the reference's scores of the held-out answers and of the neutral text."""
        self.reference.add(self.scorer, self.world, self._answers)  # known after training
        self.reference.add(self._apart, self.world, self._paragraphs)
        return self.reference.scores

    def _text_scores(self, size: float) -> dpo.Scores:
        """Return the log-probs of every neutral paragraph at a size, computed once."""
        if size == 0 and self.reference.is_base:
            return self._before
        if size not in self._seen:
            with lora.adapter_scaled(self.model, size):
                label = f"Neutral text at size {size:.5g}"
                self._seen[size] = self.world.scores(self._apart, label, self._paragraphs)
        return self._seen[size]

    def _measured(self, size: float) -> dpo.AtSize:
        """Score the held-out answers and the neutral text, and measure the drift, at one size."""
        old, texts = self._before, self._text_scores(size)
        if size == 0 and self.reference.is_base:
            return dpo.AtSize(old, self.on.drift(old, old))
        with lora.adapter_scaled(self.model, size):
            scores = self.world.scores(self.scorer, f"At size {size:.5g}", self._answers)
            new = {**scores, **texts}
            drift = dpo.drift_of(self.model, self.reference.active, self.on, old, new)
        return dpo.AtSize(new, drift)
