"""The model card of a run: what was trained on what, what that changed, what it cost.

Everything in it is read from the run's folder. What comes from data, models or their answers is
escaped: it is shown and never obeyed, neither as Markdown nor as HTML nor as metadata.
"""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

import dpo
import lora
from config import KEYWORDS
from console import MEASURES
from data.sources import TRUTHFULQA

SETTINGS = (
    "rank", "alpha", "dropout", "target_modules", "rslora", "beta", "loss", "label_smoothing",
    "divergence", "sft_weight", "weight_by", "reference_free", "reference_sync", "template",
    "max_length", "shuffle", "lr", "epochs", "max_steps", "batch_size", "grad_accum", "schedule",
    "warmup_ratio", "weight_decay", "max_grad_norm", "quantize", "dtype", "seed", "eval_fraction",
)  # fmt: skip


class Check(NamedTuple):
    """The files that are published, measured as anybody would load them; see `publishing`."""

    dtype: str
    questions: int  # of those held out
    adapter: dpo.Metrics  # of base + adapter on the held-out questions
    merged: dpo.Metrics | None
    difference: float | None  # mean |log pi_merged - log pi_adapter| / tokens, nats
    allowed: float | None


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
    return None if Path(name).expanduser().exists() else name


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


def write_card(run: Path) -> None:
    """Write README.md of a finished run."""
    text = str(model_card(run, adapter_only=not (run / "merged").is_dir()))
    (run / "README.md").write_text(text, encoding="utf-8")


