"""What a run starts from, as its configuration names it: the base model and the questions.

Shared by the commands: `train.py` makes a run, the others open a finished one.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple

import huggingface_hub
import torch
import transformers
from dotenv import dotenv_values
from huggingface_hub.utils._http import default_client_factory

import data
import lora
from data.chat import CLOCK
from run import anchors, folder, rates, reference
from run.config import Config, parse
from run.console import watch
from run.errors import UsageError

PATIENCE = 60.0  # seconds without a word from the Hub
# oneDNN compiles a product for each shape, and keeps 1,024 of .6 MiB. Questions of so many tokens
# nearly all have a shape to themselves, and a micro-batch makes some 25 products of its own.
LONG, PRODUCTS_KEPT = 200, 128


def prepare_libraries(compiling: bool = False) -> None:
    """Keep the libraries from talking between our lines, and let those of the Hub find the token.

    It is HF_TOKEN or ACCESS_TOKEN, in the environment or else in `.env`. With `compiling` what the
    compiler asks of the processor is begun.

    Raises:
        UsageError: `.env` cannot be read, or the token is none.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.environ.pop("MPLBACKEND", None)  # pictures go into files, and a wrong one would stop them
    names, file = ("HF_TOKEN", "ACCESS_TOKEN"), Path(".env")
    found = [os.environ.get(name) for name in names]
    if not any(found) and file.exists():
        with lora.reading(
            ".env cannot be read; move it away, or set HF_TOKEN in the environment", UsageError
        ):
            if not file.is_file():  # a pipe, where nobody may ever write
                raise UsageError(".env is no plain file; set HF_TOKEN in the environment instead")
            found = [*map(dotenv_values(file).get, names)]
    if token := next(filter(None, found), None):
        if not re.fullmatch(r"[!-~]+", token.strip()):  # what a header of HTTP can hold
            raise UsageError("the Hub's token in HF_TOKEN has letters that none has; copy it again")
        os.environ["HF_TOKEN"] = token.strip()
    huggingface_hub.set_client_factory(_client)
    if compiling:
        lora.try_processor_ahead()


def _client() -> Any:
    """Return the Hub's client, which by itself would wait for an answer for ever."""
    client = default_client_factory()
    client.timeout = PATIENCE
    return client


def resolve_auto(config: Config) -> Config:
    """Return the settings with a model and data in place of `auto`; say which, and why."""
    if "auto" in config.data:
        source, why = data.choose_source()
        named = tuple(source if name == "auto" else name for name in config.data)
        config = replace(config, data=named)
        print(f"Data: {source}, since {why}; --data chooses other questions.", flush=True)
    if config.model == "auto":
        name, why = lora.choose_model(lora.choose_device(config.device))
        config = replace(config, model=name)
        print(f"Model: {name}, since {why}; --model chooses another.", flush=True)
    if config.starts_at_reference and config.needs_reference:
        config = replace(config, reference="adapter")
    return replace(config, scale=config.scale or config.usual_scale)


def remarks(config: Config, parameters: int) -> list[tuple[str, str]]:
    """Say what holds the policy back, and whether the rate is unusual for a base of that size."""
    rows = [("reference", reference.in_words(config))]
    if config.anchor_weight:
        rows.append(("anchors", anchors.in_words(config)))
    rate = rates.remark(config.lr, parameters)
    return [*rows, *([("note", rate)] if rate else [])]


def base_alone(config: Config) -> str:
    """Say that "base" and "before" are without the adapter that a run started from; "" if none.

    For commands that open a finished run: they switch its adapter off, and know no other.
    """
    if not config.adapter:
        return ""
    return f"Compared with the bare base, without {config.adapter}, which the run started from."


def load_tokenizer(config: Config) -> tuple[Any, data.TextSettings]:
    """Load the base model's tokenizer, and settle how preferences become its token ids."""
    tokenizer, limit = lora.load_tokenizer(config.model, config.revision)
    if config.chat_template:
        try:
            if not Path(config.chat_template).is_file():  # a pipe, where nobody may ever write
                raise OSError("there is no such plain file")
            tokenizer.chat_template = Path(config.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--chat-template {config.chat_template}: {error}") from None
    return tokenizer, config.text_settings(tokenizer, limit)


def settled(config: Config, text: data.TextSettings, checkpointing: Any) -> Config:
    """Return the settings with what `auto` became, and with the day that the chat template shows.

    They are the run's: it is gone on with, evaluated and published as of the day that it started.
    """
    given = config.template_kwargs
    if CLOCK in json.loads(text.template_kwargs) and CLOCK not in config.given_to_template():
        given = (*given, f"{CLOCK}={json.loads(text.template_kwargs)[CLOCK]}")
    return replace(
        config, template=text.template, checkpointing=checkpointing, template_kwargs=given
    )


def read_questions(config: Config, tokenizer: Any, text: data.TextSettings) -> data.Prepared:
    """Read the preferences, turn them into token ids, and hold some of them out."""
    cache = folder.cache_folder("data")  # for what is too large to be read anew every time
    how = data.ReadSettings(
        config.columns, config.bad_rows == "skip", config.every_pair, config.seed
    )
    reading = data.read_sources(config.data, how, cache, watch)
    apart = data.read_sources(config.eval_data, how, cache, watch) if config.eval_data else None
    split = data.Split(config.eval_fraction, config.seed, apart)
    prepared = data.prepare(reading, tokenizer, text, split, cache, watch)
    tokens = prepared.train.column("as_tries")
    if tokens.sum() > LONG * len(tokens):  # before the first product, at which oneDNN reads this
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRODUCTS_KEPT))
    return prepared


