"""The anchors of a run: drawn from its reference once, and kept on disk from run to run."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import data
import dpo
import lora
from data.trees import Tokens, Way
from run import folder
from run.config import Config
from run.console import Progress
from run.errors import UsageError
from run.processes import World
from run.reference import Reference

Questions = data.Table[data.EncodedQuestion]
Drawn = dict[str, tuple[data.Anchor, ...]]  # by prompt_key


class Anchors:
    """Answers that the reference writes to the prompts of training (`--anchor-weight`).

    They depend on the reference, the prompt and the settings of `sampling`, and on no seed of the
    run: another split, seed or rate finds what was drawn before. A run keeps its own beside
    its checkpoints, since another machine or library may draw others.
    """

    def __init__(self, sampling: dpo.Sampling, run: Path) -> None:
        self.sampling, self.kept = sampling, run / "checkpoints" / "anchors.safetensors"
        # So many steps, and a digest of the anchors in them.
        self.state: dict[str, Any] = {"steps": 0, "fingerprint": ""}
        self._before = self.state  # of the run before it was interrupted, which had fewer steps

    def draw(
        self, reference: Reference, world: World, train: Questions, steps: data.Steps, way: Way,
        sharded: bool = False,
    ) -> Questions:  # fmt: skip
        """Return the questions with anchors, where the steps train on them.

        The processes share the prompts, or, where the base is `sharded`, make the same passes.

        Raises:
            UsageError: a resumed run had other anchors.
        """
        questions = train.select(steps.questions())
        stop = data.stop_of(questions)
        file = self._file(reference.hash, stop)
        known = world.of_first(lambda: {**read_drawn(file), **read_drawn(self.kept)})
        prompts = [q.prompt for q in questions if prompt_key(q.prompt) not in known]
        if prompts:
            with reference.active(reference.model):
                share = World() if sharded else world
                known |= self._drawn(reference.model, prompts, stop, share, way)
            if world.first:
                write_drawn(file, known)
        self.state = {"steps": steps.total, "fingerprint": fingerprint(known, questions)}
        before = train.select(steps.questions(self._before["steps"]))
        if self._before["fingerprint"] not in ("", fingerprint(known, before)):
            raise UsageError(
                f"--resume: the anchors are not those that the run was trained on; {self.kept} was "
                "lost or damaged, and other ones were drawn"
            )
        if world.first:
            write_drawn(
                self.kept, {key: known[key] for key in (prompt_key(q.prompt) for q in questions)}
            )
        return train.map(lambda q: q._replace(anchors=known.get(prompt_key(q.prompt), ())))

    def _file(self, reference_hash: str, stop: int) -> Path:
        settings = f"{self.sampling.samples}x{self.sampling.tokens}-{stop}"
        return folder.cache_folder("anchors") / f"{reference_hash}-{settings}.safetensors"

    def _drawn(self, model: Any, prompts: list[Tokens], stop: int, world: World, way: Way) -> Drawn:
        """Return the anchors of these prompts, of which every process draws its share."""
        mine = sorted(set(prompts))[world.rank :: world.size]
        bar = Progress("Anchors", len(mine), "prompts")
        found: Drawn = {}
        was_training = model.training
        model.eval()
        for prompt, anchors in dpo.draw_anchors(model, mine, stop, self.sampling, way == "tries"):
            found[prompt_key(prompt)] = anchors
            bar.advance(1)
        bar.close()
        model.train(was_training)
        return {key: anchors for part in world.gather(found) for key, anchors in part.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what names the anchors."""
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Expect the same anchors as before."""
        self._before = state


def fingerprint(drawn: Drawn, questions: Questions) -> str:
    """Return a digest of the anchors of these questions."""
    digest = hashlib.sha256()
    for question in questions:
        for tokens, *arrays, _ in drawn[prompt_key(question.prompt)]:
            digest.update(b"".join([repr(tokens).encode(), *(x.tobytes() for x in arrays)]))
    return digest.hexdigest()


def as_planned(train: Questions, config: Config) -> Questions:
    """Return the questions with anchors of the longest kind, which share no token."""
    if not config.anchor_weight:
        return train
    n, t = config.anchor_samples, config.anchor_tokens
    ids = [tuple(-1 - k * t - i for i in range(t)) for k in range(n)]  # of no real token
    words, logps = np.zeros((t, dpo.WORDS), np.int32), np.zeros((t, dpo.WORDS), np.float32)
    anchors = tuple(data.Anchor(tokens, words, logps, t) for tokens in ids)
    return train.map(lambda question: question._replace(anchors=anchors))


def tokens_of(config: Config) -> int:
    """Return the tokens that anchors add to a question at most."""
    return config.anchor_samples * config.anchor_tokens if config.anchor_weight else 0


def in_words(config: Config) -> str:
    """Say what is drawn, and how to do without."""
    n, tokens = config.anchor_samples, f"{config.anchor_tokens} tokens"
    drawn = f"{n} answers of at most {tokens}" if n > 1 else f"an answer of at most {tokens}"
    return (
        f"{drawn} that the reference writes to each prompt, weight {config.anchor_weight:g} "
        "(--anchor-weight 0 is DPO alone)"
    )


def prompt_key(prompt: Tokens) -> str:
    """Name a prompt by its token ids."""
    return hashlib.sha256(str(prompt).encode()).hexdigest()[:32]


def read_drawn(file: Path) -> Drawn:
    """Return the anchors in `file`; one that is missing or damaged has none, and is named."""
    try:
        with safe_open(file, "np") as stored:
            keys = stored.metadata()["keys"].split()
            arrays = [stored.get_tensor(name) for name in ("tokens", "words", "logps")]
        return {key: _anchors(*parts) for key, *parts in zip(keys, *arrays, strict=True)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        print(f"The anchors in {file} are damaged and are drawn anew ({error}).", flush=True)
        return {}


def _anchors(tokens: np.ndarray, words: np.ndarray, logps: np.ndarray) -> tuple[data.Anchor, ...]:
    """Return the anchors of one prompt, from arrays that are filled up with -1 after an end."""
    counts = (tokens >= 0).sum(1).tolist()
    return tuple(
        data.Anchor(tuple(tokens[i, :n].tolist()), words[i, :n], logps[i, :n], tokens.shape[1])
        for i, n in enumerate(counts)
    )


def write_drawn(file: Path, drawn: Drawn) -> None:
    """Replace `file` in one step; one that cannot be written costs time and no result."""
    each = [[_filled(anchor) for anchor in anchors] for anchors in drawn.values()]
    names = ("tokens", "words", "logps")
    arrays = {name: np.stack([[a[i] for a in row] for row in each]) for i, name in enumerate(names)}
    try:
        with lora.whole(file) as new:
            save_file(arrays, new, {"keys": " ".join(drawn)})
    except OSError as error:
        print(f"The anchors are not cached: {error}", flush=True)


def _filled(anchor: data.Anchor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the anchor's arrays with T places each."""
    missing = anchor.longest - len(anchor.tokens)
    tokens = np.array(anchor.tokens, dtype=np.int32)
    rest = ((0, missing), (0, 0))
    return (
        np.pad(tokens, (0, missing), constant_values=-1),
        np.pad(anchor.words, rest), np.pad(anchor.logps, rest),
    )  # fmt: skip
