"""GPT-1, GPT-3, GPT-NeoX, BLOOM and Baichuan against the papers, in plain double precision.

Not a line of the package is in the equations: the oracle may be wrong as well.

Axes: T time, H heads, D width of one head, C width
"""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from stemma.nn.context import Context
from tests.models.parity import cases, draw_tokens, pair_of, relative_error
from tests.models.test_equations import gpt2_mlp, normalise, rotate

FAMILIES = ("gpt1", "gpt3", "neox", "bloom", "baichuan")
SCALED = ("linear", "yarn")  # angles for longer texts have tests of their own
CASES = [
    case
    for case in cases()
    if case.split()[0] in FAMILIES and not any(word in case for word in SCALED)
]
EXACT = 1e-9
SINGLE = 1e-5  # angles and slopes are in single precision


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def pair(request):
    return pair_of(request.param)


def part(state, prefix):
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def norm(w, name, x_TC, eps):
    return normalise(x_TC, w[f"{name}.weight"], eps, w.get(f"{name}.bias"))


def attend(w, x_TC, heads, *, turn=lambda y_TD: y_TD, scale=None, slopes=None, band=None):
    """arXiv:1706.03762, equation 1, and what the families do to the scores."""
    length, width = x_TC.shape
    dim, mixed = width // heads, []
    for head in range(heads):
        rows = slice(head * dim, (head + 1) * dim)
        query_TD, key_TD, value_TD = (
            x_TC @ w[f"attention.{name}.weight"][rows].T
            + (w[f"attention.{name}.bias"][rows] if f"attention.{name}.bias" in w else 0)
            for name in ("query", "key", "value")
        )
        query_TD, key_TD = turn(query_TD), turn(key_TD)
        for t in range(length):
            first = 0 if band is None else max(0, t - band + 1)
            score_S = key_TD[first : t + 1] @ query_TD[t] * (scale or dim**-0.5)
            if slopes:  # arXiv:2108.12409, section 3
                score_S = score_S - slopes[head] * (t - torch.arange(first, t + 1))
            weight_S = score_S.exp() / score_S.exp().sum()
            mixed.append(weight_S @ value_TD[first : t + 1])
    mixed_TC = torch.stack(mixed).view(heads, length, dim).transpose(0, 1).flatten(1)
    return mixed_TC @ w["attention.output.weight"].T + w.get("attention.output.bias", 0)


def mlp(w, x_TC, activation):
    h = x_TC @ w["mlp.up.weight"].T + w["mlp.up.bias"]
    if activation == "gelu_tanh":
        return gpt2_mlp(w, x_TC)
    if activation == "gelu":  # arXiv:1606.08415, section 2
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    if activation == "silu":
        h = h / (1 + (-h).exp())
    if activation == "relu":
        h = h.clamp(min=0)
    return h @ w["mlp.down.weight"].T + w["mlp.down.bias"]


def slopes_of(heads):
    """2^(-8/n), 2^(-16/n), …; for other n the next lower power's, then every second of twice it."""
    power = max(2**i for i in range(8) if 2**i <= heads)
    ours = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return ours if power == heads else ours + slopes_of(2 * power)[::2][: heads - power]


def gpt1(w, x_TC, c, index):
    """Norms behind the sublayers, "Improving language understanding…", section 4.1."""
    x_TC = norm(w, "attention_norm", x_TC + attend(w, x_TC, c.num_heads), c.norm_eps)
    return norm(w, "mlp_norm", x_TC + mlp(w, x_TC, c.activation), c.norm_eps)


def gpt3(w, x_TC, c, index):
    """Bands by turns, arXiv:2005.14165, section 2.1."""
    band = c.windows[index % len(c.windows)]
    normed_TC = norm(w, "attention_norm", x_TC, c.norm_eps)
    x_TC = x_TC + attend(w, normed_TC, c.num_heads, scale=c.score_scale, band=band)
    return x_TC + mlp(w, norm(w, "mlp_norm", x_TC, c.norm_eps), c.activation)


