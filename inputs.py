"""What a run starts from, as its configuration names it: the base model and the questions.

Shared by the commands: `train.py` makes a run, the others open a finished one.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

import data
import lora
from config import Config, UsageError, parse
from console import print_rows, watch
from workspace import cache_folder, hub_token


def quiet() -> str | None:
    """Keep the libraries from talking between our lines; return the Hub token, if there is one."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return hub_token()


def read(config: Config, token: str | None) -> data.Reading:
    """Read the questions; where `--data auto` chose, the configuration names the choice."""
    if config.data == "auto":
        config.data, why = data.choose_source()
        print(f"Data: {config.data}, since {why}; --data chooses other questions.", flush=True)
    # the folder is for what is too large to be read anew every time
    return data.read_preferences(config.data, config.columns, token, cache_folder("data"), watch)


def load_tokenizer(config: Config, token: str | None) -> tuple[Any, int | None]:
    """Load the base model's tokenizer, with the longest text that the model reads.

    Where `--model auto` chose, the configuration names the choice.
    """
    if config.model == "auto":
        config.model, why = lora.choose_model(lora.choose_device(config.device), token)
        print(f"Model: {config.model}, since {why}; --model chooses another.", flush=True)
    return lora.load_tokenizer(config.model, config.revision, token)


def load_model(config: Config, token: str | None, tokenizer: Any = None) -> lora.Base:
    """Load the base model of a configuration that names it, with its tokenizer.

    On the CPU, where one GPU lacks the memory: several may have trained it.
    """
    device = lora.choose_device(config.device)
    dtype = lora.choose_dtype(config.dtype, device)
    if device.type == "cuda" and config.quantize == "none":
        shape = lora.skeleton(lora.folder_of(config.model, config.revision, token), dtype)
        if sum(p.nbytes for p in shape.parameters()) > torch.cuda.mem_get_info(device)[0]:
            print("Memory: the base does not fit the GPU; it computes on the CPU", flush=True)
            device = torch.device("cpu")
    how = (config.attention, config.revision, token, config.quantize, tokenizer)
    return lora.load_base(config.model, device, dtype, *how)


def load_sharded(config: Config, token: str | None, tokenizer: Any = None) -> lora.Base:
    """Load the base model split over all processes; its weights are read by the first."""
    device = lora.choose_device(config.device)
    dtype = lora.choose_dtype(config.dtype, device)
    folder = lora.folder_of(config.model, config.revision, token)
    skeleton = lora.skeleton(folder, dtype, config.attention, device)
    load = partial(
        lora.load_base, config.model, torch.device("cpu"), dtype,
        revision=config.revision, token=token, tokenizer=tokenizer,
    )  # fmt: skip
    return lora.load_sharded(load, skeleton, device)


def add_adapters(config: Config, model: Any) -> None:
    """Give the model its LoRA layers: --adapter's with their own settings, or newly drawn ones."""
    torch.manual_seed(config.seed)
    if config.adapter:
        lora.load_adapter(model, config.adapter)
    else:
        lora.add_lora(
            model, config.rank, config.alpha, config.dropout,
            lora.as_targets(config.target_modules), config.rslora,
            config.patterns("rank_pattern", int), config.patterns("alpha_pattern", float),
        )  # fmt: skip


def prepare(
    config: Config, reading: data.Reading, tokenizer: Any, limit: int | None
) -> data.Prepared:
    """Turn the questions into token ids and hold some of them out."""
    return data.prepare(
        config.data, reading, tokenizer, config.text_settings(tokenizer, limit),
        cache_folder("data"), config.eval_fraction, config.seed, watch,
    )  # fmt: skip


class FinishedRun(NamedTuple):
    """A run that came to its end."""

    folder: Path
    config: Config

    @property
    def adapter(self) -> Path:
        """Return the adapter's folder."""
        return self.folder / "adapter"


def finished_run(folder: Path) -> FinishedRun:
    """Open a run's folder.

    Raises:
        UsageError: it holds no finished run.
    """
    if not (folder / "config.yaml").is_file() or not (folder / "adapter").is_dir():
        raise UsageError(f"{folder} is no finished run: it needs config.yaml and adapter/")
    return FinishedRun(folder, parse(["--config", str(folder / "config.yaml")]))


def read_questions(config: Config, token: str | None) -> tuple[Any, data.Prepared]:
    """Return the base model's tokenizer, and the questions as token ids, some of them held out.

    What was found in them is printed.
    """
    reading = read(config, token)
    tokenizer, limit = load_tokenizer(config, token)
    questions = prepare(config, reading, tokenizer, limit)
    print_rows(questions.report.lines)
    return tokenizer, questions


def held_out(
    config: Config, base: lora.Base, token: str | None
) -> data.Table[data.EncodedQuestion]:
    """Return the questions that the run with this configuration held out."""
    limit = lora.length_limit(base.model.config)
    return prepare(config, read(config, token), base.tokenizer, limit).held_out
