"""Which settings make the quickstart's short run learn most per token?

Trains the quickstart's network with one setting changed at a time, on fewer tokens, and prints
bits per byte on the held-out works. `--quick` trains two settings on 20,000 tokens each and says
nothing about rank; the default, 300,000 tokens for each setting, is what docs/log.md reports.

    python experiments/quickstart_settings.py [--quick] [--only NAME] [--threads N]
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from stemma.pipeline import recipe, runner

RATE = "base.learning_rate"
EMBEDDING = "base.optimizer.embedding_rate"
SETTINGS = {
    "quickstart": [],
    "embedding rate 1": [f"{EMBEDDING}=1"],
    "embedding rate 10": [f"{EMBEDDING}=10"],
    "gpt-2 initial weights": ["base.initial=gpt-2"],
    "batch of 1,024 tokens": ["base.batch_tokens=1024"],
    "batch of 2,048 tokens": ["base.batch_tokens=2048"],
    "learning rate 3e-4": [f"{RATE}=3e-4"],
    "learning rate 1.4e-3": [f"{RATE}=1.4e-3"],
    "beta2 0.95": ["base.optimizer.beta2=0.95"],
    "vocabulary 2,048": ["tokenizer.vocab_size=2048"],
}


def score(name: str, tokens: int, folder: Path) -> dict[str, object]:
    """Run the recipe with one setting changed; a finished run is not repeated."""
    out = folder / name.replace(" ", "-").replace(",", "")
    overrides = [f"out={out}", f"base.tokens={tokens}", "base.samples.every=0"]
    overrides += ["base.watch.every=0", "scores.baselines=false", "scores.stride=256"]
    overrides += SETTINGS[name]
    path = recipe.find("quickstart")
    run = runner.Run(
        recipe=recipe.load(path, overrides),
        root=Path(),
        out=out,
        recipe_text=path.read_text("utf-8"),
        command=sys.argv,
        overrides=tuple(overrides),
        until="scores",
    )
    runner.execute(run, say=lambda line: None)
    summary = (runner.read_record(out / "scores") or {})["summary"]
    trained = (runner.read_record(out / "base") or {})["summary"]
    return {
        "setting": name,
        "bits_per_byte": round(summary["scores"][0]["bits_per_byte"], 4),
        "tokens": trained["tokens"],
        "parameters": trained["parameters"],
        "seconds": round(trained["training_seconds"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two settings, 20,000 tokens")
    parser.add_argument("--only", choices=SETTINGS, help="one setting")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart-settings"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    tokens = 20_000 if chosen.quick else 300_000
    names = list(SETTINGS)[:2] if chosen.quick else list(SETTINGS)
    folder = chosen.out / str(tokens)
    rows = [score(name, tokens, folder) for name in ([chosen.only] if chosen.only else names)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    for row in sorted(rows, key=lambda row: str(row["bits_per_byte"])):
        print(f"{row['bits_per_byte']}  {row['setting']}  ({row['seconds']} s)")


if __name__ == "__main__":
    main()
