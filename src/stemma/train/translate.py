"""Translation: predict each target token from the source and the target tokens before it.

The loss is the cross entropy of the target, arXiv:1409.3215, equation 2, with label smoothing
(arXiv:1706.03762, section 5.4): the share `smoothing` of the probability is spread over the whole
vocabulary. It is summed over target tokens, the ends included; padding counts nowhere.

Axes: B pairs, S source tokens, T target tokens
"""

from collections.abc import Callable, Generator
from typing import Any

from torch import Tensor

from stemma.data.ahead import ahead
from stemma.data.batches import Order
from stemma.data.bundles import PairBatch, PairStore, build_bundle
from stemma.nn.context import Context
from stemma.train.linear_loss import Measure, linear_loss
from stemma.train.loop import Parts
from stemma.train.pretrain import at_targets, parts, pushed_by, tensor


def translation_loss(smoothing: float = 0.0) -> Callable[[Any, PairBatch], Tensor]:
    """A loss in nats, summed over the target tokens of a bundle; auxiliary losses push along."""

    def loss_sum(model: Any, batch: PairBatch) -> Tensor:
        return translation_parts(model, batch, smoothing=smoothing).loss

    return loss_sum


def translation_parts(
    model: Any, batch: PairBatch, *, smoothing: float = 0.0, z_loss: float = 0.0
) -> Parts:
    """The same, with a z loss of this weight that pushes along and is told apart."""
    device = model.embedding.weight.device
    x_BTC, auxiliary = model.hidden(
        tensor(batch.source_BS, device),
        tensor(batch.inputs_BT, device),
        Context(memory_padding_BM=tensor(batch.real_BS, device)),
    )
    # targets are padded on the right: no token before the padding can see it
    measure = Measure(label_smoothing=smoothing, z_loss=z_loss)
    found = linear_loss(model, *at_targets(x_BTC, batch.targets_BT), measure)
    return parts(pushed_by(auxiliary, found.loss, counted=batch.counted), found.z, z_loss)


def windows(
    store: PairStore, order: Order, *, first_step: int, steps: int, rows: int, workers: int = 0
) -> Generator[list[PairBatch], None, None]:
    """The bundles of each step from `first_step` on, each a micro-batch of its own.

    `rows` is not used: a bundle is as large as its plan says. `workers` threads build ahead.
    """

    def window(step: int) -> list[PairBatch]:
        return [build_bundle(store, order.plan, int(s)) for s in order.samples(step)]

    return ahead(window, range(first_step, steps), workers=workers)
