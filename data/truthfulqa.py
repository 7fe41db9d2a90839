"""TruthfulQA -> `Preference`s: the best answer against each incorrect one.

Lin, Hilton, Evans 2021 (arXiv 2109.07958). Read from the authors' CSV, from the built-in
questions, which have the same columns, or from the Hub.
"""

import csv
import http.client
import os
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.question import DataError, Preference

BUILTIN = Path(__file__).with_name("misconceptions.csv")
HUB_ID = "truthfulqa/truthful_qa"
COLUMNS = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")


def read_csv(path: Path) -> list[Preference]:
    """Read the authors' CSV; answers within a cell are separated by `;`.

    Raises:
        DataError: the file cannot be read, lacks a column, or holds a bad row.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path} has no column {', '.join(map(repr, missing))}; it needs "
                    f"{', '.join(map(repr, COLUMNS))} and has {reader.fieldnames or 'none'}"
                )
            return from_rows((f"{path}, line {reader.line_num}", _split(row)) for row in reader)
    except FileNotFoundError:
        raise DataError(
            f"there is no file {path}; --data takes 'builtin', 'truthfulqa' or the path of a CSV"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a UTF-8 CSV: {error}") from error


def hub_answers(seconds: float = 3.0) -> bool:
    """Ask the Hub for the data set's page, once, without the retries of a real download."""
    if _offline():
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with urllib.request.urlopen(f"{endpoint}/api/datasets/{HUB_ID}", timeout=seconds) as page:
            return bool(page.status == 200)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def read_hub(token: str | None = None) -> list[Preference]:
    """Read all 817 questions from the Hub: config `generation`, split `validation`.

    Raises:
        DataError: the Hub cannot be reached or refuses.
    """
    if not _offline() and not hub_answers():
        raise DataError(
            f"the Hub does not answer for the data set {HUB_ID}; check the network, set "
            "HF_HUB_OFFLINE=1 to use a copy downloaded before, or use --data builtin or FILE.csv"
        )
    from datasets import load_dataset  # a slow import that local files do not need

    try:
        rows: Iterable[Any] = load_dataset(HUB_ID, "generation", split="validation", token=token)
    except (OSError, ValueError, RuntimeError) as error:  # what hub, http and cache failures are
        raise DataError(
            f"the data set {HUB_ID} could not be read from the Hub: {_first_line(error)}; "
            "use --data builtin or --data FILE.csv"
        ) from error
    names = dict(zip(COLUMNS, (c.lower().replace(" ", "_") for c in COLUMNS), strict=True))
    names["Category"] = "category"
    return from_rows(
        (f"{HUB_ID}, row {i}", {column: row[name] for column, name in names.items()})
        for i, row in enumerate(rows)
    )


def from_rows(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Preference]:
    """Turn (place, row) into preferences; rows with the same question are gathered into one.

    An incorrect answer equal to the best one is no preference and is left out; an answer repeated
    within a list counts once. One that stands in both lists, as two of TruthfulQA's do, is trained
    against and counts on both sides of MC2.

    Raises:
        DataError: a row has an empty cell or answer, or two rows disagree on the best answer.
    """
    questions: dict[str, Preference] = {}
    for place, row in rows:
        question, best = row["Question"], row["Best Answer"]
        lists = [list(row["Correct Answers"] or ()), list(row["Incorrect Answers"] or ())]
        for name, text in (("Question", question), ("Best Answer", best)):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{place}: {name!r} is empty; fill it or remove the row")
        for name, answers in zip(COLUMNS[2:], lists, strict=True):
            if any(not isinstance(a, str) or not a.strip() for a in answers):
                raise DataError(f"{place}: {name!r} holds an empty answer; fill it or remove it")
        question, best = question.strip(), best.strip()
        correct, incorrect = ([a.strip() for a in answers] for answers in lists)
        known = questions.get(question, Preference(question, best, ()))
        if known.chosen != best:
            raise DataError(f"{place}: {question!r} has another best answer in an earlier row")
        merged = Preference(
            prompt=question,
            chosen=best,
            rejected=_distinct([*known.rejected, *incorrect], without=best),
            correct=_distinct([*known.correct, *correct], without=best),
            category=row.get("Category") or known.category,
        )
        if not merged.rejected:
            raise DataError(f"{place}: no incorrect answer differs from the best one; add one")
        questions[question] = merged
    if not questions:
        raise DataError("the data hold no question")
    return list(questions.values())


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off")


def _split(row: Mapping[str, Any]) -> dict[str, Any]:
    """Split the two list cells of a CSV row; a trailing separator makes no empty answer."""
    cells = {c: (row[c] or "").strip() for c in COLUMNS[2:]}
    return {
        **row,
        **{c: text.removesuffix(";").split(";") if text else [] for c, text in cells.items()},
    }


def _distinct(answers: Iterable[str], without: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(a for a in answers if a != without))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
