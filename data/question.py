"""What a preference is, what may be left out of it, and how its readers complain."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple


class DataError(Exception):
    """The data asked for cannot be used; the message names the place and says what to do."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a library raises over somebody's data into one error, which names the data.

    Libraries promise no list of what they raise over data that nobody should have made, and those
    in Rust panic. `what` begins the message; a signal passes.

    Raises:
        DataError: something was raised within the block.
    """
    try:
        yield
    except DataError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    text: str
    extra: str = ""  # what else the message has, as JSON: tool_calls, reasoning_content, ...


@dataclass(frozen=True)
class Preference:
    """One question with its answers: the best one, those below it, and those as good as it.

    Only the order of grades counts. The answers of a question are graded by its data: by ranks, by
    scores, or as true (1) and false (0).
    """

    prompt: str
    chosen: str
    rejected: tuple[str, ...]
    correct: tuple[str, ...] = ()  # as good as the chosen one: MC2 counts them, --pairs all trains
    category: str = ""
    history: tuple[Turn, ...] = ()  # the turns before the prompt, a system message first
    verbatim: bool = False  # answers continue the prompt as it stands: nothing is put between them
    place: str = field(default="", compare=False)  # file and line, for messages
    grades: tuple[float, ...] = ()  # of `answers`; (): of two levels, as `levels` has them
    since: tuple[Turn, ...] = ()  # the turns between prompt and answer: tool calls, their results
    tools: str = ""  # the functions that the model may call, as a JSON list
    extras: tuple[str, ...] = ()  # `Turn.extra` of each of `answers`; (): none has any

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers in their fixed order: chosen, rejected ..., further correct ..."""
        return (self.chosen, *self.rejected, *self.correct)

    @property
    def levels(self) -> tuple[float, ...]:
        """The grade of each of `answers`, a better one above."""
        return self.grades or (1.0, *(0.0,) * len(self.rejected), *(1.0,) * len(self.correct))


class Note(NamedTuple):
    """Something that was left out, cut or worth a word, and where: a line of the data report."""

    reason: str
    place: str


# Every reason there is. Nothing else is ever left out.
NO_PROMPT = "rows without a prompt, left out"
NO_SHARED_PROMPT = "rows whose answers share no prompt, left out"
NO_CHOSEN = "rows whose chosen answer is empty, left out"
NOT_A_TURN = "rows whose turns do not lead from a user's to an answer, left out"
BAD_ROW = "rows that cannot be read, left out"
EMPTY = "empty answers, left out"
SAME_AS_CHOSEN = "rejected answers equal to the chosen one, left out"
TIED = "rows whose answers tie or name no winner, left out"
UNPAIRED = "answers whose prompt has none of another label, left out"
REPEATED = "pairs that came before, counted once"
CONTRADICTED = "pairs that another row prefers the other way, left out"
ON_BOTH_SIDES = "answers listed as correct and as incorrect, trained against, in MC2 on both sides"
NO_PAIR = "questions that have no pair left, left out"
SAME_TOKENS = "rejected answers with the tokens of the chosen one, left out"
REWRITTEN = "answers that the chat template rewrites, left out; --rewritten keep takes what it says"
CHANGED = "answers that the chat template changes, taken as it has them"
TRIMMED = "answers that the chat template trims, taken as it trims them"
NO_TOKENS = "texts with names of control tokens that the tokenizer has not, read as letters"
TOO_LONG = "questions longer than --max-length, left out"
CUT = "prompts longer than --max-length leaves room for, their beginning was cut"

SKIPPED = 0.05  # of the rows; with more bad ones, the source is not what it is taken for


class BadRows:
    """Leaves out rows that cannot be read, up to a share of 5%, or stops at the first one."""

    def __init__(self, skip: bool) -> None:
        self.skip, self.rows, self.bad = skip, 0, 0
        self.first: DataError | None = None

    def note(self, error: DataError, place: str) -> Note:
        """Return the note of a bad row.

        Raises:
            DataError: bad rows stop the run, or there are too many of them.
        """
        self.bad += 1
        self.first = self.first or error
        if not self.skip:
            raise error
        if self.rows >= 10_000:
            self.check()
        said = str(error).removeprefix(place).lstrip(":, ")
        return Note(BAD_ROW, f"{place}: {said}")

    def check(self) -> None:
        """Raise the first error, where more rows are bad than may be left out."""
        if self.first and self.bad == self.rows:
            raise self.first
        if self.first and self.bad > SKIPPED * self.rows:
            counted = f"{self.bad:,} of {self.rows:,} rows cannot be read"
            raise DataError(f"{self.first} ({counted}; --bad-rows skip leaves out up to 5%)")
