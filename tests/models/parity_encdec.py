"""How equal the encoder-decoders and the encoders are to their oracles: what docs/parity.md prints.

The same measures as in `parity`, for networks that read a source and a target, or both sides of a
text. All weights are drawn wide, buffers that checkpoints fill included. A row of a padded batch is
compared with the oracle on that row alone: padding must leave no trace.

Axes: B batch, S source, T target, V vocabulary
"""

import copy
import functools
import importlib
import pkgutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

import stemma
import tests.models.oracles_encdec
from stemma.interop.tables import tables
from stemma.nn.context import Context
from tests.models.parity import relative_error

transformers.utils.logging.disable_progress_bar()
SOURCE, TARGET = 11, 9  # lengths
LIMIT = 1e-4  # what a test lets pass
GRADIENTS = 1e-6  # the same in double precision; the oracle's table of sines is in single
CHUNKS = [(9,), (1,) * 9, (4, 1, 1, 3), (1, 8), (8, 1)]
SIDES = ("left", "right")


@functools.cache
def cases() -> dict[str, Callable[[], Any]]:
    """Every case of every file in `oracles_encdec`: a function that makes the oracle."""
    found: dict[str, Callable[[], Any]] = {}
    for info in pkgutil.iter_modules(tests.models.oracles_encdec.__path__):
        found |= importlib.import_module(f"tests.models.oracles_encdec.{info.name}").CASES
    return found


def cases_of(*families: str) -> list[str]:
    return [case for case in cases() if case.split()[0] in families]


WIDE = ("t5", "switch_transformers", "switch")  # their scores are scaled down by the head
EMBEDS = ("shared.weight", "embed_tokens.weight", "lm_head.weight", "embedding.weight")


@torch.no_grad()
def scatter(model):
    """Draw all that is learned wide, theirs or ours."""
    generator = torch.Generator().manual_seed(7)
    kind = getattr(model.config, "model_type", None) or model.config.family
    learned = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    learned += [(n, b) for n, b in model.named_buffers() if n.endswith("bias")]
    for name, parameter in learned:
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(1 + 0.3 * noise)
        else:
            wide = kind in WIDE and name.endswith(EMBEDS)
            width = parameter.shape[-1] if parameter.ndim > 2 else min(parameter.shape)
            parameter.copy_((1.5 if wide else min(0.5, 1.4 / width**0.5)) * noise)
    return model.eval()


@dataclass(frozen=True)
class Pair:
    """A network of ours with the weights of the oracle beside it, and the folder between them."""

    ours: Any
    theirs: Any
    folder: Path

    @property
    def config(self) -> Any:
        return self.ours.config

    @functools.cached_property
    def exact(self) -> "Pair":
        """Both in double precision: gradients add up many roundings, which would hide mistakes."""
        theirs = raised(copy.deepcopy(self.theirs).double())
        return Pair(copy.deepcopy(self.ours).double(), theirs, self.folder)


def raised(theirs: Any) -> Any:
    """The oracle without what it does in single precision always: T5's norms, Switch's routers."""
    for module in list(theirs.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "variance_epsilon"):
                norm = torch.nn.RMSNorm(len(child.weight), eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)
        if hasattr(module, "expert_capacity"):
            module.dtype = torch.float64
    return theirs


@functools.cache
def pair_of(case: str) -> Pair:
    """The oracle of a case with wide weights, saved as a folder and loaded as ours."""
    folder = Path(tempfile.mkdtemp(prefix="stemma-parity-"))
    theirs = scatter(cases()[case]())
    theirs.save_pretrained(folder)
    return Pair(stemma.load(folder)[0], theirs, folder)


