"""Scaled rotary angles: against transformers, against the papers' numbers, and as text grows."""

import math

import pytest
import torch
import transformers
from pydantic import TypeAdapter, ValidationError
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from stemma.models import llama, qwen2
from stemma.nn.context import Context
from stemma.nn.initial import initialise
from stemma.nn.position import Rope
from stemma.nn.rope_scaling import (
    NTK,
    DoublingNTK,
    DynamicNTK,
    Interpolation,
    Llama3,
    RopeScaling,
    Unscaled,
    Yarn,
    sharpness,
)

DIM, BASE, CONTEXT = 32, 10_000.0, 64
SCHEMES = [
    Unscaled(),
    Interpolation(factor=3.0),
    NTK(factor=3.0),
    DynamicNTK(factor=2.0, context=CONTEXT),
    DoublingNTK(context=CONTEXT),
    Yarn(factor=4.0, context=CONTEXT),
    Llama3(factor=8.0, context=CONTEXT),
]


def places(length, rows=1):
    return torch.arange(length).expand(rows, length)


def found(scaling, length=CONTEXT, dim=DIM, base=BASE):
    frequency, factor = scaling.frequencies(dim, base, places(length))
    return frequency.reshape(-1), factor


# Each scheme against transformers


def theirs(rope, length=None, dim=DIM, base=BASE, **config):
    made = transformers.LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        head_dim=dim,
        rope_parameters={"rope_theta": base, **rope},
        **{"max_position_embeddings": 4 * CONTEXT, **config},
    )
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](made, "cpu", seq_len=length)


