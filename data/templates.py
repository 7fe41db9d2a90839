"""A preference as text: the plain template and the tokenizer's own chat template."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data.question import DataError, Preference, Turn

PROMPT_FORMAT, ANSWER_FORMAT = "Question: {}\nAnswer:", " {}"

# The six examples before each question in the authors' evaluation (Lin, Hilton, Evans 2021,
# arXiv 2109.07958, appendix E), which lm-eval's truthfulqa_mc1 and _mc2 use too.
TRUTHFULQA_PROMPT = Path(__file__).with_name("truthfulqa_prompt.txt").read_text(encoding="utf-8")

Template = Literal["plain", "chat"]


class Rendered(NamedTuple):
    """What is to be tokenized: the prompt without BOS, the answers without stop token."""

    prompt: str
    answers: list[str]
    stop: int  # the id that ends an answer
    hidden: dict[str, str]  # a private letter -> the control token's name that a person wrote


class Frame(NamedTuple):
    """What a tokenizer's chat template puts around what people say."""

    control: re.Pattern[str]  # finds the names that are obeyed
    tail: str  # what follows the last answer
    stop: str  # the control token in it that ends the answer


def chat_frame(tokenizer: Any) -> Frame:
    """Read the frame off the template, from a conversation of two private letters.

    Control tokens are the tokenizer's special ones, and others added to it that the template puts
    between turns. Further added tokens, `<think>` in some, are words of the model like any other.

    Raises:
        DataError: there is no chat template, it fails, or it ends no answer with a control token.
    """
    if not tokenizer.chat_template:
        raise DataError("--template chat: the tokenizer has no chat template; use --template plain")
    asked, said = "\ue000", "\ue001"
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    between = _apply(tokenizer, [*turns, *turns], "").split(asked)  # frames of earlier turns
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | {*tokenizer.all_special_tokens}
    frames = between[0] + "".join(between[1:-1])
    others = {t.content for t in added if t.content.strip() and t.content in frames}
    control = sorted(special | others, key=lambda token: (-len(token), token))

    tail = _apply(tokenizer, turns, "").rpartition(said)[2]
    found = [(tail.find(token), -len(token), token) for token in control if token in tail]
    if not found:
        raise DataError(
            "--template chat: the tokenizer's template ends an answer without a control token, so "
            "that a model could not learn to stop; use --template plain"
        )
    return Frame(re.compile(f"({'|'.join(map(re.escape, control))})"), tail, min(found)[2])


def render(
    preference: Preference,
    tokenizer: Any,
    template: Template = "plain",
    prompt_format: str | None = None,
    answer_format: str | None = None,
    frame: Frame | None = None,
) -> Rendered:
    """Return the texts of a preference under a template.

    Plain: earlier turns and the prompt stand one after the other in the formats, where `{}` is the
    text, with a blank line between them; a preference that is `verbatim` has `{}` for both.
    Chat: the tokenizer's template says it all; `frame` is its `chat_frame`. The names of control
    tokens within people's text are replaced by private letters first, so that the template's own
    are the only ones.

    Raises:
        DataError: no stop token is known, or the template refuses or changes what was said.
    """
    if template == "chat":
        return _chat(preference, tokenizer, frame or chat_frame(tokenizer))
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer defines no EOS token, so answers could not be ended")
    asked = prompt_format or ("{}" if preference.verbatim else PROMPT_FORMAT)
    answered = answer_format or ("{}" if preference.verbatim else ANSWER_FORMAT)
    forms = {"user": asked, "assistant": answered}
    text, before = "", ""
    for role, said in (*preference.history, Turn("user", preference.prompt)):
        answers_it = (before, role) == ("user", "assistant")
        text += "\n\n" * bool(before and not answers_it) + forms.get(role, "{}").replace("{}", said)
        before = role
    return Rendered(
        text,
        [answered.replace("{}", answer) for answer in preference.answers],
        tokenizer.eos_token_id,
        {},
    )


def _chat(preference: Preference, tokenizer: Any, frame: Frame) -> Rendered:
    texts = [*(t.text for t in preference.history), preference.prompt, *preference.answers]
    hidden = _private_letters(texts, frame.control)
    letters = {token: letter for letter, token in hidden.items()}

    def hide(text: str) -> str:
        return frame.control.sub(lambda found: letters[found[0]], text) if hidden else text

    turns = [{"role": turn.role, "content": hide(turn.text)} for turn in preference.history]
    turns.append({"role": "user", "content": hide(preference.prompt)})
    prompt = _apply(tokenizer, turns, preference.place, add_generation_prompt=True)
    answers = []
    for answer in map(hide, preference.answers):
        said = [*turns, {"role": "assistant", "content": answer}]
        whole = _apply(tokenizer, said, preference.place)
        text = whole[len(prompt) : len(whole) - len(frame.tail)]
        if prompt + text + frame.tail != whole or (
            "".join(answer.split()) not in "".join(text.split())
        ):
            raise DataError(
                f"{preference.place}: the tokenizer's chat template does not continue its own "
                f"prompt with the answer {answer[:60]!r}; use --template plain"
            )
        answers.append(text)
    stop = tokenizer.convert_tokens_to_ids(frame.stop)
    return Rendered(prompt.removeprefix(tokenizer.bos_token or ""), answers, stop, hidden)


def _apply(tokenizer: Any, turns: list[dict[str, str]], place: str, **more: bool) -> str:
    from jinja2 import TemplateError  # transformers brings it along, and it is slow to import

    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **more))
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{place or 'a conversation of two turns'}: the tokenizer's chat template refuses it "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); mend it or "
            "use --template plain"
        ) from error


def _private_letters(texts: Sequence[str], control: re.Pattern[str]) -> dict[str, str]:
    """Give each control token that occurs in the texts a letter that does not."""
    found = dict.fromkeys(token for text in texts for token in control.findall(text))
    if not found:
        return {}
    used = set().union(*texts)
    free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)
    return dict(zip(free, found, strict=False))
