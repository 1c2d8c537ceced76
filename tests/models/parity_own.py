"""How equal the families are that no other library has as a whole: by layers of torch, or by hand.

The oracle of each case is built of what torch or transformers has (`nn.LSTM`, attention, one layer
of an encoder, the delta rule), or is the paper's equations token by token. It reads the parameters
of our network itself, so gradients meet at the same tensors. All is in double precision, and the
weights are drawn wide. The laws that need no oracle are measured by `parity` and `parity_encdec`.

Axes: B batch, S source, T time or target, V vocabulary, C width, H heads, D width of one head
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from transformers.models.qwen3_next import modeling_qwen3_next

import stemma
from stemma import api
from tests.models import parity, parity_encdec
from tests.models.test_decoder import sines
from tests.models.test_linear_models import features, layer_norm, mlp, reference
from tests.models.test_recurrent_models import bahdanau_row

LIMIT = 1e-9  # what a test lets pass, in double precision
SINGLE = 1e-5  # beside an oracle that goes through single precision
Expected = Callable[..., torch.Tensor]
CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
PARTS = {"weight_ih": "input.weight", "bias_ih": "input.bias"}
PARTS |= {"weight_hh": "hidden.weight", "bias_hh": "hidden.bias"}


@dataclass(frozen=True)
class Oracle:
    """Another way to the same logits, called as the classes of transformers are."""

    model: Any
    expected: Expected
    named: str

    def __call__(
        self, first: torch.Tensor, *, decoder_input_ids: torch.Tensor | None = None
    ) -> SimpleNamespace:
        given = (first,) if decoder_input_ids is None else (first, decoder_input_ids)
        return SimpleNamespace(logits=self.expected(self.model, *given))


@dataclass(frozen=True)
class Pair:
    """A network of ours in double precision, and the oracle that reads its parameters."""

    ours: Any
    theirs: Oracle

    @property
    def config(self) -> Any:
        return self.ours.config

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size


# Layers of torch


def by_torch_cells(model, tokens_BT):
    """A recurrent language model: torch's layers between embedding and head."""
    kind = CELLS[model.config.family]
    states_BTC, _ = run_cells(kind, model.config, model.blocks, model.embedding.weight[tokens_BT])
    return states_BTC @ (model.embedding if model.head is None else model.head).weight.T


def run_cells(kind, config, blocks, x_BTC, *begin):
    layers = kind(config.width, config.width, config.depth, batch_first=True)
    weights = {
        f"{theirs}_l{index}": block.recurrence.get_parameter(ours)
        for index, block in enumerate(blocks)
        for theirs, ours in PARTS.items()
    }
    return functional_call(layers, weights, (x_BTC, *begin))


def by_two_networks(model, source_BS, target_BT):
    """Sequence to sequence: one of torch's networks after the other."""
    c, kind = model.config, CELLS[model.config.cell]
    read_BS = source_BS.flip(1) if c.reverse_source else source_BS
    source_BSC = model.source_embedding.weight[read_BS]
    _, last = run_cells(kind, c, model.encoder.blocks, source_BSC)
    target_BTC = model.embedding.weight[target_BT]
    states_BTC, _ = run_cells(kind, c, model.decoder.blocks, target_BTC, last)
    head = model.embedding if c.tied else model.head
    return states_BTC @ head.weight.T + model.head.bias


def by_encoder_layers(model, tokens_BT):
    """A decoder of one stream: torch's encoder layers under a causal mask."""
    c = model.config
    layer = nn.TransformerEncoderLayer(
        c.width,
        c.num_heads,
        c.hidden,
        dropout=0.0,
        activation=c.activation,
        layer_norm_eps=c.norm_eps,
        batch_first=True,
        norm_first=c.norms == "pre",
    ).train()  # in evaluation torch takes another path, without gradients
    x_BTC = embedded(model, tokens_BT)
    for block in model.blocks:
        weights = {f"self_attn.{name}": value for name, value in fused(block.attention).items()}
        for ours, theirs in (("mlp.up", "linear1"), ("mlp.down", "linear2")):
            weights |= named(block, ours, theirs)
        weights |= named(block, "attention_norm", "norm1") | named(block, "mlp_norm", "norm2")
        x_BTC = functional_call(layer, weights, (x_BTC,), {"src_mask": hidden_mask(tokens_BT)})
    return model.norm(x_BTC) @ head_of(model).T


