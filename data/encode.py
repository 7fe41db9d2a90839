"""Text -> token ids: one BOS, the boundary, the stop token, the length policy."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from data.gather import Reading, Watch, loosely, text_key, unwatched
from data.question import CUT, REPEATED, SAME_TOKENS, TOO_LONG, DataError, Note, Preference
from data.table import ROWS_AT_ONCE, Table, as_notes, count_notes, key_of, open_rows, write_rows
from data.templates import Frame, Rendered, Template, chat_frame, render
from data.trees import Tokens, trie_size

Truncate = Literal["drop", "prompt", "never"]


class TextSettings(NamedTuple):
    """What of the settings decides the ids.

    Args:
        template: `plain` or `chat`.
        max_length: the longest path, in tokens, BOS and stop token included; None: any.
        truncate: what becomes of a longer question. `drop` leaves it out with a note, `prompt` cuts
            the beginning of its prompt behind BOS, `never` refuses. Answers are never cut.
        prompt_format: of the plain template, `{}` is the text.
        answer_format: likewise.
    """

    template: Template = "plain"
    max_length: int | None = None
    truncate: Truncate = "drop"
    prompt_format: str | None = None
    answer_format: str | None = None


class EncodedQuestion(NamedTuple):
    """A `Preference` as token ids; answers end with the stop token and are scored whole."""

    prompt: Tokens
    chosen: Tokens
    rejected: tuple[Tokens, ...]
    correct: tuple[Tokens, ...] = ()
    category: str = ""

    @property
    def trained(self) -> tuple[Tokens, ...]:
        """Chosen, rejected ...: the answers that pairs are made of."""
        return (self.chosen, *self.rejected)

    @property
    def answers(self) -> tuple[Tokens, ...]:
        """Chosen, rejected ..., further correct ...: the order of `Preference.answers`."""
        return (*self.trained, *self.correct)


def without_stop(question: EncodedQuestion) -> EncodedQuestion:
    """Return the question with answers that do not end: as benchmarks score them."""
    rejected, correct = (
        tuple(answer[:-1] for answer in side) for side in (question.rejected, question.correct)
    )
    return question._replace(chosen=question.chosen[:-1], rejected=rejected, correct=correct)


class Encoding(NamedTuple):
    """The encoded questions and what happened on the way."""

    questions: Table[EncodedQuestion]
    boundary_merges: int  # answers whose first letters would have fused with the prompt's last
    unknown: int  # tokens that stand for text which the tokenizer cannot write
    largest_id: int
    notes: dict[str, tuple[int, list[str]]]  # what was left out or cut, how often, where


def encode(
    preferences: Sequence[Preference],
    tokenizer: Any,
    text: TextSettings = TextSettings(),
    file: Path | None = None,
    watch: Watch = unwatched,
) -> Encoding:
    """Encode every question.

    The prompt's ids are the same for all answers of a question and start with exactly one BOS
    where the tokenizer defines one. An answer's ids are those it has in the whole text. Only where
    prompt and answer would fuse into one token at the boundary is it encoded alone, and counted.

    Args:
        preferences: what to encode.
        tokenizer: the model's own.
        text: how they become text, and how long that may be.
        file: where the ids are kept, memory-mapped; None keeps them in memory.
        watch: shows progress.

    Raises:
        DataError: no stop token is known, the template refuses a conversation, no question is
            left, or `file` cannot be written.
    """
    rows = open_rows(file)
    if rows is None:
        rows = write_rows(_rows(preferences, tokenizer, text, watch), _features(), file)
    columns = rows.data
    pairs = columns.column("pairs").to_numpy()
    if not pairs.any():
        left = "; ".join(f"{reason}: {n}" for reason, (n, _) in count_notes(rows).items())
        longer = f"; --max-length is {text.max_length} tokens" if TOO_LONG in left else ""
        raise DataError(f"no question is left to train on: {left}{longer}")
    return Encoding(
        Table(rows, _as_encoded, np.flatnonzero(pairs)),
        int(columns.column("merges").to_numpy().sum()),
        int(columns.column("unknown").to_numpy().sum()),
        int(columns.column("largest_id").to_numpy().max()),
        count_notes(rows),
    )


def encoding_file(
    folder: Path, reading: Reading, tokenizer: Any, text: TextSettings
) -> Path | None:
    """Return where the ids of a large source are kept: content, tokenizer and settings name it."""
    if reading.small:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    how = backend.to_str() if backend else repr(sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(f"{how} {tokenizer.chat_template}".encode()).hexdigest()
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return folder / f"{key_of(reading.key, digest, ids, text._asdict())}.tokens.arrow"


def of_all_lengths(questions: Table[EncodedQuestion], count: int = 8) -> list[EncodedQuestion]:
    """Return the longest question and others of lengths spread evenly over all."""
    longest_first = np.argsort(-questions.column("length"), kind="stable")
    count = min(count, len(longest_first))
    return list(
        questions.select([longest_first[i * len(questions) // count] for i in range(count)])
    )


def _rows(
    preferences: Sequence[Preference], tokenizer: Any, text: TextSettings, watch: Watch
) -> Iterator[dict[str, Any]]:
    """Encode many questions at once, since the tokenizer works on a list in parallel."""
    numbered = getattr(preferences, "rows", range(len(preferences)))
    frame = chat_frame(tokenizer) if text.template == "chat" else None
    formats = (text.prompt_format, text.answer_format)
    items = iter(zip(numbered, watch(preferences, "Encoding", len(preferences)), strict=True))
    while some := list(itertools.islice(items, ROWS_AT_ONCE)):
        texts = [render(p, tokenizer, text.template, *formats, frame) for _, p in some]
        tokenized = _tokenize(texts, tokenizer, text.template, frame)
        for (number, p), rendered in zip(some, texts, strict=True):
            try:
                prompt, answers, merges = next(tokenized)
            except DataError as error:
                raise DataError(f"{p.place}: {error}") from error
            ended = [(*ids, rendered.stop) for ids in answers]
            question, notes = _encoded(p, prompt, ended, tokenizer, text)
            about = {"row": number, "merges": merges, "notes": as_notes(notes)}
            yield _row(p, question, tokenizer.unk_token_id) | about


def _encoded(
    p: Preference, prompt: Tokens, answers: list[Tokens], tokenizer: Any, text: TextSettings
) -> tuple[EncodedQuestion, list[Note]]:
    """Return a question of these ids within the longest length, and what was left out or cut."""
    bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    n = 1 + len(p.rejected)
    different = [answer for answer in answers[1:n] if answer != answers[0]]
    rejected = tuple(dict.fromkeys(different))
    notes = [Note(SAME_TOKENS, p.place)] * (n - 1 - len(different))
    notes += [Note(REPEATED, p.place)] * (len(different) - len(rejected))
    question = EncodedQuestion(bos + prompt, answers[0], rejected, tuple(answers[n:]), p.category)
    longest = max(map(len, question.answers))
    length = len(question.prompt) + longest
    if not text.max_length or length <= text.max_length:
        return question, notes
    room = text.max_length - longest - len(bos)
    if text.truncate == "never":
        raise DataError(
            f"{p.place or repr(p.prompt)}: {length} tokens, more than --max-length "
            f"{text.max_length}; raise it, or say --truncate drop or prompt"
        )
    if text.truncate == "prompt" and room > 0:
        return question._replace(prompt=bos + prompt[-room:]), [*notes, Note(CUT, p.place)]
    too_long = Note(TOO_LONG, f"{p.place} {p.prompt[:60]!r}".strip())
    return question._replace(rejected=()), [*notes, too_long]


def _row(p: Preference, question: EncodedQuestion, unknown: int | None) -> dict[str, Any]:
    """Return a question as it is kept, with the numbers that order, split and report need."""
    asked = [turn.text for turn in p.history if turn.role == "user"]
    ids = list(itertools.chain(question.prompt, *question.answers))
    twice = 2 * len(question.prompt) + len(question.chosen)
    return {
        **question._asdict(),
        "place": p.place,
        "ids_key": text_key(repr(question[:-1])),
        "key": text_key(loosely("\n".join([*asked, p.prompt]))),
        "chosen_key": text_key(loosely(p.chosen)),
        "pairs": len(question.rejected),
        "prompt_length": len(question.prompt),
        "length": len(question.prompt) + max(map(len, question.answers)),
        "as_pairs": sum(twice + len(answer) for answer in question.rejected),
        "as_trees": len(question.prompt) + sum(map(len, question.trained)),
        "as_tries": trie_size(question.prompt, question.trained),
        "unknown": 0 if unknown is None else ids.count(unknown),
        "largest_id": max(ids),
    }


def _tokenize(
    texts: Sequence[Rendered], tokenizer: Any, template: Template, frame: Frame | None
) -> Iterator[tuple[Tokens, list[Tokens], int]]:
    """Yield (prompt, answers, boundary merges) of each, BOS and stop token aside.

    In plain text `<eos>` is five letters. In a chat the template's control tokens are read as such,
    and where people's text holds the name of one too, the text is cut at the template's own.
    """
    clean = [text for text in texts if not text.hidden]
    whole = [t for text in clean for t in (text.prompt, *(text.prompt + a for a in text.answers))]
    ids = iter(_token_ids(tokenizer, whole, split=template == "plain"))
    for text in texts:
        if text.hidden and frame:
            prompt = _guarded(text.prompt, text.hidden, tokenizer, frame)
            joint = [_guarded(text.prompt + a, text.hidden, tokenizer, frame) for a in text.answers]
        else:
            prompt = tuple(next(ids))
            joint = [tuple(next(ids)) for _ in text.answers]
        answers, merges = [], 0
        for own, both in zip(text.answers, joint, strict=True):
            ids_of_own = both[len(prompt) :]
            if both[: len(prompt)] != prompt:
                merges += 1
                ids_of_own = _alone(_restored(own, text.hidden), tokenizer)
            answers.append(ids_of_own)
        yield prompt, answers, merges


def _token_ids(tokenizer: Any, texts: list[str], split: bool) -> list[list[int]]:
    """Tokenize many texts in parallel; `split` reads names of special tokens as letters.

    The backend alone gives the same ids as transformers' call around it, in a third of its time.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.truncation or backend.padding:
        options = {"add_special_tokens": False, "split_special_tokens": split}
        return [list(ids) for ids in tokenizer(texts, **options).input_ids] if texts else []
    backend.encode_special_tokens = split
    return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _alone(text: str, tokenizer: Any) -> Tokens:
    """Tokenize what stands behind something else: without the space that begins a text for some.

    A line break before it takes that space, where the line break is a token of its own.
    """
    bare, behind, start = _token_ids(tokenizer, [text, "\n" + text, "\n"], split=True)
    return tuple(behind[len(start) :] if behind[: len(start)] == start else bare)


