"""The tables and sentences of a page: what changed, what it cost, what was set and read."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import dpo
from dpo.evaluation.pictures import shown_categories
from run.card import PATHS, base_on_hub, counted, public_name, sources_of
from run.config import Config
from run.console import MEASURES
from run.page.reading import Run, titles

LEFT_OUT = ("kept", "note", "boundary", "unknown", "held out")  # headings of the data report


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
    size = f"{run.facts.get('scale', 1):.5g}"
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
    said += f" on {facts['pairs']:,} pairs from {count:,} questions of {counted(trained)}."
    if apart:
        said += f" The held-out questions are from {counted(apart)}."
    if run.measured:
        said += f" Before: {facts.get('before', 'the frozen base')}."
    if facts.get("scale", 1) != 1:
        said += f" The adapter is {facts['scale']:.5g} times the trained delta."
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
