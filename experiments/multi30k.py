"""Translation of Multi30k, English to German: a plain GRU, Bahdanau's attention, a Transformer.

    python -m experiments.multi30k --data FOLDER [--quick] [--networks gru,bahdanau,transformer]

FOLDER holds train.en, train.de, val.en, val.de, test_2016_flickr.en and .de, plain or as .gz. Every
network is trained by the stage `translate` on the 29,000 training pairs; settings were chosen on
the 1,014 validation pairs, and the 1,000 pairs of test2016 are translated once, at the end, by beam
search. BLEU is sacrebleu's (13a, cased, detokenised), the signature is printed. A run that was
stopped goes on where it was.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import stemma
from experiments.record import axes_of, grid, save, say, versions
from stemma.core.files import write_text
from stemma.data.pairs import read_sentences
from stemma.eval.bleu import bleu
from stemma.pipeline import recipe as recipes
from stemma.pipeline import runner

SETTINGS = """\
    vocab_size: {vocab_size}
    context: {context}
    batch_tokens: {batch_tokens}
    epochs: {epochs}
    label_smoothing: 0.1
    watch: {{every: {every}}}
    samples: {{every: {every}}}
    search: {{beams: 5, alpha: 1.0, max_new_tokens: 80}}
    checkpoint_every: 200
"""
NETWORKS = {
    "gru": (
        "{family: seq2seq, width: 256, depth: 1, cell: gru, reverse_source: true, dropout: 0.3}",
        "{kind: cosine, warmup: 100, floor: 0.02}",
        2e-3,
    ),
    "bahdanau": (
        "{family: bahdanau, width: 256, embedding_width: 256, hidden: 256, maxout: 128, "
        "dropout: 0.3}",
        "{kind: cosine, warmup: 100, floor: 0.02}",
        2e-3,
    ),
    "transformer": (
        "{family: transformer, width: 128, depth: 4, num_heads: 4, hidden: 512, norms: pre, "
        "dropout: 0.2}",
        "{kind: cosine, warmup: 400, floor: 0.02}",
        3e-3,
    ),
}
# eight epochs tell the recurrent networks apart; the Transformer has a time of its own to keep to
EPOCHS = {"gru": 8, "bahdanau": 8, "transformer": 12}
FULL = {"vocab_size": 6000, "context": 2048, "batch_tokens": 4096, "every": 400}
QUICK = {"vocab_size": 1000, "context": 1024, "batch_tokens": 2048, "every": 20}
QUICK_PAIRS, QUICK_TEST = 1200, 40


def file_of(data: Path, name: str) -> Path:
    """A file of the data set, plain or packed."""
    for path in (data / name, data / f"{name}.gz"):
        if path.is_file():
            return path
    raise SystemExit(f"{data}: no {name} or {name}.gz")


def lay_out(data: Path, out: Path, *, quick: bool) -> dict[str, str]:
    """The files of the stage; for --quick the first few pairs of each."""
    found = {}
    for key, name in (("train", "train"), ("heldout", "val"), ("test", "test_2016_flickr")):
        for language in ("en", "de"):
            path = file_of(data, f"{name}.{language}").absolute()
            if quick:
                limit = QUICK_PAIRS if key == "train" else QUICK_TEST
                lines = list(read_sentences(path, path.parent))[:limit]
                path = (out / f"{key}.{language}").absolute()
                write_text(path, "".join(f"{line}\n" for line in lines))
            found[f"{key}_{language}"] = str(path)
    return found


def recipe_of(network: str, files: dict[str, str], *, quick: bool) -> str:
    """The recipe of one network."""
    model, schedule, rate = NETWORKS[network]
    epochs = 3 if quick else EPOCHS[network]
    lines = SETTINGS.format(epochs=epochs, **(QUICK if quick else FULL))
    return f"""\