def neox(w, x_TC, c, index):
    """Attention and MLP side by side, a share of each head turns, arXiv:2204.06745, section 2.1."""
    turning = int(c.width // c.num_heads * c.rotary_fraction)

    def turn(y_TD):
        return torch.cat((rotate(y_TD[:, :turning], c.rope_base), y_TD[:, turning:]), -1)

    mixed_TC = attend(w, norm(w, "attention_norm", x_TC, c.norm_eps), c.num_heads, turn=turn)
    read_TC = x_TC if c.parallel else x_TC + mixed_TC
    return x_TC + mixed_TC + mlp(w, norm(w, "mlp_norm", read_TC, c.norm_eps), c.activation)


def bloom(w, x_TC, c, index):
    """Linear biases, arXiv:2211.05100, section 3.2.2."""
    normed_TC = norm(w, "attention_norm", x_TC, c.norm_eps)
    x_TC = x_TC + attend(w, normed_TC, c.num_heads, slopes=slopes_of(c.num_heads))
    return x_TC + mlp(w, norm(w, "mlp_norm", x_TC, c.norm_eps), "gelu_tanh")


def baichuan(w, x_TC, c, index):
    """Rotation or linear biases, and arXiv:2002.05202, equation 6, with SiLU."""
    normed_TC, given = norm(w, "attention_norm", x_TC, c.norm_eps), {}
    if c.position["kind"] == "rope":
        given["turn"] = lambda y_TD: rotate(y_TD, c.position["base"])
    else:
        given["slopes"] = slopes_of(c.num_heads)
    x_TC = x_TC + attend(w, normed_TC, c.num_heads, **given)
    h_TC = norm(w, "mlp_norm", x_TC, c.norm_eps)
    gate, up = h_TC @ w["mlp.gate.weight"].T, h_TC @ w["mlp.up.weight"].T
    return x_TC + (gate / (1 + (-gate).exp()) * up) @ w["mlp.down.weight"].T


BLOCKS = {"gpt1": gpt1, "gpt3": gpt3, "neox": neox, "bloom": bloom, "baichuan": baichuan}


def reference(state, family, c, tokens_T):
    x_TC = state["embedding.weight"][tokens_T]
    if "position.weight" in state:
        x_TC = x_TC + state["position.weight"][: len(tokens_T)]
    if "embedding_norm.weight" in state:
        x_TC = norm(state, "embedding_norm", x_TC, c.norm_eps)
    for index in range(c.depth):
        x_TC = BLOCKS[family](part(state, f"blocks.{index}."), x_TC, c, index)
    if "norm.weight" in state:
        x_TC = norm(state, "norm", x_TC, c.norm_eps)
    head_VC = state.get("head.weight", state["embedding.weight"])
    if getattr(c, "norm_head", False):  # arXiv:2309.10305, section 2.5
        head_VC = head_VC / head_VC.square().sum(1, keepdim=True).sqrt()
    return x_TC @ head_VC.T


def compared(pair, **change):
    """The error of our network in double precision against the equations with these numbers."""
    model, tokens_T = copy.deepcopy(pair.ours).double(), draw_tokens(pair, rows=1)[0]
    numbers = SimpleNamespace(**{**model.config.model_dump(), **change})
    expected = reference(model.state_dict(), model.config.family, numbers, tokens_T)
    return relative_error(model(tokens_T[None])[0], expected)


@torch.no_grad()
def test_logits_equal_the_equations(pair):
    rounded = pair.ours.config.family not in ("gpt1", "gpt3")
    assert compared(pair) <= (SINGLE if rounded else EXACT)


@torch.no_grad()
def test_in_double_precision_decoding_and_packing_change_nothing(pair):
    """Chunks with a cache are one full pass, and documents packed in a row are each alone."""
    model, tokens_BT = copy.deepcopy(pair.ours).double(), draw_tokens(pair)
    whole_BTV = model(tokens_BT)
    cache = model.new_cache(tokens_BT.shape[1])
    chunks = [model(part, Context(caches=cache)) for part in tokens_BT.split((5, 1, 1, 6), 1)]
    assert relative_error(torch.cat(chunks, 1), whole_BTV) <= EXACT
    first, rest = tokens_BT.split((6, 7), 1)
    positions_BT = torch.cat((torch.arange(6), torch.arange(7))).expand(len(tokens_BT), -1)
    ids_BT = torch.tensor([0] * 6 + [1] * 7).expand(len(tokens_BT), -1)
    packed = model(tokens_BT, Context(document_ids_BT=ids_BT, positions_BT=positions_BT))
    assert relative_error(packed, torch.cat((model(first), model(rest)), 1)) <= EXACT


WRONG = {
    "gpt1": ("gpt1", [{"norm_eps": 0.1}, {"num_heads": 3}, {"activation": "gelu"}]),
    "gpt3": ("gpt3", [{"windows": (None,)}, {"windows": (4, None)}, {"score_scale": 0.5}]),
    "neox": (
        "neox serial, tied",
        [{"parallel": True}, {"rotary_fraction": 0.2}, {"rope_base": 5e3}, {"activation": "relu"}],
    ),
    "bloom": ("bloom six heads", [{"norm_eps": 0.1}, {"num_heads": 8}]),
    "baichuan": (
        "baichuan 7b",
        [{"position": {"kind": "alibi"}}, {"norm_head": True}, {"norm_eps": 0.1}],
    ),
    "baichuan 2": (
        "baichuan 2 13b",
        [{"position": {"kind": "rope", "base": 1e4}}, {"norm_head": 0}],
    ),
}


@pytest.mark.parametrize("name", WRONG)
@torch.no_grad()
def test_the_reference_knows_a_wrong_network(name):
    """The comparison itself can fail: any one number of the config, changed, is seen."""
    case, changes = WRONG[name]
    for change in changes:
        assert compared(pair_of(case), **change) > 1e-4, change
