"""GPT-1, GPT-3, GPT-NeoX, BLOOM and Baichuan: what their configs say in more than one way."""

import json
import logging
import sys

import pytest
import torch

import stemma
from stemma import api
from stemma.core.errors import ModelError
from stemma.interop.activations import SPELLINGS, read_activation
from stemma.interop.foreign_config import read_config
from stemma.interop.tables import tables
from tests.models.parity import cases, draw_tokens, pair_of, scatter

NUMBERS = {"width": 24, "depth": 2, "num_heads": 3, "vocab_size": 31, "context": 16}
CODE = {
    "AutoConfig": "configuration_baichuan.BaichuanConfig",
    "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
}
OWN = {"gpt3": {"score_scale": 1.0, "qkv_bias": False}, "baichuan": {"hidden": 40}}
NAMES = ("gpt1", "gpt3", "neox", "bloom", "baichuan")


def foreign_of(family, **changed):
    """A sound `config.json` with keys changed; `...` removes one."""
    numbers = {**NUMBERS, **OWN.get(family, {})}
    table = tables()[family]
    found = table.config_to_foreign(table.CONFIG(**numbers))
    found |= {"model_type": table.MODEL_TYPE, "architectures": [table.ARCHITECTURE], **changed}
    return {key: value for key, value in found.items() if value is not ...}


def read(family, **changed):
    found, config = read_config(json.loads(json.dumps(foreign_of(family, **changed))), "c.json")
    assert found == family
    return config


def refused(family, *words, **changed):
    with pytest.raises(ModelError) as raised:
        read(family, **changed)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("family", NAMES)
def test_a_sound_config_is_read_without_a_word(family, caplog):
    assert read(family).model_dump().items() >= NUMBERS.items()
    assert not caplog.records


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("gpt1", "attn_pdrop"),
        ("gpt3", "attention_dropout"),
        ("neox", "attention_dropout"),
        ("bloom", "attention_dropout"),
    ],
)
def test_a_dropout_that_is_not_ours_is_logged(family, key, caplog):
    read(family, **{key: 0.37})
    assert "the one dropout used in training" in caplog.text


@pytest.mark.parametrize("word", [word for words in SPELLINGS.values() for word in words])
def test_every_spelling_of_an_activation_is_the_oracles_function(word):
    from transformers.activations import ACT2FN

    from stemma.nn.mlp import ACTIVATIONS

    x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    found = ACTIVATIONS[read_activation("hidden_act", word)](x)
    torch.testing.assert_close(found, ACT2FN[word](x), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("family", "key"), [("gpt1", "afn"), ("gpt3", "activation_function"), ("neox", "hidden_act")]
)
@pytest.mark.parametrize("word", ["quick_gelu", None, ["gelu"]])
def test_an_unknown_activation_is_refused_by_name(family, key, word):
    refused(family, f"{key} is {word!r}, supported are ", **{key: word})


@pytest.mark.parametrize(
    ("family", "key", "alias", "number"),
    [
        ("bloom", "hidden_size", "n_embed", 24),
        ("bloom", "n_head", "num_attention_heads", 3),
        ("gpt3", "num_layers", "num_hidden_layers", 2),
    ],
)
def test_second_names_of_keys(family, key, alias, number, caplog):
    assert read(family, **{key: ..., alias: number}) == read(family)
    assert read(family, **{alias: number}) == read(family)
    assert not caplog.records
    refused(family, f"{alias} is 6, but {key} is {number}", **{alias: 6})


def test_neox_says_its_angles_as_transformers_4_did():
    old = {"rope_parameters": ..., "rope_theta": ...}
    config = read("neox", **old, rotary_pct=0.5, rotary_emb_base=500)
    assert (config.rotary_fraction, config.rope_base) == (0.5, 500.0)
    config = read("neox", **old, rotary_pct=..., rotary_emb_base=...)
    assert (config.rotary_fraction, config.rope_base) == (0.25, 10_000.0)


def test_neox_refuses_features_that_do_not_pair():
    inside = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4}
    words = "rotary_fraction (0.4) of a head's 8 features is 3; wanted an even number, at least 2"
    refused("neox", words, rope_parameters=inside)


