"""BERT against the classes of transformers: each set of heads, odd sizes, both ties."""

import transformers

BASE = {
    "vocab_size": 67,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 53,
    "max_position_embeddings": 19,
    "pad_token_id": None,
    "attn_implementation": "eager",
}


def bert(kind, **changed):
    return getattr(transformers, kind)(transformers.BertConfig(**{**BASE, **changed}))


CASES = {
    "bert pretraining": lambda: bert("BertForPreTraining"),
    "bert masked": lambda: bert(
        "BertForMaskedLM",
        hidden_size=35,
        num_attention_heads=5,
        num_hidden_layers=3,
        type_vocab_size=3,
        hidden_act="gelu_new",
        layer_norm_eps=1e-3,
    ),
    "bert masked untied": lambda: bert(
        "BertForMaskedLM", tie_word_embeddings=False, num_attention_heads=1, num_hidden_layers=1
    ),
    "bert pretraining untied": lambda: bert(
        "BertForPreTraining", tie_word_embeddings=False, hidden_act="relu"
    ),
    "bert sentence encoder": lambda: bert("BertModel", num_attention_heads=12),
    "bert pairs": lambda: bert("BertForNextSentencePrediction", type_vocab_size=5),
    "bert two labels": lambda: bert("BertForSequenceClassification"),
    "bert seven labels": lambda: bert(
        "BertForSequenceClassification", num_labels=7, hidden_size=28, num_attention_heads=7
    ),
}
