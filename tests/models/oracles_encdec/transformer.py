"""The Transformer of 2017 against `MarianMTModel`: depths, heads, widths, ties, vocabularies."""

import transformers

BASE = {
    "vocab_size": 71,
    "d_model": 36,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 50,
    "decoder_layers": 2,
    "decoder_attention_heads": 3,
    "decoder_ffn_dim": 50,
    "max_position_embeddings": 40,
    "activation_function": "relu",
    "scale_embedding": True,
    "attn_implementation": "eager",
    "eos_token_id": None,
    "pad_token_id": None,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": None,
}


def marian(**changed):
    return transformers.MarianMTModel(transformers.MarianConfig(**{**BASE, **changed}))


CASES = {
    "transformer 2017": marian,
    "transformer uneven halves": lambda: marian(
        encoder_layers=3,
        encoder_attention_heads=2,
        encoder_ffn_dim=29,
        decoder_layers=1,
        decoder_attention_heads=6,
        decoder_ffn_dim=43,
        activation_function="swish",
    ),
    "transformer plain scale": lambda: marian(
        d_model=26,
        encoder_attention_heads=1,
        decoder_attention_heads=13,
        decoder_layers=3,
        activation_function="gelu",
        scale_embedding=False,
    ),
    "transformer untied": lambda: marian(tie_word_embeddings=False, activation_function="gelu_new"),
    "transformer two vocabularies": lambda: marian(
        share_encoder_decoder_embeddings=False, decoder_vocab_size=59
    ),
}