def test_bloom_file_without_prefix_loads(tmp_path):
    pair = pair_of("bloom six heads")
    pair.theirs.transformer.save_pretrained(tmp_path)
    place = tmp_path / "config.json"
    config = json.loads(place.read_text()) | {"architectures": ["BloomForCausalLM"]}
    place.write_text(json.dumps(config))
    for name, value in stemma.load(tmp_path)[0].state_dict().items():
        assert torch.equal(value, pair.ours.state_dict()[name]), name


def test_bloom_refuses_the_residual_after_the_norm():
    key = "apply_residual_connection_post_layernorm"
    refused("bloom", f"c.json: {key}", **{key: True})


def test_bloom_refuses_slices_that_drop_biases():
    words = "slow_but_exact is true and pretraining_tp is 2"
    refused("bloom", words, slow_but_exact=True, pretraining_tp=2)
    for alone in ({"slow_but_exact": True, "pretraining_tp": 1}, {"pretraining_tp": 4}):
        assert read("bloom", **alone) == read("bloom")


def test_transformers_drops_biases_in_slices():
    """Why they are refused: the two settings together are another network."""
    theirs = pair_of("bloom six heads").theirs
    tokens_BT = torch.arange(9)[None]
    with torch.no_grad():
        whole = theirs(tokens_BT).logits
        layers = [
            part for block in theirs.transformer.h for part in (block.self_attention, block.mlp)
        ]
        for part in layers:
            part.pretraining_tp, part.slow_but_exact = 2, True
        sliced = theirs(tokens_BT).logits
        for part in layers:
            part.pretraining_tp, part.slow_but_exact = 1, False
    assert (whole - sliced).abs().max() > 0.1


@pytest.mark.parametrize(
    ("family", "changed", "words"),
    [
        ("bloom", {"n_head": 5}, "hidden_size (24) must be a multiple of n_head (5)"),
        (
            "bloom",
            {"n_head": ..., "num_attention_heads": 5},
            "hidden_size (24) must be a multiple of num_attention_heads (5), such as num_attention",
        ),
        (
            "neox",
            {"num_attention_heads": 5},
            "hidden_size (24) must be a multiple of num_attention",
        ),
        ("baichuan", {"num_attention_heads": 8}, "hidden_size / num_attention_heads (3) must be"),
        (
            "neox",
            {"rope_parameters": {"rope_type": "dynamic", "factor": -1.0, "rope_theta": 1e4}},
            "rope_scaling.factor: input should be greater than",
        ),
        (
            "neox",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "original_max_position_embeddings": -4,
                }
            },
            "rope_scaling.original_max_position_embeddings: input should be greater than",
        ),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_told_in_the_words_of_the_file(family, changed, words):
    refused(family, words, **changed)


@pytest.mark.parametrize(
    ("types", "windows"),
    [
        ([[["global", "local"], 2]], (None, 7)),
        ([[["local"], 3], [["global"], 1]], (7, 7, 7, None)),
        ([[["local"], 4]], (7,)),
        ([[["global"], 1], [["local", "global"], 1], [["local"], 1]], (None, 7)),
    ],
)
def test_gpt_neo_layers_in_order(types, windows):
    own = {"num_layers": 4, "attention_layers": ..., "window_size": 7}
    assert read("gpt3", **own, attention_types=types).windows == windows


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"attention_types": [[["local"], 3]]}, "attention_types has 3 layers, num_layers is 2"),
        ({"attention_types": [[["flash"], 2]]}, "attention_types has the kind 'flash'"),
        ({"attention_types": [[["local"], 10**12]]}, "has 1000000000000 layers, of at most 10000"),
        ({"attention_types": [[["local"], 2.0]]}, "attention_types is [[['local'], 2.0]], wanted"),
        ({"attention_types": 3}, "attention_types is 3, wanted such as"),
        ({"attention_types": [[3, 2]]}, "attention_types is [[3, 2]], wanted such as"),
        ({"attention_types": [["local", 2, 1]]}, "attention_types is [['local', 2, 1]], wanted"),
        ({"attention_layers": ["local", "local"]}, "attention_layers and attention_types name"),
        ({"attention_types": ..., "attention_layers": ...}, "24 layers, num_layers is 2"),
    ],
)
def test_gpt_neo_refuses_layers_that_do_not_fit(changed, word):
    refused("gpt3", word, **changed)


