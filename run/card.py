"""The model card of a run: what was trained on what, what that changed, what it cost.

Everything in it is read from the run's folder, and its words stand in `card.md.jinja`. What comes
from data, models or their answers is escaped: it is shown and never obeyed, neither as Markdown nor
as HTML nor as metadata.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined

import dpo
import lora
from data.sources import TRUTHFULQA
from run.config import KEYWORDS, Config
from run.console import MEASURES

TEMPLATE = Path(__file__).with_name("card.md.jinja")
# Said elsewhere in the card, or of no effect on what was trained.
LEFT_OUT = (
    "model", "revision", "data", "eval_data", "device", "save_every", "keep", "skip_nonfinite",
    "merge", "tracker",
)  # fmt: skip
WITH_TRUTHFULQA = (
    "truthfulqa",
    "truthful_qa",
    "ultrafeedback",
)  # whose prompts are TruthfulQA's, too
PATHS = ("adapter", "chat_template")  # whose folders are nobody's business


class Check(NamedTuple):
    """The files that are published, measured as anybody would load them; see `run.publish`."""

    dtype: str
    questions: int  # of those held out
    adapter: dpo.Metrics  # of base + adapter on the held-out questions
    merged: dpo.Metrics | None = None
    difference: Any = None  # of the merged model: a `run.merge.Difference`


def literal(text: object) -> str:
    """Return text as Markdown that shows it, on one line, and means nothing."""
    plain = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~$:@])", r"\\\1", plain)


def fenced(text: str) -> str:
    """Return text in a code block, whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def public_name(source: str) -> str:
    """Return a source's name without the folders it lies in, which are nobody's business."""
    return source if source in KEYWORDS or data_on_hub(source) else Path(source).name


def base_on_hub(name: str) -> str | None:
    """Return the Hub id of a run's base model, or None for a local one."""
    if name == "builtin" or Path(name) == lora.builtin_path():
        return lora.BUILTIN_HUB_ID
    return None if lora.expanded(name).exists() else name


def data_on_hub(source: str) -> str | None:
    """Return the Hub id of a run's data, or None for a file."""
    if source == "truthfulqa":
        return TRUTHFULQA
    name = source.split(":")[0]
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if "/" in name and not Path(source).exists() else None


def settings_of(run: Path) -> dict[str, Any]:
    """Return what config.yaml says, each source in a list."""
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    for name in ("data", "eval_data"):  # runs of before had one source
        named = config.get(name) or []
        config[name] = [named] if isinstance(named, str) else named
    return config


def settings_shown(config: Mapping[str, Any]) -> str:
    """Return the lines of every setting, but for a few and for what is off by default."""
    defaults = {field.name: field.default for field in fields(Config)}
    lines = []
    for name, value in config.items():
        off = value is None or value is False or value == []
        if name == "max_drift" and config.get("scale") != "auto":
            continue
        if name not in LEFT_OUT and not (off and value in (defaults.get(name), [])):
            lines.append(f"{name}: {public_name(value) if name in PATHS else value}")
    return "\n".join(lines)


def model_card(
    run: Path, repo: str = "REPO", adapter_only: bool = False, check: Check | None = None
) -> ModelCard:
    """Return the card of a run as it is published under `repo`."""
    config = settings_of(run)
    results, facts, samples = (
        json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("evaluation", "summary", "samples")
    )
    on_hub = base_on_hub(config["model"])
    drift = dpo.Drift(**results["drift"]) if results["questions"] else None
    trained, apart = sources_of(config, facts)
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"literal": literal, "fenced": fenced}
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=run.resolve().name,
        base=on_hub or public_name(config["model"]),
        on_hub=on_hub,
        loadable=repr(on_hub or "THE_BASE"),
        repo=repr(repo),
        data=counted(trained),
        apart=counted(apart),
        contaminated=any(
            name in source.lower() for source in config["data"] for name in WITH_TRUTHFULQA
        ),
        gemma_terms=lora.GEMMA_TERMS,
        adapter_only=adapter_only,
        config=config,
        facts=facts,
        results=results,
        measures={k: v for k, v in MEASURES.items() if k in results.get("before", {})},
        check=check,
        drift=drift,
        dial=dpo.dial_rows(results["dial"], facts["scale"]) if "dial" in results else [],
        remark=dpo.remark(drift) if drift else "",
        before=facts.get("before", "") if config.get("adapter") else "",
        samples=[_sample(sample, bool(config.get("adapter"))) for sample in samples],
        versions=", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        settings=settings_shown(config),
    )
    metadata = _metadata(run, config, results, adapter_only)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}\n")


def sources_of(
    config: Mapping[str, Any], facts: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the sources that were trained on, and those that were held out whole."""
    one = {"source": config["data"][0], "questions": facts["audit"]["questions"], "held_out": False}
    sources = facts.get("sources", [one])
    trained, apart = ([s for s in sources if s["held_out"] == held] for held in (False, True))
    return trained, apart


def counted(sources: Sequence[Mapping[str, Any]]) -> str:
    """Return the names of sources, each with its questions where there are several."""
    names = [public_name(source["source"]) for source in sources]
    counts = [f" ({source['questions']:,} questions)" for source in sources]
    return ", ".join(map("".join, zip(names, counts, strict=True)) if len(names) > 1 else names)


def _sample(sample: Mapping[str, Any], continued: bool) -> str:
    """Return a prompt with both answers, and what is wrong with them at first sight."""
    lines = [sample["prompt"]]
    before = sample.get("before") or sample["base"]  # as runs of before called it
    for who, said in (("before" if continued else "base", before), ("tuned", sample["tuned"])):
        warned = "".join(f" [{alarm}]" for alarm in said["alarms"])
        lines.append(f"{who}: {said['text']}{warned}")
    return "\n".join(lines)


def _metadata(
    run: Path, config: Mapping[str, Any], results: Mapping[str, Any], adapter_only: bool
) -> ModelCardData:
    base, name = base_on_hub(config["model"]), run.resolve().name
    data_sets = [found for source in config["data"] if (found := data_on_hub(source))]
    tested = config["eval_data"] or config["data"]
    measured = [
        EvalResult(
            task_type="text-generation",
            dataset_type=data_on_hub(tested[0]) or "other",
            dataset_name=f"{', '.join(map(public_name, tested))}, held-out questions",
            metric_type=measure,
            metric_name=MEASURES[measure],
            metric_value=round(results["after"][measure], 4),
        )
        for measure in ("mc1", "mc2", "pair_accuracy")
        if results["questions"]
    ]
    return ModelCardData(
        model_name=name,
        base_model=base,
        base_model_relation="adapter" if adapter_only else "finetune",
        library_name="peft" if adapter_only else "transformers",
        pipeline_tag="text-generation",
        tags=["dpo", "lora", "preference-optimization", "trie-dpo"],
        license="gemma" if base and "gemma" in base else None,
        datasets=data_sets or None,
        eval_results=measured or None,
    )
