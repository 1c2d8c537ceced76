"""Llama and GPT-2 against the papers' equations, once more and in plain double precision.

Not a line of the package is used here: the oracle may be wrong as well.

Axes: T time, H heads, D width of one head, C width
"""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.models.parity import LIMIT, cases, draw_tokens, pair_of, relative_error

PLAIN = ("llama multi-head", "llama grouped", "llama grouped tied", "llama multi-query")
GPT2 = [case for case in cases() if case.split()[0] == "gpt2" and "relu" not in case]
CASES = [*GPT2, *PLAIN]


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def pair(request):
    return pair_of(request.param)


def normalise(x_TC, weight_C, eps, bias_C=None):
    if bias_C is not None:  # arXiv:1607.06450, equation 4
        x_TC = x_TC - x_TC.mean(-1, keepdim=True)
    scaled_TC = x_TC / (x_TC.square().mean(-1, keepdim=True) + eps).sqrt() * weight_C
    return scaled_TC if bias_C is None else scaled_TC + bias_C


def rotate(x_TD, base):
    """arXiv:2104.09864, equation 34: pair (i, i + D/2) turns by position * base^(-2i/D)."""
    half = x_TD.shape[-1] // 2
    turned_TD = torch.empty_like(x_TD)
    for position in range(len(x_TD)):
        for i in range(half):
            angle = position * base ** (-2 * i / (2 * half))
            a, b = x_TD[position, i], x_TD[position, i + half]
            turned_TD[position, i] = a * math.cos(angle) - b * math.sin(angle)
            turned_TD[position, i + half] = a * math.sin(angle) + b * math.cos(angle)
    return turned_TD


def attend(w, x_TC, config, turn):
    """arXiv:1706.03762, equation 1, head by head, a query seeing itself and what is before it."""
    heads, dim = config.num_heads, config.width // config.num_heads
    share = heads // getattr(config, "num_kv_heads", heads)

    def project(name, head):
        rows = slice(head * dim, (head + 1) * dim)
        y_TD = x_TC @ w[f"attention.{name}.weight"][rows].T
        return y_TD + w[f"attention.{name}.bias"][rows] if f"attention.{name}.bias" in w else y_TD

    mixed = []
    for head in range(heads):
        query_TD, key_TD = turn(project("query", head)), turn(project("key", head // share))
        scores_TT = query_TD @ key_TD.T / math.sqrt(dim)
        hidden_TT = torch.ones_like(scores_TT).triu(1).bool()
        scores_TT[hidden_TT] = -math.inf
        weight_TT = scores_TT.exp() / scores_TT.exp().sum(-1, keepdim=True)
        mixed.append(weight_TT @ project("value", head // share))
    return torch.cat(mixed, -1) @ w["attention.output.weight"].T + w.get("attention.output.bias", 0)


def llama_mlp(w, x_TC):
    """arXiv:2002.05202, equation 6, with SiLU."""
    gate = x_TC @ w["mlp.gate.weight"].T
    return (gate / (1 + (-gate).exp()) * (x_TC @ w["mlp.up.weight"].T)) @ w["mlp.down.weight"].T


def gpt2_mlp(w, x_TC):
    """arXiv:1606.08415, section 2: the tanh approximation of GELU."""
    h = x_TC @ w["mlp.up.weight"].T + w["mlp.up.bias"]
    h = 0.5 * h * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())
    return h @ w["mlp.down.weight"].T + w["mlp.down.bias"]


def reference(state, config, tokens_T):
    llama_like, eps = "position.weight" not in state, config.norm_eps
    x_TC = state["embedding.weight"][tokens_T]
    if not llama_like:
        x_TC = x_TC + state["position.weight"][: len(tokens_T)]
    for index in range(config.depth):
        prefix = f"blocks.{index}."
        w = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        turn = (lambda y_TD: rotate(y_TD, config.rope_base)) if llama_like else (lambda y_TD: y_TD)
        normed = normalise(x_TC, w["attention_norm.weight"], eps, w.get("attention_norm.bias"))
        x_TC = x_TC + attend(w, normed, config, turn)
        normed = normalise(x_TC, w["mlp_norm.weight"], eps, w.get("mlp_norm.bias"))
        x_TC = x_TC + (llama_mlp if llama_like else gpt2_mlp)(w, normed)
    x_TC = normalise(x_TC, state["norm.weight"], eps, state.get("norm.bias"))
    return x_TC @ state.get("head.weight", state["embedding.weight"]).T


@torch.no_grad()
def test_logits_equal_the_equations(pair):
    state = {name: value.double() for name, value in pair.ours.state_dict().items()}
    tokens_T = draw_tokens(pair, rows=1)[0]
    found = pair.ours(tokens_T[None])[0]
    assert relative_error(found, reference(state, pair.ours.config, tokens_T)) <= LIMIT


def test_the_reference_knows_a_wrong_network(pair):
    """The comparison itself can fail: any one number of the config, changed, is seen."""
    state = {name: value.double() for name, value in pair.ours.state_dict().items()}
    tokens_T, right = draw_tokens(pair, rows=1)[0], pair.ours.config.model_dump()
    wrong = [{"norm_eps": 0.1}, {"num_heads": 1}]
    if pair.ours.config.family == "llama":
        wrong = [{"norm_eps": 0.1}, {"rope_base": 4_000.0}]
    for change in wrong:
        other = reference(state, SimpleNamespace(**{**right, **change}), tokens_T)
        assert relative_error(pair.ours(tokens_T[None])[0].detach(), other) > LIMIT
