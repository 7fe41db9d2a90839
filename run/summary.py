"""What a run leaves for people and programs to look at, written into its folder."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import dpo
import lora
from run.card import model_card
from run.folder import draw_curves, write_json
from run.measuring import hardware, peak_memory
from run.reference import starting_reference
from run.report import write_report
from run.training import Training


def write_outcome(folder: Path, found: dpo.Outcome | None, size: float) -> None:
    """Write evaluation, samples, questions as JSON, and three pictures; the adapter has this size.

    Where nothing was held out, nothing is known: evaluation.json has no questions.
    """
    draw_curves(folder)
    write_json(folder / "evaluation.json", found.results if found else {"questions": 0})
    write_json(folder / "samples.json", found.samples if found else [])
    if not found:
        return
    write_json(folder / "questions.json", found.questions)
    pictures = {
        "evaluation.png": dpo.evaluation_figure(found.results, *found.margins),
        "dial.png": dpo.dial_figure(found.results["dial"], size),
    }
    for name, figure in pictures.items():
        with lora.whole(folder / name) as new:
            figure.savefig(new, format="png", dpi=120)


def write_summary(training: Training, base: lora.Base, size: float) -> dict[str, Any]:
    """Write summary.json, in which speed counts the reference pass, and the card; return it.

    The adapter that is left has this size.
    """
    config, folder, _, _, clock = training.job
    seconds = clock.seconds
    steps, counts, device = training.steps, training.counts, base.model.device
    facts = {
        "pairs": steps.pairs,
        "steps": steps.total,
        "seconds": seconds,
        "pairs_per_second": steps.pairs / (seconds["reference"] + seconds["train"]),
        "peak_memory_bytes": peak_memory(device),
        "model": base.name,
        "before": starting_reference(config),
        "data": ", ".join(config.data),
        "sources": training.questions.report.sources,
        "merged": config.merge,
        "hardware": hardware(device),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "tokens": {"as_pairs": counts.as_pairs, "as_tries": counts.as_tries},
        "skipped": counts.skipped,
        "scale": size,
        "best": training.best.facts,
        "audit": training.questions.report.figures,
        "data_report": training.questions.report.lines,
        "planned_memory_bytes": training.plan.peak,
    }
    write_facts(folder, facts)
    return facts


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write summary.json, and the card and the report, which read it."""
    write_json(folder / "summary.json", facts)
    card = model_card(folder, adapter_only=not facts["merged"])
    lora.write_text(folder / "README.md", str(card))
    write_report(folder)
