"""Masks: values that agree with a loop over positions, alone and combined."""

from bisect import bisect
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from stemma.nn.context import Context
from stemma.nn.mask import Both, Causal, Documents, Full, Mask, Prefix, Window, mask_mod
from stemma.nn.sight import look

CLOSE = {"rtol": 0, "atol": 1e-9}


@dataclass(frozen=True)
class Near:
    """A mask of these tests' own: keys at most `reach` positions away."""

    reach: int
    window = None

    def __call__(self, query, key):
        return (query - key).abs() <= self.reach

    __and__ = Causal.__and__


RULES: list[tuple[Mask, object]] = [
    (Full(), lambda q, k: q >= 0 and k >= 0),
    (Causal(), lambda q, k: k <= q),
    (Near(2), lambda q, k: abs(q - k) <= 2),
    (Causal() & Near(2), lambda q, k: k <= q <= k + 2),
    (Near(3) & Causal() & Full(), lambda q, k: q >= 0 and k >= 0 and k <= q <= k + 3),
    (Full() & (Causal() & Near(1)), lambda q, k: k >= 0 and k <= q <= k + 1),
    (Window(1), lambda q, k: k == q),
    (Window(3), lambda q, k: k in (q, q - 1, q - 2)),
    (Full() & Window(2), lambda q, k: q >= 0 and k >= 0 and k in (q, q - 1)),
    (Prefix(0), lambda q, k: k <= q),
    (Prefix(3), lambda q, k: k <= q or k < 3),
    (Documents((0, 2, 3)), lambda q, k: bisect((0, 2, 3), q) == bisect((0, 2, 3), k)),
    (Causal() & Documents((0, 2)), lambda q, k: k <= q and bisect((0, 2), q) == bisect((0, 2), k)),
]
POSITIONS = torch.tensor([[-1, 0, 1, 2, 3, 4], [0, 1, -1, 0, 1, 2]])


@pytest.mark.parametrize(("mask", "rule"), RULES, ids=lambda value: repr(value)[:50])
def test_a_mask_equals_the_loop(mask, rule):
    found = mask(POSITIONS[:, :, None], POSITIONS[:, None, :])
    for b in range(2):
        for t, query in enumerate(POSITIONS[b].tolist()):
            for s, key in enumerate(POSITIONS[b].tolist()):
                assert found[b, t, s] == rule(query, key)


@pytest.mark.parametrize(("mask", "rule"), RULES, ids=lambda value: repr(value)[:50])
def test_flex_attention_is_told_the_same(mask, rule):
    adapter = mask_mod(mask, POSITIONS, POSITIONS)
    expected = mask(POSITIONS[:, :, None], POSITIONS[:, None, :])
    torch.testing.assert_close(create_mask(adapter, 2, 1, 6, 6, device="cpu")[:, 0], expected)


def test_masks_are_compared_by_value():
    """Equal masks are one dictionary entry: the stack builds each distinct one once."""
    assert Causal() == Causal() and hash(Causal()) == hash(Causal())
    assert Causal() & Near(2) == Causal() & Near(2)
    assert len({Causal() & Near(2), Causal() & Near(2), Both(Causal(), Near(2))}) == 1
    assert Causal() != Full() and Near(2) != Near(3) and Causal() & Near(2) != Causal() & Near(3)
    with pytest.raises(AttributeError):
        Near(2).reach = 3


@pytest.mark.parametrize(
    "context",
    [
        Context(),
        Context(padding_BT=torch.ones(2, 6, dtype=torch.bool)),
        Context(positions_BT=POSITIONS),
        Context(positions_BT=POSITIONS, document_ids_BT=torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)),
    ],
    ids=["plain", "padding", "positions", "documents"],
)
@pytest.mark.parametrize(("mask", "rule"), RULES, ids=lambda value: repr(value)[:50])
def test_visibility_equals_the_loop(mask, rule, context):
    """What the kernel gets is the mask, no padding (position -1) and one document, exactly."""
    positions = POSITIONS if context.positions_BT is not None else torch.arange(6).expand(2, 6)
    visible = look(mask, None, positions, positions, context)
    ids = context.document_ids_BT
    for b in range(2):
        for t, query in enumerate(positions[b].tolist()):
            for s, key in enumerate(positions[b].tolist()):
                expected = rule(query, key) and key >= 0
                if ids is not None:
                    expected = expected and bool(ids[b, t] == ids[b, s])
                found = s <= t if visible.causal else True
                if visible.mask is not None:
                    found = visible.mask[b, 0, t, s]
                assert found == expected


@pytest.mark.parametrize(
    ("mask", "window"),
    [
        (Causal(), None),
        (Window(4), 4),
        (Window(4) & Window(2), 2),
        (Causal() & Window(3), 3),
        (Prefix(2) & Causal(), None),
    ],
    ids=repr,
)
def test_a_mask_says_how_far_back_it_reaches(mask, window):
    """The law behind caches that keep no more: nothing at or beyond the window is ever seen."""
    assert mask.window == window
    places = torch.arange(9)
    if window is not None:
        seen = mask(places[:, None], places[None])
        assert not seen[places[:, None] - places[None] >= window].any()


def test_a_window_that_shows_nothing_is_refused():
    with pytest.raises(ValueError, match="window of 0 positions shows nothing"):
        Window(0)


def test_a_model_obeys_the_mask_it_is_given(build, tokens_of):
    """With a window of 1 and two layers a token is felt two places later and never again."""
    model, tokens = build("llama"), tokens_of(1, 8)
    for block in model.blocks:
        block.attention.mask = Causal() & Near(1)
    changed = tokens.clone()
    changed[0, 2] = (tokens[0, 2] + 1) % 50
    difference = (model(tokens) - model(changed)).abs().amax(-1)[0] > 1e-6
    assert difference.tolist() == [False, False, True, True, True, False, False, False]


def test_a_full_mask_looks_both_ways(build, tokens_of):
    model, tokens = build("llama"), tokens_of(1, 5)
    for block in model.blocks:
        block.attention.mask = Full()
    changed = tokens.clone()
    changed[0, 4] = (tokens[0, 4] + 1) % 50
    assert ((model(tokens) - model(changed)).abs().amax(-1) > 1e-6).all()


def test_layers_with_different_masks_share_a_stack(build, tokens_of):
    """A window in the second layer only: cached decoding must build both, and equal full."""
    model, tokens = build("llama"), tokens_of(2, 7)
    model.blocks[1].attention.mask = Causal() & Near(2)
    cache = model.new_cache(7)
    parts = [model(part, Context(caches=cache)) for part in tokens.split((3, 1, 2, 1), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), **CLOSE)


def test_a_context_is_a_value():
    context = Context()
    with pytest.raises(AttributeError):
        context.padding_BT = torch.ones(1, 1)
    assert replace(context, padding_BT=torch.ones(1, 1)).padding_BT is not None
