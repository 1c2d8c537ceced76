"""Qwen 2 against `Qwen2ForCausalLM`: biases, ties, windows in some blocks, said in both ways."""

import transformers

BASE = {
    "vocab_size": 83,
    "hidden_size": 42,
    "intermediate_size": 53,
    "num_hidden_layers": 2,
    "num_attention_heads": 7,
    "num_key_value_heads": 1,
    "max_position_embeddings": 40,
    "rms_norm_eps": 3e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 10,
    "rope_theta": 700.0,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def qwen2(**changed):
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**{**BASE, **changed}))


def windowed(**changed):
    return qwen2(use_sliding_window=True, **changed)


CASES = {
    "qwen2": qwen2,
    "qwen2 tied": lambda: qwen2(tie_word_embeddings=True, num_key_value_heads=7),
    "qwen2 deep": lambda: qwen2(
        hidden_size=40, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=4
    ),
    "qwen2 late window": lambda: windowed(
        sliding_window=3, max_window_layers=1, num_hidden_layers=3
    ),
    "qwen2 all windows": lambda: windowed(sliding_window=5, max_window_layers=0),
    "qwen2 window nowhere": lambda: windowed(sliding_window=5, max_window_layers=2),
    "qwen2 mixed windows": lambda: windowed(
        sliding_window=4, layer_types=MIXED, num_hidden_layers=4, tie_word_embeddings=True
    ),
    "qwen2 yarn": lambda: qwen2(rope_parameters=YARN, num_hidden_layers=1),
}
