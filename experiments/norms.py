"""Where norms stand: does a deep Transformer learn without a warm-up?

Twelve blocks learn to repeat eight random tokens, with the norm after every sublayer (Post-LN),
before it (Pre-LN, arXiv:2002.04745) or both ways in two streams (ResiDual, arXiv:2304.14802), for
several learning rates, with and without a warm-up. A network at chance has a loss of ln 16, 2.77.
Beside that the gradient of the last feed-forward matrix before the first step, by depth: Pre-LN's
falls as 1 / sqrt(depth) (arXiv:2002.04745, theorem 1), Post-LN's does not.

Matrices begin by Glorot's rule in all three, as in that paper; the house's own initial weights
divide what writes to the stream by sqrt(2 depth), which helps Post-LN.

    python -m experiments.norms [--quick] [--threads N] [--out FOLDER]
"""

import math
import sys
from itertools import product
from typing import Any

from torch import Tensor, nn

import stemma
from experiments.record import COLOURS, Experiment, Numbers, Say, axes_of, grid, middle, run
from experiments.synthetic import held_out, learn, loss_sum, repetition
from stemma.core.errors import DivergedError
from stemma.core.seeds import generator_for
from stemma.nn.initial import EMBEDDINGS, fill

NAMES = {"post": "Post-LN", "pre": "Pre-LN", "dual": "ResiDual"}
WIDTH, VOCAB, CHANCE = 48, 16, math.log(16)
LENGTH = 15  # eight tokens, then all but the last of them again: eight places count
STEPS, WARMUP, RATE = 150, 75, 3e-3
DEPTHS = (3, 6, 12, 24, 48)


def network(norms: str, depth: int, seed: int, *, embedding_std: float = 0.02) -> nn.Module:
    """A Transformer decoder with Glorot's initial weights.

    With the family's own embedding where a token stands is louder than what it is, and repeating
    is learned sooner.
    """
    sizes: dict[str, Any] = {"width": WIDTH, "num_heads": 4, "vocab_size": VOCAB, "tied": False}
    model = stemma.build("decoder", norms=norms, depth=depth, **sizes)

    def deviation(name: str, parameter: Tensor) -> float:
        if name in EMBEDDINGS:
            return embedding_std
        return math.sqrt(2 / sum(parameter.shape))

    fill(model, deviation, seed=seed)
    return model


def loss_after(norms: str, rate: float, warmup: int, seed: int, *, depth: int, steps: int) -> Any:
    """Held-out cross entropy in nats; None where training left the finite numbers."""
    model, task = network(norms, depth, seed), repetition(48, LENGTH, vocab_size=VOCAB)
    try:
        for _ in learn(model, task, steps=steps, rate=rate, warmup=warmup, seed=seed):
            pass
    except DivergedError:
        return None
    return round(held_out(model, repetition(512, LENGTH, vocab_size=VOCAB), seed), 4)


def first_gradient(norms: str, depth: int, seed: int) -> float:
    """Norm of the gradient of the mean loss by the last MLP's second matrix, before any step.

    Embeddings times sqrt(width) have unit size here, as the theorem has it.
    """
    model = network(norms, depth, seed, embedding_std=WIDTH**-0.5)
    batch = repetition(48, LENGTH, vocab_size=VOCAB)(generator_for(seed, "batch", 0))
    (loss_sum(model, batch) / batch.counted).backward()
    gradient: Tensor = model.get_parameter(f"blocks.{depth - 1}.mlp.down.weight").grad
    return round(gradient.norm().item(), 5)


def measure(quick: bool, say: Say) -> Numbers:
    """The whole sweep, or the one rate that the claim is about."""
    seeds = range(2 if quick else 3)
    rates = (RATE,) if quick else (3e-4, 1e-3, 3e-3, 1e-2)
    warmups = (0,) if quick else (0, WARMUP)
    depths = DEPTHS[::2] if quick else DEPTHS
    return sweep(rates, warmups, depths, seeds, steps=STEPS, depth=12, say=say)


