"""Translation: predict each target token from the source and the target tokens before it.

The loss is the cross entropy of the target, arXiv:1409.3215, equation 2, with label smoothing
(arXiv:1706.03762, section 5.4): the share `smoothing` of the probability is spread over the whole
vocabulary. It is summed over target tokens, the ends included; padding counts nowhere.

Axes: B pairs, S source tokens, T target tokens, N counted places, V vocabulary
"""

from collections.abc import Callable, Generator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from stemma.data.ahead import ahead
from stemma.data.batches import IGNORED, Order
from stemma.data.bundles import PairBatch, PairStore, build_bundle
from stemma.nn.context import Context
from stemma.train.pretrain import pushed_by, tensor


def translation_loss(smoothing: float = 0.0) -> Callable[[Any, PairBatch], Tensor]:
    """A loss in nats, summed over the target tokens of a bundle; auxiliary losses push along."""

    def loss_sum(model: Any, batch: PairBatch) -> Tensor:
        device = model.embedding.weight.device
        targets_BT = tensor(batch.targets_BT, device)
        x_BTC, auxiliary = model.hidden(
            tensor(batch.source_BS, device),
            tensor(batch.inputs_BT, device),
            Context(memory_padding_BM=tensor(batch.real_BS, device)),
        )
        # targets are padded on the right: no token before the padding can see it
        counts_BT = targets_BT != IGNORED
        loss = F.cross_entropy(
            model.logits(x_BTC[counts_BT]).float(),
            targets_BT[counts_BT],
            reduction="sum",
            label_smoothing=smoothing,
        )
        return pushed_by(auxiliary, loss, counted=batch.counted)

    return loss_sum


def windows(
    store: PairStore, order: Order, *, first_step: int, steps: int, rows: int, workers: int = 0
) -> Generator[list[PairBatch], None, None]:
    """The bundles of each step from `first_step` on, each a micro-batch of its own.

    `rows` is not used: a bundle is as large as its plan says. `workers` threads build ahead.
    """

    def window(step: int) -> list[PairBatch]:
        return [build_bundle(store, order.plan, int(s)) for s in order.samples(step)]

    return ahead(window, range(first_step, steps), workers=workers)
