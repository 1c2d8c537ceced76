"""Attention in a window: how far back does a network of several layers reach?

A query of Mistral sees its own position and the W - 1 before it, so through L layers a token can be
felt L (W - 1) positions later (arXiv:2310.06825, section 2, which says about L W). Three things are
measured. The reach, by gradients: from the last position's logits to every embedding. What can be
learned with it: networks are trained to say again what stood D places ago, for distances up to the
reach of their layers and past it; where nothing is felt, nothing is learned, and the loss cannot be
below chance. And the rolling cache: decoding far past the window gives the numbers of one full
pass, in memory that does not grow.

What can be felt need not be found: in a window of 6, three layers did not learn in 300 steps to
copy from 15 places before, the very edge, where a single path of one key in six a layer leads to
the answer. In the window of 4 used here they do.

    python -m experiments.window [--quick] [--threads N] [--out FOLDER]
"""

import math
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

import stemma
from experiments.record import COLOURS, Experiment, Numbers, Say, axes_of, grid, middle, run
from experiments.synthetic import IGNORED, Batch, Task, held_out, learn
from stemma.core.seeds import generator_for
from stemma.nn.context import Context

VOCAB, WINDOW = 16, 4
CHANCE = math.log(VOCAB)
SHAPES = ((1, 4), (2, 6), (3, 6), (4, 9))  # layers and window, for gradients
PIECES = (1, 7, 64, 300)  # tokens a pass while the cache rolls
ROLLED = (1024, 4096, 16384)  # tokens after which bytes are read
DISTANCES = {1: (2, 3, 4, 6), 2: (4, 6, 7, 9), 3: (6, 9, 10, 12)}  # by layers
NETWORK: dict[str, Any] = {
    "width": 64,
    "num_heads": 4,
    "hidden": 128,
    "vocab_size": VOCAB,
    "initial_std": 0.12,
}


def network(layers: int, window: int, seed: int) -> Any:
    """A small Mistral; the angles turn fast enough to tell neighbours apart."""
    return stemma.build(
        "mistral", depth=layers, window=window, rope_base=100.0, seed=seed, **NETWORK
    )


def influence(layers: int, window: int, seed: int, *, length: int) -> Tensor:
    """Norm of the gradient from the last logits to the embedding D places before, D = 0, 1, …"""
    model, embedded = network(layers, window, seed).double(), []
    model.embedding.register_forward_hook(lambda *hooked: embedded.append(hooked[2]))
    tokens_BT = torch.randint(VOCAB, (1, length), generator=generator_for(seed, "tokens"))
    scores = model(tokens_BT)[0, -1]
    weight = torch.randn(VOCAB, generator=generator_for(seed, "weights"), dtype=scores.dtype)
    (gradient,) = torch.autograd.grad(scores @ weight, embedded)
    return gradient[0].norm(dim=-1).flip(0)


def reach(influence_D: Tensor) -> int:
    """The farthest distance from which anything is felt."""
    return int(influence_D.nonzero().max())


def distant(rows: int, length: int, distance: int) -> Task:
    """Random tokens; every one is to be answered by that `distance` places before it."""

    def batch(stream: torch.Generator) -> Batch:
        tokens_BT = torch.randint(VOCAB, (rows, length), generator=stream)
        targets_BT = tokens_BT.roll(distance, dims=1)
        targets_BT[:, :distance] = IGNORED
        return Batch((tokens_BT,), targets_BT)

    return batch


def copy_loss(layers: int, window: int, distance: int, seed: int, *, steps: int) -> float:
    """Held-out loss in nats after training to copy from one distance."""
    model, length = network(layers, window, seed), 48
    task = distant(32, length, distance)
    for _ in learn(model, task, steps=steps, rate=3e-3, warmup=20, seed=seed):
        pass
    return round(held_out(model, distant(128, length, distance), seed), 4)


@torch.no_grad()
def roll(window: int, tokens: int, piece: int, seed: int) -> tuple[Any, Tensor, Tensor]:
    """Send tokens through a cache in pieces; returns the cache, the tokens and the logits."""
    model = network(2, window, seed).double().eval()
    tokens_BT = torch.randint(VOCAB, (1, tokens), generator=generator_for(seed, "rolled"))
    cache = model.new_cache(capacity=tokens)
    parts = [model(part, Context(caches=cache)) for part in tokens_BT.split(piece, dim=1)]
    return cache, tokens_BT, torch.cat(parts, dim=1)


@torch.no_grad()
def difference(window: int, tokens: int, piece: int, seed: int) -> float:
    """Largest difference between logits through the rolling cache and those of one full pass."""
    _, tokens_BT, rolled = roll(window, tokens, piece, seed)
    full = network(2, window, seed).double().eval()(tokens_BT)
    return float((rolled - full).abs().max())


def measure(quick: bool, say: Say) -> Numbers:
    """Two layers, or one to three, at distances on both sides of what they reach."""
    if quick:
        return sweep(range(2), {2: (3, 6, 7)}, steps=200, rolled=(256, 1024), say=say)
    return sweep(range(3), DISTANCES, steps=300, rolled=ROLLED, say=say)


