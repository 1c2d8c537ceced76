"""Who sees whom: causality, packed documents, padding. All laws hold for the whole model."""

import pytest
import torch

from stemma.nn.context import Context

CLOSE = {"rtol": 0, "atol": 1e-9}


def test_a_later_token_changes_nothing_earlier(model, tokens_of):
    tokens = tokens_of(2, 9)
    logits = model(tokens)
    for at in range(9):
        changed = tokens.clone()
        changed[:, at] = (tokens[:, at] + 1) % 50
        other = model(changed)
        torch.testing.assert_close(other[:, :at], logits[:, :at], **CLOSE)
        for later in range(at, 9):
            assert not torch.allclose(other[:, later], logits[:, later], rtol=0, atol=1e-6)


def test_the_gradient_of_a_score_reaches_its_past_and_all_of_it(model, tokens_of):
    """The same law by gradients: d logits[t] / d embedding[s] is zero if and only if s > t."""
    kept = []
    hook = model.embedding.register_forward_hook(
        lambda module, inputs, out: kept.append(out.requires_grad_()) or kept[-1]
    )
    logits = model(tokens_of(1, 7))
    hook.remove()
    for t in range(7):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), kept[0], retain_graph=True)
        reached = gradient[0].abs().sum(-1)
        assert (reached[: t + 1] > 0).all()
        assert (reached[t + 1 :] == 0).all()


@pytest.mark.parametrize("lengths", [(4, 5), (1, 7, 1), (3, 3, 3), (9,)])
def test_packed_documents_equal_documents_alone(model, tokens_of, lengths):
    """Restarted positions and document ids: neighbours in a row do not exist for each other."""
    documents = [tokens_of(2, length, seed) for seed, length in enumerate(lengths)]
    positions = torch.cat([torch.arange(length) for length in lengths])[None].expand(2, -1)
    ids = torch.cat([torch.full((length,), n) for n, length in enumerate(lengths)])
    context = Context(positions_BT=positions, document_ids_BT=ids[None].expand(2, -1))
    packed = model(torch.cat(documents, dim=1), context).split(lengths, dim=1)
    for alone, found in zip(documents, packed, strict=True):
        torch.testing.assert_close(found, model(alone), **CLOSE)


def test_document_ids_may_differ_between_rows(model, tokens_of):
    tokens = tokens_of(2, 6)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 0, 1, 2, 3, 4]])
    ids = torch.tensor([[5, 5, 5, 9, 9, 9], [2, 3, 3, 3, 3, 3]])
    logits = model(tokens, Context(positions_BT=positions, document_ids_BT=ids))
    torch.testing.assert_close(logits[:1, 3:], model(tokens[:1, 3:]), **CLOSE)
    torch.testing.assert_close(logits[1:, 1:], model(tokens[1:, 1:]), **CLOSE)


def test_rotary_models_see_distances_and_not_places(build, tokens_of):
    """All positions moved by one number: nothing changes; a gap in the middle: all after it do."""
    model, tokens = build("llama"), tokens_of(1, 6)
    logits = model(tokens)
    moved = model(tokens, Context(positions_BT=torch.arange(6)[None] + 7))
    torch.testing.assert_close(moved, logits, rtol=0, atol=1e-4)
    gap = model(tokens, Context(positions_BT=torch.tensor([[0, 1, 2, 8, 9, 10]])))
    changed = (gap - logits).abs().amax(-1)[0] > 1e-3
    assert changed.tolist() == [False, False, False, True, True, True]


def padded(rows, length, left, fill):
    """Rows of different lengths in one tensor, and where they are real."""
    tokens = torch.full((len(rows), length), fill)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    for n, row in enumerate(rows):
        span = slice(length - len(row), length) if left else slice(0, len(row))
        tokens[n, span], real[n, span] = row, True
    return tokens, real


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("fill", [0, 49])
def test_padding_is_as_if_it_were_not_there(model, tokens_of, left, fill):
    """On either side, whatever token fills it; a row without padding stands beside it."""
    rows = [tokens_of(1, length, seed=length)[0] for length in (1, 4, 8)]
    tokens, real = padded(rows, 8, left, fill)
    logits = model(tokens, Context(padding_BT=real))
    for n, row in enumerate(rows):
        torch.testing.assert_close(logits[n, real[n]], model(row[None])[0], **CLOSE)


def test_padding_in_the_middle_is_as_if_it_were_not_there(model, tokens_of):
    row, real = tokens_of(1, 5)[0], torch.tensor([1, 0, 0, 1, 1, 0, 1, 1, 0]).bool()
    tokens = torch.zeros(1, 9, dtype=torch.long)
    tokens[0, real] = row
    logits = model(tokens, Context(padding_BT=real[None]))
    torch.testing.assert_close(logits[:, real], model(row[None]), **CLOSE)


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_row_of_nothing_but_padding_gives_numbers(model, tokens_of, dtype, cached):
    """Softmax over no key is 0/0: the scores and the gradients must stay finite."""
    model = model.to(dtype).requires_grad_(True)
    real = torch.tensor([[True] * 6, [False] * 6, [False] * 5 + [True]])
    caches = model.new_cache(6) if cached else None
    logits = model(tokens_of(3, 6), Context(padding_BT=real, caches=caches))
    assert logits.isfinite().all()
    logits[real].float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
