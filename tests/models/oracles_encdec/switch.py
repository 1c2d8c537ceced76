"""Switch against transformers' class: steps, experts, capacities that bind and that do not."""

import transformers

BASE = {
    "vocab_size": 61,
    "d_model": 30,
    "d_kv": 7,
    "d_ff": 41,
    "num_layers": 4,
    "num_decoder_layers": 2,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 1,
    "num_heads": 3,
    "num_experts": 3,
    "expert_capacity": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "attn_implementation": "eager",
    "eos_token_id": None,
    "pad_token_id": None,
    "decoder_start_token_id": 0,
}


def switch(**changed):
    config = transformers.SwitchTransformersConfig(**{**BASE, **changed})
    return transformers.SwitchTransformersForConditionalGeneration(config)


CASES = {
    "switch": switch,
    "switch roomy": lambda: switch(expert_capacity=64, num_experts=5),
    "switch everywhere": lambda: switch(
        num_layers=2,
        num_decoder_layers=3,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=3,
        num_experts=2,
        expert_capacity=4,
    ),
    "switch without number": lambda: switch(
        num_layers=3,
        num_sparse_encoder_layers=0,
        num_sparse_decoder_layers=5,
        dense_act_fn="gelu",
        d_kv=10,
        layer_norm_epsilon=1e-3,
    ),
    "switch every third": lambda: switch(
        num_layers=5, num_sparse_encoder_layers=1, encoder_sparse_step=3, num_experts=7
    ),
    "switch untied": lambda: switch(tie_word_embeddings=False, expert_capacity=2),
}
