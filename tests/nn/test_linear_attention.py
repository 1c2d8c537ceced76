"""Fast weights in their three forms, and the layer around them.

The equations are written here once more, token by token in plain double precision, without a line
of the package. All inputs are random, and wide enough that every part matters.

Axes: B batch, H heads, T time, D width of one head, F features, C model width
"""

import math

import pytest
import torch
from transformers.models.qwen3_next import modeling_qwen3_next as oracle

from stemma.nn.cache import TensorState
from stemma.nn.context import Context
from stemma.nn.fast_weight import (
    Additive,
    Delta,
    Memory,
    Normalised,
    Tokens,
    chunked,
    parallel,
    recurrent,
)
from stemma.nn.feature_map import (
    DPFP,
    EluPlusOne,
    Favor,
    Features,
    SumNormalised,
    TrigonometricFavor,
)
from stemma.nn.linear_attention import LinearAttention, runs, silenced

CLOSE = {"rtol": 0, "atol": 1e-12}
B, D = 2, 4
CASES = {
    "linear transformer": (Normalised(), EluPlusOne()),
    "performer": (Normalised(), Favor(7, seed=5)),
    "additive": (Additive(), EluPlusOne()),
    "additive dpfp": (Additive(), SumNormalised(DPFP(2))),
    "additive favor": (Additive(), Favor(7, seed=5)),
    "additive waves": (Additive(), TrigonometricFavor(3, seed=5)),
    "delta dpfp": (Delta(), SumNormalised(DPFP(2))),
    "delta elu": (Delta(), SumNormalised(EluPlusOne())),
}
DOCUMENTS = [[0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3], [5, 2, 2, 2, 2, 2, 2, 2, 2, 9, 9, 9, 9]]


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request):
    return CASES[request.param]


def draw(*shape, seed=0, dtype=torch.float64):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype)


def assert_near(found, expected, relative=1e-12):
    """Within a part of the largest number, which is at least 1."""
    error = (found - expected).abs().max().item()
    assert error <= relative * max(1.0, expected.abs().max().item())


def inputs(heads, length, seed=0):
    """Query, key, value (B, H, T, D) and rate (B, H, T)."""
    query, key, value = (draw(B, heads, length, D, seed=seed + n) * 1.5 for n in range(3))
    return query, key, value, (draw(B, heads, length, seed=seed + 3) * 2).sigmoid()


def tokens_of(case, drawn, documents=None, real=None):
    (query, key, value, rate), (_, feature_map) = drawn, case
    run = runs(documents, real)
    return Tokens(feature_map(query), silenced(feature_map(key), real), value, rate, run)


def memory_of(case, tokens):
    """A memory that other tokens have left."""
    drawn = inputs(tokens.value_BHTD.shape[1], 5, seed=40)
    return recurrent(case[0], tokens_of(case, drawn))[1]


def forms(case, tokens, memory=None):
    yield recurrent(case[0], tokens, memory)
    yield parallel(case[0], tokens, memory)
    for size in (1, 2, 4, 5, 64):
        yield chunked(case[0], tokens, memory, size=size)


def plain_map(feature_map, x_D):
    """Features of one vector, by the formulas of the papers."""
    if isinstance(feature_map, SumNormalised):
        features = plain_map(feature_map.map, x_D)
        return features / features.sum()
    if isinstance(feature_map, EluPlusOne):
        return torch.where(x_D > 0, x_D + 1, x_D.exp())
    if isinstance(feature_map, DPFP):
        r = torch.cat((x_D, -x_D)).clamp(min=0)
        n, shifts = len(r), range(1, feature_map.shifts + 1)
        return torch.stack([r[i] * r[(i + shift) % n] for shift in shifts for i in range(n)])
    x_D, w = x_D / len(x_D) ** 0.25, feature_map.directions(x_D)
    half = x_D @ x_D / 2
    if isinstance(feature_map, Favor):
        return (w @ x_D - half).exp() / math.sqrt(len(w))
    return torch.cat(((w @ x_D).sin(), (w @ x_D).cos())) * half.exp() / math.sqrt(len(w))


