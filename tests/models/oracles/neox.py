"""GPT-NeoX against `GPTNeoXForCausalLM`: residuals, rotated shares, biases, ties, activations."""

import transformers

BASE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 40,
    "layer_norm_eps": 3e-5,
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def neox(rope=(0.25, 10_000.0), scaling=(), **changed):
    share, base = rope
    angles = {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": share}
    angles |= dict(scaling)
    config = transformers.GPTNeoXConfig(**{**BASE, "rope_parameters": angles, **changed})
    return transformers.GPTNeoXForCausalLM(config)


def in_file_names(tensors):
    """Files name the head `embed_out`, the class of transformers 5 names it `lm_head`."""
    return {name.replace("lm_head.", "embed_out."): value for name, value in tensors.items()}


CASES = {
    "neox": neox,
    "neox serial, tied": lambda: neox(
        use_parallel_residual=False,
        tie_word_embeddings=True,
        num_hidden_layers=3,
        hidden_size=60,
        num_attention_heads=5,
        rope=(0.5, 2_500.0),
        layer_norm_eps=1e-3,
    ),
    "neox without biases": lambda: neox(
        attention_bias=False, num_hidden_layers=1, num_attention_heads=3, rope=(1.0, 700.0)
    ),
    "neox one head, cut share": lambda: neox(
        hidden_size=23,
        num_attention_heads=1,
        num_hidden_layers=4,
        vocab_size=61,
        intermediate_size=31,
        hidden_act="gelu_new",
        rope=(0.3, 10_000.0),
    ),
    "neox relu, linear": lambda: neox(
        hidden_act="relu",
        num_hidden_layers=3,
        rope=(0.5, 10_000.0),
        scaling={"rope_type": "linear", "factor": 3.0},
    ),
    "neox silu, yarn": lambda: neox(
        hidden_act="silu",
        hidden_size=72,
        num_attention_heads=3,
        rope=(0.75, 5_000.0),
        scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10},
    ),
}
