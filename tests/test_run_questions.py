"""Runs on other questions than one file's: several sources, one apart, none held out, all pairs."""

import datetime
import json
from dataclasses import replace

import pytest
import yaml
from conftest import CHAT_TEMPLATE, small_tokenizer
from safetensors.torch import load_file

import train
from run import inputs, publish
from run.__main__ import main
from run.config import Config
from run.errors import UsageError

# 5 questions with K incorrect and C correct answers, the best one among them:
#   K = 2, 3, 3, 3, 2 = 13 pairs; C = 2 each, so C K = 26 pairs in all


@pytest.fixture(autouse=True)
def own_cache(private_cache, plain_pictures):
    return private_cache


@pytest.fixture
def run(model_folder, questions_csv, tmp_path):
    def run(name, **more):
        settings = {
            "model": str(model_folder), "data": str(questions_csv), "dtype": "float32",
            "output_dir": str(tmp_path / name), "device": "cpu", "dropout": 0.0, "lr": 1e-3,
            "scale": "1",
        }  # fmt: skip
        return train.run(Config(**(settings | more)))

    return run


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture
def nothing_held_out(run):
    return run("all", eval_fraction=0.0)


def test_a_run_that_holds_nothing_out_trains_on_all_and_says_that_nothing_was_measured(
    nothing_held_out, capsys
):
    assert summary(nothing_held_out)["pairs"] == 13
    assert json.loads((nothing_held_out / "evaluation.json").read_text()) == {"questions": 0}
    assert not (nothing_held_out / "evaluation.png").exists()
    assert (nothing_held_out / "merged").is_dir() and (nothing_held_out / "curves.png").exists()
    card = (nothing_held_out / "README.md").read_text()
    assert "No question was held out, so nothing was measured." in card
    assert "0 of 5 questions were held out" in card and "on 13 pairs of 5 questions" in card
    assert "What it cost" not in card and "evaluation.png" not in card


def test_its_summary_on_the_screen_says_so_too(run, capsys):
    run("all", eval_fraction=0.0)
    out = capsys.readouterr().out
    assert "Nothing was held out, so nothing was measured" in out
    assert "none: everything is trained on" in out and "evaluation.png" not in out


def test_the_other_commands_take_such_a_run(nothing_held_out, questions_csv, capsys):
    cpu = ["--device", "cpu"]
    assert main(["evaluate", str(nothing_held_out), *cpu]) == 2
    assert "held no questions out; name some with --data" in capsys.readouterr().err
    assert main(["evaluate", str(nothing_held_out), "--data", str(questions_csv), *cpu]) == 0
    assert main(["sample", str(nothing_held_out), "--max-tokens", "2", "--count", "1"]) == 0
    assert "tuned" in capsys.readouterr().out
    check, _ = publish.checked(inputs.finished_run(nothing_held_out), nothing_held_out / "merged")
    assert check.questions == 5


def test_one_question_alone_trains_where_nothing_is_held_out(run, tmp_path):
    rows = tmp_path / "one.jsonl"
    rows.write_text('{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}\n')
    assert summary(run("one", data=str(rows), eval_fraction=0.0))["pairs"] == 1


def test_evaluations_on_the_way_need_something_to_evaluate(capsys):
    assert train.main(["--eval-fraction", "0", "--eval-every", "2"]) == 2
    assert "--eval-every needs questions to measure" in capsys.readouterr().err


OTHERS = [
    {"prompt": "Is rain wet?", "chosen": "Rain is wet.", "rejected": "Rain is dry."},
    {"prompt": "Can stones swim?", "chosen": "Stones sink.", "rejected": "Stones swim."},
    {"prompt": "do bats  see", "chosen": "Bats see.", "rejected": "Bats are blind."},  # once more
]


@pytest.fixture
def others(tmp_path):
    path = tmp_path / "others.jsonl"
    path.write_text("\n".join(map(json.dumps, OTHERS)))
    return path


