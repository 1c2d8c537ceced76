"""How equal a network of ours is to its oracle: the measures behind the tests and docs/parity.md.

All weights are drawn wide (norms 1 +- 0.3, biases N(0, 0.3), matrices so that logits deviate by one
or more), because the usual small initialisation makes many mistakes invisible: logits near zero
agree with anything.
Errors are relative: the largest difference over the largest logit (at least one), and for
gradients the norm of the difference over the norm, tensor by tensor.

Axes: B batch, T time, V vocabulary
"""

import atexit
import contextlib
import functools
import importlib
import pkgutil
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import stemma
import tests.models.oracles
from stemma.interop.tables import tables
from stemma.nn.context import Context
from stemma.nn.stack import LanguageModel

transformers.utils.logging.disable_progress_bar()
LENGTH = 13
LIMIT = 1e-4  # what a test lets pass
CHUNKS = [(LENGTH,), (5, 3, 1, 1, 1, 1, 1), (1,) * LENGTH, (12, 1), (1, 12)]


@functools.cache
def cases() -> dict[str, Callable[[], Any]]:
    """Every case of every file in `oracles`, by its name: a function that makes the oracle."""
    found: dict[str, Callable[[], Any]] = {}
    for info in pkgutil.iter_modules(tests.models.oracles.__path__):
        found |= importlib.import_module(f"tests.models.oracles.{info.name}").CASES
    return found


@torch.no_grad()
def scatter(model):
    """Draw all parameters wide, each from a stream of its own place in the list."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(1 + 0.3 * noise)
        else:
            width = min(parameter.shape[-2:])  # the first of three axes counts experts
            parameter.copy_(min(0.5, 1.4 / width**0.5) * noise)
    return model.eval()


@dataclass(frozen=True)
class Pair:
    """A network of ours with the weights of the oracle beside it, and the folder between them."""

    ours: LanguageModel
    theirs: Any
    folder: Path

    @property
    def vocab_size(self) -> int:
        return self.ours.config.vocab_size


@functools.cache
def pair_of(case: str) -> Pair:
    """The oracle of a case with wide weights, saved as a folder and loaded as ours."""
    return pair_with(scatter(cases()[case]()))


def pair_with(theirs: Any) -> Pair:
    """An oracle, saved as a folder and loaded as ours."""
    folder = Path(tempfile.mkdtemp(prefix="stemma-parity-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    theirs.save_pretrained(folder)
    return Pair(stemma.load(folder)[0], theirs, folder)


def draw_tokens(pair: Pair, rows: int = 3, length: int = LENGTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, pair.vocab_size, (rows, length), generator=generator)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference over the largest logit; the logits must not be small."""
    assert theirs.std() >= 1, f"logits with a deviation of {theirs.std():.2f} show too little"
    return ((ours - theirs).abs().max() / max(1.0, theirs.abs().max().item())).item()


@torch.no_grad()
def logits_error(pair: Pair) -> float:
    """A full pass over three rows."""
    tokens_BT = draw_tokens(pair)
    return relative_error(pair.ours(tokens_BT), pair.theirs(tokens_BT).logits)


def gradient_errors(pair: Pair, *, floor: float = 0.0) -> dict[str, float]:
    """The error of every parameter's gradient, by our name; all on both sides are compared.

    A gradient may be zero, or nothing but rounding, where `floor` is given: errors are then
    measured by that share of the largest gradient at least.
    """
    tokens_BT = draw_tokens(pair)
    weight_BTV = torch.randn(
        *tokens_BT.shape, pair.vocab_size, generator=torch.Generator().manual_seed(3)
    )
    pair.ours.zero_grad()
    pair.theirs.zero_grad()
    (pair.ours(tokens_BT) * weight_BTV).sum().backward()
    (pair.theirs(tokens_BT).logits * weight_BTV).sum().backward()
    ours = {name: parameter.grad for name, parameter in pair.ours.named_parameters()}
    expected = foreign_gradients(pair)
    assert expected.keys() == ours.keys()
    least = floor * max(theirs.norm() for theirs in expected.values())
    errors = {}
    for name, theirs in expected.items():
        scale = max(least, scale_of(name, ours, theirs))
        assert scale > 0, f"{name} has no gradient"
        errors[name] = ((ours[name] - theirs).norm() / scale).item()
    return errors


# what has no gradient at all in some networks, and whose gradient says how much rounding may leave
UNMOVED = {
    # a key's bias moves all scores of a query alike, if nothing turns it
    "key.bias": "query.bias",
    # the one weight of a token that asks one expert is always one
    "router.weight": "experts.gate",
}


def scale_of(name: str, gradients: dict[str, torch.Tensor], theirs: torch.Tensor) -> torch.Tensor:
    """What the error of a gradient is measured by: its norm, unless it is nothing but rounding."""
    scale = theirs.norm()
    for end, other in UNMOVED.items():
        if name.endswith(end):
            beside = gradients[name.removesuffix(end) + other].norm()
            scale = beside if scale < 1e-3 * beside else scale
    return scale


