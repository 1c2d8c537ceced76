"""Bundles: sentence pairs of like length that go through a network together, written down in full.

A bundle holds as many pairs as fill `context` places on its longer side, padding included. Pairs
are sorted by length first, so little is padded; which bundles meet in a step is drawn anew each
epoch. The plan is data: a resumed run reads the same one.

Axes: B pairs of a bundle, S source tokens, T target tokens
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from stemma.core.errors import DataError
from stemma.core.files import atomic_file, resource_error, sha256_json
from stemma.data.batches import IGNORED
from stemma.data.store import TokenStore

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class PairStore:
    """Encoded pairs: sources as `text, end`, targets as `start, text, end`."""

    source: TokenStore
    target: TokenStore

    @property
    def fingerprint(self) -> str:
        """sha256 of both sides: what a resumed run must find unchanged."""
        return sha256_json([self.source.fingerprint, self.target.fingerprint])


@dataclass(frozen=True)
class Bundles:
    """Pairs by number, bundle after bundle: `pair[first[s] : first[s + 1]]` are those of bundle s.

    `pairs` counts the target tokens of each bundle, which are what is learned.
    """

    context: int
    pair: Integers
    first: Integers
    pairs: Integers

    @property
    def num_samples(self) -> int:
        """Bundles in one epoch."""
        return len(self.first) - 1

    @cached_property
    def num_pairs(self) -> int:
        """Target tokens of one epoch."""
        return int(self.pairs.sum())


@dataclass(frozen=True)
class PairBatch:
    """One bundle: sources with what is real of them, what the decoder reads, what it should say."""

    source_BS: Integers
    real_BS: Flags
    inputs_BT: Integers
    targets_BT: Integers

    @property
    def counted(self) -> int:
        """Target tokens, the ends included."""
        return int((self.targets_BT != IGNORED).sum())


def plan_bundles(source: Integers, target: Integers, *, context: int, seed: int) -> Bundles:
    """Sort pairs by length and cut them into bundles of at most `context` places on either side.

    `source` and `target` are the lengths of all pairs, of targets what is to be predicted. Equal
    lengths are shuffled by the seed. A pair that is longer than `context` is left out.
    """
    longest = np.maximum(source, target)
    tie = np.random.Generator(np.random.Philox(key=seed)).permutation(len(source))
    order = np.lexsort((tie, source, target, longest))
    order = order[longest[order] <= context]
    first, held = [0], 0
    for place, pair in enumerate(order):
        # sorted by the longer side, so the newest pair is the longest of its bundle
        if (place - first[-1] + 1) * longest[pair] > context:
            first.append(place)
        held = place + 1
    bounds = np.array([*first, held], dtype=np.int64) if held else np.zeros(1, dtype=np.int64)
    learned = np.add.reduceat(target[order], bounds[:-1]) if held else np.zeros(0)
    return Bundles(context, order.astype(np.int64), bounds, learned.astype(np.int64))


def build_bundle(store: PairStore, plan: Bundles, sample: int) -> PairBatch:
    """The pairs of one bundle, padded on the right; what is padding is told by lengths alone."""
    chosen = plan.pair[plan.first[sample] : plan.first[sample + 1]]
    sources = [store.source.document(pair).astype(np.int64) for pair in chosen]
    targets = [store.target.document(pair).astype(np.int64) for pair in chosen]
    source_BS, real_BS = _padded(sources, 0)
    inputs_BT, _ = _padded([ids[:-1] for ids in targets], 0)
    targets_BT, _ = _padded([ids[1:] for ids in targets], IGNORED)
    return PairBatch(source_BS, real_BS, inputs_BT, targets_BT)


def _padded(rows: list[Integers], filling: int) -> tuple[Integers, Flags]:
    longest = max(map(len, rows))
    found = np.full((len(rows), longest), filling, dtype=np.int64)
    real = np.zeros((len(rows), longest), dtype=np.bool_)
    for place, row in enumerate(rows):
        found[place, : len(row)], real[place, : len(row)] = row, True
    return found, real


def every_bundle(store: PairStore, plan: Bundles) -> Iterator[PairBatch]:
    """All bundles in the order of the plan."""
    for sample in range(plan.num_samples):
        yield build_bundle(store, plan, sample)


def write_bundles(path: Path, plan: Bundles) -> None:
    """Write a plan with its sha256."""
    tensors = {"pair": plan.pair, "first": plan.first, "pairs": plan.pairs}
    content = save({**tensors, "context": np.array([plan.context])})
    with atomic_file(path) as file:
        file.write(content)
    with atomic_file(_beside(path)) as file:
        file.write(hashlib.sha256(content).hexdigest().encode() + b"\n")


def read_bundles(path: Path) -> Bundles:
    """Read a plan back; raises DataError where the file is damaged."""
    fix = f"remove {path}: the stage makes it again"
    try:
        content = path.read_bytes()
        if _beside(path).read_text("utf-8").strip() != hashlib.sha256(content).hexdigest():
            raise DataError("the content does not match its sha256", place=path, fix=fix)
        tensors = load(content)
        return Bundles(context=int(tensors.pop("context")[0]), **tensors)
    except FileNotFoundError as error:
        raise DataError("its sha256 is missing", place=path, fix=fix) from error
    except OSError as error:
        raise resource_error(error, path) from error
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DataError(f"not a usable plan ({error})", place=path, fix=fix) from error


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
