"""A preference as text: the plain template and the tokenizer's own chat template."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from data.question import DataError, Preference

PROMPT_FORMAT, ANSWER_FORMAT = "Question: {}\nAnswer:", " {}"

Template = Literal["plain", "chat"]


class Rendered(NamedTuple):
    """What is to be tokenized: the prompt without BOS, the answers without stop token."""

    prompt: str
    answers: list[str]
    stop: int  # the id that ends an answer
    hidden: dict[str, str]  # a private letter -> the control token's name that a person wrote


def render(
    preference: Preference,
    tokenizer: Any,
    template: Template = "plain",
    prompt_format: str | None = None,
    answer_format: str | None = None,
) -> Rendered:
    """Return the texts of a preference under a template.

    Plain: earlier turns and the prompt stand one after the other in the formats, where `{}` is the
    text, with a blank line between them; a preference that is `verbatim` has `{}` for both.
    Chat: the tokenizer's template says it all. The names of control tokens within people's text are
    replaced by private letters first, so that the template's own are the only ones.

    Raises:
        DataError: no stop token is known, or the template refuses the conversation.
    """
    if template == "chat":
        return _chat(preference, tokenizer)
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer defines no EOS token, so answers could not be ended")
    asked = prompt_format or ("{}" if preference.verbatim else PROMPT_FORMAT)
    answered = answer_format or ("{}" if preference.verbatim else ANSWER_FORMAT)
    forms = {"user": asked, "assistant": answered + "\n\n"}
    before = [
        forms.get(turn.role, "{}\n\n").replace("{}", turn.text) for turn in preference.history
    ]
    return Rendered(
        "".join(before) + asked.replace("{}", preference.prompt),
        [answered.replace("{}", answer) for answer in preference.answers],
        tokenizer.eos_token_id,
        {},
    )


def _chat(preference: Preference, tokenizer: Any) -> Rendered:
    from jinja2 import TemplateError  # transformers brings it along, and it is slow to import

    if not tokenizer.chat_template:
        raise DataError("--template chat: the tokenizer has no chat template; use --template plain")
    control = control_tokens(tokenizer)
    texts = [*(t.text for t in preference.history), preference.prompt, *preference.answers]
    hidden = _private_letters(texts, control)

    def hide(text: str) -> str:
        for letter, token in hidden.items():
            text = text.replace(token, letter)
        return text

    turns = [{"role": turn.role, "content": hide(turn.text)} for turn in preference.history]
    turns.append({"role": "user", "content": hide(preference.prompt)})
    answers, stop = [], ""
    try:
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        for answer in map(hide, preference.answers):
            said = [*turns, {"role": "assistant", "content": answer}]
            whole = tokenizer.apply_chat_template(said, tokenize=False)
            text, stop = _until_stop(whole.removeprefix(prompt), answer, control)
            if not whole.startswith(prompt) or not stop:
                raise DataError(
                    f"{preference.place}: the tokenizer's chat template does not continue its own "
                    "prompt, or ends an answer without a control token; use --template plain"
                )
            answers.append(text)
    except TemplateError as error:
        raise DataError(
            f"{preference.place}: the tokenizer's chat template refuses the conversation "
            f"({error}); mend it or use --template plain"
        ) from error
    stop_id = tokenizer.convert_tokens_to_ids(stop)
    return Rendered(prompt.removeprefix(tokenizer.bos_token or ""), answers, stop_id, hidden)


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the names that the tokenizer obeys: special tokens, and added ones in its template."""
    template = str(tokenizer.chat_template or "")
    added = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content.strip() and token.content in template)
    ]
    # longest first: a name may hold another one
    return tuple(sorted({*tokenizer.all_special_tokens, *added}, key=lambda t: (-len(t), t)))


def _private_letters(texts: Sequence[str], control: Sequence[str]) -> dict[str, str]:
    """Give each control token that occurs in the texts a letter that does not."""
    found = [token for token in control if any(token in text for text in texts)]
    if not found:
        return {}
    used = set().union(*texts)
    free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)
    return dict(zip(free, found, strict=False))


def _until_stop(rest: str, answer: str, control: Sequence[str]) -> tuple[str, str]:
    """Split `answer<stop>...` into the text to score and the first control token after it."""
    ends = [(rest.find(t), -len(t), t) for t in control if t in rest]
    if not ends or answer.strip() not in rest:
        return rest, ""
    at, _, stop = min(ends)
    return rest[:at], stop
