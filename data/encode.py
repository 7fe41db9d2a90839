"""Text -> token ids: one BOS, the boundary, the stop token, the length policy."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.chat import Frame, chat_frame
from data.gather import Reading, Watch, loosely, text_key, unwatched
from data.limits import limited
from data.question import (
    CUT,
    REPEATED,
    SAME_TOKENS,
    TOO_LONG,
    BadRows,
    DataError,
    Note,
    Preference,
    reading,
)
from data.table import ROWS_AT_ONCE, Table, as_notes, count_notes, key_of, open_rows, write_rows
from data.templates import MARK, render
from data.text import Rendered, Template, TextSettings
from data.trees import Tokens, trie_size


class Anchor(NamedTuple):
    """An answer y of at most T tokens that the reference wrote, and what else it had in mind.

    One that was cut off has no stop token.
    """

    tokens: Tokens
    words: np.ndarray  # (|y|, k) int, the likeliest tokens at each place
    logps: np.ndarray  # (|y|, k) float32, log pi_ref(v | x, y_<t) of them, nats
    longest: int  # T


class EncodedQuestion(NamedTuple):
    """A `Preference` as token ids; answers end with the stop token and are scored whole."""

    prompt: Tokens
    chosen: Tokens
    rejected: tuple[Tokens, ...]
    correct: tuple[Tokens, ...] = ()
    category: str = ""
    grades: tuple[float, ...] = ()  # of `answers`; (): chosen and correct 1, rejected 0
    every: bool = False  # trained on all pairs, not on those of the chosen answer alone
    anchors: tuple[Anchor, ...] = ()  # in no pair, and not among `answers`

    @property
    def answers(self) -> tuple[Tokens, ...]:
        """Chosen, rejected ..., further correct ...: the order of `Preference.answers`."""
        return (self.chosen, *self.rejected, *self.correct)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs that are trained on, (better, worse), as places among `answers`."""
        return self.all_pairs if self.every else [(0, 1 + k) for k in range(len(self.rejected))]

    @property
    def all_pairs(self) -> list[tuple[int, int]]:
        """Every answer with each of lower grade; one that has two grades has the lower one."""
        levels = self.grades or (1.0,) + (0.0,) * len(self.rejected) + (1.0,) * len(self.correct)
        lowest: dict[Tokens, float] = {}
        places: dict[Tokens, int] = {}
        for place, (answer, grade) in enumerate(zip(self.answers, levels, strict=True)):
            lowest[answer] = min(grade, lowest.get(answer, grade))
            places.setdefault(answer, place)
        graded = [(place, lowest[answer]) for answer, place in places.items()]
        return [(i, j) for i, high in graded for j, low in graded if high > low]

    @property
    def trained(self) -> tuple[Tokens, ...]:
        """The answers that pairs are made of."""
        return self.answers if self.every else (self.chosen, *self.rejected)


def without_stop(question: EncodedQuestion) -> EncodedQuestion:
    """Return the question with answers that do not end: as benchmarks score them."""
    rejected, correct = (
        tuple(answer[:-1] for answer in side) for side in (question.rejected, question.correct)
    )
    return question._replace(chosen=question.chosen[:-1], rejected=rejected, correct=correct)


