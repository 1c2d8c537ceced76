"""T5 against `T5ForConditionalGeneration`: both versions, head widths, depths, buckets."""

import torch
import transformers

BASE = {
    "vocab_size": 61,
    "d_model": 30,
    "d_kv": 7,
    "d_ff": 41,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "attn_implementation": "eager",
    "eos_token_id": None,
    "pad_token_id": None,
    "bos_token_id": None,
    "decoder_start_token_id": 0,
}


def t5(**changed):
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**{**BASE, **changed}))


def t5_with_own_head(**changed):
    """What transformers 5 makes of a T5 1.1 file: called tied, but the head is another matrix."""
    model = t5(tie_word_embeddings=False, **changed)
    model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach().clone())
    return model


CASES = {
    "t5": t5,
    "t5 uneven depths": lambda: t5(
        num_layers=1,
        num_decoder_layers=3,
        num_heads=5,
        d_kv=4,
        relative_attention_num_buckets=7,
        relative_attention_max_distance=6,
        layer_norm_epsilon=1e-3,
    ),
    "t5 gated": lambda: t5(feed_forward_proj="gated-gelu", num_decoder_layers=1, num_layers=3),
    "t5 gated silu": lambda: t5(feed_forward_proj="gated-silu", d_model=26, num_heads=1),
    "t5 usual buckets": lambda: t5(
        feed_forward_proj="gelu",
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
    ),
    "t5 tied without scale": lambda: t5(tie_word_embeddings=False),
    "t5 1.1": lambda: t5_with_own_head(feed_forward_proj="gated-gelu"),
}
