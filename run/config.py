"""Every setting of a run: one dataclass that is the command line and the YAML file."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from data import TextSettings, split_share
from data.batches import BatchBy, Shuffle, WeightBy
from data.chat import CLOCK
from data.text import OnBadRows, PairsOf, Rewritten, Template, Truncate
from dpo import (
    Constants,
    Divergence,
    Loss,
    Measure,
    Schedule,
    check_loss,
    loss_terms,
    needs_reference,
)
from lora.base.checkpointing import Checkpointing
from lora.base.compiling import Compile
from lora.base.quantise import Quantise
from lora.base.sharding import Shard
from lora.errors import ModelError, reading
from lora.files import expanded, write_text
from lora.targets import compiled
from run.errors import Parser, UsageError, closest

Tracker = Literal["none", "tensorboard", "wandb", "trackio"]
KEYWORDS = ("auto", "builtin", "truthfulqa")  # what --model and --data take besides paths and ids
MAY_CHANGE = (
    "device", "save_every", "keep", "skip_nonfinite", "merge", "merge_dtype", "tracker",
    "checkpointing", "shard", "scale", "max_drift", "threads",
)  # fmt: skip
RANGES: dict[str, Callable[[Any], object]] = {  # what a value must be, and whether it is
    "1 or more": lambda x: x >= 1,
    "2 or more": lambda x: x >= 2,
    "0 or more": lambda x: x >= 0,
    "above 0": lambda x: x > 0,
    "between 0 and 1": lambda x: 0 < x < 1,
    "0 to 1": lambda x: 0 <= x <= 1,
    "0 or more and below 1": lambda x: 0 <= x < 1,
    "0 or more and below 0.5": lambda x: 0 <= x < 0.5,
    "0 or more and below 2^63": lambda x: 0 <= x < 2**63,
    "at least one name": len,
}
LARGEST = 2**31  # of a count, so that the product of two is a machine's number
HUGE = 1e30  # of any other number, so that the product of a few is finite
MOST_THREADS = 1024
WRITTEN = 48  # tokens that a model writes after a prompt, or --anchor-tokens if they are more
Number = TypeVar("Number", int, float)


def flag(default: Any, text: str, range: str = "", group: str = "") -> Any:
    """Declare a setting: its default, help, range, and the heading that starts with it."""
    return field(default=default, metadata={"help": text, "group": group, "range": range})


@dataclass(frozen=True)
class Config:
    """The settings, in the order of `--help`. A field `grad_accum` is the flag `--grad-accum`.

    They do not change. What `auto` became stands in a copy, which is what `config.yaml` holds.
    """

    model: str = flag("auto", "Hub id, folder, builtin, or auto", group="model")
    revision: str | None = flag(None, "branch, tag or commit of a Hub model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = flag("auto", "of the base")
    quantize: Quantise = flag("none", "store the base's linear layers in fewer bits")
    attention: Literal["auto", "eager", "sdpa", "flex"] = flag(
        "auto", "implementation of attention; flex: CUDA, for long rows"
    )
    device: str = flag("auto", "cpu, cuda, cuda:1, mps, or auto")

    rank: int = flag(8, "r of LoRA", "1 or more", group="LoRA")
    alpha: float = flag(16.0, "the delta is scaled by alpha / r", "above 0")
    dropout: float = flag(0.05, "on the LoRA path", "0 or more and below 1")
    target_modules: tuple[str, ...] = flag(
        ("auto",),
        "names of the layers to patch; auto: q_proj and v_proj, or the model's own attention's",
        "at least one name",
    )
    rslora: bool = flag(False, "scale the delta by alpha / sqrt(r) instead")
    rank_pattern: tuple[str, ...] = flag((), "NAME=RANK for layers that differ")
    alpha_pattern: tuple[str, ...] = flag((), "NAME=ALPHA for layers that differ")
    lora_plus_ratio: float = flag(1.0, "the learning rate of B over that of A (LoRA+)", "above 0")
    adapter: str | None = flag(None, "continue from this adapter, with its own settings")
    reference: Literal["auto", "base", "adapter"] = flag(
        "auto", "the bare base, or --adapter as it starts; auto: the adapter, if there is one"
    )

    beta: float = flag(
        0.05, "a larger one keeps the policy closer to the reference", "above 0", group="DPO"
    )
    loss: str = flag(
        "sigmoid", f"the formula: {', '.join(get_args(Loss))}; or several with weights, as in "
        "sigmoid=0.8,sft=0.2; docs/math.md has them all"
    )  # fmt: skip
    dpop_lambda: float = flag(5.0, "of dpop: what a fall of the chosen answer costs", "0 or more")
    simpo_gamma: float = flag(
        0.5, "of simpo: gamma / beta nats a token are its target margin", "0 or more"
    )
    label_smoothing: float = flag(
        0.0,
        "share of pairs assumed to be labelled the wrong way round (sigmoid, robust, exo)",
        "0 or more and below 0.5",
    )
    divergence: Divergence = flag("reverse-kl", "what keeps the policy near the reference")
    divergence_alpha: float = flag(
        0.5, "of the alpha divergence: near 0 reverse KL, 1 forward", "between 0 and 1"
    )
    sft_weight: float = flag(
        0.0, "adds this much of the chosen answer's negative log-prob a token", "0 or more"
    )
    anchor_weight: float = flag(
        1.0,
        "how strongly the policy is held to what the reference writes; 0 is DPO alone",
        "0 or more",
    )
    anchor_chosen: float = flag(
        0.5,
        "times --anchor-weight: what it costs if a chosen answer becomes less likely",
        "0 or more",
    )
    anchor_samples: int = flag(1, "answers that the reference writes to a prompt", "1 or more")
    anchor_tokens: int = flag(16, "of such an answer at most", "1 or more")
    weight_by: WeightBy = flag("pair", "what weighs 1: every pair, or every question with its K")
    reference_free: bool = flag(False, "score by log pi(y|x) alone, without the reference")
    reference_sync: int | None = flag(
        None, "steps after which the policy becomes the reference", "1 or more"
    )

    data: tuple[str, ...] = flag(
        ("auto",), "files, folders, Hub ids[:config[:split]], builtin, or truthfulqa; of each a "
        "share (FILE:0.5) or a number of questions (FILE:500)", "at least one name", group="data"
    )  # fmt: skip
    columns: str | None = flag(
        None, "ROLE=COLUMN,... where names do not tell; prompt=A+B joins, COLUMN=- is not read"
    )
    eval_data: tuple[str, ...] = flag((), "hold these out, and train on all of --data")
    eval_fraction: float = flag(
        0.2, "share of the questions held out; 0 trains on all and measures nothing",
        "0 or more and below 1",
    )  # fmt: skip
    bad_rows: OnBadRows = flag("skip", "leave out rows that cannot be read, up to 5%%, or stop")
    pairs: Literal["auto", PairsOf] = flag(
        "auto", "compare the best answer, or every answer, with each of lower grade; auto: all for "
        "--loss ranking, else best"
    )  # fmt: skip
    template: Literal["auto", Template] = flag(
        "auto", "how a question becomes text; none: as it stands, raw: control tokens in it obeyed"
    )
    chat_template: str | None = flag(None, "a file with the chat template to use")
    template_kwargs: tuple[str, ...] = flag((), "NAME=VALUE given to the chat template")
    rewritten: Rewritten = flag("drop", "answers that the chat template changes: drop or keep them")
    prompt_format: str | None = flag(None, "of the prompt in the plain template; {} is the text")
    answer_format: str | None = flag(None, "of the answer in it; {} is the text")
    max_length: int | None = flag(
        None, "tokens of prompt and answer; default nearly all that the model reads", "2 or more"
    )
    truncate: Truncate = flag(
        "drop", "what to do with longer questions: drop them, cut their prompt's beginning, or stop"
    )
    shuffle: Shuffle = flag("questions", "what is shuffled: whole questions or single pairs")

    lr: float = flag(1.5e-3, "peak learning rate", "above 0", group="training")
    epochs: int = flag(1, "passes over the pairs", "1 or more")
    max_steps: int | None = flag(None, "stop after this many optimizer steps", "1 or more")
    batch_size: int = flag(
        2, "pairs; times --grad-accum it is the pairs of an optimizer step", "1 or more"
    )
    batch_by: BatchBy = flag("pairs", "what --batch-size counts: pairs, or questions uncut")
    grad_accum: int = flag(
        4, "see --batch-size; memory is bounded by tokens, not by this", "1 or more"
    )
    schedule: Schedule = flag("linear", "of the learning rate")
    warmup_ratio: float = flag(0.1, "share of the steps that warm up", "0 to 1")
    weight_decay: float = flag(0.0, "of AdamW", "0 or more")
    max_grad_norm: float = flag(1.0, "clip the gradient's norm to this", "above 0")
    checkpointing: Checkpointing = flag(
        "auto", "compute layers again backward; auto: where memory lacks"
    )
    compile: Compile = flag("auto", "torch.compile the layers; auto: where many steps make it pay")
    graphs: Literal["auto", "on", "off"] = flag(
        "off", "on CUDA, a step's kernels as one graph for each shape of batch; auto: if it can be"
    )
    shard: Shard = flag("auto", "split the base over torchrun's processes; auto: if too large")
    threads: str = flag("auto", "of the CPU: a number, or auto: what is fastest at the start")
    seed: int = flag(
        0, "of the shares, the split, the order, A and the dropout", "0 or more and below 2^63"
    )

    output_dir: str | None = flag(None, "a new folder; default runs/DATE-TIME", group="run")
    save_every: int = flag(50, "optimizer steps between checkpoints", "1 or more")
    keep: int = flag(2, "checkpoints that are kept", "1 or more")
    resume: str | None = flag(None, "go on: a run's folder, a checkpoint, or that of --output-dir")
    skip_nonfinite: bool = flag(False, "skip steps whose loss or gradient is not finite, counted")
    merge: bool = flag(True, "skip the merged model")
    merge_dtype: Literal["auto", "float32", "bfloat16", "float16"] = flag("auto", "of merged/")
    eval_every: int | None = flag(
        None, "steps between evaluations; the best adapter is kept", "1 or more"
    )
    best: Measure = flag("pair_accuracy", "of --eval-every: what the best adapter is best by")
    scale: str | None = flag(
        None, "size of the adapter that is left: X times the trained delta, above 0 and up to 2, "
        "or auto: the largest up to 1 that --max-drift allows; default auto with anchors and "
        "without --adapter, else 1"
    )  # fmt: skip
    max_drift: float = flag(
        0.05, "of --scale auto: how much harder to predict any neutral text may become, as a share",
        "above 0",
    )  # fmt: skip
    tracker: Tracker = flag("none", "log the metrics there too; each needs its extra")
    push_to_hub: str | None = flag(None, "OWNER/NAME to publish the run under, once checked")
    private: bool = flag(False, "with --push-to-hub, if the repository is made")
    plan: bool = flag(False, "say what the run would take, and run nothing")
    debug: bool = flag(False, "show tracebacks")

    def __post_init__(self) -> None:
        """Take one source for a list of one."""
        for name in ("data", "eval_data"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))

    def validate(self) -> None:
        """Check every value by itself, and those that do not go together.

        Raises:
            UsageError: a value is out of range, or two settings contradict each other.
        """
        for item in dataclasses.fields(self):
            value, what = getattr(self, item.name), item.metadata["range"]
            if what and value is not None and not RANGES[what](value):
                raise UsageError(f"{_flag(item.name)} {value} must be {what}")
            if isinstance(value, float) and not abs(value) <= HUGE:
                raise UsageError(f"{_flag(item.name)} {value} must be finite, {HUGE:g} at most")
            if type(value) is int and value >= LARGEST and item.name != "seed":
                raise UsageError(f"{_flag(item.name)} {value} must be below {LARGEST}")
            if "\0" in str(value):
                raise UsageError(f"{_flag(item.name)} {value!r} holds a NUL byte, as no name does")
        try:
            check_loss(**{k: v for k, v in self.loss_settings().items() if k != "sft_weight"})
        except ValueError as error:
            raise UsageError(f"--loss {self.loss}: {error}") from None
        for what, wrong in self._contradictions().items():
            if wrong:
                raise UsageError(what)
        _ = self.size, self.given_threads
        self.patterns("rank_pattern", int)
        self.patterns("alpha_pattern", float)
        self.given_to_template()
        for name in ("prompt_format", "answer_format"):
            text = getattr(self, name)
            if text is not None and text.count("{}") != 1:
                raise UsageError(f"{_flag(name)} {text!r} must hold {{}} once, where the text goes")

    def _contradictions(self) -> dict[str, object]:
        """Return what to say of settings that contradict each other, and whether they do."""
        terms, free = loss_terms(self.loss), not needs_reference(self.loss)
        return {
            f"--loss {self.loss} needs a question's answers in one step: --shuffle questions":
                terms.keys() & {"group", "ranking"} and self.shuffle == "pairs",
            "--loss group compares the best answer alone; with --pairs all it is --loss ranking":
                "group" in terms and self.pairs == "all",
            "--loss ranking compares all answers; with --pairs best it is --loss group":
                "ranking" in terms and self.pairs == "best",
            f"--loss {self.loss}: group compares the best answer alone, ranking all; choose one":
                terms.keys() >= {"group", "ranking"},
            "--batch-by questions takes whole questions: --shuffle questions":
                self.batch_by == "questions" and self.shuffle == "pairs",
            "--eval-every needs questions to measure: an --eval-fraction above 0, or --eval-data":
                self.eval_every and not self.eval_fraction and not self.eval_data,
            "--chat-template and --template-kwargs are for --template chat":
                (self.template not in ("auto", "chat") or self.prompt_format or self.answer_format)
                and (self.chat_template or self.template_kwargs),
            "--reference-sync moves a reference that --reference-free does without":
                self.reference_sync and self.reference_free,
            "--reference adapter needs --adapter DIR, the adapter to start from":
                self.reference == "adapter" and not self.adapter,
            f"--reference {self.reference} names a reference that --reference-free does without; "
            "leave one out": self.reference != "auto" and self.reference_free,
            f"--reference-sync moves a reference that --loss {self.loss} does without":
                self.reference_sync and free,
            f"--reference {self.reference} names a reference that --loss {self.loss} does without":
                self.reference != "auto" and free,
            "--shard on is for bases that are not quantised; leave one out":
                self.shard == "on" and self.quantize != "none",
            "--shard on and --compile on do not go together; choose one":
                self.shard == "on" and self.compile == "on",
            "--compile on and --checkpointing on do not go together; choose one":
                self.compile == "on" and self.checkpointing == "on",
            "--private is for --push-to-hub OWNER/NAME": self.private and not self.push_to_hub,
        }  # fmt: skip

    @property
    def sources(self) -> tuple[str | None, ...]:
        """Return the names of all files and folders that a run reads, and of those on the Hub."""
        return (*self.data, *self.eval_data, self.model, self.adapter)

    @property
    def given_threads(self) -> int | None:
        """Return how many threads compute on a CPU; None is for auto to find.

        Raises:
            UsageError: it is neither.
        """
        if self.threads == "auto":
            return None
        if not self.threads.isdecimal() or not 1 <= int(self.threads[:9]) <= MOST_THREADS:
            raise UsageError(f"--threads {self.threads} must be 1 to {MOST_THREADS}, or auto")
        return int(self.threads)

    @property
    def starts_at_reference(self) -> bool:
        """Tell whether the reference is the adapter that training starts from."""
        return self.adapter is not None and self.reference != "base"

    def loss_settings(self) -> dict[str, Any]:
        """Return the keywords of `dpo_loss`."""
        names = (
            "beta", "loss", "label_smoothing", "divergence", "divergence_alpha", "sft_weight",
        )  # fmt: skip
        constants = Constants(self.dpop_lambda, self.simpo_gamma)
        return {name: getattr(self, name) for name in names} | {"constants": constants}

    def text_settings(self, tokenizer: Any, limit: int | None = None) -> TextSettings:
        """Return what decides the token ids; `limit` is the longest text that the model reads.

        Raises:
            UsageError: a format is given, and the chat template asked for.
        """
        formats = [n for n in ("prompt_format", "answer_format") if getattr(self, n)]
        template = self.template
        if template == "auto":
            template = "chat" if tokenizer.chat_template and not formats else "plain"
        if template != "plain" and formats:
            raise UsageError(f"{_flag(formats[0])} is for --template plain")
        if template == "plain" and self.template_kwargs:
            raise UsageError("--template-kwargs: the tokenizer has no chat template to give it to")
        prompt_format, answer_format = (
            text and text.replace("\\n", "\n") for text in (self.prompt_format, self.answer_format)
        )
        longest, given = self.max_length, self.given_to_template()
        if longest is None and limit:  # beyond which some models know no position
            longest = max(limit - max(WRITTEN, self.anchor_tokens), limit // 2)
        if template == "chat" and CLOCK in str(tokenizer.chat_template):
            given = {CLOCK: f"{date.today()}"} | given  # from here on it is this run's day
        return TextSettings(
            template, longest, self.truncate, prompt_format, answer_format,
            json.dumps(given), self.rewritten, self.bad_rows == "skip",
            "all" if self.every_pair else "best",
        )  # fmt: skip

    @property
    def usual_scale(self) -> str:
        """Return what --scale is by default: DPO alone, and a continued adapter, stay whole."""
        return "auto" if self.anchor_weight and not self.adapter else "1"

    @property
    def size(self) -> float | None:
        """Return what --scale multiplies the trained adapter by; None is for auto to find.

        Beyond twice the trained delta nothing is known of the model, and little is left of it.

        Raises:
            UsageError: it is neither.
        """
        scale = self.scale or self.usual_scale
        if scale == "auto":
            return None
        try:
            size = float(scale)
        except ValueError:
            size = math.nan
        if not 0 < size <= 2:
            raise UsageError(f"--scale {self.scale} must be above 0 and up to 2, or auto")
        return size

    @property
    def every_pair(self) -> bool:
        """Tell whether each answer is compared with each of lower grade."""
        return self.pairs == "all" or "ranking" in loss_terms(self.loss)

    @property
    def needs_reference(self) -> bool:
        """Tell whether the loss compares the policy with a reference."""
        return not self.reference_free and needs_reference(self.loss)

    @property
    def fall_weight(self) -> float:
        """Return what a nat weighs that a chosen answer lost against its reference."""
        per_token = self.anchor_weight * self.anchor_chosen / self.anchor_tokens
        return per_token if self.needs_reference else 0.0

    def given_to_template(self) -> dict[str, Any]:
        """Return what the chat template is given besides: `enable_thinking=false` is False.

        Raises:
            UsageError: one has another form.
        """
        given: dict[str, Any] = {}
        for item in self.template_kwargs:
            name, equals, value = item.partition("=")
            if not equals or not name.isidentifier():
                raise UsageError(f"--template-kwargs {item!r} is not NAME=VALUE")
            try:
                given[name] = json.loads(value)
            except (ValueError, RecursionError):
                given[name] = value  # a text without quotes
        if CLOCK in given:
            try:
                date.fromisoformat(given[CLOCK])
            except (TypeError, ValueError):
                raise UsageError(
                    f"--template-kwargs {CLOCK}={given[CLOCK]} is no day such as 2026-07-04"
                ) from None
        return given

    def patterns(self, name: str, kind: Callable[[str], Number]) -> dict[str, Number]:
        """Read NAME=NUMBER settings.

        Raises:
            UsageError: one has another form, or its number is not above 0.
        """
        found: dict[str, Number] = {}
        for text in getattr(self, name):
            pattern, _, number = text.rpartition("=")
            try:
                compiled(pattern)
                found[pattern] = kind(number)
            except (ValueError, ModelError):
                pattern = ""
            if not pattern or not 0 < found[pattern] <= HUGE:
                raise UsageError(f"{_flag(name)} {text!r} is not NAME=NUMBER with a number above 0")
        return found

    def changes(self, earlier: Mapping[str, Any]) -> str:
        """Say what differs from the settings of a run that this one would continue; "" if nothing.

        Free to change: how long, on what device, what is saved. Epochs and steps may only grow.
        """
        changed = []
        for name, value in self.settings().items():
            before: Any = earlier.get(name, value)
            before = [before] if name == "data" and isinstance(before, str) else before
            grown = name in ("epochs", "max_steps") and (value or math.inf) >= (before or math.inf)
            if value != before and name not in MAY_CHANGE and not grown:
                changed.append(f"{_flag(name)} was {before} and is {value}")
        return ", ".join(changed)

    def settings(self) -> dict[str, Any]:
        """Return every setting that repeats the run, as plain values; local paths are whole."""
        settings: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if name not in ("output_dir", "debug", "resume", "plan", "push_to_hub", "private")
        }
        for name in ("model", "adapter", "chat_template"):
            settings[name] = _whole_path(settings[name])
        for name in ("data", "eval_data"):
            settings[name] = [_whole_path(source) for source in settings[name]]
        return settings

    def save(self, path: Path) -> None:
        """Write the settings, so that `--config` repeats the run anew, from any folder."""
        write_text(path, yaml.safe_dump(self.settings(), sort_keys=False))


def parse(
    argv: list[str] | None = None,
    program: str = "train.py",
    does: str = "Fine-tune a language model with DPO through LoRA, then merge.",
    positional: str | None = None,
) -> Config:
    """Read the command line over the YAML file that `--config` may name over the defaults.

    Raises:
        UsageError: a flag, a value or the file is wrong.
    """
    given = sys.argv[1:] if argv is None else argv
    parser = Parser(program, description=does, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="settings to start from")
    hints = get_type_hints(Config)
    if positional:
        parser.add_argument("named", metavar=positional, nargs="*", help=f"as --{positional}")
    group: Any = parser
    for item in dataclasses.fields(Config):
        if item.metadata["group"]:
            group = parser.add_argument_group(item.metadata["group"])
        options: dict[str, Any] = {"help": _help(item), "default": item.default}
        kind = hints[item.name]
        if kind is bool:
            options["action"] = "store_false" if item.default else "store_true"
        elif get_origin(kind) is tuple:
            options |= {"nargs": "+", "metavar": "NAME"}
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        else:
            options["type"] = next((t for t in get_args(kind) if t is not type(None)), kind)
            options["metavar"] = {int: "N", float: "X"}.get(options["type"], "TEXT")
        if item.name == "resume":
            options |= {"nargs": "?", "const": "", "metavar": "DIR"}
        group.add_argument(_flag(item.name), dest=item.name, **options)

    first, file = parser.parse_args(argv), None
    if first.resume is not None:
        run = _run_folder(first.resume, first.output_dir)
        parser.set_defaults(output_dir=str(run))
        file = run / "config.yaml" if (run / "config.yaml").is_file() else None
    if first.config:
        file = Path(first.config)
    if file:
        try:
            parser.set_defaults(**vars(parser.parse_args(_flags_in(file, hints))))
        except UsageError as error:
            raise UsageError(f"--config {file}: {error}") from None
    settings = vars(parser.parse_args(argv))
    del settings["config"]
    if positional and (named := settings.pop("named")):
        settings[positional] = named
    values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return _validated(Config(**values), file, given)


def _help(item: dataclasses.Field[Any]) -> str:
    """Return a setting's help, with its default if that says anything."""
    text, default = str(item.metadata["help"]), item.default
    said = " ".join(default) if isinstance(default, tuple) else str(default)
    silent = default is None or isinstance(default, bool) or not said  # a switch is just not given
    return text if silent else f"{text} (default: {said})"


