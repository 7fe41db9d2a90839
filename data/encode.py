"""Text -> token ids: the template, one BOS, the boundary, the stop token."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from data.question import DataError, Preference
from data.trees import Tokens

PROMPT_FORMAT, ANSWER_FORMAT = "Question: {}\nAnswer:", " {}"

Template = Literal["plain", "chat"]


class EncodedQuestion(NamedTuple):
    """A `Preference` as token ids; answers end with the stop token and are scored whole."""

    prompt: Tokens
    chosen: Tokens
    rejected: tuple[Tokens, ...]
    correct: tuple[Tokens, ...] = ()

    @property
    def trained(self) -> tuple[Tokens, ...]:
        """Chosen, rejected ...: the answers that pairs are made of."""
        return (self.chosen, *self.rejected)

    @property
    def answers(self) -> tuple[Tokens, ...]:
        """Chosen, rejected ..., further correct ...: the order of `Preference.answers`."""
        return (*self.trained, *self.correct)


class Encoding(NamedTuple):
    """The encoded questions and what happened on the way, for the plan to print."""

    questions: list[EncodedQuestion]
    boundary_merges: int  # answers whose first letters would have fused with the prompt's last
    too_long: list[str]  # prompts left out, since a path was longer than allowed


def encode(
    preferences: Sequence[Preference],
    tokenizer: Any,
    template: Template = "plain",
    max_length: int | None = None,
) -> Encoding:
    """Encode every question; answers are never cut, and a question too long is left out and named.

    The prompt's ids are the same for all answers of a question and start with exactly one BOS
    where the tokenizer defines one. An answer's ids are those it has in the whole text. Only where
    prompt and answer would fuse into one token at the boundary is it encoded alone, and counted.

    Raises:
        DataError: no stop token is known, text holds a control token of the chat template, the
            best answer has the ids of an incorrect one, or every question is too long.
    """
    questions: list[EncodedQuestion] = []
    too_long: list[str] = []
    merges = 0
    for preference in preferences:
        prompt, texts, stop = _render(preference, tokenizer, template)
        bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        prompt_ids = _ids(tokenizer, prompt, template)
        answers = []
        for text in texts:
            joint = _ids(tokenizer, prompt + text, template)
            merged = joint[: len(prompt_ids)] != prompt_ids
            merges += merged
            ids = _ids(tokenizer, text, template) if merged else joint[len(prompt_ids) :]
            answers.append((*ids, stop))
        if answers[0] in answers[1 : 1 + len(preference.rejected)]:
            raise DataError(
                f"{preference.prompt!r}: the best answer and an incorrect one have the same tokens"
            )
        encoded = EncodedQuestion(
            bos + prompt_ids,
            answers[0],
            tuple(answers[1 : 1 + len(preference.rejected)]),
            tuple(answers[1 + len(preference.rejected) :]),
        )
        if max_length and len(encoded.prompt) + max(map(len, answers)) > max_length:
            too_long.append(preference.prompt)
        else:
            questions.append(encoded)
    if not questions:
        raise DataError(f"every question is longer than --max-length {max_length} tokens; raise it")
    return Encoding(questions, merges, too_long)


def _ids(tokenizer: Any, text: str, template: Template) -> Tokens:
    """Token ids without BOS. In plain text `<eos>` is five letters, never a control token."""
    ids = tokenizer(
        text, add_special_tokens=False, split_special_tokens=template == "plain"
    ).input_ids
    return tuple(ids)


def _render(
    preference: Preference, tokenizer: Any, template: Template
) -> tuple[str, list[str], int]:
    """Return the prompt's text without BOS, each answer's without stop token, and the stop id."""
    if template == "plain":
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer defines no EOS token, so answers could not be ended")
        texts = [ANSWER_FORMAT.format(a) for a in preference.answers]
        return PROMPT_FORMAT.format(preference.prompt), texts, tokenizer.eos_token_id

    if not tokenizer.chat_template:
        raise DataError("--template chat: the tokenizer has no chat template; use --template plain")
    added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    control = sorted({*tokenizer.all_special_tokens, *added})
    for text in (preference.prompt, *preference.answers):
        found = next((t for t in control if t in text), None)
        if found:
            raise DataError(
                f"{preference.prompt!r}: the text holds the control token {found!r}, which the "
                "chat template would obey; remove it or use --template plain"
            )
    user = {"role": "user", "content": preference.prompt}
    prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    texts = []
    stop = ""
    for answer in preference.answers:
        turns = [user, {"role": "assistant", "content": answer}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        text, stop = _until_stop(whole.removeprefix(prompt), answer, control)
        if not whole.startswith(prompt) or not stop:
            raise DataError(
                "--template chat: the tokenizer's template does not continue its own prompt, or "
                "ends an answer without a control token; use --template plain"
            )
        texts.append(text)
    return (
        prompt.removeprefix(tokenizer.bos_token or ""),
        texts,
        tokenizer.convert_tokens_to_ids(stop),
    )


def _until_stop(rest: str, answer: str, control: Sequence[str]) -> tuple[str, str]:
    """Split `answer<stop>...` into the text to score and the first control token after it."""
    ends = [(rest.find(t), -len(t), t) for t in control if t in rest]
    if not ends or answer.strip() not in rest:
        return rest, ""
    at, _, stop = min(ends)
    return rest[:at], stop
