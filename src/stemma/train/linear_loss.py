"""The cross entropy of a linear head, in chunks of places: the full scores are never there.

For a place with features x and target t the scores are s = W x + b, and the loss is
log Z - s_t with Z = sum over v of exp(s_v). Its gradient by the scores is softmax(s) minus one at
the target, which needs nothing but the scores themselves. So the forward pass takes a chunk of
places, makes its scores, turns them in place into their gradient, multiplies that into the
gradients of features, weight and bias, and forgets it; the backward pass only scales what is there.

With label smoothing e (arXiv:1512.00567, section 7) the target's one becomes 1 - e, and e / V is
taken from every entry. The z loss (arXiv:2204.02311, section 5) adds weight * (log Z)^2 to the loss
of every place; its gradient by the scores is 2 weight log Z softmax(s).

Memory, for N places, V entries and width C, beyond features and weight: `CHUNK_BYTES` of scores
(1.5 times that in half precision), and the gradients 4 N C and 4 V C, which the step needs anyway.
Plain cross entropy keeps scores, their logarithms and their gradient: 12 N V bytes. With N = 4,096,
V = 50,304 and C = 384 that is 151 MB against 2,472 MB.

Axes: N places, R places of a chunk, V vocabulary, C width
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stemma.data.batches import IGNORED
from stemma.nn.encoder import Encoder
from stemma.nn.encoder_decoder import EncoderDecoder
from stemma.nn.head import Head, MaskedHead, NormHead, Projection
from stemma.nn.seq2seq import AlignedSeq2Seq, Seq2Seq
from stemma.nn.stack import LanguageModel

CHUNK_BYTES = 64 << 20  # of fp32 scores that are there at once
HALVES = (torch.float16, torch.bfloat16)
NETWORKS = (LanguageModel, Encoder, EncoderDecoder, Seq2Seq, AlignedSeq2Seq)


class LinearLoss(NamedTuple):
    """Sums over the places that count: the cross entropy in nats, and the z loss.

    The gradient of `loss` is that of both; `z`, weighted, has none of its own.
    """

    loss: Tensor
    z: Tensor


@dataclass(frozen=True)
class Measure:
    """What is measured of the scores, and how many bytes of them may be there at once."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    chunk_bytes: int = CHUNK_BYTES

    def rows(self, vocab_size: int) -> int:
        """Places of a chunk."""
        return max(1, self.chunk_bytes // (4 * vocab_size))


PLAIN = Measure()


@dataclass(frozen=True)
class Wanted:
    """What the features are to tell: the targets (N,), how it is measured, whether they learn."""

    targets: Tensor
    measure: Measure
    learns: bool


def linear_loss(
    model: Any, x_NC: Tensor, targets_N: Tensor, measure: Measure = PLAIN
) -> LinearLoss:
    """The loss of a network's scores for places of its stream after the final norm.

    A target of `IGNORED` counts nowhere. Scores that fit into one chunk are taken as they are,
    by torch's own cross entropy. The softmax is taken in fp32 where the scores are of half
    precision. A head that is not linear in the end, or was replaced, gives all its scores at once.
    """
    found = projection(model, x_NC)
    if found is None or len(x_NC) <= measure.rows(len(found.weight)):
        return plain_loss(model.logits(x_NC), targets_N, measure)
    return chunked_loss(found, targets_N, measure)


def projection(model: Any, x_NC: Tensor) -> Projection | None:
    """What a network's last linear layer is of; None where that is not known."""
    if not isinstance(model, NETWORKS):  # one that is spread over processes still is
        return None
    head, embedding_VC = model.head, model.embedding.weight
    if head is None and isinstance(model, LanguageModel):
        return Projection(x_NC, embedding_VC, None)
    if type(head) is nn.Linear:
        return Projection(x_NC, head.weight, head.bias)
    if type(head) is NormHead:
        return head.projection(x_NC)
    if isinstance(head, Head | MaskedHead) and type(head) in (Head, MaskedHead):
        return head.projection(x_NC, embedding_VC)
    return None


def plain_loss(logits_NV: Tensor, targets_N: Tensor, measure: Measure = PLAIN) -> LinearLoss:
    """The same from scores that are all there."""
    logits_NV = logits_NV.float() if logits_NV.dtype in HALVES else logits_NV
    loss = F.cross_entropy(
        logits_NV,
        targets_N,
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=measure.label_smoothing,
    )
    if not measure.z_loss:
        return LinearLoss(loss, loss.new_zeros(()))
    log_total_N = logits_NV.logsumexp(-1)
    z = measure.z_loss * (log_total_N.square() * (targets_N != IGNORED)).sum()
    return LinearLoss(loss + (z - z.detach()), z.detach())


def chunked_loss(found: Projection, targets_N: Tensor, measure: Measure = PLAIN) -> LinearLoss:
    """The same from what the scores are made of, a chunk of places at a time."""
    wanted = Wanted(targets_N, measure, learns=torch.is_grad_enabled())
    loss, z = ChunkedCrossEntropy.apply(*found, wanted)  # type: ignore[no-untyped-call]
    return LinearLoss(loss, z)


class ChunkedCrossEntropy(torch.autograd.Function):
    """The loss whose forward pass leaves the gradients of features, weight and bias.

    They are those of the sum; whatever the loss is multiplied by afterwards multiplies them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        wanted: Wanted,
    ) -> tuple[Tensor, Tensor]:
        measure, targets_N = wanted.measure, wanted.targets
        learning = [wanted.learns and needed for needed in ctx.needs_input_grad[:3]]
        sources = (features_NC, weight_VC, bias_V)
        gradients = [
            torch.zeros_like(source) if needed and source is not None else None
            for source, needed in zip(sources, learning, strict=True)
        ]
        dtype = product_dtype(features_NC)
        x_NC, w_VC = features_NC.to(dtype), weight_VC.to(dtype)
        losses: list[Tensor] = []
        with torch.autocast(features_NC.device.type, enabled=False):
            for here in chunks(len(features_NC), measure.rows(len(weight_VC))):
                scores_RV = F.linear(x_NC[here], w_VC)
                scores_RV = scores_RV.float() if dtype in HALVES else scores_RV
                if bias_V is not None:
                    scores_RV += bias_V
                losses.append(scored_(scores_RV, targets_N[here], measure))
                if any(learning):
                    spread(scores_RV.to(dtype), x_NC, w_VC, here, gradients)
                del scores_RV  # before the next ones are made
        ctx.gradients = gradients
        loss, z = torch.stack(losses).sum(0) if losses else features_NC.new_zeros(2)
        ctx.mark_non_differentiable(z)
        return loss, z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were handed out already")
        gradients, ctx.gradients = ctx.gradients, None  # let go: the caller may add to them
        scaled = [None if g is None else g.mul_(scale.to(g.dtype)) for g in gradients]
        return (*scaled, None)


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The precision in which a product is taken: that of autocast, where it is on."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def chunks(count: int, rows: int) -> Iterator[slice]:
    """Slices of nearly the same size, of at most `rows` places.

    >>> [(s.start, s.stop) for s in chunks(10, 4)]
    [(0, 4), (4, 8), (8, 10)]
    """
    parts = -(-count // rows)
    size = -(-count // max(1, parts))
    for start in range(0, count, max(1, size)):
        yield slice(start, min(start + size, count))


def scored_(scores_RV: Tensor, targets_R: Tensor, measure: Measure) -> Tensor:
    """Turn the scores into the gradient of their loss, in place; returns (loss, z), (2,)."""
    smoothing, size = measure.label_smoothing, scores_RV.shape[-1]
    counts_R = (targets_R != IGNORED).to(scores_RV.dtype)
    targets_R1 = targets_R.clamp(min=0)[:, None]
    largest_R = scores_RV.amax(-1)
    scores_RV -= largest_R[:, None]
    wanted_R = (1 - smoothing) * scores_RV.gather(1, targets_R1)[:, 0]
    if smoothing:
        wanted_R += smoothing / size * scores_RV.sum(-1)
    total_R = scores_RV.exp_().sum(-1)
    shifted_R = total_R.log()
    log_total_R = shifted_R + largest_R
    loss = ((shifted_R - wanted_R) * counts_R).sum()
    z = measure.z_loss * (log_total_R.square() * counts_R).sum()
    scores_RV *= ((1 + 2 * measure.z_loss * log_total_R) * counts_R / total_R)[:, None]
    scores_RV.scatter_add_(1, targets_R1, ((smoothing - 1) * counts_R)[:, None])
    if smoothing:
        scores_RV -= (smoothing / size * counts_R)[:, None]
    return torch.stack((loss, z))


def spread(
    slope_RV: Tensor,
    x_NC: Tensor,
    weight_VC: Tensor,
    here: slice,
    gradients: list[Tensor | None],
) -> None:
    """Add what a chunk's gradient by the scores means for features, weight and bias."""
    by_features_NC, by_weight_VC, by_bias_V = gradients
    if by_features_NC is not None:
        by_features_NC[here] = slope_RV @ weight_VC
    if by_weight_VC is not None:
        if by_weight_VC.dtype == slope_RV.dtype:
            by_weight_VC.addmm_(slope_RV.t(), x_NC[here])
        else:  # products of half precision, added in fp32
            by_weight_VC += slope_RV.t() @ x_NC[here]
    if by_bias_V is not None:
        by_bias_V += slope_RV.sum(0, dtype=by_bias_V.dtype)
