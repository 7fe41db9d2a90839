"""The whole run on a small model: what it leaves, what it must not depend on."""

import json
import math
import shutil
import weakref
from typing import get_args

import pytest
import torch
import transformers
import yaml
from conftest import small_model
from safetensors.torch import load_file, save_file

import dpo
import train
from data import DataError
from dpo import Budgets, Metrics
from dpo.losses import Loss
from lora import ModelError, load_adapter, lora_layers
from run.__main__ import main as command
from run.config import Config, parse
from run.processes import World


@pytest.fixture(autouse=True)
def own_cache(private_cache, plain_pictures):
    return private_cache


def settings(model_folder, questions_csv, folder, **more):
    defaults = {
        "model": str(model_folder), "data": str(questions_csv), "output_dir": str(folder),
        "dtype": "float32", "device": "cpu", "dropout": 0.0, "epochs": 2, "lr": 1e-3,
        "scale": "1", "beta": 0.1,
    }  # fmt: skip
    return Config(**(defaults | more))


@pytest.fixture
def run(model_folder, questions_csv, tmp_path):
    """Run with some settings into a folder of that name; return the folder."""

    def run(name, **more):
        return train.run(settings(model_folder, questions_csv, tmp_path / name, **more))

    return run


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(first, second, tolerance):
    """Two adapters, relative to their size."""
    return all(
        (first[k] - second[k]).norm() <= tolerance * first[k].norm().clamp(min=1e-6) for k in first
    )


def test_a_run_leaves_the_files_of_the_contract(run, model_folder):
    folder = run("out")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "adapter", "checkpoints", "config.yaml", "curves.png", "dial.png",
        "evaluation.json", "evaluation.png", "merged", "metrics.jsonl", "questions.json",
        "report.html", "samples.json", "summary.json",
    ]  # fmt: skip
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["questions"] == 1  # a fifth of five
    for when in ("before", "after"):
        measures = evaluation[when]
        assert set(measures) == set(Metrics._fields) == set(evaluation["p_values"])
        assert all(0 <= value <= 1 for name, value in measures.items() if name != "margin")
        for name, (low, high) in evaluation["intervals"][when].items():
            assert low <= measures[name] <= high
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["seconds"]) == {"load", "reference", "prepare", "train", "evaluate", "merge"}
    assert summary["steps"] == len(log(folder)) == 4  # 10 pairs an epoch, 8 a step, 2 epochs
    assert summary["pairs"] == 20
    assert summary["tokens"]["as_pairs"] > 2 * summary["tokens"]["as_tries"]
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_folder)


def test_the_merged_model_is_base_plus_adapter_and_loads_elsewhere(run, model_folder):
    folder = run("out", epochs=4)
    tokens = torch.arange(1, 20)[None]
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged").eval()
    ours = transformers.AutoModelForCausalLM.from_pretrained(model_folder).eval()
    base = ours(tokens).logits.detach()
    load_adapter(ours, folder / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, ours(tokens).logits, rtol=1e-4, atol=1e-4)
        assert (ours(tokens).logits - base).abs().max() > 1e-3
    assert transformers.AutoTokenizer.from_pretrained(folder / "merged").eos_token == "</s>"