def pairs_of_schemes():
    yield Interpolation(factor=3.0), {"rope_type": "linear", "factor": 3.0}
    length = {"original_max_position_embeddings": CONTEXT}
    yarn = {"rope_type": "yarn", "factor": 4.0, **length}
    yield Yarn(factor=4.0, context=CONTEXT), yarn
    yield Yarn(factor=4.0, context=CONTEXT, whole=False), {**yarn, "truncate": False}
    turns = {"beta_fast": 6.0, "beta_slow": 0.5}
    yield Yarn(factor=4.0, context=CONTEXT, fast=6.0, slow=0.5), {**yarn, **turns}
    yield Yarn(factor=4.0, context=CONTEXT, temperature=1.7), {**yarn, "attention_factor": 1.7}
    yield Yarn(factor=1.0, context=CONTEXT), {**yarn, "factor": 1.0}
    # all ends of the ramp outside of the pairs, or on one of them
    yield Yarn(factor=4.0, context=3), {**yarn, "original_max_position_embeddings": 3}
    same = {"beta_fast": 5.0, "beta_slow": 5.0, "truncate": False}
    yield Yarn(factor=4.0, context=CONTEXT, fast=5.0, slow=5.0, whole=False), {**yarn, **same}
    bands = {"rope_type": "llama3", "factor": 8.0, **length}
    yield (
        Llama3(factor=8.0, context=CONTEXT),
        {**bands, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    )
    yield (
        Llama3(factor=8.0, context=CONTEXT, fast=2.5, slow=0.25),
        {**bands, "low_freq_factor": 0.25, "high_freq_factor": 2.5},
    )


@pytest.mark.parametrize("dim, base", [(32, 10_000.0), (10, 500.0), (128, 5e5)])
@pytest.mark.parametrize("ours, rope", [*pairs_of_schemes()], ids=str)
def test_frequencies_and_factor_are_those_of_transformers(ours, rope, dim, base):
    frequency, factor = found(ours, dim=dim, base=base)
    expected, expected_factor = theirs(rope, dim=dim, base=base)
    torch.testing.assert_close(frequency, expected, rtol=1e-6, atol=0)
    assert factor == pytest.approx(expected_factor, rel=1e-12)


@pytest.mark.parametrize("length", [3, CONTEXT, CONTEXT + 1, 3 * CONTEXT])
def test_growing_frequencies_are_those_of_transformers(length):
    rope = {"rope_type": "dynamic", "factor": 2.0}
    expected, factor = theirs(rope, length=length, max_position_embeddings=CONTEXT)
    frequency, own = found(DynamicNTK(factor=2.0, context=CONTEXT), length)
    torch.testing.assert_close(frequency, expected, rtol=1e-5, atol=0)
    assert factor == own == 1.0


# What the papers say of them


def test_ntk_stretches_the_slowest_pair_by_the_factor_and_the_fastest_not_at_all():
    plain, _ = found(Unscaled())
    stretched, _ = found(NTK(factor=3.0))
    assert stretched[0] == plain[0]
    assert (plain[-1] / stretched[-1]).item() == pytest.approx(3.0, rel=1e-5)
    assert NTK(factor=3.0).base(DIM, BASE) == pytest.approx(BASE * 3 ** (32 / 30), rel=1e-12)


@pytest.mark.parametrize("kind", [Yarn, Llama3])
def test_fast_pairs_stay_and_slow_ones_are_interpolated(kind):
    plain, _ = found(Unscaled())
    bands, _ = found(kind(factor=8.0, context=CONTEXT, fast=4.0, slow=1.0))
    turns = CONTEXT * plain / (2 * math.pi)
    torch.testing.assert_close(bands[turns > 9], plain[turns > 9])
    torch.testing.assert_close(bands[turns < 0.5], plain[turns < 0.5] / 8)
    assert (bands.diff() < 0).all()


@pytest.mark.parametrize(
    "length, factor", [(1, 1), (64, 1), (65, 3), (128, 3), (129, 7), (256, 7), (257, 15)]
)
def test_doubling_grows_in_steps(length, factor):
    steps, _ = found(DoublingNTK(context=CONTEXT), length)
    torch.testing.assert_close(steps, found(NTK(factor=float(factor)))[0])


def test_sharpness_is_equation_22():
    assert sharpness(32.0) == pytest.approx(0.1 * math.log(32) + 1)
    assert sharpness(1.0) == sharpness(0.5) == 1.0
    assert sharpness(math.e, 0.7) == pytest.approx(1.07)


@pytest.mark.parametrize("scaling", SCHEMES, ids=lambda scaling: scaling.kind)
def test_up_to_the_context_what_grows_is_as_trained(scaling):
    plain, _ = found(Unscaled(), 5)
    if scaling.grows:
        torch.testing.assert_close(found(scaling, CONTEXT)[0], plain)
        assert not torch.equal(found(scaling, CONTEXT + 1)[0], plain)
    else:
        torch.testing.assert_close(found(scaling, 5)[0], found(scaling, 500)[0])


# As values of a config


@pytest.mark.parametrize("scaling", [s for s in SCHEMES if s.kind != "doubling"], ids=repr)
def test_a_scheme_is_told_apart_by_its_kind(scaling):
    adapter = TypeAdapter(RopeScaling)
    assert adapter.validate_python(scaling.model_dump()) == scaling
    assert hash(adapter.validate_json(scaling.model_dump_json())) == hash(scaling)


@pytest.mark.parametrize(
    "numbers, words",
    [
        ({"kind": "linear", "factor": 0.5}, "greater than or equal to 1"),
        ({"kind": "linear"}, "required"),
        ({"kind": "linear", "factor": 2.0, "context": 8}, "not permitted"),
        ({"kind": "dynamic", "factor": 2.0, "context": 0}, "greater than or equal to 1"),
        (
            {"kind": "llama3", "factor": 2.0, "context": 8, "fast": 1.0},
            r"fast \(1.0\).*slow \(1.0\)",
        ),
        ({"kind": "spiral"}, "spiral"),
        ({"factor": 2.0}, "kind"),
    ],
    ids=str,
)
def test_impossible_numbers_are_refused(numbers, words):
    with pytest.raises(ValidationError, match=words):
        TypeAdapter(RopeScaling).validate_python(numbers)


@pytest.mark.parametrize("scaling", [NTK(factor=2.0), DynamicNTK(factor=2.0, context=8)])
def test_a_single_pair_has_no_slowest(scaling):
    with pytest.raises(ValueError, match="at least 4 rotary features, not 2"):
        scaling.frequencies(2, BASE, places(4))


# In a network, beyond the context: the law that growing schemes keep


NUMBERS = {"width": 24, "depth": 2, "num_heads": 2, "vocab_size": 50, "context": 8}
GROWING = [{"kind": "dynamic", "factor": 3.0, "context": 8}]


def network(scaling, depth=2):
    numbers = {**NUMBERS, "depth": depth, "rope_scaling": scaling}
    model = llama.build(llama.LlamaConfig(**numbers))
    initialise(model, seed=1, std=0.3, depth=depth)
    return model.double().eval().requires_grad_(False)


def tokens(rows, length):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 50, (rows, length), generator=generator)


