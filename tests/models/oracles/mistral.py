"""Mistral against `MistralForCausalLM`: windows shorter and longer than the text, or none."""

import transformers

BASE = {
    "vocab_size": 89,
    "hidden_size": 60,
    "intermediate_size": 77,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 40,
    "rms_norm_eps": 3e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5_000.0},
    "sliding_window": None,
    "attn_implementation": "eager",
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


def mistral(**changed):
    return transformers.MistralForCausalLM(transformers.MistralConfig(**{**BASE, **changed}))


CASES = {
    "mistral": mistral,
    "mistral window": lambda: mistral(sliding_window=4, num_hidden_layers=3),
    "mistral window of two": lambda: mistral(sliding_window=2),
    "mistral wide window": lambda: mistral(sliding_window=12, num_key_value_heads=1),
    "mistral own head width": lambda: mistral(
        head_dim=14, hidden_size=45, num_hidden_layers=4, sliding_window=7
    ),
    "mistral tied": lambda: mistral(tie_word_embeddings=True, num_key_value_heads=6),
    "mistral yarn": lambda: mistral(rope_parameters=YARN, sliding_window=5, num_hidden_layers=1),
}
