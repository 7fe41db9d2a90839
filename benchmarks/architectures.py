"""Which architectures train, and how: a small random model of each that transformers has is tried.

    python benchmarks/architectures.py            # writes docs/architectures.md
    python benchmarks/architectures.py qwen3 opt  # prints these rows alone

Each model is saved and loaded as any base is. The self-check then says how its answers are read.
With `--target-modules auto` and with `all-linear`, where every B is random, the scores and their
gradients are compared with those of the model's own forward, which reads each text alone; and base
+ adapter with what merging in memory and merging the files gives. A difference above TOLERANCE is
shown as wrong.
"""

import dataclasses
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import lora
from data import DataError, EncodedQuestion
from data.trees import collate, question_tries
from dpo import answer_logps, check_sharing

TOLERANCE = 1e-4  # nats an answer, and logits; both in float32
GRADIENT = 1e-4  # of a gradient's norm
DOCUMENT = Path(__file__).parents[1] / "docs" / "architectures.md"
PROMPT = tuple(range(3, 14))  # with an answer it is longer than every window below
QUESTIONS = [
    EncodedQuestion(
        PROMPT,
        (20, 21, 22, 23, 24, 25, 26, 27, 28, 2),
        ((20, 21, 22, 23, 24, 25, 26, 40, 2), (20, 41, 42, 2), (50, 51, 52, 53, 54, 2), (50, 2)),
    ),
    EncodedQuestion((3, 4, 60), (61, 62, 2), ((61, 2), (63, 64, 65, 66, 67, 68, 69, 2))),
]

# What is small in every configuration that has it. Window and chunk are shorter than the texts.
SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 128, "sliding_window": 6,
    "attention_chunk_size": 6, "tie_word_embeddings": False,
    # experts, and attention of low rank
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    # recurrent layers
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_head_dim": 8, "linear_num_heads": 4, "mamba_n_heads": 4,
    "mamba_d_state": 8, "mamba_expand": 2, "mamba_chunk_size": 16, "state_size": 8,
    "chunk_size": 16,
}  # fmt: skip

# What a family needs besides.
LOW_RANK = {"num_key_value_heads": 4}  # as many as there are heads
BOTH = ["linear_attention", "full_attention"]
IMAGES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
OWN = {
    **dict.fromkeys((
        "axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32",
        "dots3_note_text", "glm4_moe_lite", "glm_moe_dsa", "kimi_linear", "longcat_flash",
        "minicpm3", "youtu",
    ), LOW_RANK),
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "gemma3": {"text_config": SIZES, "vision_config": IMAGES},
    "gemma4_text": {"vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {
        "layer_types": BOTH, "shared_intermediate_size": 16, "logits_scaling": 2.0,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "nemotron_h": {
        "layers_block_type": [*BOTH, "mlp", "moe"], "ssm_state_size": 8, "mamba_num_heads": 4,
        "mamba_head_dim": 16, "n_groups": 1, "moe_shared_expert_intermediate_size": 16,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 6},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {"num_hidden_layers": 3},
    "zamba2": {
        "num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "n_mamba_heads": 4, "use_shared_attention_adapter": True, "adapter_rank": 4,
        "use_mem_rope": True, "head_dim": 16, "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

# Types that are not tried, by reason.
LEFT_OUT = {
    "decoders of models that read a source first, or sound": """bart bigbird_pegasus blenderbot
        blenderbot-small marian mbart moshi musicgen musicgen_melody mvp pegasus plbart prophetnet
        trocr whisper""",
    "models of text, images and sound as a whole, beside gemma3": """dots3_note emu3 fuyu gemma3n
        gemma4 gemma4_unified git got_ocr2 llama4 mllama moss_transcribe_diarize phi4_multimodal
        qwen3_5 qwen3_5_moe qwen4_exp""",
    "other names of llama and gpt2": "gpt-sw3 internlm3 iquestcoder",
    "helpers of another model's decoding": "gemma4_assistant gemma4_unified_assistant",
    "no small model of it could be built in a few settings": """blt cohere_compass_text dbrx
        gemma3n_text qwen4_exp_text reformer xlnet""",
}
TRIED = [
    family
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if family not in " ".join(LEFT_OUT.values()).split()
]


class Row(NamedTuple):
    """A row of the table."""

    family: str
    read: str  # tries, plain rows, own logits; or why the model is refused
    auto: str = ""  # the targets
    all_linear: str = ""
    frozen: str = ""  # what all-linear leaves out, and how much of the model that is


READ = {"tries": "tries", "rows": "plain rows, fused head", "logits": "plain rows, own logits"}


def configuration(family):
    """Return a small configuration of a family, with a layer of each kind that it usually has."""
    kind = transformers.CONFIG_MAPPING[family]
    fields = {f.name for f in dataclasses.fields(kind)}
    known = fields | set(kind.attribute_map)
    own = dict(OWN.get(family, {}))
    usual = getattr(kind(), "layer_types", None) if "layer_types" in fields - set(own) else None
    if usual:
        own["layer_types"] = list(dict.fromkeys(usual))
        own["layer_types"] += own["layer_types"][:1] * (2 - len(own["layer_types"]))
        own["num_hidden_layers"] = len(own["layer_types"])
    return kind(**{name: value for name, value in SIZES.items() if name in known} | own)


def random_model(family):
    """Return a random model in float32, its weights large enough that scores differ clearly."""
    torch.manual_seed(0)
    how = {"attn_implementation": "eager", "dtype": torch.float32}
    model = transformers.AutoModelForCausalLM.from_config(configuration(family), **how)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=1.0 if "embed" in name else 0.2)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 24)[None], use_cache=False).logits


