"""Decoding with a cache equals one full pass, however the tokens are cut and the rows differ."""

import pytest
import torch

from stemma.nn.cache import LayerCache, Slots
from stemma.nn.context import Context
from stemma.nn.mask import Causal, Prefix, Window

CLOSE = {"rtol": 0, "atol": 1e-9}
CHUNKS = [(9,), (1,) * 9, (4, 5), (1, 8), (8, 1), (3, 1, 1, 4), (2, 3, 4)]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_cached_equals_full(model, tokens_of, chunks):
    tokens = tokens_of(2, 9)
    cache = model.new_cache(9)
    parts = [model(part, Context(caches=cache)) for part in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), **CLOSE)
    assert cache.length == 9


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_ragged_rows_equal_each_row_alone(model, tokens_of, left, step):
    """Prompts of 2, 5 and 6 tokens padded on either side, then explicit positions."""
    lengths, rows = (2, 5, 6), tokens_of(3, 12)
    first = torch.zeros(3, 6, dtype=torch.long)
    real = torch.zeros(3, 6, dtype=torch.bool)
    for n, length in enumerate(lengths):
        span = slice(6 - length, 6) if left else slice(0, length)
        first[n, span], real[n, span] = rows[n, :length], True
    cache = model.new_cache(12)
    logits = model(first, Context(caches=cache, padding_BT=real))
    found = [[logits[n, real[n]]] for n in range(3)]
    for start in range(0, 6, step):
        positions = torch.tensor([[length + start + k for k in range(step)] for length in lengths])
        tokens = rows.gather(1, positions)
        logits = model(tokens, Context(caches=cache, positions_BT=positions))
        for n in range(3):
            found[n].append(logits[n])
    for n, length in enumerate(lengths):
        alone = model(rows[n : n + 1, : length + 6])[0]
        torch.testing.assert_close(torch.cat(found[n]), alone, **CLOSE)


def test_rows_may_pause_while_others_go_on(model, tokens_of):
    """Position -1 marks a slot that is no token: such a row's later tokens never see it."""
    rows = tokens_of(2, 5)
    cache = model.new_cache(8)
    positions = torch.tensor([[0, 1, 2, -1, 3, 4], [0, -1, -1, 1, 2, 3]])
    parts = []
    for slot in positions.T:
        tokens = rows.gather(1, slot.clamp(min=0)[:, None])
        parts.append(model(tokens, Context(caches=cache, positions_BT=slot[:, None])))
    logits = torch.cat(parts, dim=1)
    for row in (0, 1):
        real = positions[row] >= 0
        alone = model(rows[row : row + 1, : int(real.sum())])[0]
        torch.testing.assert_close(logits[row, real], alone, **CLOSE)


@pytest.mark.parametrize("kept", [[0, 2], [2, 0, 1], [1], [0, 0, 2]], ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
def test_selected_rows_go_on_as_if_alone(model, tokens_of, kept, ragged):
    rows, lengths = tokens_of(3, 9), (2, 4, 6) if ragged else (6, 6, 6)
    first = torch.zeros(3, 6, dtype=torch.long)
    real = torch.zeros(3, 6, dtype=torch.bool)
    for n, length in enumerate(lengths):
        first[n, 6 - length :], real[n, 6 - length :] = rows[n, :length], True
    cache = model.new_cache(9)
    model(first, Context(caches=cache, padding_BT=real if ragged else None))
    cache.select(torch.tensor(kept))
    for more in range(3):
        positions = torch.tensor([[lengths[n] + more] for n in kept])
        tokens = rows[kept].gather(1, positions)
        context = Context(caches=cache, positions_BT=positions if ragged else None)
        logits = model(tokens, context)[:, 0]
        for found, n in zip(logits, kept, strict=True):
            alone = model(rows[n : n + 1, : lengths[n] + more + 1])[0, -1]
            torch.testing.assert_close(found, alone, **CLOSE)


def test_an_even_batch_decodes_without_any_mask(build, tokens_of):
    """The fast path: one new token sees every slot, so the kernel is told nothing."""
    model, seen = build("llama"), []
    attention = model.blocks[0].attention
    attention.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[1].visible[module.mask, module.position])
    )
    cache = model.new_cache(5)
    model(tokens_of(2, 4), Context(caches=cache))
    model(tokens_of(2, 1), Context(caches=cache))
    assert [(visible.mask, visible.causal) for visible in seen] == [(None, True), (None, False)]


