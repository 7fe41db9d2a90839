"""`python -m run merge`, and every check that a merged model is base + adapter."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import data
import dpo
import lora
from data.trees import Way
from dpo.scoring import Answers
from lora.base.quantise import Quantise
from run import inputs
from run.commands import parser
from run.config import Config
from run.console import watch_answers
from run.errors import UsageError
from run.folder import check_place, write_json

Finish = Callable[[Path], None]  # writes what else belongs into a folder of merged files
PROMPTS = (
    "Question: What is the capital of France?\nAnswer: Paris is the capital of France.",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Question: Do bats see?\nAnswer: Bats have working eyes, and many of them see well.",
)


def command(argv: list[str]) -> None:
    """Merge an adapter into the files of its base, check the result, and say what rounding did."""
    does = "Merge an adapter into its base, a shard at a time, and check the result."
    arguments = parser("merge", does)
    add = arguments.add_argument
    add("adapter", metavar="RUN_OR_ADAPTER", help="a run's folder, or an adapter's")
    add("--output", required=True, metavar="DIR", help="a new folder")
    add(
        "--base", choices=("original", "dequantized"),
        help="for a run with --quantize: the weights before quantisation, or those it trained on, "
        "which is the default",
    )  # fmt: skip
    add(
        "--merge-dtype", choices=("float32", "bfloat16", "float16"),
        help="default the run's own, or of the base",
    )  # fmt: skip
    args = arguments.parse_args(argv)
    inputs.prepare_libraries()
    output = Path(args.output)
    if os.path.lexists(output):
        raise UsageError(f"--output {output} exists; name another or remove it first")
    check_place(output, "--output")
    folder = Path(args.adapter)
    adapter = (folder / "adapter" if (folder / "adapter").is_dir() else folder).absolute()
    base = lora.base_of(adapter)
    dtype: str | None = args.merge_dtype
    quantise: Quantise = "none"
    finish: Finish | None = None
    if adapter.name == "adapter" and (adapter.parent / "config.yaml").is_file():
        config = inputs.finished_run(adapter.parent).config
        quantise = config.quantize if args.base != "original" else "none"
        dtype = dtype or stored_as(config)
        config = replace(config, model=str(base), revision=None)
        tokenizer, text = inputs.load_tokenizer(config)
        finish = partial(as_trained, tokenizer, data.stop_id(tokenizer, text))
    elif args.base:
        raise UsageError(f"--base is for a run, and {folder} is no part of one; leave it out")
    stored = getattr(torch, dtype) if dtype else None
    rounding, difference = merge_from_files(base, adapter, output, stored, quantise, finish)
    kept = str(lora.stored_dtype(output)).removeprefix("torch.")
    print(
        f"Merged into {output} in {kept}: {rounding.changed:.0%} of the patched weights moved; "
        f"rounding changed their deltas by {rounding.error:.0%}; {difference.found:.2g} nats a "
        "token from base + adapter"
    )


def stored_as(config: Config) -> str | None:
    """Return the dtype that a run's own merged model has, if its settings name one."""
    computed = config.dtype if config.quantize == "none" else "auto"
    named = (name for name in (config.merge_dtype, computed) if name != "auto")
    return next(named, None)


class Difference(NamedTuple):
    """How far apart a merged model and base + adapter are: nats a token, mean over answers."""

    found: float
    allowed: float  # what rounding explains, see `lora.allowed_difference`

    def check(self, merged: str, consequence: str) -> None:
        """Refuse a merged model whose difference rounding does not explain, or is no number.

        Raises:
            ModelError: with both figures, and the consequence.
        """
        if not self.found <= self.allowed:
            raise lora.ModelError(
                f"{merged} differs from base + adapter by {self.found:.3g} nats a token, more than "
                f"the {self.allowed:.3g} that rounding explains; {consequence}"
            )


