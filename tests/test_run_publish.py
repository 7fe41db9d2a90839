"""Publishing against a small Hub of our own: the bytes that arrive, and every way to be refused."""

import json
import shutil
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from conftest import python_process
from hub import Account, hub
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

import train
from data import load_preferences
from lora import ModelError
from run import inputs, publish
from run.__main__ import main

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"  # the Hub's own client, about itself
)
RIGHT = {"HF_TOKEN": "hf_right"}


@pytest.fixture
def account(tmp_path):
    return Account(tmp_path / "served")


@pytest.fixture
def here(account, monkeypatch):
    """The Hub of this process is ours; yields what was asked of it."""
    with hub({}, account=account) as (endpoint, log):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        huggingface_hub.utils.disable_progress_bars()
        yield log


def command(*argv):
    return main(["publish", *map(str, argv)])


def held_out_mc1(model, tokenizer, preference):
    """MC1 of one question, from transformers alone: one plain forward an answer."""
    prompt = tokenizer(f"Question: {preference.prompt}\nAnswer:").input_ids
    scores = []
    for answer in (preference.chosen, *preference.rejected):
        said = tokenizer(f" {answer}", add_special_tokens=False).input_ids
        ids = torch.tensor([[tokenizer.bos_token_id, *prompt, *said, tokenizer.eos_token_id]])
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1)
        start = len(prompt)
        scores.append(float(logps[range(start, ids.shape[1] - 1), ids[0, start + 1 :]].sum()))
    return float(scores[0] > max(scores[1:])), scores


def test_everything_arrives_in_one_commit_and_loads_elsewhere(finished, here, account, capsys):
    assert command(finished, "ann/tuned") == 0
    assert "Published:  http" in capsys.readouterr().out
    folder = account.root / "ann" / "tuned"
    ((summary, paths),) = account.commits
    assert summary == "finished: adapter, merged model and card"
    assert sorted(paths) == sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()
    )
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (folder / name).read_bytes() == (finished / "merged" / name).read_bytes()
    weights = "adapter_model.safetensors"
    assert (folder / "adapter" / weights).read_bytes() == (
        finished / "adapter" / weights
    ).read_bytes()
    assert (folder / "evaluation.png").read_bytes() == (finished / "evaluation.png").read_bytes()
    for path in folder.rglob("*"):  # nobody's folders are anybody's business
        assert path.is_dir() or str(finished.parent).encode() not in path.read_bytes(), path

    text = (folder / "README.md").read_text(encoding="utf-8")
    made = ModelCard(text)
    assert made.data.library_name == "transformers"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    run = inputs.finished_run(finished)
    (question,) = inputs.read_questions(run.config, *inputs.load_tokenizer(run.config)).held_out
    (asked,) = (
        p
        for p in load_preferences(run.config.data[0])
        if p.prompt in tokenizer.decode(question.prompt)
    )
    mc1, _ = held_out_mc1(model, tokenizer, asked)
    assert f"MC1 {mc1:.4f}, MC2" in text.partition("for base + adapter; ")[2]
    assert "nats a token (" in text


def test_a_published_repository_loads_by_its_name(finished, here, account, tmp_path):
    assert command(finished, "ann/tuned", "--private") == 0
    assert account.created[0]["visibility"] == "private" or account.created[0].get("private")
    load = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "m = AutoModelForCausalLM.from_pretrained('ann/tuned')\n"
        "t = AutoTokenizer.from_pretrained('ann/tuned')\n"
        "print(float(m(**t('Do bats see?', return_tensors='pt')).logits.sum()))"
    )
    done = python_process(
        tmp_path, ["-c", load], endpoint=constants.ENDPOINT, HF_HUB_OFFLINE="0", **RIGHT
    )
    assert done.returncode == 0, done.stderr
    merged = transformers.AutoModelForCausalLM.from_pretrained(finished / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished / "merged")
    with torch.no_grad():
        expected = merged(**tokenizer("Do bats see?", return_tensors="pt")).logits.sum()
    assert float(done.stdout) == pytest.approx(float(expected), rel=1e-5)


