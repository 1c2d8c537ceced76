"""Mixtures of experts: routers, capacity, dispatch, losses; against transformers and the papers.

Axes: B batch, T time, E experts, K choices of a token, C model width, F inner width
"""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersSparseMLP,
)

from stemma.nn.context import Context
from stemma.nn.dispatch import Share, Slots, admit
from stemma.nn.moe import GatedExperts, MoE, PlainExperts, balance_loss, expert_load
from stemma.nn.router import RandomSecond, Routing, SoftmaxTopK, TopK

C, FF, E, T = 10, 7, 5, 12
CLOSE = {"rtol": 0, "atol": 1e-9}
ROUTERS = [TopK(1), TopK(2), TopK(5), SoftmaxTopK(1), SoftmaxTopK(3), RandomSecond()]


def layer(router, experts=GatedExperts, num_experts=E, **numbers):
    """A layer in double precision, its weights so wide that it answers about as loud as asked."""
    made = MoE(C, experts(num_experts, C, FF), router=router, **numbers)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return made.double().eval()


def draw(rows=3, length=T, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, C, generator=generator, dtype=torch.float64)


def answer(moe, expert, x_C):
    """One expert's answer, arXiv:2401.04088, section 2.1, or arXiv:2101.03961, section 2."""
    up = moe.experts.up[expert] @ x_C
    if isinstance(moe.experts, PlainExperts):
        return moe.experts.down[expert] @ up.clamp(min=0)
    gate = moe.experts.gate[expert] @ x_C
    return moe.experts.down[expert] @ (gate / (1 + (-gate).exp()) * up)


def by_loop(moe, x_BTC, routing):
    """The definition: every token, every choice, one after the other."""
    rows = []
    for x_TC, experts_TK, weights_TK in zip(x_BTC, *routing, strict=True):
        for x_C, experts_K, weights_K in zip(x_TC, experts_TK, weights_TK, strict=True):
            parts = [
                weight * answer(moe, int(expert), x_C)
                for expert, weight in zip(experts_K, weights_K, strict=True)
            ]
            rows.append(torch.stack(parts).sum(0))
    return torch.stack(rows).view_as(x_BTC)