def draw(high: int, rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(0, high, (rows, length), generator=torch.Generator().manual_seed(seed))


def draw_source(pair: Pair, rows: int = 3) -> torch.Tensor:
    high = getattr(pair.config, "source_vocab_size", None) or pair.config.vocab_size
    return draw(high, rows, SOURCE, seed=1)


def draw_target(pair: Pair, rows: int = 3, length: int = TARGET) -> torch.Tensor:
    return draw(pair.config.vocab_size, rows, length, seed=2)


def ask(pair: Pair, source_BS: torch.Tensor, target_BT: torch.Tensor) -> torch.Tensor:
    """The oracle's logits."""
    return pair.theirs(source_BS, decoder_input_ids=target_BT).logits


@torch.no_grad()
def logits_error(pair: Pair) -> float:
    """A full pass over three rows."""
    source_BS, target_BT = draw_source(pair), draw_target(pair)
    return relative_error(pair.ours(source_BS, target_BT), ask(pair, source_BS, target_BT))


def gradient_errors(pair: Pair) -> dict[str, float]:
    """The error of every parameter's gradient, by our name; all on both sides are compared."""
    pair, source_BS, target_BT = pair.exact, draw_source(pair), draw_target(pair)
    ours, theirs = pair.ours(source_BS, target_BT), ask(pair, source_BS, target_BT)
    return compare_gradients(pair, [(ours, theirs)])


def compare_gradients(
    pair: Pair, outputs: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, float]:
    """Gradients of one random sum over all outputs, ours against theirs, tensor by tensor."""
    pair.ours.zero_grad()
    pair.theirs.zero_grad()
    for seed, (ours, theirs) in enumerate(outputs):
        weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed))
        (ours * weight).sum().backward(retain_graph=True)
        (theirs * weight).sum().backward(retain_graph=True)
    found = {name: parameter.grad for name, parameter in pair.ours.named_parameters()}
    expected = foreign_gradients(pair)
    errors = {}
    for name, theirs in expected.items():
        scale = theirs.norm()
        if name.endswith("key.bias"):  # it moves all scores of a query alike: no gradient at all
            scale = max(scale, found[name.replace("key", "query")].norm())
        assert scale > 0, name
        errors[name] = ((found[name] - theirs).norm() / scale).item()
    missing = found.keys() - errors.keys()
    buffers = {"head.bias"} if pair.config.family == "transformer" else set()
    assert missing <= buffers, missing
    return errors


def foreign_gradients(pair: Pair) -> dict[str, torch.Tensor]:
    """The oracle's gradients by our names, read as its weights are read; none is left over."""
    theirs = {n: p.grad for n, p in pair.theirs.named_parameters() if p.grad is not None}
    prefix = tables()[pair.config.family].PREFIX
    if prefix and not any(name.startswith(prefix) for name in theirs):
        theirs = {prefix + name: gradient for name, gradient in theirs.items()}
    shapes = {name: tuple(p.shape) for name, p in pair.ours.named_parameters()}
    found: dict[str, torch.Tensor] = {}
    for entry in tables()[pair.config.family].entries(pair.config):
        if entry.theirs not in theirs:
            continue
        for name, part in entry.read(theirs.pop(entry.theirs), shapes).items():
            if entry.part is None:
                found[name] = part
            else:
                found.setdefault(name, part.new_zeros(shapes[name]))[entry.part] = part
    assert not theirs, list(theirs)
    return found


def uneven(rows: torch.Tensor, lengths: Sequence[int], side: str) -> torch.Tensor:
    """Where rows of these lengths are real, at the left or the right of what pads them."""
    place = torch.arange(rows.shape[1])[None]
    length = torch.tensor(lengths)[:, None]
    return place < length if side == "right" else place >= rows.shape[1] - length


@torch.no_grad()
def padded_error(pair: Pair, side: str) -> float:
    """Sources of 11, 6 and 1, targets of 4, 9 and 7 tokens in one batch, against rows alone."""
    source_BS, target_BT = draw_source(pair), draw_target(pair)
    memory_BS = uneven(source_BS, (11, 6, 1), side)
    real_BT = uneven(target_BT, (4, 9, 7), side)
    context = Context(memory_padding_BM=memory_BS, padding_BT=real_BT)
    found = pair.ours(source_BS, target_BT, context)
    alone = [
        ask(pair, source[seen][None], target[real][None])[0]
        for source, seen, target, real in zip(source_BS, memory_BS, target_BT, real_BT, strict=True)
    ]
    return relative_error(found[real_BT], torch.cat(alone))


