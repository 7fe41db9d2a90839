"""A preference under a tokenizer's chat template: what stands around an answer, what it says.

A template may do to an answer what it likes: trim it, strip its reasoning, put an empty block of
reasoning before it. What is scored is what the answer says. One that the template changes is left
out, named and counted.
"""

import datetime
import itertools
import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from data.limits import limited
from data.question import CHANGED, REWRITTEN, TRIMMED, DataError, Note, Preference, Turn, reason
from data.text import Rendered, TextSettings

CLOCK = "strftime_now"  # the function that templates ask for today's date
LONG = 10**7  # letters of a text that a template may write whatever it is given


class Frame(NamedTuple):
    """What a tokenizer's chat template puts around what people say."""

    control: re.Pattern[str]  # finds the names that are obeyed
    tail: str  # what follows the last answer
    stop: str  # the control token that ends an answer
    before_stop: str = ""  # what the template puts between an answer and its stop token


def chat_frame(tokenizer: Any, template_kwargs: str = "{}") -> Frame:
    """Read the frame off the template, from a conversation of two private letters.

    Control tokens are the tokenizer's special ones, and others added to it that the template puts
    between turns. Further added tokens, `<think>` in some, are words of the model like any other.
    The stop token is the first control token after an answer, or EOS where it follows so closely
    that both end it. Where a template leaves the last answer open, it is what ends an earlier one.

    Raises:
        DataError: there is no chat template, it fails, or it ends no answer with a control token.
    """
    if not tokenizer.chat_template:
        raise DataError("--template chat: the tokenizer has no chat template; use --template plain")
    asked, said = "\ue000", "\ue001"
    given = json.loads(template_kwargs)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    both = [*turns, *turns], turns
    (twice, once), = limited(
        lambda some: [_apply(tokenizer, each, "", **given) for each in some], [both],
        "--template chat: a conversation of two turns",
    )  # fmt: skip
    tail = once.rpartition(said)[2]
    between = twice.split(asked)  # frames of earlier turns
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | {*tokenizer.all_special_tokens}
    frames = between[0] + "".join(between[1:-1])
    others = {t.content for t in added if t.content.strip() and t.content in frames}
    others -= {token for token in others if "think" in token}
    names = sorted(special | others, key=lambda token: (-len(token), token))
    control = re.compile(f"({'|'.join(map(re.escape, names))})")

    after = tail if control.search(tail) else twice.partition(said)[2].partition(asked)[0]
    found = control.search(after)
    if not found or found[0] == tokenizer.bos_token or asked in tail:
        raise DataError(
            "--template chat: the tokenizer's template ends an answer without a control token, so "
            "that a model could not learn to stop; use --template plain"
        )
    stop, start = found[0], found.start()
    end = after.find(tokenizer.eos_token) if tokenizer.eos_token else -1
    if end > start and not re.search(r"\s", after[start:end]):
        stop, start = tokenizer.eos_token, end
    return Frame(control, tail, stop, after[:start])


class _Chat(NamedTuple):
    """A tokenizer's chat template, and what it is given besides the turns."""

    tokenizer: Any
    place: str
    given: dict[str, Any]

    def text(self, turns: Sequence[Turn], **more: bool) -> str:
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


def render_chat(p: Preference, tokenizer: Any, text: TextSettings, frame: Frame) -> Rendered:
    """Return the texts of a preference under the tokenizer's chat template.

    Raises:
        DataError: the template refuses it, or has no form for tools or reasoning that it holds.
    """
    extras = p.extras or ("",) * len(p.answers)
    turns = [*p.history, Turn("user", p.prompt), *p.since]
    said = [Turn("assistant", *both) for both in zip(p.answers, extras, strict=True)]
    hidden = _private_letters([turn.text for turn in (*turns, *said)], frame.control)
    if hidden:
        turns, said = _with_letters(turns, hidden, frame), _with_letters(said, hidden, frame)
    bare = _Chat(tokenizer, p.place, json.loads(text.template_kwargs))
    chat = (
        bare if not p.tools else bare._replace(given={**bare.given, "tools": json.loads(p.tools)})
    )
    wholes = [chat.text([*turns, answer]) for answer in said]
    if p.tools and wholes[0] == bare.text([*turns, said[0]]):
        raise _no_form(p.place, "tools")
    for number in range(len(turns)):
        _check_extra(chat, turns, number)
    for answer in said:
        _check_extra(chat, [*turns, answer], len(turns))

    prompt, base = _shared_prompt(chat, turns, said, wholes, frame)
    answers: list[str | None] = []
    notes: list[Note] = []
    ended: list[int] = []
    for number, (answer, whole) in enumerate(zip(said, wholes, strict=True)):
        rendered = _after(prompt, whole, frame)
        if rendered is not None:
            own = rendered + frame.before_stop
        elif "tool_calls" in answer.extra and whole.startswith(prompt):
            own = rendered = _to_last_mark(whole, frame)[len(prompt) :]  # calls end in their way
            ended.append(number)
        same = rendered is not None and _says(whole[len(base) :], answer)
        if not rendered or not (same or text.rewritten == "keep"):
            notes.append(Note(REWRITTEN, f"{p.place} {answer.text[:60]!r}"))
            answers.append(None)
            continue
        if not same or answer.text not in whole:
            notes.append(Note(TRIMMED if same else CHANGED, p.place))
        answers.append(own)
    stop = tokenizer.convert_tokens_to_ids(frame.stop)
    bos = tokenizer.bos_token or ""
    begins = bool(bos) and prompt.startswith(bos)
    own_stop = frozenset(ended)
    return Rendered(prompt.removeprefix(bos), answers, stop, hidden, begins, notes, own_stop)


