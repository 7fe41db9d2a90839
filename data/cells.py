"""One value of a row: a text, the turns of a conversation, answers, grades; or why it is none."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.names import FALSE, RANKS, TEXT_KEYS, TRUE, grade_keys, words
from data.question import DataError, Turn

Turns = tuple[Turn, ...]
Side = str | Turns  # an answer, or a conversation that ends with it

ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "model": "assistant", "ai": "assistant", "observation": "tool",
    "function": "tool",
}  # fmt: skip
AS_PYTHON = re.compile(r"\s*(array\()?\s*(\[\s*)?\{\s*'\w+'\s*:")
AS_JSON = re.compile(r'\s*(\[\s*)?\{\s*"')
WHO, WHAT = ("role", "from"), ("content", "value", "text", "tool_calls")  # keys of a message
KEPT = ("tool_calls", "reasoning_content", "tool_call_id", "name")  # of a message, besides its text
UNREAD = ("function_call", "images", "audio", "videos", "reasoning_details", "thinking_blocks")


class Cell:
    """One value of a row, which knows where it stands."""

    def __init__(self, place: str, column: str, value: Any) -> None:
        self.place, self.column, self.value = place, column, value

    def wrong(self, what: str) -> DataError:
        """Return the error that says what is wrong with the value."""
        return DataError(f"{self.place}, column {self.column!r}: {shortly(self.value)}: {what}")

    def text(self, value: Any) -> str:
        """Read a text as it stands; null is none."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(f"{type(value).__name__} where text is needed")
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise self.wrong("half a surrogate pair, which is no text")
        if value[:1] in "[{a \n" and AS_PYTHON.match(value) and _names_a_message(value):
            raise self.wrong("messages written as Python text; keep them as lists, or as JSON")
        return value

    def label(self) -> str:
        """Read a category: text or a number."""
        number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        return str(self.value) if number else self.text(self.value)

    def turns(self, messages: Sequence[Any]) -> Turns:
        """Read messages under any of the usual names."""
        return tuple(map(self._turn, messages))

    def _turn(self, message: Any) -> Turn:
        if not isinstance(message, dict):
            raise self.wrong("a message needs a 'role' and a 'content' of text")
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value", message.get("text")))
        extra = without_nulls({key: message[key] for key in KEPT if message.get(key)})
        if thought := message.get("reasoning") or message.get("thinking"):
            extra.setdefault("reasoning_content", thought)
        self._check_extra(extra)
        if unread := [key for key in UNREAD if message.get(key)]:
            raise self.wrong(f"a message with {unread[0]!r} cannot be read; put it in 'content'")
        if isinstance(content, list) and content:
            content = self._parts(content)
        if content is None and "tool_calls" in extra:
            content = ""
        if not isinstance(role, str) or not isinstance(content, str):
            raise self.wrong("a message needs a 'role' and a 'content' of text")
        if role == "function_call" or not re.fullmatch(
            r"[A-Za-z_]+", role
        ):  # templates write it among their own
            raise self.wrong(f"{role[:30]!r} is no role; one is a word like 'user'")
        role = role.lower()
        return Turn(ROLES.get(role, role), self.text(content), _as_json(extra))

    def _check_extra(self, extra: dict[str, Any]) -> None:
        calls = extra.get("tool_calls", [])
        if not isinstance(calls, list) or not all(map(_is_call, calls)):
            raise self.wrong("tool_calls are a list of {'function': {'name': ...}}")
        if not isinstance(extra.get("reasoning_content", ""), str):
            raise self.wrong("reasoning_content is a text")

    def _parts(self, parts: list[Any]) -> str:
        texts = [
            part.get("text") if isinstance(part, dict) and _is_text(part) else part
            for part in parts
        ]
        said = [text for text in texts if isinstance(text, str)]
        if len(said) < len(parts):
            raise self.wrong("a part of a message that is no text")
        return "".join(said)

    def said(self, value: Any, listed: bool = False) -> Side:
        """Read a text, a message, a conversation, or a conversation kept as JSON text.

        `listed`: texts are JSON lists of texts. A list of several is a conversation of unknown
        roles, and gives ().
        """
        if listed and isinstance(value, str):
            texts = self._texts(value)
            return texts[0] if len(texts) == 1 else ()
        if isinstance(value, str) and value[:1] in "[{ \n" and AS_JSON.match(value):
            found = self._unpacked(value)
            messages = found if isinstance(found, list) else [found]
            says = all(is_message(m) and set(WHAT) & m.keys() for m in messages)
            value = found if says else value
        if isinstance(value, dict):
            value = value["messages"] if isinstance(value.get("messages"), list) else value
        if isinstance(value, dict):
            keys = [key for key in TEXT_KEYS if isinstance(value.get(key), str)]
            if is_message(value):
                return self.turns([value])
            return self.text(value[keys[0]] if len(keys) == 1 else value)
        if isinstance(value, list | tuple):
            alone = len(value) == 1 and isinstance(value[0], str)
            return self.text(value[0]) if alone else self.turns(value)
        return self.text(value)

    def _texts(self, text: str) -> list[str]:
        """Return the texts of a JSON list; null is an empty one."""
        found = self._unpacked(text)
        if not isinstance(found, list):
            raise self.wrong("a JSON list of texts is needed, as in the other rows")
        return [self.text(item) for item in found]

    def _unpacked(self, text: str) -> Any:
        """Return the value of JSON, or the text that it is not."""
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    def sides(self, semicolons: bool = False, listed: bool = False) -> list[Side]:
        """Read an answer or a list of answers, each of them text or messages.

        In TruthfulQA's CSV semicolons separate the answers of a list.
        """
        if semicolons and isinstance(self.value, str):
            text = self.value.strip().removesuffix(";")
            return list(text.split(";")) if text else []
        if listed and isinstance(self.value, str):
            return [*self._texts(self.value)]
        if not isinstance(self.value, list | tuple):
            return [self.said(self.value)]
        if self.value and all(isinstance(item, dict) for item in self.value):
            return [self.turns(self.value)]
        return [self.said(item) for item in self.value]

    def answers(self) -> tuple[list[Side], list[float | None]]:
        """Read a list of answers, and their grades where they have some of their own."""
        if not isinstance(self.value, list | tuple) or not self.value:
            raise self.wrong("a list of answers is needed")
        first = self.value[0]
        key = next(iter(grade_keys(first)), None) if isinstance(first, dict) else None
        rank = key is not None and bool(set(words(key)) & RANKS)
        sides: list[Side] = []
        grades: list[float | None] = []
        for item in self.value:
            if key is not None and (not isinstance(item, dict) or key not in item):
                raise self.wrong(f"an answer has no {key!r}")
            grades.append(None if key is None else self.number(item[key], rank))
            if isinstance(item, dict) and not is_message(item):
                text = next((k for k in TEXT_KEYS if k in item and k != key), None)
                if text is None:
                    raise self.wrong("an answer needs a 'response'")
                item = item[text]
            sides.append(self.said(item))
        return sides, grades

    def number(self, value: Any, rank: bool = False) -> float:
        """Read a grade: a number, also one that is written as text; of ranks 1 is the best."""
        said = str(value).strip().lower()
        found = 1.0 if said in TRUE else 0.0 if said in FALSE else float("nan")
        try:
            found = float(value) if found != found else found
        except (TypeError, ValueError, OverflowError):
            pass  # no number
        if found != found:
            raise self.wrong(f"{shortly(value)} is no grade; a number is needed")
        return -found if rank else found


def shortly(value: Any) -> str:
    """Return a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_message(value: Any) -> bool:
    """Tell whether an object is a message of a conversation."""
    return isinstance(value, Mapping) and bool(set(WHO) & value.keys())


def _names_a_message(text: str) -> bool:
    """Tell whether a text names who speaks and what is said, as Python would write a message."""
    return all(any(f"'{key}'" in text for key in keys) for keys in (WHO, WHAT))


def _is_text(part: Mapping[str, Any]) -> bool:
    """Tell whether a part of a message is text by its type, if it names one."""
    return "text" in str(part.get("type", "text"))


def _is_call(call: Any) -> bool:
    """Tell whether this is a call of a function: its name, and arguments."""
    inside = call.get("function", call) if isinstance(call, dict) else None
    return isinstance(inside, dict) and isinstance(inside.get("name"), str)


def without_nulls(value: Any) -> Any:
    """Return a value without nulls in its objects: Arrow puts one for each key of other rows."""
    if isinstance(value, dict):
        return {key: without_nulls(v) for key, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def _as_json(extra: dict[str, Any]) -> str:
    return json.dumps(extra, ensure_ascii=False, sort_keys=True) if extra else ""
