"""GPT-Neo, the GPT-3 that transformers has, against `GPTNeoForCausalLM`: bands, ties, widths."""

import transformers

BASE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_layers": 2,
    "attention_types": [[["global", "local"], 1]],
    "num_heads": 6,
    "window_size": 4,
    "max_position_embeddings": 40,
    "layer_norm_epsilon": 3e-5,
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def gpt3(**changed):
    return transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(**{**BASE, **changed}))


CASES = {
    "gpt3": gpt3,
    "gpt3 odd depth, untied": lambda: gpt3(
        num_layers=3,
        attention_types=[[["global", "local"], 1], [["global"], 1]],
        hidden_size=35,
        num_heads=5,
        intermediate_size=None,
        vocab_size=61,
        tie_word_embeddings=False,
    ),
    "gpt3 bands alone": lambda: gpt3(
        attention_types=[[["local"], 2]], window_size=3, activation_function="gelu"
    ),
    "gpt3 no band": lambda: gpt3(
        num_layers=1, attention_types=[[["global"], 1]], hidden_size=27, num_heads=3
    ),
    "gpt3 uneven turns": lambda: gpt3(
        num_layers=4,
        attention_types=[[["global"], 1], [["local"], 2], [["global"], 1]],
        window_size=7,
        hidden_size=36,
        num_heads=2,
        layer_norm_epsilon=1e-3,
        activation_function="relu",
    ),
}