def test_the_cache_gives_views_and_never_moves():
    """Allocated once: no copy of the past for a new token."""
    slots = Slots(6, window=None)
    layer, new = LayerCache(slots), torch.arange(2 * 1 * 2 * 3.0).reshape(2, 1, 2, 3)
    slots.extend(torch.tensor([[0, 1]]), ragged=False)
    key, _ = layer.add(new, new)
    slots.extend(torch.tensor([[2, 3]]), ragged=False)
    later_key, later_value = layer.add(new + 1, new + 2)
    assert later_key.data_ptr() == key.data_ptr()
    torch.testing.assert_close(later_key, torch.cat((new, new + 1), dim=2))
    torch.testing.assert_close(later_value, torch.cat((new, new + 2), dim=2))


def test_too_many_tokens_are_refused_with_both_numbers(model, tokens_of):
    cache = model.new_cache(4)
    model(tokens_of(1, 3), Context(caches=cache))
    with pytest.raises(ValueError, match="cache of 4 slots cannot hold 5 tokens"):
        model(tokens_of(1, 2), Context(caches=cache))


def test_what_a_cache_cannot_know_must_be_told(model, tokens_of):
    real = torch.tensor([[False, True], [True, True]])
    cache = model.new_cache(9)
    model(tokens_of(2, 2), Context(caches=cache, padding_BT=real))
    with pytest.raises(ValueError, match="ragged cache needs explicit positions"):
        model(tokens_of(2, 1), Context(caches=cache))
    with pytest.raises(ValueError, match="padding after cached tokens"):
        model(tokens_of(2, 2), Context(caches=cache, padding_BT=real))
    ids = torch.zeros(2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="document ids and caches"):
        model(tokens_of(2, 2), Context(caches=model.new_cache(9), document_ids_BT=ids))


def test_more_tokens_than_learned_positions_are_refused(build, tokens_of):
    model = build("gpt2")
    with pytest.raises(ValueError, match="33 tokens do not fit the model's 32 positions"):
        model(tokens_of(1, 33))
    cache = model.new_cache(40)
    model(tokens_of(1, 32), Context(caches=cache))
    with pytest.raises(ValueError, match="33 tokens do not fit"):
        model(tokens_of(1, 1), Context(caches=cache))


def test_an_empty_cache_has_no_length_and_may_be_selected(build):
    cache = build("llama").new_cache(3)
    cache.select(torch.tensor([0]))
    assert (cache.length, len(cache.layers), cache.capacity, cache.nbytes) == (0, 2, 3, 0)


def windowed(build, window, second=None):
    """A model whose first layer sees a window, and the second another one, or everything."""
    model = build("llama")
    model.blocks[0].attention.mask = Window(window)
    model.blocks[1].attention.mask = Window(second) if second else Causal()
    return model


@pytest.mark.parametrize("chunks", [(1,) * 60, (7, 1, 1, 1, 20, 1, 29), (60,), (59, 1)], ids=str)
@pytest.mark.parametrize("windows", [(1, 3), (4, 4), (5, None), (17, 2), (90, 4)], ids=str)
def test_a_window_of_the_cache_equals_the_window_of_the_mask(build, tokens_of, windows, chunks):
    """Far past the window, in single steps and in chunks that are longer than it."""
    model, tokens = windowed(build, *windows), tokens_of(2, 60)
    cache = model.new_cache(60)
    parts = [model(part, Context(caches=cache)) for part in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), **CLOSE)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("windows", [(2, 5), (4, None)], ids=str)
