"""Encoder-decoders and BERT against the papers' equations, once more and in plain double precision.

Not a line of the package is used here: the oracle may be wrong as well.

Axes: S source, T target, D width of one head, C width
"""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

import stemma
from stemma.nn.context import Context
from tests.models.parity_encdec import (
    LIMIT,
    cases_of,
    close,
    draw_pair,
    draw_source,
    draw_target,
    pair_of,
    scatter,
)
from tests.models.test_equations import normalise


def sines(length, width, *, interleaved):
    """arXiv:1706.03762, section 3.5: sin and cos of position / 10000^(2i/width)."""
    table = torch.zeros(length, width, dtype=torch.float64)
    for position in range(length):
        for i in range(width // 2):
            angle = position / 10_000 ** (2 * i / width)
            places = (2 * i, 2 * i + 1) if interleaved else (i, width // 2 + i)
            table[position, places[0]] = math.sin(angle)
            table[position, places[1]] = math.cos(angle)
    return table


def activate(x, name):
    return {
        "relu": lambda: x.clamp(min=0),
        "silu": lambda: x / (1 + (-x).exp()),
        "gelu": lambda: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        "gelu_tanh": lambda: (
            0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())
        ),
    }[name]()


def part(state, prefix):
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def attend(w, x_TC, y_SC, heads, *, causal=False, scale=None, bias=None):
    """arXiv:1706.03762, equation 1, head by head; `bias(head, t, s)` is added to the scores."""
    query, key, value = (linear(w, n, s) for n, s in zip(
        ("query", "key", "value"), (x_TC, y_SC, y_SC), strict=True
    ))  # fmt: skip
    dim, mixed = query.shape[1] // heads, []
    for head in range(heads):
        rows = slice(head * dim, (head + 1) * dim)
        scores = query[:, rows] @ key[:, rows].T * (dim**-0.5 if scale is None else scale)
        for t in range(scores.shape[0]):
            for s in range(scores.shape[1]):
                if bias is not None:
                    scores[t, s] += bias(head, t, s)
                if causal and s > t:
                    scores[t, s] = -math.inf
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        mixed.append(weights @ value[:, rows])
    return linear(w, "output", torch.cat(mixed, -1))


def layer_norm(w, name, x, eps):
    return normalise(x, w[f"{name}_norm.weight"], eps, w[f"{name}_norm.bias"])


def join(stream, update, norm, norms):
    """One sublayer's step: post (2017), pre (arXiv:2002.04745), dual (arXiv:2304.14802, 2.2)."""
    x, dual = stream
    if norms == "pre":
        return x + update(norm(x)), dual
    change = update(x)
    return norm(x + change), dual + change


def transformer_half(state, side, x_TC, y_SC, c):
    heads = c.num_heads if side == "decoder" else c.encoder_num_heads
    stream, state = (x_TC, x_TC), part(state, f"{side}.")
    for index in range(c.depth if side == "decoder" else c.encoder_depth):
        w = part(state, f"blocks.{index}.")

        def itself(x, w=w):
            return attend(part(w, "attention."), x, x, heads, causal=side == "decoder")

        def source(x, w=w):
            return attend(part(w, "cross_attention."), x, y_SC, heads)

        def mlp(x, w=w):
            return linear(w, "mlp.down", activate(linear(w, "mlp.up", x), c.activation))

        steps = {"attention": itself, "cross_attention": source, "mlp": mlp}
        for name, update in steps.items():
            if f"{name}_norm.weight" in w:
                stream = join(
                    stream, update, lambda x, n=name, w=w: layer_norm(w, n, x, c.norm_eps), c.norms
                )
    x, dual = stream
    if c.norms == "post":
        return x
    last = normalise(
        dual if c.norms == "dual" else x, state["norm.weight"], c.norm_eps, state["norm.bias"]
    )
    return x + last if c.norms == "dual" else last


def transformer(state, c, source_S, target_T):
    scale = math.sqrt(c.width) if c.scaled else 1.0
    embedded = [
        table[tokens] * scale + sines(len(tokens), c.width, interleaved=c.interleaved)
        for tokens, table in (
            (source_S, state.get("source_embedding.weight", state["embedding.weight"])),
            (target_T, state["embedding.weight"]),
        )
    ]
    memory_SC = transformer_half(state, "encoder", embedded[0], None, c)
    x_TC = transformer_half(state, "decoder", embedded[1], memory_SC, c)
    return x_TC @ state.get("head.weight", state["embedding.weight"]).T + state.get("head.bias", 0)


def bucket(distance, count, farthest, *, both_directions):
    """arXiv:1910.10683, section 2.1, as released: near distances alone, far ones in growing bins.

    `distance` is the key's place less the query's.
    """
    first = 0
    if both_directions:
        count //= 2
        first = count if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(0, -distance)
    near = count // 2
    if distance < near:
        return first + distance
    grown = math.log(distance / near) / math.log(farthest / near) * (count - near)
    return first + min(count - 1, near + int(grown + 1e-6))


def t5_half(state, side, x_TC, y_SC, c):
    state, decodes = part(state, f"{side}."), side == "decoder"
    step = getattr(c, "sparse_step" if decodes else "encoder_sparse_step", 0)

    def bias(head, t, s):
        index = bucket(s - t, c.num_buckets, c.farthest, both_directions=not decodes)
        return state["relative.weight"][index, head]

    for index in range(c.depth if decodes else c.encoder_depth):
        w = part(state, f"blocks.{index}.")
        y = normalise(x_TC, w["attention_norm.weight"], c.norm_eps)
        own = part(w, "attention.")
        x_TC = x_TC + attend(own, y, y, c.num_heads, causal=decodes, scale=1.0, bias=bias)
        if decodes:
            y = normalise(x_TC, w["cross_attention_norm.weight"], c.norm_eps)
            cross = part(w, "cross_attention.")
            x_TC = x_TC + attend(cross, y, y_SC, c.num_heads, scale=1.0)
        sparse = step == 1 or (step > 0 and index % step == 1)
        y = normalise(x_TC, w["moe_norm.weight" if sparse else "mlp_norm.weight"], c.norm_eps)
        x_TC = x_TC + (switch_mlp(w, y, c) if sparse else t5_mlp(w, y, c))
    return normalise(x_TC, state["norm.weight"], c.norm_eps)


def t5_mlp(w, x_TC, c):
    """arXiv:2002.05202, section 2: with a gate, the function acts on the gate."""
    up = linear(w, "mlp.up", x_TC)
    if "mlp.gate.weight" not in w:
        return linear(w, "mlp.down", activate(up, c.activation))
    return linear(w, "mlp.down", activate(linear(w, "mlp.gate", x_TC), c.activation) * up)


def switch_mlp(w, x_TC, c):
    """arXiv:2101.03961, equations 1 to 3: one expert a token, while it has places."""
    taken, found = [0] * c.num_experts, torch.zeros_like(x_TC)
    places = c.expert_capacity
    if c.capacity_factor is not None:
        places = math.ceil(len(x_TC) / c.num_experts * c.capacity_factor)
    for t, x in enumerate(x_TC):
        scores = w["moe.router.weight"] @ x
        probability = scores.exp() / scores.exp().sum()
        best = int(probability.argmax())
        taken[best] += 1
        if places is not None and taken[best] > places:
            continue
        hidden = activate(w["moe.experts.up"][best] @ x, c.activation)
        found[t] = probability[best] * (w["moe.experts.down"][best] @ hidden)
    return found


def t5(state, c, source_S, target_T):
    words = state["embedding.weight"]
    source_words = state.get("source_embedding.weight", words)
    memory_SC = t5_half(state, "encoder", source_words[source_S], None, c)
    x_TC = t5_half(state, "decoder", words[target_T], memory_SC, c)
    scaled = c.scaled_head if hasattr(c, "scaled_head") else c.tied
    x_TC = x_TC / math.sqrt(c.width) if scaled else x_TC
    return x_TC @ state.get("head.weight", words).T


def bert(state, c, tokens_T, segments_T):
    """arXiv:1810.04805, figure 2 and appendix A.2: every head's output, by name."""
    x_TC = state["embedding.weight"][tokens_T] + state["segment.weight"][segments_T]
    x_TC = layer_norm(
        state, "embedding", x_TC + state["position.weight"][: len(tokens_T)], c.norm_eps
    )
    for index in range(c.depth):
        w = part(state, f"blocks.{index}.")
        update = attend(part(w, "attention."), x_TC, x_TC, c.num_heads)
        x_TC = layer_norm(w, "attention", x_TC + update, c.norm_eps)
        update = linear(w, "mlp.down", activate(linear(w, "mlp.up", x_TC), c.activation))
        x_TC = layer_norm(w, "mlp", x_TC + update, c.norm_eps)
    found = {"hidden": x_TC}
    if c.masked_head:
        y_TC = activate(linear(state, "head.dense", x_TC), c.activation)
        y_TC = normalise(y_TC, state["head.norm.weight"], c.norm_eps, state["head.norm.bias"])
        words = state.get("head.weight", state["embedding.weight"])
        found["logits"] = y_TC @ words.T + state["head.bias"]
    if c.pooler:
        found["pooled"] = linear(state, "pooler.dense", x_TC[0]).tanh()
    if c.pair_head:
        found["next_sentence"] = linear(state, "pair_head", found["pooled"])
    if c.num_labels:
        found["classify"] = linear(state, "classifier", found["pooled"])
    return found


OWN = {  # networks that no oracle has
    "transformer paper": ("transformer", {"interleaved": True, "norms": "post"}),
    "transformer pre": ("transformer", {"norms": "pre", "tied": False, "encoder_depth": 3}),
    "transformer dual": ("transformer", {"norms": "dual", "scaled": False, "encoder_num_heads": 1}),
    "switch shares": ("switch", {"num_experts": 3, "capacity_factor": 1.0, "head_dim": 5}),
    "switch dropless": ("switch", {"num_experts": 2, "capacity_factor": None, "sparse_step": 1}),
}
SMALL = {"width": 24, "depth": 2, "num_heads": 3, "hidden": 31, "vocab_size": 47}
CASES = [*cases_of("transformer", "t5", "switch"), *OWN]
EXACT = 1e-9  # both sides are in double precision
REFERENCES = {"transformer": transformer, "t5": t5, "switch": t5}


def network(case):
    if case not in OWN:
        return copy.deepcopy(pair_of(case).ours).double()
    family, numbers = OWN[case]
    return scatter(stemma.build(family, **{**SMALL, **numbers})).double()


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def asked(request):
    """A network, a source and a target, and what it answers."""
    model = network(request.param)
    pair = SimpleNamespace(config=model.config)
    source_BS, target_BT = draw_source(pair, rows=1), draw_target(pair, rows=1)
    with torch.no_grad():
        return model, source_BS[0], target_BT[0], model(source_BS, target_BT)[0]


def answer(model, source_S, target_T, **changed):
    state = model.state_dict()
    numbers = SimpleNamespace(**{**model.config.model_dump(), **changed})
    return REFERENCES[model.config.family](state, numbers, source_S, target_T)


def test_logits_equal_the_equations(asked):
    model, source_S, target_T, found_TV = asked
    assert close(found_TV, answer(model, source_S, target_T)) <= EXACT


def test_the_reference_knows_a_wrong_network(asked):
    """The comparison itself can fail: any one number of the config, changed, is seen."""
    model, source_S, target_T, found_TV = asked
    wrong = [{"norm_eps": 0.1}]
    if model.config.family == "transformer":
        wrong += [
            {"interleaved": not model.config.interleaved},
            {"scaled": not model.config.scaled},
        ]
    else:
        wrong += [{"farthest": 20 if model.config.num_buckets > 8 else 100}]
    for change in wrong:
        assert close(found_TV, answer(model, source_S, target_T, **change)) > LIMIT, change


@pytest.mark.parametrize("case", cases_of("bert"), ids=lambda name: name.replace(" ", "-"))
@torch.no_grad()
def test_every_head_of_bert_equals_the_equations(case):
    pair = pair_of(case).exact
    state = pair.ours.state_dict()
    tokens_BT, segments_BT = draw_pair(pair)
    expected = bert(state, pair.config, tokens_BT[0], segments_BT[0])
    x_BTC, _ = pair.ours.hidden(tokens_BT[:1], Context(segments_BT=segments_BT[:1]))
    for name, value in expected.items():
        found = x_BTC if name == "hidden" else getattr(pair.ours, name)(x_BTC)
        assert close(found[0], value) <= EXACT, name
    other = bert(state, SimpleNamespace(**{**pair.config.model_dump(), "norm_eps": 0.1}),
                 tokens_BT[0], segments_BT[0])  # fmt: skip
    assert close(x_BTC[0], other["hidden"]) > LIMIT
