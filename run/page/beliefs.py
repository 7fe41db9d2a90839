"""The held-out questions of a page: what each model believes of every answer."""

from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import Any

import torch

import dpo
from dpo.evaluation.measures import mc1, mc2
from run.page.charts import short
from run.page.reading import Run, titles
from run.page.tables import cut

TOGETHER = 3  # questions, from which on what all prompts share is said once
SPREAD = 0.1  # of MC2 between runs: a question on which they differ
STATUSES = {  # of a question: its name, and what it means; of one run, and of several
    "gained": ("Gained", "the best answer now beats every wrong one"),
    "lost": ("Lost", "it did before, and no longer does"),
    "differ": ("They differ", "in whether the best answer beats every wrong one, or in MC2 by .1"),
    "right": ("Right", "the best answer beats every wrong one, before and after"),
    "wrong": ("Wrong", "some wrong answer is as likely as the best one, before and after"),
}
SORTS = {
    "most": "changed most", "up": "gained most", "down": "lost most", "order": "as in the data",
}  # fmt: skip


def questions(runs: Sequence[Run], most: int) -> dict[str, Any]:
    """Return the held-out questions that the runs share, with what each believes of every answer.

    An answer's share is its probability among those of its question: e^l / sum e^l over log-probs
    l, so that those of the right ones sum to MC2. Bars stand for one model each: before and after,
    or of several runs the shared start and each run. Of more than `most` some are chosen, evenly.
    """
    chosen = dpo.evenly(_shared(runs), most)
    bars = _bars(runs, chosen)
    prefix, suffix = shared_ends([versions[0]["prompt"] for versions in chosen])
    found = [_question(versions, bars, len(runs)) for versions in chosen]
    for question in found:
        question["prompt"] = question["prompt"][len(prefix) :].removesuffix(suffix)
    alone = len(runs) == 1
    statuses = ("gained", "lost", "right", "wrong") if alone else ("differ", "right", "wrong")
    named = {name: STATUSES[name] for name in statuses}
    if not alone:
        meaning = "the best answer beats every wrong one, in every run"
        named |= {"right": ("Right", meaning), "wrong": ("Others", "on which they agree")}
    return {
        "of": max((run.questions.get("held_out", 0) for run in runs), default=0),
        "bars": [label for label, _, _ in bars],
        "statuses": [[key, *words] for key, words in named.items()],
        "sorts": list(SORTS.items())
        if alone
        else [("most", "differ most"), ("order", SORTS["order"])],
        "start": "differ" if any(one["status"] == "differ" for one in found) else "all",
        "prefix": prefix.strip(),
        "suffix": suffix.strip(),
        "questions": found,
    }


def _shared(runs: Sequence[Run]) -> list[list[Mapping[str, Any]]]:
    """Return each question that all runs have, as each of them has it."""
    if len(runs) == 1:
        return [[question] for question in runs[0].questions.get("questions", [])]
    asked = [{_identity(q): q for q in run.questions.get("questions", [])} for run in runs]
    return [[one[key] for one in asked] for key in asked[0] if all(key in one for one in asked)]


def _identity(question: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what makes two runs' questions the same: the prompt and all answers."""
    answers = ((answer["kind"], answer["text"]) for answer in question["answers"])
    return (question["prompt"], *(text for answer in answers for text in answer))


def _bars(
    runs: Sequence[Run], chosen: Sequence[Sequence[Mapping[str, Any]]]
) -> list[tuple[str, int, str]]:
    """Return (label, number of the run, before or after) of every bar that an answer has.

    Runs that began as the same model have one bar for it.
    """
    if len(runs) == 1:
        return [("before", 0, "before"), ("after", 0, "after")]
    starts = [
        [answer["before"] for versions in chosen for answer in versions[i]["answers"]]
        for i in range(len(runs))
    ]
    names = titles(runs)
    after = [(name, i, "after") for i, name in enumerate(names)]
    if all(start == starts[0] for start in starts):
        return [("before", 0, "before"), *after]
    before = [(f"before {name}", i, "before") for i, name in enumerate(names)]
    return [bar for both in zip(before, after, strict=True) for bar in both]


def _question(
    versions: Sequence[Mapping[str, Any]], bars: Sequence[tuple[str, int, str]], runs: int
) -> dict[str, Any]:
    """Return a question with its bars; `versions` has it as each run has it."""
    answers = versions[0]["answers"]
    wrong = torch.tensor([answer["kind"] == "rejected" for answer in answers])
    logps = [
        torch.tensor([answer[when] for answer in versions[i]["answers"]]) for _, i, when in bars
    ]  # (A,) float32 each, as they were scored
    shares = [logp.double().softmax(0).tolist() for logp in logps]
    best = [mc1(logp[0], logp[wrong]) for logp in logps]
    right = [mc2(logp[~wrong], logp[wrong]) for logp in logps]
    if runs == 1:
        status = {1: "gained", -1: "lost"}.get((best[1] > best[0]) - (best[1] < best[0]))
        change = right[1] - right[0]
    else:
        ends = [k for k, (_, _, when) in enumerate(bars) if when == "after"]
        best, right = [best[k] for k in ends], right
        after = [right[k] for k in ends]
        change = max(after) - min(after)
        status = "differ" if len(set(best)) > 1 or change > SPREAD else None
    return {
        "prompt": versions[0]["prompt"],
        "category": versions[0]["category"],
        "status": status or ("right" if best[0] == 1 else "wrong"),
        "change": short(change),
        "mc2": [*map(short, right)],
        "answers": [
            {
                "text": answer["text"],
                "right": answer["kind"] != "rejected",
                "best": k == 0,
                "shares": [short(share[k]) for share in shares],
                "logps": [short(float(logp[k])) for logp in logps],
            }
            for k, answer in enumerate(answers)
        ],
    }


def shared_ends(prompts: Sequence[str]) -> tuple[str, str]:
    """Return what all prompts begin with, up to a line's end or a colon, and all end with.

    A template puts the same around every question. Of fewer than three nothing is taken off.
    """
    if len(prompts) < TOGETHER:
        return "", ""
    begun = commonprefix(prompts)  # noqa: RUF071  they are no paths
    prefix = begun[: max(begun.rfind("\n") + 1, begun.rfind(": ") + 2 if ": " in begun else 0)]
    rest = [prompt[len(prefix) :][::-1] for prompt in prompts]
    ended = commonprefix(rest)[::-1]  # noqa: RUF071
    suffix = ended[ended.find("\n") :] if "\n" in ended else ""
    return prefix, suffix


def shortened(asked: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """Return the questions with no text longer than that, but for a word on its length."""
    return {
        **asked,
        "questions": [
            {
                **question,
                "prompt": cut(question["prompt"], longest),
                "category": cut(question["category"], longest),
                "answers": [{**a, "text": cut(a["text"], longest)} for a in question["answers"]],
            }
            for question in asked["questions"]
        ],
    }
