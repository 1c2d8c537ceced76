"""Filling in and labelling: what a person asks for is what the network says of each text alone."""

import pytest
import torch

from stemma import api
from stemma.core.errors import UsageError
from stemma.data.bpe import train_tokenizer
from stemma.data.marked import around, marks_of, with_marks
from stemma.infer.encoders import fill, label
from stemma.nn.context import Context
from stemma.nn.initial import initialise

TEXT = "the cat sat on the mat and the dog ran under the tree"


@pytest.fixture(scope="module")
def tokenizer():
    return with_marks(train_tokenizer([TEXT], vocab_size=280))


SMALL = {"width": 16, "depth": 1, "num_heads": 2, "context": 12, "vocab_size": 284}


@pytest.fixture(scope="module")
def model(tokenizer):
    numbers = {"width": 16, "depth": 2, "num_heads": 2, "context": 12, "dropout": 0.3}
    made = api.build("bert", vocab_size=tokenizer.vocab_size, num_labels=3, **numbers)
    initialise(made, seed=1, std=0.5, depth=2)
    return made.train()


def test_every_hidden_place_gets_its_likeliest_token(model, tokenizer):
    marks, text = marks_of(tokenizer), "the [MASK] sat on[MASK]"
    ids = around(marks, tokenizer.encode_template(text))
    model.eval()
    with torch.no_grad():
        likeliest = model(torch.tensor([ids]))[0].argmax(-1).tolist()
    model.train()
    wanted = [
        best if token == marks.mask else token for token, best in zip(ids, likeliest, strict=True)
    ]
    assert fill(model, tokenizer, [text, TEXT[:8] + "[MASK]"])[0] == tokenizer.decode(wanted[1:-1])
    assert model.training  # as it was


@pytest.mark.parametrize(
    ("text", "what"), [("the cat", "nothing to fill in"), (f"{TEXT} {TEXT}[MASK]", "tokens, but")]
)
def test_what_cannot_be_filled_is_refused(model, tokenizer, text, what):
    with pytest.raises(UsageError, match=what):
        fill(model, tokenizer, [text])


def test_a_mask_takes_in_the_space_before_it(tokenizer, tmp_path):
    """Words are learned with that space: " cat" is hidden, so no lone space may stay."""
    marks, ids = marks_of(tokenizer), tokenizer.encode("on the")
    assert tokenizer.decode(ids[-1:]) == " the"
    wanted = [*ids[:-1], marks.mask]
    api.save(api.build("bert", **SMALL), tokenizer, tmp_path / "saved")
    _, loaded = api.load(tmp_path / "saved")
    for each in (tokenizer, loaded):
        assert each.encode_template("on [MASK]") == each.encode_template("on[MASK]") == wanted


def test_one_text_is_not_taken_for_a_list_of_its_characters(model, tokenizer):
    for ask in (fill, label):
        with pytest.raises(UsageError, match="a text, not a list of texts"):
            ask(model, tokenizer, "the [MASK]")


def test_a_network_without_the_head_is_refused(tokenizer):
    reader = api.build("bert", **SMALL)
    with pytest.raises(UsageError, match="labels nothing; give one of a classify stage"):
        label(reader, tokenizer, ["the cat"])
    reader.head = None
    with pytest.raises(UsageError, match="fills in nothing; give one of a masked stage"):
        fill(reader, tokenizer, ["the [MASK]"])


def test_a_text_gets_the_same_shares_alone_and_among_others(model, tokenizer):
    asked = ["cat", ("the dog", "ran"), "the cat sat on the mat", ("a", "the tree the mat the dog")]
    together = label(model, tokenizer, asked)
    for text, shares in zip(asked, together, strict=True):
        [alone] = label(model, tokenizer, [text])
        assert alone.keys() == shares.keys() == {"0", "1", "2"}
        assert all(abs(alone[name] - shares[name]) < 1e-5 for name in shares)
        assert abs(sum(shares.values()) - 1) < 1e-5
        assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_shares_are_those_of_the_network(model, tokenizer):
    marks = marks_of(tokenizer)
    first, second = tokenizer.encode("the dog"), tokenizer.encode("ran")
    ids = torch.tensor([around(marks, first, second)])
    segments = torch.tensor([[0] * (len(first) + 2) + [1] * (len(second) + 1)])
    model.eval()
    with torch.no_grad():
        x_BTC, _ = model.hidden(ids, Context(segments_BT=segments))
        wanted = model.classify(x_BTC)[0].softmax(-1).tolist()
    model.train()
    api.name_labels(model, ["red", "green", "blue"])
    [shares] = label(model, tokenizer, [("the dog", "ran")])
    api.name_labels(model, [])
    assert all(
        abs(shares[name] - share) < 1e-5
        for name, share in zip(("red", "green", "blue"), wanted, strict=True)
    )


def test_names_of_labels_go_through_folders(model, tokenizer, tmp_path):
    api.name_labels(model, ["red", "green", "blue"])
    api.save(model, tokenizer, tmp_path / "model")
    api.name_labels(model, [])
    again, words = api.load(tmp_path / "model")
    assert again.labels == ("red", "green", "blue")
    assert {*label(again, words, ["the cat"])[0]} == {"red", "green", "blue"}