name: multi30k-{network}
stages:
  translator:
    kind: translate
    source: [{json.dumps(files["train_en"])}]
    target: [{json.dumps(files["train_de"])}]
    heldout_source: [{json.dumps(files["heldout_en"])}]
    heldout_target: [{json.dumps(files["heldout_de"])}]
    model: {model}
    schedule: {schedule}
    learning_rate: {rate}
    optimizer: {{weight_decay: 0.01, beta2: 0.98}}
{lines}"""


def train(network: str, seed: int, files: dict[str, str], out: Path, *, quick: bool) -> Path:
    """Train one network from one seed; returns its run folder."""
    path, folder = out / f"{network}.yaml", out / f"{network}-{seed}"
    write_text(path, recipe_of(network, files, quick=quick))
    loaded = recipes.load(path, [f"seed={seed}"])
    runner.execute(
        runner.Run(
            recipe=loaded,
            root=path.parent,
            out=folder,
            recipe_text=path.read_text(),
            command=["stemma", "run", str(path), f"seed={seed}", f"out={folder}"],
            overrides=(f"seed={seed}",),
        ),
        say,
    )
    return folder


def tested(folder: Path, files: dict[str, str], search: dict[str, Any]) -> dict[str, Any]:
    """BLEU of a trained network on the test pairs."""
    path = folder / "test.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    sides = {
        language: list(read_sentences(Path(files[f"test_{language}"]), Path("/")))
        for language in ("en", "de")
    }
    model, tokenizer = stemma.load(folder / "translator")
    assert tokenizer is not None
    started = time.perf_counter()
    made = stemma.generate(model, tokenizer, sides["en"], **search)
    seconds = time.perf_counter() - started
    found = {**bleu(made, sides["de"]), "seconds": seconds, "translations": made}
    write_text(path, json.dumps(found, ensure_ascii=False, indent=1))
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and test every network from every seed."""
    files = lay_out(arguments.data, arguments.out, quick=arguments.quick)
    rows = []
    for seed in range(arguments.seeds):
        for network in arguments.networks:
            if network == "transformer" and seed >= arguments.transformer_seeds:
                continue
            folder = train(network, seed, files, arguments.out, quick=arguments.quick)
            record = json.loads((folder / "translator" / "stage.json").read_text())
            summary = record["summary"]
            test = tested(folder, files, summary["translation"]["search"])
            rows.append(
                {
                    "network": network,
                    "seed": seed,
                    "parameters": summary["parameters"],
                    "minutes": record["seconds"] / 60,
                    "tokens_per_second": summary["tokens_per_second"],
                    "validation_bleu": summary["translation"]["bleu"],
                    "test_bleu": test["bleu"],
                    "test_chrf": test["chrf"],
                    "signature": test["bleu_signature"],
                }
            )
            say(f"{network} from seed {seed}: test BLEU {test['bleu']:.2f}")
    return {"rows": rows}


def of(rows: Sequence[dict[str, Any]], network: str, key: str = "test_bleu") -> list[float]:
    """One column of one network."""
    return [row[key] for row in rows if row["network"] == network]


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """What must come out, as far as the networks were trained."""
    found = {}
    plain, aligned, attended = (of(rows, name) for name in ("gru", "bahdanau", "transformer"))
    if plain and aligned:
        found["Bahdanau at least 3 BLEU above the plain GRU"] = mean(aligned) >= mean(plain) + 3
    if attended:
        found["Transformer at least 33 BLEU"] = mean(attended) >= 33
        minutes = of(rows, "transformer", "minutes")
        found["Transformer within 45 minutes"] = max(minutes) <= 45
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    head = ("network", "seed", "parameters", "minutes", "val BLEU", "test BLEU", "test chrF")
    return grid(
        head,
        [
            (
                row["network"],
                row["seed"],
                f"{row['parameters']:,}",
                f"{row['minutes']:.1f}",
                f"{row['validation_bleu']:.2f}",
                f"{row['test_bleu']:.2f}",
                f"{row['test_chrf']:.2f}",
            )
            for row in rows
        ],
    )


def draw(rows: Sequence[dict[str, Any]]) -> Any:
    """Test BLEU by network, a point a seed."""
    figure, (axes,) = axes_of(1)
    names = list(dict.fromkeys(row["network"] for row in rows))
    for place, name in enumerate(names):
        values = of(rows, name)
        axes.bar(place, mean(values), width=0.6, alpha=0.4)
        axes.plot([place] * len(values), values, "o", color="black", markersize=4)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("BLEU on test2016, en to de")
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, record, print; 1 where a claim does not hold (never with --quick)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--quick", action="store_true", help="few pairs: only that it runs")
    parser.add_argument("--networks", type=lambda text: text.split(","), default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the recurrent networks")
    parser.add_argument("--transformer-seeds", type=int, default=1, help="seeds of the Transformer")
    default = Path("runs/experiments/multi30k")
    parser.add_argument("--out", type=Path, default=default, help="folder of runs and record")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.seeds = 1
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows = measure(chosen)["rows"]
    held = {} if chosen.quick else claims(rows)
    record = {
        "experiment": "multi30k",
        "quick": chosen.quick,
        "rows": rows,
        "claims": held,
        "versions": versions(),
    }
    save(record, draw(rows), chosen.out / "multi30k")
    print(table(rows))
    print(rows[0]["signature"])
    for claim, holds in held.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
