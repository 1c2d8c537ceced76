"""Llama against `LlamaForCausalLM`: heads, groups, ties, depths, head widths, biases, angles.

The texts are longer than the context that the schemes of scaled angles were made for; those of
the scheme that grows with the text are not, because there the oracle itself depends on what it
has read before (see tests/nn/test_rope_scaling.py).
"""

import transformers

BASE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 40,
    "rms_norm_eps": 3e-5,
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
THETA = {"rope_theta": 5_000.0}
ROPE = {"rope_type": "default", **THETA}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10, **THETA}
BANDS = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 9,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    **THETA,
}


def llama(**changed):
    config = transformers.LlamaConfig(**{**BASE, "rope_parameters": ROPE, **changed})
    return transformers.LlamaForCausalLM(config)


def scaled(rope, **changed):
    return llama(rope_parameters=rope, num_key_value_heads=3, head_dim=10, **changed)


CASES = {
    "llama multi-head": lambda: llama(num_key_value_heads=6),
    "llama grouped": lambda: llama(num_key_value_heads=2),
    "llama grouped tied": lambda: llama(num_key_value_heads=2, tie_word_embeddings=True),
    "llama multi-query": lambda: llama(num_key_value_heads=1),
    "llama own head width tied": lambda: llama(head_dim=14, tie_word_embeddings=True),
    "llama narrow heads": lambda: llama(head_dim=6, num_key_value_heads=3, num_hidden_layers=4),
    "llama attention bias": lambda: llama(attention_bias=True, num_key_value_heads=2),
    "llama all biases": lambda: llama(
        attention_bias=True,
        mlp_bias=True,
        num_hidden_layers=1,
        hidden_size=35,
        head_dim=4,
        num_attention_heads=5,
        intermediate_size=51,
    ),
    "llama mlp bias": lambda: llama(mlp_bias=True, num_hidden_layers=3, vocab_size=61),
    "llama linear": lambda: scaled({"rope_type": "linear", "factor": 3.0, **THETA}),
    "llama dynamic": lambda: scaled({"rope_type": "dynamic", "factor": 2.0, **THETA}),
    "llama yarn": lambda: scaled(YARN),
    "llama yarn mscale": lambda: scaled({**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}),
    "llama yarn factor": lambda: scaled({**YARN, "attention_factor": 1.3, "beta_fast": 3.0}),
    "llama yarn whole": lambda: scaled({**YARN, "beta_fast": 2.5, "beta_slow": 0.3}),
    "llama yarn split": lambda: scaled(
        {**YARN, "beta_fast": 2.5, "beta_slow": 0.3, "truncate": False}, tie_word_embeddings=True
    ),
    "llama bands": lambda: scaled(BANDS, num_hidden_layers=3),
    "llama wide bands": lambda: scaled({**BANDS, "low_freq_factor": 0.2, "high_freq_factor": 1.7}),
}