def _validated(config: Config, file: Path | None, given: Sequence[str]) -> Config:
    """Return the configuration once it is checked; a message about a file's setting names the file.

    Raises:
        UsageError: as `Config.validate`.
    """
    try:
        config.validate()
    except UsageError as error:
        flag = str(error).partition(" ")[0]  # the setting that the message begins with
        if file is None or flag in {word.partition("=")[0] for word in given}:
            raise
        raise UsageError(f"--config {file}: {error}") from None
    return config


def _whole_path(name: str | None) -> str | None:
    """Return the whole path of what lies here, also of a share of it (`FILE:0.5`)."""
    if name in (None, *KEYWORDS) or name is None:
        return name
    path, share = split_share(name)
    local = expanded(path)
    whole = str(local.resolve()) if local.exists() else path
    return whole if share is None else f"{whole}:{name.rpartition(':')[2]}"


def _run_folder(resume: str, output_dir: str | None) -> Path:
    """Return the run that `--resume` means: its folder, a checkpoint's run, or --output-dir."""
    named = resume or output_dir
    if not named:
        raise UsageError("--resume needs the run's folder: --resume RUN, or --output-dir RUN")
    path = Path(named)
    if resume and output_dir and Path(output_dir).resolve() not in path.resolve().parents:
        if Path(output_dir).resolve() != path.resolve():
            raise UsageError(f"--resume {resume} is no part of --output-dir {output_dir}; give one")
    parents = {path.name: path.parent, path.parent.name: path.parent.parent}
    run = parents.get("checkpoints", path)  # of the folder of checkpoints, or of one of them
    if resume and not run.is_dir():
        raise UsageError(f"--resume {resume}: there is no such folder")
    return run


