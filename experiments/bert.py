"""Does an encoder that foretold hidden words need fewer labels? A made-up language says how much.

The claim of BERT (arXiv:1810.04805, sections 1 and 5.3) at the smallest scale. The language has
nouns of four kinds that nothing in their spelling tells apart; but a noun does only what its kind
does ("the dabe huka"). An encoder foretells hidden words of sentences, without any label. Then it,
and its twin with new weights, learn of a few nouns which kind each is, from sentences that say
nothing ("this is a dabe"), by the same steps. Both then label the nouns that had no label. Who has
never seen a noun can only guess: the twin shows what the labels alone give, and the difference is
what was learned without them.

Every step runs through the stages `masked` and `classify`, as a recipe would have it.

    python -m experiments.bert [--quick] [--threads N] [--out FOLDER]
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.record import COLOURS, Experiment, Numbers, Say, axes_of, grid, middle, run
from stemma.pipeline import recipe, runner

ARMS = {"pretrained": "init", "scratch": "new"}  # and what they do with the encoder's weights
CLASSES = ("beast", "plant", "stone", "water")  # the labels
SYLLABLES = "ba be bo da de di fa fi go gu ha hu ka ki le lo mi mu no pu ra se ti vo".split()
NOUNS, VERBS = 50, 10  # of each class
PLAIN = ("this is a {}", "here is a {}", "see the {}", "that was the {}")  # say nothing
FULL = {"labels": [8, 16, 32, 64, 100], "steps": 1200, "tune": 80, "sentences": 20_000}
QUICK = {"labels": [16, 64], "steps": 600, "tune": 60, "sentences": 6_000}

RECIPE = """\
name: bert-experiment
seed: {seed}
out: {out}
stages:
  corpus: {{kind: curate, inputs: [sentences.jsonl], holdout: {{fraction: 0.05}}}}
  words: {{kind: tokenizer, corpus: corpus, vocab_size: 700}}
  base:
    kind: masked
    corpus: corpus
    tokenizer: words
    model: {{family: bert, width: 64, depth: 2, num_heads: 2, dropout: 0, initial_std: 0.1}}
    context: 16
    steps: {steps}
    batch_tokens: 1024
    learning_rate: 2e-3
    schedule: {{kind: cosine, warmup: 20, floor: 0}}
    optimizer: {{embedding_rate: 5, beta2: 0.98, weight_decay: 0.01}}
    checkpoint_every: 100000
    watch: {{every: {watch}}}
"""
TUNED = """\
  {name}:
    kind: classify
    init: base
    weights: {weights}
    inputs: [labelled.jsonl]
    heldout: [unseen.jsonl]
    examples: {labels}
    context: 16
    steps: {tune}
    batch_tokens: 64
    learning_rate: 1e-3
    schedule: {{kind: cosine, warmup: 5, floor: 0}}
    optimizer: {{beta2: 0.98}}
    checkpoint_every: 100000
"""


def language(draw: random.Random) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Nouns and verbs by class: words of two syllables, dealt out at random."""
    words = [first + second for first in SYLLABLES for second in SYLLABLES]
    dealt = iter(draw.sample(words, (NOUNS + VERBS) * len(CLASSES)))
    return tuple(  # type: ignore[return-value]
        {name: [next(dealt) for _ in range(count)] for name in CLASSES} for count in (NOUNS, VERBS)
    )


def sentence(draw: random.Random, nouns: dict[str, list[str]], verbs: dict[str, list[str]]) -> str:
    """A noun does what its class does; one sentence in four says nothing."""
    name = draw.choice(CLASSES)
    noun = draw.choice(nouns[name])
    if draw.random() < 0.25:
        return draw.choice(PLAIN).format(noun)
    return f"the {noun} {draw.choice(verbs[name])}"


