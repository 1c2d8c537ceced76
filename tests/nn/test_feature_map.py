"""Feature maps against their papers' formulas, and what random features promise.

Axes: B batch, H heads, T time, S keys, D width of one head, F features
"""

import math

import pytest
import torch

from stemma.nn.feature_map import (
    DPFP,
    EluPlusOne,
    Favor,
    SumNormalised,
    TrigonometricFavor,
    draw_directions,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def softmax_kernel(query_TD, key_SD):
    """What both random maps estimate: exp(q . k / sqrt(D))."""
    return (query_TD @ key_SD.T / math.sqrt(query_TD.shape[-1])).exp()


def estimate(feature_map, query_TD, key_SD):
    query, key = (feature_map(x[None, None]).plain()[0, 0] for x in (query_TD, key_SD))
    return query @ key.T


def test_elu_plus_one_is_the_formula_and_never_zero():
    x = torch.cat((draw(1, 2, 5, 4) * 3, torch.full((1, 2, 1, 4), -40.0)), dim=2)
    found = EluPlusOne()(x)
    expected = torch.where(x > 0, x + 1, x.exp())
    torch.testing.assert_close(found.plain(), expected, rtol=1e-15, atol=0)
    assert (EluPlusOne()(x.float()).values_BHTF > 0).all()  # elu(-40) + 1 is zero in fp32
    assert found.unit_BHT is None


def test_the_gradient_of_elu_plus_one_is_finite_everywhere():
    x = torch.tensor([[[[-200.0, -1.0, 0.0, 2.0, 200.0]]]], requires_grad=True)
    EluPlusOne()(x).values_BHTF.sum().backward()
    expected = torch.tensor([[[[0.0, math.exp(-1), 1.0, 1.0, 1.0]]]])
    torch.testing.assert_close(x.grad, expected, rtol=1e-6, atol=1e-38)


@pytest.mark.parametrize("shifts", [1, 2, 5])
def test_dpfp_is_equation_37(shifts):
    """phi_(i nu)(k) = r([k, -k])_i r([k, -k])_(i + nu), indices going round."""
    k = draw(3)
    r = [max(0.0, value) for value in (*k.tolist(), *(-k).tolist())]
    expected = [r[i] * r[(i + nu) % 6] for nu in range(1, shifts + 1) for i in range(6)]
    found = DPFP(shifts)(k[None, None, None]).values_BHTF[0, 0, 0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert 0 < (found > 0).sum() <= found.numel() / 2  # sparse: half of r is zero


def test_dpfp_in_two_dimensions_has_one_feature_for_each_quadrant():
    """Equations 33 to 36: inputs of different quadrants share no feature."""
    corners = torch.tensor([[[[1.0, 2.0], [-1.0, 2.0], [1.0, -2.0], [-1.0, -2.0]]]])
    features = DPFP(1)(corners).values_BHTF[0, 0]
    torch.testing.assert_close(features @ features.T, 4 * torch.eye(4))


def test_a_projection_without_shifts_is_refused():
    with pytest.raises(ValueError, match="0 shifts has no feature; at least 1"):
        DPFP(0)


@pytest.mark.parametrize("inner", [EluPlusOne(), DPFP(2), Favor(8, seed=1)], ids=repr)
def test_sum_normalised_features_add_up_to_one(inner):
    x = draw(2, 3, 5, 4) * 2
    found = SumNormalised(inner)(x)
    plain = inner(x).plain()
    torch.testing.assert_close(found.plain(), plain / plain.sum(-1, keepdim=True))
    torch.testing.assert_close(found.plain().sum(-1), torch.ones(2, 3, 5).double())


def test_features_that_are_all_zero_stay_zero():
    """An odd head of alternating signs has no two positive neighbours: nothing to divide by."""
    x = torch.tensor([[[[1.0, -1.0, 1.0]]]], requires_grad=True)
    found = SumNormalised(DPFP(1))(x).plain()
    found.sum().backward()
    assert (found == 0).all() and x.grad.isfinite().all()


def test_random_features_are_their_formulas():
    x_TD, m = draw(5, 4), 6
    w = draw_directions(3, 2, m, 4)
    scaled = x_TD * 4**-0.25
    half = scaled.square().sum(-1, keepdim=True) / 2
    positive = (scaled @ w.T - half).exp() / math.sqrt(m)
    waves = torch.cat(((scaled @ w.T).sin(), (scaled @ w.T).cos()), -1) * half.exp() / math.sqrt(m)
    maps = Favor(m, seed=3, layer=2), TrigonometricFavor(m, seed=3, layer=2)
    for feature_map, expected in zip(maps, (positive, waves), strict=True):
        torch.testing.assert_close(feature_map(x_TD[None, None]).plain()[0, 0], expected)


@pytest.mark.parametrize("count", [3, 4, 11])
def test_directions_are_orthogonal_in_blocks_and_as_long_as_gaussian_ones(count):
    dim = 4
    w = draw_directions(0, 0, count, dim)
    assert w.shape == (count, dim) and w.dtype == torch.float64
    for start in range(0, count, dim):
        product = w[start : start + dim] @ w[start : start + dim].T
        off = product - product.diagonal().diag()
        assert off.abs().max() < 1e-12
    lengths = draw_directions(0, 0, 4000, dim).square().sum(-1)  # chi squared with dim degrees
    assert abs(lengths.mean() - dim) < 0.2 and abs(lengths.var() - 2 * dim) < 1


def test_each_direction_alone_is_uniform():
    """Signs matter: the triangle of a QR factorisation is not positive by itself."""
    first = torch.stack([draw_directions(seed, 0, 3, 3) for seed in range(2000)])
    assert first.mean(0).abs().max() < 0.12  # five deviations of a mean of 2000
    assert (first.square().mean(0) - 1).abs().max() < 0.2


def test_directions_depend_on_seed_and_layer_and_on_nothing_else():
    first = draw_directions(1, 2, 6, 4)
    torch.manual_seed(99)
    assert torch.equal(draw_directions(1, 2, 6, 4), first)
    assert not torch.equal(draw_directions(1, 3, 6, 4), first)
    assert not torch.equal(draw_directions(2, 2, 6, 4), first)
    like = torch.zeros(4, dtype=torch.bfloat16)
    assert torch.equal(Favor(6, seed=1, layer=2).directions(like), first.bfloat16())


def test_directions_met_first_without_gradients_serve_training():
    """A tensor of inference mode could not be kept for a backward pass."""
    feature_map, x = Favor(5, seed=777), draw(1, 1, 2, 4)
    with torch.inference_mode():
        feature_map(x)
    x.requires_grad_()
    feature_map(x).plain().sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [Favor, TrigonometricFavor])
def test_random_features_are_unbiased(kind):
    """The mean over seeds nears the softmax kernel, within four standard errors everywhere."""
    query, key, seeds = draw(4, 3), draw(5, 3, seed=1), 1500
    found = torch.stack([estimate(kind(8, seed=seed), query, key) for seed in range(seeds)])
    error = found.mean(0) - softmax_kernel(query, key)
    assert (error.abs() < 4 * found.std(0) / math.sqrt(seeds)).all()
    assert (found[0] - softmax_kernel(query, key)).abs().max() > 0.05  # one draw alone is not it


def test_more_features_are_closer_and_positive_ones_closest_where_the_kernel_is_small():
    """arXiv:2009.14794, lemma 2: trigonometric features fail where the kernel nears zero."""
    query, key = draw(6, 8) * 0.8, draw(7, 8, seed=1) * 0.8
    exact = softmax_kernel(query, key)

    def error(kind, count):
        each = [estimate(kind(count, seed=seed), query, key) - exact for seed in range(200)]
        return torch.stack(each)[:, exact < exact.median()].square().mean().item()

    positive = [error(Favor, count) for count in (8, 32, 128)]
    waves = [error(TrigonometricFavor, count) for count in (8, 32, 128)]
    assert positive[0] > 1.5 * positive[1] and positive[1] > 1.5 * positive[2]
    assert all(worse > 3 * better for worse, better in zip(waves, positive, strict=True))


def test_orthogonal_directions_vary_less_than_independent_ones():
    """arXiv:2009.14794, theorem 2; over many seeds, because one draw can say anything."""
    query, key = draw(4, 4), draw(4, 4, seed=1)

    def variance(draw_from):
        found = []
        for seed in range(1500):
            w = draw_from(seed)
            features = [
                (x * 4**-0.25 @ w.T - x.square().sum(-1, keepdim=True) / 4).exp() / 2
                for x in (query, key)
            ]
            found.append(features[0] @ features[1].T)
        return torch.stack(found).var(0).mean()

    blocks = variance(lambda seed: draw_directions(seed, 0, 4, 4))
    independent = variance(lambda seed: draw(4, 4, seed=seed))
    assert blocks < 0.9 * independent


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_inputs_neither_overflow_nor_lose_the_largest_feature(dtype):
    x = draw(1, 2, 5, 16, dtype=dtype) * 50
    found = Favor(32, seed=0)(x)
    assert found.values_BHTF.isfinite().all() and found.unit_BHT.isfinite().all()
    expected = torch.full((1, 2, 5), 1 / math.sqrt(32), dtype=dtype)
    torch.testing.assert_close(found.values_BHTF.amax(-1), expected)
