"""Small random models of the hybrid, state-space and mixed families, as `conftest` has the others.

Each has a layer of each of its kinds.
"""

import torch
import transformers

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ATTENTION = {
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 512,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_expand": 2, "mamba_chunk_size": 16,
}  # fmt: skip
DELTA = {
    "head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
EXPERTS = {
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4,
    "num_experts_per_tok": 2,
}  # fmt: skip
BOTH = ["linear_attention", "full_attention"]

HYBRID = {
    "qwen3_5": lambda: transformers.Qwen3_5TextConfig(**SIZES, **ATTENTION, **DELTA),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(**SIZES, **ATTENTION, **DELTA, **EXPERTS),
    "bamba": lambda: transformers.BambaConfig(
        **SIZES, **ATTENTION, **MAMBA, attn_layer_indices=[1]
    ),
    "granite_hybrid": lambda: transformers.GraniteMoeHybridConfig(
        **SIZES, **ATTENTION, **MAMBA, layer_types=BOTH, num_local_experts=4,
        shared_intermediate_size=16, logits_scaling=2.0,
    ),
    "nemotron_h": lambda: transformers.NemotronHConfig(
        **{k: v for k, v in SIZES.items() if k != "num_hidden_layers"}, **ATTENTION, head_dim=8,
        layers_block_type=[*BOTH, "mlp", "moe"], ssm_state_size=8, mamba_num_heads=4,
        mamba_head_dim=16, n_groups=1, chunk_size=16, n_routed_experts=4,
        moe_intermediate_size=16, moe_shared_expert_intermediate_size=16,
    ),
    "mamba2": lambda: transformers.Mamba2Config(
        **SIZES, num_heads=4, head_dim=16, state_size=8, n_groups=1, chunk_size=16
    ),
    "falcon_mamba": lambda: transformers.FalconMambaConfig(**SIZES, state_size=4),
    "falcon_h1": lambda: transformers.FalconH1Config(
        **SIZES, **ATTENTION, **MAMBA, head_dim=8, mamba_d_ssm=64, lm_head_multiplier=0.5
    ),
    "zamba2": lambda: transformers.Zamba2Config(
        **SIZES | {"num_hidden_layers": 3}, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=512, layers_block_type=["linear_attention", "hybrid", "hybrid"],
        mamba_d_state=8, n_mamba_heads=4, chunk_size=16, use_shared_attention_adapter=True,
        adapter_rank=4, use_mem_rope=True,
    ),
}  # fmt: skip
MIXTURES = {
    "jamba": lambda: transformers.JambaConfig(
        **SIZES, **ATTENTION, num_experts=4, attn_layer_period=2, attn_layer_offset=1,
        mamba_d_state=4, mamba_dt_rank=4,
    ),
    "llama4": lambda: transformers.Llama4TextConfig(
        **SIZES, **ATTENTION, head_dim=8, intermediate_size_mlp=48, num_local_experts=4,
        interleave_moe_layer_step=2, attention_chunk_size=256,
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **SIZES | ATTENTION | {"num_key_value_heads": 4}, moe_intermediate_size=16,
        n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, kv_lora_rank=16,
        q_lora_rank=16, qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8,
        first_k_dense_replace=1,
    ),
}  # fmt: skip


def family_model(family, scale=0.2, **changes):
    """A random model of one of the families above."""
    config = (HYBRID | MIXTURES)[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    return drawn(config, scale)


ROTARY = {
    "longrope": lambda window, **size: transformers.Phi3Config(
        max_position_embeddings=512, original_max_position_embeddings=window,
        rope_parameters={
            "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [6.0] * 4,
            "rope_theta": 100.0, "factor": 8.0,
        },
        **size,
    ),
    "dynamic": lambda window, **size: transformers.LlamaConfig(
        max_position_embeddings=window,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
        **size,
    ),
    "dynamic in some layers": lambda window, **size: transformers.Gemma3TextConfig(
        max_position_embeddings=window, head_dim=8, query_pre_attn_scalar=8, sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
        },
        **size,
    ),
}  # fmt: skip


def length_dependent(kind, window=12, vocab_size=VOCABULARY):
    """A random model that turns all positions otherwise in texts longer than the window."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    config = ROTARY[kind](window, **SIZES | heads | {"vocab_size": vocab_size})
    return drawn(config, 0.3)


def drawn(config, scale):
    """A random model in float32, its weights large enough that scores differ clearly."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=1.0 if "embed" in name else scale)
    return model.eval()