@pytest.mark.parametrize("experts", [GatedExperts, PlainExperts])
@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_sorted_dispatch_equals_the_loop_over_tokens(router, experts):
    """The answers, and the gradients of every parameter and of the input."""
    moe, x_BTC = layer(router, experts), draw().requires_grad_()
    wanted = [x_BTC, *moe.parameters()]
    routing = moe.route(moe.scores(x_BTC), Context())
    weight_BTC = draw(seed=1)
    found, losses = moe(x_BTC, Context())
    expected = by_loop(moe, x_BTC, routing)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found.std() >= 0.5 and losses == {}
    ours = torch.autograd.grad((found * weight_BTC).sum(), wanted, retain_graph=True)
    theirs = torch.autograd.grad((expected * weight_BTC).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_a_token_depends_on_itself_alone(router):
    """Without a capacity: in another row, in another order, alone."""
    moe, x_BTC = layer(router), draw()
    whole, _ = moe(x_BTC, Context())
    order = torch.randperm(T, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(moe(x_BTC[:, order], Context())[0], whole[:, order], **CLOSE)
    torch.testing.assert_close(moe(x_BTC[1:2, 4:5], Context())[0], whole[1:2, 4:5], **CLOSE)


@pytest.mark.parametrize("capacity", [Slots(T), Share(E)], ids=str)
@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_a_capacity_that_holds_all_equals_none(router, capacity):
    x_BTC = draw()
    found, _ = layer(router, capacity=capacity)(x_BTC, Context())
    assert torch.equal(found, layer(router)(x_BTC, Context())[0])


# Routers by their equations, token by token.


def softmax(numbers):
    total = sum(map(math.exp, numbers))
    return [math.exp(number) / total for number in numbers]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_routers_equal_their_equations(k):
    scores_BTE = draw()[..., :E]
    mixtral = TopK(k)(scores_BTE, training=False)
    switch = SoftmaxTopK(k)(scores_BTE, training=False)
    for row in range(3):
        for t in range(T):
            scores = scores_BTE[row, t].tolist()
            best = sorted(range(E), key=lambda e: -scores[e])[:k]
            assert mixtral.experts_BTK[row, t].tolist() == best
            assert switch.experts_BTK[row, t].tolist() == best
            expected = softmax([scores[e] for e in best])
            assert mixtral.weights_BTK[row, t].tolist() == pytest.approx(expected, abs=1e-12)
            expected = [softmax(scores)[e] for e in best]
            assert switch.weights_BTK[row, t].tolist() == pytest.approx(expected, abs=1e-12)


def gshard(scores_TE, capacity, chances_T):
    """arXiv:2006.16668, algorithm 1, for one group; a declined second takes no place."""
    taken, weights = [0] * E, []
    pairs = []
    for scores in scores_TE.tolist():
        gates = softmax(scores)
        first, second = sorted(range(E), key=lambda e: -gates[e])[:2]
        total = gates[first] + gates[second]
        pairs.append((first, gates[first] / total, second, gates[second] / total))
    for first, gate, _, _ in pairs:
        weights.append({first: gate} if taken[first] < capacity else {})
        taken[first] += 1
    for (_, _, second, gate), chance, chosen in zip(pairs, chances_T, weights, strict=True):
        if 2 * gate > chance:
            if taken[second] < capacity:
                chosen[second] = gate
            taken[second] += 1
    return [[chosen.get(e, 0.0) for e in range(E)] for chosen in weights]


def spread(routing):
    """Weights by expert, (B, T, E)."""
    weights_BTE = torch.zeros(*routing.weights_BTK.shape[:2], E, dtype=torch.float64)
    return weights_BTE.scatter(2, routing.experts_BTK, routing.weights_BTK.double())


@pytest.mark.parametrize("slots", [1, 2, 4, T])
def test_gshard_equals_algorithm_1(slots):
    moe, x_BTC = layer(RandomSecond(), capacity=Slots(slots)).train(), draw()
    scores_BTE = moe.scores(x_BTC)
    torch.manual_seed(5)
    found_BTE = spread(moe.route(scores_BTE, Context()))
    torch.manual_seed(5)
    chances_BT = torch.rand(3, T, dtype=torch.float64)
    for scores_TE, chances_T, found_TE in zip(scores_BTE, chances_BT, found_BTE, strict=True):
        expected = torch.tensor(gshard(scores_TE, slots, chances_T.tolist())).double()
        torch.testing.assert_close(found_TE, expected, rtol=0, atol=1e-7)
    everyone = spread(layer(TopK(2), capacity=Slots(slots)).route(scores_BTE, Context()))
    assert (found_BTE != everyone).any()  # some seconds were declined
    rested = moe.eval().route(scores_BTE, Context())
    torch.testing.assert_close(spread(rested), everyone, **CLOSE)


def test_the_second_expert_is_asked_with_twice_its_weight_as_the_chance():
    scores_BTE = torch.tensor([[0.0, math.log(1 / 4), -9.0]]).expand(1, 20_000, 3)
    torch.manual_seed(0)
    weights_BTK = RandomSecond()(scores_BTE, training=True).weights_BTK
    asked = weights_BTK[..., 1] > 0
    assert asked.double().mean().item() == pytest.approx(2 * 0.2, abs=0.01)
    assert weights_BTK[..., 1][asked].unique().tolist() == pytest.approx([0.2])
    torch.manual_seed(0)
    assert torch.equal(RandomSecond()(scores_BTE, training=True).weights_BTK, weights_BTK)


# Capacity.


def test_earlier_tokens_win_and_the_others_pass_by():
    """Nine tokens want one expert that has four places: the first four get them."""
    moe = layer(SoftmaxTopK(1), PlainExperts, capacity=Slots(4))
    x_BTC = draw(rows=2, length=1).expand(2, 9, C)
    update_BTC, _ = moe(x_BTC, Context())
    free_BTC, _ = layer(SoftmaxTopK(1), PlainExperts)(x_BTC, Context())
    torch.testing.assert_close(update_BTC[:, :4], free_BTC[:, :4], **CLOSE)
    assert (free_BTC[:, 4:].abs().amax(-1) > 0).all()
    assert (update_BTC[:, 4:] == 0).all()


def test_first_choices_stand_before_every_second_choice():
    """Token 0 wants experts 0 and 1, token 1 wants 1 and 0; with one place each gets its first."""
    routing = Routing(torch.tensor([[[0, 1], [1, 0]]]), torch.tensor([[[0.6, 0.4], [0.7, 0.3]]]))
    weights_BTK = admit(routing, torch.tensor([1]), 2).weights_BTK
    assert torch.equal(weights_BTK, torch.tensor([[[0.6, 0.0], [0.7, 0.0]]]))


@pytest.mark.parametrize("router", [SoftmaxTopK(1), TopK(2), SoftmaxTopK(3)], ids=str)
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_no_expert_is_ever_over_its_capacity_and_no_place_is_wasted(router, slots):
    moe, free = layer(router, capacity=Slots(slots)), layer(router)
    scores_BTE = moe.scores(draw())
    asked = (spread(free.route(scores_BTE, Context())) > 0).sum(1)
    taken = (spread(moe.route(scores_BTE, Context())) > 0).sum(1)
    assert torch.equal(taken, asked.clamp(max=slots)) and (taken < asked).any()


def test_a_share_is_the_even_load_times_the_factor_rounded_up():
    tokens_B = torch.tensor([0, 1, 8, 12, 13])
    assert Share(1.0)(tokens_B, choices=1, num_experts=4).tolist() == [0, 1, 2, 3, 4]
    assert Share(1.25)(tokens_B, choices=1, num_experts=4).tolist() == [0, 1, 3, 4, 5]
    assert Share(1.0)(tokens_B, choices=2, num_experts=4).tolist() == [0, 1, 4, 6, 7]  # GShard


@pytest.mark.parametrize("router", [SoftmaxTopK(1), TopK(2)], ids=str)
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padding_takes_no_place(router, left):
    """A padded row drops the very tokens that it drops alone, and its padding gets nothing."""
    moe, x_BTC = layer(router, capacity=Share(1.0)), draw()
    x_BTC = x_BTC[:, :1] + 0.3 * x_BTC  # alike, so that places are short
    real_BT = torch.zeros(3, T, dtype=torch.bool)
    for row, length in enumerate((T, 7, 4)):
        real_BT[row, T - length :] = True
    real_BT = real_BT if left else real_BT.flip(1)
    update_BTC, _ = moe(x_BTC, Context(real_BT=real_BT))
    assert (update_BTC[~real_BT] == 0).all()
    for row in range(3):
        alone, _ = moe(x_BTC[row, real_BT[row]][None], Context())
        torch.testing.assert_close(update_BTC[row, real_BT[row]], alone[0], **CLOSE)
        assert (alone == 0).all(-1).any() or row == 2  # something was dropped


def test_decoding_with_a_cache_drops_no_token():
    moe, free = layer(SoftmaxTopK(1), capacity=Slots(1)), layer(SoftmaxTopK(1))
    x_BTC, caches = draw(), object()
    whole, _ = moe(x_BTC, Context())
    assert (whole == 0).all(-1).any()
    found, _ = moe(x_BTC, Context(caches=caches))
    assert torch.equal(found, free(x_BTC, Context())[0])


# Against transformers.


def switch_config(**changed):
    numbers = {"d_model": C, "d_ff": FF, "num_experts": E, "expert_capacity": 3}
    return transformers.SwitchTransformersConfig(**{**numbers, "dropout_rate": 0.0, **changed})


@pytest.mark.parametrize("slots", [1, 3, T])
def test_switch_equals_transformers(slots):
    """Answers and gradients of the sparse MLP with top-1 routing and a capacity by row."""
    theirs = SwitchTransformersSparseMLP(switch_config(expert_capacity=slots)).eval()
    moe = layer(SoftmaxTopK(1), PlainExperts, capacity=Slots(slots)).float()
    with torch.no_grad():
        theirs.router.classifier.weight.copy_(moe.router.weight)
        for n in range(E):
            theirs.experts[f"expert_{n}"].wi.weight.copy_(moe.experts.up[n])
            theirs.experts[f"expert_{n}"].wo.weight.copy_(moe.experts.down[n])
    x_BTC, weight_BTC = draw().float(), draw(seed=1).float()
    found, expected = moe(x_BTC, Context())[0], theirs(x_BTC)
    assert (expected == 0).all(-1).any() == (slots < T) and expected.std() >= 0.3
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    (found * weight_BTC).sum().backward()
    (expected * weight_BTC).sum().backward()
    experts = [theirs.experts[f"expert_{n}"] for n in range(E)]
    for ours, other in (
        (moe.router.weight.grad, theirs.router.classifier.weight.grad),
        (moe.experts.up.grad, torch.stack([expert.wi.weight.grad for expert in experts])),
        (moe.experts.down.grad, torch.stack([expert.wo.weight.grad for expert in experts])),
    ):
        assert other.norm() > 0
        assert (ours - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("slots", [2, 4, T])
def test_top_2_with_capacity_equals_transformers(slots):
    """NLLB's router, every second expert asked, weights normalised before any is dropped."""
    config = transformers.NllbMoeConfig(
        d_model=C,
        num_experts=E,
        expert_capacity=slots,
        second_expert_policy="all",
        normalize_router_prob_before_dropping=True,
        moe_eval_capacity_token_fraction=-1.0,
    )
    theirs, moe = NllbMoeTop2Router(config).eval(), layer(TopK(2), capacity=Slots(slots)).float()
    with torch.no_grad():
        theirs.classifier.weight.copy_(moe.router.weight)
    x_BTC = draw().float()
    found_BTE = spread(moe.route(moe.scores(x_BTC), Context()))
    for x_TC, found_TE in zip(x_BTC, found_BTE, strict=True):
        _, expected_TE, _ = theirs(x_TC)  # one row is one group
        torch.testing.assert_close(found_TE, expected_TE.double(), rtol=0, atol=1e-6)


# Losses.


def even_scores(num_experts, length):
    """Tokens that each prefer another expert, all by the same distance."""
    return 3.0 * F.one_hot(torch.arange(length) % num_experts, num_experts).double()[None]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_an_even_load_has_the_balance_loss_one(k):
    """Whatever k: the load is a share of all choices. transformers' has the floor k."""
    scores_BTE = even_scores(4, 8)
    experts_BTK = (torch.arange(8)[:, None] + torch.arange(k)).remainder(4)[None]
    loss = balance_loss(scores_BTE, experts_BTK)
    assert loss.item() == pytest.approx(1.0, abs=1e-12)
    theirs = transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func(
        (even_scores(4, 8)[0] + 1e-3 * torch.arange(4),), 4, k
    )
    assert theirs.item() == pytest.approx(k, abs=0.01)


def test_all_tokens_at_one_expert_have_the_balance_loss_e():
    scores_BTE = torch.tensor([40.0, 0, 0, 0]).double().expand(1, 8, 4)
    loss = balance_loss(scores_BTE, scores_BTE.topk(1).indices)
    assert loss.item() == pytest.approx(4.0, abs=1e-9)


@pytest.mark.parametrize("router", [SoftmaxTopK(1), TopK(2)], ids=str)
def test_losses_equal_their_equations_over_real_tokens(router):
    """arXiv:2101.03961, equations 4 to 6, and arXiv:2202.08906, equation 5, in plain numbers."""
    moe = layer(router, balance_loss=0.5, z_loss=0.25, capacity=Slots(1)).train()
    x_BTC, real_BT = draw(), torch.ones(3, T, dtype=torch.bool)
    real_BT[0, :5] = real_BT[2, 4:] = False
    _, losses = moe(x_BTC, Context(real_BT=real_BT))
    scores = moe.scores(x_BTC)[real_BT].tolist()
    share, probability = [0.0] * E, [0.0] * E
    for row in scores:
        for e in sorted(range(E), key=lambda e: -row[e])[: router.k]:
            share[e] += 1 / (router.k * len(scores))
        for e, p in enumerate(softmax(row)):
            probability[e] += p / len(scores)
    balance = E * sum(f * p for f, p in zip(share, probability, strict=True))
    square = sum(math.log(sum(map(math.exp, row))) ** 2 for row in scores) / len(scores)
    assert losses.keys() == {"moe.balance", "moe.z"}
    assert losses["moe.balance"].item() == pytest.approx(0.5 * balance, abs=1e-9)
    assert losses["moe.z"].item() == pytest.approx(0.25 * square, abs=1e-9)
    load_E = expert_load(moe.choose(moe.scores(x_BTC), training=True).experts_BTK, E, real_BT)
    assert load_E.tolist() == pytest.approx(share, abs=1e-12)


def test_the_balance_loss_of_one_layer_equals_transformers_divided_by_k():
    scores_BTE = draw()[..., :E]
    theirs = transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func(
        (scores_BTE.flatten(0, 1),), E, 3
    )
    ours = balance_loss(scores_BTE, TopK(3)(scores_BTE, training=True).experts_BTK)
    assert ours.item() == pytest.approx(theirs.item() / 3, abs=1e-6)
    mask_BT = torch.ones(3, T)
    mask_BT[1, 3:] = 0
    theirs = transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func(
        (scores_BTE.flatten(0, 1),), E, 3, mask_BT
    )
    experts_BTK = TopK(3)(scores_BTE, training=True).experts_BTK
    ours = balance_loss(scores_BTE, experts_BTK, mask_BT.bool())
    assert ours.item() == pytest.approx(theirs.item() / 3, abs=1e-6)


def test_a_row_of_nothing_but_padding_costs_nothing_and_gives_numbers():
    moe = layer(TopK(2), balance_loss=1.0, z_loss=1.0, capacity=Share(1.0)).train()
    update_BTC, losses = moe(draw(), Context(real_BT=torch.zeros(3, T, dtype=torch.bool)))
    assert (update_BTC == 0).all()
    assert all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert moe.router.weight.grad.isfinite().all()


def test_the_balance_loss_brings_dead_experts_back():
    """All tokens at one expert; the gradient of the loss alone spreads them over all four."""
    moe, x_BTC = layer(SoftmaxTopK(1), num_experts=4, balance_loss=1.0).train(), draw(8, 16)
    with torch.no_grad():
        moe.router.weight.mul_(0.1)
        x_BTC[..., 0] = 1.0
        moe.router.weight[2, 0] = 3.0
    assert expert_load(moe.scores(x_BTC).argmax(-1)[..., None], 4).max() == 1.0
    optimizer = torch.optim.SGD(moe.router.parameters(), lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        moe(x_BTC, Context())[1]["moe.balance"].backward()
        optimizer.step()
    load_E = expert_load(moe.scores(x_BTC).argmax(-1)[..., None], 4)
    assert load_E.min() > 0.1 and load_E.max() < 0.4


def test_the_router_learns_through_the_weights_of_the_answers():
    """All but Mixtral's formula with one expert, whose weight is always 1."""
    for router in ROUTERS:
        moe = layer(router)
        moe(draw(), Context())[0].square().sum().backward()
        norm = moe.router.weight.grad.norm()
        assert (norm == 0) == (router == TopK(1))


# Precision and noise.


def test_a_half_precision_layer_scores_in_single_precision():
    """Rounded scores would send tokens to other experts: here two differ by less than bf16 sees."""
    moe = layer(SoftmaxTopK(1), num_experts=2).to(torch.bfloat16)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[0, 0], moe.router.weight[1, 0], moe.router.weight[1, 1] = 1, 1, 2**-12
    x_BTC = torch.ones(1, 1, C, dtype=torch.bfloat16)
    scores_BTE = moe.scores(x_BTC)
    assert scores_BTE.dtype == torch.float32
    assert moe.route(scores_BTE, Context()).experts_BTK.item() == 1
    update_BTC, _ = moe(x_BTC, Context())
    assert update_BTC.dtype == torch.bfloat16


def test_a_half_precision_layer_is_near_the_exact_one():
    moe, x_BTC = layer(TopK(2)), draw().to(torch.bfloat16)
    half = layer(TopK(2)).to(torch.bfloat16)
    exact = layer(TopK(2))
    with torch.no_grad():
        for name, parameter in exact.named_parameters():
            parameter.copy_(dict(half.named_parameters())[name])
    expected, _ = exact(x_BTC.double(), Context())
    error = (half(x_BTC, Context())[0].double() - expected).abs().max()
    assert error <= 0.02 * expected.abs().max()
    assert not torch.equal(expected, moe(x_BTC.double(), Context())[0])


def test_jitter_scales_what_the_router_reads_in_training_alone():
    moe, x_BTC = layer(TopK(2), jitter=0.1), draw()
    given, plain = x_BTC.clone(), moe.scores(x_BTC)
    torch.testing.assert_close(plain, F.linear(x_BTC, moe.router.weight), **CLOSE)
    moe.train()
    torch.manual_seed(2)
    found = moe.scores(x_BTC)
    torch.manual_seed(2)
    noise = torch.empty_like(x_BTC).uniform_(0.9, 1.1)
    torch.testing.assert_close(found, F.linear(x_BTC * noise, moe.router.weight), **CLOSE)
    assert not torch.allclose(found, plain) and torch.equal(x_BTC, given)
    torch.manual_seed(2)
    update_BTC, _ = moe(x_BTC, Context())
    expected = by_loop(moe, x_BTC, moe.choose(found, training=True))  # experts read x itself
    torch.testing.assert_close(update_BTC, expected, **CLOSE)


def test_dropout_rests_in_evaluation():
    moe, x_BTC = layer(TopK(2), dropout=0.5), draw()
    torch.testing.assert_close(moe(x_BTC, Context())[0], layer(TopK(2))(x_BTC, Context())[0])
    torch.manual_seed(0)
    update_BTC, _ = moe.train()(x_BTC, Context())
    assert 0.3 < (update_BTC == 0).double().mean() < 0.7


def test_dropout_inside_an_expert_stands_before_its_last_matrix():
    """Switch's own place for it: what is dropped are inner numbers, scaled up by what is kept."""
    experts, x_PC = PlainExperts(1, C, FF, dropout=0.5).double(), draw(1)[0]
    with torch.no_grad():
        experts.up.copy_(torch.ones(1, FF, C))
        experts.down.copy_(torch.eye(C, FF)[None])
    whole_PF = x_PC.sum(-1, keepdim=True).clamp(min=0).expand(T, FF)
    torch.testing.assert_close(experts.eval()(x_PC, [T])[:, :FF], whole_PF, **CLOSE)
    torch.manual_seed(0)
    found_PF = experts.train()(x_PC, [T])[:, :FF]
    dropped_PF = (found_PF == 0) & (whole_PF > 0)
    assert dropped_PF.any() and not dropped_PF.all(1).all()
    torch.testing.assert_close(found_PF[~dropped_PF], 2 * whole_PF[~dropped_PF], **CLOSE)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layer(TopK(6)), "a token asks 6 experts, but there are 5"),
        (lambda: layer(RandomSecond(), num_experts=1), "asks 2 experts, but there are 1"),
        (lambda: TopK(0), r"asks k \(0\) experts; at least 1"),
        (lambda: SoftmaxTopK(-1), r"asks k \(-1\) experts; at least 1"),
        (lambda: Share(0.0), "factor of 0.0 leaves no place"),
        (lambda: Slots(0), "0 slots leave no place"),
    ],
)
def test_numbers_that_make_no_layer_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