def _to_last_mark(whole: str, frame: Frame) -> str:
    """Return a rendered text up to its last control token, that included."""
    ends = [found.end() for found in frame.control.finditer(whole)]
    return whole[: ends[-1]] if ends else whole


def _with_letters(turns: Sequence[Turn], hidden: dict[str, str], frame: Frame) -> list[Turn]:
    """Put private letters in place of the names of control tokens that people wrote."""
    letters = {token: letter for letter, token in hidden.items()}
    return [t._replace(text=frame.control.sub(lambda m: letters[m[0]], t.text)) for t in turns]


def _shared_prompt(
    chat: _Chat, turns: list[Turn], said: list[Turn], wholes: list[str], frame: Frame
) -> tuple[str, str]:
    """Return what stands before every answer, and where an answer's own words may begin.

    Mostly both are what the template says to ask for an answer. Templates of models that reason
    open a block for it there, or put an empty one before an answer without any. Then the prompt is
    what stands before an answer that has no reasoning, if all are such, else what asks for one.
    """
    asking = chat.text(turns, add_generation_prompt=True)
    if all(_after(asking, w, frame) == a.text for w, a in zip(wholes, said, strict=True)):
        return asking, asking
    letter = next(chr(c) for c in range(0xE000, 0xF900) if chr(c) not in "".join(wholes))
    header = chat.text([*turns, Turn("assistant", letter)]).partition(letter)[0]
    alike = (a == b for a, b in zip(asking, header, strict=False))
    both = header[: sum(itertools.takewhile(bool, alike))]
    marks = [found.end() for found in frame.control.finditer(both)]
    end = marks[-1] if marks else 0  # no control token is cut, and no name of a role
    role = re.match(r"\w*\s*", both[end:])
    base = both[: end + (role.end() if role else 0)]
    if len(base) < both.rfind(turns[-1].text) + len(turns[-1].text):
        base = asking  # what somebody said last is no answer's

    def fitting(prompt: str) -> int:
        rendered = zip(wholes, said, strict=True)
        return sum(
            _after(prompt, whole, frame) is not None and _says(whole[len(base) :], answer)
            for whole, answer in rendered
        )

    return max((header, asking, base), key=fitting), base  # the first one that fits as many


def _after(prompt: str, whole: str, frame: Frame) -> str | None:
    """Return what stands between the prompt and the frame's end; None: the text has other ones."""
    text = whole[len(prompt) : len(whole) - len(frame.tail)]
    return text if prompt + text + frame.tail == whole else None


def _says(whole: str, answer: Turn) -> bool:
    """Tell whether a rendered text has everything that was said, up to white space."""
    fields = json.loads(answer.extra) if answer.extra else {}
    calls = [call.get("function", call).get("name", "") for call in fields.get("tool_calls", ())]
    texts = (answer.text, fields.get("reasoning_content", ""), *calls)
    return all("".join(text.split()) in "".join(whole.split()) for text in texts)


def _check_extra(chat: _Chat, turns: Sequence[Turn], number: int) -> None:
    """Raise DataError where the template has no form for what a message holds besides its text."""
    turn = turns[number]
    fields = json.loads(turn.extra) if turn.extra else {}
    for name in ("tool_calls", "reasoning_content"):
        if name in fields:
            less = json.dumps({key: value for key, value in fields.items() if key != name})
            without = turn._replace(extra="" if less == "{}" else less)
            try:  # as the last turn, since some templates drop the reasoning of earlier ones
                bare = chat.text([*turns[:number], without])
            except DataError:
                continue  # it is missed
            if chat.text(turns[: number + 1]) == bare:
                raise _no_form(chat.place, name)


def _no_form(place: str, name: str) -> DataError:
    return DataError(
        f"{place}: the tokenizer's chat template has no form for {name!r}; use a model whose "
        "template has one, or give one with --chat-template FILE"
    )


def _apply(tokenizer: Any, turns: list[dict[str, Any]], place: str, **more: Any) -> str:
    try:
        if day := more.pop(CLOCK, None):
            template = tokenizer.get_chat_template(None, more.get("tools"))
            more["chat_template"] = _stopped_clock(day) + template
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, **more))
        if len(text) > LONG and len(text) > LONG + 10 * len(json.dumps(turns)):
            raise ValueError(f"it makes {len(text):,} letters of this")
        return text
    except MemoryError:  # of `limited`, which is no matter of one row
        raise
    except Exception as error:  # it is a program: there is nothing that it cannot raise
        raise DataError(
            f"{place or 'a conversation of two turns'}: the tokenizer's chat template refuses it "
            f"({reason(error)}); mend it or use --template plain"
        ) from error


@cache
def _stopped_clock(day: str) -> str:
    """Return a template's beginning in which `strftime_now` tells a day of its own, at midnight.

    Templates are given no function, so that it is a macro; the line break belongs to its end.
    """
    date = datetime.datetime.fromisoformat(day)
    letters = [sign + letter for sign in ("", "-") for letter in "aAbBcdeHIjmMpSuUwWxXyY"]
    told = [f"replace('%{x}', {json.dumps(date.strftime(f'%{x}'))})" for x in letters]
    shown = f"{{{{ format | {' | '.join(told)} }}}}"
    return f"{{% macro {CLOCK}(format) %}}{shown}{{% endmacro %}}\n"


def _private_letters(texts: Sequence[str], control: re.Pattern[str]) -> dict[str, str]:
    """Give each control token that occurs in the texts a letter that does not."""
    found = dict.fromkeys(token for text in texts for token in control.findall(text))
    if not found:
        return {}
    used = set().union(*texts)
    free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)
    return dict(zip(free, found, strict=False))