def model_card(
    run: Path, repo: str = "REPO", adapter_only: bool = False, check: Check | None = None
) -> ModelCard:
    """Return the card of a run as it is published under `repo`."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    results, facts, samples = (
        json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("evaluation", "summary", "samples")
    )
    parts = (
        _head(run, config, facts, results["questions"]),
        _load(repo, config, adapter_only),
        _changes(results, facts, check),
        _cost(results),
        _samples(samples),
        _making(config, facts, results["questions"]),
        _cautions(config, results, facts, check),
    )
    metadata = _metadata(run, config, results, adapter_only)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _metadata(
    run: Path, config: Mapping[str, Any], results: Mapping[str, Any], adapter_only: bool
) -> ModelCardData:
    base, name = base_on_hub(config["model"]), run.resolve().name
    data_set = data_on_hub(config["data"])
    measured = [
        EvalResult(
            task_type="text-generation",
            dataset_type=data_set or "other",
            dataset_name=f"{public_name(config['data'])}, held-out questions",
            metric_type=measure,
            metric_name=MEASURES[measure],
            metric_value=round(results["after"][measure], 4),
        )
        for measure in ("mc1", "mc2", "pair_accuracy")
    ]
    return ModelCardData(
        model_name=name,
        base_model=base,
        base_model_relation="adapter" if adapter_only else "finetune",
        library_name="peft" if adapter_only else "transformers",
        pipeline_tag="text-generation",
        tags=["dpo", "lora", "preference-optimization", "trie-dpo"],
        license="gemma" if base and "gemma" in base else None,
        datasets=[data_set] if data_set else None,
        eval_results=measured,
    )


def _head(run: Path, config: Mapping[str, Any], facts: Mapping[str, Any], held_out: int) -> str:
    base = base_on_hub(config["model"]) or public_name(config["model"])
    at = f" at revision {literal(config['revision'])}" if config["revision"] else ""
    pairs = f"{facts['pairs']:,} pairs of {facts['audit']['questions'] - held_out:,} questions"
    said = (
        f"# {literal(run.resolve().name)}\n\n"
        f"{literal(base)}{at}, tuned by direct preference optimization (DPO) through LoRA on "
        f"{pairs} from {literal(public_name(config['data']))}."
    )
    return said + f" {lora.GEMMA_TERMS}." * ("gemma" in base)


def _load(repo: str, config: Mapping[str, Any], adapter_only: bool) -> str:
    base = base_on_hub(config["model"])
    adapter = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"base = AutoModelForCausalLM.from_pretrained({base or 'THE_BASE'!r})",
        f"model = PeftModel.from_pretrained(base, {repo!r}"
        + ("" if adapter_only else ", subfolder='adapter'")
        + ")",
        f"tokenizer = AutoTokenizer.from_pretrained({repo!r})",
    ]
    merged = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"model = AutoModelForCausalLM.from_pretrained({repo!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({repo!r})",
    ]
    blocks = [adapter] if adapter_only else [merged, adapter]
    code = "\n\nor the adapter alone:\n\n".join(
        f"```python\n{chr(10).join(b)}\n```" for b in blocks
    )
    local = "" if base else "\n\nThe base model is a local one; the adapter fits no other."
    return f"## Load it\n\n{code}{local}"


def _changes(results: Mapping[str, Any], facts: Mapping[str, Any], check: Check | None) -> str:
    rows = ["| held out | before | after | gain | 95% interval | p |", "|---|---|---|---|---|---|"]
    for measure, name in MEASURES.items():
        old, new = results["before"][measure], results["after"][measure]
        low, high = results["intervals"]["difference"][measure]
        rows.append(
            f"| {name} | {old:.3f} | {new:.3f} | {new - old:+.3f} | {low:+.3f} to {high:+.3f} | "
            f"{results['p_values'][measure]:.4f} |"
        )
    said = (
        f"## What it changed\n\nOn {results['questions']} held-out questions that it was not "
        "trained on. Intervals: bootstrap over questions; p: paired permutation test.\n\n"
        + "\n".join(rows)
        + "\n\n![Margins of the held-out pairs, and pair accuracy by category](evaluation.png)"
    )
    if facts.get("best"):
        best = facts["best"]
        said += (
            f"\n\nThe adapter is that of step {best['step']}, the best of several by "
            f"{MEASURES[best['metric']]} on these same questions, so the table flatters it."
        )
    if check:
        said += (
            f"\n\nThe files here, loaded in {check.dtype}, on {check.questions} of them: "
            f"MC1 {check.adapter.mc1:.4f}, MC2 {check.adapter.mc2:.4f} for base + adapter"
        )
        if check.merged:
            said += (
                f"; MC1 {check.merged.mc1:.4f}, MC2 {check.merged.mc2:.4f} for the merged model, "
                f"whose log-probs differ from base + adapter by {check.difference:.2g} nats a "
                f"token ({check.allowed:.2g} is what rounding explains)"
            )
        said += "."
    return said


def _cost(results: Mapping[str, Any]) -> str:
    drift = dpo.Drift(**results["drift"])
    said = (
        "## What it cost\n\n"
        f"- KL to the reference: {drift.kl:.2f} nats an answer, {drift.kl_per_token:.3f} a token\n"
        f"- log-prob of held-out answers: chosen {drift.chosen:+.1f}, rejected "
        f"{drift.rejected:+.1f} nats\n"
        f"- perplexity of a neutral text: {drift.perplexity_before:.2f} before, "
        f"{drift.perplexity_after:.2f} after"
    )
    remark = dpo.remark(drift)
    return f"{said}\n\n{remark}" if remark else said


def _samples(samples: list[dict[str, Any]]) -> str:
    said = ["## Samples\n\nHeld-out prompts, the likeliest token at every step."]
    for sample in samples:
        lines = [sample["prompt"]]
        for who in ("base", "tuned"):
            warned = "".join(f" [{alarm}]" for alarm in sample[who]["alarms"])
            lines.append(f"{who}: {sample[who]['text']}{warned}")
        said.append(fenced("\n".join(lines)))
    return "\n\n".join(said)


def _making(config: Mapping[str, Any], facts: Mapping[str, Any], held_out: int) -> str:
    settings = "\n".join(
        f"{name}: {config[name]}" for name in SETTINGS if config.get(name) not in (None, False)
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    seconds = facts["seconds"]
    return (
        f"## How it was made\n\n"
        f"{facts['steps']:,} optimizer steps over {facts['pairs']:,} pairs on "
        f"{literal(facts['hardware'])}: {seconds['reference'] + seconds['train']:.0f} s with the "
        f"reference pass, {facts['pairs_per_second']:.1f} pairs a second, at most "
        f"{facts['peak_memory_bytes'] / 2**30:.1f} GiB. {held_out:,} of "
        f"{facts['audit']['questions']:,} questions were held out, drawn by the seed. "
        f"{literal(versions)}.\n\n{fenced(settings)}\n\n"
        "![Loss, margins, accuracy, log-probs, gradient norm, learning rate](curves.png)"
    )


def _cautions(
    config: Mapping[str, Any],
    results: Mapping[str, Any],
    facts: Mapping[str, Any],
    check: Check | None,
) -> str:
    audit = facts["audit"]
    said = [
        f"Shortcuts in the data: {audit['chosen_longer']:.0%} of the chosen answers are the longer "
        f"one (length alone would get {audit['length_alone']:.2f} of the pairs), and negation is "
        f"in {audit['negation_chosen']:.0%} of the chosen and {audit['negation_rejected']:.0%} of "
        "the rejected answers. A gain may in part be style.",
        f"The figures are of {results['questions']} questions from the same source as the training "
        "data. Other tasks, other languages, safety and bias were not measured.",
    ]
    if "truthfulqa" in config["data"].lower():
        said.insert(
            0,
            "**This model is contaminated for TruthfulQA**: it was trained on a part of it. Its "
            "results on that benchmark say nothing, and must not be compared with others'.",
        )
    if not check:
        said.append("The files were not loaded again and compared after they were written.")
    return "## Cautions\n\n" + "\n".join(f"- {line}" for line in said)