def test_a_window_counts_tokens_and_not_the_padding_between(build, tokens_of, windows, left):
    """Rows of 1, 4 and 9 tokens, padded, then thirty more: each row equals itself alone."""
    model, lengths, rows = windowed(build, *windows), (1, 4, 9), tokens_of(3, 39)
    first = torch.zeros(3, 9, dtype=torch.long)
    real = torch.zeros(3, 9, dtype=torch.bool)
    for n, length in enumerate(lengths):
        span = slice(9 - length, 9) if left else slice(0, length)
        first[n, span], real[n, span] = rows[n, :length], True
    cache = model.new_cache(39)
    logits = model(first, Context(caches=cache, padding_BT=real))
    found = [[logits[n, real[n]]] for n in range(3)]
    for start in range(0, 30, 3):
        positions = torch.tensor([[length + start + k for k in range(3)] for length in lengths])
        tokens = rows.gather(1, positions)
        logits = model(tokens, Context(caches=cache, positions_BT=positions))
        for n in range(3):
            found[n].append(logits[n])
    for n, length in enumerate(lengths):
        alone = model(rows[n : n + 1, : length + 30])[0]
        torch.testing.assert_close(torch.cat(found[n]), alone, **CLOSE)


def test_a_kept_prefix_goes_on_several_ways(model, tokens_of):
    """What was read once is the prefix of several texts; none of them feels the others."""
    prefix, ways = tokens_of(1, 6), [tokens_of(1, 4, seed) for seed in (5, 6, 7)]
    kept = model.new_cache(10)
    first = model(prefix, Context(caches=kept))
    for way in (*ways, ways[0]):
        fork = kept.fork()
        parts = [model(part, Context(caches=fork)) for part in way.split((1, 3), dim=1)]
        whole = model(torch.cat((prefix, way), dim=1))
        torch.testing.assert_close(torch.cat((first, *parts), dim=1), whole, **CLOSE)
    assert kept.length == 6


@pytest.mark.parametrize("windows", [(2, 5), (4, None)], ids=str)
def test_a_forked_window_goes_on_by_itself(build, tokens_of, windows):
    model, tokens = windowed(build, *windows), tokens_of(2, 30)
    kept = model.new_cache(30)
    model(tokens[:, :17], Context(caches=kept))
    for _ in range(2):
        fork = kept.fork()
        parts = [model(part, Context(caches=fork)) for part in tokens[:, 17:].split((1, 12), dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens)[:, 17:], **CLOSE)


def test_a_pass_that_is_refused_leaves_the_cache_as_it_was(model, tokens_of):
    cache, tokens = model.new_cache(4), tokens_of(1, 6)
    first = model(tokens[:, :2], Context(caches=cache))
    with pytest.raises(ValueError, match="cache of 4 slots cannot hold 6 tokens"):
        model(tokens[:, 2:], Context(caches=cache))
    second = model(tokens[:, 2:4], Context(caches=cache))
    whole = model(tokens[:, :4])
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole, **CLOSE)


def test_a_row_that_rested_costs_nothing_once_it_has_left(build, tokens_of):
    """While it may go on its tokens are kept; when it leaves, the window is small again."""
    model = windowed(build, 4, 4)
    cache, tokens = model.new_cache(900), tokens_of(2, 300)
    for place in range(300):
        positions = torch.tensor([[place], [place if place < 9 else -1]])
        model(tokens[:, place : place + 1], Context(caches=cache, positions_BT=positions))
    large = cache.nbytes
    cache.select(torch.tensor([0]))
    for place in range(300, 340):
        model(tokens[:1, :1], Context(caches=cache, positions_BT=torch.tensor([[place]])))
    assert cache.nbytes < large / 8


def test_a_prefix_that_looks_ahead_is_read_in_one_pass(build, tokens_of):
    model, tokens = build("llama"), tokens_of(1, 9)
    for block in model.blocks:
        block.attention.mask = Prefix(5)
    cache = model.new_cache(9)
    parts = [model(part, Context(caches=cache)) for part in tokens.split((5, 1, 3), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), **CLOSE)
    with pytest.raises(ValueError, match="a prefix of 5 tokens must be read in one pass, got 3"):
        model(tokens[:, :3], Context(caches=model.new_cache(9)))


def test_a_window_takes_the_same_memory_however_long_the_text(build, tokens_of):
    model, sizes = windowed(build, 4, 6), []
    cache = model.new_cache(400)
    for _ in range(100):
        model(tokens_of(1, 4), Context(caches=cache))
        sizes.append(cache.nbytes)
    assert max(sizes[50:]) == max(sizes[10:50])
    assert max(sizes) < 0.2 * 400 * 2 * 2 * 2 * 6 * 8  # slots, layers, key and value, heads, width
