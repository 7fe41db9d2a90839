"""`python -m run sample`: both answers to what is asked, and to what was held out."""

import io

import pytest
import torch

from run import inputs
from run.__main__ import main
from run.config import Config


def test_the_command_shows_both_answers_to_held_out_and_to_given_questions(finished, capsys):
    capsys.readouterr()
    assert main(["sample", str(finished), "--max-tokens", "5"]) == 0
    said = capsys.readouterr().out
    assert said.count("  base   ") == said.count("  tuned  ") == 1  # one question is held out
    assert "Question: " in said  # the prompt as it was trained on
    two = ["--prompt", "Why?", "--prompt", "How?", "--max-tokens", "5"]
    assert main(["sample", str(finished), *two]) == 0
    said = capsys.readouterr().out
    assert said.index("\nWhy?") < said.index("\nHow?") and said.count("  tuned  ") == 2


def test_chat_answers_line_by_line_until_the_input_ends(finished, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Why?\n\n{'long ' * 9999}\n  How?\n"))
    assert main(["sample", str(finished), "--chat", "--max-tokens", "3"]) == 0
    said = capsys.readouterr().out
    assert said.count("  tuned  ") == 2 and "--max-length" in said  # of the line that is too long


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["none"], "none is no finished run"),
        (["none", "--count", "0"], "--count"),
        (["none", "--temperature", "-1"], "--temperature"),
    ],
)
def test_wrong_arguments_end_with_one_line(argv, complaint, capsys):
    assert main(["sample", *argv]) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1


def test_a_base_that_fits_no_single_gpu_is_looked_at_on_the_cpu(model_folder, monkeypatch, capsys):
    """Several GPUs may have trained it; its 4 layers in float32 take 60 thousand bytes and more."""
    taken = []
    monkeypatch.setattr(inputs.lora, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(inputs.lora, "load_base", lambda name, device, *how: taken.append(device))
    for free in (60_000, 2**30):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2**40))
        inputs.load_model(Config(model=str(model_folder), dtype="float32"))
    assert [device.type for device in taken] == ["cpu", "cuda"]
    assert "does not fit the GPU" in capsys.readouterr().out
