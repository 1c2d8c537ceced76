"""BERT against transformers' classes, each with other heads: whole, padded, and by its folders."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import stemma
from stemma.core.errors import ModelError
from stemma.nn.context import Context
from tests.models.parity_encdec import (
    GRADIENTS,
    LIMIT,
    SIDES,
    cases_of,
    close,
    draw_pair,
    heads_error,
    heads_gradient_errors,
    heads_padded_error,
    heads_round_trip_error,
    pair_of,
)


@pytest.fixture(scope="module", params=cases_of("bert"), ids=lambda name: name.replace(" ", "-"))
def pair(request):
    return pair_of(request.param)


def test_all_heads_equal_the_oracle(pair):
    assert heads_error(pair) <= LIMIT


def test_gradients_equal_the_oracle(pair):
    for name, error in heads_gradient_errors(pair).items():
        assert error <= GRADIENTS, name


@pytest.mark.parametrize("side", SIDES)
def test_padded_batch_equals_the_oracle_on_each_text_alone(pair, side):
    assert heads_padded_error(pair, side) <= LIMIT


def test_our_folder_opens_in_the_oracle_with_equal_tensors(pair, tmp_path):
    heads_gradient_errors(pair)  # which tensors the oracle uses is seen by their gradients
    assert heads_round_trip_error(pair, tmp_path / "ours") == 0


@torch.no_grad()
def test_our_folder_loads_again_as_it_was(pair, tmp_path):
    stemma.save(pair.ours, None, tmp_path / "ours")
    again = stemma.load(tmp_path / "ours")[0]
    assert again.config == pair.config
    for name, value in pair.ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_our_folder_opens_by_itself_as_the_class_that_it_names(pair, tmp_path):
    stemma.save(pair.ours, None, tmp_path / "ours")
    named = json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"]
    assert named == [type(pair.theirs).__name__]


@torch.no_grad()
def test_more_heads_in_a_file_than_its_class_has_are_kept(tmp_path):
    """The published bert-base-uncased names BertForMaskedLM and holds the heads of pretraining."""
    whole = pair_of("bert pretraining")
    whole.theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    found, tokens_BT = stemma.load(tmp_path)[0], draw_pair(whole)[0]
    assert found.config == whole.config
    assert torch.equal(found(tokens_BT), whole.ours(tokens_BT))


def rewrite(folder, rename):
    """The tensors of a folder under other names, and those that `rename` adds."""
    tensors = rename(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@torch.no_grad()
def test_old_names_and_copies_load_as_new_ones(tmp_path):
    """Norms called gamma and beta, the mask's positions, the head's weight and bias twice."""
    whole = pair_of("bert pretraining")
    whole.theirs.save_pretrained(tmp_path)

    def old(tensors):
        named = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for name, value in tensors.items()
        }
        named["bert.embeddings.position_ids"] = torch.arange(19)[None]
        named["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
        words = tensors["bert.embeddings.word_embeddings.weight"]
        return named | {"cls.predictions.decoder.weight": words.clone()}

    rewrite(tmp_path, old)
    found = stemma.load(tmp_path)[0].state_dict()
    for name, value in whole.ours.state_dict().items():
        assert torch.equal(found[name], value), name


def test_a_copy_that_differs_is_refused_by_name(tmp_path):
    pair_of("bert pretraining").theirs.save_pretrained(tmp_path)
    rewrite(
        tmp_path,
        lambda tensors: tensors | {"cls.predictions.decoder.bias": torch.ones(67)},
    )
    with pytest.raises(ModelError, match="decoder.bias differs from cls.predictions.bias"):
        stemma.load(tmp_path)


@torch.no_grad()
def test_a_sentence_encoder_without_pooler_loads(tmp_path):
    config = transformers.BertConfig(
        vocab_size=31, hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=9, pad_token_id=None,
    )  # fmt: skip
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path)
    ours = stemma.load(tmp_path)[0]
    tokens_BT = torch.tensor([[3, 8, 30, 0]])
    assert close(ours.hidden(tokens_BT)[0], theirs(tokens_BT).last_hidden_state) <= LIMIT
    with pytest.raises(ValueError, match="no head for whole texts"):
        ours.pooled(ours.hidden(tokens_BT)[0])
    with pytest.raises(ValueError, match="no head for masked tokens"):
        ours(tokens_BT)


@torch.no_grad()
def test_segments_are_read_and_zero_if_not_given():
    pair = pair_of("bert pretraining")
    tokens_BT, segments_BT = draw_pair(pair)
    alone = pair.ours(tokens_BT)
    zeros = pair.ours(tokens_BT, Context(segments_BT=torch.zeros_like(segments_BT)))
    assert torch.equal(alone, zeros)
    assert not torch.allclose(alone, pair.ours(tokens_BT, Context(segments_BT=segments_BT)))


def test_a_folder_that_lacks_tensors_is_called_by_the_class_that_it_names(tmp_path):
    theirs = pair_of("bert masked").theirs
    for kind in (transformers.BertModel, transformers.BertForMaskedLM):
        kind(theirs.config).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
        with pytest.raises(ModelError, match=f"does not fit {kind.__name__}: .* unused"):
            stemma.load(tmp_path)


def test_a_decoder_made_of_bert_is_refused_by_name(tmp_path):
    pair_of("bert masked").theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in (("is_decoder", True), ("position_embedding_type", "relative_key")):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(ModelError, match=f"{value!r} is not supported, only"):
            stemma.load(tmp_path)


def test_numbers_that_do_not_fit_are_told_with_both():
    with pytest.raises(Exception, match=r"width \(35\) must be a multiple of num_heads \(3\)"):
        stemma.build("bert", width=35, depth=1, num_heads=3, vocab_size=9)
    with pytest.raises(Exception, match=r"num_labels \(3\) reads what is pooled"):
        stemma.build(
            "bert", width=6, depth=1, num_heads=3, vocab_size=9,
            pooler=False, pair_head=False, num_labels=3,
        )  # fmt: skip
