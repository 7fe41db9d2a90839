"""What a preference is, and how its readers complain."""

from dataclasses import dataclass


class DataError(ValueError):
    """The data asked for cannot be used; the message names the place and says what to do."""


@dataclass(frozen=True)
class Preference:
    """One question with the answer to prefer and the answers to prefer it to."""

    prompt: str
    chosen: str
    rejected: tuple[str, ...]
    correct: tuple[str, ...] = ()  # further true answers, which MC2 counts and training ignores
    category: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers in their fixed order: chosen, rejected ..., further correct ..."""
        return (self.chosen, *self.rejected, *self.correct)
