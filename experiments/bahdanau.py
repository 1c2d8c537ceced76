"""Attention to a source: can a decoder translate sentences longer than any it was trained on?

The task is to say a source backwards, every token replaced by its partner, trained on 4 to 20
tokens. A plain GRU encoder-decoder must put the source into one state; the network of
arXiv:1409.0473 looks at it again for every token. Both decode greedily; the share of right tokens
is measured by length, up to 40. The picture shows where the second looks: the learned line may
stand one place beside the gold one, since a neighbour's annotation holds the word too.

Past the trained lengths attention is ahead but no longer right: its errors begin after some fifteen
target tokens, with the right target given too. It has learned in part to count places, it seems,
and no count above twenty was ever seen.

    python -m experiments.bahdanau [--quick] [--threads N] [--out FOLDER]
"""

import sys
from typing import Any

import torch
from torch import Tensor

import stemma
from experiments.record import COLOURS, Experiment, Numbers, Say, axes_of, grid, middle, run
from experiments.synthetic import Batch, learn, reversal
from stemma.core.seeds import generator_for
from stemma.infer.beam import beam_search

VOCAB, ROWS, TESTED = 20, 64, 200
NO_END = -1  # a target is as long as its source, so none is learned
LENGTHS = (5, 10, 20, 30, 40)
SHORTEST, LONGEST, STEPS, RATE = 4, 20, 1500, 3e-3
NAMES = {"seq2seq": "plain GRU", "bahdanau": "with attention"}
SIZES: dict[str, dict[str, Any]] = {
    "seq2seq": {"width": 64, "depth": 1, "cell": "gru", "reverse_source": False},
    "bahdanau": {
        "width": 32,
        "embedding_width": 32,
        "hidden": 64,
        "maxout": 32,
        "initial_std": 0.5,
    },
}


def network(family: str, seed: int) -> Any:
    """A network of about 50,000 parameters."""
    sizes = SIZES[family]
    return stemma.build(family, source_vocab_size=VOCAB, vocab_size=VOCAB, seed=seed, **sizes)


def tested(length: int, seed: int) -> Batch:
    """Sources of one length that training never draws, and their targets."""
    return reversal(TESTED, length, length, vocab_size=VOCAB)(generator_for(seed, "test", length))


def accuracy(model: Any, length: int, seed: int) -> float:
    """The share of target tokens that greedy decoding gets right, each at its place."""
    batch = tested(length, seed)
    found = beam_search(
        model, batch.inputs[0].tolist(), start_id=0, end_id=NO_END, max_new_tokens=length
    )
    rows = [text.token_ids for text in found]
    return round(float((torch.tensor(rows) == batch.targets_BT).double().mean()), 4)


@torch.no_grad()
def weights(model: Any, length: int, seed: int) -> Tensor:
    """How much each target token's step looks at each source token, with the right target given."""
    alignments_BTS: Tensor = model.alignments(*tested(length, seed).inputs)
    return alignments_BTS


def offsets(weights_BTS: Tensor) -> dict[str, float]:
    """The share of steps that look most at the gold source token, or this far after it."""
    length = weights_BTS.shape[2]
    off_BT = weights_BTS.argmax(-1) - torch.arange(length - 1, -1, -1)
    return {f"{n:+d}": round(float((off_BT == n).double().mean()), 4) for n in range(-2, 3)}


def train(family: str, seed: int, *, steps: int, say: Say) -> Numbers:
    """Accuracy by length after training, and where the attention looks."""
    model, loss = network(family, seed), 0.0
    task = reversal(ROWS, SHORTEST, LONGEST, vocab_size=VOCAB)
    for numbers in learn(model, task, steps=steps, rate=RATE, seed=seed):
        loss = numbers["loss"]
        if numbers["step"] % 300 == 0:
            say(f"{NAMES[family]}, seed {seed}: step {numbers['step']}, loss {loss:.4f}")
    model.eval()
    by_length = {str(length): accuracy(model, length, seed) for length in LENGTHS}
    found: Numbers = {"seed": seed, "last_loss": round(loss, 5), "accuracy": by_length}
    if family == "bahdanau":
        found["offsets"] = {str(n): offsets(weights(model, n, seed)) for n in (20, 40)}
        first = weights(model, 20, seed)[0]
        found["example"] = [[round(share, 3) for share in row] for row in first.tolist()]
    say(f"{NAMES[family]}, seed {seed}: {by_length}")
    return found