def _flag(name: str) -> str:
    """Return the flag of a field; a switch that is on by default is turned off by `--no-...`."""
    off = name == "merge"
    return f"--{'no-' if off else ''}{name.replace('_', '-')}"


def _flags_in(path: Path, kinds: dict[str, Any]) -> list[str]:
    """Return the settings of a YAML file as the flags that they are."""
    with reading("it cannot be read", UsageError):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise UsageError("it holds no `name: value` lines")
    flags: list[str] = []
    for name, value in settings.items():
        if name not in kinds or name in ("debug", "resume"):
            raise UsageError(f"unknown setting {name!r}{_hint(name, kinds)}")
        default = getattr(Config, name)
        if not _may_be(value, kinds[name]):
            raise UsageError(f"{name}: {value!r} is no value for it; see --help")
        if isinstance(value, bool):
            flags += [_flag(name)] * (value != default)
        elif isinstance(value, list):
            flags += [_flag(name), *map(str, value)] if value or default else []
        elif value is not None:
            flags.append(f"{_flag(name)}={value}")
    return flags


def _hint(name: str, kinds: Mapping[str, Any]) -> str:
    """Say which setting may be meant; `no_merge` is a flag, and in a file `merge: false`."""
    on = str(name).replace("-", "_").removeprefix("no_")
    if kinds.get(on) is bool and on != name:
        return f"; write `{on}: {'false' if getattr(Config, on) else 'true'}`"
    return closest(name, kinds.keys() - {"debug", "resume"})


def _may_be(value: Any, kind: Any) -> bool:
    """Tell whether YAML's value is of a kind that the flag can read, be it right or wrong."""
    if get_origin(kind) is tuple:
        names = value if isinstance(value, list) else [value]
        return all(isinstance(name, str) for name in names)
    if value is None:
        return type(None) in get_args(kind)
    return isinstance(value, str | int | float) and isinstance(value, bool) == (kind is bool)