def whole(pair: Pair, source_BS: torch.Tensor, target_BT: torch.Tensor) -> torch.Tensor:
    """The target in one pass; where experts have a capacity, with a cache, as it lifts that."""
    context = pair.ours.encode(source_BS)
    if getattr(pair.config, "num_experts", 0):
        context = replace(context, caches=pair.ours.new_cache(target_BT.shape[1]))
    return pair.ours.decode(target_BT, context)


@torch.no_grad()
def cached_error(pair: Pair, chunks: Sequence[int]) -> float:
    """Decoding in chunks with a cache against one pass."""
    source_BS, target_BT = draw_source(pair), draw_target(pair, length=sum(chunks))
    context = replace(pair.ours.encode(source_BS), caches=pair.ours.new_cache(sum(chunks)))
    forgetful = replace(context, memory_BMC=None)  # after the first pass nobody reads it
    parts = [
        pair.ours.decode(part_BT, forgetful if index else context)
        for index, part_BT in enumerate(target_BT.split(chunks, dim=1))
    ]
    return relative_error(torch.cat(parts, dim=1), whole(pair, source_BS, target_BT))


@torch.no_grad()
def ragged_error(pair: Pair, side: str) -> float:
    """Prompts of 5, 3 and 1 tokens, sources of 11, 6 and 2, then four more: against rows alone."""
    lengths, new = (5, 3, 1), 4
    source_BS, target_BT = draw_source(pair), draw_target(pair, length=5 + new)
    memory_BS = uneven(source_BS, (11, 6, 2), side)
    alone = [
        whole(pair, source[seen][None], torch.cat((target[:length], target[5:]))[None])[0, -new:]
        for source, seen, target, length in zip(
            source_BS, memory_BS, target_BT, lengths, strict=True
        )
    ]
    real_BT = uneven(target_BT[:, :5], lengths, side)
    prompt_BT = torch.zeros_like(target_BT[:, :5])
    for prompt, real, target, length in zip(prompt_BT, real_BT, target_BT, lengths, strict=True):
        prompt[real] = target[:length]
    memory = pair.ours.encode(source_BS, Context(memory_padding_BM=memory_BS))
    context = replace(memory, caches=pair.ours.new_cache(5 + new))
    pair.ours.decode(prompt_BT, replace(context, padding_BT=real_BT))
    parts, start_B1 = [], torch.tensor(lengths)[:, None]
    for first, count in ((0, 1), (1, 2), (3, 1)):
        positions_BT = start_B1 + torch.arange(first, first + count)
        part_BT = target_BT[:, 5 + first : 5 + first + count]
        parts.append(pair.ours.decode(part_BT, replace(context, positions_BT=positions_BT)))
    return relative_error(torch.cat(parts, dim=1), torch.stack(alone))


@torch.no_grad()
def round_trip_error(pair: Pair, folder: Path) -> float:
    """Our folder opened by the oracle's library: its tensors as they were, its logits too."""
    again = reopened(pair, folder)
    source_BS, target_BT = draw_source(pair), draw_target(pair)
    found = again(source_BS, decoder_input_ids=target_BT).logits
    return relative_error(found, ask(pair, source_BS, target_BT))


def reopened(pair: Pair, folder: Path) -> Any:
    """The oracle loaded from a folder of ours; every tensor that it uses must come back."""
    stemma.save(pair.ours, None, folder, overwrite=True)
    kind = type(pair.theirs)
    again = kind.from_pretrained(folder, attn_implementation="eager").eval()
    used = {n for n, p in pair.exact.theirs.named_parameters() if p.grad is not None}
    for name, value in again.state_dict().items():
        if name in used or name == "final_logits_bias":
            assert torch.equal(value, pair.theirs.state_dict()[name]), name
    return again


