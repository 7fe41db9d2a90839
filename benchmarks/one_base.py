"""One loaded base for a whole process, where loading takes longer than what is measured.

`python benchmarks/one_base.py FOLDER --tokenizer MODEL` makes such a base: Gemma-2 9B with random
weights, since speed needs no trained ones, and the tokenizer of another model.
"""

import argparse
import gc
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers

import lora
from lora.base.loading import choose_attention

GEMMA_2_9B = {
    "vocab_size": 256_000, "hidden_size": 3584, "intermediate_size": 14336,
    "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "max_position_embeddings": 8192,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip


@contextmanager
def base_loaded_once():
    """Within the block `lora.load_base` reads weights once, and then gives the same model again.

    It comes without adapters and as it was at first; whoever had it before must not use it again.
    """
    load, known = lora.load_base, {}

    def load_base(name, device, dtype, attention="auto", *rest, **more):
        if name not in known:
            base = load(name, device, dtype, attention, *rest, **more)
            known[name] = base._replace(hash=lora.base_hash(base.model))
        model = known[name].model
        lora.remove_lora(model)
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            model.gradient_checkpointing_disable()
        model.disable_input_require_grads()
        model.set_attn_implementation(choose_attention(attention, model.config, device))
        torch._dynamo.reset()  # what was compiled knew the adapters before
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return known[name]._replace(model=model.eval().requires_grad_(False))

    with mock.patch.object(lora, "load_base", load_base):
        yield


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", required=True, help="a model folder; its ids must be known")
    parser.add_argument("--layers", type=int, default=GEMMA_2_9B["num_hidden_layers"])
    parser.add_argument("--hidden-size", type=int, default=GEMMA_2_9B["hidden_size"])
    args = parser.parse_args()
    sizes = {"num_hidden_layers": args.layers, "hidden_size": args.hidden_size}
    config = transformers.Gemma2Config(**GEMMA_2_9B | sizes)
    with lora.choose_device():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(args.folder)
    transformers.AutoTokenizer.from_pretrained(args.tokenizer).save_pretrained(args.folder)


if __name__ == "__main__":
    main()
