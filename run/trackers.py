"""Where else the metrics of a run go: TensorBoard, Weights & Biases or Trackio."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from run.config import Tracker
from run.errors import UsageError

PROJECT = "trie-dpo"


@contextmanager
def tracked(
    tracker: Tracker, run: Path | None, settings: dict[str, Any], first: int
) -> Iterator[Callable[[int, Mapping[str, float]], object]]:
    """Yield what logs the metrics of a step; a run that goes on at step `first` is the same run.

    Without a folder nothing is logged. The trackers' own environment variables hold, such as
    WANDB_MODE=offline and TRACKIO_DIR.

    Raises:
        UsageError: the tracker's package is not installed.
    """
    if run is None or tracker == "none":
        yield lambda step, metrics: None
        return
    name = run.resolve().name
    identity = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
    try:
        if tracker == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            with SummaryWriter(run / "tensorboard", purge_step=first) as writer:
                yield lambda step, metrics: [
                    writer.add_scalar(metric, value, step) for metric, value in metrics.items()
                ]
        elif tracker == "wandb":
            import wandb

            with wandb.init(
                project=PROJECT, name=name, id=identity, resume="allow", dir=run, config=settings
            ) as logged:
                yield lambda step, metrics: logged.log(dict(metrics), step=step)
        elif tracker == "trackio":
            import trackio

            trackio.init(
                project=PROJECT, name=f"{name}-{identity[:6]}", resume="allow", config=settings
            )
            try:
                yield lambda step, metrics: trackio.log(dict(metrics), step=step)
            finally:
                trackio.finish()
    except ImportError as error:
        raise UsageError(
            f"--tracker {tracker} needs its package ({error}); run pip install -e '.[{tracker}]'"
        ) from error
