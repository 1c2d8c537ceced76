"""Numbers that do not fit: one line with both of them, and a way out."""

import pytest

from stemma import api
from stemma.core.errors import UsageError

BASE = {"width": 24, "depth": 1, "num_heads": 3, "vocab_size": 11, "context": 16}
HIDDEN = {**BASE, "hidden": 8}
CASES = [
    (
        "llama",
        {**BASE, "num_heads": 5},
        "width (24) must be a multiple of num_heads (5), such as 20 or 25",
    ),
    (
        "llama",
        {**BASE, "num_heads": 8},
        "(3) must be a multiple of 2 (rotary pairs), such as 2 or 4",
    ),
    (
        "llama",
        {**BASE, "head_dim": 7},
        "(7) must be a multiple of 2 (rotary pairs), such as 6 or 8",
    ),
    (
        "qwen2",
        {**HIDDEN, "num_kv_heads": 2},
        "num_heads (3) must be a multiple of num_kv_heads (2)",
    ),
    (
        "bloom",
        {**BASE, "num_heads": 7},
        "width (24) must be a multiple of num_heads (7), such as 21",
    ),
    ("bert", {**BASE, "num_heads": 7}, "width (24) must be a multiple of num_heads (7)"),
    ("transformer", {**BASE, "encoder_num_heads": 5}, "of encoder_num_heads (5), such as 20 or 25"),
    ("decoder", {**BASE, "width": 15}, "width (15) must be a multiple of 2 (sines and cosines)"),
    (
        "neox",
        {**BASE, "rotary_fraction": 0.4},
        "of a head's 8 features is 3; wanted an even number",
    ),
    ("chatglm2", {**HIDDEN, "rotary_dim": 3}, "rotary_dim (3) must be a multiple of 2"),
    (
        "mixtral",
        {**HIDDEN, "num_experts": 2, "top_k": 3},
        "top_k (3) must be at most num_experts (2)",
    ),
    ("mixtral", {**HIDDEN, "num_experts": 2, "top_k": 0}, "top_k: input should be greater than"),
    ("switch", {**HIDDEN, "num_experts": 0}, "num_experts: input should be greater than"),
    (
        "mistral",
        {**HIDDEN, "window": 0},
        "window: input should be greater than or equal to 1 (got 0)",
    ),
    (
        "gemma3",
        {**HIDDEN, "window": 0},
        "window: input should be greater than or equal to 1 (got 0)",
    ),
    (
        "gpt3",
        {**BASE, "windows": (0,)},
        "windows: input should be greater than or equal to 1 (got 0)",
    ),
    ("t5", {**HIDDEN, "num_buckets": 2}, "num_buckets: input should be greater than or equal to 4"),
    ("performer", {**BASE, "features": 0}, "features: input should be greater than"),
    ("delta", {**BASE, "shifts": 0}, "shifts: input should be greater than"),
    ("lstm", {"width": 0, "depth": 1, "vocab_size": 3}, "width: input should be greater than"),
    ("lstm", {"width": 8, "depth": 1, "vocab_size": 3, "num_heads": 2}, "num_heads: unknown key"),
    ("bahdanau", {"width": 8}, "embedding_width: required key is missing; give embedding_width"),
    ("lamma", BASE, "unknown family or preset 'lamma'; did you mean llama"),
    ("mistral-8b", {}, "unknown family or preset 'mistral-8b'; did you mean mistral-7b"),
]


@pytest.mark.parametrize(("name", "numbers", "words"), CASES, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_is_told_with_both_numbers(name, numbers, words):
    with pytest.raises(UsageError) as caught:
        api.build(name, **numbers)
    line = str(caught.value)
    assert words in line and "\n" not in line and len(line) <= 300


@pytest.mark.parametrize(
    "preset",
    ["pythia-70m", "gpt2", "llama2-7b", "mistral-7b", "mixtral-8x7b", "qwen2-0.5b", "smollm2-135m"],
)
def test_published_sizes_have_their_names(preset):
    assert api.presets()[preset] in api.families()
