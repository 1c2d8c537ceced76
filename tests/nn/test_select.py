"""Patterns choose modules by name, and one that names nothing is refused with what is near."""

import pytest

from stemma import api
from stemma.core.errors import UsageError
from stemma.nn.select import choose, train_only


@pytest.fixture
def model():
    return api.build("llama", width=16, depth=2, num_heads=2, vocab_size=11, context=8)


def test_pattern_chooses_all_below_it(model):
    names = choose(model, ["blocks.*.attention.query", "norm"], place="x")
    assert names == [
        "blocks.0.attention.query.weight",
        "blocks.1.attention.query.weight",
        "norm.weight",
    ]
    assert choose(model, ["blocks.1"], place="x") == [
        name for name, _ in model.named_parameters() if name.startswith("blocks.1.")
    ]


def test_only_the_chosen_learn(model):
    train_only(model, ["*.mlp"], place="x")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"blocks.{i}.mlp.{part}.weight" for i in (0, 1) for part in ("gate", "up", "down")
    }
    again = api.build("llama", width=16, depth=2, num_heads=2, vocab_size=11, context=8)
    train_only(again, [], place="x")
    assert all(p.requires_grad for p in again.parameters())


def test_pattern_that_names_nothing_is_refused_with_five_names(model):
    with pytest.raises(UsageError, match=r"no module matches 'blocks\.\*\.attention\.q_proj'") as e:
        choose(model, ["blocks.*.attention.q_proj"], place="chat: trainable")
    assert str(e.value).startswith("chat: trainable: ")
    assert e.value.fix.count(",") == 4 and "blocks.*.attention.query" in e.value.fix
