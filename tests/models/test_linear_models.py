"""Linear Transformer, Performer, fast weights and Delta network: whole models and their laws.

The models are written here once more, token by token in plain double precision, without a line of
the package's networks. Weights are drawn wide, so that every path matters.

Axes: B batch, T time, V vocabulary, H heads, D width of one head, C model width
"""

import math

import pytest
import torch
from pydantic import ValidationError

from stemma.models import delta, fast_weight, linear, performer
from stemma.nn.context import Context
from stemma.nn.feature_map import draw_directions
from stemma.nn.initial import initialise
from stemma.nn.meta import shapes_only

CLOSE = {"rtol": 0, "atol": 1e-9}
VOCAB, LENGTH = 50, 9
NUMBERS = {"width": 24, "depth": 2, "num_heads": 4, "vocab_size": VOCAB, "context": 32}
FAMILIES = {
    "linear": (linear, linear.LinearConfig, {}),
    "performer": (performer, performer.PerformerConfig, {"features": 10, "feature_seed": 3}),
    "fast_weight": (fast_weight, fast_weight.FastWeightConfig, {"shifts": 2}),
    "delta": (delta, delta.DeltaConfig, {"shifts": 2}),
}


def config_of(family, **changed):
    _, kind, numbers = FAMILIES[family]
    return kind(**{**NUMBERS, **numbers, **changed})


def build(family, **changed):
    """A model as it is made in earnest, on no device first, with wide weights in fp64."""
    with shapes_only():
        model = FAMILIES[family][0].build(config_of(family, **changed))
    model = model.to_empty(device="cpu").double().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            norm = parameter.ndim == 1 and not name.endswith("bias")
            parameter.copy_(1 + 0.3 * noise if norm else 0.3 * noise)
    return model


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return build(family).requires_grad_(False)


def tokens_of(rows, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (rows, length), generator=generator)


# The equations, without the package.


def layer_norm(x_C, weight_C, bias_C, eps):
    x_C = x_C - x_C.mean()
    return x_C / (x_C.square().mean() + eps).sqrt() * weight_C + bias_C


def features(config, layer, x_D):
    dim = len(x_D)
    if config.family == "linear":  # arXiv:2006.16236, equation 7
        return torch.where(x_D > 0, x_D + 1, x_D.exp())
    if config.family == "performer":  # arXiv:2009.14794, lemma 1
        w, x_D = draw_directions(config.feature_seed, layer, config.features, dim), x_D / dim**0.25
        return (w @ x_D - x_D @ x_D / 2).exp() / math.sqrt(config.features)
    r = torch.cat((x_D, -x_D)).clamp(min=0)  # arXiv:2102.11174, equations 37 and 29
    pairs = [
        (i, (i + nu) % (2 * dim)) for nu in range(1, config.shifts + 1) for i in range(2 * dim)
    ]
    products = torch.stack([r[i] * r[j] for i, j in pairs])
    return products / products.sum()


def attend(config, layer, w, x_TC):
    """arXiv:2006.16236, equations 16 to 20, or arXiv:2102.11174, equations 10, 11, 20 to 25."""
    dim, mixed = config.width // config.num_heads, torch.empty_like(x_TC)
    for head in range(config.num_heads):
        rows, matrix, z = slice(head * dim, (head + 1) * dim), torch.zeros(dim, 1).double(), 0.0
        for t, x_C in enumerate(x_TC):
            q, k, v = (
                w[f"attention.{name}.weight"][rows] @ x_C + w[f"attention.{name}.bias"][rows]
                for name in ("query", "key", "value")
            )
            q, k = features(config, layer, q), features(config, layer, k)
            if config.family == "delta":
                rate = 1 / (1 + (-w["attention.beta.weight"][head] @ x_C).exp())
                v = rate * (v - matrix.expand(dim, len(k)) @ k)
            matrix, z = matrix + torch.outer(v, k), z + k
            total = z @ q if config.family in ("linear", "performer") else 1.0
            mixed[t, rows] = matrix @ q / total
    return mixed @ w["attention.output.weight"].T + w["attention.output.bias"]


def mlp(w, x_TC):
    h = x_TC @ w["mlp.up.weight"].T + w["mlp.up.bias"]
    h = 0.5 * h * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())
    return h @ w["mlp.down.weight"].T + w["mlp.down.bias"]