def sweep(
    seeds: Sequence[int],
    distances: dict[int, Sequence[int]],
    *,
    steps: int,
    rolled: Sequence[int],
    say: Say,
) -> Numbers:
    """Reach by gradients, losses of copying, and the rolling cache against the full pass."""
    felt, copied, caches = [], [], []
    for layers, window in SHAPES:
        found = [influence(layers, window, seed, length=48) for seed in seeds]
        row = {"layers": layers, "window": window, "reach": [reach(each) for each in found]}
        felt.append(row | {"influence": [float(x) for x in torch.stack(found).mean(0)]})
        say(f"{layers} layers, window {window}: felt up to {row['reach']} places later")
    for layers, distance in ((n, d) for n, some in distances.items() for d in some):
        found = [copy_loss(layers, WINDOW, distance, seed, steps=steps) for seed in seeds]
        copied.append({"layers": layers, "distance": distance, "losses": found})
        say(f"{layers} layers copy from {distance} places before: {found}")
    for piece in PIECES:
        found = [difference(32, 16 * 32, piece, seed) for seed in seeds]
        caches.append({"piece": piece, "largest_difference": found})
    say(f"rolling cache against full pass: {max(max(c['largest_difference']) for c in caches)}")
    sizes = [{"tokens": n, "bytes": roll(32, n, 64, 0)[0].nbytes} for n in rolled]
    settings = {**NETWORK, "window": WINDOW, "steps": steps, "chance": round(CHANCE, 4)}
    shown = {"settings": settings, "seeds": list(seeds), "reach": felt, "copies": copied}
    return {**shown, "rolling": {"window": 32, "differences": caches, "sizes": sizes}}


def claims(numbers: Numbers) -> dict[str, bool]:
    """What must hold in every seed."""
    inside, past = [], []
    for row in numbers["copies"]:
        within = row["distance"] <= row["layers"] * (WINDOW - 1)
        (inside if within else past).extend(row["losses"])
    rolling = numbers["rolling"]
    return {
        "the reach is L (W - 1), exactly": all(
            found == row["layers"] * (row["window"] - 1)
            for row in numbers["reach"]
            for found in row["reach"]
        ),
        "copies from within the reach are learned: loss below a tenth of chance": (
            max(inside) < 0.1 * CHANCE
        ),
        "past the reach none is: loss at 0.98 of chance or more": min(past) > 0.98 * CHANCE,
        "the rolling cache gives the full pass within 1e-9": all(
            max(row["largest_difference"]) < 1e-9 for row in rolling["differences"]
        ),
        "its bytes stay the same": len({row["bytes"] for row in rolling["sizes"]}) == 1,
    }


def table(numbers: Numbers) -> str:
    """Reach, losses of copying, and the cache."""
    felt = [
        (row["layers"], row["window"], row["layers"] * (row["window"] - 1), row["reach"])
        for row in numbers["reach"]
    ]
    copied = [
        (
            row["layers"],
            row["layers"] * (WINDOW - 1),
            row["distance"],
            f"{middle(row['losses']):.4f}",
            row["losses"],
        )
        for row in numbers["copies"]
    ]
    rolling = numbers["rolling"]
    differences = [
        (row["piece"], f"{max(row['largest_difference']):.1e}") for row in rolling["differences"]
    ]
    sizes = [(row["tokens"], row["bytes"]) for row in rolling["sizes"]]
    return "\n\n".join(
        (
            grid(("layers", "window", "L (W - 1)", "felt up to, by seed"), felt),
            grid(("layers", "reach", "copy from", "loss", "by seed"), copied),
            grid(("tokens a pass", "largest difference to the full pass"), differences),
            grid(("tokens so far", "bytes of the rolling cache"), sizes),
        )
    )


def draw(numbers: Numbers) -> Any:
    """Influence by distance, and loss of copying by distance."""
    figure, (felt, copied) = axes_of(2)
    for row, colour in zip(numbers["reach"], COLOURS, strict=False):
        label = f"L = {row['layers']}, W = {row['window']}"
        shown = [value or math.nan for value in row["influence"]]
        felt.plot(shown, ".-", color=colour, label=label)
        felt.axvline(row["layers"] * (row["window"] - 1), color=colour, linestyle=":")
    felt.set(yscale="log", xlabel="places before", ylabel="gradient norm", xlim=(-1, 40))
    felt.set_title("what is felt; dotted: L (W - 1)")
    felt.legend(fontsize=8)
    depths = sorted({row["layers"] for row in numbers["copies"]})
    for layers, colour in zip(depths, COLOURS, strict=False):
        rows = [row for row in numbers["copies"] if row["layers"] == layers]
        at = [row["distance"] for row in rows]
        label = f"L = {layers}, W = {WINDOW}"
        copied.plot(at, [middle(row["losses"]) for row in rows], "o-", color=colour, label=label)
        for row, seed in product(rows, range(len(numbers["seeds"]))):
            copied.plot(row["distance"], row["losses"][seed], ".", color=colour, alpha=0.5)
        copied.axvline(layers * (WINDOW - 1), color=colour, linestyle=":")
    copied.axhline(CHANCE, color="grey", linewidth=0.8, label=f"chance, ln {VOCAB}")
    copied.set(xlabel="copy from so many places before", title="what is learned")
    copied.set_ylabel("held-out loss (nats)")
    copied.set_xlim(right=max(row["distance"] for row in numbers["copies"]) + 5)
    copied.legend(fontsize=8, loc="center right")
    return figure


EXPERIMENT = Experiment("window", __doc__, measure, claims, table, draw)

if __name__ == "__main__":
    sys.exit(run(EXPERIMENT))
