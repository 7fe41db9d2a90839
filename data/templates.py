"""A preference as text: the plain template, the tokenizer's chat template, or as it stands."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data.question import NO_TOKENS, REWRITTEN, TRIMMED, DataError, Note, Preference, Turn

PROMPT_FORMAT, ANSWER_FORMAT = "Question: {}\nAnswer:", " {}"

# The six examples before each question in the authors' evaluation (Lin, Hilton, Evans 2021,
# arXiv 2109.07958, appendix E), which lm-eval's truthfulqa_mc1 and _mc2 use too.
TRUTHFULQA_PROMPT = Path(__file__).with_name("truthfulqa_prompt.txt").read_text(encoding="utf-8")

Template = Literal["plain", "chat", "none", "raw"]
Truncate = Literal["drop", "prompt", "never"]
Rewritten = Literal["drop", "keep"]
PairsOf = Literal["best", "all"]
BadRows = Literal["skip", "stop"]

# What begins a turn in the templates of today, what ends a prompt that asks for an answer, and what
# ends an answer: `<|im_start|>user`, `<start_of_turn>user`, `[INST]`; `### Response:`; `<|im_end|>`.
MARK = r"(?:<[|｜][\w▁]+[|｜]?>|<\w+[|｜]>|<start_of_turn>|<extra_id_\d+>)"
ROLE = r"(?:system|developer|user|human|assistant|model)\b"
TEMPLATED = re.compile(
    rf"\s*(?:<s>|<bos>|{MARK})?\s*(?:{MARK}\s*{ROLE}|<[|｜]{ROLE}[|｜]>|\[INST\])"
    rf"|[\s\S]*(?:###\s*(?:response|assistant|answer|output):|\bASSISTANT:|{MARK}\s*(?-i:assistant)"
    r"|\[/INST\])\s*$",
    re.IGNORECASE,
)
ENDED = re.compile(r"(?:<[|｜][\w▁]+[|｜]>|</s>|<end_of_turn>|<eos>)\s*$")


class TextSettings(NamedTuple):
    """What of the settings decides the ids.

    Args:
        template: `plain` or `chat`; `none` joins the texts as they stand; `raw` does too, and obeys
            the names of control tokens in them.
        max_length: the longest path, in tokens, BOS and stop token included; None: any.
        truncate: what becomes of a longer question. `drop` leaves it out with a note, `prompt` cuts
            the beginning of its prompt behind BOS, `never` refuses. Answers are never cut.
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


class Frame(NamedTuple):
    """What a tokenizer's chat template puts around what people say."""

    control: re.Pattern[str]  # finds the names that are obeyed
    tail: str  # what follows the last answer
    stop: str  # the control token in it that ends the answer


def chat_frame(tokenizer: Any, template_kwargs: str = "{}") -> Frame:
    """Read the frame off the template, from a conversation of two private letters.

    Control tokens are the tokenizer's special ones, and others added to it that the template puts
    between turns. Further added tokens, `<think>` in some, are words of the model like any other.

    Raises:
        DataError: there is no chat template, it fails, or it ends no answer with a control token.
    """
    if not tokenizer.chat_template:
        raise DataError("--template chat: the tokenizer has no chat template; use --template plain")
    asked, said = "\ue000", "\ue001"
    given = json.loads(template_kwargs)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    between = _apply(tokenizer, [*turns, *turns], "", **given).split(asked)  # of earlier turns
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | {*tokenizer.all_special_tokens}
    frames = between[0] + "".join(between[1:-1])
    others = {t.content for t in added if t.content.strip() and t.content in frames}
    others -= {token for token in others if "think" in token}
    control = sorted(special | others, key=lambda token: (-len(token), token))

    tail = _apply(tokenizer, turns, "", **given).rpartition(said)[2]
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
    text: TextSettings = TextSettings(),
    frame: Frame | None = None,
) -> Rendered:
    """Return the texts of a preference under a template.

    Plain: earlier turns and the prompt stand one after the other in the formats, where `{}` is the
    text, with a blank line between them; a preference that is `verbatim` has `{}` for both.
    Chat: the tokenizer's template says it all; `frame` is its `chat_frame`. The names of control
    tokens within people's text are replaced by private letters first, so that the template's own
    are the only ones.
    None and raw: the texts follow each other, and nothing is put between them.

    Raises:
        DataError: no stop token is known, the text is templated already, or the template refuses it
            or has no form for tools or reasoning that it holds.
    """
    formats = (text.prompt_format, text.answer_format)
    if text.template in ("plain", "chat") and not any(formats):
        _check_untemplated(preference)
    if text.template == "chat":
        return _chat(preference, tokenizer, text, frame or chat_frame(tokenizer))
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer defines no EOS token, so answers could not be ended")
    more = next(filter(None, (preference.tools, *preference.extras)), "")
    if more or any(turn.extra for turn in (*preference.history, *preference.since)):
        raise DataError(
            f"{preference.place}: --template {text.template} has no form for tools, their calls or "
            "reasoning_content; use --template chat with a model whose chat template has one"
        )
    as_it_stands = preference.verbatim or text.template != "plain"
    asked, answered = (
        given or ("{}" if as_it_stands else usual)
        for given, usual in zip(formats, (PROMPT_FORMAT, ANSWER_FORMAT), strict=True)
    )
    forms = {"user": asked, "assistant": answered}
    so_far, before = "", ""
    for role, said, _ in (*preference.history, Turn("user", preference.prompt), *preference.since):
        answers_it = (before, role) == ("user", "assistant")
        apart = before and not answers_it and text.template == "plain"
        so_far += "\n\n" * bool(apart) + forms.get(role, "{}").replace("{}", said)
        before = role
    if text.template == "raw" and tokenizer.bos_token:
        so_far = so_far.removeprefix(tokenizer.bos_token)
    answers = [answered.replace("{}", answer) for answer in preference.answers]
    notes = [] if text.template != "raw" else _unknown_marks(so_far, answers, tokenizer)
    notes = [Note(f"{NO_TOKENS}: {name}", preference.place) for name in notes]
    return Rendered(so_far, [*answers], tokenizer.eos_token_id, {}, notes=notes)


