"""Files that nobody should have made: one line that names them, status 2, nothing left behind."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import python_process
from safetensors.torch import load_file, save_file

import lora
import train
from data import DataError, encode
from data.limits import limited
from data.question import Preference
from run.__main__ import main
from run.commands import Stop, _unforeseen
from run.config import Config
from run.errors import Stopped, UsageError

DEEP = '{"a":' * 50_000 + "1" + "}" * 50_000


@pytest.fixture(autouse=True)
def own_cache(private_cache, plain_pictures):
    (private_cache / "errors").mkdir()
    return private_cache


@pytest.fixture
def refused(tmp_path, model_folder, questions_csv, capsys, monkeypatch):
    """Run train.py in a folder of its own; return the one line that it ends with."""
    monkeypatch.chdir(tmp_path)

    def refused(*argv, status=2, model=model_folder, data=questions_csv):
        argv = ["--model", model, "--data", data, "--device", "cpu", *argv]
        begun = time.process_time()  # a busy machine is no hang
        assert train.main([*map(str, argv), "--output-dir", "out"]) == status
        assert time.process_time() - begun < 10
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "Traceback" not in said
        assert not Path("out").exists() and not list(tmp_path.glob("**/*.part"))
        return said

    return refused


@pytest.fixture
def changed_model(model_folder, tmp_path):
    """Return a copy of the model with one file's settings changed, or its whole text."""

    def changed(name, change):
        folder = tmp_path / "model"
        shutil.copytree(model_folder, folder)
        path = folder / name
        if isinstance(change, dict):
            change = json.dumps(json.loads(path.read_text()) | change)
        path.write_text(change)
        return folder

    return changed


@pytest.mark.parametrize(
    "name, change",
    [
        ("config.json", {"hidden_size": "many"}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"num_hidden_layers": None}),
        ("config.json", {"layer_types": 3}),
        ("config.json", {"rope_parameters": "x"}),
        ("config.json", {"max_position_embeddings": "long"}),
        ("config.json", {"max_position_embeddings": -5}),
        ("config.json", {"model_type": ["gemma2"]}),
        ("config.json", {"vocab_size": 10**12}),
        ("config.json", {"hidden_size": 0}),
        ("config.json", {"num_hidden_layers": 10**9}),
        ("config.json", {"rms_norm_eps": "small"}),
        ("config.json", "[]"),
        ("config.json", "null"),
        ("config.json", DEEP),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", {"model": 3}),
        ("tokenizer.json", {"added_tokens": {"a": 1}}),
        ("tokenizer.json", DEEP),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", {"added_tokens_decoder": 3}),
        ("tokenizer_config.json", {"eos_token": 5}),
        ("tokenizer_config.json", {"model_max_length": "long"}),
        ("tokenizer_config.json", {"tokenizer_class": 5}),
        ("generation_config.json", "[]"),
        ("model.safetensors", "x" * 100),
        ("model.safetensors", ""),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_model_or_tokenizer_of_wrong_types_is_named(refused, changed_model, name, change):
    folder = changed_model(name, change)
    assert str(folder) in refused("--max-steps", "1", "--no-merge", model=folder)


FOREST = """{% set forest = namespace(a=[1], b=[1]) %}{% for i in range(60) %}
{% set forest.a = [forest.a, forest.a] %}{% set forest.b = [forest.b, forest.b] %}{% endfor %}"""
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template, complaint",
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% if %}", "refuses it"),
        ("{{ messages | attr('pop') }}{{ messages.pop() }}", "refuses it"),
        ("{{ 'x' * 10**11 }}", "wants more than 4 GiB of memory"),
        ("{{ 'x' * 20000000 }}", "it makes 20,000,000 letters of this"),
        (LOOPS, "takes longer than"),
        ("{{ 10 ** (10 ** 9) }}", "takes longer than"),  # one operation, of hours
        (FOREST + "{{ forest.a == forest.b }}", "takes longer than"),
        ("{{ messages | map(attribute='content') | sum }}", "refuses it"),
    ],
    ids=lambda value: value[:30],
)
def test_a_template_that_fails_or_never_ends_is_named(
    refused, tmp_path, template, complaint, monkeypatch
):
    monkeypatch.setattr("data.limits.SECONDS", 0.5)
    (tmp_path / "own.jinja").write_text(template)
    said = refused("--template", "chat", "--chat-template", "own.jinja")
    assert complaint in said and "template" in said


