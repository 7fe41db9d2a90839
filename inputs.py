"""What a run starts from, as its configuration names it: the base model and the questions.

Shared by the commands: `train.py` makes a run, the others open a finished one.
"""

from pathlib import Path
from typing import NamedTuple

import transformers

import data
import lora
from config import Config, UsageError, parse
from console import watch
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


def load_model(config: Config, token: str | None) -> lora.Base:
    """Load the base model; where `--model auto` chose, the configuration names the choice."""
    device = lora.choose_device(config.device)
    if config.model == "auto":
        config.model, why = lora.choose_model(device, token)
        print(f"Model: {config.model}, since {why}; --model chooses another.", flush=True)
    dtype = lora.choose_dtype(config.dtype, device)
    how = (config.attention, config.revision, token, config.quantize)
    return lora.load_base(config.model, device, dtype, *how)


def prepare(config: Config, reading: data.Reading, base: lora.Base) -> data.Prepared:
    """Turn the questions into token ids and hold some of them out."""
    settings = config.text_settings(base.tokenizer, lora.length_limit(base.model.config))
    return data.prepare(
        config.data, reading, base.tokenizer, settings, cache_folder("data"),
        config.eval_fraction, config.seed, watch,
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


def held_out(
    config: Config, base: lora.Base, token: str | None
) -> data.Table[data.EncodedQuestion]:
    """Return the questions that the run with this configuration held out."""
    return prepare(config, read(config, token), base).held_out