def sweep(
    rates: Any, warmups: Any, depths: Any, seeds: Any, *, steps: int, depth: int, say: Say
) -> Numbers:
    """Losses of every scheme, rate and warm-up, and first gradients of every scheme and depth."""
    losses, gradients = [], []
    for norms, rate, warmup in product(NAMES, rates, warmups):
        found = [loss_after(norms, rate, warmup, s, depth=depth, steps=steps) for s in seeds]
        row = {"norms": norms, "rate": rate, "warmup": warmup, "losses": found}
        losses.append(row | {"median": middle(found)})
        say(f"{NAMES[norms]}, rate {rate}, warm-up {warmup}: {found}")
    for norms, layers in product(NAMES, depths):
        found = [first_gradient(norms, layers, seed) for seed in seeds]
        row = {"norms": norms, "depth": layers, "gradients": found}
        gradients.append(row | {"median": middle(found)})
        say(f"{NAMES[norms]}, {layers} layers: first gradients {found}")
    settings = {"steps": steps, "depth": depth, "width": WIDTH, "chance": round(CHANCE, 4)}
    return {"settings": settings, "seeds": list(seeds), "losses": losses, "gradients": gradients}


def claims(numbers: Numbers) -> dict[str, bool]:
    """What must hold at a rate of 3e-3 without a warm-up in every seed, and of first gradients."""
    at = {
        r["norms"]: r["losses"] for r in numbers["losses"] if (r["rate"], r["warmup"]) == (RATE, 0)
    }
    return {
        "Post-LN without a warm-up stays at chance": all(
            loss is None or loss > 0.95 * CHANCE for loss in at["post"]
        ),
        "Pre-LN falls below 0.05": all(loss is not None and loss < 0.05 for loss in at["pre"]),
        "ResiDual falls below 0.05": all(loss is not None and loss < 0.05 for loss in at["dual"]),
        "Pre-LN's first gradient falls to less than half": growth(numbers, "pre") < 0.5,
        "Post-LN's stays within half and double": 0.5 < growth(numbers, "post") < 2,
    }


def growth(numbers: Numbers, norms: str) -> float:
    """The median first gradient of the deepest network over that of the shallowest."""
    found = [row["median"] for row in numbers["gradients"] if row["norms"] == norms]
    return float(found[-1] / found[0])


def table(numbers: Numbers) -> str:
    """Medians of losses and of first gradients."""
    losses = [
        (NAMES[r["norms"]], r["rate"], r["warmup"], r["median"], r["losses"])
        for r in numbers["losses"]
    ]
    gradients = [(NAMES[r["norms"]], r["depth"], r["median"]) for r in numbers["gradients"]]
    return "\n\n".join(
        (
            grid(("norms", "rate", "warm-up", "loss", "by seed"), losses),
            grid(("norms", "layers", "first gradient"), gradients),
        )
    )


def draw(numbers: Numbers) -> Any:
    """Loss by rate with and without a warm-up, and first gradient by depth."""
    warmups = sorted({row["warmup"] for row in numbers["losses"]})
    figure, axes = axes_of(len(warmups) + 1)
    for place, warmup in zip(axes, warmups, strict=False):
        for norms, colour in zip(NAMES, COLOURS, strict=False):
            rows = [r for r in numbers["losses"] if (r["norms"], r["warmup"]) == (norms, warmup)]
            rates = [row["rate"] for row in rows]
            medians = [math.nan if r["median"] is None else r["median"] for r in rows]
            place.plot(rates, medians, "o-", color=colour, label=NAMES[norms])
            for seed in range(len(numbers["seeds"])):
                found = [math.nan if r["losses"][seed] is None else r["losses"][seed] for r in rows]
                place.plot(rates, found, ".", color=colour, alpha=0.5)
        place.axhline(CHANCE, color="grey", linestyle=":", label="chance, ln 16")
        place.set(xscale="log", yscale="log", ylim=(1e-4, 10), xlabel="learning rate")
        place.set_ylabel(f"held-out loss after {numbers['settings']['steps']} steps (nats)")
        place.set_title(f"{warmup} steps of warm-up" if warmup else "no warm-up")
    axes[-2].legend(fontsize=8, loc="lower left")
    for norms, colour in zip(NAMES, COLOURS, strict=False):
        rows = [row for row in numbers["gradients"] if row["norms"] == norms]
        depths = [row["depth"] for row in rows]
        axes[-1].plot(depths, [r["median"] for r in rows], "o-", color=colour, label=NAMES[norms])
    axes[-1].set(xscale="log", yscale="log", xlabel="layers", title="before the first step")
    axes[-1].set_xticks(depths, [str(depth) for depth in depths])
    axes[-1].set_yticks((0.1, 0.2, 0.5, 1, 2, 5), ("0.1", "0.2", "0.5", "1", "2", "5"))
    axes[-1].minorticks_off()
    axes[-1].set_ylabel("gradient norm, last MLP's output matrix")
    return figure


EXPERIMENT = Experiment("norms", __doc__, measure, claims, table, draw)

if __name__ == "__main__":
    sys.exit(run(EXPERIMENT))
