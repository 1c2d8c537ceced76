"""Linear attention: three forms with one result, and a token that costs the same at every length.

The forms: token after token with a memory (recurrent), all tokens at once (parallel), and parallel
within chunks and recurrent between them (chunked), for the linear transformer (arXiv:2006.16236),
the Performer (arXiv:2009.14794) and the delta rule (arXiv:2102.11174), in double precision, at
lengths that no chunk divides; and whole networks, one full pass against decoding with a cache.

The cost: bytes of state and milliseconds a token when so many tokens have been read, for these
three, a GRU, Mistral with a window, and Llama, whose cache of keys and values grows. Lengths take
turns, so that a busy machine hits all alike, and a time is that of the fastest quarter, because
other programs only make a token slower; batches of one, sizes as in the record.

    python -m experiments.linear_attention [--quick] [--threads N] [--out FOLDER]
"""

import sys
import time
from collections.abc import Sequence
from itertools import product
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor

import stemma
from experiments.record import COLOURS, Experiment, Numbers, Say, axes_of, grid, run
from stemma.core.seeds import generator_for
from stemma.nn.context import Context
from stemma.nn.fast_weight import Delta, Normalised, Rule, Tokens, chunked, parallel, recurrent
from stemma.nn.feature_map import DPFP, EluPlusOne, Favor, FeatureMap, SumNormalised

FORMS: dict[str, tuple[FeatureMap, Rule]] = {
    "linear": (EluPlusOne(), Normalised()),
    "performer": (Favor(64, seed=0), Normalised()),
    "delta": (SumNormalised(DPFP(1)), Delta()),
}
ODD, CHUNKS, SAME = (1, 37, 131, 301), (16, 64), 1e-12
WINDOW, PIECE = 128, 256  # Mistral's window, and tokens a pass of what is read first
ROUNDS, TURN = 64, 16  # enough tokens more for a window's buffer to shrink to its usual size
COMMON: dict[str, Any] = {"width": 256, "depth": 2, "vocab_size": 256}
HEADS, INNER, FEATURES = {"num_heads": 4}, {"hidden": 512}, {"features": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "linear": HEADS | INNER,
    "delta": HEADS | INNER,
    "performer": HEADS | INNER | FEATURES,
    "gru": {},
    "mistral": HEADS | INNER | {"window": WINDOW},
    "llama": HEADS | INNER,
}
FLAT = [family for family in FAMILIES if family != "llama"]
LENGTHS, QUICK_LENGTHS = (1024, 4096, 16384), (256, 1024)


def form_error(name: str, length: int, seed: int) -> float:
    """Largest difference between reads, or memories, of the forms, on values of unit variance."""
    features, rule = FORMS[name]
    stream, shape = generator_for(seed, "tokens", length), (2, 3, length, 16)
    query, key, value = (
        torch.randn(shape, generator=stream, dtype=torch.float64) for _ in range(3)
    )
    rate = torch.rand(shape[:3], generator=stream, dtype=torch.float64)
    tokens = Tokens(features(query), features(key), value, rate)
    one_by_one, memory = recurrent(rule, tokens)
    others = [parallel(rule, tokens), *(chunked(rule, tokens, size=size) for size in CHUNKS)]
    reads = [farthest(read, one_by_one) for read, _ in others]
    return max(*reads, *(farthest(kept.matrix_BHFD, memory.matrix_BHFD) for _, kept in others))


@torch.no_grad()
def network_error(family: str, length: int, seed: int) -> float:
    """Largest difference between logits of a full pass and of decoding token by token."""
    small = {"width": 32, "depth": 2, "num_heads": 4, "vocab_size": 64, "context": length}
    model = stemma.build(family, seed=seed, initial_std=0.2, dtype="float64", **small).eval()
    tokens_BT = torch.randint(64, (2, length), generator=generator_for(seed, "read", length))
    cache = model.new_cache(length)
    steps = [model(token, Context(caches=cache)) for token in tokens_BT.split(1, dim=1)]
    return farthest(torch.cat(steps, dim=1), model(tokens_BT))