def _unknown_marks(prompt: str, answers: Sequence[str], tokenizer: Any) -> list[str]:
    """Return what looks like control tokens, and is none of this tokenizer's."""
    found = dict.fromkeys(re.findall(MARK, "\n".join([prompt, *answers])))
    known = tokenizer.unk_token_id
    return [m for m in found if tokenizer.convert_tokens_to_ids(m) in (None, known)]


def _check_untemplated(preference: Preference) -> None:
    prompt, chosen = preference.prompt, preference.chosen
    begins, ends = TEMPLATED.match(prompt), ENDED.search(chosen)
    if begins or ends:
        shown = ends[0].strip() if not begins and ends else prompt.strip()[:30]
        raise DataError(
            f"{preference.place}: the text looks templated already ({shown!r}); --template raw "
            "reads its control tokens as such, and --template none as letters"
        )


class _Chat(NamedTuple):
    """A tokenizer's chat template, and what it is given besides the turns."""

    tokenizer: Any
    place: str
    given: dict[str, Any]

    def text(self, turns: Iterable[Turn], **more: bool) -> str:
        """Return a conversation as the template has it."""
        messages = [{"role": t.role, "content": t.text, **_fields(t.extra)} for t in turns]
        try:
            return _apply(self.tokenizer, messages, self.place, **self.given, **more)
        except DataError:  # some templates put a call's arguments down as the text that they are
            if '"arguments"' not in "".join(turn.extra for turn in turns):
                raise
        for message in messages:
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        return _apply(self.tokenizer, messages, self.place, **self.given, **more)


def _fields(extra: str) -> dict[str, Any]:
    """Return the further fields of a message; the arguments of its calls as objects."""
    fields: dict[str, Any] = json.loads(extra) if extra else {}
    for call in fields.get("tool_calls", ()):
        function = call.get("function", call)
        if isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"])
            except ValueError:
                pass  # no object: the text that it is
    return fields


