"""What the processes of a pool do together; the tests compare what they find."""

import torch
import torch.nn.functional as F

from stemma import api
from stemma.core.seeds import generator_for
from stemma.nn.context import Context
from stemma.pipeline.processes import spread_over
from stemma.train.division import Parallel
from stemma.train.pretrain import pushed_by

ROWS, TIME, VOCABULARY = 8, 12, 37
SHARED = {"vocab_size": VOCABULARY, "context": 16}


def network(family, numbers):
    """A network in fp64 that draws nothing, its weights far from their small beginnings."""
    known = api.config_class(family).model_fields
    still = {name: 0.0 for name in known if "dropout" in name or "jitter" in name}
    model = api.build(family, seed=0, **SHARED, **still, **numbers).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = generator_for(1, name)
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return model


def tokens(step):
    """The whole batch of a step; packed documents in two rows of three."""
    draw = generator_for(2, "tokens", step)
    tokens_BT = torch.randint(VOCABULARY, (ROWS, TIME + 1), generator=draw)
    cut_B = torch.randint(3, TIME, (ROWS, 1), generator=draw)
    place_T = torch.arange(TIME)[None]
    documents_BT = (place_T >= cut_B).long() * (torch.arange(ROWS)[:, None] % 3 > 0)
    positions_BT = torch.where(documents_BT == 1, place_T - cut_B, place_T)
    targets_BT = tokens_BT[:, 1:].clone()
    targets_BT[torch.rand(ROWS, TIME, generator=draw) < 0.2] = -100
    return tokens_BT[:, :-1], targets_BT, positions_BT, documents_BT


def loss_sum(model, tokens_BT, targets_BT, positions_BT, documents_BT):
    """Summed cross entropy of some rows, auxiliary losses pushing along."""
    context = Context(positions_BT=positions_BT, document_ids_BT=documents_BT)
    does = api.does(model.config.family)
    if does == "translate":
        x_BTC, auxiliary = model.hidden(tokens_BT.flip(1), tokens_BT)
    elif does == "read":
        x_BTC, auxiliary = model.hidden(tokens_BT)
    else:
        x_BTC, auxiliary = model.hidden(tokens_BT, context)
    logits_NV = model.logits(x_BTC).flatten(0, 1)
    loss = F.cross_entropy(logits_NV, targets_BT.flatten(), ignore_index=-100, reduction="sum")
    return pushed_by(auxiliary, loss, counted=int((targets_BT != -100).sum()))


def trained(world, family, numbers, *, plan, steps=3, micro=2):
    """Losses and gradient norms of some steps, and a digest of the weights after them.

    Each micro-batch has `micro` rows, so that what depends on one (a balance loss) is alike
    whatever the number of processes.
    """
    model = network(family, numbers)
    spread = spread_over(world, Parallel(**plan), model, rows=ROWS, place="")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    rows, found = ROWS // spread.parts, []
    for step in range(steps):
        model.train()
        optimizer.zero_grad()
        mine = [part[spread.part * rows :][:rows] for part in tokens(step)]
        cuts = [[part[c : c + micro] for part in mine] for c in range(0, rows, micro)]
        counted = sum(int((cut[1] != -100).sum()) for cut in cuts)
        (everywhere,) = spread.sums(counted)
        total = 0.0
        for number, cut in enumerate(cuts):
            spread.begin_backward(last=number == len(cuts) - 1)
            loss = loss_sum(model, *cut)
            (loss / everywhere).backward()
            total += loss.item()
        (total,) = spread.sums(total)
        found.append([total / everywhere, float(spread.clip(0.5))])
        optimizer.step()
    whole = spread.whole()
    weights = {name: float(tensor.double().norm()) for name, tensor in whole.items()}
    return {"steps": found, "weights": weights}
