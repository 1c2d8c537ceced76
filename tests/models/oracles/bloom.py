"""BLOOM against `BloomForCausalLM`: head counts that are and are no powers of two, ties, depths."""

import transformers

BASE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "n_layer": 2,
    "n_head": 6,
    "layer_norm_epsilon": 3e-5,
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def bloom(**changed):
    return transformers.BloomForCausalLM(transformers.BloomConfig(**{**BASE, **changed}))


CASES = {
    "bloom six heads": bloom,
    "bloom five heads, untied": lambda: bloom(
        hidden_size=35, n_head=5, n_layer=3, vocab_size=61, tie_word_embeddings=False
    ),
    "bloom twelve heads": lambda: bloom(
        hidden_size=36, n_head=12, n_layer=4, layer_norm_epsilon=1e-3
    ),
    "bloom eight heads": lambda: bloom(hidden_size=56, n_head=8, n_layer=1),
    "bloom one head": lambda: bloom(hidden_size=27, n_head=1, vocab_size=43),
}
