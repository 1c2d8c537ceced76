"""Folders of families that no other library has: nothing is lost, and what is wrong is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import stemma
from stemma.core.errors import ModelError, UsageError
from stemma.interop.native import NativeTable
from stemma.models.llama import LlamaConfig

NUMBERS = {"width": 12, "depth": 2, "num_heads": 3, "vocab_size": 31, "context": 16}


@pytest.fixture
def folder(tmp_path):
    stemma.save(stemma.build("decoder", norms="pre", **NUMBERS), None, tmp_path / "model")
    return tmp_path / "model"


def change(folder, **changed):
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@torch.no_grad()
def test_a_folder_of_ours_gives_the_same_network(folder):
    model = stemma.build("decoder", norms="pre", **NUMBERS)
    again, tokenizer = stemma.load(folder)
    assert tokenizer is None and again.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    tokens_BT = torch.arange(9)[None]
    assert torch.equal(again(tokens_BT), model.eval()(tokens_BT))


def test_facts_are_told_without_reading_weights(folder):
    facts = stemma.api.info(folder)
    model = stemma.build("decoder", norms="pre", **NUMBERS)
    assert facts["family"] == "decoder" and facts["context"] == 16
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"family": "decodr"}, "did you mean decoder"),
        ({"family": None}, "unknown family None"),
        ({"family": "../decoder"}, "unknown family"),
        ({"family_version": 9}, "version 9 of the family decoder, known is 1"),
        ({"width": None}, "config.json: width: the key is missing; add it"),
        ({"hidden": None}, "config.json: hidden: the key is missing; add it"),
        ({"norm_eps": None}, "config.json: norm_eps: the key is missing; add it"),
        ({"norm_epsilon": 1e-5}, "norm_epsilon: unknown key; did you mean norm_eps"),
        ({"rope_base": 1e4}, "config.json: rope_base: unknown key; "),
        ({"num_heads": 5}, "width (12) must be a multiple of num_heads (5)"),
        ({"norms": "sideways"}, "norms"),
        ({"depth": 3}, "tensors missing"),
        ({"depth": 1}, "unused"),
        ({"vocab_size": 30}, "shape [31, 12], wanted [30, 12]"),
        ({"family": "llama"}, "config.json: num_kv_heads: the key is missing"),
        ({"family": "linear"}, "config.json: activation: unknown key; "),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(folder, changed, words):
    change(folder, **changed)
    with pytest.raises((ModelError, UsageError)) as caught:
        stemma.load(folder)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_every_config_json_keeps_is_no_mistake(folder):
    change(folder, id2label={"0": "no"}, label2id={"no": 0}, _name_or_path="here", eos_token_id=3)
    assert stemma.load(folder)[0].config.num_heads == 3


def test_a_folder_names_numbers_that_a_dump_leaves_out():
    config = LlamaConfig(width=8, depth=1, num_heads=2, vocab_size=5)
    said = NativeTable("llama").config_to_foreign(config)
    assert "rope_scaling" not in config.model_dump() and said["rope_scaling"] == {"kind": "none"}
    said = json.loads(json.dumps(said))
    assert LlamaConfig(**NativeTable("llama").config_from_foreign(said)) == config


def test_a_tensor_too_many_is_named(folder):
    state = load_file(folder / "model.safetensors")
    save_file({**state, "blocks.0.extra": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 unused; unused blocks\.0\.extra"):
        stemma.load(folder)