def measure(quick: bool, say: Say) -> Numbers:
    """Both networks, with three seeds or, shorter, with two."""
    return compare(range(2 if quick else 3), steps=500 if quick else STEPS, say=say)


def compare(seeds: Any, *, steps: int, say: Say) -> Numbers:
    """Both networks with every seed, and medians over the seeds."""
    rows = []
    for family, name in NAMES.items():
        runs = [train(family, seed, steps=steps, say=say) for seed in seeds]
        medians = {n: middle([each["accuracy"][n] for each in runs]) for n in map(str, LENGTHS)}
        parameters = sum(p.numel() for p in network(family, 0).parameters())
        rows.append({"name": name, "parameters": parameters, "median": medians, "runs": runs})
    settings = {"steps": steps, "rows": ROWS, "rate": RATE, "trained": [SHORTEST, LONGEST]}
    return {"settings": settings | {"sizes": SIZES}, "seeds": list(seeds), "networks": rows}


def table(numbers: Numbers) -> str:
    """Median accuracy by length, and that of every seed at the longest."""
    rows = []
    for row in numbers["networks"]:
        last = [each["accuracy"][str(LENGTHS[-1])] for each in row["runs"]]
        rows.append((row["name"], row["parameters"], *row["median"].values(), last))
    head = ("network", "parameters", *(f"{n} tokens" for n in LENGTHS), "by seed")
    lines = [grid(head, rows)]
    for each in numbers["networks"][1]["runs"]:
        lines.append(f"seed {each['seed']}, places between gold and largest: {each['offsets']}")
    return "\n".join(lines)


def draw(numbers: Numbers) -> Any:
    """Accuracy by length, and the alignment of one sentence."""
    figure, axes = axes_of(2, width=4.6, height=3.8)
    for row, colour in zip(numbers["networks"], COLOURS, strict=False):
        median = list(row["median"].values())
        axes[0].plot(LENGTHS, median, "o-", color=colour, label=row["name"])
        for each in row["runs"]:
            axes[0].plot(LENGTHS, list(each["accuracy"].values()), ".", color=colour, alpha=0.5)
    axes[0].axvspan(SHORTEST, LONGEST, color="grey", alpha=0.15, label="lengths trained on")
    axes[0].set(xlabel="tokens of the source", ylabel="right tokens (share)", ylim=(0, 1.03))
    axes[0].legend(fontsize=8)
    image = axes[1].imshow(numbers["networks"][1]["runs"][0]["example"], cmap="Blues", vmin=0)
    axes[1].locator_params(integer=True)
    axes[1].set(xlabel="source token", ylabel="target token", title="where the decoder looks")
    figure.colorbar(image, ax=axes[1], label="weight")
    return figure


def claims(numbers: Numbers) -> dict[str, bool]:
    """What must hold in every seed; a shorter training is asked for a margin alone."""
    plain, aligned = (
        {n: [each["accuracy"][str(n)] for each in row["runs"]] for n in LENGTHS}
        for row in numbers["networks"]
    )
    margins = {
        f"attention is ahead by {least} at {n} tokens": min(aligned[n]) - max(plain[n]) > least
        for n, least in ((20, 0.3), (40, 0.1))
    }
    if numbers["settings"]["steps"] < STEPS:
        return margins
    return margins | {
        "attention gets 0.95 of 20 tokens right": min(aligned[20]) >= 0.95,
        "a plain GRU at most 0.40 of 20": max(plain[20]) <= 0.40,
        "a plain GRU at most 0.30 of 40": max(plain[40]) <= 0.30,
        "0.95 of the steps look at the gold place or one beside it": all(
            sum(each["offsets"]["20"][n] for n in ("-1", "+0", "+1")) >= 0.95
            for each in numbers["networks"][1]["runs"]
        ),
    }


EXPERIMENT = Experiment("bahdanau", __doc__, measure, claims, table, draw)

if __name__ == "__main__":
    sys.exit(run(EXPERIMENT))