def test_the_adapter_alone(finished, here, account):
    shutil.rmtree(finished / "merged")
    assert command(finished, "ann/adapter", "--adapter-only") == 0
    folder = account.root / "ann" / "adapter"
    names = {p.name for p in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not names & {"model.safetensors", "config.json"}
    assert ModelCard((folder / "README.md").read_text()).data.library_name == "peft"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert "/" not in config["base_model_name_or_path"]


def test_a_run_without_a_merged_model_publishes_its_adapter(finished, here, account, capsys):
    shutil.rmtree(finished / "merged")
    assert command(finished, "ann/adapter") == 2  # it made one, which is gone
    assert "has no merged model; add --adapter-only, or make it" in capsys.readouterr().err
    settings = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text(settings.replace("merge: true", "merge: false"))
    assert command(finished, "ann/adapter") == 0
    assert "model.safetensors" not in {p.name for p in (account.root / "ann" / "adapter").iterdir()}


def test_an_interrupted_upload_goes_on_where_it_stopped(finished, here, account, capsys):
    account.breaks_after = 1
    assert command(finished, "ann/tuned") == 1
    assert f"python -m run publish {finished} ann/tuned goes on" in capsys.readouterr().err
    assert account.commits == [] and len(account.stored) == 1
    account.breaks_after = None
    here.clear()
    assert command(finished, "ann/tuned") == 0
    large = {p for p in account.commits[0][1] if p.endswith((".safetensors", ".png"))}
    uploads = [line for line in here if line.startswith("PUT")]
    assert len(uploads) == len(large) - 1


def test_a_merged_model_that_is_not_base_plus_adapter_is_not_published(finished, here, account):
    path = finished / "merged" / "model.safetensors"
    weights = load_file(path)
    for name in weights:
        if "q_proj" in name:
            weights[name] = weights[name] * 1.5
    save_file(weights, path, metadata={"format": "pt"})
    run = inputs.finished_run(finished)
    with pytest.raises(ModelError, match=r"differs from base \+ adapter by .* nothing was publi"):
        publish.publish(run, "ann/tuned")
    assert account.created == account.commits == []


def test_a_run_at_another_size_is_published_like_any_other(
    finished, here, account, tmp_path, capsys
):
    half = tmp_path / "half"
    assert main(["scale", str(finished), str(half), "--scale", "0.5"]) == 0
    assert command(half, "ann/tuned") == 0
    folder = account.root / "ann" / "tuned"
    weights = "adapter/adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (half / weights).read_bytes()
    assert (folder / "dial.png").read_bytes() == (half / "dial.png").read_bytes()
    card = ModelCard.load(folder / "README.md")
    assert "The adapter here is 0.5 times the trained delta." in card.text
    assert "for the merged model, whose log-probs differ" in card.text


def refused(capsys, *argv, status=2):
    assert command(*argv) == status
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_every_refusal_says_what_to_do(finished, here, account, capsys, monkeypatch):
    assert "write OWNER/NAME" in refused(capsys, finished, "tuned")
    assert "no repository's name" in refused(capsys, finished, "ann/two words")
    assert "is no finished run" in refused(capsys, Path("none"), "ann/tuned")
    assert "publish as ann/tuned" in refused(capsys, finished, "bob/tuned")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not accept this token" in refused(capsys, finished, "ann/tuned")
    monkeypatch.delenv("HF_TOKEN")
    assert "needs a token" in refused(capsys, finished, "ann/tuned")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    account.may_write = False
    assert "needs the right to write" in refused(capsys, finished, "ann/tuned")
    assert account.commits == []


def test_a_name_that_is_taken_needs_update(finished, here, account, capsys):
    assert command(finished, "ann/tuned") == 0
    capsys.readouterr()
    assert "--update" in refused(capsys, finished, "ann/tuned")
    assert command(finished, "ann/tuned", "--update") == 0
    assert len(account.commits) == 2


def test_an_update_leaves_no_file_that_would_be_read_in_place_of_its_own(finished, here, account):
    """transformers takes an adapter, and one file of weights before several, where both lie."""
    assert command(finished, "ann/tuned", "--adapter-only") == 0
    folder = account.root / "ann" / "tuned"
    (folder / "notes.md").write_text("Mine.")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"of another")
    assert command(finished, "ann/tuned", "--update") == 0
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {"model.safetensors", "adapter/adapter_config.json", "notes.md"} <= names
    assert not names & {"adapter_config.json", "adapter_model.safetensors"}
    assert "model-00001-of-00002.safetensors" not in names
    assert command(finished, "ann/tuned", "--update", "--adapter-only") == 0
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert "adapter_model.safetensors" in names and "notes.md" in names
    assert not names & {"model.safetensors", "config.json", "adapter/adapter_config.json"}


