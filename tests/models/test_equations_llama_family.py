"""Llama and its descendants against the papers' equations, in plain double precision.

Not a line of the package is used here: the oracle may be wrong as well. What the families share is
written once; `SAYINGS` says where each differs.

Axes: T time, H heads, D width of one head, C width, P rotated pairs
"""

import math
from types import SimpleNamespace

import pytest
import torch

from stemma.nn.context import Context
from tests.models.parity import LIMIT, cases, draw_tokens, pair_of, relative_error
from tests.models.test_equations import gpt2_mlp, llama_mlp, normalise

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "chatglm2")
CASES = [case for case in cases() if case.split()[0] in FAMILIES]


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def pair(request):
    return pair_of(request.param)


# What the families say differently: the window of a block, the base and scaling of its angles.


def in_some(config, index):
    return config.window if index in config.windowed else None


def five_of_six(config, index):
    if config.windowed is None:
        return config.window if (index + 1) % 6 else None
    return in_some(config, index)


SAYINGS = {
    "llama": {"window": lambda config, index: None},
    "mistral": {"window": lambda config, index: config.window},
    "qwen2": {"window": in_some},
    "qwen3": {"window": in_some},
    "gemma3": {"window": five_of_six},
    "chatglm2": {"window": lambda config, index: None},
}


def ramp(pair, scaling, dim, base):
    """arXiv:2309.00071, equations 13 and 14, the ends of the ramp at whole pairs unless told."""
    ends = [
        dim * math.log(scaling.context / (turns * 2 * math.pi)) / (2 * math.log(base))
        for turns in (scaling.fast, scaling.slow)
    ]
    low, high = (math.floor(ends[0]), math.ceil(ends[1])) if scaling.whole else ends
    low, high = max(low, 0), min(high, dim - 1)
    return min(1.0, max(0.0, (pair - low) / (high - low if high != low else 0.001)))


def frequency(pair, dim, base, scaling):
    """Radians a position of one pair, by the paper of the scheme."""
    plain = base ** (-2 * pair / dim)
    if scaling.kind == "linear":  # arXiv:2306.15595, equation 4
        return plain / scaling.factor
    if scaling.kind == "yarn":
        slow = ramp(pair, scaling, dim, base)
        return (1 - slow) * plain + slow * plain / scaling.factor
    if scaling.kind == "llama3":  # arXiv:2407.21783, section 3.4.3, and Meta's code
        turns = scaling.context * plain / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - scaling.slow) / (scaling.fast - scaling.slow)))
        return (1 - share) * plain / scaling.factor + share * plain
    return plain  # unscaled, and what grows with the text but has not begun to


def sharpening(scaling):
    """arXiv:2309.00071, equation 22."""
    if scaling.kind != "yarn":
        return 1.0
    given = scaling.temperature
    return 0.1 * math.log(scaling.factor) + 1 if given is None else given


