"""Llama's descendants: what their configs say in several ways, and the layouts first published.

Qwen and ChatGLM2 came with code of their own. Their folders are made here from an oracle that
computes the same, tensor by tensor under the published names.
"""

import json
import logging

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import stemma
from stemma import api
from stemma.core.errors import ModelError
from stemma.interop.foreign_config import read_config
from stemma.interop.tables import tables
from stemma.models.llama import LlamaConfig
from stemma.nn.rope_scaling import NTK, DoublingNTK, DynamicNTK, Interpolation, Llama3, Yarn
from tests.models import parity
from tests.models.oracles.chatglm2 import chatglm2
from tests.models.oracles.qwen2 import qwen2

NUMBERS = {
    "width": 32,
    "depth": 2,
    "num_heads": 4,
    "hidden": 30,
    "vocab_size": 31,
    "context": 64,
}
TABLES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "chatglm2", "chatglm", "qwen")
WINDOWED = ("mistral", "qwen2", "qwen3", "gemma3")
SCALED = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "chatglm2")


def foreign_of(name, own=None, **changed):
    """A sound `config.json` with keys changed; `...` removes one."""
    table = tables()[name]
    found = table.config_to_foreign(table.CONFIG(**{**NUMBERS, **(own or {})}))
    found |= {"model_type": table.MODEL_TYPE, "architectures": [table.ARCHITECTURE], **changed}
    return json.loads(json.dumps({k: v for k, v in found.items() if v is not ...}))


def read(name, own=None, **changed):
    return read_config(foreign_of(name, own, **changed), "config.json")[1]


def refused(name, *words, own=None, **changed):
    with pytest.raises(ModelError) as raised:
        read(name, own, **changed)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


# Configs, there and back


@pytest.mark.parametrize("name", TABLES)
def test_a_sound_config_is_read_without_a_word(name, caplog):
    assert read(name).model_dump().items() >= NUMBERS.items()
    assert not caplog.records


counts = st.integers(1, 8)


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries({"depth": st.integers(2, 9), "hidden": counts, "vocab_size": counts}),
    st.tuples(counts, counts, counts),
    st.integers(1, 9),
    st.one_of(
        st.just({"kind": "none"}),
        st.builds(lambda f: {"kind": "linear", "factor": f}, st.floats(1, 99)),
        st.builds(
            lambda f, c: {"kind": "yarn", "factor": f, "context": c}, st.floats(1, 99), counts
        ),
        st.builds(
            lambda f, c: {"kind": "llama3", "factor": f, "context": c}, st.floats(1, 99), counts
        ),
    ),
)
def test_any_config_survives_the_foreign_form(numbers, heads, window, scaling):
    groups, share, pairs = heads
    head_dim, num_heads = 2 * pairs, groups * share
    own = {**numbers, "num_heads": num_heads, "num_kv_heads": groups, "head_dim": head_dim}
    own |= {"width": 3 * num_heads, "rope_scaling": scaling, "attention_bias": window % 2 == 0}
    own |= {"window": window, "windowed": (0,), "tied": share > 3, "rope_base": 1.5 * window}
    own |= {"rotary_dim": 2, "qkv_bias": share > 2, "query_scalar": window}
    for name in SCALED:
        table = tables()[name]
        config = table.CONFIG(**{k: v for k, v in own.items() if k in table.CONFIG.model_fields})
        foreign = json.loads(json.dumps(table.config_to_foreign(config)))
        assert table.CONFIG(**table.config_from_foreign(foreign)) == config, name


def test_a_config_without_what_came_later_keeps_its_fingerprint():
    """0.1.0 knew none of the four: its runs must resume, its stages must not run again."""
    plain = LlamaConfig(**NUMBERS)
    assert not plain.model_dump().keys() & {"rope_scaling", "attention_bias", "mlp_bias"}
    assert "head_dim" not in plain.model_dump() and plain.head_dim == 8
    own = {"head_dim": 10, "mlp_bias": True, "rope_scaling": {"kind": "linear", "factor": 2.0}}
    other = LlamaConfig(**NUMBERS, **own)
    assert other.model_dump().items() >= own.items() and LlamaConfig(**other.model_dump()) == other
    assert api.fingerprint(plain) != api.fingerprint(other)


