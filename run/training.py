"""What serves the loop of `train.py`: batches, memory, the log, evaluations, checkpoints.

The loop itself stands there. Here is what must survive a kill, as parts with a `state_dict()`, and
what happens around a step.
"""

import itertools
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

import data
import dpo
import lora
from run import checkpoint, threads
from run.ahead import Ahead
from run.anchors import Anchors
from run.checkpoint import AdapterPart, Checkpoint, Part
from run.commands import Stop
from run.config import Config
from run.console import Progress, watch_answers
from run.errors import Stopped, UsageError
from run.folder import draw_curves, log_line, metrics_log
from run.graphs import Backward, CudaGraph, Graphs, buckets_of, why_not
from run.measuring import Clock
from run.plan import LARGE, Plan
from run.processes import Generators, World
from run.reference import Reference
from run.sizes import Sizes
from run.trackers import tracked

Batch = TypeVar("Batch")


class Job(NamedTuple):
    """A run: its settings, and where and how it takes place."""

    config: Config
    folder: Path
    world: World
    stop: Stop
    clock: Clock


@dataclass
class Counts:
    """How far a run is."""

    step: int = 0  # the next one
    skipped: int = 0  # steps that were not finite
    as_pairs: int = 0  # tokens that whole texts would have had
    as_tries: int = 0  # tokens fed
    budget: int = 0  # tokens fed at once

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting."""
        vars(self).update(state)


class Best:
    """The adapter that the held-out questions found best so far (`--eval-every`)."""

    def __init__(self, model: Any, metric: str) -> None:
        self.model, self.metric = model, metric
        self.facts: dict[str, Any] = {}  # its step and value
        self._adapter: list[torch.Tensor] = []

    def offer(self, step: int, measured: dpo.Metrics) -> None:
        """Keep the model's adapter, if it is better."""
        value = getattr(measured, self.metric)
        if not self.facts or value > self.facts["value"]:
            self.facts = {"step": step, "metric": self.metric, "value": value}
            self._adapter = lora.copy_adapter(self.model)

    def restore(self) -> None:
        """Make the best adapter the model's; without evaluations it is the last one."""
        if self._adapter:
            lora.restore_adapter(self.model, self._adapter)

    def state_dict(self) -> dict[str, Any]:
        """Return the adapter and what is known of it."""
        return {"facts": self.facts, "adapter": self._adapter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was the best."""
        self.facts = state["facts"]
        self._adapter = [tensor.to(self.model.device) for tensor in state["adapter"]]


class Ended(NamedTuple):
    """A step that was made, whose numbers a GPU may still have to bring."""

    step: int
    pairs: Sequence[data.Pair]
    log: dpo.StepLog
    norm: torch.Tensor
    rate: float
    wait: Callable[[], None]  # until they are there


def waiting_for(device: torch.device) -> Callable[[], None]:
    """Return what waits until a device has done what it was given so far."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


class Training:
    """What happens around the steps of a run.

    Args:
        job: where and how the run takes place.
        reference: with the model that is trained, the policy.
        questions: to train on, and held out.
        steps: which pairs make which step.
        plan: what it was planned to take.
        check: whether tries suit the model.
    """

    def __init__(
        self, job: Job, reference: Reference, questions: data.Prepared, steps: data.Steps,
        plan: Plan, check: dpo.SelfCheck,
    ) -> None:  # fmt: skip
        self.job, self.reference, self.questions, self.steps = job, reference, questions, steps
        self.config = job.config
        self.plan, self.way, self.sharded = plan, check.way, plan.shards > 1
        self.model = model = reference.model
        self.parameters = lora.adapter_parameters(model)
        together = self.kept_in_step if self.sharded else None
        self.scorer = dpo.Scorer(model, check.way, plan.budgets, watch_answers, together)
        tokens = plan.budgets.training(check.way)
        self.budget = dpo.TokenBudget(tokens, undo=model.zero_grad, alone=not self.sharded)
        self.counts, self.best = Counts(), Best(model, job.config.best)
        self.generators = Generators(job.world, job.config.seed)
        sampling = dpo.Sampling(job.config.anchor_samples, job.config.anchor_tokens)
        self.anchors = Anchors(sampling, job.folder)
        self.parts: dict[str, Part] = {  # what must survive a kill
            "adapter": AdapterPart(model), "reference": reference, "best": self.best,
            "anchors": self.anchors, "generators": self.generators, "counts": self.counts,
            "seconds": job.clock,
        }  # fmt: skip
        self.graphs: Graphs | None = None
        no_graphs = why_not(self.config, model.device, check.way, plan.shards)
        if no_graphs and self.config.graphs == "on":
            raise UsageError(f"--graphs on: {no_graphs}; leave it out")
        if not no_graphs:
            self.parts["graphs"] = self.graphs = Graphs(model, self.config, CudaGraph())
        self.ahead, self.following = Ahead(self._batches), list[data.Pair]()
        self.ended, self.late = deque[Ended](), model.device.type == "cuda"
        self.pace, self.began = threads.Pace(), 0.0  # when the step began that is being made
        self.hashes = {"data": questions.fingerprint, "base": reference.hash}

    def resume(self, optimizer: torch.optim.Optimizer, resumed: Checkpoint | None) -> None:
        """Go on from a checkpoint, if there is one, with the optimizer too.

        Raises:
            UsageError: it is of a different run, or what it holds is not what a part saved.
        """
        self.parts["optimizer"] = optimizer
        if resumed:
            checkpoint.check_same_run(resumed, self.job.config, self.hashes)
            if "graphs" not in resumed.parts and self.graphs:  # it was made on a CPU
                resumed.parts["graphs"] = self.graphs.state_dict()
            with lora.reading(f"the checkpoint {resumed.path} cannot be used", UsageError):
                for name, part in self.parts.items():
                    part.load_state_dict(resumed.parts[name])
            self.budget.tokens = self.counts.budget
            where = f"step {resumed.step} of {self.steps.total}"
            print(f"Going on from {resumed.path}: {where}.", flush=True)
        self._settle_threads()
        if self.job.world.first:
            self.job.config.save(self.job.folder / "config.yaml")

    def _settle_threads(self) -> None:
        """Take --threads; `auto` tries a small step. A run that is resumed keeps its number."""
        count = self.config.given_threads
        alone = self.model.device.type == "cpu" and self.job.world.size == 1
        if count is None and alone:
            count = threads.fastest(self._small_step())
            self.job = self.job._replace(config=replace(self.job.config, threads=str(count)))
        elif count is not None:
            torch.set_num_threads(count)

    def _small_step(self) -> Callable[[], None]:
        """Return a pass forward and backward over a question, cut short, which leaves no trace."""
        (first, _), *_ = next(self.steps.from_step())
        prompt, chosen, rejected = dpo.cut(self.questions.train[first])
        trees = data.collate(data.question_tries(prompt, (chosen, *rejected), self.way), self.way)

        def step() -> None:
            with torch.random.fork_rng(devices=[]):
                dpo.answer_logps(self.model, trees).sum().backward()
            self.model.zero_grad()

        return step

    def draw_anchors(self) -> None:
        """Give the questions that are trained on answers of the reference's own."""
        if not self.config.anchor_weight:
            return
        train = self.anchors.draw(
            self.reference, self.job.world, self.questions.train, self.steps, self.way, self.sharded
        )
        self.questions = self.questions._replace(train=train)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block layers are as asked, steps are logged, signals wait for a step's end."""
        job, first = self.job, self.counts.step
        config, folder = job.config, job.folder if job.world.first else None
        self.generators.start(first)
        if self.graphs:
            self.graphs.buckets = self.graphs.buckets or self._buckets()
        done = self.steps.pairs_before(first)
        self.bar = Progress("Training", self.steps.pairs, "pairs", done=done)
        in_blocks = self.plan.blocks > 0
        lora.trim_memory()  # of the reference's batches
        layers = lora.layers_as_asked(
            self.model, config.compile, config.checkpointing, self.steps.total, in_blocks
        )
        tracking = tracked(config.tracker, folder, config.settings(), first)
        if folder:
            checkpoint.forget(folder, after=first)  # of steps that are now made anew
        with layers, metrics_log(folder, first) as self.log, tracking as self.report:
            job.clock.lap("prepare")
            job.stop.patient = True
            yield
        job.stop.patient = False
        if received := max(job.world.gather(job.stop.received)):  # after the last step was made
            raise Stopped(received)
        lora.trim_memory()
        self.bar.close()
        job.clock.lap("train")

    def _buckets(self) -> list[data.Bucket]:
        """Return the shapes that the batches of this run are padded to, for a GPU."""
        how = self.budget.tokens, self.config.weight_by, self.job.world.size
        return buckets_of(self.questions.train, self.steps, *how)

    def graphed(self, backward: Backward) -> Backward:
        """Return what makes a micro-batch's step: on a GPU as one graph, if that can be."""
        return self.graphs.of(backward) if self.graphs else backward

    def remaining_steps(self) -> Iterator[tuple[int, Sequence[data.Pair]]]:
        """Yield each step that is left, with its pairs."""
        first = self.counts.step
        steps = itertools.chain(self.steps.from_step(first), [[]])
        for step, (pairs, self.following) in enumerate(itertools.pairwise(steps), start=first):
            yield step, pairs

    def micro_batches(self, pairs: Sequence[data.Pair]) -> Iterator[data.PairBatch]:
        """Yield this process' share of a step, cut into as few batches as memory allows."""
        if self.graphs:  # which take them from the CPU
            yield from self.ahead(pairs, self.budget.tokens)
            self.ahead.start(self.following, self.budget.tokens)
            return
        batches: Iterable[data.PairBatch] = self._step_batches(pairs, self.budget.tokens)
        if self.sharded:
            batches = self.kept_in_step(batches, self.reference.passes)
        for batch in batches:
            yield batch.to(self.model.device)
            if self.model.device.type == "cpu" and batch.trees.tokens.numel() > LARGE:
                lora.trim_memory()

    def _step_batches(self, pairs: Sequence[data.Pair], tokens: int) -> Iterator[data.PairBatch]:
        share = self.job.world.rank, self.job.world.size
        weight_by = self.config.weight_by
        return data.step_batches(self.questions.train, pairs, tokens, self.way, weight_by, share)

    def _batches(self, pairs: Sequence[data.Pair], tokens: int) -> list[data.PairBatch]:
        return list(self._step_batches(pairs, tokens))

    def kept_in_step(self, batches: Iterable[Batch], passes: int = 1) -> Iterator[Batch]:
        """Yield the batches, and then pass through the layers while other processes have some."""
        return self.job.world.in_step(batches, passes, idle=partial(lora.take_part, self.model))

    def sum_over_processes(self, log: dpo.StepLog) -> dpo.StepLog:
        """Add up the gradients of all processes; return the log of the whole step."""
        world = self.job.world
        world.sum_gradients(self.parameters)
        whole = log if world.size == 1 else dpo.StepLog.joined(world.gather(log.to("cpu")))
        self.counts.as_pairs += whole.as_pairs
        self.counts.as_tries += whole.as_tries
        return whole

    @staticmethod
    def guard(optimizer: Any, log: dpo.StepLog, norm: torch.Tensor) -> None:
        """Let the next `optimizer.step` change nothing, if a number of this step is not finite.

        AdamW looks at this flag where it computes, as for torch's GradScaler: nobody waits for it.
        """
        optimizer.found_inf = dpo.spoilt(log, norm)

    def end_step(
        self, pairs: Sequence[data.Pair], log: dpo.StepLog, norm: torch.Tensor, rate: float
    ) -> None:
        """Log a step; evaluate, save and stop where it is time to.

        A GPU's step is logged when the next one has been given to it, so that it never waits.

        Raises:
            NumericError: a step is not finite, and the run does not skip such steps.
            Stopped: a signal asked for it, and the run is saved.
        """
        config, step, total = self.job.config, self.counts.step, self.steps.total
        self.counts.step = done = step + 1
        self._watch_pace(log)
        numbers = log.to("cpu", non_blocking=True), norm.to("cpu", non_blocking=True)
        self.ended.append(Ended(step, pairs, *numbers, rate, waiting_for(norm.device)))
        evaluate = config.eval_every and (done % config.eval_every == 0 or done == total)
        save = log.stopped or done % config.save_every == 0 or done == total
        waiting = 1 if self.late and not evaluate and not save else 0
        while len(self.ended) > waiting:
            ended = self.ended.popleft()
            metrics = self._metrics(ended)
            if evaluate and not self.ended:
                metrics |= self._evaluated(done)
            self.report(ended.step, metrics)
            log_line(self.log, {"step": ended.step, **metrics})
            self.bar.advance(len(ended.pairs), dpo.in_short(metrics), metrics.get("loss"))
        if save:
            self._save()
        if log.stopped:
            raise Stopped(log.stopped)
        self.began = time.monotonic()

    def _metrics(self, ended: Ended) -> dict[str, float]:
        """Return what is logged of a step that has ended; of one that is not finite, the count.

        Raises:
            NumericError: it is not finite, and the run does not skip such steps.
        """
        step, pairs, log, norm, rate, wait = ended
        wait()
        rest = {"anchor": float(log.anchor), "grad_norm": float(norm), "learning_rate": rate}
        metrics = dpo.step_metrics(log.pairs, self.config.beta) | rest
        if not (trouble := dpo.not_finite(metrics)):
            return metrics
        where = dpo.where_not_finite(self.model, self.questions.train, pairs, self.way)
        trouble = f"step {step}: {trouble}; {where}"
        if not self.job.config.skip_nonfinite:
            raise dpo.NumericError(f"{trouble}; try a lower --lr or --dtype float32")
        print(f"Skipped {trouble}", flush=True)
        self.counts.skipped += 1
        return {"skipped": self.counts.skipped}

    def held_out_scores(self) -> dict[str, float]:
        """Return the policy's log-probs of all answers to the held-out questions."""
        to_score = [self.questions.held_out.map(dpo.all_answers)]
        return self.job.world.scores(self.scorer, "Evaluation", to_score)

    def outcome(self, tokenizer: Any) -> tuple[float, dpo.Outcome | None]:
        """Return the adapter's size by --scale, and what it changed on held-out questions if any.

        The adapter itself stays as it was trained.
        """
        held_out = self.questions.held_out
        sizes = Sizes(self.scorer, self.reference, self.job.world, tokenizer, held_out)
        size = sizes.chosen(self.job.config)
        return size, sizes.outcome(size)

    def _watch_pace(self, log: dpo.StepLog) -> None:
        """Say it when steps have become much slower, as on a CPU beside other work."""
        now = time.monotonic()
        times = self.pace.slower(now - self.began, log.as_tries) if self.began else 0.0
        if times and torch.get_num_threads() > 1:
            print(
                f"Steps take {times:.0f} times as long as before: something else computes here, "
                "and threads wait for one another. Fewer may be faster beside it: Ctrl-C, and then "
                f"python train.py --resume {shlex.quote(str(self.job.folder))} --threads 1",
                flush=True,
            )

    def _evaluated(self, step: int) -> dict[str, float]:
        """Measure the policy on the held-out questions; keep its adapter if it is the best."""
        self.model.eval()
        measured = dpo.measure(self.questions.held_out, self.held_out_scores())
        lora.train_adapters(self.model)
        self.best.offer(step, measured)
        return {f"eval/{name}": value for name, value in measured._asdict().items()}

    def _save(self) -> None:
        """Save the run; all processes take part.

        Raises:
            NumericError: the last step has left numbers that nobody can go on from.
        """
        if not all(p.isfinite().all() for p in self.parameters):
            raise dpo.NumericError(
                f"step {self.counts.step - 1} left an adapter that is not finite; try a lower --lr"
            )
        self.counts.budget = self.budget.tokens
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        if self.job.world.first:
            facts = {"config": self.job.config.settings(), **self.hashes}
            point = Checkpoint(self.counts.step, parts, facts)
            checkpoint.save(self.job.folder, point, self.job.config.keep, self.log)
            draw_curves(self.job.folder, at_most_every=30)