def stop_of(questions: Sequence[EncodedQuestion]) -> int:
    """Return the stop token: the one that most chosen answers of the first questions end with.

    Some answers may end with a token of their own (`--template raw`).
    """
    ends = (question.chosen[-1] for question in itertools.islice(questions, 64))
    return Counter(ends).most_common(1)[0][0]


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
        most = f"; at most {text.max_length} tokens are read (--max-length)"
        raise DataError(f"no question is left: {left}{most if TOO_LONG in left else ''}")
    return Encoding(
        Table(rows, partial(_as_encoded, every=text.pairs == "all"), np.flatnonzero(pairs)),
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


NOTHING = EncodedQuestion((0,), (0,), ())  # in place of a question that is left out
FAILS = "the tokenizer fails on this text"


def _rows(
    preferences: Sequence[Preference], tokenizer: Any, text: TextSettings, watch: Watch
) -> Iterator[dict[str, Any]]:
    """Encode many questions at once, since the tokenizer works on a list in parallel."""
    numbered = getattr(preferences, "rows", range(len(preferences)))
    frame = chat_frame(tokenizer, text.template_kwargs) if text.template == "chat" else None
    added = tokenizer.added_tokens_decoder.items() if text.template == "raw" else ()
    ends = frozenset(i for i, t in added if t.special or re.fullmatch(MARK, t.content))
    bos_id, unknown = tokenizer.bos_token_id, tokenizer.unk_token_id  # slow properties
    items = iter(zip(numbered, watch(preferences, "Encoding", len(preferences)), strict=True))
    bad = BadRows(text.skip_bad)
    while some := list(itertools.islice(items, ROWS_AT_ONCE)):
        every, work = [p for _, p in some], partial(_rendered, tokenizer, text, frame)
        if text.template == "chat":
            texts = limited(work, every, "--template chat: a row's text")
        else:
            texts = list(map(work, every))
        tokenized = _tokenize(texts, tokenizer, text.template, frame)
        for (number, p), rendered, found in zip(some, texts, tokenized, strict=True):
            bad.rows += 1
            question, merges = NOTHING, 0
            if isinstance(found, DataError):
                where = "" if p.place in str(found) else f"{p.place}: "
                notes = [bad.note(DataError(f"{where}{found}"), p.place)]
            elif isinstance(rendered, Rendered):
                question, notes = _encoded(p, found, rendered, bos_id, text, ends)
                merges = found.merges
            about = {"row": number, "merges": merges, "notes": as_notes(notes)}
            yield _row(p, question, unknown) | about
    bad.check()


def _rendered(
    tokenizer: Any, text: TextSettings, frame: Frame | None, p: Preference
) -> Rendered | DataError:
    try:
        return render(p, tokenizer, text, frame)
    except DataError as error:
        return error


def _encoded(
    p: Preference, found: "Tokenized", rendered: Rendered, bos_id: int | None, text: TextSettings,
    ends: frozenset[int],
) -> tuple[EncodedQuestion, list[Note]]:  # fmt: skip
    """Return a question of these ids within the longest length, and what was left out or cut.

    An answer that ends with one of the tokens `ends` needs no stop token more.
    """
    bos = (bos_id,) if rendered.bos and bos_id is not None else ()
    notes, n = list(rendered.notes), 1 + len(p.rejected)
    own = rendered.ended
    answers = [
        ids and (ids if k in own or ids[-1] in ends else (*ids, rendered.stop))
        for k, ids in enumerate(found.answers)
    ]
    chosen, *graded = zip(answers, p.levels, strict=True)
    if chosen[0] is None:
        return NOTHING, notes
    rejected: dict[Tokens, float] = {}
    for ids, grade in graded[: n - 1]:
        if ids == chosen[0] or ids in rejected:
            notes.append(Note(SAME_TOKENS if ids == chosen[0] else REPEATED, p.place))
        elif ids:
            rejected[ids] = grade
    correct = [(ids, grade) for ids, grade in graded[n - 1 :] if ids]
    levels = (chosen[1], *rejected.values(), *(grade for _, grade in correct))
    question = EncodedQuestion(
        bos + found.prompt, chosen[0], tuple(rejected), tuple(ids for ids, _ in correct),
        p.category, levels if p.grades else (), text.pairs == "all",
    )  # fmt: skip
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
        return question._replace(prompt=bos + found.prompt[-room:]), [*notes, Note(CUT, p.place)]
    too_long = Note(TOO_LONG, f"{p.place} {p.prompt[:60]!r}".strip())
    return question._replace(rejected=(), correct=(), grades=()), [*notes, too_long]


def _row(p: Preference, question: EncodedQuestion, unknown: int | None) -> dict[str, Any]:
    """Return a question as it is kept, with the numbers that order, split and report need."""
    asked = [turn.text for turn in p.history if turn.role == "user"]
    ids = list(itertools.chain(question.prompt, *question.answers))
    answers, pairs = question.answers, question.pairs
    return {
        "prompt": question.prompt,
        "chosen": question.chosen,
        "rejected": question.rejected,
        "correct": question.correct,
        "category": question.category,
        "grades": question.grades,
        "place": p.place,
        "ids_key": text_key(f"{question[:4]}{question.grades or ''}"),
        "key": text_key(loosely("\n".join([*asked, p.prompt]))),
        "chosen_key": text_key(loosely(p.chosen)),
        "pairs": len(pairs),
        "prompt_length": len(question.prompt),
        "length": len(question.prompt) + max(map(len, answers)),
        "as_pairs": sum(
            2 * len(question.prompt) + len(answers[i]) + len(answers[j]) for i, j in pairs
        ),
        "as_trees": len(question.prompt) + sum(map(len, question.trained)),
        "as_tries": trie_size(question.prompt, question.trained),
        "unknown": 0 if unknown is None else ids.count(unknown),
        "largest_id": max(ids),
    }


class Tokenized(NamedTuple):
    """The ids of a rendered question, BOS and stop token aside."""

    prompt: Tokens
    answers: list[Tokens | None]
    merges: int  # answers whose first letters would have fused with the prompt's last


def _tokenize(
    texts: Sequence[Rendered | DataError], tokenizer: Any, template: Template, frame: Frame | None
) -> Iterator[Tokenized | DataError]:
    """Yield the ids of each; an error stands for itself.

    In plain text `<eos>` is five letters. In a chat the template's control tokens are read as such,
    and where people's text holds the name of one too, the text is cut at the template's own.
    """
    clean = [text for text in texts if isinstance(text, Rendered) and not text.hidden]
    whole = [
        part for text in clean
        for part in (text.prompt, *(text.prompt + a for a in text.answers if a is not None))
    ]  # fmt: skip
    try:
        with reading(FAILS):
            ids = map(tuple, _token_ids(tokenizer, whole, split=template in ("plain", "none")))
    except DataError as error:
        if len(texts) == 1:
            yield error
            return
        for text in texts:  # which of them is it?
            yield from _tokenize([text], tokenizer, template, frame)
        return
    for text in texts:
        if isinstance(text, DataError):
            yield text
            continue
        try:
            with reading(FAILS):
                found = _joint(text, ids, tokenizer, frame)
            yield found
        except DataError as error:
            yield error


def _joint(text: Rendered, ids: Iterator[Tokens], tokenizer: Any, frame: Frame | None) -> Tokenized:
    """Return the prompt's ids, and those that each answer has after it; `ids` has the next."""
    guarded = text.hidden and frame

    def next_ids(after: str = "") -> Tokens:
        if guarded:
            return _guarded(text.prompt + after, text.hidden, tokenizer, guarded)
        return next(ids)

    prompt = next_ids()
    answers: list[Tokens | None] = []
    merges = 0
    for own in text.answers:
        both = prompt if own is None else next_ids(own)
        after: Tokens | None = both[len(prompt) :]
        if own is None:
            after = None
        elif both[: len(prompt)] != prompt:
            merges += 1
            after = _alone(_restored(own, text.hidden), tokenizer)
        answers.append(after)
    return Tokenized(prompt, answers, merges)


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
    """Tokenize what stands after something else: without the space that begins a text for some.

    A line break before it takes that space, where the line break is a token of its own.
    """
    bare, after, start = _token_ids(tokenizer, [text, "\n" + text, "\n"], split=True)
    return tuple(after[len(start) :] if after[: len(start)] == start else bare)


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
    strips = {t.content: t for t in tokenizer.added_tokens_decoder.values() if t.lstrip or t.rstrip}
    pieces = frame.control.split(text)
    beside = ["", *pieces, ""]
    for number, piece in enumerate(pieces):
        if number % 2:  # what the pattern found stands between the other pieces
            ids.append(tokenizer.convert_tokens_to_ids(piece))
            continue
        if strips:  # some tokens take the white space beside them
            before, after = strips.get(beside[number]), strips.get(beside[number + 2])
            piece = piece.lstrip() if before and before.rstrip else piece
            piece = piece.rstrip() if after and after.lstrip else piece
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


def _as_encoded(row: dict[str, Any], every: bool) -> EncodedQuestion:
    return EncodedQuestion(
        tuple(row["prompt"]),
        tuple(row["chosen"]),
        tuple(map(tuple, row["rejected"])),
        tuple(map(tuple, row["correct"])),
        row["category"],
        tuple(row["grades"]),
        every,
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
        "grades": List(Value("float64")),
        "place": Value("string"),
        **{name: number for name in numbers},
        "notes": List({"reason": Value("string"), "place": Value("string")}),
    }