def test_held_out_questions_may_have_a_source_of_their_own(run, others, capsys):
    folder = run("apart", eval_data=str(others))
    assert summary(folder)["pairs"] == 13  # all of --data
    assert json.loads((folder / "evaluation.json").read_text())["questions"] == 3
    out = capsys.readouterr().out
    assert "3 questions; 1 of their prompts" in out  # the bats, compared without spacing
    card = (folder / "README.md").read_text()
    assert "on 13 pairs of 5 questions from questions\\.csv" in card
    assert "The held-out questions are from others\\.jsonl." in card
    assert "drawn by the seed" not in card


def test_sources_and_their_shares_train_as_one_and_the_card_has_their_counts(
    run, others, questions_csv, tmp_path
):
    folder = run("both", data=(f"{questions_csv}:0.4", f"{others}:2"), eval_fraction=0.0)
    assert summary(folder)["sources"] == [
        {"source": str(questions_csv), "questions": 2, "held_out": False},  # .4 of 5
        {"source": str(others), "questions": 2, "held_out": False},
    ]
    card = (folder / "README.md").read_text()
    assert "questions\\.csv (2 questions), others\\.jsonl (2 questions)" in card.replace(
        "\\(", "("
    ).replace("\\)", ")")
    again = tmp_path / "again"
    argv = ["--config", str(folder / "config.yaml"), "--output-dir", str(again)]
    assert train.main(argv) == 0
    first, second = (load_file(f / "adapter/adapter_model.safetensors") for f in (folder, again))
    assert all((first[name] == second[name]).all() for name in first)


def test_a_yaml_file_names_sources_as_the_command_line_does(run, others, questions_csv, tmp_path):
    folder = run("both", data=(str(questions_csv), str(others)), eval_fraction=0.0, max_steps=1)
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["data"] == [str(questions_csv), str(others)] and saved["eval_data"] == []


@pytest.mark.parametrize("loss", ["sigmoid", "ranking", "ranking=0.5,sft"])
def test_all_pairs_are_trained_on_and_every_answer_is_computed_once(run, loss):
    """26 pairs instead of 13, and the tokens of 5 tries with the correct answers in them."""
    how = {
        "eval_fraction": 0.0, "batch_by": "questions", "epochs": 2, "loss": loss,
        "anchor_weight": 0.0,
    }  # fmt: skip
    best = summary(run("best", **how | {"loss": "sigmoid"}))
    takes_all = {} if "ranking" in loss else {"pairs": "all"}
    every = summary(run("every", **takes_all, **how))
    assert (best["pairs"], every["pairs"]) == (2 * 13, 2 * 26)
    assert best["steps"] == every["steps"] == 2  # 8 questions a step, of 5
    assert every["audit"]["as_tries"] * 2 == every["tokens"]["as_tries"]
    assert best["tokens"]["as_tries"] < every["tokens"]["as_tries"] < 2 * best["tokens"]["as_tries"]


def test_the_pairs_of_all_grades_start_as_ties_and_their_order_is_learnt(run):
    folder = run("every", pairs="all", loss="ranking", batch_by="questions", epochs=12, lr=3e-3)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["rewards/accuracies"] == 0.5 and lines[-1]["rewards/accuracies"] > 0.9
    measured = json.loads((folder / "evaluation.json").read_text())
    assert 0 <= measured["after"]["graded_accuracy"] <= 1


def test_ranks_are_read_trained_on_and_measured(run, tmp_path):
    """Three grades: three pairs a question; the best against the others are two."""
    rows = [
        {
            "prompt": f"{n}?",
            "answers": [
                {"answer": a, "rank": r} for a, r in (("Bad.", 3), ("Good.", 1), ("So.", 2))
            ],
        }
        for n in range(5)
    ]
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps(rows))
    assert summary(run("best", data=str(path), eval_fraction=0.0))["pairs"] == 5 * 2
    assert summary(run("ranked", data=str(path), eval_fraction=0.0, loss="ranking"))["pairs"] == 15


