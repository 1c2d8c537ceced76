"""Does Muon learn more from the same tokens than AdamW, once each has its own learning rate?

The Llama of the recipe `lineage` (0.8 million parameters without its embedding) learns Shakespeare
by the stage's own trials: three rates for each optimizer on a quarter of the tokens, the best on
the watched text, then three seeds on all of them, same first weights and order for both. Scores are
of held-out text that chose nothing. Muon (Jordan 2024; arXiv:2502.16982) moves the matrices of
blocks; embedding and norms take AdamW's steps in both. Beside the scores: at which share of the
tokens Muon has AdamW's last score on the watched text, and what a step costs more.

The text is the asset `shakespeare`, which is pulled where it is not there yet.

    python -m experiments.optimizers [--quick] [--threads N] [--out FOLDER]
"""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

from experiments.record import COLOURS, Experiment, Numbers, Say, axes_of, grid, middle, run
from stemma.pipeline import lineage, recipe, runner
from stemma.pipeline.lineage import Job, LineageStage, final_watched, rate_name
from stemma.pipeline.work import Input, Work

NAMES = {"adamw": "AdamW", "muon": "Muon"}
NETWORK = "llama"
FULL = {
    "inputs": ["asset:shakespeare"],
    "vocab_size": 1024,
    "network": "{family: llama, width: 128, depth: 4, num_heads: 4, hidden: 344, tied: true}",
    "context": 256,
    "tokens": 1_400_000,
    "batch_tokens": 2048,
    "rates": [3e-3, 9e-3, 2.7e-2],
    "share": 0.25,
    "watched": 24_000,
    "points": 10,
    "scored": 100_000,
}
SHORT = {"tokens": 48_000, "batch_tokens": 512, "rates": [9e-3]}
QUICK = FULL | SHORT | {"watched": 4_000, "points": 4, "scored": 12_000}

# what the recipe `lineage` does with its networks; of these stages only trials of one are run
RECIPE = """\
name: optimizers
out: {out}
stages:
  corpus:
    kind: curate
    inputs: {inputs}
    holdout: {{fraction: 0.1, group: '([^/]+?)_gut(?:_f)?\\.txt$'}}
  tokenizer: {{kind: tokenizer, corpus: corpus, vocab_size: {vocab_size}}}
"""
TRIALS = """\
  {name}:
    kind: lineage
    corpus: corpus
    tokenizer: tokenizer
    networks:
      llama: {network}
      gpt2: {{family: gpt2, width: 128, depth: 4, num_heads: 4}}
    initial: fan-in
    context: {context}
    tokens: {tokens}
    batch_tokens: {batch_tokens}
    learning_rates: {rates}
    sweep_share: {share}
    schedule: {{kind: cosine, warmup: 30, floor: 0}}
    optimizer: {{kind: {name}, beta2: 0.98}}
    watch_bytes: {watched}
    watch_points: {points}
    score_bytes: {scored}
    checkpoint_every: 100000
"""


def stages(folder: Path, settings: dict[str, Any]) -> Iterator[tuple[str, LineageStage, Work]]:
    """Make corpus and tokenizer, then give each optimizer's stage and a place for its trials."""
    path = folder / "optimizers.yaml"
    blocks = [TRIALS.format(name=name, **settings) for name in NAMES]
    path.write_text(RECIPE.format(out=folder / "run", **settings) + "".join(blocks))
    loaded = recipe.load(path, [])
    job = runner.Run(
        recipe=loaded,
        root=folder,
        out=folder / "run",
        recipe_text=path.read_text(),
        command=["experiments.optimizers"],
        overrides=(),
        until="tokenizer",
    )
    runner.execute(job, say=lambda line: None)
    inputs = {name: Input(folder / "run" / name, name) for name in ("corpus", "tokenizer")}
    for name in NAMES:
        stage = loaded.stages[name]
        assert isinstance(stage, LineageStage)
        yield name, stage, Work(name, folder / name, loaded.seed, inputs=inputs)


def measure(quick: bool, say: Say) -> Numbers:
    """Three rates and three seeds, or one rate and two seeds of a short run."""
    return sweep(range(2 if quick else 3), QUICK if quick else FULL, say=say)


def sweep(seeds: Sequence[int], settings: dict[str, Any], *, say: Say) -> Numbers:
    """The rates that were tried with what they reached, and the trials at the best of them."""
    rows = []
    with TemporaryDirectory() as folder:
        for name, stage, work in stages(Path(folder), settings):
            material = lineage.prepare(stage, work)

            def trial(title: str, seed: int, rate: float, share: float) -> dict[str, Any]:
                job = Job(NETWORK, title, seed, rate, stage.steps(share))  # noqa: B023
                return lineage.run_trial(job, stage, work, material)  # noqa: B023

            reached = {}
            for rate in settings["rates"] if len(settings["rates"]) > 1 else ():
                result = trial(rate_name(rate), 0, rate, stage.sweep_share)
                reached[rate] = final_watched(result)
                say(f"{NAMES[name]}, rate {rate}: {reached[rate]:.4f} bits per byte")
            best = min(reached, key=reached.__getitem__, default=settings["rates"][0])
            runs = [trial(f"seed-{seed}", seed, best, 1.0) for seed in seeds]
            say(f"{NAMES[name]} at {best}: {[result['bits_per_byte'] for result in runs]}")
            rows.append(row_of(name, reached, best, runs))
    return {"settings": settings, "seeds": list(seeds), "optimizers": rows}


