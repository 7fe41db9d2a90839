"""Fine-tune a causal language model with DPO through LoRA, and merge.

`python train.py --rank 8 --alpha 16` does the whole job, in the order of `run` below.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import transformers
from platformdirs import user_cache_path

import data
import dpo
import lora
from config import Config, UsageError, parse
from console import Progress, print_plan, print_summary, track
from workspace import Clock, hub_token, new_folder, peak_memory, write_json

TOKENS = {"train": 2048, "score": 4096, "plain": 512}  # fed at once; plain rows keep all logits


def run(config: Config) -> Path:
    """Do the whole job and return the output folder."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = new_folder(config.output_dir)
    token = hub_token()
    torch.manual_seed(config.seed)
    clock = Clock()

    # The questions. What `auto` stands for is settled here, so that config.yaml repeats the run.
    if config.data == "auto":
        config.data, why = data.choose_source()
        print(f"Data: {config.data}, since {why}; --data chooses other questions.", flush=True)
    preferences = data.load_preferences(config.data, token)

    # The frozen base model.
    device = lora.choose_device(config.device)
    if config.model == "auto":
        config.model, why = lora.choose_model(device, token)
        print(f"Model: {config.model}, since {why}; --model chooses another.", flush=True)
    dtype = lora.choose_dtype(config.dtype, device)
    base = lora.load_base(
        config.model, device, dtype, config.attention, config.revision, token, config.quantize
    )
    model = base.model
    if "gemma" in model.config.model_type:
        print(lora.GEMMA_TERMS)

    # Questions -> token ids, some of them held out.
    if config.template == "auto":
        config.template = "chat" if base.tokenizer.chat_template else "plain"
    limit = config.max_length or getattr(
        model.config.get_text_config(), "max_position_embeddings", None
    )
    encoding = data.encode(preferences, base.tokenizer, config.template, limit)
    train, held_out = data.split_by_question(encoding.questions, config.eval_fraction, config.seed)

    # Adapters on the base, which stays as it is and is the reference.
    check = dpo.check_sharing(model, train + held_out)
    fingerprint = dpo.base_fingerprint(model)
    if config.adapter:
        lora.load_adapter(model, config.adapter)
    else:
        lora.add_lora(
            model,
            config.rank,
            config.alpha,
            config.dropout,
            lora.as_targets(config.target_modules),
            config.rslora,
            config.patterns("rank_pattern", int),
            config.patterns("alpha_pattern", float),
        )
    if config.reference_adapter:  # the reference is the policy as it stands now
        fingerprint = dpo.base_fingerprint(model)
    cache = user_cache_path("trie-dpo") / "reference" / f"{fingerprint}.json"
    parameters = lora.adapter_parameters(model)
    orders = [
        data.epoch_order(train, config.seed, epoch, config.shuffle)
        for epoch in range(config.epochs)
    ]
    per_step = config.batch_size * config.grad_accum
    steps = [pairs for order in orders for pairs in data.optimizer_steps(order, per_step)]
    steps = steps[: config.max_steps]
    pairs_trained = sum(map(len, steps))
    tokens = data.count_tokens(train, steps, check.shared)
    print_plan(config, base, encoding, len(held_out), check, pairs_trained, len(steps), tokens)
    new_folder(str(folder)).mkdir(parents=True, exist_ok=True)
    config.save(folder / "config.yaml")
    clock.lap("load")

    # The reference's log-probs, once per distinct answer; for held-out questions, "before".
    known = dpo.read_cache(cache)
    wanted = [(q.prompt, q.answers) for q in held_out]
    used = sorted({q for pairs in steps for q, _ in pairs})
    if not config.reference_free:
        wanted += [(train[q].prompt, train[q].trained) for q in used]
    budget = TOKENS["score"] if check.shared else TOKENS["plain"]
    batches = dpo.scoring_batches(known, wanted, budget, check.shared)
    with nullcontext() if config.reference_adapter else lora.adapters_disabled(model):
        new = dpo.score_answers(
            model, track(batches, "Reference", "answers", lambda b: b[1].answers)
        )
    reference_scores = known | new
    if new:
        try:
            dpo.write_cache(cache, reference_scores)
        except OSError as error:
            print(f"The reference is not cached: {error}", flush=True)
    before = dpo.evaluate(held_out, reference_scores)
    reference = {
        q: [0.0] * len(train[q].trained) if config.reference_free
        else dpo.scores_of(reference_scores, train[q])
        for q in used
    }  # fmt: skip
    clock.lap("reference")

    # The loop.
    ratios = {"A": 1.0, "B": config.lora_plus_ratio}  # LoRA+, arXiv 2402.12354: B learns faster
    groups = [{"params": lora.adapter_parameters(model, name), "name": name} for name in ratios]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    warmup = round(config.warmup_ratio * len(steps))
    lora.train_adapters(model)
    progress = Progress("Training", pairs_trained, "pairs")
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for step, pairs in enumerate(steps):
            seen = []
            for batch in data.step_batches(train, pairs, TOKENS["train"], check.shared):
                logps = dpo.answer_logps(model, batch.trees.to(device))  # (A,)
                anchors = torch.tensor([reference[q][a] for q, a in batch.answers], device=device)
                chosen, rejected = batch.chosen.to(device), batch.rejected.to(device)  # (P,)
                result = dpo.dpo_loss(
                    logps[chosen], logps[rejected], anchors[chosen], anchors[rejected],
                    config.beta, config.loss, config.label_smoothing,
                )  # fmt: skip
                # A pair weighs 1 / (pairs of the step), however micro-batches are cut.
                (result.loss.sum() / len(pairs)).backward()
                seen.append(dpo.pair_columns(result, logps[chosen], logps[rejected]))
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            if not norm.isfinite():
                raise dpo.NumericError(
                    f"the gradient of step {step} is not finite, so training stopped before it; "
                    "try a lower --lr or --dtype float32"
                )
            rate = config.lr * dpo.schedule_factor(step, len(steps), warmup, config.schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate * ratios[group["name"]]
            optimizer.step()
            optimizer.zero_grad()
            metrics = dpo.step_metrics(torch.cat(seen, 1))
            metrics |= {"grad_norm": float(norm), "learning_rate": rate}
            log.write(json.dumps({"step": step, **metrics}) + "\n")
            log.flush()
            accuracy = metrics["rewards/accuracies"]
            progress.advance(len(pairs), f"loss {metrics['loss']:.3f}, accuracy {accuracy:.2f}")
    progress.close()
    clock.lap("train")

    # What it changed, on questions it has not seen.
    model.eval()
    batches = dpo.scoring_batches({}, wanted[: len(held_out)], budget, check.shared)
    after = dpo.evaluate(
        held_out,
        dpo.score_answers(model, track(batches, "Evaluation", "answers", lambda b: b[1].answers)),
    )
    results = {"questions": len(held_out), "before": before._asdict(), "after": after._asdict()}
    write_json(folder / "evaluation.json", results)
    clock.lap("evaluate")

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
    busy = clock.seconds["reference"] + clock.seconds["train"]
    summary = {
        "pairs": pairs_trained,
        "steps": len(steps),
        "seconds": clock.seconds,
        "pairs_per_second": pairs_trained / busy,
        "peak_memory_bytes": peak_memory(device),
        "tokens": tokens,
        "model": base.name,
        "data": config.data,
        "merged": config.merge,
    }
    write_json(folder / "summary.json", summary)
    print_summary(folder, results, summary)
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        run(parse(argv))
    except KeyboardInterrupt:
        print("\ntrain.py: interrupted; the run's folder holds what was finished", file=sys.stderr)
        return 130
    except (UsageError, data.DataError, lora.ModelError, dpo.NumericError) as error:
        if debug:
            raise
        print(f"train.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, dpo.NumericError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