def test_a_template_and_what_it_is_given_stay_with_the_run(run, tmp_path):
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}<s>{{ mood }} {{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>{{ mood }} assistant: {% endif %}"
    )
    folder = run("own", chat_template=str(template), template_kwargs=("mood=glad",), max_steps=1)
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["template"] == "chat" and saved["chat_template"] == str(template)
    assert "mood" in (folder / "merged" / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    "argv, complaint",
    [
        ("--loss group --pairs all", "with --pairs all it is --loss ranking"),
        ("--loss ranking --pairs best", "with --pairs best it is --loss group"),
        ("--loss sft,group --pairs all", "with --pairs all it is --loss ranking"),
        ("--loss sft,ranking=2 --pairs best", "with --pairs best it is --loss group"),
        ("--loss group,ranking", "group compares the best answer alone, ranking all; choose one"),
        ("--loss sft,group --shuffle pairs", "--loss sft,group needs a question's answers in one"),
        ("--loss ranking --shuffle pairs", "--loss ranking needs a question's answers in one step"),
        ("--batch-by questions --shuffle pairs", "--batch-by questions takes whole questions"),
        ("--template plain --template-kwargs a=1", "--template-kwargs are for --template chat"),
        ("--template-kwargs a", "--template-kwargs 'a' is not NAME=VALUE"),
        ("--template none --prompt-format {}", "--prompt-format is for --template plain"),
        ("--data builtin:2.0", "--data builtin:2.0: write a share above 0 and up to 1.0"),
        ("--data builtin:1", "--data builtin:1: write a share"),
        ("--data builtin:100000", "it has"),
        ("--chat-template none.jinja", "--chat-template none.jinja"),
        ("--data builtin --columns x=-", "'x=-'"),
    ],
)
def test_settings_of_questions_that_contradict_each_other_are_one_line(argv, complaint, capsys):
    assert main(["data", *argv.split()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and complaint in err


DATED = "{{ strftime_now('%d %B %Y') }}" + CHAT_TEMPLATE


def the_day_is(monkeypatch, day):
    class Day(datetime.date):
        @classmethod
        def today(cls):
            return cls.fromisoformat(day)

    monkeypatch.setattr("run.config.date", Day)


def test_a_run_keeps_the_day_of_its_start(model_folder, questions_csv, tmp_path, monkeypatch):
    """It is gone on with on a later day, and its questions are read as of the first."""
    (tmp_path / "dated.jinja").write_text(DATED)
    settings = {
        "model": str(model_folder), "data": str(questions_csv), "device": "cpu", "merge": False,
        "dtype": "float32", "chat_template": str(tmp_path / "dated.jinja"), "anchor_weight": 0.0,
    }  # fmt: skip
    the_day_is(monkeypatch, "2026-02-28")
    run = train.run(Config(**settings, max_steps=1, output_dir=str(tmp_path / "out")))
    the_day_is(monkeypatch, "2027-03-01")
    assert train.main(["--resume", str(run), "--max-steps", "2"]) == 0
    config = inputs.finished_run(run).config
    assert config.template_kwargs == ("strftime_now=2026-02-28",)
    tokenizer, text = inputs.load_tokenizer(config)
    asked = tokenizer.decode(inputs.read_questions(config, tokenizer, text).train[0].prompt)
    assert "28 February 2026" in asked
    anew = replace(config, template_kwargs=())
    assert "2027-03-01" in inputs.load_tokenizer(anew)[1].template_kwargs
    own = replace(config, template_kwargs=("strftime_now=1999-12-31",))
    assert inputs.load_tokenizer(own)[1].template_kwargs == '{"strftime_now": "1999-12-31"}'


def test_a_template_without_dates_has_no_day_and_a_day_that_is_none_is_refused():
    plain = small_tokenizer()
    plain.chat_template = CHAT_TEMPLATE
    assert Config().text_settings(plain).template_kwargs == "{}"
    for day in ("tomorrow", "7", "2026-02-30"):
        with pytest.raises(UsageError, match=rf"strftime_now={day} is no day such as"):
            Config(template_kwargs=(f"strftime_now={day}",)).validate()