def test_a_text_beyond_the_context_equals_the_oracle():
    """A fresh oracle: the one that has read a longer text before keeps that one's angles."""
    model = network(GROWING[0]).float()
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10_000.0},
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
    )
    tokens_BT, own = tokens(3, 21), dict(model.named_parameters())
    oracle = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    renamed = {
        "embed_tokens": "embedding",
        "layers": "blocks",
        "self_attn": "attention",
        "q_proj": "query",
        "k_proj": "key",
        "v_proj": "value",
        "o_proj": "output",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm",
        "gate_proj": "gate",
        "up_proj": "up",
        "down_proj": "down",
        "lm_head": "head",
    }
    for name, parameter in oracle.named_parameters():
        parts = [renamed.get(part, part) for part in name.split(".") if part != "model"]
        parameter.copy_(own[".".join(parts)])
    torch.testing.assert_close(model(tokens_BT), oracle(tokens_BT).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(tokens_BT), network({"kind": "none"}).float()(tokens_BT))


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_has_the_angles_of_its_own_length(side):
    model, tokens_BT = network(GROWING[0]), tokens(3, 21)
    real_BT = torch.ones(3, 21, dtype=torch.bool)
    for row, length in ((1, 12), (2, 6)):
        real_BT[row, : 21 - length] = False
    real_BT = real_BT if side == "left" else real_BT.flip(1)
    together = model(tokens_BT, Context(padding_BT=real_BT))
    for row, real_T in enumerate(real_BT):
        alone = model(tokens_BT[row : row + 1, real_T])[0]
        torch.testing.assert_close(together[row, real_T], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunks", [(21,), (20, 1), (7, 13, 1)], ids=str)
def test_a_new_token_sees_the_whole_text_at_the_angles_of_its_length(chunks):
    """One block deep, so that nothing was computed before the text had its length."""
    model, tokens_BT = network(GROWING[0], depth=1), tokens(2, 21)
    cache = model.new_cache(21)
    parts = [model(part, Context(caches=cache)) for part in tokens_BT.split(chunks, dim=1)]
    torch.testing.assert_close(parts[-1][:, -1], model(tokens_BT)[:, -1], rtol=0, atol=1e-6)


def test_windows_of_several_lengths_share_growing_angles():
    """Each window keeps slots of its own, so each has keys of its own to turn."""
    numbers = {**NUMBERS, "hidden": 20, "context": 64, "window": 4, "windowed": (0,)}
    scaling = {"kind": "dynamic", "factor": 2.0, "context": 64}
    model = qwen2.build(qwen2.Qwen2Config(**numbers, rope_scaling=scaling))
    initialise(model, seed=1, std=0.3, depth=2)
    model, tokens_BT = model.double().eval().requires_grad_(False), tokens(2, 20)
    cache = model.new_cache(20)
    chunks = tokens_BT.split((5, 5, 5, 3, 1, 1), dim=1)
    parts = [model(part, Context(caches=cache)) for part in chunks]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens_BT), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scaling", [s for s in SCHEMES if not s.grows], ids=repr)
def test_only_the_distance_of_two_tokens_counts(scaling):
    rope, generator = Rope(DIM, BASE, scaling=scaling), torch.Generator().manual_seed(2)
    query, key = torch.randn(2, 1, 1, 1, DIM, generator=generator)

    def score(at, of):
        turned = [
            rope.rotate(x, rope.table(torch.tensor([[p]]))) for x, p in ((query, at), (key, of))
        ]
        return (turned[0] * turned[1]).sum().item()

    assert score(9, 4) == pytest.approx(score(205, 200), abs=2e-3)
    assert abs(score(9, 4) - score(9, 3)) > 1e-2