def draw_pair(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of a text, and of which sentence each is."""
    tokens_BT = draw(pair.config.vocab_size, 3, SOURCE, seed=1)
    return tokens_BT, draw(pair.config.num_segments, 3, SOURCE, seed=2)


OUTPUTS = {  # how the oracle calls each output, by our name of the head
    "masked": ("prediction_logits", "logits"),
    "next sentence": ("seq_relationship_logits", "logits"),
    "labels": ("logits",),
    "pooled": ("pooler_output",),
    "hidden": ("last_hidden_state",),
}


def heads(pair: Pair, tokens_BT: torch.Tensor, context: Context) -> dict[str, torch.Tensor]:
    """The outputs of all heads that are trained last in a network, and of the stream without."""
    network, config, real_BT = pair.ours, pair.config, context.padding_BT
    x_BTC, losses = network.hidden(tokens_BT, context)
    assert losses == {}
    found = {}
    if config.masked_head:
        found["masked"] = network.logits(x_BTC)
    if config.pair_head:
        found["next sentence"] = network.next_sentence(x_BTC, real_BT)
    if config.num_labels:
        found["labels"] = network.classify(x_BTC, real_BT)
    if not found:
        found["hidden"] = x_BTC
        if config.pooler:
            found["pooled"] = network.pooled(x_BTC, real_BT)
    return found


def ask_encoder(pair: Pair, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The oracle's outputs by our names."""
    answer = pair.theirs(**inputs)
    named = {name: [word for word in words if word in answer] for name, words in OUTPUTS.items()}
    taken = heads_of(pair)
    return {name: answer[named[name][0]] for name in taken}


def heads_of(pair: Pair) -> list[str]:
    config = pair.config
    there = {
        "masked": config.masked_head,
        "next sentence": config.pair_head,
        "labels": config.num_labels > 0,
    }
    found = [name for name, is_there in there.items() if is_there]
    return found or ["hidden", *(["pooled"] if config.pooler else [])]


@torch.no_grad()
def heads_error(pair: Pair) -> float:
    """A full pass over three rows with two segments: the largest error of any head."""
    tokens_BT, segments_BT = draw_pair(pair)
    found = heads(pair, tokens_BT, Context(segments_BT=segments_BT))
    expected = ask_encoder(pair, input_ids=tokens_BT, token_type_ids=segments_BT)
    assert found.keys() == expected.keys()
    return max(close(found[name], expected[name]) for name in expected)


def close(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest value (at least one)."""
    return ((found - expected).abs().max() / max(1.0, expected.abs().max().item())).item()


def heads_gradient_errors(pair: Pair) -> dict[str, float]:
    """The error of every parameter's gradient through all heads."""
    pair, (tokens_BT, segments_BT) = pair.exact, draw_pair(pair)
    found = heads(pair, tokens_BT, Context(segments_BT=segments_BT))
    expected = ask_encoder(pair, input_ids=tokens_BT, token_type_ids=segments_BT)
    return compare_gradients(pair, [(found[name], expected[name]) for name in expected])


@torch.no_grad()
def heads_padded_error(pair: Pair, side: str) -> float:
    """Texts of 11, 6 and 1 tokens in one batch, against the oracle on each text alone."""
    tokens_BT, segments_BT = draw_pair(pair)
    real_BT = uneven(tokens_BT, (11, 6, 1), side)
    found = heads(pair, tokens_BT, Context(segments_BT=segments_BT, padding_BT=real_BT))
    worst = 0.0
    for row, real_T in enumerate(real_BT):
        tokens_1T, segments_1T = tokens_BT[row, real_T][None], segments_BT[row, real_T][None]
        alone = ask_encoder(pair, input_ids=tokens_1T, token_type_ids=segments_1T)
        for name, expected in alone.items():
            ours = found[name][row]
            ours = ours[real_T] if name in ("masked", "hidden") else ours
            worst = max(worst, close(ours, expected[0]))
    return worst


@torch.no_grad()
def heads_round_trip_error(pair: Pair, folder: Path) -> float:
    """Our folder opened by the oracle's library: its tensors as they were, its heads too."""
    again = Pair(pair.ours, reopened(pair, folder), folder)
    tokens_BT, segments_BT = draw_pair(pair)
    inputs = {"input_ids": tokens_BT, "token_type_ids": segments_BT}
    found, expected = ask_encoder(again, **inputs), ask_encoder(pair, **inputs)
    return max(close(found[name], expected[name]) for name in expected)
