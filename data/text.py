"""What decides how preferences become text, and the text that they become."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from data.question import Note

Template = Literal["plain", "chat", "none", "raw"]
Truncate = Literal["drop", "prompt", "never"]
Rewritten = Literal["drop", "keep"]
PairsOf = Literal["best", "all"]
OnBadRows = Literal["skip", "stop"]


class TextSettings(NamedTuple):
    """What of the settings decides the ids.

    Args:
        template: `plain` or `chat`; `none` joins the texts as they stand; `raw` does too, and obeys
            the names of control tokens in them.
        max_length: the longest path, in tokens, BOS and stop token included; None: any.
        truncate: what becomes of a longer question. `drop` leaves it out with a note, `prompt` cuts
            the beginning of its prompt after BOS, `never` refuses. Answers are never cut.
        prompt_format: of the plain template, `{}` is the text.
        answer_format: likewise.
        template_kwargs: what the chat template is given besides, as a JSON object.
        rewritten: whether an answer that the chat template changes is left out, or taken changed.
        skip_bad: leave out rows that the template refuses, up to 5%, instead of stopping.
        pairs: the best answer against each of lower grade, or each against each of lower grade.
    """

    template: Template = "plain"
    max_length: int | None = None
    truncate: Truncate = "drop"
    prompt_format: str | None = None
    answer_format: str | None = None
    template_kwargs: str = "{}"
    rewritten: Rewritten = "drop"
    skip_bad: bool = True
    pairs: PairsOf = "best"


class Rendered(NamedTuple):
    """What is to be tokenized: the prompt without BOS, the answers without stop token."""

    prompt: str
    answers: list[str | None]  # None: the template would say something else
    stop: int  # the id that ends an answer, unless it ends itself
    hidden: dict[str, str]  # a private letter -> the control token's name that a person wrote
    bos: bool = True  # begins with BOS, where the tokenizer defines one
    notes: Sequence[Note] = ()
    ended: frozenset[int] = frozenset()  # answers that end with a stop token of their own