def embedded(model, tokens_BT):
    c = model.config
    scaled_BTC = model.embedding.weight[tokens_BT] * (c.width**0.5 if c.scaled else 1.0)
    return scaled_BTC + sines(tokens_BT.shape[1], c.width)


def head_of(model):
    return (model.embedding if model.head is None else model.head).weight


def hidden_mask(tokens_BT):
    length = tokens_BT.shape[1]
    return torch.ones(length, length).triu(1).bool()


def named(block, ours, theirs):
    layer = block.get_submodule(ours)
    return {f"{theirs}.{part}": value for part, value in layer.named_parameters()}


def fused(attention):
    """The parameters of torch's attention, where query, key and value are one matrix."""
    parts = (attention.query, attention.key, attention.value)
    return {
        "in_proj_weight": torch.cat([part.weight for part in parts]),
        "in_proj_bias": torch.cat([part.bias for part in parts]),
        "out_proj.weight": attention.output.weight,
        "out_proj.bias": attention.output.bias,
    }


def by_two_streams(model, tokens_BT):
    """arXiv:2304.14802, equations 4 to 6, with torch's attention as the first layer of a block."""
    c, mask_TT = model.config, hidden_mask(tokens_BT)
    attention = nn.MultiheadAttention(c.width, c.num_heads, batch_first=True)
    x_BTC = dual_BTC = embedded(model, tokens_BT)
    for block in model.blocks:
        for norm, first in ((block.attention_norm, True), (block.mlp_norm, False)):
            if first:
                weights, given = fused(block.attention), {"attn_mask": mask_TT}
                update_BTC, _ = functional_call(attention, weights, (x_BTC,) * 3, given)
            else:
                up, down, inner = block.mlp.up, block.mlp.down, getattr(F, c.activation)
                update_BTC = F.linear(inner(F.linear(x_BTC, up.weight, up.bias)), down.weight)
                update_BTC = update_BTC + down.bias
            dual_BTC = dual_BTC + update_BTC
            shape, eps = (c.width,), c.norm_eps
            x_BTC = F.layer_norm(x_BTC + update_BTC, shape, norm.weight, norm.bias, eps)
    last = model.norm
    ended_BTC = F.layer_norm(dual_BTC, (c.width,), last.weight, last.bias, c.norm_eps)
    return (x_BTC + ended_BTC) @ head_of(model).T


# Equations of the papers


def by_equations(model, tokens_BT):
    """Linear attention in its four families, token by token: see `test_linear_models`."""
    state = dict(model.named_parameters())
    return torch.stack([reference(state, model.config, tokens_T) for tokens_T in tokens_BT])


def by_alignment(model, source_BS, target_BT):
    """arXiv:1409.0473, appendix A, pair by pair: see `test_recurrent_models`."""
    rows = zip(source_BS, target_BT, strict=True)
    return torch.stack([bahdanau_row(model, source_S, target_T)[0] for source_S, target_T in rows])


def by_gated_delta_rule(model, tokens_BT):
    """The Delta network with the rule of Qwen3-Next, which is in fp32 and has a gate: none here."""
    c, state = model.config, dict(model.named_parameters())
    rule = modeling_qwen3_next.torch_recurrent_gated_delta_rule

    def norm(w, name, x_TC):
        pair = w[f"{name}.weight"], w[f"{name}.bias"]
        return torch.stack([layer_norm(x_C, *pair, c.norm_eps) for x_C in x_TC])

    def attend(w, x_TC):
        query, key, value = (
            F.linear(x_TC, w[f"attention.{part}.weight"], w[f"attention.{part}.bias"])
            .unflatten(-1, (c.num_heads, -1))
            for part in ("query", "key", "value")
        )  # fmt: skip
        query, key = (
            torch.stack([torch.stack([features(c, 0, x_D) for x_D in x_HD]) for x_HD in x_THD])
            for x_THD in (query, key)
        )
        rate_TH = F.linear(x_TC, w["attention.beta.weight"]).sigmoid()
        query = query * math.sqrt(query.shape[-1])  # there queries are divided by it
        given = [part[None] for part in (query, key, value, torch.zeros_like(rate_TH), rate_TH)]
        read_BTHD, _ = rule(*given, initial_state=None, output_final_state=False)
        mixed_TC = read_BTHD[0].flatten(-2).to(x_TC.dtype)
        return F.linear(mixed_TC, w["attention.output.weight"], w["attention.output.bias"])

    rows = []
    for tokens_T in tokens_BT:
        x_TC = state["embedding.weight"][tokens_T] + sines(len(tokens_T), c.width)
        for index in range(c.depth):
            prefix = f"blocks.{index}."
            w = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
            x_TC = x_TC + attend(w, norm(w, "attention_norm", x_TC))
            x_TC = x_TC + mlp(w, norm(w, "mlp_norm", x_TC))
        rows.append(norm(state, "norm", x_TC) @ head_of(model).T)
    return torch.stack(rows)