def row_of(
    name: str, reached: dict[float, float], best: float, runs: list[dict[str, Any]]
) -> dict[str, Any]:
    """What is kept of one optimizer's trials."""
    return {
        "optimizer": name,
        "rates": [
            {"rate": rate, "bits_per_byte": round(bits, 4) if math.isfinite(bits) else None}
            for rate, bits in reached.items()
        ],
        "rate": best,
        "bits_per_byte": [
            None if run["diverged"] else round(run["bits_per_byte"], 4) for run in runs
        ],
        "tokens_per_second": [round(run["tokens_per_second"]) for run in runs],
        "parameters": runs[0]["parameters"],
        "curves": [
            [[point["tokens"], round(point["bits_per_byte"], 4)] for point in run["curve"]]
            for run in runs
        ],
    }


def row(numbers: Numbers, name: str) -> dict[str, Any]:
    """The figures of one optimizer."""
    found: dict[str, Any] = next(r for r in numbers["optimizers"] if r["optimizer"] == name)
    return found


def shares(numbers: Numbers) -> list[float]:
    """The share of the tokens after which Muon is where AdamW ends, by seed; 1 where it never is.

    On the watched text, in a straight line between two scores.
    """
    found = []
    for ours, theirs in zip(
        row(numbers, "muon")["curves"], row(numbers, "adamw")["curves"], strict=True
    ):
        goal, last = theirs[-1][1], ours[-1][0]
        share = 1.0
        for (before, high), (after, low) in zip(ours, ours[1:], strict=False):
            if high > goal >= low:
                share = (before + (after - before) * (high - goal) / (high - low)) / last
                break
        found.append(round(share, 3))
    return found


def claims(numbers: Numbers) -> dict[str, bool]:
    """What must hold in every seed."""
    pairs = zip(
        row(numbers, "muon")["bits_per_byte"], row(numbers, "adamw")["bits_per_byte"], strict=True
    )
    found = {
        "Muon has fewer bits per byte than AdamW in every seed": all(
            ours is not None and (theirs is None or ours < theirs) for ours, theirs in pairs
        )
    }
    for each in numbers["optimizers"]:
        if each["rates"]:
            grid_of = [one["rate"] for one in each["rates"]]
            inside = min(grid_of) < each["rate"] < max(grid_of)
            found[f"{NAMES[each['optimizer']]}'s rate is none at the edge of its grid"] = inside
    return found


def table(numbers: Numbers) -> str:
    """Scores by seed, their median, the chosen rate and the speed."""
    rows = [
        (
            NAMES[each["optimizer"]],
            each["rate"],
            middle(each["bits_per_byte"]),
            each["bits_per_byte"],
            round(median(each["tokens_per_second"])),
        )
        for each in numbers["optimizers"]
    ]
    head = ("optimizer", "rate", "bits per byte", "by seed", "tokens/s")
    lines = [grid(head, rows)]
    tried = [
        (NAMES[each["optimizer"]], one["rate"], one["bits_per_byte"])
        for each in numbers["optimizers"]
        for one in each["rates"]
    ]
    if tried:
        lines.append(grid(("optimizer", "rate", "bits per byte of the shorter run"), tried))
    share = ", ".join(f"{100 * one:.0f} %" for one in shares(numbers))
    lines.append(f"Muon is where AdamW ends after {share} of the tokens, by seed")
    return "\n\n".join(lines)


def draw(numbers: Numbers) -> Any:
    """Bits per byte along training, and by rate where several were tried."""
    tried = any(each["rates"] for each in numbers["optimizers"])
    figure, (curves, *beside) = axes_of(2 if tried else 1)
    for each, colour in zip(numbers["optimizers"], COLOURS, strict=False):
        name = NAMES[each["optimizer"]]
        tokens = [point[0] for point in each["curves"][0]]
        for curve in each["curves"]:
            curves.plot(tokens, [point[1] for point in curve], color=colour, alpha=0.3)
        means = [mean(curve[place][1] for curve in each["curves"]) for place in range(len(tokens))]
        curves.plot(tokens, means, color=colour, label=f"{name}, rate {each['rate']:g}")
        for axes in beside:
            bits = [one["bits_per_byte"] for one in each["rates"]]
            bits = [math.nan if one is None else one for one in bits]
            axes.plot([one["rate"] for one in each["rates"]], bits, "o-", color=colour, label=name)
    curves.set(xlabel="tokens", ylabel="bits per byte, watched text", title="at the chosen rate")
    curves.legend(fontsize=8)
    for axes in beside:
        axes.set(xscale="log", xlabel="learning rate", title="on a quarter of the tokens")
        axes.set_ylabel("bits per byte, watched text")
    return figure


EXPERIMENT = Experiment("optimizers", __doc__, measure, claims, table, draw)

if __name__ == "__main__":
    sys.exit(run(EXPERIMENT))
