"""Any source of preferences -> `Preference`s; the held-out questions."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from data import truthfulqa
from data.question import DataError, Preference


def load_preferences(source: str, token: str | None = None) -> list[Preference]:
    """Read `builtin`, `truthfulqa` (from the Hub) or the path of a CSV in TruthfulQA's columns.

    Raises:
        DataError: the source does not exist, cannot be read or holds a bad row.
    """
    if source == "builtin":
        return truthfulqa.read_csv(truthfulqa.BUILTIN)
    if source in ("truthfulqa", truthfulqa.HUB_ID):
        return truthfulqa.read_hub(token)
    return truthfulqa.read_csv(Path(source).expanduser())


def choose_source() -> tuple[str, str]:
    """Return (source, why): TruthfulQA where the Hub answers within seconds, else `builtin`."""
    if truthfulqa.hub_answers():
        return "truthfulqa", "the Hub answers"
    return "builtin", "the Hub does not answer"


Item = TypeVar("Item")


def split_by_question(
    questions: Sequence[Item], fraction: float, seed: int
) -> tuple[list[Item], list[Item]]:
    """Split into (training, held-out) questions; all answers of a question stay on one side.

    Splitting pairs instead would put nearly every held-out question's chosen answer into training.

    Raises:
        DataError: one of the sides would be empty.
    """
    held_out = round(len(questions) * fraction)
    if held_out >= len(questions) or (fraction > 0 and held_out == 0):
        raise DataError(
            f"--eval-fraction {fraction} of {len(questions)} questions leaves "
            f"{len(questions) - held_out} to train on and {held_out} to evaluate; "
            "choose another fraction or bring more questions"
        )
    order = list(range(len(questions)))
    random.Random(f"split/{seed}").shuffle(order)
    return (
        [questions[i] for i in sorted(order[held_out:])],
        [questions[i] for i in sorted(order[:held_out])],
    )