# The cases: numbers, the other way, and its name


def language(**numbers):
    return {"width": 24, "depth": 2, "num_heads": 4, "vocab_size": 50, "context": 32, **numbers}


def cells(**numbers):
    return {"width": 10, "depth": 2, "vocab_size": 17, **numbers}


def pair_of_texts(**numbers):
    return {"width": 7, "depth": 2, "vocab_size": 17, "source_vocab_size": 13, **numbers}


def stream(**numbers):
    return {"width": 24, "depth": 2, "num_heads": 3, "vocab_size": 37, "norm_eps": 1e-4, **numbers}


def aligned(**numbers):
    found = pair_of_texts(width=6, depth=1, embedding_width=5, hidden=7, maxout=4)
    return {**found, **numbers}


EQUATIONS = "the paper's equations"
TORCH_RNN = (by_torch_cells, "`torch.nn.RNN`")
TORCH_LSTM = (by_torch_cells, "`torch.nn.LSTM`")
TORCH_GRU = (by_torch_cells, "`torch.nn.GRU`")
ENCODER = (by_encoder_layers, "`torch.nn.TransformerEncoderLayer`")
STREAMS = (by_two_streams, "`torch.nn.MultiheadAttention` in the paper's equations")
HAND = (by_equations, EQUATIONS)
GATED = (by_gated_delta_rule, "`qwen3_next.torch_recurrent_gated_delta_rule` (fp32)")
ALIGNED = (by_alignment, EQUATIONS)

CASES = {
    "rnn": (cells, *TORCH_RNN),
    "rnn deep, tied": (lambda: cells(depth=4, tied=True), *TORCH_RNN),
    "rnn one layer": (lambda: cells(depth=1, width=7, vocab_size=31), *TORCH_RNN),
    "lstm": (cells, *TORCH_LSTM),
    "lstm deep, tied": (lambda: cells(depth=4, tied=True), *TORCH_LSTM),
    "lstm one layer": (lambda: cells(depth=1, width=7, vocab_size=31), *TORCH_LSTM),
    "gru": (cells, *TORCH_GRU),
    "gru deep, tied": (lambda: cells(depth=4, tied=True), *TORCH_GRU),
    "gru one layer": (lambda: cells(depth=1, width=7, vocab_size=31), *TORCH_GRU),
    "seq2seq lstm, reversed": (pair_of_texts, by_two_networks, "two `torch.nn.LSTM`"),
    "seq2seq lstm, deep": (
        lambda: pair_of_texts(depth=3, width=9, reverse_source=False, tied=True),
        by_two_networks,
        "two `torch.nn.LSTM`",
    ),
    "seq2seq gru": (
        lambda: pair_of_texts(depth=1, cell="gru", reverse_source=False),
        by_two_networks,
        "two `torch.nn.GRU`",
    ),
    "bahdanau": (aligned, *ALIGNED),
    "bahdanau deep": (lambda: aligned(depth=2, width=5, embedding_width=8, hidden=3), *ALIGNED),
    "bahdanau wide": (lambda: aligned(width=9, maxout=11, hidden=12, vocab_size=29), *ALIGNED),
    "decoder post": (stream, *ENCODER),
    "decoder pre": (lambda: stream(norms="pre", num_heads=6, hidden=90, width=18), *ENCODER),
    "decoder post, gelu, untied": (
        lambda: stream(activation="gelu", tied=False, scaled=False, depth=4, num_heads=1),
        *ENCODER,
    ),
    "decoder dual": (lambda: stream(norms="dual"), *STREAMS),
    "decoder dual, deep": (lambda: stream(norms="dual", depth=4, width=10, num_heads=1), *STREAMS),
    "linear": (language, *HAND),
    "linear one head, untied": (lambda: language(num_heads=1, depth=1, tied=False), *HAND),
    "linear deep": (lambda: language(depth=3, width=18, num_heads=6, norm_eps=1e-3), *HAND),
    "performer": (lambda: language(features=10, feature_seed=3), *HAND),
    "performer few features": (lambda: language(features=3, depth=3, tied=False), *HAND),
    "performer many features": (lambda: language(features=17, num_heads=2, depth=1), *HAND),
    "fast_weight": (lambda: language(shifts=2), *HAND),
    "fast_weight one shift": (lambda: language(shifts=1, depth=3, tied=False), *HAND),
    "fast_weight six shifts": (lambda: language(shifts=6, num_heads=2, depth=1), *HAND),
    "delta": (lambda: language(shifts=2), *HAND),
    "delta one shift": (lambda: language(shifts=1, depth=3, tied=False), *HAND),
    "delta six shifts": (lambda: language(shifts=6, num_heads=2, depth=1), *HAND),
    "delta by another's rule": (lambda: language(shifts=2), *GATED),
    "delta untied, by another's rule": (lambda: language(depth=3, shifts=3, tied=False), *GATED),
}
PAIRS = ("seq2seq", "bahdanau")  # families that read a source


