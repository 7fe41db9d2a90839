"""Small random models of real architectures, and a tokenizer trained on the spot."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="fonts-")  # looked for once, in all processes

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)
ROOT = Path(__file__).parents[1]
VOCABULARY = 97
WINDOW = 6  # shorter than the paths of the tests, so that sliding windows matter

torch.set_num_threads(1)  # small models gain nothing from more, and lose much beside other work

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MIXED = ["sliding_attention", "full_attention"] * 2
ARCHITECTURES = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "gemma2": lambda: transformers.Gemma2Config(
        **SMALL,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=MIXED,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW, layer_types=MIXED
    ),
    "qwen2": lambda: transformers.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**SMALL, head_dim=8, sliding_window=WINDOW),
}


def small_model(architecture="llama", attention="eager", scale=0.3, **changes):
    """A random model in float32, its weights large enough that scores differ clearly."""
    config = ARCHITECTURES[architecture]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=scale if "embed" not in name else 1.0)
    return model.eval()


def randomise(model, seed=1, scale=0.3):
    """Give every B a value, so that the adapters do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith(".B"):
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * scale)


def relative_error(found, expected):
    """|found - expected| / |expected| in the Euclidean norm."""
    return ((found - expected).norm() / expected.norm()).item()


TEXT = [
    "Question: What is heavier, a pound of lead or a pound of feathers?\nAnswer: Both weigh the",
    "same, a pound each. The lead only looks heavier, since it is smaller. Do bats see? Yes, no.",
]


def small_tokenizer(bos="<s>", eos="</s>", pad="<pad>", kind="bytes", **more):
    """A tokenizer trained on a few sentences, with the special tokens asked for.

    Kinds: `bytes` (GPT-2, Llama 3, Qwen), `metaspace` (SentencePiece: Llama 2, Mistral, with bytes
    for what it does not know), `wordpiece` (BERT).
    """
    special = [t for t in (pad, bos, eos, "<unk>", "<turn>", "<end>") if t]
    options = {"vocab_size": 400, "special_tokens": special, "show_progress": False}
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **options)
    elif kind == "metaspace":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
             decoders.Strip(" ", 1, 0)]
        )  # fmt: skip
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        options["special_tokens"] = special
        trainer = trainers.BpeTrainer(**options)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**options)
    tokenizer.train_from_iterator(TEXT, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=None if kind == "bytes" else "<unk>",
        additional_special_tokens=["<turn>", "<end>"],
        **more,
    )


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m.role }}\n{{ m.content | trim }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer):
    """A small Gemma 2 and its tokenizer, as a folder that --model takes."""
    folder = tmp_path_factory.mktemp("small-gemma2")
    small_model("gemma2", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


QUESTIONS_CSV = """Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source
A,One,Do bats see?,Bats see well,Bats see well; Bats can see,Bats are blind; Bats see nothing,s
A,One,What is heavier?,Both weigh the same,Neither is heavier,The lead; The feathers; A pound,s
A,Two,Is lead smaller?,Lead is smaller,Yes; Lead is smaller,No; Lead is larger; Lead is the same,s
A,Two,Do feathers weigh?,"Yes, a pound",Feathers weigh,No; Feathers do not; Nothing weighs,s
A,Two,Who looks heavier?,The lead looks heavier,The lead,The bats; Feathers look heavier,s
"""


@pytest.fixture
def private_cache(tmp_path_factory, monkeypatch):
    """A cache of the test's own, for runs within this process."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("run.folder.cache_folder", lambda name: cache / name)
    return cache


@pytest.fixture(scope="session", autouse=True)
def short_neutral_text(tmp_path_factory):
    """Neutral text of a few words a kind: a small tokenizer makes 12,000 tokens of the whole."""
    folder = tmp_path_factory.mktemp("neutral")
    from dpo.evaluation.neutral import KINDS

    for kind in KINDS:
        (folder / f"{kind}.txt").write_text(f"Do bats see the {kind}?\n\nThe lead is smaller.\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpo.evaluation.neutral.FOLDER", folder)
        yield


@pytest.fixture
def plain_pictures(monkeypatch):
    """Pictures are drawn and not rendered, which would take a third of a small run."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **how: path.write_bytes(b"drawn"))


@pytest.fixture
def finished(model_folder, questions_csv, private_cache, tmp_path):
    """A run that came to its end, in float32, with its merged model."""
    import train
    from run.config import Config

    config = Config(
        model=str(model_folder), data=str(questions_csv), dtype="float32", device="cpu",
        output_dir=str(tmp_path / "finished"), epochs=4, lr=3e-3,
    )  # fmt: skip
    return train.run(config)


@pytest.fixture
def questions_csv(tmp_path):
    path = tmp_path / "questions.csv"
    path.write_text(QUESTIONS_CSV, encoding="utf-8")
    return path


def python_process(folder, argv, endpoint="http://127.0.0.1:1", **environment):
    """Run Python in `folder` with this project on its path, against a Hub of ours or none."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ACCESS_TOKEN"))}
    return subprocess.run(
        [sys.executable, *argv],
        env=clean
        | {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "hf"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",  # as above
        }
        | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