def test_the_first_step_of_a_shuffled_run_has_loss_ln_2_and_rewards_0(run):
    first = log(run("out", shuffle="pairs", max_steps=1))[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("shuffle", ["questions", "pairs"])
def test_nothing_depends_on_how_a_step_is_cut_into_micro_batches(run, monkeypatch, shuffle):
    """8 pairs at once, as 4 x 2 by the flags, and unevenly by a small token budget."""
    whole = adapter(run("whole", batch_size=8, grad_accum=1, shuffle=shuffle))
    by_flags = adapter(run("flags", batch_size=2, grad_accum=4, shuffle=shuffle))
    monkeypatch.setattr("run.plan.DEFAULT", Budgets(train=60))
    uneven = adapter(run("uneven", batch_size=8, grad_accum=1, shuffle=shuffle))
    monkeypatch.setattr("run.plan.DEFAULT", Budgets(train=1))
    single = adapter(run("single", batch_size=8, grad_accum=1, shuffle=shuffle))
    assert same(whole, by_flags, 0)
    assert same(whole, uneven, 1e-3) and same(whole, single, 1e-3)  # after Adam, which amplifies


def test_logged_metrics_do_not_depend_on_micro_batches(run, monkeypatch):
    whole = log(run("whole"))
    monkeypatch.setattr("run.plan.DEFAULT", Budgets(train=1))
    single = log(run("single"))
    assert whole[0]["grad_norm"] == pytest.approx(single[0]["grad_norm"], rel=1e-5)
    for a, b in zip(whole, single, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


class Witnessed(torch.autograd.Function):
    """The identity; what is hung on its context lives as long as the graph that it is part of."""

    @staticmethod
    def forward(ctx, logps, witness):
        ctx.witness = witness
        return logps.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Witness:
    """Something that a weak reference can point to."""


def test_the_graph_of_a_micro_batch_is_gone_before_the_next_one_is_made(run, monkeypatch):
    """Its tensors go with the backward pass; its thousand nodes would split up the memory."""
    monkeypatch.setattr("run.plan.DEFAULT", Budgets(train=1))
    real, graphs, left = train.policy_logps, [], []

    def watched(model, batch):
        left.append(sum(graph() is not None for graph in graphs))
        graphs.append(weakref.ref(witness := Witness()))
        logps, held = real(model, batch)
        return Witnessed.apply(logps, witness), held

    monkeypatch.setattr(train, "policy_logps", watched)
    run("out", max_steps=2, merge=False)
    assert len(graphs) > 2 and left == [0] * len(graphs)


def test_plain_rows_train_to_the_same_adapter_as_tries(run, monkeypatch):
    """Without eq. (25): at the first step each c is 0, where rounding decides the slope of max."""
    tries = adapter(run("tries", anchor_chosen=0.0))
    monkeypatch.setattr(dpo, "check_sharing", lambda *_: dpo.SelfCheck("logits", "for the test"))
    assert same(tries, adapter(run("plain", anchor_chosen=0.0)), 1e-3)


@pytest.mark.parametrize(
    "more",
    [
        *({"loss": name} for name in get_args(Loss) if name not in ("sigmoid", "exo", "sft")),
        {"loss": "exo", "label_smoothing": 0.01},
        {"loss": "sigmoid=0.8,sft=0.2"},
        {"loss": "ranking,orpo=0.5"},
        {"divergence": "js"},
        {"divergence": "alpha", "divergence_alpha": 0.3, "loss": "group"},
        {"sft_weight": 0.5},
        {"weight_by": "question"},
        {"reference_free": True, "beta": 1.0},
    ],
    ids=str,
)
def test_every_loss_falls_and_raises_the_margin(run, more):
    """But discopop: at m = 0 its slope is 4.25 - 5 ln 2 > 0, which pushes the margin down."""
    # every pair in a step: 20 questions are more than there are
    lines = log(run("out", epochs=6, batch_size=20, grad_accum=1, batch_by="questions", **more))
    first, last = lines[0], lines[-1]
    assert len(lines) == 6 and last["loss"] < first["loss"]
    rises = last["rewards/margins"] > first["rewards/margins"]
    assert rises == (more.get("loss") != "discopop")


@pytest.mark.parametrize(
    "more",
    [
        {"loss": "group"},
        {"weight_by": "question"},
        {"loss": "ranking", "batch_by": "questions"},
        {"loss": "group,orpo"},
    ],
    ids=str,
)
def test_losses_on_whole_questions_do_not_depend_on_micro_batches_or_sharing(
    run, monkeypatch, more
):
    more = more | {"anchor_weight": 0.0}  # tests/test_dpo_anchors.py has theirs
    whole = adapter(run("whole", **more))
    monkeypatch.setattr("run.plan.DEFAULT", Budgets(train=1))
    assert same(whole, adapter(run("single", **more)), 1e-3)
    monkeypatch.setattr(dpo, "check_sharing", lambda *_: dpo.SelfCheck("logits", "for the test"))
    assert same(whole, adapter(run("plain", **more)), 1e-3)


def test_weighing_by_question_is_another_run_than_by_pair(run):
    assert not same(adapter(run("pair")), adapter(run("question", weight_by="question")), 1e-3)


def test_a_moving_reference_starts_every_period_at_zero_margin(run):
    """TR-DPO: right after the policy became the reference both agree, and the loss is ln 2."""
    lines = log(run("out", reference_sync=2, epochs=4, batch_size=1))
    for line in lines:
        at_rest = line["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert at_rest == (line["step"] % 2 == 0)


def test_the_same_settings_give_the_same_run_and_its_config_repeats_it(run, tmp_path):
    first = run("first", dropout=0.3)
    second = run("second", dropout=0.3)
    again = tmp_path / "again"
    argv = ["--config", str(first / "config.yaml"), "--output-dir", str(again)]
    train.run(parse(argv))
    assert same(adapter(first), adapter(second), 0) and same(adapter(first), adapter(again), 0)
    assert not same(adapter(first), adapter(run("other", dropout=0.3, seed=5)), 1e-3)


def test_a_second_run_finds_the_reference_in_the_cache(run, capsys):
    run("first")
    assert "Reference: " in capsys.readouterr().out
    run("second", lr=1e-4, rank=2)
    assert "Reference: " not in capsys.readouterr().out


@pytest.mark.parametrize("free", [{"reference_free": True}, {"loss": "simpo"}, {"loss": "sft"}])
def test_reference_free_training_starts_from_the_policys_own_margin(run, free):
    first = log(run("free", max_steps=1, beta=0.1, **free))[0]
    assert first["rewards/chosen"] == pytest.approx(0.1 * first["logps/chosen"], rel=1e-4)


def test_a_mixture_of_one_term_of_weight_1_is_that_loss_and_the_sft_term_that_of_its_weight(run):
    assert same(adapter(run("name")), adapter(run("term", loss="sigmoid=1")), 0)
    mixed = adapter(run("mixed", loss="sigmoid,sft=0.5"))
    assert same(mixed, adapter(run("weight", sft_weight=0.5)), 1e-5)


def test_the_sft_loss_makes_the_chosen_answers_likely(run):
    first, *_, last = log(
        run("out", loss="sft", epochs=6, batch_size=20, grad_accum=1, batch_by="questions")
    )
    assert last["loss"] < first["loss"] and last["logps/chosen"] > first["logps/chosen"]


def test_training_prefers_the_chosen_answers(run):
    losses = [step["loss"] for step in log(run("long", epochs=30, lr=5e-3))]
    assert losses[-1] < 0.2 < math.log(2)


def test_rslora_scales_by_the_root_of_the_rank_and_saves_it_portably(run):
    folder = run("rs", rank=4, alpha=6.0, rslora=True)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 12 and not config["use_rslora"]  # 12 / 4 = 6 / sqrt 4


def test_no_merge_leaves_no_merged_model_and_merge_dtype_is_that_of_its_weights(run):
    assert not (run("none", merge=False) / "merged").exists()
    config = json.loads((run("half", merge_dtype="bfloat16") / "merged/config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_an_architecture_that_reads_no_tries_is_trained_all_the_same(
    run, tmp_path, tokenizer, capsys
):
    folder = tmp_path / "bloom"
    torch.manual_seed(0)
    size = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
    config = transformers.BloomConfig(vocab_size=len(tokenizer), **size)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    out = run("out", model=str(folder), target_modules=("query_key_value",), epochs=30, lr=3e-2)
    assert "trained as plain rows" in capsys.readouterr().out
    assert log(out)[-1]["loss"] < 0.4 < math.log(2)


@pytest.mark.parametrize(
    "more, complaint",
    [
        ({"model": "/no/such/model"}, "no such folder"),
        ({"model": "nobody/nothing"}, "not in the local cache, and the Hub cannot be reached"),
        ({"model": "a b"}, "neither a folder here nor a model on the Hub"),
        ({"device": "cuda"}, "--device cuda cannot be used here"),
        ({"device": "potato"}, "--device potato"),
        ({"data": "nowhere.csv"}, "no file nowhere.csv"),
        ({"rank": 20}, "rank 20 does not fit"),
        ({"target_modules": ("query",)}, "'query' matches no module"),
        ({"template": "chat"}, "no chat template"),
        ({"max_length": 3}, "at most 3 tokens are read"),
        ({"eval_fraction": 0.01}, "--eval-fraction 0.01"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(run, tmp_path, more, complaint):
    if torch.cuda.is_available() and more == {"device": "cuda"}:
        pytest.skip("there is a GPU here")
    with pytest.raises((DataError, ModelError), match=complaint):
        run("out", **more)
    assert not (tmp_path / "out").exists()


def test_a_model_without_safetensors_or_configuration_is_refused(run, tmp_path, model_folder):
    bad = tmp_path / "bad"
    bad.mkdir()
    with pytest.raises(ModelError, match="no config.json"):
        run("out", model=str(bad))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_folder / name, bad)
    (bad / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no \*.safetensors"):
        run("out", model=str(bad))
    (bad / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        run("out", model=str(bad))


def test_a_model_with_weights_missing_is_refused(run, tmp_path, model_folder):
    """transformers would go on with random ones and a warning."""
    bad = tmp_path / "bad"
    shutil.copytree(model_folder, bad)
    weights = load_file(bad / "model.safetensors")
    weights = {k: v for k, v in weights.items() if "layers.2.mlp" not in k}
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"incomplete: 3 weights .* model.layers.2.mlp"):
        run("out", model=str(bad))


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_applied(
    run, tmp_path, monkeypatch
):
    real, calls = train.dpo_loss, []

    def poisoned(*args, **more):
        calls.append(args)
        result = real(*args, **more)
        return result._replace(loss=result.loss * math.nan) if len(calls) == 2 else result

    monkeypatch.setattr(train, "dpo_loss", poisoned)
    with pytest.raises(
        dpo.NumericError,
        match="step 1: loss, grad_norm not finite; questions .*questions.csv, line",
    ):
        run("out")
    assert not (tmp_path / "out" / "adapter").exists()


def test_where_a_step_is_not_finite_is_looked_for_without_tries_if_those_were_refused(
    run, monkeypatch
):
    """A model that takes no tree mask would end the run with its own error instead."""
    real, built = dpo.selfcheck.question_tries, []

    def watched(prompt, answers, way="tries"):
        built.append(way)
        return real(prompt, answers, way)

    def poisoned(*args, **more):
        result = dpo.dpo_loss(*args, **more)
        return result._replace(loss=result.loss * math.nan)

    monkeypatch.setattr(dpo, "check_sharing", lambda *_: dpo.SelfCheck("logits", "for the test"))
    monkeypatch.setattr(dpo.selfcheck, "question_tries", watched)
    monkeypatch.setattr(train, "dpo_loss", poisoned)
    with pytest.raises(dpo.NumericError, match="step 0: loss, .* the largest activation, .* in "):
        run("out")
    assert set(built) == {"logits"}


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(run, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("run.folder.cache_folder", lambda name: tmp_path / "file" / name)
    assert (run("out", max_steps=1) / "summary.json").exists()
    assert "The reference is not cached" in capsys.readouterr().out


def test_few_steps_score_the_reference_of_their_questions_alone(run, monkeypatch):
    real, scored = World.scores, []

    def counted(world, scorer, label, to_score, *known):
        scored.append(sum(len(answers) for answers in to_score))
        return real(world, scorer, label, to_score, *known)

    monkeypatch.setattr(World, "scores", counted)
    run("out", max_steps=1, batch_size=1, grad_accum=1)
    # One question held out and one trained. Then the reference knows the held-out one and reads 8
    # neutral paragraphs, and the adapter does both at four sizes.
    assert scored == [2, 1, 8, *[8, 1] * 4]


def test_a_revision_of_a_local_model_is_refused(run):
    with pytest.raises(ModelError, match="--revision main is for models of the Hub"):
        run("out", revision="main")


def test_the_best_adapter_by_the_held_out_questions_is_the_one_that_is_left(run):
    """A learning rate that overshoots: the best of the evaluations is not the last."""
    folder = run("best", lr=0.1, schedule="constant", epochs=6, eval_every=2, best="mc2")
    seen = {line["step"] + 1: line["eval/mc2"] for line in log(folder) if "eval/mc2" in line}
    assert list(seen) == [2, 4, 6, 8, 10, 12]
    best = max(seen, key=seen.__getitem__)
    assert best != 12
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"] == {"step": best, "metric": "mc2", "value": seen[best]}
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["after"]["mc2"] == pytest.approx(seen[best], rel=1e-5)
    last = run("last", lr=0.1, schedule="constant", epochs=6)
    assert json.loads((last / "summary.json").read_text())["best"] == {}
    assert log(last)[-1]["loss"] == log(folder)[-1]["loss"]  # evaluating changes no step


def test_the_saved_settings_are_complete(run):
    saved = yaml.safe_load((run("out", rank=2) / "config.yaml").read_text())
    assert saved["rank"] == 2 and saved["target_modules"] == ["q_proj", "v_proj"]
    where = {"output_dir", "debug", "resume", "plan", "push_to_hub", "private"}
    assert set(saved) == set(vars(Config())) - where


def test_the_saved_settings_say_what_auto_became(run, monkeypatch, model_folder, questions_csv):
    """So that `--config` repeats the run where the Hub, the memory or the tokenizer are others."""
    monkeypatch.setattr("data.choose_source", lambda: (str(questions_csv), "of a test"))
    monkeypatch.setattr("lora.choose_model", lambda device: (str(model_folder), "of a test"))
    folder = run("out", model="auto", data="auto", max_steps=1, merge=False)
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    became = {"model": str(model_folder), "data": [str(questions_csv)]}
    became |= {"template": "plain", "checkpointing": "off"}
    assert {name: saved[name] for name in became} == became
    facts = json.loads((folder / "summary.json").read_text())
    assert (facts["model"], facts["data"]) == (str(model_folder), str(questions_csv))


def test_the_small_models_adapters_are_found_where_they_should_be(run):
    keys = adapter(run("out", merge=False))
    assert len(keys) == 2 * 2 * 4
    assert not lora_layers(small_model())


def test_lora_plus_moves_b_by_its_ratio(run):
    """Adam's first step is the learning rate in each coordinate, whatever the gradient's size."""
    settings = {"max_steps": 1, "warmup_ratio": 0.0, "merge": False, "lr": 1e-4}
    for ratio in (1.0, 16.0):
        tensors = adapter(run(f"ratio-{ratio}", lora_plus_ratio=ratio, **settings))
        b = torch.cat([t.flatten() for k, t in tensors.items() if "lora_B" in k])
        assert b.abs().max().item() == pytest.approx(1e-4 * ratio, rel=1e-2)


def test_targets_ranks_and_alphas_are_taken_from_the_command_line(model_folder, questions_csv, run):
    config = parse(["--target-modules", "all-linear", "--rank-pattern", "v_proj=2", "mlp.*=1",
                    "--alpha-pattern", "o_proj=3"])  # fmt: skip
    settings = {k: getattr(config, k) for k in ("target_modules", "rank_pattern", "alpha_pattern")}
    folder = run("all", max_steps=1, rank=4, **settings)
    saved = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert len(saved["target_modules"]) == 7
    assert saved["rank_pattern"]["model.layers.0.self_attn.v_proj"] == 2
    assert saved["rank_pattern"]["model.layers.3.mlp.up_proj"] == 1
    assert saved["alpha_pattern"] == {f"model.layers.{i}.self_attn.o_proj": 3 for i in range(4)}


def test_a_continued_run_starts_from_the_adapter_and_leaves_its_file_alone(run):
    first = run("first", rank=4, epochs=6, lr=5e-3)
    weights = (first / "adapter" / "adapter_model.safetensors").read_bytes()
    folder = str(first / "adapter")
    onward = run("onward", adapter=folder, max_steps=1)
    step = log(onward)[0]
    assert step["loss"] == pytest.approx(math.log(2), abs=1e-5)  # against itself, nothing
    assert adapter(onward).keys() == adapter(first).keys()
    against_base = log(run("base", adapter=folder, reference="base", max_steps=1))[0]
    assert against_base["loss"] < math.log(2) - 0.05  # the adapter has learned already
    assert against_base["logps/chosen"] == pytest.approx(step["logps/chosen"], rel=1e-4)
    assert (first / "adapter" / "adapter_model.safetensors").read_bytes() == weights


def test_the_reference_cache_tells_base_and_adapter_apart(run):
    folder = str(run("first", epochs=6, lr=5e-3) / "adapter")
    run("one", adapter=folder, max_steps=1)
    step = log(run("two", adapter=folder, reference="base", max_steps=1))[0]
    assert step["loss"] < math.log(2) - 0.05


@pytest.mark.parametrize("reference", ["auto", "base"])
def test_before_is_what_a_continued_run_says_it_is(run, capsys, reference):
    """On the screen, in the card and in the figures: the first run's "after", or its "before"."""
    first = run("first", epochs=6, lr=5e-3, merge=False)
    capsys.readouterr()
    more = {"adapter": str(first / "adapter"), "reference": reference, "merge": False}
    onward = run("onward", max_steps=1, **more)
    out = capsys.readouterr().out
    starts, expected, says = {
        "auto": ("the adapter that training starts from (--reference base takes the bare base)\n",
                 "after", "the adapter that training starts from"),
        "base": ("the bare base, without the adapter that training starts from\n",
                 "before", "the bare base, without the adapter that training starts from"),
    }[reference]  # fmt: skip
    assert (
        f"\nreference   {starts}" in out
        and f"1 questions, few: their intervals are rough; before: {says}\n" in out
    )
    old, new = (json.loads((f / "evaluation.json").read_text()) for f in (first, onward))
    assert old["before"]["margin"] != pytest.approx(old["after"]["margin"], abs=1e-2)
    assert new["before"] == pytest.approx(old[expected], abs=1e-4)
    card = (onward / "README.md").read_text()
    assert f" Before: {says}.\n" in card and "\nbefore: " in card and "\nbase: " not in card
    kept = yaml.safe_load((onward / "config.yaml").read_text())["reference"]
    assert kept == {"auto": "adapter", "base": "base"}[reference]  # what auto became
    plain = (first / "README.md").read_text()
    assert "Before: " not in plain and "\nbase: " in plain


def test_commands_that_know_no_starting_adapter_say_that_they_compare_with_the_base(run, capsys):
    first = run("first", merge=False, max_steps=1)
    onward = run("onward", merge=False, max_steps=1, adapter=str(first / "adapter"))
    alone = f"Compared with the bare base, without {first / 'adapter'}, which the run started from."
    for folder, expected in ((first, 0), (onward, 1)):
        for argv in (["evaluate"], ["sample", "--max-tokens", "2"]):
            capsys.readouterr()
            assert command([argv[0], str(folder), *argv[1:]]) == 0
            assert capsys.readouterr().out.count(alone) == expected


def test_a_rate_above_what_examples_take_gets_one_line_and_the_run_goes_on(
    run, capsys, monkeypatch
):
    """As if 0.003 billion parameters were many; at the model's true size nothing is said."""
    run("quiet", max_steps=1, merge=False, lr=1e-3)
    assert "watch the drift" not in capsys.readouterr().out
    monkeypatch.setattr("run.rates.SMALL", 1)
    run("loud", max_steps=1, merge=False, lr=1e-3)
    out = capsys.readouterr().out
    assert out.count("\nnote        --lr 0.001 is 5 times what the examples") == 1


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_quantised_base_trains_and_merges(run, tmp_path, tokenizer, kind):
    base = tmp_path / "wide"
    small_model("gemma2", vocab_size=len(tokenizer), hidden_size=64, scale=0.1).save_pretrained(
        base
    )
    tokenizer.save_pretrained(base)
    folder = run("out", model=str(base), dtype="bfloat16", quantize=kind, epochs=30, lr=5e-3)
    assert log(folder)[-1]["loss"] < 0.4
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