# Scaled angles


ORIGINAL = {"original_max_position_embeddings": 16}
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize(
    "said, scaling",
    [
        ({"rope_type": "linear", "factor": 2}, Interpolation(factor=2.0)),
        ({"type": "linear", "factor": 2.0}, Interpolation(factor=2.0)),
        ({"rope_type": "dynamic", "factor": 2.0}, DynamicNTK(factor=2.0, context=64)),
        ({"rope_type": "yarn", "factor": 4.0, **ORIGINAL}, Yarn(factor=4.0, context=16)),
        ({"rope_type": "yarn", "factor": None, **ORIGINAL}, Yarn(factor=4.0, context=16)),
        ({"rope_type": "yarn", "factor": 4.0}, Yarn(factor=4.0, context=64)),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": None}, Yarn(factor=4.0, context=64)),
        (
            {"rope_type": "llama3", "factor": 8.0, **ORIGINAL, **BANDS},
            Llama3(factor=8.0, context=16),
        ),
    ],
    ids=str,
)
def test_a_scheme_is_read_from_either_place(name, said, scaling):
    old = {"rope_scaling": said, "rope_parameters": ..., "rope_theta": 300.0}
    assert read(name, **old).rope_scaling == scaling
    assert read(name, **old).rope_base == 300.0
    if name != "gemma3":  # it tells its two kinds of blocks apart
        new = {"rope_parameters": {**said, "rope_theta": 300.0}, "rope_theta": ...}
        assert read(name, **new).rope_scaling == scaling
        assert read(name, **new).rope_base == 300.0


def test_shares_of_yarn_become_one_factor():
    said = {"rope_type": "yarn", "factor": 4.0, **ORIGINAL, "mscale": 1.0, "mscale_all_dim": 0.5}
    found = read("llama", rope_parameters=said, rope_theta=1e4).rope_scaling
    assert found.attention_factor == pytest.approx(1.138629436 / 1.069314718)
    explicit = {**said, "attention_factor": 1.5}
    assert read("llama", rope_parameters=explicit).rope_scaling.attention_factor == 1.5


def test_a_length_outside_counts_more_than_one_inside():
    said = {"rope_type": "yarn", "factor": 2.0, **ORIGINAL}
    found = read("llama", rope_parameters=said, original_max_position_embeddings=32)
    assert found.rope_scaling.context == 32


def test_ntk_is_written_as_the_larger_base_that_it_is():
    scaling = NTK(factor=3.0)
    found = read("llama", {"rope_scaling": scaling, "rope_base": 500.0})
    assert found.rope_scaling.kind == "none"
    assert found.rope_base == pytest.approx(500.0 * 3 ** (8 / 6))


@pytest.mark.parametrize(
    "said, words",
    [
        ({"rope_type": "longrope", "factor": 2.0}, ("longrope", "not supported")),
        ({"rope_type": "linear"}, ("factor", "missing")),
        ({"rope_type": "linear", "factor": 0.5}, ("greater than or equal to 1",)),
        ({"rope_type": "linear", "factor": "2"}, ("rope_scaling", "number")),
        ({"rope_type": "llama3", "factor": 2.0, **ORIGINAL}, ("high_freq_factor", "missing")),
        ({"rope_type": "linear", "factor": 2.0, "mrope_section": [1]}, ("mrope_section",)),
        ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, ("partial",)),
        (3, ("not an object",)),
    ],
    ids=str,
)
def test_a_scheme_that_nothing_computes_is_refused(said, words):
    refused("llama", *words, rope_parameters=said)
    refused("mistral", *words, rope_parameters=said)