def own_scores(model):
    """Return (A,): log pi(y|x) by the model's own forward, each text alone."""
    scores = []
    for q in QUESTIONS:
        for answer in q.trained:
            text = torch.tensor([[*q.prompt, *answer]])
            said = model(input_ids=text, use_cache=False).logits[0].float().log_softmax(-1)
            at = torch.arange(len(q.prompt), text.shape[1])
            scores.append(said[at - 1, text[0, at]].sum())
    return torch.stack(scores)


def scores_as_trained(model, way):
    """Return (A,): the same as a run computes it, all texts at once."""
    tries = [t for q in QUESTIONS for t in question_tries(q.prompt, q.trained, way)]
    return answer_logps(model, collate(tries, way))


def with_gradient(model, scores):
    """Return the scores, and the gradient of a weighted sum of them in each A and B."""
    weighted = (scores * torch.linspace(-1, 1, len(scores))).sum()
    parameters = lora.adapter_parameters(model)
    return scores.detach(), torch.autograd.grad(weighted, parameters, materialize_grads=True)


def adapted(model, targets):
    """Add adapters whose B is random; return what had to be said for it to work."""
    said, patterns = "", lora.Patterns()
    try:
        names = lora.add_lora(model, 2, 4, 0.0, targets, patterns)
    except lora.ModelError as error:
        if "--rank-pattern " not in str(error):
            raise
        said = f"--rank-pattern {str(error).partition('--rank-pattern ')[2]}"
        rank = {name: int(r) for name, r in (p.split("=") for p in said.split()[1:])}
        names = lora.add_lora(model, 2, 4, 0.0, targets, lora.Patterns(rank))
    drawn = torch.Generator().manual_seed(1)
    for b in lora.adapter_parameters(model, "B"):
        b.data.copy_(torch.randn(b.shape, generator=drawn) * 0.1)
    return names, said


def compared(base, way, targets, folder):
    """Return (names, what had to be said, the largest difference) of base + adapter.

    The model is as it was afterwards.
    """
    model = base.model
    bare = logits(model)
    names, said = adapted(model, targets)
    moved = logits(model)
    if not (moved - bare).abs().max() > 1e-3:
        raise AssertionError(f"adapters on {names} do nothing")
    wanted, gradients = with_gradient(model, own_scores(model))
    with lora.layers_as_asked(model, "off", "off", 1):
        found, ours = with_gradient(model, scores_as_trained(model, way))
    differences = [float((found - wanted).abs().max())]
    for one, other in zip(ours, gradients, strict=True):
        apart = float((one - other).norm() / (1e-3 + other.norm()))
        differences.append(apart if apart > GRADIENT else 0.0)
    lora.save_adapter(model, folder / targets, base.name)
    lora.merge_files(base.folder, folder / targets, folder / f"{targets}-merged")
    merged = lora.load_base(str(folder / f"{targets}-merged"), torch.device("cpu"), torch.float32)
    differences.append(float((logits(merged.model) - moved).abs().max()))
    before = {name: layer.base for name, layer in lora.lora_layers(model).items()}
    differences.append(float((logits(lora.merge_lora(model)) - moved).abs().max()))
    for name, layer in before.items():
        model.set_submodule(name, layer)
    return names, said, max(differences)


