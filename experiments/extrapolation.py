"""Longer than trained: what becomes of a language model at four times its trained length?

Small models learn this repository's own pages and sources, byte by byte, in windows of 128, and are
scored on files kept apart in windows of 128, 256 and 512. ALiBi (BLOOM) should stay flat, as its
paper says (arXiv:2108.12409, section 2.2); rotary positions (Llama) meet angles that they never
saw; learned positions (GPT-2) have rows that nobody trained. A GPT-2 with a table of 128 rows
cannot be asked at all and says so, therefore the one here has 512 rows, of which the first 128 were
trained.

The held-out bytes are the same at every length: a longer window only lets a token see further back,
and fewer tokens begin with nothing before them. So even a model that makes no use of what is far
gains a little. By position, every byte is compared with itself at the end of a window of 128. The
families differ in more than positions, so each is compared with itself alone. What came out: the
small gain of ALiBi at 512 is all of the second kind; what stands farther than 128 before adds
nothing to it.

The text is the repository as it is, hence numbers move a little as it grows: its fingerprint is in
the record.

    python -m experiments.extrapolation [--quick] [--threads N] [--out FOLDER]
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stemma
from experiments.record import COLOURS, Experiment, Numbers, Say, axes_of, grid, middle, run
from experiments.synthetic import Batch, Task, learn

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = {
    "bloom": "ALiBi (bloom)",
    "llama": "rotary (llama)",
    "gpt2": "learned table (gpt2)",
}
TRAINED, LENGTHS = 128, (128, 256, 512)
SIZES: dict[str, Any] = {"width": 64, "depth": 3, "num_heads": 8, "vocab_size": 256}
SIZES |= {"initial_std": 0.08}  # narrow networks learn much faster from larger weights than 0.02
ROWS, RATE, WARMUP = 8, 5e-3, 50
STEPS, QUICK_STEPS = 600, 150
HELD_OUT = 64  # windows of the longest length that are scored
BUCKET = 32  # positions that share a point in the picture


def corpus(root: Path = ROOT) -> tuple[Tensor, Tensor, str]:
    """Bytes to learn and bytes to be scored on, and the fingerprint of both.

    A file is kept apart by a hash of its name, about one in eight: new files move no others.
    """
    parts: dict[bool, bytearray] = {False: bytearray(), True: bytearray()}
    for path in sorted([*root.glob("docs/**/*.md"), *root.glob("src/**/*.py")]):
        name = path.relative_to(root).as_posix()
        apart = hashlib.sha256(name.encode()).digest()[0] % 8 == 0
        parts[apart] += path.read_bytes()
    learnt, kept = (torch.frombuffer(parts[apart], dtype=torch.uint8).long() for apart in parts)
    return learnt, kept, hashlib.sha256(bytes(parts[False]) + bytes(parts[True])).hexdigest()


def windows(text: Tensor, rows: int, length: int) -> Task:
    """Windows that begin anywhere in the text."""

    def batch(stream: torch.Generator) -> Batch:
        start_B1 = torch.randint(len(text) - length, (rows, 1), generator=stream)
        tokens_BT = text[start_B1 + torch.arange(length + 1)]
        return Batch((tokens_BT[:, :-1],), tokens_BT[:, 1:])

    return batch


def network(family: str, seed: int, *, table: int, sizes: dict[str, Any] = SIZES) -> nn.Module:
    """A language model; `table` is how many positions a learned table has."""
    return stemma.build(family, context=table, seed=seed, **sizes)


def stretches(text: Tensor, count: int, longest: int) -> tuple[Tensor, Tensor]:
    """`count` stretches (B, longest) spread evenly over the text, and the tokens after each."""
    start_B1 = torch.linspace(0, len(text) - longest - 1, count).long()[:, None]
    tokens = text[start_B1 + torch.arange(longest + 1)]
    return tokens[:, :-1], tokens[:, 1:]


@torch.no_grad()
def losses_of(model: Any, tokens_BT: Tensor, targets_BT: Tensor, length: int) -> Tensor:
    """Loss of every token of the stretches (B, longest), in nats, cut in windows of `length`."""
    model.eval()
    logits = [model(part) for part in tokens_BT.reshape(-1, length).split(16)]
    scores = torch.cat(logits).flatten(0, 1)
    loss = F.cross_entropy(scores, targets_BT.flatten(), reduction="none")
    return loss.view(targets_BT.shape)


def change(model: Any, long_BT: Tensor, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """What the longest window adds to the loss, by bucket, from the end of the trained length on.

    Every byte is compared with itself at the end of a window of the trained length.
    """
    parts = [text.unfold(1, TRAINED, BUCKET).flatten(0, 1) for text in (tokens_BT, targets_BT)]
    near = losses_of(model, parts[0], parts[1], TRAINED)[:, -BUCKET:].view(len(long_BT), -1, BUCKET)
    far = long_BT[:, TRAINED - BUCKET :].view(len(long_BT), -1, BUCKET)
    return (far - near).mean((0, 2))


def refusal(tokens_BT: Tensor, sizes: dict[str, Any]) -> str | None:
    """What a GPT-2 with a table of the trained length says to a longer text."""
    try:
        network("gpt2", 0, table=TRAINED, sizes=sizes)(tokens_BT[:1])
    except ValueError as error:
        return str(error)
    return None


def measure(quick: bool, say: Say) -> Numbers:
    """All three, with few steps or with enough to be fluent in indentation and keywords."""
    steps, seeds = (QUICK_STEPS, range(2)) if quick else (STEPS, range(3))
    return sweep(seeds, steps=steps, count=HELD_OUT // 2 if quick else HELD_OUT, say=say)


def sweep(
    seeds: Sequence[int], *, steps: int, count: int, say: Say, sizes: dict[str, Any] = SIZES
) -> Numbers:
    """Losses of every family, seed and length on the same bytes, and by position at the longest."""
    learnt, kept, fingerprint = corpus()
    tokens_BT, targets_BT = stretches(kept, count, max(LENGTHS))
    losses, curves = [], []
    for family in FAMILIES:
        found, changes = [], []
        for seed in seeds:
            model = network(family, seed, table=max(LENGTHS), sizes=sizes)
            task = windows(learnt, ROWS, TRAINED)
            for _ in learn(model, task, steps=steps, rate=RATE, warmup=WARMUP, seed=seed):
                pass
            scored = {n: losses_of(model, tokens_BT, targets_BT, n) for n in LENGTHS}
            found.append({str(n): round(float(scored[n].mean()), 4) for n in LENGTHS})
            changes.append(change(model, scored[max(LENGTHS)], tokens_BT, targets_BT))
            say(f"{FAMILIES[family]}, seed {seed}: {found[-1]} nats per byte")
        losses.append({"family": family, "losses": found})
        curve = torch.stack(changes).mean(0)
        curves.append({"family": family, "change": [round(float(x), 4) for x in curve]})
    return {
        "settings": {**sizes, "steps": steps, "rows": ROWS, "rate": RATE, "trained": TRAINED},
        "seeds": list(seeds),
        "text": {"learnt": len(learnt), "held_out": len(kept), "sha256": fingerprint},
        "scored_bytes": targets_BT.numel(),
        "losses": losses,
        "by_position": {"bucket": BUCKET, "curves": curves},
        "table_of_128_says": refusal(tokens_BT, sizes),
    }


def ratios(numbers: Numbers, family: str) -> list[float]:
    """Loss at the longest over loss at the trained length, one a seed."""
    rows = next(row["losses"] for row in numbers["losses"] if row["family"] == family)
    return [row[str(max(LENGTHS))] / row[str(TRAINED)] for row in rows]


def above(first: Sequence[float], second: Sequence[float], *, by: float) -> bool:
    """Whether the first is larger by so much in every seed."""
    return all(one >= other + by for one, other in zip(first, second, strict=True))


def claims(numbers: Numbers) -> dict[str, bool]:
    """What must hold in every seed."""
    alibi, rotary, learned = (ratios(numbers, family) for family in FAMILIES)
    return {
        "ALiBi at 512 within 2 % of its loss at 128, or below": max(alibi) <= 1.02,
        "rotary positions lose at least 1 % more than ALiBi": above(rotary, alibi, by=0.01),
        "untrained rows of a learned table lose at least 1 % more": above(learned, alibi, by=0.01),
        "a learned table of 128 rows refuses 512 tokens": bool(numbers["table_of_128_says"]),
    }


def table(numbers: Numbers) -> str:
    """Medians by length, and how much worse the longest is than the trained one."""
    rows = []
    for row in numbers["losses"]:
        family = row["family"]
        medians = [middle([one[str(n)] for one in row["losses"]]) for n in LENGTHS]
        grown = [f"{100 * (ratio - 1):+.1f} %" for ratio in ratios(numbers, family)]
        rows.append((FAMILIES[family], *(f"{loss:.4f}" for loss in medians), ", ".join(grown)))
    head = ("positions", *(f"at {n}" for n in LENGTHS), "512 against 128, by seed")
    said = numbers["table_of_128_says"]
    return f"{grid(head, rows)}\n\na GPT-2 with 128 rows, asked at 512: {said}"


def draw(numbers: Numbers) -> Any:
    """Loss by length, and by position in the longest window."""
    figure, (lengths, places) = axes_of(2)
    for row, curve, colour in zip(
        numbers["losses"], numbers["by_position"]["curves"], COLOURS, strict=False
    ):
        medians = [middle([one[str(n)] for one in row["losses"]]) for n in LENGTHS]
        lengths.plot(LENGTHS, medians, "o-", color=colour, label=FAMILIES[row["family"]])
        for one in row["losses"]:
            lengths.plot(LENGTHS, [one[str(n)] for n in LENGTHS], ".", color=colour, alpha=0.5)
        at = [TRAINED + BUCKET * (i - 0.5) for i in range(len(curve["change"]))]
        places.plot(at, curve["change"], color=colour)
    lengths.set(xscale="log", xlabel="length of the window (bytes)", title="same text, cut longer")
    lengths.set_xticks(LENGTHS, [str(n) for n in LENGTHS])
    lengths.minorticks_off()
    lengths.set_ylabel("held-out loss (nats per byte)")
    lengths.legend(fontsize=8)
    places.axvline(TRAINED, color="grey", linestyle=":", label="trained length")
    places.axhline(0, color="grey", linewidth=0.8)
    places.set(xlabel=f"position in windows of {max(LENGTHS)}", title="what the longer window does")
    places.set_ylabel(f"loss less that with {TRAINED - BUCKET} to {TRAINED - 1} bytes before")
    places.legend(fontsize=8)
    return figure


EXPERIMENT = Experiment("extrapolation", __doc__, measure, claims, table, draw)

if __name__ == "__main__":
    sys.exit(run(EXPERIMENT))
