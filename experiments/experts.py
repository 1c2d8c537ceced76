"""Mixture of experts: does the balance loss keep every expert at work, and at what price?

Two layers of eight experts each learn a text in which few tokens are frequent. A token asks one
expert, without and with the balance loss of Switch (arXiv:2101.03961, equation 4), or two. An
expert is called dead where fewer than one in a hundred choices of held-out tokens go to it; an even
load is 12.5 in a hundred. Then a limit is put to the experts' loads: how many tokens would find no
place, by capacity factor (equation 3)? The picture shows which tokens ask which expert.

    python -m experiments.experts [--quick] [--threads N] [--out FOLDER]
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.record import COLOURS, Experiment, Numbers, Say, axes_of, grid, middle, run
from experiments.synthetic import held_out, learn, skewed
from stemma.core.seeds import generator_for
from stemma.nn.attention import Attention
from stemma.nn.context import Context
from stemma.nn.dispatch import Share
from stemma.nn.initial import initialise
from stemma.nn.moe import MoE, PlainExperts, expert_load
from stemma.nn.norm import layer_norm
from stemma.nn.position import Rope
from stemma.nn.residual import PreNorm
from stemma.nn.router import SoftmaxTopK
from stemma.nn.stack import Block, LanguageModel

EXPERTS, LAYERS, DEAD = 8, 2, 0.01
FACTORS = (1.0, 1.25, 2.0)
ARMS = {  # experts that a token asks, weight of the balance loss
    "one, no balance loss": (1, 0.0),
    "one, balance loss 0.01": (1, 0.01),
    "two, no balance loss": (2, 0.0),
    "two, balance loss 0.01": (2, 0.01),
}
ALONE, BALANCED = tuple(ARMS)[:2]


@dataclass(frozen=True)
class Sizes:
    """The numbers of the network."""

    width: int = 32
    vocab_size: int = 64
    hidden: int = 64
    num_heads: int = 4


def network(choices: int, balance_loss: float, seed: int) -> LanguageModel:
    """A decoder whose every MLP is a mixture of experts."""
    c = Sizes()

    def block() -> Block:
        head_dim = c.width // c.num_heads
        heads: Any = {"num_kv_heads": c.num_heads, "head_dim": head_dim}
        attention = Attention(c.width, c.num_heads, position=Rope(head_dim), **heads)
        experts = PlainExperts(EXPERTS, c.width, c.hidden)
        router = SoftmaxTopK(choices)
        moe = MoE(c.width, experts, router=router, balance_loss=balance_loss)
        layers = {"attention": attention, "moe": moe}
        return Block(c.width, layers, norm=layer_norm(1e-5), residual=PreNorm())

    blocks = [block() for _ in range(LAYERS)]
    model = LanguageModel(c, blocks, norm=layer_norm(1e-5), tied=False)
    initialise(model, seed=seed, std=0.3, depth=LAYERS)
    return model


def routed(model: LanguageModel, seed: int) -> tuple[Tensor, list[tuple[MoE, Tensor, Context]]]:
    """Held-out tokens, and every mixture with what came to it."""
    model.eval()
    kept: list[tuple[MoE, Tensor, Context]] = []
    mixtures = [layer for layer in model.modules() if isinstance(layer, MoE)]
    hooks = [
        m.register_forward_pre_hook(lambda m, given: kept.append((m, *given))) for m in mixtures
    ]
    batch = skewed(64, 64)(generator_for(seed, "held out"))
    with torch.no_grad():
        model(*batch.inputs)
    for hook in hooks:
        hook.remove()
    return batch.inputs[0], kept


@torch.no_grad()
def loads(model: LanguageModel, seed: int) -> Numbers:
    """How the experts share the tokens, what a capacity would drop, and who asks whom."""
    tokens_BT, kept = routed(model, seed)
    found: Numbers = {"loads": [], "dropped": {}, "asked": []}
    for moe, x_BTC, context in kept:
        experts_BTK = moe.route(moe.scores(x_BTC), context).experts_BTK
        load_E = expert_load(experts_BTK, EXPERTS)
        found["loads"].append([round(share, 4) for share in load_E.tolist()])
        asked_VE = torch.zeros(Sizes().vocab_size, EXPERTS)
        pairs = (tokens_BT[..., None].expand_as(experts_BTK), experts_BTK)
        asked_VE.index_put_(pairs, torch.ones(()), accumulate=True)
        asked_VE /= asked_VE.sum(1, keepdim=True).clamp(min=1)
        found["asked"].append([[round(share, 3) for share in row] for row in asked_VE.tolist()])
    for factor in FACTORS:
        shares = []
        for moe, x_BTC, context in kept:
            moe.capacity = Share(factor)
            weights_BTK = moe.route(moe.scores(x_BTC), context).weights_BTK
            shares.append(float((weights_BTK == 0).double().mean()))
            moe.capacity = None
        found["dropped"][str(factor)] = round(sum(shares) / len(shares), 4)
    found["dead"] = sum(share < DEAD for layer in found["loads"] for share in layer)
    found["largest"] = max(max(layer) for layer in found["loads"])
    return found


def train(arm: str, seed: int, steps: int) -> Numbers:
    """One network: its held-out cross entropy in nats, and its experts' loads."""
    choices, weight = ARMS[arm]
    model = network(choices, weight, seed)
    for _ in learn(model, skewed(16, 64), steps=steps, rate=3e-3, seed=seed):
        pass
    loss = round(held_out(model, skewed(64, 64), seed), 4)
    return {"seed": seed, "loss": loss, **loads(model, seed)}