def examine(family):
    """Try a family; return its row."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        random_model(family).save_pretrained(folder / "base")
        try:
            base = lora.load_base(str(folder / "base"), torch.device("cpu"), torch.float32)
            way = check_sharing(base.model, QUESTIONS, 0, base.layers).way
        except (DataError, lora.ModelError) as error:
            return Row(family, refused(error))
        auto, _, one = outcome(base, way, "auto", folder)
        every, frozen, other = outcome(base, way, "all-linear", folder)
        if auto.startswith("refused") and every.startswith("refused"):
            return Row(family, auto)
        if max(one, other) > TOLERANCE:
            return Row(family, f"WRONG by {max(one, other):.1g}", auto, every, frozen)
        return Row(family, READ[way], auto, every, frozen)


def outcome(base, way, targets, folder):
    """Return what is said of some targets, what is left frozen, and the largest difference."""
    try:
        names, said, apart = compared(base, way, targets, folder)
    except lora.ModelError as error:
        return refused(error), "", 0.0
    if targets == "auto":
        short = lora.short_names(base.model, names)
        ends = sorted({re.sub(r".*\.\d+\.", "", name) for name in short})
        return " ".join(f"`{end}`" for end in ends), "", apart
    size = sum(p.numel() for p in base.model.parameters())
    named = set(names)
    left = {n: p for n, p in lora.left_out(base.model).items() if not matched(n, named)}
    frozen = f"{sum(left.values()) / size:.1%}: {ends_of(left)}" if left else ""
    return (f"`{said}`" if said else "yes"), frozen, apart


def matched(like, names):
    """Tell whether a name with `*` for any number is that of a layer that has an adapter."""
    return like.removesuffix(".weight") in {re.sub(r"\.\d+\.", ".*.", name) for name in names}


def ends_of(names):
    return " ".join(f"`{name.rpartition('*.')[2]}`" for name in names)


def refused(error):
    """Return the first line without its numbers, which processors round otherwise."""
    return "refused: " + re.sub(r", by [\d.e-]+ nats( a token)?", "", str(error).splitlines()[0])


def line(row):
    return f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def document(rows):
    """Return the whole text of docs/architectures.md."""
    count = {read: sum(row.read == said for row in rows) for read, said in READ.items()}
    return TEXT.format(
        tried=len(rows), version=transformers.__version__, **count,
        refused=len(rows) - sum(count.values()), table="\n".join(map(line, rows)),
        left="\n".join(f"- {why}: {' '.join(names.split())}" for why, names in LEFT_OUT.items()),
    )  # fmt: skip


TEXT = """# Architectures

Written by [benchmarks/architectures.py](../benchmarks/architectures.py). It builds a small random
model of each causal language model of transformers {version}, saves it, and loads it as any base is
loaded. {tried} families were tried: {tries} train on tries, {rows} on plain rows by the fused head,
{logits} on plain rows by the model's own logits, and {refused} are refused.

For each that is not refused, with both kinds of targets and every B random, in float32:
- the scores of answers, computed as a run does, are those of the model's own forward of each text
  alone, to 1e-4 nats;
- so is the gradient in each A and B, to 1e-4 of its norm;
- merging in memory and merging the files both give the logits of base + adapter, to 1e-4.

*auto* has the layers that `--target-modules auto` takes. *all-linear* says whether
`--target-modules all-linear` works, or with what. *frozen* has what all-linear leaves without an
adapter, and its share of the small model's parameters. In a real model experts have a larger share,
which a run prints. A small model says nothing of how well a large one trains.

| family | read as | auto | all-linear | frozen |
| --- | --- | --- | --- | --- |
{table}

Not tried:
{left}
"""


def main():
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = []
    for family in sys.argv[1:] or TRIED:
        rows.append(examine(family))
        print(line(rows[-1]), flush=True)
    if len(sys.argv) == 1:
        DOCUMENT.write_text(document(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
