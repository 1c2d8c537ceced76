"""The loss in chunks equals torch's cross entropy of all scores, and never holds them all."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from stemma import api
from stemma.data.batches import IGNORED, Batch
from stemma.nn.head import Projection
from stemma.train.linear_loss import (
    CHUNK_BYTES,
    Measure,
    chunked_loss,
    chunks,
    linear_loss,
    plain_loss,
    projection,
)
from stemma.train.loop import accumulate
from stemma.train.pretrain import next_token_loss
from tests.models.test_names import golden

PLACES = 23


def draw(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def targets_of(vocab_size, count=PLACES):
    """Targets of which every fifth counts nowhere."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(0, vocab_size, (count,), generator=generator)
    targets[::5] = IGNORED
    return targets


def gradients(loss, *sources):
    return torch.autograd.grad(loss, sources, allow_unused=True)


def network(family, **more):
    model = api.build(family, **{**golden(family)[0], **more}).double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=number, scale=0.5))
    return model


def require_equal_losses(model, measure):
    """Value, and gradients of the stream and of every parameter, to 1e-12."""
    vocab_size, width = model.config.vocab_size, stream_width(model)
    targets = targets_of(vocab_size)
    found = []
    for loss_of in (
        lambda x: linear_loss(model, x, targets, measure),
        lambda x: plain_loss(model.logits(x), targets, measure),
    ):
        x = draw(PLACES, width, seed=9).requires_grad_()
        loss, z = loss_of(x)
        found.append((loss, z, gradients(loss / 7, x, *model.parameters())))
    (loss, z, ours), (wanted, wanted_z, theirs) = found
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(z, wanted_z, rtol=1e-12, atol=0)
    assert any(gradient is not None for gradient in theirs[1:])
    for got, gradient in zip(ours, theirs, strict=True):
        assert (got is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(got, gradient, rtol=1e-11, atol=1e-12)


def stream_width(model):
    """The width of what the head reads."""
    found = [p for n, p in model.named_parameters() if n in ("head.dense.weight", "head.weight")]
    return (found[0] if found else model.embedding.weight).shape[-1]


@pytest.mark.parametrize("family", api.families())
def test_every_family_has_the_loss_of_its_scores(family):
    more = {"masked_head": True} if family == "bert" else {}
    model = network(family, **more)
    size = model.config.vocab_size
    assert projection(model, draw(2, stream_width(model))) is not None
    require_equal_losses(model, Measure(0.1, 0.01, chunk_bytes=4 * size * 4))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-4])
@pytest.mark.parametrize("family", ["gpt2", "baichuan", "t5"])
def test_smoothing_and_z_loss_of_every_kind_of_head(family, smoothing, z_loss):
    model = network(family)
    require_equal_losses(
        model, Measure(smoothing, z_loss, chunk_bytes=4 * model.config.vocab_size * 9)
    )


def test_a_head_that_is_not_known_gives_all_its_scores():
    model = network("llama", tied=False)
    weight = model.head.weight
    model.head = torch.nn.Sequential(model.head, torch.nn.Softplus())
    x, targets = draw(PLACES, weight.shape[1]), targets_of(len(weight))
    loss = linear_loss(model, x, targets, Measure(chunk_bytes=1)).loss
    wanted = F.cross_entropy(F.softplus(x @ weight.T), targets, reduction="sum")
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)


def test_value_and_gradient_are_those_of_the_equations():
    """arXiv:1512.00567, section 7, and arXiv:2204.02311, section 5, written out."""
    x, weight, bias = draw(PLACES, 5), draw(13, 5, seed=1), draw(13, seed=2)
    sources = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    targets = targets_of(13)
    scores = sources[0] @ sources[1].T + sources[2]
    log_total = scores.exp().sum(-1).log()
    log_p = scores - log_total[:, None]
    counts = targets != IGNORED
    chosen = log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    cross = -((0.9 * chosen + 0.1 * log_p.mean(-1)) * counts).sum()
    z = 0.01 * (log_total.square() * counts).sum()
    wanted = gradients(cross + z, *sources)
    ours = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    found = chunked_loss(Projection(*ours), targets, Measure(0.1, 0.01, chunk_bytes=4 * 13 * 5))
    torch.testing.assert_close(found.loss, cross, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.z, z, rtol=1e-12, atol=0)
    assert not found.z.requires_grad
    for got, gradient in zip(gradients(found.loss, *ours), wanted, strict=True):
        torch.testing.assert_close(got, gradient, rtol=1e-12, atol=1e-13)


