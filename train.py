"""Fine-tune a causal language model with DPO through LoRA, and merge.

`python train.py --rank 8 --alpha 16` does it all: `backward` is DPO, `loop` takes the steps, and
`train` is the whole job in order. Two things are computed differently from the papers. The answers
to one question are one trie, never padded pairs: a token that they share is computed once, and has
one dropout mask. And the reference scores each answer once, unless `--reference-sync` moves it.
"""

if __name__ == "__main__":
    from run import leaving  # noqa: F401  at a signal, while libraries load for seconds
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

import data
import dpo
import lora
from dpo import PairLog, StepLog, dpo_loss, policy_logps, schedule_factor
from run import inputs, publish
from run.checkpoint import Checkpoint, open_run
from run.commands import Stop, guarded
from run.config import Config, parse
from run.console import print_merge, print_rows, print_start, print_summary
from run.measuring import Clock
from run.merge import write_merged
from run.plan import choose_plan
from run.processes import World
from run.reference import Reference
from run.summary import write_outcome, write_summary
from run.training import Job, Training


def backward(model: Any, batch: data.PairBatch, reference: Reference, config: Config) -> StepLog:
    """Add the gradient of a micro-batch's loss to the adapters: this is all of DPO."""
    reference_logps = reference.logps(batch)  # (A,) log pi_ref(y|x), looked up if it does not move
    logps, divergence = policy_logps(model, batch)  # (A,) log pi(y|x), the policy; (M,) eq. (23)
    chosen, rejected = batch.chosen, batch.rejected  # (P,) indices: K pairs share one chosen answer
    pairs = dpo_loss(
        logps[chosen], logps[rejected], reference_logps[chosen], reference_logps[rejected],
        chosen_lengths=batch.lengths[chosen], rejected_lengths=batch.lengths[rejected],
        questions=batch.questions, chosen_answers=chosen, **config.loss_settings(),
    )  # fmt: skip
    loss = pairs.loss @ batch.weights  # which sum to 1 over a step: eq. (15) of docs/math.md
    anchor = divergence @ batch.anchors.weights  # KL to pi_ref a token: eq. (24) of docs/math.md
    fallen = torch.relu(reference_logps - logps)[chosen] @ batch.weights  # eq. (25) of docs/math.md
    (loss + config.anchor_weight * anchor + config.fall_weight * fallen).backward()
    log = PairLog(*pairs, logps[chosen], logps[rejected], batch.weights, batch.questions)
    return StepLog(log.detached(), batch.as_pairs, batch.fed, anchor.detach())


def accumulate(training: Training, pairs: Sequence[data.Pair]) -> StepLog:
    """Leave the gradient of a whole step in the adapters, micro-batch by micro-batch."""
    while True:
        logs, step = [], training.graphed(backward)  # on a GPU all its kernels are one graph
        with training.budget:  # out of memory: gradients zeroed, budget halved, tried again
            for batch in training.micro_batches(pairs):
                logs.append(step(training.model, batch, training.reference, training.config))
            return StepLog.joined(logs, stopped=training.job.stop.received)


def loop(training: Training, optimizer: torch.optim.Optimizer) -> None:
    """Take every optimizer step that is left."""
    config, total = training.config, training.steps.total
    lora.train_adapters(training.model)  # dropout acts, on the LoRA path alone
    for step, pairs in training.remaining_steps():
        training.reference.follow(step)  # copies the policy, where --reference-sync is due
        log = accumulate(training, pairs)  # its gradient is in the adapters now
        log = training.sum_over_processes(log)  # and of all processes
        norm = clip_grad_norm_(training.parameters, config.max_grad_norm)
        rate = config.lr * schedule_factor(step, total, config.warmup_ratio, config.schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        training.guard(optimizer, log, norm)  # a step that is not finite changes nothing
        optimizer.step()
        optimizer.zero_grad()
        training.end_step(pairs, log, norm, rate)  # logs; evaluates, saves, stops when it is time


def train(job: Job, resumed: Checkpoint | None) -> None:
    """Do the whole job in its folder, from a checkpoint on if there is one."""
    config = job.world.of_first(inputs.resolve_auto, job.config)

    # The questions, as token ids, some of them held out; and which pairs make which step.
    tokenizer, text = inputs.load_tokenizer(config)
    questions = inputs.read_questions(config, tokenizer, text)
    print_rows(questions.report.lines)
    steps = inputs.steps_of(config, questions.train)
    plan = choose_plan(config, questions, steps, job.world)
    if config.plan:
        return print_rows(inputs.remarks(config, plan.parameters) + plan.lines())
    config = inputs.settled(config, text, plan.checkpointing)

    # The frozen base, on which tries are checked against plain rows; and then adapters on it.
    base = inputs.load_hashed(config, sharded=plan.shards > 1)
    model = base.model
    check = dpo.check_sharing(model, questions.check_questions, questions.largest_id, base.layers)
    config = inputs.add_adapters(config, model)  # drawn from --seed
    reference = Reference(config, model, base.hash)
    a, b = lora.adapter_parameters(model, "A"), lora.adapter_parameters(model, "B")
    groups = [{"params": a, "ratio": 1.0}, {"params": b, "ratio": config.lora_plus_ratio}]  # LoRA+
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    training = Training(job._replace(config=config), reference, questions, steps, plan, check)
    print_start(base, check, steps, inputs.remarks(config, plan.parameters) + plan.lines())
    training.resume(optimizer, resumed)
    job.clock.lap("load")

    # With its adapters off, or as they started, the model is the reference. It scores once.
    reference.score(training.scorer, job.world, questions, steps)
    training.draw_anchors()  # and it writes some answers of its own
    job.clock.lap("reference")

    with training.running():
        loop(training, optimizer)
    finish(training, base, tokenizer)


def finish(training: Training, base: lora.Base, tokenizer: Any) -> None:
    """Leave the adapter, what it changed on questions it has not seen, and the merged model."""
    job, model = training.job, base.model.eval()
    training.best.restore()  # with --eval-every; else the last adapter stays
    size, found = training.outcome(tokenizer)  # every process scores its share
    lora.scale_adapter(model, size)  # --scale
    if not job.world.first:
        return
    lora.save_adapter(model, job.folder / "adapter", base.name, base.revision)
    write_outcome(job.folder, found, size)
    job.clock.lap("evaluate")
    if job.config.merge:
        print_merge(write_merged(model, base, tokenizer, job.folder, job.config))
    job.clock.lap("merge")
    print_summary(job.folder, found, write_summary(training, base, size))


def run(config: Config, stop: Stop | None = None, world: World = World()) -> Path:
    """Do the whole job and return the output folder."""
    inputs.prepare_libraries(compiling=config.compile == "on")
    if config.push_to_hub and world.first:
        publish.check_access(config.push_to_hub, private=config.private)
    with open_run(config, world) as (folder, resumed):
        train(Job(config, folder, world, stop or Stop(), Clock()), resumed)
    if config.push_to_hub and world.first and not config.plan:
        publish.publish(inputs.finished_run(folder), config.push_to_hub, config.private)
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return guarded("train.py", lambda stop, world: run(parse(argv), stop, world), argv)


if __name__ == "__main__":
    sys.exit(main())
