"""Fine-tune a causal language model with DPO through LoRA, and merge.

`python train.py --rank 8 --alpha 16` does the whole job, in the order of `job` below.
"""

import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

import checkpoint
import data
import dpo
import lora
import processes
from checkpoint import Checkpoint
from commands import guarded
from config import Config, parse
from console import Progress, print_plan, print_summary, track, watch
from processes import World
from workspace import (
    Clock,
    Stop,
    Stopped,
    cache_folder,
    hub_token,
    metrics_log,
    summary,
    write_json,
)

TOKENS = {"train": 2048, "score": 4096, "plain": 512}  # fed at once; plain rows keep all logits


def run(config: Config, stop: Stop | None = None, world: World | None = None) -> Path:
    """Do the whole job and return the output folder."""
    world = world or World()
    with checkpoint.opened(config, world) as (folder, point):
        job(config, folder, point, stop or Stop(), world)
    return folder


def job(config: Config, folder: Path, point: Checkpoint | None, stop: Stop, world: World) -> None:
    """Do the job in `folder`, from the checkpoint on if there is one."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    token = hub_token()
    torch.manual_seed(config.seed)
    clock = Clock(point.facts["seconds"] if point else None)

    # The questions. What `auto` stands for is settled here, so that config.yaml repeats the run.
    if config.data == "auto":
        config.data, why = data.choose_source()
        print(f"Data: {config.data}, since {why}; --data chooses other questions.", flush=True)
    store = cache_folder("data")  # for what is too large to be read anew every time
    reading = data.read_preferences(config.data, config.columns, token, store, watch)

    # The frozen base model.
    device = lora.choose_device(config.device)
    if config.model == "auto":
        config.model, why = lora.choose_model(device, token)
        print(f"Model: {config.model}, since {why}; --model chooses another.", flush=True)
    dtype = lora.choose_dtype(config.dtype, device)
    how = (config.attention, config.revision, token, config.quantize)
    base = lora.load_base(config.model, device, dtype, *how)
    model = base.model

    # Questions -> token ids, some of them held out.
    settings = config.text_settings(base.tokenizer, lora.length_limit(model.config))
    questions = data.prepare(
        config.data, reading, base.tokenizer, settings, store, config.eval_fraction, config.seed,
        watch,
    )  # fmt: skip
    train, held_out = questions.train, questions.held_out

    # Adapters on the base, which stays as it is and is the reference.
    check = dpo.check_sharing(model, data.of_all_lengths(questions.every), questions.largest_id)
    fingerprints = {"data": questions.fingerprint, "base": dpo.base_fingerprint(model)}
    if config.adapter:
        lora.load_adapter(model, config.adapter)
    else:
        lora.add_lora(
            model, config.rank, config.alpha, config.dropout,
            lora.as_targets(config.target_modules), config.rslora,
            config.patterns("rank_pattern", int), config.patterns("alpha_pattern", float),
        )  # fmt: skip
    if config.reference_adapter:  # the reference is the policy as it stands now
        fingerprints["base"] = dpo.base_fingerprint(model)
    cache = cache_folder("reference") / f"{fingerprints['base']}.json"
    parameters = lora.adapter_parameters(model)
    ratios = {"A": 1.0, "B": config.lora_plus_ratio}  # LoRA+, arXiv 2402.12354: B learns faster
    groups = [{"params": lora.adapter_parameters(model, name), "name": name} for name in ratios]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    steps = data.Steps(
        train.column("pairs").tolist(), config.batch_size * config.grad_accum,
        config.epochs, config.seed, config.shuffle, config.max_steps,
    )  # fmt: skip
    if point:
        checkpoint.check_same_run(point, config, **fingerprints)
    print_plan(base, questions.report, check, steps)
    if world.first:
        config.save(folder / "config.yaml")
    clock.lap("load")

    # The reference's log-probs, once per distinct answer; for held-out questions, "before".
    def scored(label: str, known: dpo.Scores, *sides: Any) -> dict[str, float]:
        show = partial(track, label=label, unit="answers", size=lambda batch: batch[1].answers)
        most = TOKENS["score"] if check.shared else TOKENS["plain"]
        mine = dpo.asked(world.share, *sides)
        parts = world.gather(dpo.score_answers(model, mine, most, check.shared, known, show))
        return {key: score for part in parts for key, score in part.items()}

    used = sorted({q for pairs in steps.from_step() for q, _ in pairs})
    sides = [(held_out, "answers"), (train.select(used), "trained")]
    scores = dpo.read_cache(cache)
    with nullcontext() if config.reference_adapter else lora.adapters_disabled(model):
        new = scored("Reference", scores, *sides[: 1 if config.reference_free else 2])
    scores |= new
    if new and world.first:
        dpo.write_cache(cache, scores)
    before = dpo.believed(held_out, scores)
    clock.lap("reference")

    # Where the loop starts: at the first step, or where a checkpoint stands.
    first, skipped, budget, tokens = 0, 0, TOKENS["train"], {"as_pairs": 0, "as_tries": 0}
    moved, random = list[torch.Tensor](), list[torch.Tensor]()  # a moving reference; generators
    if point:
        moved, random = checkpoint.unpack(point.tensors, parameters, optimizer, world.rank)
        names = ("step", "skipped", "budget", "tokens")
        first, skipped, budget, tokens = (point.facts[name] for name in names)
        print(f"Going on from {point.path}: step {first} of {steps.total}.", flush=True)

    # The loop.
    def gradients(pairs: Any, budget: int) -> tuple[torch.Tensor, int, int]:
        """Leave this process' gradients of a step in the adapters; return what is logged of it."""
        seen, as_pairs, fed = [torch.zeros(7, 0, device=device)], 0, 0
        share = (world.rank, world.size)
        cut = data.step_batches(train, pairs, budget, check.shared, config.weight_by, share)
        for batch in (batch.to(device) for batch in cut):
            if moved:
                with torch.no_grad(), lora.adapter_swapped(model, moved):
                    anchors = dpo.answer_logps(model, batch.trees)  # (A,)
            else:
                known = dpo.anchors(batch.ids, None if config.reference_free else scores)
                anchors = torch.tensor(known, device=device)
            logps = dpo.answer_logps(model, batch.trees)  # (A,)
            chosen, rejected = batch.chosen, batch.rejected  # (P,)
            result = dpo.dpo_loss(
                logps[chosen], logps[rejected], anchors[chosen], anchors[rejected],
                chosen_lengths=batch.lengths[chosen], questions=batch.questions,
                rejected_lengths=batch.lengths[rejected], **config.loss_settings(),
            )  # fmt: skip
            # The weights of a step sum to 1, however micro-batches are cut.
            (result.loss @ batch.weights).backward()  # eq. (15) of docs/math.md
            columns = (logps[chosen], logps[rejected], batch.weights, batch.questions)
            seen.append(dpo.pair_columns(result, *columns))
            as_pairs, fed = as_pairs + batch.as_pairs, fed + batch.fed
        return torch.cat(seen, 1).cpu(), as_pairs, fed

    def save(step: int) -> None:
        states = world.gather(processes.random_states())
        facts = {
            "config": config.settings(), **fingerprints, "tokens": tokens, "skipped": skipped,
            "budget": budget, "seconds": clock.seconds,
        }  # fmt: skip
        if world.first:
            state = checkpoint.pack(parameters, optimizer, moved, states)
            checkpoint.save(folder, Checkpoint(step, state, facts), config.keep, log)
            dpo.draw_curves(folder, at_most_every=0 if step == steps.total else 30)

    warmup = round(config.warmup_ratio * steps.total)
    lora.train_adapters(model)
    processes.draw_own(config.seed, first, world.rank, random)
    progress = Progress("Training", steps.pairs, "pairs", done=steps.pairs_before(first))
    compiled = lora.layers_compiled(model, config.compile, steps.total)
    with metrics_log(folder if world.first else None, first) as log, compiled:
        stop.patient = True
        for step, pairs in enumerate(steps.from_step(first), start=first):
            if config.reference_sync and step and step % config.reference_sync == 0:
                moved = lora.copy_adapter(model)  # TR-DPO, arXiv 2404.09656, hard update
            mine, budget = dpo.within_memory(partial(gradients, pairs), budget, optimizer.zero_grad)
            world.sum_gradients(parameters)
            parts = world.gather((*mine, stop.received))
            metrics = dpo.step_metrics(torch.cat([part[0] for part in parts], 1))
            tokens["as_pairs"] += sum(part[1] for part in parts)
            tokens["as_tries"] += sum(part[2] for part in parts)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
            rate = config.lr * dpo.schedule_factor(step, steps.total, warmup, config.schedule)
            metrics |= {"grad_norm": norm, "learning_rate": rate}
            if trouble := dpo.not_finite(metrics):
                trouble = f"step {step}: {trouble}; {dpo.where_not_finite(model, train, pairs)}"
                if not config.skip_nonfinite:
                    raise dpo.NumericError(f"{trouble}; try a lower --lr or --dtype float32")
                print(f"Skipped {trouble}", flush=True)
                skipped += 1
                metrics = {"skipped": skipped}
            else:
                for group in optimizer.param_groups:
                    group["lr"] = rate * ratios[group["name"]]
                optimizer.step()
            optimizer.zero_grad()
            log.write(json.dumps({"step": step, **metrics}) + "\n")
            log.flush()
            progress.advance(len(pairs), dpo.in_short(metrics))
            stopped = max(part[3] for part in parts)
            if stopped or (step + 1) % config.save_every == 0 or step + 1 == steps.total:
                save(step + 1)
            if stopped:
                raise Stopped(stopped)
    stop.patient = False
    progress.close()
    clock.lap("train")

    # What it changed, on questions it has not seen.
    model.eval()
    after = dpo.believed(held_out, scored("Evaluation", {}, sides[0]))
    results = dpo.compare(before, after)
    clock.lap("evaluate")
    if not world.first:
        return
    write_json(folder / "evaluation.json", results)

    # The adapter, and the merged model.
    lora.save_adapter(model, folder / "adapter", base.name, base.revision)
    if config.merge:
        merge_dtype = None if config.merge_dtype == "auto" else getattr(torch, config.merge_dtype)
        rounding = lora.merge_rounding(model, merge_dtype)
        lora.save_merged(lora.merge_lora(model, merge_dtype), base, folder / "merged")
        print(
            f"Merged: {rounding.changed:.0%} of the patched weights moved; "
            f"rounding changed their deltas by {rounding.error:.0%}."
        )
    clock.lap("merge")
    facts = summary(config, base.name, device, steps, clock, tokens, skipped)
    write_json(folder / "summary.json", facts)
    print_summary(folder, results, facts)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return guarded("train.py", lambda stop, world: run(parse(argv), stop, world), argv)


if __name__ == "__main__":
    sys.exit(main())
