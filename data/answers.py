"""Where the answers of a source stand, and which column says how good they are.

Nothing is guessed here: a column of marks is read only where its values name the better answer, or
are scores or ranks by name. Where they could mean either answer, the reading is refused.
"""

from collections.abc import Sequence

from data import names
from data.agreement import agreed, check_labels, check_order
from data.form import Columns, Form, Values
from data.question import DataError
from data.sample import Sample
from data.winners import authors_of, key_of_value, names_authors, places_of, winners


def find_answers(
    sample: Sample, asked: Columns, values: Values | None, free: Sequence[str], every: bool
) -> Form | None:
    """Return the form with the columns of its answers; None where nothing tells them apart.

    Raises:
        DataError: a column says which answer won, but could mean either of them.
    """
    of_lists = {"answers", "scores", "ranks", "winner"} & asked.keys()
    alone = {"completion", "label"} & asked.keys()
    paired = {"chosen", "rejected"} & asked.keys()
    pairs = None if of_lists or alone else _pairs(sample, asked, free)
    graded = None
    if not alone and not paired and (every or not pairs):
        graded = _graded(sample, asked, values, free)
    if pairs and not paired:
        check_order(sample, pairs, free)
    if pairs:
        return graded if graded and len(graded.columns["answers"]) == 1 else pairs
    single = None if of_lists or paired else _single(sample, asked, free)
    return graded or single


def _pairs(sample: Sample, asked: Columns, free: Sequence[str]) -> Form | None:
    """Find a chosen and a rejected answer."""
    columns: Columns = {}
    for role, side in (("chosen", names.GOOD), ("rejected", names.BAD)):
        exact = (role, *names.TRUTHFULQA[role], *names.ALSO[role])
        alike = [names.plain(name) for name in free if names.says(name, side)]
        found = sample.first([*exact, *alike], free)
        if not found and role == "chosen" and "rejected" not in asked:
            found = _beside_rejected(sample, free)
        if role not in asked and not found:
            return None
        columns[role] = asked.get(role) or (str(found),)
    more = [n for n in free if names.stem(n)[1] and names.says(names.stem(n)[0], names.BAD)]
    if "rejected" not in asked and (more := [n for n in more if n not in columns["rejected"]]):
        columns["rejected"] += tuple(more)  # `rejected_2` and on
    if all(_points(sample, columns[role][0], free) for role in ("chosen", "rejected")):
        return None  # they say which of other columns is meant
    if names.plain(columns["chosen"][0]) in names.TRUTHFULQA["chosen"] and "correct" not in asked:
        correct = sample.first(names.TRUTHFULQA["correct"], free)
        columns |= {"correct": (correct,)} if correct else {}
    return Form("pairs", columns)


def _points(sample: Sample, column: str, free: Sequence[str]) -> bool:
    """Tell whether a column's values are no answers, and say which of several others is meant."""
    ways = several_answers(sample, free)
    told = {key_of_value(value) for value in sample.values(column)}
    return bool(ways and told) and (
        sample.marks(column)
        or any(names_authors(sample, column, authors_of(answers, free)) for answers in ways)
        or any(None not in places_of(told, answers).values() for answers in ways)
    )


def _beside_rejected(sample: Sample, free: Sequence[str]) -> str | None:
    """Return the answer beside a rejected one: `response` beside `rejected_response`.

    It may be the last of the messages that hold the prompt.
    """
    bad = [names.words(name) for name in free if names.says(name, names.BAD)]
    bare = {"_".join(w for w in found if w not in names.BAD) for found in bad} - {""}
    if found := next((name for name in free if names.plain(name) in bare), None):
        return found
    name = sample.first(("messages", "conversations"), free) if bad else None
    values = sample.values(name) if name else []
    ends = [value[-1] for value in values if isinstance(value, list)]
    roles = {str(end.get("role", end.get("from"))) for end in ends if isinstance(end, dict)}
    return name if roles and roles <= {"assistant", "gpt"} else None