class Policy(NamedTuple):
    """What base + adapter make of some answers, to compare a merged model with."""

    scores: dpo.Scores
    base_scores: dpo.Scores
    answers: Sequence[Answers]
    dtype: torch.dtype  # in which it was computed
    way: Way

    @classmethod
    def scored(
        cls, base: lora.Base, adapter: Path, answers: Sequence[Answers], way: Way
    ) -> "Policy":
        """Add a saved adapter to its base and score the answers, with it and without it."""
        lora.load_adapter(base.model, adapter)
        base.model.eval()
        scores = _scores(base.model, answers, way)
        with lora.adapters_disabled(base.model):
            base_scores = _scores(base.model, answers, way)
        return cls(scores, base_scores, answers, base.model.dtype, way)

    def compared(self, merged: Any, stored: torch.dtype) -> tuple[dpo.Scores, Difference]:
        """Score the same answers by a merged model; return its scores, and how far it is away."""
        found = _scores(merged, self.answers, self.way)
        every = [(prompt, answer) for prompt, answers in self.answers for answer in answers]
        lengths = {dpo.answer_key(*ids): len(ids[1]) for ids in every}
        moved = dpo.mean_difference(self.base_scores, self.scores, lengths)
        difference = dpo.mean_difference(found, self.scores, lengths)
        coarser = self.dtype if merged.dtype == torch.float32 else merged.dtype
        return found, Difference(difference, lora.allowed_difference(stored, coarser, moved))


def _scores(model: Any, answers: Sequence[Answers], way: Way) -> dict[str, float]:
    return dpo.Scorer(model, way, watch=watch_answers).scores("Checking", [answers])


def merge_from_files(
    base: Path,
    adapter: Path,
    output: Path,
    dtype: torch.dtype | None = None,
    quantise: Quantise = "none",
    finish: Finish | None = None,
) -> tuple[lora.Rounding, Difference]:
    """Merge an adapter into the files of its base and check the result; see `lora.merge_files`.

    `finish` writes what else belongs into the new folder.

    Raises:
        ModelError: as `lora.merge_files`, or the merged model is not base + adapter. Nothing is
            written then.
    """
    found: list[Difference] = []

    def check(merged: Path) -> None:
        cpu, stored = torch.device("cpu"), lora.stored_dtype(merged)
        plain, _ = lora.load_tokenizer(str(base))
        texts = [tuple(plain(prompt).input_ids) for prompt in PROMPTS]
        # Every token is an answer of its own, so that no two differences cancel.
        tokens = [(ids[:i], [ids[i : i + 1]]) for ids in texts for i in range(1, len(ids))]
        whole = lora.load_base(str(base), cpu, lora.stored_dtype(base), quantise=quantise)
        policy = Policy.scored(whole, adapter, tokens, "logits")
        if quantise != "none":  # whose layers compute in bfloat16
            policy = policy._replace(dtype=torch.bfloat16)
        del whole
        _, difference = policy.compared(lora.load_base(str(merged), cpu, stored).model, stored)
        difference.check("the merged model", "nothing was written")
        found.append(difference)
        if finish:
            finish(merged)

    return lora.merge_files(base, adapter, output, dtype, quantise, check), found[0]


def write_merged(
    model: Any, base: lora.Base, tokenizer: Any, run: Path, config: Config
) -> lora.Rounding:
    """Merge the model's adapter and write RUN/merged; return what rounding did to the deltas.

    The adapter is taken into the model's weights. Where they are split over processes, the files of
    base and adapter are merged instead. Generation ends where the answers did that it trained on.
    """
    stored = None if config.merge_dtype == "auto" else getattr(torch, config.merge_dtype)
    stop, merged = data.stop_id(tokenizer, config.text_settings(tokenizer)), run / "merged"
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        files = base.folder, run / "adapter", merged
        finish = partial(as_trained, tokenizer, stop)
        return merge_from_files(*files, dtype=stored, finish=finish)[0]
    rounding = lora.merge_rounding(model, stored)
    lora.save_merged(lora.merge_lora(model, stored), tokenizer, merged)
    lora.copy_beside(base.folder, merged, lora.NOTICES)
    end_at(merged, stop)
    return rounding


def as_trained(tokenizer: Any, stop: int | None, merged: Path) -> None:
    """Give merged files the run's tokenizer, whose chat template may be its own, and its stop."""
    tokenizer.save_pretrained(merged)
    end_at(merged, stop)


def end_at(merged: Path, stop: int | None) -> None:
    """Let a model's generation end at the token `stop` as well, and say so if it did not."""
    path = merged / "generation_config.json"
    with lora.reading(f"{path} cannot be read"):
        read = path if path.is_file() else merged / "config.json"
        settings = json.loads(read.read_text(encoding="utf-8"))
        ends = settings.get("eos_token_id")
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if stop is None or stop in ends:
        return
    kept = settings if read == path else {}
    write_json(path, {**kept, "eos_token_id": [*ends, stop]})
    print(f"Merged: its answers end at token {stop} as well, as those that it was trained on.")
