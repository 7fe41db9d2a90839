"""What the page of a run says: its tables, charts and questions, as plain values; see `run.report`.

Every function takes the runs that stand side by side, most often one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from os.path import commonprefix
from typing import Any, NamedTuple

import torch

import dpo
from dpo.evaluation.curves import EVALUATED, PANELS, smoothed
from dpo.evaluation.dial import GAINS
from dpo.evaluation.measures import mc1, mc2
from dpo.evaluation.pictures import shown_categories
from run.card import PATHS, base_on_hub, counted, public_name, sources_of
from run.config import Config
from run.console import MEASURES

POINTS = 800  # of a line in a chart; of several runs together
TOGETHER = 3  # questions, from which on what all prompts share is said once
SPREAD = 0.1  # of MC2 between runs: a question on which they differ
Dial = Sequence[Mapping[str, Any]]  # of evaluation.json
LEFT_OUT = ("kept", "note", "boundary", "unknown", "held out")  # headings of the data report
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


class Run(NamedTuple):
    """What a run's folder holds; what is not there is empty."""

    name: str
    config: Mapping[str, Any]
    facts: Mapping[str, Any]  # summary.json
    results: Mapping[str, Any]  # evaluation.json
    samples: Sequence[Mapping[str, Any]]
    questions: Mapping[str, Any]  # questions.json
    log: Sequence[Mapping[str, Any]]  # metrics.jsonl

    @property
    def measured(self) -> bool:
        """Tell whether it was measured on held-out questions."""
        return bool(self.results.get("questions"))


def titles(runs: Sequence[Run]) -> list[str]:
    """Return the runs' names, with a number where two have the same."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


def cut(text: object, longest: int) -> str:
    """Return the beginning of a long text, and say how long it is."""
    whole = str(text)
    more = f" … [cut here; {len(whole):,} characters in all]"
    return whole if len(whole) <= longest else whole[:longest] + more


def missing(run: Run) -> list[str]:
    """Say what cannot be shown, and why."""
    if not run.results:
        return ["The run is not finished: what it changed was not measured yet."]
    if not run.measured:
        return ["No question was held out, so nothing was measured (--eval-fraction 0)."]
    size = f"{run.facts.get('scale', 1):.3g}"
    anew = f"when this run was made; python -m run scale RUN OUT --scale {size} makes it anew"
    there = {
        "The dial was not measured yet": "dial" in run.results,
        "Answers to held-out questions were not kept yet": run.questions,
    }
    said = [f"{what} {anew}." for what, found in there.items() if not found]
    if "data_report" not in run.facts:
        said.append("What was left out of the data was not kept yet when this run was made; "
                    "python -m run data says it.")  # fmt: skip
    return said


def lead(run: Run) -> str:
    """Say what was trained on what."""
    config, facts = run.config, run.facts
    base = base_on_hub(config["model"]) or public_name(config["model"])
    revision = f" at revision {config['revision']}" if config.get("revision") else ""
    said = f"{base}{revision}, tuned by direct preference optimization (DPO) through LoRA"
    if "audit" not in facts:
        return f"{said} on {', '.join(map(public_name, config['data']))}."
    trained, apart = sources_of(config, facts)
    count = facts["audit"]["questions"] - run.results.get("questions", 0)
    said += f" on {facts['pairs']:,} pairs of {count:,} questions from {counted(trained)}."
    if apart:
        said += f" The held-out questions are from {counted(apart)}."
    if run.measured:
        said += f" Before: {facts.get('before', 'the frozen base')}."
    if facts.get("scale", 1) != 1:
        said += f" The adapter is {facts['scale']:.3g} times the trained delta."
    if best := facts.get("best"):
        said += (
            f" It is that of step {best['step']}, the best of several by "
            f"{MEASURES[best['metric']]} on the held-out questions, so what follows flatters it."
        )
    return said


def measures(runs: Sequence[Run]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return each measure with a row for each run that was measured.

    `at` has the ends of the gain's interval and the gain, in percent of a cell whose middle is 0.
    A measure that is no share has none.
    """
    measured = [(title, run.results) for title, run in zip(titles(runs), runs, strict=True)
                if run.measured]  # fmt: skip
    bounds = [abs(bound) for _, results in measured for key in MEASURES if key != "margin"
              for bound in results["intervals"]["difference"].get(key, ())]  # fmt: skip
    found, scale = [], 48 / max([*bounds, 1e-9])
    for key, name in MEASURES.items():
        rows = []
        for title, results in measured:
            if key not in results["before"]:  # a run of before
                continue
            before, after = results["before"][key], results["after"][key]
            low, high = results["intervals"]["difference"][key]
            at = [] if key == "margin" else [50 + scale * x for x in (low, after - before, high)]
            rows.append({
                "run": title, "before": before, "after": after, "gain": after - before,
                "low": low, "high": high, "p": results["p_values"][key], "at": at,
            })  # fmt: skip
        found += [(name, rows)] if rows else []
    return found