def _restored(text: str, hidden: dict[str, str]) -> str:
    for letter, token in hidden.items():
        text = text.replace(letter, token)
    return text


def _guarded(text: str, hidden: dict[str, str], tokenizer: Any, frame: Frame) -> Tokens:
    """Tokenize a rendered text in which `hidden` letters stand for what people wrote.

    Raises:
        DataError: the tokenizer reads a name that people wrote as its control token in any case.
    """
    ids: list[int] = []
    for number, piece in enumerate(frame.control.split(text)):
        if number % 2:  # what the pattern found stands between the other pieces
            ids.append(tokenizer.convert_tokens_to_ids(piece))
            continue
        written = _restored(piece, hidden)
        if ids:
            read = _alone(written, tokenizer)
        else:
            read = tuple(_token_ids(tokenizer, [written], split=True)[0])
        obeyed = set(read) & {tokenizer.convert_tokens_to_ids(t) for t in hidden.values()}
        if obeyed:
            named = tokenizer.convert_ids_to_tokens(sorted(obeyed))
            raise DataError(
                f"{written[:60]!r}: the tokenizer obeys {named[0]!r} even within text; remove it "
                "from the data or use --template plain"
            )
        ids += read
    return tuple(ids)


def _as_encoded(row: dict[str, Any]) -> EncodedQuestion:
    return EncodedQuestion(
        tuple(row["prompt"]),
        tuple(row["chosen"]),
        tuple(map(tuple, row["rejected"])),
        tuple(map(tuple, row["correct"])),
        row["category"],
    )


def _features() -> dict[str, Any]:
    from datasets import List, Value

    ids, number = List(Value("int32")), Value("int64")
    numbers = (
        "row", "ids_key", "key", "chosen_key", "pairs", "prompt_length", "length", "as_pairs",
        "as_trees", "as_tries", "merges", "unknown", "largest_id",
    )  # fmt: skip
    return {
        "prompt": ids,
        "chosen": ids,
        "rejected": List(ids),
        "correct": List(ids),
        "category": Value("string"),
        "place": Value("string"),
        **{name: number for name in numbers},
        "notes": List({"reason": Value("string"), "place": Value("string")}),
    }