def farthest(first: Tensor, second: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((first - second).abs().max())


@torch.inference_mode()
def cost(family: str, lengths: Sequence[int], *, rounds: int) -> list[dict[str, Any]]:
    """Bytes of state after each length, and the milliseconds of each of `rounds` tokens more."""
    longest = max(lengths) + rounds
    model = stemma.build(family, context=longest, **COMMON, **FAMILIES[family]).eval()
    tokens_BT = torch.randint(256, (1, longest), generator=generator_for(0, "prompt"))
    caches = {length: model.new_cache(length + rounds) for length in lengths}
    for length, cache in caches.items():
        for piece in tokens_BT[:, :length].split(PIECE, dim=1):
            model.hidden(piece, Context(caches=cache))
    times: dict[int, list[float]] = {length: [] for length in lengths}
    # several tokens a turn: the first finds a processor's cache full of another length's state
    for turn, (length, cache) in product(range(0, rounds, TURN), caches.items()):
        for at in range(length + turn, length + min(turn + TURN, rounds)):
            started = time.perf_counter()
            model(tokens_BT[:, at : at + 1], Context(caches=cache))
            times[length].append(1000 * (time.perf_counter() - started))
    return [
        {
            "family": family,
            "tokens": length,
            "state_bytes": caches[length].nbytes,
            "milliseconds": round(quantiles(times[length], n=4)[0], 4),
        }
        for length in lengths
    ]


def measure(quick: bool, say: Say) -> Numbers:
    """All forms, and the costs up to a thousand tokens or to sixteen thousand."""
    lengths = QUICK_LENGTHS if quick else LENGTHS
    return sweep(range(2 if quick else 3), lengths=lengths, rounds=ROUNDS, say=say)


def sweep(seeds: Sequence[int], *, lengths: Sequence[int], rounds: int, say: Say) -> Numbers:
    """Errors between the forms of every rule and length, and costs of every family and length."""
    forms, costs = [], []
    for name, length in product(FORMS, ODD):
        row = {"rule": name, "length": length}
        row["forms"] = [form_error(name, length, seed) for seed in seeds]
        row["networks"] = [network_error(name, length, seed) for seed in seeds]
        forms.append(row)
        say(f"{name}, {length} tokens: {max(row['forms']):.1e}, {max(row['networks']):.1e}")
    for family in FAMILIES:
        costs += cost(family, lengths, rounds=rounds)
        for row in costs[-len(lengths) :]:
            what = f"{row['state_bytes']} bytes, {row['milliseconds']} ms a token"
            say(f"{family} after {row['tokens']} tokens: {what}")
    settings = {**COMMON, "families": FAMILIES, "rounds": rounds, "piece": PIECE}
    return {"settings": settings, "seeds": list(seeds), "forms": forms, "costs": costs}


def growth(numbers: Numbers, family: str, what: str) -> float:
    """What the longest text costs over what the shortest does."""
    found = [row[what] for row in numbers["costs"] if row["family"] == family]
    return float(found[-1] / found[0])


def claims(numbers: Numbers) -> dict[str, bool]:
    """What must hold; of times only what a busy machine leaves standing."""
    lengths = sorted({row["tokens"] for row in numbers["costs"]})
    longer = lengths[-1] / lengths[0]
    found = [error for row in numbers["forms"] for error in (*row["forms"], *row["networks"])]
    flat = [growth(numbers, family, "milliseconds") for family in FLAT]
    llama = growth(numbers, "llama", "milliseconds")
    slower = {"Llama's time grows more than that of any other": llama > max(flat)}
    return {
        "all forms agree within 1e-12": max(found) <= SAME,
        "bytes of state stay the same, except Llama's": all(
            growth(numbers, family, "state_bytes") == 1 for family in FLAT
        ),
        "Llama's grow with the text": growth(numbers, "llama", "state_bytes") > 0.7 * longer,
        "time a token stays within 1.5, except Llama's": max(flat) < 1.5,
    } | (slower if longer >= 16 else {})


def table(numbers: Numbers) -> str:
    """Largest errors over the seeds, then costs."""
    forms = [
        (row["rule"], row["length"], f"{max(row['forms']):.1e}", f"{max(row['networks']):.1e}")
        for row in numbers["forms"]
    ]
    costs = [
        (row["family"], row["tokens"], row["state_bytes"], row["milliseconds"])
        for row in numbers["costs"]
    ]
    return "\n\n".join(
        (
            grid(("rule", "tokens", "forms differ by", "decoding from a full pass by"), forms),
            grid(("family", "tokens read", "bytes of state", "ms a token"), costs),
        )
    )


def draw(numbers: Numbers) -> Any:
    """Bytes and milliseconds by tokens read."""
    figure, axes = axes_of(2)
    lengths = sorted({row["tokens"] for row in numbers["costs"]})
    for place, (what, label, unit) in zip(
        axes, (("state_bytes", "state (MB)", 1e6), ("milliseconds", "ms a token", 1)), strict=True
    ):
        for family, colour in zip(FAMILIES, (*COLOURS, "black"), strict=True):
            found = [r[what] / unit for r in numbers["costs"] if r["family"] == family]
            line = "o:" if family == "performer" else "o-"  # it lies on delta's in one picture
            place.plot(lengths, found, line, color=colour, label=family)
        place.set(xscale="log", yscale="log", xlabel="tokens read", ylabel=label)
        place.set_xticks(lengths, [f"{length:,}" for length in lengths])
        place.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


EXPERIMENT = Experiment("linear_attention", __doc__, measure, claims, table, draw)

if __name__ == "__main__":
    sys.exit(run(EXPERIMENT))