def places(state, config, length):
    if "position.weight" in state:
        return state["position.weight"][:length]
    table = torch.empty(length, config.width, dtype=torch.float64)  # arXiv:1706.03762, section 3.5
    for t in range(length):
        for i in range(0, config.width, 2):
            angle = t / 10_000 ** (i / config.width)
            table[t, i], table[t, i + 1] = math.sin(angle), math.cos(angle)
    return table


def reference(state, config, tokens_T):
    def norm(w, name, x_TC):
        pair = w[f"{name}.weight"], w[f"{name}.bias"]
        return torch.stack([layer_norm(x_C, *pair, config.norm_eps) for x_C in x_TC])

    x_TC = state["embedding.weight"][tokens_T] + places(state, config, len(tokens_T))
    for layer in range(config.depth):
        prefix = f"blocks.{layer}."
        w = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        x_TC = x_TC + attend(config, layer, w, norm(w, "attention_norm", x_TC))
        x_TC = x_TC + mlp(w, norm(w, "mlp_norm", x_TC))
    return norm(state, "norm", x_TC) @ state.get("head.weight", state["embedding.weight"]).T


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_logits_equal_the_equations(family, tied):
    model, tokens = build(family, tied=tied).requires_grad_(False), tokens_of(1, LENGTH)
    expected = reference(model.state_dict(), model.config, tokens[0])
    assert expected.std() >= 1
    torch.testing.assert_close(model(tokens)[0], expected, **CLOSE)


def test_gradients_equal_those_of_the_equations(family):
    model, tokens = build(family), tokens_of(1, 5)
    weight = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(1)).double()
    (model(tokens)[0] * weight).sum().backward()
    state = {n: v.clone().requires_grad_() for n, v in model.state_dict().items()}
    (reference(state, model.config, tokens[0]) * weight).sum().backward()
    for name, parameter in model.named_parameters():
        expected = state[name].grad
        assert expected.norm() > 0, name
        assert (parameter.grad - expected).norm() <= 1e-9 * expected.norm(), name


CHANGES = {
    "linear": [{"norm_eps": 0.1}, {"num_heads": 2}],
    "performer": [{"features": 5}, {"feature_seed": 4}, {"num_heads": 2}],
    "fast_weight": [{"shifts": 1}, {"num_heads": 2}],
    "delta": [{"shifts": 1}, {"norm_eps": 0.1}],
}


def test_each_number_of_the_config_is_seen(family):
    """The same weights under another number are another network."""
    model, tokens = build(family).requires_grad_(False), tokens_of(1, LENGTH)
    for change in CHANGES[family]:
        other = build(family, **change).requires_grad_(False)
        other.load_state_dict(model.state_dict())
        assert (other(tokens) - model(tokens)).abs().max() > 1e-3, change


def test_random_directions_need_not_be_saved():
    """A fresh model with the same config and weights is the same; nothing else is in a file."""
    model, tokens = build("performer").requires_grad_(False), tokens_of(1, LENGTH)
    with shapes_only():
        again = performer.build(config_of("performer"))
    again = again.to_empty(device="cpu").double().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(tokens), model(tokens))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


NAMES = """attention_norm.weight attention_norm.bias attention.query.weight attention.query.bias
attention.key.weight attention.key.bias attention.value.weight attention.value.bias
attention.output.weight attention.output.bias mlp_norm.weight mlp_norm.bias mlp.up.weight
mlp.up.bias mlp.down.weight mlp.down.bias""".split()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_parameter_names_are_the_contract(family, tied):
    block = NAMES + (["attention.beta.weight"] if family == "delta" else [])
    golden = [f"blocks.{i}.{name}" for i in range(2) for name in block]
    golden += ["embedding.weight", "norm.weight", "norm.bias"] + ([] if tied else ["head.weight"])
    golden += ["position.weight"] if family in ("linear", "performer") else []
    assert sorted(build(family, tied=tied).state_dict()) == sorted(golden)


