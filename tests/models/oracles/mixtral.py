"""Mixtral against `MixtralForCausalLM`: experts, choices, windows, head widths, ties."""

import transformers

BASE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 38,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 40,
    "rms_norm_eps": 3e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5_000.0},
    "sliding_window": None,
    "router_aux_loss_coef": 0.03,
    "attn_implementation": "eager",
    "experts_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
YARN = {
    "rope_type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 20,
    "rope_theta": 300.0,
}


def mixtral(**changed):
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**{**BASE, **changed}))


def in_file_names(tensors):
    """Tensors by their names in memory, where all experts are one, by those that files have."""
    found = {}
    for name, tensor in tensors.items():
        layer, inside, part = name.partition(".mlp.")
        if not inside:
            found[name] = tensor
        elif part == "gate.weight":
            found[f"{layer}.block_sparse_moe.gate.weight"] = tensor
        else:
            parts = {"w2": tensor}
            if part == "experts.gate_up_proj":
                parts = dict(zip(("w1", "w3"), tensor.chunk(2, dim=1), strict=True))
            for own, stacked in parts.items():
                for expert, matrix in enumerate(stacked):
                    found[f"{layer}.block_sparse_moe.experts.{expert}.{own}.weight"] = matrix
    return found


CASES = {
    "mixtral five experts, two asked": mixtral,
    "mixtral three experts, one asked": lambda: mixtral(
        num_local_experts=3,
        num_experts_per_tok=1,
        num_hidden_layers=1,
        hidden_size=36,
        num_key_value_heads=1,
        intermediate_size=22,
    ),
    "mixtral tied": lambda: mixtral(tie_word_embeddings=True),
    "mixtral window": lambda: mixtral(sliding_window=4),
    "mixtral eight experts, three asked": lambda: mixtral(
        num_local_experts=8,
        num_experts_per_tok=3,
        num_hidden_layers=3,
        hidden_size=40,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=6,
        intermediate_size=26,
    ),
    "mixtral own head width": lambda: mixtral(
        hidden_size=31, num_attention_heads=5, num_key_value_heads=1, head_dim=6, sliding_window=7
    ),
    "mixtral yarn": lambda: mixtral(rope_parameters=YARN, head_dim=8, num_hidden_layers=1),
    "mixtral all experts asked": lambda: mixtral(num_local_experts=4, num_experts_per_tok=4),
}
