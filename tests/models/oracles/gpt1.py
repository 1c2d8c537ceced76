"""GPT-1 against `OpenAIGPTLMHeadModel`: heads, ties, depths, activations."""

import transformers

BASE = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_head": 6,
    "n_layer": 2,
    "n_positions": 40,
    "layer_norm_epsilon": 3e-5,
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def gpt1(**changed):
    return transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**{**BASE, **changed}))


CASES = {
    "gpt1": gpt1,
    "gpt1 untied, silu": lambda: gpt1(tie_word_embeddings=False, afn="silu", n_layer=1, n_head=2),
    "gpt1 deep, odd": lambda: gpt1(
        n_layer=4, n_embd=35, n_head=5, vocab_size=61, n_positions=29, layer_norm_epsilon=1e-3
    ),
    "gpt1 relu": lambda: gpt1(n_layer=3, n_embd=51, n_head=1, afn="relu"),
}
