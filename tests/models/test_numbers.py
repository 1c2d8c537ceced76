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
        "width (24) must be a multiple of num_heads (5), such as num_heads=4 or width=20",
    ),
    (
        "llama",
        {**BASE, "num_heads": 8},
        "(3) must be a multiple of 2 (rotary pairs), such as num_heads=6 or width=16",
    ),
    (
        "llama",
        {**BASE, "head_dim": 7},
        "(7) must be a multiple of 2 (rotary pairs), such as head_dim=6",
    ),
    (
        "qwen2",
        {**HIDDEN, "num_kv_heads": 2},
        "num_heads (3) must be a multiple of num_kv_heads (2)",
    ),
    (
        "bloom",
        {**BASE, "num_heads": 7},
        "width (24) must be a multiple of num_heads (7), such as num_heads=6 or width=21",
    ),
    ("bert", {**BASE, "num_heads": 7}, "width (24) must be a multiple of num_heads (7)"),
    (
        "transformer",
        {**BASE, "encoder_num_heads": 5},
        "of encoder_num_heads (5), such as encoder_num_heads=4 or width=30",
    ),
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


@pytest.mark.parametrize(("name", "numbers", "words"), CASES, ids=lambda value: str(value)[:40])
def test_what_is_suggested_fits(name, numbers, words):
    """Each suggestion by itself mends all of it, not only what was complained of."""
    with pytest.raises(UsageError) as caught:
        api.build(name, **numbers)
    _, _, near = str(caught.value).partition(", such as ")
    for suggestion in near.partition(";")[0].split(" or ") if near else ():
        key, value = suggestion.split("=")
        api.sketch(name, **{**numbers, key: int(value)})


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"rope_scaling": {"kind": "yarn", "factor": 4.0}}, "rope_scaling.context: required key"),
        ({"rope_scaling": {"kind": "linear", "facto": 4.0}}, "rope_scaling.facto: unknown key"),
        ({"width": 8, "num_heads": 4, "rope_scaling": {"kind": "ntk", "factor": 2.0}}, "NTK"),
        ({"width": 10**9}, "too large for any machine"),
        ({"width": 10**19 * 6}, "too large for any machine"),
        ({"initial_std": float("inf")}, "initial_std"),
        ({"dept": 2, "depth": None}, "dept: unknown key; did you mean depth"),
    ],
    ids=str,
)
def test_what_no_network_can_be_made_of_is_one_line(numbers, words):
    given = {key: value for key, value in {**BASE, **numbers}.items() if value is not None}
    if "width" in numbers and numbers["width"] > 8:
        given["num_heads"] = 1
    with pytest.raises(UsageError) as caught:
        api.sketch("llama", **given)
    assert words in str(caught.value) and "\n" not in str(caught.value)
