"""ChatGLM2's line against `GlmForCausalLM`: shares that turn, groups, head widths, biases, ties."""

import transformers

BASE = {
    "vocab_size": 79,
    "hidden_size": 42,
    "intermediate_size": 53,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 40,
    "rms_norm_eps": 3e-5,
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": [1],
    "pad_token_id": None,
}
ROPE = {"rope_type": "default", "rope_theta": 700.0}


def chatglm2(**changed):
    return transformers.GlmForCausalLM(transformers.GlmConfig(**{**BASE, **changed}))


def turning(share, **changed):
    return chatglm2(rope_parameters={**ROPE, "partial_rotary_factor": share}, **changed)


CASES = {
    "chatglm2": chatglm2,
    "chatglm2 one group": lambda: chatglm2(num_key_value_heads=1, num_hidden_layers=3),
    "chatglm2 tied": lambda: turning(0.5, tie_word_embeddings=True, head_dim=20),
    "chatglm2 no bias": lambda: turning(
        0.5, attention_bias=False, hidden_size=37, num_hidden_layers=4
    ),
    "chatglm2 all turns": lambda: turning(
        1.0, num_attention_heads=5, num_key_value_heads=5, hidden_size=45, head_dim=6
    ),
    "chatglm2 a sixth turns": lambda: turning(0.17, num_hidden_layers=1),
    "chatglm2 linear": lambda: chatglm2(
        rope_parameters={
            **ROPE,
            "rope_type": "linear",
            "factor": 2.0,
            "partial_rotary_factor": 0.67,
        }
    ),
}
