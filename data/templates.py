"""A preference as text: the plain template, the tokenizer's chat template, or as it stands."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.chat import Frame, chat_frame, render_chat
from data.question import NO_TOKENS, DataError, Note, Preference, Turn
from data.text import Rendered, TextSettings

PROMPT_FORMAT, ANSWER_FORMAT = "Question: {}\nAnswer:", " {}"

# The six examples before each question in the authors' evaluation (Lin, Hilton, Evans 2021,
# arXiv 2109.07958, appendix E), which lm-eval's truthfulqa_mc1 and _mc2 use too.
TRUTHFULQA_PROMPT = Path(__file__).with_name("truthfulqa_prompt.txt").read_text(encoding="utf-8")

# What begins a turn in the templates of today, `<|im_start|>user` or `[INST]`; what ends a prompt
# that asks for an answer, `### Response:`; and what ends an answer, `<|im_end|>`.
PIPE = r"[|\uff5c]"  # DeepSeek's is a wide one
MARK = rf"(?:<{PIPE}[\w\u2581]+{PIPE}?>|<\w+{PIPE}>|<start_of_turn>|<extra_id_\d+>)"
ROLE = r"(?:system|developer|user|human|assistant|model)\b"
TEMPLATED = re.compile(
    rf"\s*(?:\[gMASK\])?(?:<s>|<bos>|<sop>|{MARK})?\s*"
    rf"(?:{MARK}\s*{ROLE}|<{PIPE}{ROLE}{PIPE}>|\[INST\]|###\s*(?:human|user):)",
    re.IGNORECASE,
)
ASKS = re.compile(
    r"(?:###\s*(?:response|assistant|answer|output):|(?-i:\bASSISTANT:)"
    r"|\n(?-i:Assistant:)|\[/INST\])\s*$",
    re.IGNORECASE,
)
OURS = re.compile(r"\s*Question:.*\nAnswer:\s*", re.DOTALL)  # what the plain template writes
ENDED = re.compile(rf"(?:<{PIPE}[\w\u2581]+{PIPE}>|</s>|<end_of_turn>|<eos>)\s*$")


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
        _check_untemplated(preference, text.template)
    if text.template == "chat":
        return render_chat(
            preference, tokenizer, text, frame or chat_frame(tokenizer, text.template_kwargs)
        )
    stop = tokenizer.eos_token_id
    if stop is None:
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
    unknown = _unknown_marks(so_far, answers, tokenizer) if text.template == "raw" else []
    notes = [Note(f"{NO_TOKENS}: {name}", preference.place) for name in unknown]
    return Rendered(so_far, [*answers], stop, {}, notes=notes)


def stop_id(tokenizer: Any, text: TextSettings) -> int | None:
    """Return the id of the token that ends an answer: the chat template's own, else EOS.

    Raises:
        DataError: as `chat_frame`.
    """
    if text.template != "chat":
        end: int | None = tokenizer.eos_token_id
        return end
    frame = chat_frame(tokenizer, text.template_kwargs)
    return int(tokenizer.convert_tokens_to_ids(frame.stop))


def _unknown_marks(prompt: str, answers: Sequence[str], tokenizer: Any) -> list[str]:
    """Return what looks like control tokens, and is none of this tokenizer's."""
    found = dict.fromkeys(re.findall(MARK, "\n".join([prompt, *answers])))
    known = tokenizer.unk_token_id
    return [m for m in found if tokenizer.convert_tokens_to_ids(m) in (None, known)]


def _check_untemplated(preference: Preference, template: str) -> None:
    prompt, chosen = preference.prompt, preference.chosen
    asks, ends = ASKS.search(prompt[-60:]), ENDED.search(chosen[-60:])
    if template == "plain" and OURS.fullmatch(prompt):
        asks = re.search("Answer:", prompt[-60:])
    if TEMPLATED.match(prompt) or asks or ends:
        shown = ends[0].strip() if ends else asks[0].strip() if asks else prompt.strip()[:30]
        raise DataError(
            f"{preference.place}: the text looks templated already ({shown!r}); --template raw "
            "reads its control tokens as such, and --template none as letters"
        )