def foreign_gradients(pair: Pair) -> dict[str, torch.Tensor]:
    """The oracle's gradients by our names, read as its weights are read; none is left over."""
    config = pair.ours.config
    theirs = {name: parameter.grad for name, parameter in pair.theirs.named_parameters()}
    oracle = importlib.import_module(f"tests.models.oracles.{config.family}")
    if hasattr(oracle, "in_file_names"):
        theirs = oracle.in_file_names(theirs)
    shapes = {name: tuple(p.shape) for name, p in pair.ours.named_parameters()}
    found: dict[str, torch.Tensor] = {}
    for entry in tables()[config.family].entries(config):
        for name, part in entry.read(theirs.pop(entry.theirs), shapes).items():
            if entry.part is None:
                found[name] = part
            else:
                found.setdefault(name, part.new_zeros(shapes[name]))[entry.part] = part
    assert not theirs
    return found


@torch.no_grad()
def padded_error(pair: Pair, side: str) -> float:
    """Rows of 13, 7 and 4 tokens in one batch, padded on one side; real tokens are compared."""
    tokens_BT = draw_tokens(pair)
    real_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    real_BT[1, : LENGTH - 6] = False
    real_BT[2, : LENGTH - 9] = False
    if side == "right":
        real_BT = real_BT.flip(1)
    positions_BT = (real_BT.long().cumsum(1) - 1).clamp(min=0)
    expected = theirs_padded(pair, tokens_BT, real_BT, positions_BT)
    found = pair.ours(tokens_BT, Context(padding_BT=real_BT))
    return relative_error(found[real_BT], expected[real_BT])


def theirs_padded(pair, tokens_BT, real_BT, positions_BT):
    """The oracle on a padded batch; row by row without padding where it cannot read that.

    Some take no positions, and in double precision queries that see nothing become NaN.
    """
    kind = pair.ours.embedding.weight.dtype
    given = {"attention_mask": real_BT.long(), "position_ids": positions_BT}
    if kind != torch.float64:
        with contextlib.suppress(TypeError):
            return pair.theirs(tokens_BT, **given).logits
    logits = torch.zeros(*tokens_BT.shape, pair.vocab_size, dtype=kind)
    for row, real_T in enumerate(real_BT):
        logits[row, real_T] = pair.theirs(tokens_BT[row : row + 1, real_T]).logits[0]
    return logits


@torch.no_grad()
def single_error(pair: Pair) -> float:
    """Each row alone against the batch."""
    tokens_BT = draw_tokens(pair)
    alone = torch.cat([pair.ours(row[None]) for row in tokens_BT])
    return relative_error(alone, pair.ours(tokens_BT))


@torch.no_grad()
def cached_error(pair: Pair, chunks: Sequence[int]) -> float:
    """Decoding in chunks with a cache against one full pass."""
    tokens_BT = draw_tokens(pair, length=sum(chunks))
    cache = pair.ours.new_cache(sum(chunks))
    parts = [pair.ours(part, Context(caches=cache)) for part in tokens_BT.split(chunks, dim=1)]
    return relative_error(torch.cat(parts, dim=1), pair.ours(tokens_BT))


@torch.no_grad()
def ragged_error(pair: Pair, side: str) -> float:
    """Prompts of 9, 4 and 1 tokens padded on one side, then four more: each row against alone."""
    lengths, new = (9, 4, 1), 4
    tokens_BT = draw_tokens(pair, length=9 + new)
    alone = [
        pair.ours(torch.cat((row[:length], row[9:]))[None])[0, -new:]
        for row, length in zip(tokens_BT, lengths, strict=True)
    ]
    prompt_BT, real_BT = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.bool)
    for row, length in enumerate(lengths):
        place = slice(9 - length, 9) if side == "left" else slice(0, length)
        prompt_BT[row, place], real_BT[row, place] = tokens_BT[row, :length], True
    cache, start_B1 = pair.ours.new_cache(9 + new), torch.tensor(lengths)[:, None]
    pair.ours(prompt_BT, Context(caches=cache, padding_BT=real_BT))
    parts = []
    for first, count in ((0, 1), (1, 2), (3, 1)):
        positions_BT = start_B1 + torch.arange(first, first + count)
        part_BT = tokens_BT[:, 9 + first : 9 + first + count]
        parts.append(pair.ours(part_BT, Context(caches=cache, positions_BT=positions_BT)))
    return relative_error(torch.cat(parts, dim=1), torch.stack(alone))


@torch.no_grad()
def round_trip_error(pair: Pair, folder: Path) -> float:
    """Our folder opened by the oracle's library; every tensor must come back as it was."""
    stemma.save(pair.ours, None, folder, overwrite=True)
    kind = type(pair.theirs)
    again = kind.from_pretrained(folder, attn_implementation="eager").eval()
    if getattr(pair.theirs.config, "_experts_implementation", None) == "eager":
        again.set_experts_implementation("eager")
    for name, value in pair.theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    tokens_BT = draw_tokens(pair)
    return relative_error(again(tokens_BT).logits, pair.theirs(tokens_BT).logits)