def test_initial_weights_give_an_even_guess_and_train(family):
    """ln V at first; twenty steps on one batch go well below it."""
    model = FAMILIES[family][0].build(config_of(family))
    initialise(model, seed=1, std=model.config.initial_std, depth=2)
    tokens = tokens_of(4, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(21):
        scores = model(tokens[:, :-1]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(scores, tokens[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(losses[0] - math.log(VOCAB)) < 0.3
    assert losses[-1] < 0.5 * losses[0]


# Who sees whom.


def test_a_later_token_changes_nothing_earlier_and_all_that_follows(model):
    tokens = tokens_of(2, LENGTH)
    logits = model(tokens)
    for at in range(LENGTH):
        changed = tokens.clone()
        changed[:, at] = (tokens[:, at] + 1) % VOCAB
        other = model(changed)
        torch.testing.assert_close(other[:, :at], logits[:, :at], **CLOSE)
        assert ((other[:, at:] - logits[:, at:]).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("lengths", [(4, 5), (1, 7, 1), (3, 3, 3), (70, 30, 40)], ids=str)
def test_packed_documents_equal_documents_alone(family, lengths):
    """Also where documents begin within a chunk of the layer, and end in the next."""
    model = build(family, context=80).requires_grad_(False)
    documents = [tokens_of(2, length, seed) for seed, length in enumerate(lengths)]
    positions = torch.cat([torch.arange(length) for length in lengths])[None].expand(2, -1)
    ids = torch.cat([torch.full((length,), n) for n, length in enumerate(lengths)])
    context = Context(positions_BT=positions, document_ids_BT=ids[None].expand(2, -1))
    packed = model(torch.cat(documents, dim=1), context).split(lengths, dim=1)
    for alone, found in zip(documents, packed, strict=True):
        torch.testing.assert_close(found, model(alone), **CLOSE)


def test_documents_may_differ_between_rows_and_be_padded_at_the_end(model):
    tokens = tokens_of(2, 6)
    positions = torch.tensor([[0, 1, 2, 0, 1, -1], [0, 0, 1, 2, 3, 4]])
    ids = torch.tensor([[5, 5, 5, 9, 9, 0], [2, 3, 3, 3, 3, 3]])
    logits = model(tokens, Context(positions_BT=positions, document_ids_BT=ids))
    torch.testing.assert_close(logits[:1, 3:5], model(tokens[:1, 3:5]), **CLOSE)
    torch.testing.assert_close(logits[1:, 1:], model(tokens[1:, 1:]), **CLOSE)


def padded(rows, length, left, fill):
    tokens = torch.full((len(rows), length), fill)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    for n, row in enumerate(rows):
        span = slice(length - len(row), length) if left else slice(0, len(row))
        tokens[n, span], real[n, span] = row, True
    return tokens, real


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("fill", [0, 49])
def test_padding_is_as_if_it_were_not_there(model, left, fill):
    rows = [tokens_of(1, length, seed=length)[0] for length in (1, 4, 8)]
    tokens, real = padded(rows, 8, left, fill)
    logits = model(tokens, Context(padding_BT=real))
    for n, row in enumerate(rows):
        torch.testing.assert_close(logits[n, real[n]], model(row[None])[0], **CLOSE)


def test_padding_in_the_middle_is_as_if_it_were_not_there(model):
    row, real = tokens_of(1, 5)[0], torch.tensor([1, 0, 0, 1, 1, 0, 1, 1, 0]).bool()
    tokens = torch.zeros(1, 9, dtype=torch.long)
    tokens[0, real] = row
    logits = model(tokens, Context(padding_BT=real[None]))
    torch.testing.assert_close(logits[:, real], model(row[None]), **CLOSE)


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_row_of_nothing_but_padding_gives_numbers(model, dtype, cached):
    model = model.to(dtype).requires_grad_(True)
    real = torch.tensor([[True] * 6, [False] * 6, [False] * 5 + [True]])
    caches = model.new_cache(6) if cached else None
    logits = model(tokens_of(3, 6), Context(padding_BT=real, caches=caches))
    assert logits.isfinite().all()
    logits[real].float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# Decoding.


@pytest.mark.parametrize(
    "chunks", [(9,), (1,) * 9, (4, 5), (1, 8), (3, 1, 1, 4), (2, 3, 4)], ids=str
)
def test_cached_equals_full(model, chunks):
    tokens = tokens_of(2, 9)
    cache = model.new_cache(9)
    parts = [model(part, Context(caches=cache)) for part in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), **CLOSE)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_ragged_rows_equal_each_row_alone(model, left, step):
    lengths, rows = (2, 5, 6), tokens_of(3, 12)
    first, real = padded([rows[n, :length] for n, length in enumerate(lengths)], 6, left, 0)
    cache = model.new_cache(12)
    logits = model(first, Context(caches=cache, padding_BT=real))
    found = [[logits[n, real[n]]] for n in range(3)]
    for start in range(0, 6, step):
        positions = torch.tensor([[length + start + k for k in range(step)] for length in lengths])
        tokens = rows.gather(1, positions)
        logits = model(tokens, Context(caches=cache, positions_BT=positions))
        for n in range(3):
            found[n].append(logits[n])
    for n, length in enumerate(lengths):
        alone = model(rows[n : n + 1, : length + 6])[0]
        torch.testing.assert_close(torch.cat(found[n]), alone, **CLOSE)


def test_rows_may_pause_while_others_go_on(model):
    rows = tokens_of(2, 5)
    cache = model.new_cache(8)
    positions = torch.tensor([[0, 1, 2, -1, 3, 4], [0, -1, -1, 1, 2, 3]])
    parts = []
    for slot in positions.T:
        tokens = rows.gather(1, slot.clamp(min=0)[:, None])
        parts.append(model(tokens, Context(caches=cache, positions_BT=slot[:, None])))
    logits = torch.cat(parts, dim=1)
    for row in (0, 1):
        real = positions[row] >= 0
        alone = model(rows[row : row + 1, : int(real.sum())])[0]
        torch.testing.assert_close(logits[row, real], alone, **CLOSE)


@pytest.mark.parametrize("kept", [[0, 2], [2, 0, 1], [1], [0, 0, 2]], ids=str)
def test_selected_rows_go_on_as_if_alone(model, kept):
    rows, lengths = tokens_of(3, 9), (2, 4, 6)
    first, real = padded([rows[n, :length] for n, length in enumerate(lengths)], 6, True, 0)
    cache = model.new_cache(9)
    model(first, Context(caches=cache, padding_BT=real))
    cache.select(torch.tensor(kept))
    for more in range(3):
        positions = torch.tensor([[lengths[n] + more] for n in kept])
        context = Context(caches=cache, positions_BT=positions)
        logits = model(rows[kept].gather(1, positions), context)[:, 0]
        for found, n in zip(logits, kept, strict=True):
            alone = model(rows[n : n + 1, : lengths[n] + more + 1])[0, -1]
            torch.testing.assert_close(found, alone, **CLOSE)


def test_the_cache_does_not_grow_with_the_text(family):
    model = build(family, context=300).requires_grad_(False)
    cache, sizes = model.new_cache(300), []
    for length in (1, 9, 290):
        model(tokens_of(2, length), Context(caches=cache))
        sizes.append(cache.nbytes)
    assert len(set(sizes)) == 1 and sizes[0] > 0


# Numbers.


def test_numbers_that_do_not_divide_are_refused_with_both(family):
    with pytest.raises(
        ValidationError, match=r"width \(24\) must be a multiple of num_heads \(5\)"
    ):
        config_of(family, num_heads=5)


@pytest.mark.parametrize("family", ["fast_weight", "delta"])
def test_shifts_and_odd_widths_that_cannot_be_are_refused(family):
    message = r"shifts \(12\) must be below twice width / num_heads \(6\)"
    with pytest.raises(ValidationError, match=message):
        config_of(family, shifts=12)
    assert config_of(family, shifts=11).shifts == 11
    with pytest.raises(ValidationError, match=r"width \(15\) must be a multiple of 2"):
        config_of(family, width=15, num_heads=3)


def test_hidden_follows_from_width_unless_given(family):
    assert config_of(family).hidden == 96
    assert config_of(family, hidden=40).hidden == 40


SIZES = {  # millions of parameters; the Delta paper's text says 40 and 90
    "linear-mnist": 6.6,
    "linear-cifar10": 13.5,
    "performer": 39.9,
    "performer-trembl": 79.9,
    "fast-weight-small": 43.8,
    "fast-weight-medium": 89.6,
    "delta-small": 43.8,
    "delta-medium": 89.6,
}


def test_presets_have_the_papers_sizes():
    found = {}
    for module, kind, _ in FAMILIES.values():
        for name, numbers in module.PRESETS.items():
            with shapes_only():
                model = module.build(kind(**numbers))
            count = sum(parameter.numel() for parameter in model.parameters())
            found[name] = round(count / 1e6, 1)
    assert found == SIZES