def turn(x_TD, dim, base, scaling, *, neighbours):
    """arXiv:2104.09864, equation 34, with halves or, as written there, with neighbours."""
    turned_TD, factor = x_TD.clone(), sharpening(scaling)
    for place in range(len(x_TD)):
        for pair in range(dim // 2):
            i, j = (2 * pair, 2 * pair + 1) if neighbours else (pair, pair + dim // 2)
            angle = place * frequency(pair, dim, base, scaling)
            a, b = x_TD[place, i], x_TD[place, j]
            turned_TD[place, i] = factor * (a * math.cos(angle) - b * math.sin(angle))
            turned_TD[place, j] = factor * (a * math.sin(angle) + b * math.cos(angle))
    return turned_TD


def attend(w, x_TC, config, window, angles):
    """arXiv:1706.03762, equation 1, head by head, a query seeing at most the last `window`."""
    dim, share = config.head_dim, config.num_heads // config.num_kv_heads
    gemma, scale = config.family == "gemma3", math.sqrt(config.head_dim)
    if gemma:
        scale = math.sqrt(config.query_scalar)

    def project(name, head):
        rows = slice(head * dim, (head + 1) * dim)
        y_TD = x_TC @ w[f"attention.{name}.weight"][rows].T
        y_TD = y_TD + w[f"attention.{name}.bias"][rows] if f"attention.{name}.bias" in w else y_TD
        weight_D = w.get(f"attention.{name}_norm.weight")
        return y_TD if weight_D is None else normalise(y_TD, weight_D + gemma, config.norm_eps)

    mixed, distance_TT = [], torch.arange(len(x_TC))[:, None] - torch.arange(len(x_TC))
    for head in range(config.num_heads):
        query_TD, key_TD = angles(project("query", head)), angles(project("key", head // share))
        scores_TT = query_TD @ key_TD.T / scale
        scores_TT[distance_TT < 0] = -math.inf
        scores_TT[distance_TT >= (window or math.inf)] = -math.inf
        mixed.append(scores_TT.softmax(-1) @ project("value", head // share))
    return torch.cat(mixed, -1) @ w["attention.output.weight"].T + w.get("attention.output.bias", 0)


def biased_mlp(w, x_TC):
    """arXiv:2002.05202, equation 6, with SiLU and with biases."""
    gate = x_TC @ w["mlp.gate.weight"].T + w["mlp.gate.bias"]
    up = x_TC @ w["mlp.up.weight"].T + w["mlp.up.bias"]
    return (gate * gate.sigmoid() * up) @ w["mlp.down.weight"].T + w["mlp.down.bias"]


def gelu_mlp(w, x_TC):
    """arXiv:2002.05202, equation 6, with the tanh form of GELU."""
    eye = torch.eye(len(w["mlp.gate.weight"]), dtype=x_TC.dtype)
    plain = {"mlp.up.weight": w["mlp.gate.weight"], "mlp.down.weight": eye}
    gate = gpt2_mlp({**plain, "mlp.up.bias": 0, "mlp.down.bias": 0}, x_TC)
    return (gate * (x_TC @ w["mlp.up.weight"].T)) @ w["mlp.down.weight"].T


def mlp_of(config):
    if config.family == "gemma3":
        return gelu_mlp
    return biased_mlp if getattr(config, "mlp_bias", False) else llama_mlp


def reference(state, config, tokens_T):
    gemma = config.family == "gemma3"
    x_TC = state["embedding.weight"][tokens_T] * (math.sqrt(config.width) if gemma else 1)
    for index in range(config.depth):
        prefix = f"blocks.{index}."
        w = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        window = SAYINGS[config.family]["window"](config, index)
        local = gemma and window is not None
        base = config.local_rope_base if local else config.rope_base
        scaling = config.local_rope_scaling if local else config.rope_scaling
        dim = getattr(config, "rotary_dim", config.head_dim)

        def angles(y_TD, dim=dim, base=base, scaling=scaling):
            return turn(y_TD, dim, base, scaling, neighbours=config.family == "chatglm2")

        def norm(y_TC, name, w=w):
            return normalise(y_TC, w[f"{name}.weight"] + gemma, config.norm_eps)

        for name, layer in (
            ("attention", lambda y, w=w, at=window, by=angles: attend(w, y, config, at, by)),
            ("mlp", lambda y, w=w: mlp_of(config)(w, y)),
        ):
            update_TC = layer(norm(x_TC, f"{name}_norm"))
            x_TC = x_TC + (norm(update_TC, f"{name}_post_norm") if gemma else update_TC)
    x_TC = normalise(x_TC, state["norm.weight"] + gemma, config.norm_eps)
    return x_TC @ state.get("head.weight", state["embedding.weight"]).T


def numbers_of(config):
    """Every number of a config, as the equations here read them."""
    numbers = {name: getattr(config, name) for name in type(config).model_fields}
    return {**numbers, "family": config.family}


@torch.no_grad()
def test_logits_equal_the_equations(pair):
    state = {name: value.double() for name, value in pair.ours.state_dict().items()}
    tokens_T = draw_tokens(pair, rows=1)[0]
    config = SimpleNamespace(**numbers_of(pair.ours.config))
    found = pair.ours(tokens_T[None])[0]
    assert relative_error(found, reference(state, config, tokens_T)) <= LIMIT


@torch.no_grad()
def test_packed_documents_are_as_each_alone(pair):
    tokens_BT = draw_tokens(pair, rows=2)
    ids_BT = torch.tensor([[0] * 8 + [1] * 5, [0] * 3 + [1] * 10])
    packed = pair.ours(tokens_BT, Context(document_ids_BT=ids_BT))
    for row in range(2):
        for document in range(2):
            its = ids_BT[row] == document
            alone = pair.ours(tokens_BT[row : row + 1, its])[0]
            assert relative_error(packed[row, its], alone) <= LIMIT


@pytest.mark.parametrize(
    "case, change",
    [
        ("llama own head width tied", {"rope_base": 4_900.0}),
        ("mistral window", {"window": 5}),
        ("mistral window", {"window": 3}),
        ("qwen2 mixed windows", {"windowed": (0, 1)}),
        ("qwen3", {"norm_eps": 0.1}),
        ("gemma3 seven blocks", {"query_scalar": 15}),
        ("gemma3 seven blocks", {"local_rope_base": 9_000.0}),
        ("gemma3 seven blocks", {"windowed": (0, 1, 2, 3, 4, 5, 6)}),
        ("chatglm2", {"rotary_dim": 4}),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_reference_knows_a_wrong_number(case, change):
    pair = pair_of(case)
    state = {name: value.double() for name, value in pair.ours.state_dict().items()}
    tokens_T = draw_tokens(pair, rows=1)[0]
    wrong = SimpleNamespace(**{**numbers_of(pair.ours.config), **change})
    assert relative_error(pair.ours(tokens_T[None])[0], reference(state, wrong, tokens_T)) > LIMIT
