"""What a preference is, what may be left out of it, and how its readers complain."""

from dataclasses import dataclass, field
from typing import NamedTuple


class DataError(Exception):
    """The data asked for cannot be used; the message names the place and says what to do."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    text: str


@dataclass(frozen=True)
class Preference:
    """One question with the answer to prefer and the answers to prefer it to."""

    prompt: str
    chosen: str
    rejected: tuple[str, ...]
    correct: tuple[str, ...] = ()  # further true answers, which MC2 counts and training ignores
    category: str = ""
    history: tuple[Turn, ...] = ()  # the turns before the prompt, a system message first
    verbatim: bool = False  # answers continue the prompt as it stands: nothing is put between them
    place: str = field(default="", compare=False)  # file and line, for messages

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers in their fixed order: chosen, rejected ..., further correct ..."""
        return (self.chosen, *self.rejected, *self.correct)


class Note(NamedTuple):
    """Something that was left out, cut or worth a word, and where: a line of the data report."""

    reason: str
    place: str


# Every reason there is. Nothing else is ever left out.
NO_PROMPT = "rows without a prompt, left out"
NO_SHARED_PROMPT = "rows whose answers share no prompt, left out"
NO_CHOSEN = "rows whose chosen answer is empty, left out"
EMPTY = "empty answers, left out"
SAME_AS_CHOSEN = "rejected answers equal to the chosen one, left out"
TIED = "completions that score as high as the chosen one, left out"
REPEATED = "pairs that came before, counted once"
CONTRADICTED = "pairs that another row prefers the other way, left out"
ON_BOTH_SIDES = "answers listed as correct and as incorrect, trained against, in MC2 on both sides"
NO_PAIR = "questions that have no pair left, left out"
SAME_TOKENS = "rejected answers with the tokens of the chosen one, left out"
TOO_LONG = "questions longer than --max-length, left out"
CUT = "prompts longer than --max-length leaves room for, their beginning was cut"
