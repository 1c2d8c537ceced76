"""How long a prompt takes by the size of its parts, and how long a caller who wants out waits.

    python experiments/prompt_chunks.py [--quick] [--out FILE]

A server can leave a prompt between two parts only. Smaller parts cost time, as a matrix product
over few rows uses a processor less well. Sizes take turns, so that a busy machine hits all alike;
medians are printed and written as JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import stemma
from stemma.infer import generate as generation
from stemma.infer.sampling import Sampling

SIZES = (32, 64, 128, 256, 1024)
TEXT = "The quick brown fox jumps over the lazy dog. "
ONE = Sampling(max_new_tokens=1, temperature=0)


class Watch:
    """The longest time between two passes through the model."""

    def __init__(self) -> None:
        self.last, self.longest = time.perf_counter(), 0.0

    def __call__(self) -> None:
        now = time.perf_counter()
        self.longest, self.last = max(self.longest, now - self.last), now


def timed(model: object, tokenizer: object, ids: list[int], size: int) -> tuple[float, float]:
    """Seconds until the first token, and the longest part of them without a way out."""
    generation.CHUNK = size
    watch, started = Watch(), time.perf_counter()
    made = generation.stream(model, tokenizer, [ids], ONE, between=watch)  # type: ignore[arg-type]
    next(made)
    watch()
    return time.perf_counter() - started, watch.longest


def measure(rounds: int, length: int, say: Callable[[str], None]) -> dict[str, object]:
    """The medians of all sizes, for one prompt of SmolLM2."""
    model, tokenizer = stemma.load("smollm2-135m")
    assert tokenizer is not None
    ids = tokenizer.encode(TEXT * length)[:length]
    found: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES}
    for number in range(rounds):
        for size in SIZES:
            found[size].append(timed(model, tokenizer, ids, size))
        say(f"round {number + 1} of {rounds}")
    rows = [
        {
            "part": size,
            "seconds": round(median(pair[0] for pair in pairs), 3),
            "longest_wait": round(median(pair[1] for pair in pairs), 3),
        }
        for size, pairs in found.items()
    ]
    return {"model": "smollm2-135m", "prompt_tokens": length, "rounds": rounds, "rows": rows}


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of 256 tokens")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    given = parser.parse_args()
    result = measure(1 if given.quick else 5, 256 if given.quick else 1024, print)
    text = json.dumps(result, indent=1)
    if given.out:
        given.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