def _chat(p: Preference, tokenizer: Any, text: TextSettings, frame: Frame) -> Rendered:
    before = (*p.history, Turn("user", p.prompt), *p.since)
    said = [Turn("assistant", t, e) for t, e in zip(p.answers, p.extras or [""] * 99, strict=False)]
    said += [Turn("assistant", t) for t in p.answers[len(said) :]]
    hidden = _private_letters([turn.text for turn in (*before, *said)], frame.control)
    letters = {token: letter for letter, token in hidden.items()}

    def hide(turn: Turn) -> Turn:
        shown = frame.control.sub(lambda found: letters[found[0]], turn.text) if hidden else None
        return turn if shown is None else turn._replace(text=shown)

    given = json.loads(text.template_kwargs)
    bare = _Chat(tokenizer, p.place, given)
    chat = bare._replace(given=given | {"tools": json.loads(p.tools)}) if p.tools else bare
    turns, said = [hide(turn) for turn in before], [hide(turn) for turn in said]
    wholes = [chat.text([*turns, answer]) for answer in said]
    if p.tools and wholes[0] == bare.text([*turns, said[0]]):
        raise _no_form(p.place, "tools")
    for turn in turns:
        _check_extra(chat, turn, lambda other, turn=turn: [other if t is turn else t for t in turns])
    for answer in said:
        _check_extra(chat, answer, lambda other: [*turns, other])

    prompt, base = _shared_prompt(chat, turns, said, wholes, frame)
    answers: list[str | None] = []
    notes: list[Note] = []
    for answer, whole in zip(said, wholes, strict=True):
        rendered = _behind(prompt, whole, frame)
        same = rendered is not None and _says(whole[len(base) :], answer)
        if not same and (text.rewritten == "drop" or rendered is None):
            notes.append(Note(REWRITTEN, f"{p.place} {answer.text[:60]!r}"))
            rendered = None
        elif answer.text not in whole and same:
            notes.append(Note(TRIMMED, p.place))
        answers.append(rendered)
    stop = tokenizer.convert_tokens_to_ids(frame.stop)
    bos = tokenizer.bos_token or ""
    begins = bool(bos) and prompt.startswith(bos)
    return Rendered(prompt.removeprefix(bos), answers, stop, hidden, begins, notes)


def _shared_prompt(
    chat: _Chat, turns: list[Turn], said: list[Turn], wholes: list[str], frame: Frame
) -> tuple[str, str]:
    """Return what stands before every answer, and where an answer's own words may begin.

    Mostly both are what the template says to ask for an answer. Templates of models that reason
    open a block for it there, or put an empty one before an answer without any. Then the prompt is
    what stands before an answer that has no reasoning, if all are such, else what asks for one.
    """
    asking = chat.text(turns, add_generation_prompt=True)
    if all(_behind(asking, w, frame) == a.text for w, a in zip(wholes, said, strict=True)):
        return asking, asking
    letter = next(chr(c) for c in range(0xE000, 0xF900) if chr(c) not in "".join(wholes))
    header = chat.text([*turns, Turn("assistant", letter)]).partition(letter)[0]
    if asking == header:
        return asking, asking
    both = os.path.commonprefix([asking, header])
    marks = [found.end() for found in frame.control.finditer(both)]
    end = marks[-1] if marks else 0
    base = both[:end] + re.match(r"\w*\s*", both[end:])[0]  # type: ignore[index]

    def fitting(prompt: str) -> int:
        behind = [_behind(prompt, whole, frame) for whole in wholes]
        fit = [b is not None and _says(w[len(base) :], a)
               for b, w, a in zip(behind, wholes, said, strict=True)]  # fmt: skip
        return sum(fit)

    return max((header, asking, base), key=fitting), base  # the first one that fits as many


def _behind(prompt: str, whole: str, frame: Frame) -> str | None:
    """Return what stands between the prompt and the frame's end; None: the text has other ones."""
    text = whole[len(prompt) : len(whole) - len(frame.tail)]
    return text if prompt + text + frame.tail == whole else None


def _says(whole: str, answer: Turn) -> bool:
    """Tell whether a rendered text has everything that was said, up to white space."""
    fields = json.loads(answer.extra) if answer.extra else {}
    calls = [call.get("function", call).get("name", "") for call in fields.get("tool_calls", ())]
    texts = (answer.text, fields.get("reasoning_content", ""), *calls)
    return all("".join(text.split()) in "".join(whole.split()) for text in texts)


def _check_extra(chat: _Chat, turn: Turn, around: Any) -> None:
    """Raise DataError where the template has no form for what a message holds besides its text."""
    fields = json.loads(turn.extra) if turn.extra else {}
    for name in ("tool_calls", "reasoning_content"):
        if name in fields:
            less = json.dumps({key: value for key, value in fields.items() if key != name})
            without = turn._replace(extra="" if less == "{}" else less)
            if chat.text(around(turn)) == chat.text(around(without)):
                raise _no_form(chat.place, name)


def _no_form(place: str, name: str) -> DataError:
    return DataError(
        f"{place}: the tokenizer's chat template has no form for {name!r}; use a model whose "
        "template has one, or give one with --chat-template FILE"
    )


def _apply(tokenizer: Any, turns: list[dict[str, Any]], place: str, **more: Any) -> str:
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