def costs(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return what each run cost: (what, a text for each run), without rows that say nothing."""
    found = [{**_drift(run), **_effort(run.facts)} for run in runs]
    names = dict.fromkeys(name for one in found for name in one)
    return [(name, [one.get(name, "-") for one in found]) for name in names]


def _drift(run: Run) -> dict[str, str]:
    """Return what the model lost."""
    if not run.measured:
        return {}
    drift = dpo.Drift(**run.results["drift"])

    def rise(before: float, after: float) -> str:
        return f"{before:.2f} → {after:.2f} ({after / before - 1:+.1%})"

    kinds = {
        f"— {kind}": rise(before, drift.perplexities_after[kind])
        for kind, before in drift.perplexities_before.items()
    }
    return {
        "KL to the reference": f"{drift.kl_per_token:.3f} nats a token, {drift.kl:.2f} an answer",
        "log-prob of held-out chosen answers": f"{drift.chosen:+.1f} nats",
        "log-prob of held-out rejected answers": f"{drift.rejected:+.1f} nats",
        "perplexity of neutral text": rise(drift.perplexity_before, drift.perplexity_after),
        **kinds,
    }


def _effort(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what the run took."""
    if "seconds" not in facts:
        return {}
    seconds, tokens = facts["seconds"], facts["tokens"]
    parts = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    fewer = tokens["as_pairs"] / max(tokens["as_tries"], 1)
    planned = facts.get("planned_memory_bytes", 0) / 2**30
    return {
        "optimizer steps": f"{facts['steps']:,}"
        + f", {facts['skipped']} of them skipped" * bool(facts.get("skipped")),
        "seconds": f"{sum(seconds.values()):.0f} ({parts})",
        "pairs a second, reference pass included": f"{facts['pairs_per_second']:.1f}",
        "tokens": f"{tokens['as_tries']:,} fed as tries; {tokens['as_pairs']:,} as pairs, "
        f"{fewer:.1f} times as many",
        "memory at most": f"{facts['peak_memory_bytes'] / 2**30:.2f} GiB"
        + f" (planned: {planned:.2f})" * bool(planned),
        "machine": facts["hardware"],
        "versions": ", ".join(f"{name} {which}" for name, which in facts["versions"].items()),
    }


def remarks(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return (run, what its drift calls for) where there is something to say."""
    drifts = [dpo.Drift(**run.results["drift"]) if run.measured else None for run in runs]
    said = [dpo.remark(drift) if drift else "" for drift in drifts]
    return [(title, text) for title, text in zip(titles(runs), said, strict=True) if text]


def categories(run: Run) -> list[tuple[str, int, float, float]]:
    """Return (name, questions, pair accuracy before, after) of the largest ones, if any."""
    return shown_categories(run.results) if run.results.get("by_category") else []


def settings(runs: Sequence[Run]) -> tuple[list[list[str]], list[list[str]]]:
    """Return rows of a setting's name, its value in each run and its default: two lists of them.

    The first has what deserves a look: what is not the default, or differs between several runs.
    """
    defaults = {field.name: field.default for field in fields(Config)}
    found: tuple[list[list[str]], list[list[str]]] = ([], [])
    for name in dict.fromkeys(name for run in runs for name in run.config):
        values = [_shown(name, run.config.get(name)) for run in runs]
        usual = _shown(name, defaults.get(name))
        told = len(set(values)) > 1 if len(runs) > 1 else values[0] != usual
        found[not told].append([name.replace("_", "-"), *values, usual])
    return found


def _shown(name: str, value: Any) -> str:
    """Return a setting as it would be written, a path by its name alone."""
    if isinstance(value, list | tuple):
        return " ".join(_shown(name, one) for one in value) or "-"
    if value in (None, ""):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    named = name in (*PATHS, "model", "data", "eval_data", "output_dir")
    return public_name(str(value)) if named else str(value)


def data_report(run: Run) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the lines on what was left out and why, and those on how the data were read.

    Sources are called by their names, without the folders that they lie in.
    """
    sources = [*run.config["data"], *run.config["eval_data"]]
    found: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for heading, text in run.facts.get("data_report", []):
        for source in sources:
            text = text.replace(source, public_name(source))
        found[heading not in LEFT_OUT].append((heading.strip(), text))
    return found


def dials(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return each run's dial as a table: its title, headings, and (size, cells)."""
    found = []
    for title, run in zip(titles(runs), runs, strict=True):
        if dial := run.results.get("dial"):
            headings, *cells = dpo.dial_rows(dial, run.facts["scale"])
            rows = list(zip((point["scale"] for point in dial), cells, strict=True))
            found.append({"run": title, "headings": headings, "rows": rows})
    return found


def sizes(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the sizes that the slider moves through, what is said at each, and where it starts."""
    named = [(title, run) for title, run in zip(titles(runs), runs, strict=True)
             if run.results.get("dial")]  # fmt: skip
    said: dict[float, list[str]] = {}
    for title, run in named:
        for point in run.results["dial"]:
            gains = ", ".join(f"{name} {point[key]:.3f}" for key, name in GAINS.items())
            harder = dpo.rise(run.results["dial"][0]["perplexities"], point["perplexities"])
            text = (
                f"{gains}; KL {point['kl_per_token']:.3f} nats a token, chosen answers "
                f"{point['chosen']:+.1f} nats, neutral text at most {harder:+.1%} harder to predict"
            )
            whose = f"{title}: " if len(named) > 1 else ""
            said.setdefault(point["scale"], []).append(whose + text)
    start = named[0][1].facts["scale"] if named else 0
    return {"start": start, "said": sorted(said.items())}


def dial_panels(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the dial as charts: gains against the KL, and the rise of perplexities by size.

    Of one run a chart has a line for each measure, or kind of text. Of several there is a chart for
    each measure, with a line for each run. `sizes` are those of a line's points.
    """
    named = [(title, run.results["dial"]) for title, run in zip(titles(runs), runs, strict=True)
             if run.results.get("dial")]  # fmt: skip
    if not named:
        return []

    def gain(label: str, key: str, dial: Dial) -> dict[str, Any]:
        gains = [100 * (point[key] - dial[0][key]) for point in dial]
        return _line(
            label, [p["kl_per_token"] for p in dial], gains, sizes=[p["scale"] for p in dial]
        )

    def rise(label: str, kinds: Iterable[str], dial: Dial) -> dict[str, Any]:
        scales, first = [point["scale"] for point in dial], dial[0]["perplexities"]
        ratios = [max(p["perplexities"][kind] / first[kind] for kind in kinds) for p in dial]
        return _line(label, scales, [100 * (ratio - 1) for ratio in ratios], sizes=scales)

    across, along = "KL to the reference, nats a token", "size of the adapter"
    gained, harder = (
        "gain on held-out questions, points",
        "rise of the perplexity of neutral text, %",
    )
    if len(named) == 1:
        dial = named[0][1]
        kinds = list(dial[0]["perplexities"])
        return [
            _panel(gained, across, [gain(name, key, dial) for key, name in GAINS.items()]),
            _panel(harder, along, [rise(kind, [kind], dial) for kind in kinds]),
        ]
    panels = [
        _panel(f"{name}, gain in points", across, [gain(title, key, dial) for title, dial in named])
        for key, name in GAINS.items()
    ]
    worst = [rise(title, list(dial[0]["perplexities"]), dial) for title, dial in named]
    return [*panels, _panel(f"{harder}, the worst kind", along, worst)]


def curve_panels(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return metrics.jsonl as charts, the same as in curves.png: a thin line, and its average.

    Several runs have their averages alone. A point may be the mean of some steps.
    """
    found = []
    for title, metrics in PANELS:
        lines: list[dict[str, Any]] = []
        for place, (name, run) in enumerate(zip(titles(runs), runs, strict=True)):
            lines += _curves(run, metrics, None if len(runs) == 1 else (name, place, len(runs)))
        found.append(_panel(title, "optimizer step", [line for line in lines if line["x"]]))
    more: dict[str, dict[str, Any]] = {
        "loss": {"guide": math.log(2)},
        "share won": {"range": [0, 1]},
    }
    return [panel | more.get(panel["title"], {}) for panel in found if panel["lines"]]


def _curves(
    run: Run, metrics: Mapping[str, str], among: tuple[str, int, int] | None
) -> list[dict[str, Any]]:
    """Return the lines of a run in one chart; `among` has its title and place among how many."""
    log = [line for line in run.log if "loss" in line]  # a skipped step has none
    steps, span = [line["step"] for line in log], max(1, len(log) // 15)
    title, place, count = among or ("", 0, 1)
    lines = []
    for which, (metric, label) in enumerate(metrics.items()):
        label = ", ".join(filter(None, (title, label)))
        look: dict[str, Any] = {"colour": which, "dash": which}
        if among:
            look = {"colour": place, "dash": place, "thin": which > 0}
        values = [line[metric] for line in log]
        smooth = values if metric == "learning_rate" else smoothed(values, span)
        if not among and smooth is not values:
            lines.append(_thinned("", steps, values, POINTS) | look | {"faint": True})
        lines.append(_thinned(label, steps, smooth, max(POINTS // count, 50)) | look)
        key = EVALUATED.get(metric, "")
        evaluated = [line for line in log if key in line]
        x, y = ([line[name] for line in evaluated] for name in ("step", key))
        lines.append(_line(f"{label}, held out", x, y, alone=True) | look)
    return lines


def _panel(title: str, across: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a chart; a line without a colour has that of its place."""
    return {
        "title": title,
        "across": across,
        "lines": [{"colour": i, "dash": i} | line for i, line in enumerate(lines)],
    }


def _line(label: str, x: Iterable[float], y: Iterable[float], **more: Any) -> dict[str, Any]:
    """Return a line of a chart, with 5 digits of each number."""
    return {"label": label, "x": [*map(_short, x)], "y": [*map(_short, y)], **more}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _thinned(label: str, x: Sequence[float], y: Sequence[float], points: int) -> dict[str, Any]:
    """Return a line of at most so many points, each the mean of as many neighbours."""
    width = -(-len(x) // points) or 1
    groups = [slice(i, i + width) for i in range(0, len(x), width)]
    means = ([sum(values[g]) / len(values[g]) for g in groups] for values in (x, y))
    return _line(label, *means)


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
        "change": _short(change),
        "mc2": [*map(_short, right)],
        "answers": [
            {
                "text": answer["text"],
                "right": answer["kind"] != "rejected",
                "best": k == 0,
                "shares": [_short(share[k]) for share in shares],
                "logps": [_short(float(logp[k])) for logp in logps],
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


def samples(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str, list[str]]]]]:
    """Return (prompt, [(who, what it said, what is wrong with it at first sight)])."""
    found = []
    said = [{sample["prompt"]: sample for sample in run.samples} for run in runs]
    for prompt, sample in said[0].items():
        if not all(prompt in one for one in said):
            continue
        start = sample.get("before") or sample["base"]  # as runs of before called it
        told = [("before", start["text"], start["alarms"])]
        for title, one in zip(titles(runs), said, strict=True):
            tuned = one[prompt]["tuned"]
            told.append(("after" if len(runs) == 1 else title, tuned["text"], tuned["alarms"]))
        found.append((prompt, told))
    return found