def test_nothing_private_is_put_where_all_can_read_it(finished, here, account, capsys):
    api = huggingface_hub.HfApi()
    api.create_repo("ann/open")
    said = refused(capsys, finished, "ann/open", "--private")
    assert "ann/open exists and is public; make it private in its settings" in said
    assert account.commits == []


def test_only_the_model_and_its_tokenizer_go_along(finished, here, account):
    (finished / "merged" / "credentials.json").write_text("{}")
    (finished / "adapter" / "notes.txt").write_text("Mine.")
    assert command(finished, "ann/tuned") == 0
    ((_, paths),) = account.commits
    assert {"model.safetensors", "tokenizer.json", "adapter/adapter_config.json"} <= {*paths}
    assert not {"credentials.json", "adapter/notes.txt"} & {*paths}


def test_no_network_is_said(finished, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert "cannot be reached" in refused(capsys, finished, "ann/tuned", status=1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be reached" in refused(capsys, finished, "ann/tuned", status=1)


def test_training_publishes_at_its_end_and_looks_for_access_before_it(
    model_folder, questions_csv, private_cache, here, account, tmp_path, capsys
):
    argv = [
        "--model", model_folder, "--data", questions_csv, "--dtype", "float32", "--device", "cpu",
    ]  # fmt: skip
    wrong = [*argv, "--output-dir", tmp_path / "a", "--push-to-hub", "bob/tuned"]
    assert train.main([*map(str, wrong)]) == 2
    assert "publish as ann/tuned" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    right = [*argv, "--output-dir", tmp_path / "b", "--push-to-hub", "ann/tuned"]
    assert train.main([*map(str, right)]) == 0
    assert account.commits[0][0] == "b: adapter, merged model and card"
    assert "push_to_hub" not in (tmp_path / "b" / "config.yaml").read_text()


def never(handler):
    """Say nothing for longer than anybody waits."""
    time.sleep(3)


def no_json(handler):
    handler.send(200, b"<html>Please log in</html>")


def a_list(handler):
    handler.json(["ann"])


def a_conflict(handler):
    handler.json({"error": "Conflict: the repository is being made"}, 409)


def no_answer(handler):
    """Hang up in the middle of a word."""
    handler.wfile.write(b"HTTP/1.1 2")


@pytest.mark.parametrize("answer", [never, no_json, a_list, no_answer], ids=lambda f: f.__name__)
def test_a_hub_that_answers_with_nonsense_is_said_before_any_work(
    here, account, capsys, monkeypatch, answer, tmp_path
):
    monkeypatch.setattr("run.inputs.PATIENCE", 0.5)
    account.odd = {"api/whoami-v2": answer}
    said = refused(capsys, tmp_path, "ann/tuned", status=1)
    assert "nothing was done" in said and account.created == []


def test_a_hub_that_misbehaves_while_files_are_sent_ends_in_a_line_and_the_command_goes_on(
    finished, here, account, capsys, monkeypatch
):
    """Each time something else goes wrong, and each time the command that is named is given."""
    monkeypatch.setattr("run.inputs.PATIENCE", 0.5)
    monkeypatch.setattr(publish, "checked", lambda *_: (None, None))
    account.odd = {"api/repos/create": never}
    assert command(finished, "ann/tuned", "--private") == 1
    again = f"{finished} ann/tuned --private goes on from there"
    assert again in capsys.readouterr().err  # or else what is private would become public
    again = f"python -m run publish {finished} ann/tuned goes on from there"
    commit = "api/models/ann/tuned/commit/main"
    for path, answer in (
        ("api/repos/create", a_conflict), ("api/repos/create", never),
        ("api/repos/create", no_json), (commit, no_json), (commit, never), (commit, a_conflict),
    ):  # fmt: skip
        account.odd = {path: answer}
        said = command(finished, "ann/tuned"), capsys.readouterr().err
        assert said[0] == 1 and again in said[1] and said[1].count("\n") == 1, (path, answer)
        assert account.commits == []
    assert command(finished, "ann/tuned") == 0 and len(account.commits) == 1


@pytest.mark.parametrize("token", ["hf_r\u00ef", "hf_ right", "hf_\x07", "\u200bhf_right"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(
    tmp_path, capsys, monkeypatch, token
):
    monkeypatch.setenv("HF_TOKEN", token)
    said = refused(capsys, tmp_path, "ann/tuned")
    assert "copy it again" in said and "hf_" not in said