def test_frozen_parts_and_scores_alone_need_no_gradient():
    weight, targets = draw(13, 5, seed=1), targets_of(13)
    x, measure = draw(PLACES, 5).requires_grad_(), Measure(chunk_bytes=99)
    whole = plain_loss(x @ weight.T, targets).loss
    with torch.no_grad():
        loss = chunked_loss(Projection(x, weight, None), targets, measure).loss
    assert not loss.requires_grad and loss.item() == pytest.approx(whole.item(), rel=1e-12)
    loss = chunked_loss(Projection(x, weight, None), targets, measure).loss
    torch.testing.assert_close(gradients(loss, x), gradients(whole, x), rtol=1e-12, atol=1e-13)
    with pytest.raises(RuntimeError):
        loss.backward()


def test_half_precision_takes_the_softmax_in_fp32():
    x, weight = draw(PLACES, 64).float(), draw(97, 64, seed=1, scale=0.2).float()
    targets, sources = targets_of(97), []
    found = []
    for of in (chunked_loss, lambda made, t, m: plain_loss(made.scores(), t, m)):
        sources = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = of(Projection(*sources, None), targets, Measure(chunk_bytes=4 * 97 * 6)).loss
        assert loss.dtype == torch.float32
        found.append((loss, *gradients(loss, *sources)))
    exact = plain_loss(x @ weight.T, targets).loss
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[0][0], exact, rtol=5e-3, atol=0)
    for got, wanted in zip(found[0][1:], found[1][1:], strict=True):
        assert got.dtype == torch.float32
        assert ((got - wanted).norm() / wanted.norm()).item() < 1e-2


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_full_scores_are_never_there():
    """A step of a network with a large vocabulary, tied: both uses of its embedding learn."""
    size, rows, length = 50_304, 2, 256
    model = api.build("gpt2", width=4, depth=1, num_heads=1, vocab_size=size, context=length)
    tokens = torch.randint(0, size, (rows, length + 1)).numpy()
    samples = torch.arange(rows).numpy()
    parts = {"positions_BT": None, "documents_BT": None, "samples_B": samples}
    batch = Batch(tokens_BT=tokens[:, :-1], targets_BT=tokens[:, 1:], **parts)
    with Largest() as seen:
        loss, counted = accumulate(model, [batch], next_token_loss)
    assert counted == rows * length and 4 * seen.elements <= CHUNK_BYTES
    assert seen.elements < counted * size / 1.4
    ours = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    logits = model(torch.from_numpy(batch.tokens_BT)).flatten(0, 1)
    wanted = F.cross_entropy(logits, torch.from_numpy(batch.targets_BT).flatten())
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    length = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    for got, parameter in zip(ours, model.parameters(), strict=True):
        assert (got - parameter.grad).norm() < 1e-5 * length


@pytest.mark.parametrize(("count", "rows"), [(0, 4), (1, 4), (8, 4), (9, 4), (5, 100), (7, 1)])
def test_chunks_cover_every_place_once(count, rows):
    found = list(chunks(count, rows))
    assert [n for here in found for n in range(count)[here]] == list(range(count))
    assert all(0 < here.stop - here.start <= rows for here in found)


def test_no_place_at_all_is_no_loss():
    x, weight = draw(0, 5).requires_grad_(), draw(13, 5, seed=1).requires_grad_()
    loss = chunked_loss(Projection(x, weight, None), targets_of(13, 0)).loss
    loss.backward()
    assert loss.item() == 0 and weight.grad.count_nonzero() == 0