def plain(case, drawn, documents=None, real=None):
    """Token by token: arXiv:2006.16236, equations 16 to 20, and 2102.11174, 10, 11, 20 to 25."""
    rule, feature_map = case
    query, key, value, rate = drawn
    read = torch.zeros_like(value)
    for b in range(B):
        for h in range(value.shape[1]):
            known = None
            for t in range(value.shape[2]):
                if real is not None and not real[b, t]:
                    continue
                if documents is not None and documents[b, t] != known:
                    known, matrix, z = documents[b, t], 0.0, 0.0
                elif known is None:
                    known, matrix, z = 0, 0.0, 0.0
                q, k = (plain_map(feature_map, x[b, h, t]) for x in (query, key))
                v = value[b, h, t]
                if isinstance(rule, Delta):
                    old = matrix @ k if t and isinstance(matrix, torch.Tensor) else 0.0
                    v = rate[b, h, t] * (v - old)
                matrix, z = matrix + torch.outer(v, k), z + k
                total = z @ q if isinstance(rule, Normalised) else 1.0
                read[b, h, t] = matrix @ q / total
    return read


def holes(length, seed=9):
    """Padding anywhere, the first tokens of one row among it."""
    real = torch.rand(B, length, generator=torch.Generator().manual_seed(seed)) > 0.4
    real[0, :2] = False
    return real