def _graded(
    sample: Sample, asked: Columns, values: Values | None, free: Sequence[str]
) -> Form | None:
    """Find answers, and what grades them."""
    given: Columns = {r: asked[r] for r in ("scores", "ranks", "winner") if r in asked}
    if len(given) > 1:
        raise DataError(f"--columns: {' and '.join(given)} both say how good answers are; name one")
    ways = [asked["answers"]] if "answers" in asked else several_answers(sample, free)
    for answers in ways:
        if given and "winner" not in given:
            return Form("graded", {"answers": answers, **given})
        rest = [name for name in free if name not in answers]
        found = [] if given else _grades(sample, answers, rest)
        won = [
            Form(
                "graded",
                {"answers": answers, "winner": (column,)},
                meaning,
                named=() if meaning else authors_of(answers, rest),
                ties=bool(values),
            )
            for column, meaning in winners(sample, answers, given.get("winner"), values, rest)
        ]
        forms = [*found, *won] if len(answers) == 1 else [*won, *found]
        if forms:
            return agreed(sample, forms)
    return None


def several_answers(sample: Sample, free: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every way in which a row may have several answers: lists, and columns numbered."""
    lists = [
        (name,) for name in free
        if names.of_answers(name) and sample.lists_of(name, (str, dict, list))
    ]  # fmt: skip
    return [*lists, *suffixed(sample, free)]


def suffixed(sample: Sample, free: Sequence[str]) -> list[tuple[str, ...]]:
    """Return columns of answers whose names differ only in a number or letter at their end."""
    found: dict[str, dict[str, str]] = {}
    for name in free:
        stem, suffix = names.stem(name)
        parts = set(names.words(stem))
        if suffix and parts & names.NOUNS and parts <= names.NOUNS | names.OF_ANSWERS:
            if sample.mostly(name, (str, list, dict)):
                found.setdefault(stem, {})[suffix] = name
    several = [group for group in found.values() if len(group) > 1]
    return [tuple(group[suffix] for suffix in sorted(group)) for group in several]


def _grades(sample: Sample, answers: tuple[str, ...], free: Sequence[str]) -> list[Form]:
    """Find scores and ranks of these answers: in a list, a list beside it, or a column for each.

    Those that are said to be of the whole answer come first.
    """
    found: list[tuple[bool, bool, Columns]] = []
    if len(answers) == 1 and sample.graded_inside(answers[0]):
        return [Form("graded", {"answers": answers})]
    wanted = [names.stem(name)[1] for name in answers]
    for role, meant in (("scores", names.SCORES), ("ranks", names.RANKS)):
        groups: dict[str, dict[str, str]] = {}
        for name in free:
            stem, suffix = (name, "") if len(answers) == 1 else names.stem(name)
            if names.grades(stem, meant):
                groups.setdefault(stem, {})[suffix] = name
        for stem, group in groups.items():
            said = set(names.words(stem))
            columns = tuple(group.get(suffix, "") for suffix in wanted)
            if len(answers) == 1:
                columns = tuple(group.values())
                fits = sample.parallel(answers[0], columns[0])
            else:
                fits = all(columns) and all(map(sample.numbers, columns))
            if fits:
                whole = bool(said & names.OVERALL), said <= meant
                found.append((*whole, {"answers": answers, role: columns}))
    found.sort(key=lambda one: one[:2], reverse=True)
    if found and found[0][0]:
        found = found[:1]  # others are of a part of what an answer is worth
    return [Form("graded", columns) for _, _, columns in found]


def _single(sample: Sample, asked: Columns, free: Sequence[str]) -> Form | None:
    """Find one answer a row, and what it is worth."""
    answer, label = asked.get("completion"), asked.get("label")
    if not answer and (found := sample.first(names.SINGLE, free)):
        answer = (found,)
    rest = [n for n in free if n not in (answer or ()) and not sample.mostly(n, (list, dict))]
    alike = [n for n in rest if names.grades(n, names.LABELS | names.RANKS)]
    alike.sort(key=sample.flags, reverse=True)  # true and false before scores
    named = [n for n in rest if names.plain(n) in names.FIRST_LABELS]
    alike = [*named, *(n for n in alike if set(names.words(n)) & names.OVERALL), *alike]
    if not label and alike:
        label = (alike[0],)
        check_labels(sample, alike, free)
    return Form("single", {"completion": answer, "label": label}) if answer and label else None
