"""GPT-2 against `GPT2LMHeadModel`: heads, ties, depths, inner widths."""

import transformers

BASE = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_head": 6,
    "n_layer": 2,
    "n_positions": 40,
    "n_inner": 72,
    "layer_norm_epsilon": 3e-5,
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def gpt2(**changed):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**BASE, **changed}))


CASES = {
    "gpt2": gpt2,
    "gpt2 relu, one head": lambda: gpt2(activation_function="relu", n_head=1, n_layer=1),
    "gpt2 untied": lambda: gpt2(tie_word_embeddings=False),
    "gpt2 deep, odd": lambda: gpt2(n_layer=3, n_embd=35, n_head=5, n_inner=None, vocab_size=61),
}