def test_gpt_neo_refuses_a_window_of_nothing():
    own = {"attention_layers": ..., "attention_types": [[["local"], 2]]}
    refused("gpt3", "windows", "greater than or equal to 1", **own, window_size=0)


@pytest.mark.parametrize(
    "numbers", [{}, {"qkv_bias": False}, {"score_scale": 1.0}, {"windows": (None, 4, 5)}]
)
@torch.no_grad()
def test_a_gpt3_that_is_no_gpt_neo_is_saved_in_our_own_form(numbers, tmp_path):
    """transformers would compute something else from it, and must not recognise it."""
    model = scatter(api.build("gpt3", **{**NUMBERS, "depth": 3, **numbers}))
    api.save(model, None, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "stemma"
    again = stemma.load(tmp_path / "m")[0]
    assert again.config == model.config
    tokens_BT = torch.arange(12)[None]
    assert torch.equal(again(tokens_BT), model(tokens_BT))


def test_baichuan_is_told_from_what_its_files_say():
    plain = {"position_embedding": ..., "norm_head": ..., "rope_theta": ...}
    first = read("baichuan", **plain)
    assert (first.position.kind, first.norm_head, first.context) == ("rope", False, 16)
    larger = read("baichuan", **plain, max_position_embeddings=..., model_max_length=99)
    assert (larger.position.kind, larger.norm_head, larger.context) == ("alibi", False, 99)
    assert read("baichuan", **plain, z_loss_weight=0).norm_head
    assert read("baichuan", **plain, vocab_size=125_696).norm_head
    old = read("baichuan", **plain, architectures=["BaiChuanForCausalLM"])
    assert old == first


def test_baichuan_keeps_what_only_our_words_say():
    table = tables()["baichuan"]
    for position in ({"kind": "rope", "base": 700.0}, {"kind": "alibi"}):
        for norm_head in (False, True):
            own = {"vocab_size": 125_696, "position": position, "norm_head": norm_head}
            config = table.CONFIG(**{**NUMBERS, "hidden": 40, **own})
            foreign = json.loads(json.dumps(table.config_to_foreign(config)))
            assert table.CONFIG(**table.config_from_foreign(foreign)) == config


def test_baichuan_refuses_a_normalised_head_without_weights_of_its_own():
    refused(
        "baichuan", "tie_word_embeddings must be false", norm_head=True, tie_word_embeddings=True
    )


@torch.no_grad()
def test_a_folder_whose_code_ours_replaces_loads_and_the_code_is_not_run(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    theirs = scatter(cases()["baichuan 13b"]())
    theirs.save_pretrained(tmp_path)
    for name in ("modeling_baichuan", "configuration_baichuan"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == CODE
    ours = stemma.load(tmp_path)[0]
    tokens_BT = draw_tokens(pair_of("baichuan 13b"))
    torch.testing.assert_close(ours(tokens_BT), theirs(tokens_BT).logits, rtol=1e-4, atol=1e-4)
    assert "the folder's own code is not run" in caplog.text
    assert not {"modeling_baichuan", "configuration_baichuan"} & sys.modules.keys()


@pytest.mark.parametrize(
    "auto_map",
    [
        {**CODE, "AutoModel": "modeling_evil.Evil"},
        {**CODE, "AutoModelForCausalLM": "modeling_baichuan.Other"},
        {"AutoModelForCausalLM": ["modeling_baichuan.BaichuanForCausalLM"]},
        ["modeling_baichuan.BaichuanForCausalLM"],
        "modeling_baichuan.BaichuanForCausalLM",
        {"AutoModelForCausalLM": 3},
        {"AutoModelForCausalLM": None},
    ],
)
def test_any_other_code_is_refused(auto_map):
    refused("baichuan", "c.json: auto_map: ", "never run", auto_map=auto_map)


def test_code_that_one_family_replaces_is_refused_for_another():
    refused("bloom", "c.json: auto_map: ", "never run", auto_map=CODE)
    refused("baichuan", "trust_remote_code", "never run", auto_map=CODE, trust_remote_code=True)


def test_code_may_be_named_with_its_repository():
    named = {key: f"somebody/a-model--{name}" for key, name in CODE.items()}
    assert read("baichuan", auto_map=named) == read("baichuan")