def write_inputs(folder: Path, count: int, seed: int) -> None:
    """Sentences without labels; half of the nouns with labels to learn from, half to score on."""
    draw = random.Random(seed)
    nouns, verbs = language(draw)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [{"text": sentence(draw, nouns, verbs)} for _ in range(count)]
    write(folder / "sentences.jsonl", texts)
    sides: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for name in CLASSES:
        for place, noun in enumerate(nouns[name]):
            for plain in PLAIN[: 1 if place % 2 == 0 else None]:
                sides[place % 2].append({"text": plain.format(noun), "label": name})
    write(folder / "labelled.jsonl", sides[0])
    write(folder / "unseen.jsonl", sides[1])


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def text_of(seed: int, out: Path, settings: dict[str, Any]) -> str:
    """The recipe of one seed: one base, and for every number of labels it and its twin."""
    shown = {"seed": seed, "out": out, "watch": settings["steps"] // 4, **settings}
    parts = [RECIPE.format(**shown)]
    for labels in settings["labels"]:
        for arm, weights in ARMS.items():
            one = {"name": f"{arm}-{labels}", "weights": weights, "labels": labels}
            parts.append(TUNED.format(**one, tune=settings["tune"]))
    return "".join(parts)


def one_seed(seed: int, settings: dict[str, Any], say: Say) -> dict[str, Any]:
    """Run the recipe of one seed; what each stage found."""
    with TemporaryDirectory() as name:
        root = Path(name)
        write_inputs(root, settings["sentences"], seed)
        path, out = root / "bert.yaml", root / "run"
        path.write_text(text_of(seed, out, settings), "utf-8")
        job = runner.Run(
            recipe=recipe.load(path, []),
            root=root,
            out=out,
            recipe_text=path.read_text("utf-8"),
            command=["python", "-m", "experiments.bert"],
        )
        runner.execute(job, say=lambda line: say(f"seed {seed}: {line}"))

        def found(stage: str) -> dict[str, Any]:
            record: dict[str, Any] = json.loads((out / stage / "stage.json").read_text("utf-8"))
            score: dict[str, Any] = record["summary"]["heldout"]
            return score

        accuracy = {
            arm: {str(n): found(f"{arm}-{n}")["accuracy"] for n in settings["labels"]}
            for arm in ARMS
        }
        hidden = {name: found("base")[name]["accuracy"] for name in ("model", "unigram")}
    return {"seed": seed, "hidden_tokens": hidden, "accuracy": accuracy}


def measure(quick: bool, say: Say) -> Numbers:
    """Two or three seeds, each with a language of its own."""
    return sweep(range(2 if quick else 3), QUICK if quick else FULL, say=say)


def sweep(seeds: Sequence[int], settings: dict[str, Any], *, say: Say) -> Numbers:
    """The runs of all seeds."""
    runs = [one_seed(seed, settings, say) for seed in seeds]
    return {"settings": settings, "guess": 1 / len(CLASSES), "runs": runs}


def shares(numbers: Numbers, arm: str, labels: int) -> list[float]:
    """The shares of nouns told right with so many labels, one a seed."""
    return [one["accuracy"][arm][str(labels)] for one in numbers["runs"]]


def claims(numbers: Numbers) -> dict[str, bool]:
    """What must hold in every seed."""
    counts, guess = numbers["settings"]["labels"], numbers["guess"]
    pairs = {n: [shares(numbers, arm, n) for arm in ARMS] for n in counts}
    return {
        "hidden tokens are foretold better than by frequency": all(
            one["hidden_tokens"]["model"] > one["hidden_tokens"]["unigram"]
            for one in numbers["runs"]
        ),
        "pretrained tells at least 0.2 more of the unseen nouns right, at every number of labels": (
            all(a >= b + 0.2 for pair in pairs.values() for a, b in zip(*pair, strict=True))
        ),
        "from scratch it is a guess: within 0.1 of one in four": all(
            abs(share - guess) <= 0.1 for _, found in pairs.values() for share in found
        ),
    }


def table(numbers: Numbers) -> str:
    """Medians and every seed."""
    rows = [
        (n, *(middle(shares(numbers, arm, n)) for arm in ARMS))
        + tuple(shares(numbers, arm, n) for arm in ARMS)
        for n in numbers["settings"]["labels"]
    ]
    return grid(("labels", *ARMS, *(f"{arm}, by seed" for arm in ARMS)), rows)


def draw(numbers: Numbers) -> Any:
    """Accuracy over the number of labels."""
    figure, (place,) = axes_of(1, width=5.0)
    counts = numbers["settings"]["labels"]
    for arm, colour in zip(ARMS, COLOURS, strict=False):
        medians = [middle(shares(numbers, arm, n)) for n in counts]
        place.plot(counts, medians, "-", color=colour, label=arm)
        for n in counts:
            found = shares(numbers, arm, n)
            place.plot([n] * len(found), found, ".", color=colour)
    place.axhline(numbers["guess"], color="grey", linestyle="--", linewidth=0.8, label="a guess")
    place.set_xscale("log")
    place.set_xticks(counts, [str(n) for n in counts])
    place.minorticks_off()
    place.set(xlabel="labelled nouns to learn from", ylabel="unseen nouns told right", ylim=(0, 1))
    place.legend(fontsize=8)
    return figure


EXPERIMENT = Experiment("bert", __doc__, measure, claims, table, draw)

if __name__ == "__main__":
    sys.exit(run(EXPERIMENT))