def test_two_schemes_are_refused():
    linear, dynamic = ({"rope_type": kind, "factor": 2.0} for kind in ("linear", "dynamic"))
    refused("llama", "rope_scaling", "differ", rope_parameters=linear, rope_scaling=dynamic)
    read("llama", rope_parameters=linear, rope_scaling=linear)


# Windows


def test_mistral_has_a_window_unless_the_file_says_null():
    assert read("mistral", sliding_window=...).window == 4096
    assert read("mistral", sliding_window=None).window is None
    refused("mistral", "sliding_window", "greater than or equal to 1", sliding_window=0)


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_windows_of_qwen_begin_where_the_file_says(name):
    said = {"use_sliding_window": True, "sliding_window": 5, "layer_types": ...}
    assert read(name, **said, max_window_layers=1).windowed == (1,)
    assert read(name, **said, max_window_layers=0).windowed == (0, 1)
    late = read(name, **said, max_window_layers=2)
    assert late.windowed == () and late.window is None
    assert read(name, **said, max_window_layers=...).windowed == ()  # 28 in the class
    off = {**said, "use_sliding_window": False}
    assert read(name, **off, max_window_layers=0).window is None
    kinds = ["sliding_attention", "full_attention"]
    named = {**said, "layer_types": kinds}
    assert read(name, **named, max_window_layers=1).windowed == (0,)
    refused(name, "use_sliding_window", **{**off, "layer_types": kinds})
    refused(name, "3 entries", "is 2", **{**said, "layer_types": [*kinds, kinds[0]]})
    refused(name, "'chunked_attention'", **{**said, "layer_types": [kinds[0], "chunked_attention"]})


def test_windows_of_gemma_follow_the_pattern():
    assert read("gemma3", {"depth": 7}).windowed is None
    old = {"layer_types": ..., "sliding_window": 9}
    found = read("gemma3", {"depth": 7}, **old, sliding_window_pattern=3)
    assert found.windowed == (0, 1, 3, 4, 6) and found.sees(0) == 9 and found.sees(2) is None
    full = read("gemma3", layer_types=["full_attention"] * 2)
    assert full.windowed == () and full.window is None
    refused("gemma3", "sliding_window_pattern is 0", **old, sliding_window_pattern=0)
    refused("gemma3", "sliding_window is null", sliding_window=None)