@pytest.mark.parametrize("packed", [False, True], ids=["one", "documents"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_all_forms_are_the_papers_equations(case, packed, padded):
    drawn = inputs(2, 13)
    documents = torch.tensor(DOCUMENTS) if packed else None
    real = holes(13) if padded else None
    expected = plain(case, drawn, documents, real)
    shown = torch.ones(B, 13, dtype=torch.bool) if real is None else real
    assert expected.std() > 0.05
    for read, _ in forms(case, tokens_of(case, drawn, documents, real)):
        assert_near(read.transpose(1, 2)[shown], expected.transpose(1, 2)[shown])


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 7, 13])
def test_all_forms_agree_from_any_memory(case, heads, length):
    """Reads and the memory that is left, whatever the chunk and however it divides the length."""
    tokens = tokens_of(case, inputs(heads, length), real=holes(length))
    memory = memory_of(case, tokens)
    (first, left), *others = forms(case, tokens, memory)
    for read, other in others:
        assert_near(read, first)
        for ours, theirs in zip(left, other, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert_near(theirs, ours)
    fresh, _ = recurrent(case[0], tokens)
    assert (first - fresh).abs().max() > 1e-3  # and the memory is read


def test_a_memory_of_documents_goes_on_only_in_its_own(case):
    """Cut anywhere, the rest of a packed row goes on as if it had not been cut."""
    documents = torch.tensor(DOCUMENTS)
    tokens = tokens_of(case, inputs(2, 13), documents, holes(13))
    whole, _ = parallel(case[0], tokens)
    for cut in range(1, 13):
        for form in (parallel, recurrent):
            first, memory = form(case[0], tokens.part(0, cut))
            rest, _ = form(case[0], tokens.part(cut, 13), memory)
            assert_near(torch.cat((first, rest), dim=2), whole)


@pytest.mark.parametrize("packed", [False, True], ids=["one", "documents"])
def test_the_gradients_of_all_forms_agree(case, packed):
    documents = torch.tensor(DOCUMENTS) if packed else None
    drawn = [x.requires_grad_() for x in inputs(2, 13)]
    weight = draw(B, 2, 13, D, seed=8)
    tokens = tokens_of(case, drawn, documents, holes(13))
    matrix = memory_of(case, tokens).matrix_BHFD.clone().requires_grad_()
    start = memory_of(case, tokens)._replace(matrix_BHFD=matrix)
    wanted = [x for x in drawn if x is not drawn[3] or case[0].learns_rate] + [matrix]
    found = []
    for read, left in forms(case, tokens, start):
        loss = (read * weight).sum() + left.matrix_BHFD.square().sum()
        found.append(torch.autograd.grad(loss, wanted, retain_graph=True))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            assert ours.abs().max() > 1e-3
            assert_near(theirs, ours, 1e-11)


@pytest.mark.parametrize("rule", [Normalised(), Additive()], ids=repr)
def test_the_gradient_is_that_of_the_quadratic_form(rule):
    """Against attention with a table of weights, which knows neither memory nor chunk."""
    query, key, value, _ = (x.requires_grad_() for x in inputs(2, 9))
    phi_q, phi_k = (torch.where(x > 0, x + 1, x.clamp(max=0).exp()) for x in (query, key))
    table = (phi_q @ phi_k.transpose(-1, -2)).tril()
    if isinstance(rule, Normalised):
        table = table / table.sum(-1, keepdim=True)
    feature_map, weight = EluPlusOne(), draw(B, 2, 9, D, seed=8)
    read, _ = chunked(rule, Tokens(feature_map(query), feature_map(key), value), size=4)
    torch.testing.assert_close(read, table @ value, **CLOSE)
    given = (query, key, value)
    expected = torch.autograd.grad((table @ value * weight).sum(), given)
    found = torch.autograd.grad((read * weight).sum(), given)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("name", ["recurrent", "chunk"])
@pytest.mark.parametrize("length", [1, 7, 70])
def test_the_delta_rule_equals_transformers(name, length):
    """Its gated rule without a gate, in fp32; queries there are divided by sqrt(D)."""
    theirs = getattr(oracle, f"torch_{name}_gated_delta_rule")
    query, key, value, rate = (x.float().requires_grad_() for x in inputs(3, length))
    state = draw(B, 3, D, D, seed=6).float().requires_grad_()
    given, weight = (query, key, value, rate, state), draw(B, 3, length, D, seed=8).float()
    turned = [x.transpose(1, 2) for x in (query, key, value, rate)]
    expected, expected_state = theirs(
        *turned[:3],
        torch.zeros_like(turned[3]),
        turned[3],
        initial_state=state,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    unit_query, unit_key = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in given[:2])
    tokens = Tokens(Features(unit_query / math.sqrt(D)), Features(unit_key), value, rate)

    def gradients(read, last):
        return torch.autograd.grad(
            (read * weight).sum() + last.square().sum(), given, retain_graph=True
        )

    wanted = gradients(expected.transpose(1, 2), expected_state)
    for read, memory in forms((Delta(), None), tokens, Memory(state)):
        torch.testing.assert_close(read, expected.transpose(1, 2), rtol=0, atol=1e-5)
        torch.testing.assert_close(memory.matrix_BHFD, expected_state, rtol=0, atol=1e-5)
        for ours, other in zip(gradients(read, memory.matrix_BHFD), wanted, strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_the_delta_rule_replaces_what_the_additive_rule_adds_to():
    """Each orthogonal key written twice with rate 1: the second value stands alone, or the sum."""
    keys, values = torch.eye(D).double(), draw(2, D, D)
    key, value = torch.cat((keys, keys))[None, None], values.reshape(1, 1, 2 * D, D)
    tokens = Tokens(Features(key), Features(key), value, torch.ones(1, 1, 2 * D).double())
    _, replaced = parallel(Delta(), tokens)
    _, added = parallel(Additive(), tokens)
    torch.testing.assert_close(keys @ replaced.matrix_BHFD[0, 0], values[1], **CLOSE)
    torch.testing.assert_close(keys @ added.matrix_BHFD[0, 0], values.sum(0), **CLOSE)


@pytest.mark.parametrize("feature_map", [EluPlusOne(), Favor(16, seed=0)], ids=repr)
def test_a_normalised_read_is_an_average_of_the_values_seen(feature_map):
    query, key, value, _ = inputs(2, 11)
    read, _ = parallel(Normalised(), Tokens(feature_map(query), feature_map(key), value))
    lowest, highest = value.cummin(dim=2).values, value.cummax(dim=2).values
    assert ((read >= lowest - 1e-12) & (read <= highest + 1e-12)).all()
    torch.testing.assert_close(read[:, :, 0], value[:, :, 0], **CLOSE)


@pytest.mark.parametrize("scale", [10.0, 60.0])
@pytest.mark.parametrize("falling", [False, True], ids=["growing", "falling"])
def test_units_keep_large_keys_exact_in_single_precision(scale, falling):
    """Keys whose features differ by e^100 and more: plain features would be zeros or infinite."""
    feature_map, steps = Favor(16, seed=0), torch.linspace(0.1, scale, 12)
    query, key, value, _ = (x.float() for x in inputs(2, 12))
    steps = steps.flip(0) if falling else steps
    key = key * steps[:, None]
    tokens = Tokens(feature_map(query), feature_map(key), value)
    exact, w = draw_exact(feature_map, query.double(), key.double(), value.double())
    assert (w < math.exp(-100)).any()
    for read, memory in forms((Normalised(), feature_map), tokens):
        torch.testing.assert_close(read.double(), exact, rtol=0, atol=2e-3)
        assert memory.matrix_BHFD.isfinite().all()


def test_the_unit_of_padding_moves_nothing():
    """Real keys whose features are e^-1000 of those of the padding before and between them."""
    case, (query, key, value, rate) = (Normalised(), Favor(16, seed=0)), inputs(2, 6)
    real = torch.tensor([[False, True, True, False, True, True]] * B)
    key = torch.where(real[:, None, :, None], key * 60, key * 0.1)
    drawn = query, key, value, rate
    alone = tokens_of(case, [x[:, :, real[0]] for x in drawn])
    assert (case[1](key).unit_BHT[:, :, real[0]] < -1000).any()
    expected, _ = parallel(case[0], alone)
    for read, _ in forms(case, tokens_of(case, drawn, real=real)):
        torch.testing.assert_close(read[:, :, real[0]], expected, **CLOSE)


def draw_exact(feature_map, query, key, value):
    """The same by logarithms in double precision: features are summed without ever being formed."""
    w = feature_map.directions(query)
    logs = [
        x * D**-0.25 @ w.T - (x * D**-0.25).square().sum(-1, keepdim=True) / 2 for x in (query, key)
    ]
    table = (logs[0][:, :, :, None] + logs[1][:, :, None]).logsumexp(-1)
    hidden = torch.ones(table.shape[-2:], dtype=torch.bool).triu(1)
    return table.masked_fill(hidden, -math.inf).softmax(-1) @ value, logs[1].exp()


def test_a_query_that_no_key_answers_reads_zero():
    """Padding before the first token: 0/0 must be a number, and its gradient too."""
    for feature_map in (EluPlusOne(), Favor(5, seed=0)):
        case = (Normalised(), feature_map)
        drawn = [x.requires_grad_() for x in inputs(1, 4)]
        real = torch.tensor([[False, False, True, True]] * B)
        for read, _ in forms(case, tokens_of(case, drawn, real=real)):
            assert (read[:, :, :2] == 0).all() and (read[:, :, 2:] != 0).all()
            gradients = torch.autograd.grad(read.sum(), drawn[:3], retain_graph=True)
            assert all(gradient.isfinite().all() for gradient in gradients)


def test_runs_count_documents_and_give_padding_to_the_one_before():
    documents = torch.tensor([[4, 4, 0, 7, 7, 0, 7, 1]])
    real = torch.tensor([[True, True, False, True, True, False, True, True]])
    assert runs(documents, real).tolist() == [[0, 0, 0, 1, 1, 1, 1, 2]]
    assert runs(documents, None).tolist() == [[0, 0, 1, 2, 2, 3, 4, 5]]
    assert runs(None, real) is None


# The layer.

WIDTH, HEADS = 6, 3


def layer_of(case, dtype=torch.float64, **changed):
    rule, feature_map = case
    numbers = {"head_dim": D, "feature_map": feature_map, "rule": rule, "chunk": 4, **changed}
    layer = LinearAttention(WIDTH, HEADS, bias=(True,) * 4, **numbers)
    for n, parameter in enumerate(layer.parameters()):
        parameter.data = draw(*parameter.shape, seed=n, dtype=dtype) * 0.6
    return layer


def test_the_layer_is_its_projections_around_the_equations(case):
    layer, x = layer_of(case), draw(B, 9, WIDTH, seed=30)

    def heads(linear):
        y = x @ linear.weight.T + (0 if linear.bias is None else linear.bias)
        return y.reshape(B, 9, HEADS, -1).transpose(1, 2)

    rate = torch.ones(B, HEADS, 9)
    if layer.beta is not None:
        rate = 1 / (1 + (-heads(layer.beta)[..., 0]).exp())
    read = plain(case, (heads(layer.query), heads(layer.key), heads(layer.value), rate))
    mixed = read.transpose(1, 2).reshape(B, 9, HEADS * D)
    expected = mixed @ layer.output.weight.T + layer.output.bias
    found, losses = layer(x, Context())
    assert_near(found, expected)
    assert losses == {} and (layer.beta is not None) == isinstance(case[0], Delta)


def test_every_parameter_of_the_layer_matters(case):
    layer = layer_of(case)
    layer(draw(B, 9, WIDTH, seed=30), Context())[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("chunks", [(11,), (1,) * 11, (4, 7), (1, 9, 1), (3, 1, 1, 6)], ids=str)
def test_passes_with_a_state_equal_one_pass(case, chunks):
    layer, x = layer_of(case), draw(B, 11, WIDTH, seed=30)
    context = Context(cache=layer.new_state({}))
    found = torch.cat([layer(part, context)[0] for part in x.split(chunks, dim=1)], dim=1)
    assert_near(found, layer(x, Context())[0])


def test_the_state_is_as_large_after_a_thousand_tokens_as_after_one(case):
    layer, sizes = layer_of(case, torch.float32), []
    state = layer.new_state({})
    for length in (1, 10, 1000):
        layer(draw(B, length, WIDTH, dtype=torch.float32), Context(cache=state))
        sizes.append(state.nbytes)
    features = case[1](torch.zeros(1, 1, 1, D)).values_BHTF.shape[-1]
    extra = {"normaliser": features, "unit": 1}
    numbers = features * D + sum(extra.get(name, 0) for name in state.tensors)
    assert sizes == [4 * B * HEADS * numbers] * 3


@pytest.mark.parametrize("name", [name for name in CASES if name != "additive waves"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_its_sums_in_single(name, dtype):
    """1,000 tokens: the memory is fp32, and what is read stays near the exact numbers.

    Sums of waves are left out: they grow with exp(|x|^2) and leave fp16 by themselves.
    """
    case = CASES[name]
    layer, x = layer_of(case), draw(1, 1000, WIDTH, seed=30)
    exact = layer(x, Context())[0]
    state, half = TensorState(), layer_of(case, dtype)
    found = half(x.to(dtype), Context(cache=state))[0]
    assert found.dtype == dtype and found.isfinite().all()
    assert {tensor.dtype for tensor in state.tensors.values()} == {torch.float32}
    assert (found.double() - exact).norm() <= 0.05 * exact.norm()


def test_documents_and_a_state_do_not_go_together(case):
    layer = layer_of(case)
    context = Context(cache=layer.new_state({}), document_ids_BT=torch.zeros(B, 3).long())
    with pytest.raises(ValueError, match="document ids and caches do not go together"):
        layer(draw(B, 3, WIDTH), context)


def test_the_chunk_changes_only_rounding(case):
    x = draw(B, 13, WIDTH, seed=30)
    expected = layer_of(case, chunk=13)(x, Context())[0]
    for chunk in (1, 5, 64):
        assert_near(layer_of(case, chunk=chunk)(x, Context())[0], expected)


def test_dropout_acts_while_training_alone(case):
    layer, x = layer_of(case, dropout=0.5), draw(B, 9, WIDTH)
    dropped = layer.train()(x, Context())[0]
    assert 0.2 < (dropped == 0).double().mean() < 0.8
    assert (layer.eval()(x, Context())[0] != 0).all()