@torch.no_grad()
def scatter(model):
    """Draw all parameters wide: recurrent and linear ones for themselves, so that logits are."""
    generator = torch.Generator().manual_seed(7)
    recurrent = model.config.family in (*CELLS, *PAIRS)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(1 + 0.3 * noise)
        elif recurrent:
            outside = name.endswith(("embedding.weight", "head.weight"))
            parameter.copy_((2.5 if outside else 0.7) * noise)
        else:
            parameter.copy_(0.3 * noise)
    return model.eval()


@functools.cache
def pair_of(case: str) -> Pair:
    """The network of a case with wide weights, and its oracle."""
    numbers, expected, named = CASES[case]
    model = scatter(api.build(case.split()[0], dtype="float64", **numbers()))
    return Pair(model, Oracle(model, expected, named))


def inputs(pair: Pair) -> tuple[torch.Tensor, ...]:
    """What a network reads: a text, or a source and a target."""
    if pair.config.family in PAIRS:
        return parity_encdec.draw_source(pair), parity_encdec.draw_target(pair)
    return (parity.draw_tokens(pair),)


@torch.no_grad()
def logits_error(pair: Pair) -> float:
    """A full pass over three rows."""
    given = inputs(pair)
    return parity.relative_error(pair.ours(*given), pair.theirs.expected(pair.ours, *given))


def gradient_errors(pair: Pair) -> dict[str, float]:
    """The error of every parameter's gradient, by its name; over one row, as oracles are slow."""
    given, parameters = [part[:1] for part in inputs(pair)], dict(pair.ours.named_parameters())
    found, expected = pair.ours(*given), pair.theirs.expected(pair.ours, *given)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(found.shape, generator=generator, dtype=found.dtype)
    ours, theirs = (
        dict(
            zip(
                parameters,
                torch.autograd.grad((logits * weight).sum(), list(parameters.values())),
                strict=True,
            )
        )
        for logits in (found, expected)
    )
    assert all(wanted.norm() > 0 for wanted in theirs.values())
    return {
        name: ((ours[name] - wanted).norm() / parity.scale_of(name, ours, wanted)).item()
        for name, wanted in theirs.items()
    }


def round_trip_error(pair: Pair, folder: Path) -> float:
    """Our own folder, written and read: every tensor as it was, and the logits."""
    stemma.save(pair.ours, None, folder, overwrite=True)
    again = stemma.load(folder, dtype="float64")[0]
    assert again.config == pair.config
    for name, value in pair.ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    given = inputs(pair)
    return parity.relative_error(again(*given), pair.ours(*given).detach())


def laws(pair: Pair) -> Any:
    """The module that measures what needs no oracle of ours: padding, caches, rows alone."""
    return parity_encdec if pair.config.family in PAIRS else parity