def measure(quick: bool, say: Say) -> Numbers:
    """All arms, or those with one choice."""
    arms = tuple(ARMS)[:2] if quick else tuple(ARMS)
    return compare(arms, range(2 if quick else 3), steps=200, say=say)


def compare(arms: Any, seeds: Any, *, steps: int, say: Say) -> Numbers:
    """Every arm with every seed; the heat maps are those of the first seed."""
    rows = []
    for arm in arms:
        runs = []
        for seed in seeds:
            runs.append(train(arm, seed, steps))
            told = {key: runs[-1][key] for key in ("seed", "dead", "largest", "loss", "dropped")}
            say(f"{arm}: {told}")
        medians = {key: middle([each[key] for each in runs]) for key in ("dead", "largest", "loss")}
        dropped = {f: middle([each["dropped"][f] for each in runs]) for f in map(str, FACTORS)}
        for each in runs[1:]:
            del each["asked"]
        rows.append({"arm": arm, "median": medians | {"dropped": dropped}, "runs": runs})
    settings = {"experts": EXPERTS, "layers": LAYERS, "steps": steps, "dead_below": DEAD}
    return {"settings": settings, "seeds": list(seeds), "arms": rows}


def claims(numbers: Numbers) -> dict[str, bool]:
    """What must hold in every seed, of one choice a token."""
    runs = {row["arm"]: row["runs"] for row in numbers["arms"]}
    pairs = list(zip(runs[ALONE], runs[BALANCED], strict=True))
    return {
        "without the balance loss at least 3 of 16 experts are dead": all(
            without["dead"] >= 3 for without, _ in pairs
        ),
        "with it none is": all(with_it["dead"] == 0 for _, with_it in pairs),
        "the largest load falls to less than two thirds": all(
            with_it["largest"] < without["largest"] * 2 / 3 for without, with_it in pairs
        ),
        "the cross entropy differs by less than 0.05 nats": all(
            abs(with_it["loss"] - without["loss"]) < 0.05 for without, with_it in pairs
        ),
    }


def table(numbers: Numbers) -> str:
    """Medians over the seeds, dead experts by seed."""
    rows = []
    for row in numbers["arms"]:
        median = row["median"]
        dead = [each["dead"] for each in row["runs"]]
        shares = [f"{share:.1%}" for share in median["dropped"].values()]
        rows.append((row["arm"], dead, median["largest"], median["loss"], *shares))
    dropped = [f"dropped at {factor}" for factor in FACTORS]
    return grid(("experts asked", "dead of 16", "largest load", "loss", *dropped), rows)


def draw(numbers: Numbers) -> Any:
    """Who asks whom in the first layer, without and with the loss, and what a capacity drops."""
    figure, axes = axes_of(3, width=4.4)
    shown = [row for row in numbers["arms"] if row["arm"] in (ALONE, BALANCED)]
    for place, row in zip(axes, shown, strict=False):
        asked_EV = torch.tensor(row["runs"][0]["asked"][0]).T.numpy()
        image = place.imshow(asked_EV, aspect="auto", cmap="Blues", vmin=0, vmax=1)
        place.set(xlabel="token, the most frequent first", ylabel="expert of the first layer")
        place.set_title(row["arm"])
    figure.colorbar(image, ax=axes[:2], label="share of the token's choices")
    for row, colour in zip(numbers["arms"], COLOURS, strict=False):
        shares = list(row["median"]["dropped"].values())
        axes[-1].plot(
            FACTORS, [100 * share for share in shares], "o-", color=colour, label=row["arm"]
        )
    axes[-1].set(xlabel="capacity factor", ylabel="choices without a place (%)", ylim=(0, 100))
    axes[-1].set_title("what a limit would drop")
    axes[-1].legend(fontsize=8)
    return figure


EXPERIMENT = Experiment("experts", __doc__, measure, claims, table, draw)

if __name__ == "__main__":
    sys.exit(run(EXPERIMENT))