def test_bases_of_gemma_are_read_in_either_form():
    old = {"rope_parameters": ..., "rope_theta": 5e5, "rope_local_base_freq": 7e3}
    found = read("gemma3", **old)
    assert (found.rope_base, found.local_rope_base) == (5e5, 7e3)
    usual = {"rope_parameters": ..., "rope_theta": ..., "rope_local_base_freq": ...}
    found = read("gemma3", **usual)
    assert (found.rope_base, found.local_rope_base) == (1e6, 1e4)
    local = {"sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0}}
    found = read("gemma3", **{**usual, "rope_parameters": local})
    assert found.local_rope_scaling == Interpolation(factor=2.0) and found.local_rope_base == 9.0
    refused("gemma3", "rope_parameters", rope_parameters={"rope_type": "default"})


@pytest.mark.parametrize("name", WINDOWED)
def test_a_lying_depth_makes_no_endless_list(name):
    changed = {"layer_types": ..., "use_sliding_window": True, "num_hidden_layers": 10**12}
    if name == "mistral":
        assert read(name, num_hidden_layers=10**12).depth == 10**12  # and nothing as long
    else:
        refused(name, "num_hidden_layers is 1000000000000", **changed)


@pytest.mark.parametrize(
    "family, numbers, words",
    [
        ("qwen2", {"window": 4}, "0 blocks are windowed, but window is 4"),
        ("qwen3", {"windowed": [1]}, "1 blocks are windowed, but window is None"),
        ("qwen2", {"window": 4, "windowed": [0, 2]}, "windowed block 2 is not one of 2"),
        ("gemma3", {"windowed": []}, "0 blocks are windowed, but window is 512"),
        ("gemma3", {"windowed": [1, 1]}, "(1, 1); name every block once, in order, as (1,)"),
        ("qwen2", {"window": 4, "windowed": [1, 1]}, "windowed is (1, 1); name every block once"),
        ("qwen3", {"window": 4, "windowed": [1, 0]}, "once, in order, as (0, 1)"),
        ("gemma3", {"windowed": [9]}, "windowed block 9 is not one of 2"),
        ("gemma3", {"window": None}, "window is None, so no block can have it: give windowed=()"),
        ("mistral", {"window": 0}, "greater than or equal to 1"),
        ("mistral", {"num_heads": 5}, "width (32) must be a multiple of num_heads (5)"),
        ("qwen3", {"num_kv_heads": 3}, "num_heads (4) must be a multiple of num_kv_heads (3)"),
        ("qwen3", {"head_dim": 7}, "(7) must be a multiple of 2"),
        ("chatglm2", {"rotary_dim": 3}, "rotary_dim (3) must be a multiple of 2"),
        ("chatglm2", {"rotary_dim": 10}, "rotary_dim (10) must be at most head_dim (8)"),
        ("qwen", {"num_heads": 32}, "width / num_heads (1) must be a multiple of 2"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_told_with_both(family, numbers, words):
    with pytest.raises(ValueError) as raised:
        api.sketch(family, **{**NUMBERS, **numbers})
    assert words in str(raised.value)


# Settings that would change an equation


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("llama", "is_causal", False),
        ("mistral", "hidden_act", "gelu"),
        ("mistral", "layer_types", ["full_attention"]),
        ("mistral", "partial_rotary_factor", 0.5),
        ("qwen2", "hidden_act", "gelu"),
        ("qwen2", "is_causal", False),
        ("qwen3", "hidden_act", "relu"),
        ("gemma3", "hidden_activation", "silu"),
        ("gemma3", "final_logit_softcapping", 30.0),
        ("gemma3", "attn_logit_softcapping", 50.0),
        ("gemma3", "use_bidirectional_attention", True),
        ("chatglm2", "hidden_act", "gelu"),
        ("chatglm2", "partial_rotary_factor", 1.5),
        ("chatglm", "rope_ratio", 16),
        ("chatglm", "add_bias_linear", True),
        ("chatglm", "rmsnorm", False),
        ("chatglm", "multi_query_attention", False),
        ("chatglm", "quantization_bit", 4),
        ("chatglm", "num_hidden_layers", 3),
        ("qwen", "no_bias", False),
        ("qwen", "rotary_pct", 0.5),
        ("qwen", "kv_channels", 6),
    ],
)
def test_a_setting_that_changes_the_equation_is_refused_by_name(name, key, value):
    refused(name, key, **{key: value})


# Layouts that were published with code of their own


QWEN = {
    "embedding": "transformer.wte",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "attention_norm": "ln_1",
    "mlp_norm": "ln_2",
    "output": "attn.c_proj",
    "up": "mlp.w1",
    "gate": "mlp.w2",
    "down": "mlp.c_proj",
}


def qwen_folder(path, oracle, **changed):
    """A Qwen 2 with as many key-value heads as query heads, under Qwen's names."""
    state, config = (
        {k.removeprefix("model."): v for k, v in oracle.state_dict().items()},
        oracle.config,
    )
    tensors = {
        "transformer.wte.weight": state["embed_tokens.weight"],
        "transformer.ln_f.weight": state["norm.weight"],
        "lm_head.weight": state["lm_head.weight"],
    }
    for index in range(config.num_hidden_layers):
        theirs, ours = f"layers.{index}", f"transformer.h.{index}"
        for kind in ("weight", "bias"):
            parts = [state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{ours}.attn.c_attn.{kind}"] = torch.cat(parts)
        for old, new in (
            ("input_layernorm", "ln_1"),
            ("post_attention_layernorm", "ln_2"),
            ("self_attn.o_proj", "attn.c_proj"),
            ("mlp.up_proj", "mlp.w1"),
            ("mlp.gate_proj", "mlp.w2"),
            ("mlp.down_proj", "mlp.c_proj"),
        ):
            tensors[f"{ours}.{new}.weight"] = state[f"{theirs}.{old}.weight"]
    numbers = {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "model_type": "qwen",
        "hidden_size": config.hidden_size,
        "intermediate_size": 2 * config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "kv_channels": config.hidden_size // config.num_attention_heads,
        "layer_norm_epsilon": config.rms_norm_eps,
        "rotary_emb_base": config.rope_parameters["rope_theta"],
        "seq_length": 40,
        "max_position_embeddings": 40,
        "vocab_size": config.vocab_size,
        "no_bias": True,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "use_flash_attn": "auto",
        "bf16": False,
        "tie_word_embeddings": False,
    }
    return published(path, numbers | changed, tensors)


def chatglm_folder(path, oracle, **changed):
    """A GLM as Hugging Face has it, under ChatGLM2's names."""
    state, config = (
        {k.removeprefix("model."): v for k, v in oracle.state_dict().items()},
        oracle.config,
    )
    tensors = {
        "transformer.embedding.word_embeddings.weight": state["embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": state["norm.weight"],
        "transformer.output_layer.weight": state["lm_head.weight"],
        "transformer.rotary_pos_emb.inv_freq": torch.ones(3),
    }
    for index in range(config.num_hidden_layers):
        theirs, ours = f"layers.{index}", f"transformer.encoder.layers.{index}"
        for kind in ("weight", "bias"):
            parts = [state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{ours}.self_attention.query_key_value.{kind}"] = torch.cat(parts)
        for old, new in (
            ("input_layernorm", "input_layernorm"),
            ("self_attn.o_proj", "self_attention.dense"),
            ("post_attention_layernorm", "post_attention_layernorm"),
            ("mlp.gate_up_proj", "mlp.dense_h_to_4h"),
            ("mlp.down_proj", "mlp.dense_4h_to_h"),
        ):
            tensors[f"{ours}.{new}.weight"] = state[f"{theirs}.{old}.weight"]
    code = "modeling_chatglm.ChatGLMForConditionalGeneration"
    numbers = {
        "architectures": ["ChatGLMModel"],
        "auto_map": {
            "AutoConfig": "configuration_chatglm.ChatGLMConfig",
            "AutoModel": code,
            "AutoModelForCausalLM": code,
            "AutoModelForSeq2SeqLM": code,
        },
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": config.intermediate_size,
        "hidden_size": config.hidden_size,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.rms_norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": config.num_key_value_heads,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "original_rope": True,
        "padded_vocab_size": config.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 40,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }
    return published(path, numbers | changed, tensors)


def published(path, numbers, tensors):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(numbers))
    save_file(
        {name: t.clone().contiguous() for name, t in tensors.items()}, path / "model.safetensors"
    )
    return path


ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
ORACLES = {
    "qwen": (qwen_folder, lambda: qwen2(num_key_value_heads=7)),
    "qwen deep": (
        qwen_folder,
        lambda: qwen2(
            hidden_size=40, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=3
        ),
    ),
    "chatglm2": (
        chatglm_folder,
        lambda: chatglm2(rope_parameters={**ROPE, "partial_rotary_factor": 0.5}),
    ),
    "chatglm2 one group": (
        chatglm_folder,
        lambda: chatglm2(
            num_key_value_heads=1,
            num_hidden_layers=3,
            rope_parameters={**ROPE, "partial_rotary_factor": 0.5},
        ),
    ),
}


@pytest.fixture(scope="module", params=ORACLES)
def pair(request, tmp_path_factory):
    make, oracle = ORACLES[request.param]
    theirs = parity.scatter(oracle())
    folder = make(tmp_path_factory.mktemp("published") / "model", theirs)
    return parity.Pair(stemma.load(folder)[0], theirs, folder)


def test_the_published_layout_equals_the_oracle(pair):
    assert parity.logits_error(pair) <= parity.LIMIT
    for side in ("left", "right"):
        assert parity.padded_error(pair, side) <= parity.LIMIT
        assert parity.ragged_error(pair, side) <= parity.LIMIT
    for chunks in parity.CHUNKS:
        assert parity.cached_error(pair, chunks) <= parity.LIMIT


def test_the_published_layout_has_the_oracles_gradients(pair):
    tokens_BT = parity.draw_tokens(pair)
    pair.theirs.zero_grad()
    pair.ours.zero_grad()
    pair.theirs(tokens_BT).logits.square().mean().backward()
    pair.ours(tokens_BT).square().mean().backward()
    theirs = sorted(p.grad.norm().item() for p in pair.theirs.parameters() if p.ndim == 1)
    own = [p.grad for n, p in pair.ours.named_parameters() if p.ndim == 1]
    assert sum(g.square().sum() for g in own).item() == pytest.approx(
        sum(norm**2 for norm in theirs), rel=1e-3
    )


def test_a_saved_network_of_a_published_layout_comes_back(pair, tmp_path):
    stemma.save(pair.ours, None, tmp_path / "again")
    again = stemma.load(tmp_path / "again")[0]
    assert again.config == pair.ours.config
    for name, value in pair.ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_published_chatglm_is_written_as_transformers_has_it(tmp_path):
    theirs = parity.scatter(ORACLES["chatglm2"][1]())
    model = stemma.load(chatglm_folder(tmp_path / "model", theirs))[0]
    stemma.save(model, None, tmp_path / "ours")
    again = transformers.GlmForCausalLM.from_pretrained(tmp_path / "ours")
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert api.info(tmp_path / "model")["family"] == "chatglm2"


def test_other_code_in_a_published_folder_is_refused(tmp_path):
    theirs = qwen2(num_key_value_heads=7)
    path = qwen_folder(tmp_path / "m", theirs, auto_map={"AutoModel": "modeling_qwen.Surprise"})
    with pytest.raises(ModelError, match="never run"):
        stemma.load(path)


def test_a_published_folder_without_a_tensor_is_refused(tmp_path):
    theirs = qwen2(num_key_value_heads=7)
    path = qwen_folder(tmp_path / "m", theirs, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"8 tensors missing, 0 unused"):
        stemma.load(path)
    path = qwen_folder(tmp_path / "m", theirs, intermediate_size=60)
    with pytest.raises(ModelError, match=r"check intermediate_size"):
        stemma.load(path)


def test_qwen_says_what_it_does_not_compute(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        found = read("qwen", use_logn_attn=True, use_dynamic_ntk=True)
    assert "use_logn_attn" in caplog.text and "64" in caplog.text
    assert found.rope_scaling == DoublingNTK(context=64)
    assert read("qwen", use_dynamic_ntk=False).rope_scaling.kind == "none"


@torch.no_grad()
def test_a_gemma_that_transformers_would_compute_otherwise_is_written_in_our_own_form(tmp_path):
    """It does not read `truncate` in the objects of two kinds of blocks, so neither may we."""
    scaling = {"kind": "yarn", "factor": 4.0, "context": 8, "whole": False}
    numbers = {**NUMBERS, "num_kv_heads": 2, "head_dim": 8}
    for key in ("rope_scaling", "local_rope_scaling"):
        model = api.build("gemma3", **numbers, **{key: scaling})
        stemma.save(model, None, tmp_path / key)
        said = json.loads((tmp_path / key / "config.json").read_text())
        assert said["model_type"] == "stemma"
        again = stemma.load(tmp_path / key)[0]
        assert again.config == model.config
        tokens_BT = torch.arange(12)[None]
        assert torch.equal(again(tokens_BT), model.eval()(tokens_BT))
