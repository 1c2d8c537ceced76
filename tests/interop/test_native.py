"""Folders of families that no other library has: nothing is lost, and what is wrong is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import stemma
from stemma.core.errors import ModelError, UsageError

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
        ({"width": None}, "required key is missing"),
        ({"num_heads": 5}, "width (12) must be a multiple of num_heads (5)"),
        ({"norms": "sideways"}, "norms"),
        ({"depth": 3}, "tensors missing"),
        ({"depth": 1}, "unused"),
        ({"vocab_size": 30}, "shape [31, 12], wanted [30, 12]"),
        ({"family": "llama"}, "2 tensors missing, 17 unused"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(folder, changed, words):
    change(folder, **changed)
    with pytest.raises((ModelError, UsageError)) as caught:
        stemma.load(folder)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_tensor_too_many_is_named(folder):
    state = load_file(folder / "model.safetensors")
    save_file({**state, "blocks.0.extra": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 unused; unused blocks\.0\.extra"):
        stemma.load(folder)
