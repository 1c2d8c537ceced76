"""On a GPU the same run gives the same losses as on the CPU, within fp32's rounding."""

import pytest
import torch

from stemma import api
from stemma.data.batches import Order, build_batch
from stemma.data.packing import plan_packing
from stemma.train.loop import fit
from stemma.train.optimizer import AdamW, adamw
from stemma.train.pretrain import next_token_loss
from tests.data.test_packing import store_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_losses_equal_those_of_the_cpu(family):
    store = store_of([90, 5, 40, 200])
    order = Order(plan_packing(store.offsets, 16), seed=0, batch_size=4)
    batches = [[build_batch(store, order.plan, order.samples(s))] for s in range(10)]
    losses = {}
    for device in ("cpu", "cuda"):
        numbers = {"width": 32, "depth": 2, "num_heads": 4, "vocab_size": 335, "context": 16}
        model = api.build(family, seed=0, device=device, **numbers)
        optimizer = adamw(model, AdamW(), learning_rate=1e-3)
        steps = fit(
            model,
            batches,
            next_token_loss,
            optimizer,
            learning_rate=lambda step: 1e-3,
            clip=1.0,
            seed=0,
        )
        losses[device] = torch.tensor([numbers["loss"] for numbers in steps])
    torch.testing.assert_close(losses["cuda"], losses["cpu"], rtol=1e-4, atol=0)