def steps_of(config: Config, train: data.Table[data.EncodedQuestion]) -> data.Steps:
    """Return which pairs make which optimizer step."""
    per_step = config.batch_size * config.grad_accum
    return data.Steps(
        train.column("pairs").tolist(), per_step, config.epochs, config.seed,
        config.shuffle, config.max_steps, config.batch_by,
    )  # fmt: skip


def load_model(config: Config) -> lora.Base:
    """Load the base model.

    It is loaded on the CPU where one GPU lacks the memory: several may have trained it.
    """
    device, dtype = place_of(config)
    if device.type == "cuda" and config.quantize == "none":
        shape = lora.skeleton(lora.folder_of(config.model, config.revision), dtype)
        if sum(p.nbytes for p in shape.parameters()) > torch.cuda.mem_get_info(device)[0]:
            print("Memory: the base does not fit the GPU; it computes on the CPU", flush=True)
            device = torch.device("cpu")
    how = (config.attention, config.revision, config.quantize)
    return lora.load_base(config.model, device, dtype, *how)


def load_hashed(config: Config, sharded: bool) -> lora.Base:
    """Load the base model to train on, with its hash; sharded, split over all processes."""
    if not sharded:
        base = load_model(config)
        return base._replace(hash=base.hash or lora.base_hash(base.model))
    device, dtype = place_of(config)
    folder, cpu = lora.folder_of(config.model, config.revision), torch.device("cpu")
    skeleton = lora.skeleton(folder, dtype, config.attention, device)
    load = partial(lora.load_base, config.model, cpu, dtype, revision=config.revision)
    return lora.load_sharded(load, skeleton, device)  # the first process loads it


def place_of(config: Config) -> tuple[torch.device, torch.dtype]:
    """Return where the model computes, and in what."""
    device = lora.choose_device(config.device)
    return device, lora.choose_dtype(config.dtype, device)


def add_adapters(config: Config, model: Any) -> Config:
    """Give the model its LoRA layers: --adapter's with their own settings, or newly drawn ones.

    Return the settings with the names that `--target-modules auto` became.
    """
    torch.manual_seed(config.seed)
    aloud = model.device.type != "meta"  # the plan's model says nothing
    if config.adapter:
        lora.load_adapter(model, config.adapter)
        if aloud:
            print(of_other_base(config.adapter, config.model), end="", flush=True)
        return with_own_settings(config, model)
    patterns = lora.Patterns(
        config.patterns("rank_pattern", int), config.patterns("alpha_pattern", float), config.rslora
    )
    targets = lora.as_targets(config.target_modules)
    names = lora.add_lora(model, config.rank, config.alpha, config.dropout, targets, patterns)
    for kind, given in (("rank", patterns.rank), ("alpha", patterns.alpha)):
        for pattern in given or {}:
            if not any(lora.by_pattern(name, {pattern: True}, False) for name in names):
                raise UsageError(f"--{kind}-pattern {pattern!r} matches no layer with an adapter")
    if targets == "auto":
        config = replace(config, target_modules=tuple(lora.short_names(model, names)))
    if targets == "all-linear" and aloud and (others := lora.left_out(model)):
        print(left_frozen(others, model), flush=True)
    return config


def with_own_settings(config: Config, model: Any) -> Config:
    """Return the settings with those of the adapter that the run goes on with.

    Those that no flag can say, such as PEFT's alpha of 0, would make a config.yaml that cannot be
    read again, and all stay as they were given then.
    """
    layers = lora.lora_layers(model)
    rank, alpha = (mode(getattr(m, kind) for m in layers.values()) for kind in ("rank", "alpha"))
    own = replace(
        config,
        rank=rank,
        alpha=float(alpha),
        dropout=next(iter(layers.values())).dropout,
        target_modules=tuple(lora.short_names(model, list(layers))),
        rslora=False,  # as plain LoRA with another alpha
        rank_pattern=tuple(f"{n}={m.rank}" for n, m in layers.items() if m.rank != rank),
        alpha_pattern=tuple(f"{n}={m.alpha}" for n, m in layers.items() if m.alpha != alpha),
    )
    try:
        own.validate()
    except UsageError:
        return config
    return own


def left_frozen(others: Mapping[str, int], model: Any) -> str:
    """Say which matrices `all-linear` leaves frozen, and how much of the model they are."""
    adapters = sum(p.numel() for p in lora.adapter_parameters(model))
    share = sum(others.values()) / (sum(p.numel() for p in model.parameters()) - adapters)
    return (
        f"all-linear: no adapter for {', '.join(others)}; the model reads them itself, and they "
        f"stay frozen: {share:.1%} of its parameters (docs/guide.md, Models with experts)"
    )


def of_other_base(adapter: str | Path, model: str) -> str:
    """Return a line that says so, if an adapter names another base than this model; else "".

    Bases of the same shapes are not told apart by its tensors. A folder whose name is that of the
    Hub's model is taken for a copy of it.
    """
    named, *_ = lora.read_adapter(Path(adapter))
    made_for = str(named.get("base_model_name_or_path") or model)
    ids = (lora.BUILTIN_HUB_ID if name == "builtin" else name for name in (made_for, model))
    if len({Path(id).resolve().name for id in ids}) == 1:
        return ""
    return f"Note: the adapter {adapter} was made for {made_for}, and this base is {model}.\n"


class FinishedRun(NamedTuple):
    """A run that came to its end."""

    folder: Path
    config: Config
    adapter: Path  # its folder


def finished_run(path: Path) -> FinishedRun:
    """Open a run's folder.

    Raises:
        UsageError: it holds no finished run.
    """
    if not (path / "config.yaml").is_file() or not (path / "adapter").is_dir():
        raise UsageError(f"{path} is no finished run: it needs config.yaml and adapter/")
    return FinishedRun(path, parse(["--config", str(path / "config.yaml")]), path / "adapter")
