"""Qwen 3 against `Qwen3ForCausalLM`: norms of queries and keys, head widths, biases, windows."""

import transformers

BASE = {
    "vocab_size": 83,
    "hidden_size": 42,
    "intermediate_size": 53,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "max_position_embeddings": 40,
    "rms_norm_eps": 3e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MIXED = ["full_attention", "sliding_attention", "full_attention"]
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 700.0}


def qwen3(**changed):
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**BASE, **changed}))


CASES = {
    "qwen3": qwen3,
    "qwen3 tied": lambda: qwen3(tie_word_embeddings=True, head_dim=6, num_hidden_layers=1),
    "qwen3 biases": lambda: qwen3(attention_bias=True, num_key_value_heads=1, num_hidden_layers=3),
    "qwen3 width of no heads": lambda: qwen3(
        hidden_size=37,
        num_attention_heads=4,
        head_dim=8,
        num_key_value_heads=4,
        num_hidden_layers=4,
    ),
    "qwen3 late window": lambda: qwen3(
        use_sliding_window=True, sliding_window=4, max_window_layers=1, num_hidden_layers=3
    ),
    "qwen3 mixed windows": lambda: qwen3(
        use_sliding_window=True, sliding_window=6, layer_types=MIXED, num_hidden_layers=3
    ),
    "qwen3 linear": lambda: qwen3(rope_parameters=LINEAR, attention_bias=True),
}
