"""Gemma 3 against `Gemma3ForCausalLM`: patterns of windows, two bases, scalars, ties, biases."""

import transformers

BASE = {
    "vocab_size": 79,
    "hidden_size": 42,
    "intermediate_size": 53,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "query_pre_attn_scalar": 14,
    "max_position_embeddings": 40,
    "rms_norm_eps": 3e-5,
    "sliding_window": 5,
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MIXED = ["full_attention", "sliding_attention", "full_attention"]
FAR, NEAR = {"rope_type": "default", "rope_theta": 900.0}, {"rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 900.0}


def gemma3(**changed):
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**{**BASE, **changed}))


def angles(far, near):
    return {"rope_parameters": {"full_attention": far, "sliding_attention": near}}


CASES = {
    "gemma3 all windows": gemma3,
    "gemma3 seven blocks": lambda: gemma3(
        num_hidden_layers=7,
        sliding_window=4,
        hidden_size=20,
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
    "gemma3 mixed untied": lambda: gemma3(
        num_hidden_layers=3,
        layer_types=MIXED,
        tie_word_embeddings=False,
        sliding_window=3,
    ),
    "gemma3 no window": lambda: gemma3(
        layer_types=["full_attention"] * 4,
        num_hidden_layers=4,
        head_dim=6,
        attention_bias=True,
    ),
    "gemma3 old pattern": lambda: gemma3(
        sliding_window_pattern=2, num_key_value_heads=1, attention_bias=True
    ),
    "gemma3 scaled": lambda: gemma3(
        num_hidden_layers=3,
        layer_types=MIXED,
        **angles(LINEAR, {**NEAR, "rope_theta": 70.0}),
    ),
    "gemma3 both scaled": lambda: gemma3(
        num_hidden_layers=3,
        layer_types=MIXED,
        **angles(FAR, {**LINEAR, "factor": 4.0}),
    ),
    "gemma3 one block": lambda: gemma3(
        num_hidden_layers=1,
        layer_types=["full_attention"],
        query_pre_attn_scalar=3,
        **angles(FAR, NEAR),
        tie_word_embeddings=False,
    ),
}