def test_a_template_that_hangs_on_one_row_stops_at_that_row(tokenizer, monkeypatch):
    monkeypatch.setattr("data.limits.SECONDS", 0.2)
    from conftest import CHAT_TEMPLATE, small_tokenizer

    slow = small_tokenizer()
    slow.chat_template = (
        CHAT_TEMPLATE + "{% if 'Wait' in messages[0].content %}" + LOOPS + "{% endif %}"
    )
    rows = [Preference(prompt, "Yes", ("No",)) for prompt in ("Why?", "Wait", "How?")]
    with pytest.raises(DataError, match="--template chat: a row's text takes longer than 0.2"):
        encode(rows, slow, Config(template="chat").text_settings(slow))
    assert len(encode(rows[::2], slow, Config(template="chat").text_settings(slow)).questions) == 2


def test_work_within_limits_has_its_results_or_its_error_and_leaves_no_process_behind(monkeypatch):
    assert limited(lambda n: n * n, range(3), "it") == [0, 1, 4]
    with pytest.raises(ZeroDivisionError) as error:
        limited(lambda n: 1 // n, [1, 0], "it")
    assert "in <lambda>" in error.value.__notes__[0]
    with pytest.raises(DataError, match=r"^it ends its process \(signal 9\)$"):
        limited(lambda n: os.kill(os.getpid(), signal.SIGKILL), [0], "it")
    monkeypatch.setattr("data.limits.SECONDS", 0.1)
    with pytest.raises(DataError, match="longer than 0.1 seconds of computing"):
        limited(lambda n: 10 ** (10**n), [1, 9], "it")
    assert not multiprocessing.active_children()


def test_who_is_interrupted_stops_what_computes_within_limits():
    pid = os.getpid()
    with pytest.raises(Stopped), Stop():
        limited(lambda n: (os.kill(pid, signal.SIGTERM), time.sleep(60)), [0], "it")
    assert not multiprocessing.active_children()


class PanicException(BaseException):
    """What a library in Rust raises where it panics."""


@pytest.mark.parametrize("error", [PanicException("capacity overflow"), OverflowError("too long")])
def test_a_text_on_which_the_tokenizer_fails_costs_its_row_alone(tokenizer, monkeypatch, error):
    real = tokenizer.backend_tokenizer

    class Backend:
        truncation = padding = None

        def encode_batch_fast(self, texts, **more):
            if any("Boo" in text for text in texts):
                raise error
            return real.encode_batch_fast(texts, **more)

    rows = [Preference(f"{i}?", "Yes", ("No",), place=f"x.csv, line {i}") for i in range(40)]
    expected = list(encode(rows, tokenizer).questions)
    monkeypatch.setattr(type(tokenizer), "backend_tokenizer", Backend())
    rows.insert(7, Preference("Boo", "Yes", ("No",), place="x.csv, line 77"))
    found = encode(rows, tokenizer)
    assert list(found.questions) == expected
    ((_, places),) = found.notes.values()
    assert places == [f"x.csv, line 77: the tokenizer fails on this text: {error}"]


def test_a_timestamp_that_no_calendar_has_is_named_with_its_file(refused, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = {"prompt": ["Why?"], "chosen": ["Yes"], "rejected": ["No"]}
    for name, kind in (("when", pyarrow.timestamp("ms")), ("day", pyarrow.date32())):
        number = 2**30 if name == "day" else 2**60
        odd = pyarrow.array([number], f"int{kind.bit_width}").cast(kind)
        pyarrow.parquet.write_table(pyarrow.table(rows | {name: odd}), tmp_path / "odd.parquet")
        assert "odd.parquet could not be read after row 0" in refused(data="odd.parquet")


def test_a_pipe_or_a_folder_where_a_file_should_be_is_named(refused, tmp_path):
    os.mkfifo(tmp_path / "rows.csv")
    assert "rows.csv is no plain file" in refused(data="rows.csv")
    (tmp_path / "rows.jsonl").mkdir()
    assert "rows.jsonl cannot be read" in refused(data="rows.jsonl")


@pytest.mark.parametrize(
    "argv, complaint",
    [
        (["--batch-size", 10**30], f"--batch-size {10**30} must be below"),
        (["--max-length", 2**31], "--max-length 2147483648 must be below"),
        (
            ["--rank-pattern", "v_prjo=2"],
            "--rank-pattern 'v_prjo' matches no layer with an adapter",
        ),
        (["--alpha-pattern", "down_proj=2"], "--alpha-pattern 'down_proj' matches no layer"),
        (["--target-modules", "((((a{99}){99}){99}){99})"], "is too long, or repeats too much"),
        (["--target-modules", "|".join("a" * i for i in range(400))], "is too long, or repeats"),
        (["--device", "meta"], "--device meta cannot be used here"),
        (["--device", "hpu"], "--device hpu cannot be used here"),
        (["--adapter", "~nobody-here/a"], "~nobody-here/a is no adapter"),
        (["--eval-data", "~nobody-here/x.csv"], "there is no file ~nobody-here/x.csv"),
        (["--chat-template", "~nobody-here/x"], "--chat-template ~nobody-here/x"),
        (["--target-modules", "\x1b[2J", "x"], r"--target-modules '\x1b[2J' matches no module"),
    ],
    ids=str,
)
def test_a_value_that_nothing_can_be_done_with_is_named(refused, argv, complaint):
    assert complaint in refused(*argv)


def test_the_model_of_a_user_who_is_not_here_is_named(refused):
    assert "--model ~nobody-here/m: there is no such folder" in refused(model="~nobody-here/m")


@pytest.mark.parametrize(
    "text",
    [
        "rank: 9999-99-99", "rank: 2020-01-01", f"rank: {'9' * 5000}", "lr: 1e999", "lr: .nan",
        "[" * 3000, "a: &a [*a]", "? [1]\n: 2", "rank: !!python/object:os.system x", "rank: \0",
        "model: \"a\\0b\"", "rank: 8\nrank: [", "2020-01-01: 3", "output_dir: 7.5e400",
        "seed: 99999999999999999999999",
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_yaml_that_no_setting_can_be_is_named(tmp_path, monkeypatch, capsys, text):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text)
    argv = ["--config", "x.yaml", "--plan", "--model", "none/such", "--data", "none.csv"]
    assert train.main(argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "x.yaml" in said or "--" in said.removeprefix("train.py: ")[:8]
    assert not Path("out").exists()


def adapter(folder, model_folder, **changes):
    """A saved adapter of the model, with some settings changed."""
    model = lora.load_base(str(model_folder), torch.device("cpu"), torch.float32).model
    lora.add_lora(model, 2, 4.0)
    lora.save_adapter(model, folder, "base")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"r": "8"}, {"r": True}, {"r": 10**40}, {"r": -2}, {"r": [2]}, {"r": 2.0}, {"r": 0},
        {"lora_alpha": "16"}, {"lora_alpha": float("nan")}, {"lora_alpha": float("inf")},
        {"lora_alpha": 10**400}, {"lora_alpha": [1]}, {"lora_alpha": True},
        {"target_modules": {"q_proj": 1}}, {"target_modules": [3]}, {"target_modules": []},
        {"target_modules": [["q_proj"]]}, {"target_modules": ""}, {"target_modules": "("},
        {"rank_pattern": [1]}, {"rank_pattern": {"q_proj": "2"}}, {"rank_pattern": {"(": 2}},
        {"alpha_pattern": {"q_proj": None}}, {"alpha_pattern": {"q_proj": 1e300}},
        {"lora_dropout": "0.1"}, {"lora_dropout": 1}, {"lora_dropout": float("nan")},
        {"use_rslora": "yes"}, {"base_model_name_or_path": ["x"]}, {"revision": 3},
        {"base_model_name_or_path": "x\x1b]0;title\x07"}, {"base_model_name_or_path": "a\nb"},
        {"peft_type": ["LORA"]}, {"bias": {}},
    ],
    ids=str,
)  # fmt: skip
def test_an_adapters_settings_of_wrong_types_are_named(refused, tmp_path, model_folder, changes):
    adapter(tmp_path / "a", model_folder, **changes)
    said = refused("--adapter", "a")
    assert "a/adapter_config.json" in said or "does not fit this model" in said or "'('" in said


@pytest.mark.parametrize(
    "text", [DEEP, "[]", "null", '"x"', "{", "\ufeff{}", '{"r": NaN}'], ids=str
)
def test_an_adapters_file_that_holds_no_settings_is_named(refused, tmp_path, model_folder, text):
    adapter(tmp_path / "a", model_folder)
    (tmp_path / "a" / "adapter_config.json").write_text(text)
    assert " a" in refused("--adapter", "a")


@pytest.mark.parametrize(
    "broken, complaint",
    [
        (lambda t: t.to(torch.int32), "is of torch.int32"),
        (lambda t: t.to(torch.bool), "is of torch.bool"),
        (lambda t: t * float("nan"), "is not finite"),
        (lambda t: t / 0, "is not finite"),
    ],
    ids=["integers", "switches", "nan", "infinite"],
)
def test_an_adapters_tensors_are_finite_numbers(refused, tmp_path, model_folder, broken, complaint):
    path = adapter(tmp_path / "a", model_folder) / "adapter_model.safetensors"
    save_file({name: broken(tensor) for name, tensor in load_file(path).items()}, path)
    said = refused("--adapter", "a")
    assert complaint in said and "a/adapter_model.safetensors: base_model.model." in said


@pytest.mark.parametrize("alpha", [0, -4, -0.5, 0.0])
def test_an_alpha_of_zero_or_below_means_what_it_means_in_peft(tmp_path, model_folder, alpha):
    """alpha / r scales the delta, whatever its sign: by hand, W' - W = alpha / 2 (A B)^T."""
    adapter(tmp_path / "a", model_folder, lora_alpha=alpha)
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file({name: torch.ones_like(t) for name, t in load_file(path).items()}, path)
    model = lora.load_base(str(model_folder), torch.device("cpu"), torch.float32).model
    lora.load_adapter(model, tmp_path / "a")
    for layer in lora.lora_layers(model).values():
        assert torch.equal(layer.delta(), torch.full_like(layer.base.weight, alpha))  # 1 + 1, / 2


@pytest.mark.parametrize(
    "content", [b"HF_TOKEN=\xff\xfe", None, 0o000], ids=["bytes", "pipe", "no"]
)
def test_an_env_file_that_cannot_be_read_is_named_and_a_token_elsewhere_is_enough(
    tmp_path, monkeypatch, content
):
    from run.inputs import prepare_libraries

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("ACCESS_TOKEN", raising=False)
    if content is None:
        os.mkfifo(".env")
    elif content:
        Path(".env").write_bytes(content)
    else:
        Path(".env").write_text("HF_TOKEN=x")
        monkeypatch.setattr("run.inputs.dotenv_values", lambda _: open("/proc/1/no"))
    with pytest.raises(UsageError, match=r"^\.env .*set HF_TOKEN in the environment"):
        prepare_libraries()
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    prepare_libraries()


def test_names_that_are_no_utf8_are_taken_and_shown_by_their_bytes(
    tmp_path, model_folder, questions_csv, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"j\xe4ger")
    shutil.copy(questions_csv, f"{odd}.csv")
    argv = ["--model", str(model_folder), "--device", "cpu", "--max-steps", "1"]
    argv += ["--data", f"{odd}.csv"]
    assert train.main([*argv, "--output-dir", "out"]) == 0
    assert "udce4ger" in Path("out/README.md").read_text(encoding="utf-8")
    assert train.main(["--resume", "out"]) == 0
    assert main(["evaluate", "out", "--output", f"{odd}.json"]) == 0
    shutil.copytree(model_folder, f"{odd}-model")
    capsys.readouterr()
    for command, refused in (
        (["merge", "out", "--output", odd], "--output j\\udce4ger: its path is no UTF-8"),
        (["scale", "out", odd, "--scale", "0.5"], "OUT j\\udce4ger: its path is no UTF-8"),
    ):
        assert main(command) == 2 and refused in capsys.readouterr().err
    assert train.main([*argv, "--output-dir", f"{odd}/out"]) == 2
    assert "ger/out: its path is no UTF-8; name another" in capsys.readouterr().err
    assert train.main([*argv, "--output-dir", "new", "--model", f"{odd}-model"]) == 2
    assert "--model j\\udce4ger-model" in capsys.readouterr().err
    assert not Path(odd).exists() and not Path("new").exists()


def test_what_nobody_foresaw_is_one_line_and_its_text_lies_in_a_file(
    refused, monkeypatch, tmp_path
):
    def broken(*_):
        raise AssertionError("two\nlines \x1b[31m")

    monkeypatch.setattr("run.inputs.data.prepare", broken)
    monkeypatch.setattr("run.folder.cache_folder", lambda name: tmp_path / name)
    (tmp_path / "errors").mkdir()
    said = refused(status=1)
    assert said.startswith("train.py: broken failed (tests/test_run_broken.py, line ")
    assert "AssertionError: two; the full text is in " in said
    (file,) = (tmp_path / "errors").iterdir()
    assert str(file) in said and file.stat().st_mode & 0o077 == 0
    assert "Traceback" in file.read_text() and "AssertionError: two\nlines" in file.read_text()
    file.unlink()
    (tmp_path / "errors").rmdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert _unforeseen(KeyError("x")) == "failed: KeyError: 'x'; --debug shows the full text"
    (tmp_path / "temporary").mkdir()
    assert f"the full text is in {tmp_path}/temporary/" in _unforeseen(KeyError("x"))


def test_debug_shows_what_nobody_foresaw_as_it_is(monkeypatch):
    monkeypatch.setattr(train, "run", lambda *_: [].pop())
    with pytest.raises(IndexError):
        train.main(["--debug"])
    assert train.main([]) == 1


@pytest.mark.parametrize("home", [{"HOME": ""}, {"HOME": "here"}], ids=str)
def test_a_home_that_is_none_is_no_trouble(tmp_path, model_folder, questions_csv, home):
    clean = {"XDG_CACHE_HOME": "", "HF_HOME": ""} | home
    code = "import os, sys; [os.environ.pop(k) for k in ('HOME', 'HF_HOME') if not os.environ[k]]\n"
    code += "import train; sys.exit(train.main(sys.argv[1:]))"
    argv = ["--model", model_folder, "--data", questions_csv, "--plan", "--output-dir", "out"]
    done = python_process(tmp_path, ["-c", code, *map(str, argv)], **clean)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_an_adapter_that_a_last_step_has_ruined_is_not_saved(
    model_folder, questions_csv, tmp_path, monkeypatch, capsys
):
    def step(optimizer, *_):
        for group in optimizer.param_groups:
            group["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    argv = ["--model", model_folder, "--data", questions_csv, "--device", "cpu", "--max-steps", "1"]
    assert train.main([*map(str, argv), "--output-dir", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "step 0 left an adapter that is not finite; try a lower --lr" in said
    assert not list((tmp_path / "out" / "checkpoints").glob("step-*"))


def test_a_text_leaves_room_for_what_a_model_writes_after_its_prompt(tokenizer):
    """Of 512 positions 48 are for samples, or as many as anchors have, but never more than half."""
    for config, limit, longest in (
        (Config(), 512, 464), (Config(anchor_tokens=100), 512, 412), (Config(), 60, 30),
        (Config(max_length=500), 512, 500), (Config(), None, None),
    ):  # fmt: skip
        assert config.text_settings(tokenizer, limit).max_length == longest
