"""Optimizers: each is its equation and, where there is one, torch's; each resumes to the same bits.

The equations are written out here once more, in fp64, for one matrix or one vector at a time.
"""

from typing import get_args

import pytest
import torch
from torch import nn

from stemma import api
from stemma.core.errors import ModelError
from stemma.train import checkpoint
from stemma.train.adafactor import Adafactor
from stemma.train.adamw8bit import AdamW8Bit, code_values, fold, nearest_code, unfold
from stemma.train.lion import Lion
from stemma.train.muon import Muon, orthogonal
from stemma.train.optimizer import AdamW, OptimizerNumbers, adamw, optimizer_for
from stemma.train.rule import RuleOptimizer, groups, kept_states, parts
from stemma.train.schedule_free import ScheduleFree, evaluated, settle

RATES = [0.03, 0.02, 0.05, 0.01]  # a schedule of four steps
DECAY, BETA1, BETA2, EPS, EMBEDDING_RATE = 0.2, 0.8, 0.9, 1e-6, 3.0
SHARED = {"weight_decay": DECAY, "embedding_rate": EMBEDDING_RATE}
ADAM = {"beta1": BETA1, "beta2": BETA2, "eps": EPS}


def adamw_equation(weights, gradients, rates, decay):
    """arXiv:1711.05101, algorithm 2."""
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        mean = BETA1 * mean + (1 - BETA1) * gradient
        square = BETA2 * square + (1 - BETA2) * gradient**2
        root = (square / (1 - BETA2**t)).sqrt() + EPS
        weights = weights - rate * (mean / (1 - BETA1**t) / root + decay * weights)
    return weights


def muon_equation(weights, gradients, rates, decay):
    """Jordan's algorithm with the decay and scale of arXiv:2502.16982; vectors take AdamW's."""
    rows, columns = weights.shape
    momentum = torch.zeros_like(weights)
    for gradient, rate in zip(gradients, rates, strict=True):
        momentum = 0.7 * momentum + 0.3 * gradient
        x = 0.7 * momentum + 0.3 * gradient  # Nesterov's look ahead
        x = x / x.square().sum().sqrt()
        for _ in range(5):  # an odd polynomial of the matrix, the shorter side first
            if rows <= columns:
                a = x @ x.T
                x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
            else:
                a = x.T @ x
                x = 3.4445 * x - 4.7750 * x @ a + 2.0315 * x @ a @ a
        weights = weights - rate * (0.2 * max(rows, columns) ** 0.5 * x + decay * weights)
    return weights


def lion_equation(weights, gradients, rates, decay):
    """arXiv:2302.06675, algorithm 2."""
    mean = torch.zeros_like(weights)
    for gradient, rate in zip(gradients, rates, strict=True):
        followed = BETA1 * mean + (1 - BETA1) * gradient
        weights = weights - rate * (torch.sign(followed) + decay * weights)
        mean = BETA2 * mean + (1 - BETA2) * gradient
    return weights


def adafactor_equation(weights, gradients, rates, decay):
    """arXiv:1804.04235, algorithms 4 and 5, with sums as the paper has them."""
    matrix = weights.ndim == 2
    row, column, square = 0, 0, 0
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        beta = 1 - t**-0.8
        squares = gradient**2 + 1e-30
        if matrix:
            row = beta * row + (1 - beta) * squares.sum(1)
            column = beta * column + (1 - beta) * squares.sum(0)
            estimate = torch.outer(row, column) / row.sum()
        else:
            estimate = square = beta * square + (1 - beta) * squares
        update = gradient / estimate.sqrt()
        update = update / max(1.0, (update**2).mean().sqrt().item() / 1.2)
        size = max(1e-3, (weights**2).mean().sqrt().item())
        weights = weights - rate * (size * update + decay * weights)
    return weights


def schedule_free_equation(weights, gradients, rates, decay):
    """arXiv:2405.15682: y, z and x as three sequences; returns y, of the gradients."""
    x, y, z = weights, weights, weights
    square, total = torch.zeros_like(weights), 0.0
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        square = BETA2 * square + (1 - BETA2) * gradient**2
        root = (square / (1 - BETA2**t)).sqrt() + EPS
        z = z - rate * (gradient / root + decay * y)
        total += rate**2
        x = (1 - rate**2 / total) * x + rate**2 / total * z
        y = (1 - BETA1) * z + BETA1 * x
    return y


def rounded(values, code, zero_only):
    """Values through an 8-bit code, by 256 of a row, compared with every number of it."""
    result = torch.empty_like(values)
    for row in range(len(values)):
        for first in range(0, values.shape[1], 256):
            block = values[row, first : first + 256]
            scale = block.abs().max()
            share = block / (scale if scale > 0 else 1)
            nearest = (share[:, None] - code[None]).abs().argmin(1)
            if zero_only:  # the smallest number that is not zero stands for all below it
                nearest = torch.where((share > 0) & (nearest == 0), 1, nearest)
            result[row, first : first + 256] = code[nearest] * scale
    return result


def adamw8bit_equation(weights, gradients, rates, decay):
    """AdamW with both means rounded by the code of arXiv:2110.02861 after every step."""
    codes = [torch.tensor(code_values(signed=s), dtype=torch.float64) for s in (True, False)]
    mean, root = torch.zeros_like(weights), torch.zeros_like(weights)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        mean = BETA1 * mean + (1 - BETA1) * gradient
        square = BETA2 * root**2 + (1 - BETA2) * gradient**2
        update = mean / (1 - BETA1**t) / ((square / (1 - BETA2**t)).sqrt() + EPS)
        weights = weights - rate * (update + decay * weights)
        mean, root = rounded(mean, codes[0], False), rounded(square.sqrt(), codes[1], True)
    return weights


NUMBERS = {
    "adamw": AdamW(**SHARED, **ADAM),
    "muon": Muon(kind="muon", momentum=0.7, **SHARED, **ADAM),
    "lion": Lion(kind="lion", beta1=BETA1, beta2=BETA2, **SHARED),
    "adafactor": Adafactor(kind="adafactor", clip_update=1.2, **SHARED),
    "schedule-free": ScheduleFree(kind="schedule-free", **SHARED, **ADAM),
    "adamw-8bit": AdamW8Bit(kind="adamw-8bit", **SHARED, **ADAM),
}
EQUATIONS = {
    "adamw": adamw_equation,
    "muon": muon_equation,
    "lion": lion_equation,
    "adafactor": adafactor_equation,
    "schedule-free": schedule_free_equation,
    "adamw-8bit": adamw8bit_equation,
}
LAYERS = ("wide.weight", "tall.weight", "experts")  # names of layers' matrices below
RATE = {"lion": 1e-2, "adafactor": 5e-2, "schedule-free": 2e-2}  # that suit a tiny network


def test_every_kind_that_can_be_chosen_is_tested():
    kinds = [get_args(one.model_fields["kind"].annotation)[0] for one in get_args(OptimizerNumbers)]
    assert list(NUMBERS) == list(EQUATIONS) == kinds
    assert all(numbers.kind == kind for kind, numbers in NUMBERS.items())


class Shapes(nn.Module):
    """Parameters of every part: tables, a head, matrices wide and tall, stacked, and a vector."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 300)
        self.head = nn.Linear(300, 20, bias=False)
        self.wide = nn.Linear(300, 14)
        self.tall = nn.Linear(14, 300, bias=False)
        self.experts = nn.Parameter(torch.randn(2, 8, 270))


@pytest.fixture(params=NUMBERS)
def kind(request):
    return request.param


def test_parts_of_a_network():
    model = Shapes()
    named = {id(p): name for name, p in model.named_parameters()}
    found = {part: [named[id(p)] for p in some] for part, some in parts(model).items()}
    assert found == {
        "embedding": ["embedding.weight"],
        "head": ["head.weight"],
        "matrix": ["experts", "wide.weight", "tall.weight"],
        "vector": ["wide.bias"],
    }
    assert [(g["weight_decay"], g["scale"]) for g in groups(model, NUMBERS["lion"])] == [
        (0.0, 3.0), (0.2, 1.0), (0.2, 1.0), (0.0, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "numbers", "heads"),
    [
        (
            "t5",
            {"hidden": 16, "tied": False},
            {"head.weight", "encoder.relative.weight", "decoder.relative.weight"},
        ),
        ("bert", {"num_labels": 3, "pair_head": True}, {"classifier.weight", "pair_head.weight"}),
        ("mixtral", {"hidden": 16, "num_experts": 2, "top_k": 1}, {"head.weight"}),
    ],
)
def test_heads_and_tables_of_real_networks_are_no_matrices_of_layers(family, numbers, heads):
    model = api.build(family, width=8, depth=1, num_heads=2, vocab_size=11, context=4, **numbers)
    named = {id(p): name for name, p in model.named_parameters()}
    found = {part: {named[id(p)] for p in some} for part, some in parts(model).items()}
    assert found["head"] == heads
    assert all("embedding" in n or n[:8] in ("position", "segment.") for n in found["embedding"])
    assert not any("embedding" in n or "norm" in n for n in found["matrix"])


def test_every_optimizer_is_its_equation(kind):
    model = Shapes().double()
    optimizer = optimizer_for(model, NUMBERS[kind], learning_rate=1.0)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    draw = torch.Generator().manual_seed(1)
    gradients = {
        name: [torch.randn(p.shape, generator=draw, dtype=p.dtype) for _ in RATES]
        for name, p in first.items()
    }
    gradients["embedding.weight"][1][3] = 0  # a token that a step does not meet
    for number, rate in enumerate(RATES):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name][number].clone()
        optimizer.step()
    for name, got in model.named_parameters():
        decay = 0.0 if name in ("embedding.weight", "wide.bias") else DECAY
        scale = EMBEDDING_RATE if name == "embedding.weight" else 1.0
        equation = EQUATIONS[kind]
        if got.numel() < 4096 and kind == "adamw-8bit" or kind == "muon" and name not in LAYERS:
            equation = adamw_equation
        rates = [scale * rate for rate in RATES]
        if name == "experts":  # every expert as if it were alone
            alone = [
                equation(first[name][e], [g[e] for g in gradients[name]], rates, decay)
                for e in range(2)
            ]
            wanted = torch.stack(alone)
        else:
            wanted = equation(first[name], gradients[name], rates, decay)
        assert (wanted - first[name]).abs().max() > 1e-3, name
        torch.testing.assert_close(got.detach(), wanted, rtol=1e-9, atol=1e-9, msg=name)


def walk(optimizer, parameters, rates=RATES, scale=1.0):
    """Steps with gradients that depend on nothing but their number."""
    draw = torch.Generator().manual_seed(2)
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter in parameters:
            gradient = torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
            parameter.grad = scale * gradient
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def pair(shape, dtype=torch.float64):
    """One matrix, in a layer of ours and alone."""
    layer = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)
    return layer, nn.Parameter(layer.weight.detach().clone())


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_muon_is_torchs_but_for_its_bf16(shape):
    layer, alone = pair(shape)
    theirs = torch.optim.Muon(
        [alone], weight_decay=DECAY, momentum=0.7, adjust_lr_fn="match_rms_adamw"
    )
    ours = optimizer_for(layer, NUMBERS["muon"], learning_rate=1.0)
    before = alone.detach().clone()
    ((got,), (wanted,)) = walk(ours, [layer.weight]), walk(theirs, [alone])
    assert (got - wanted).norm() < 0.02 * (wanted - before).norm()


def test_adafactor_is_torchs_below_its_limit_of_the_rate():
    layer, alone = pair((12, 40))
    theirs = torch.optim.Adafactor([alone], weight_decay=DECAY, d=1.2)
    ours = optimizer_for(layer, NUMBERS["adafactor"], learning_rate=1.0)
    ((got,), (wanted,)) = walk(ours, [layer.weight]), walk(theirs, [alone])
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)


def test_adamw_parameter_by_parameter_is_torchs_own():
    layer, other = pair((12, 40), torch.float32)
    twin = nn.Linear(40, 12, bias=False)
    twin.weight = other
    ours = RuleOptimizer(layer, NUMBERS["adamw"], learning_rate=1.0)
    theirs = adamw(twin, NUMBERS["adamw"], learning_rate=1.0)
    assert torch.equal(*walk(ours, [layer.weight]), *walk(theirs, [twin.weight]))
    for key, value in theirs.state[twin.weight].items():
        assert torch.equal(value, ours.state[layer.weight][key])


def test_eight_bits_follow_adamw():
    # rounding is noise of a few percent of every update, and must not add up
    (layer, other), numbers = pair((64, 256), torch.float32), {**SHARED, **ADAM}
    twin = nn.Linear(256, 64, bias=False)
    twin.weight = other
    ours = optimizer_for(layer, AdamW8Bit(kind="adamw-8bit", **numbers), learning_rate=1.0)
    theirs = optimizer_for(twin, AdamW(**numbers), learning_rate=1.0)
    before, rates = other.detach().clone(), [1e-2] * 60
    ((got,), (wanted,)) = walk(ours, [layer.weight], rates), walk(theirs, [twin.weight], rates)
    assert (got - wanted).norm() < 0.05 * (wanted - before).norm()


def test_muons_update_is_orthogonal_and_as_large_as_adamws():
    draw = torch.Generator().manual_seed(3)
    for shape in [(30, 50), (50, 30), (3, 20, 20)]:
        matrices = torch.randn(shape, generator=draw, dtype=torch.float64)
        made = orthogonal(matrices, 5)
        values = torch.linalg.svdvals(made)
        assert 0.6 < values.min() and values.max() < 1.3
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        core = left.mT @ made @ right.mT  # the same singular vectors: nothing off the diagonal
        assert (core - torch.diag_embed(core.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-9
    for shape in [(30, 50), (50, 30)]:
        layer, _ = pair(shape)
        before = layer.weight.detach().clone()
        numbers = NUMBERS["muon"].model_copy(update={"weight_decay": 0.0})
        (after,) = walk(optimizer_for(layer, numbers, learning_rate=1.0), [layer.weight], [1.0])
        assert 0.15 < (after - before).square().mean().sqrt() < 0.25


def test_average_of_a_constant_rate_is_the_mean_of_all_steps():
    layer, _ = pair((4, 6))
    optimizer = optimizer_for(layer, NUMBERS["schedule-free"], learning_rate=1.0)
    steps = []
    for number in range(1, 8):
        walk(optimizer, [layer.weight], [0.02])
        steps.append(optimizer.state[layer.weight]["z"].clone())
        trained = layer.weight.detach().clone()
        with evaluated(optimizer):
            torch.testing.assert_close(layer.weight.detach(), torch.stack(steps).mean(0))
            assert number == 1 or not torch.equal(layer.weight, trained)
        assert torch.equal(layer.weight, trained)
    with pytest.raises(KeyError), evaluated(optimizer):
        raise KeyError
    assert torch.equal(layer.weight, trained)
    settle(optimizer)
    torch.testing.assert_close(layer.weight.detach(), torch.stack(steps).mean(0))


def test_average_is_shown_by_schedule_free_alone(kind):
    layer, _ = pair((4, 6))
    optimizer = optimizer_for(layer, NUMBERS[kind], learning_rate=1.0)
    (trained,) = walk(optimizer, [layer.weight])
    with evaluated(optimizer):
        assert torch.equal(layer.weight, trained) == (kind != "schedule-free")


def tiny(**numbers):
    sizes = {"width": 16, "hidden": 24, "depth": 1, "num_heads": 2, "vocab_size": 300}
    experts = {"num_kv_heads": 1, "num_experts": 2, "top_k": 1, "context": 16}
    return api.build("mixtral", seed=0, **(sizes | experts | numbers)).train()


def step_on(model, optimizer, steps, first=0):
    """Losses of steps on one batch, the rate falling."""
    tokens = torch.randint(0, 300, (4, 12), generator=torch.Generator().manual_seed(0))
    rates, losses = [group["lr"] for group in optimizer.param_groups], []
    for number in range(first, first + steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate / (1 + 0.01 * number)
        optimizer.zero_grad()
        logits = model(tokens[:, :-1]).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return losses


def begun(kind, steps):
    model = tiny()
    optimizer = optimizer_for(model, usual(kind), learning_rate=RATE.get(kind, 1e-2))
    step_on(model, optimizer, steps)
    return model, optimizer


def usual(kind):
    return type(NUMBERS[kind])(kind=kind)


def test_every_optimizer_learns_one_batch(kind):
    model = tiny(initial_std=0.1)
    optimizer = optimizer_for(model, usual(kind), learning_rate=RATE.get(kind, 1e-2))
    losses = step_on(model, optimizer, 40)
    assert losses[0] > 5 and losses[-1] < 0.7


def test_every_optimizer_resumes_to_the_same_bits(kind, tmp_path):
    model, optimizer = begun(kind, 3)
    checkpoint.save_checkpoint(tmp_path, model, optimizer, {"step": 3}, {})
    other, other_optimizer = begun(kind, 0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(7)
    found, _ = checkpoint.newest_checkpoint(tmp_path)
    checkpoint.restore(found, other, other_optimizer)
    for each in ((model, optimizer), (other, other_optimizer)):
        step_on(*each, 3, first=3)
    wanted, got = (
        checkpoint.named_state(*each) for each in ((model, optimizer), (other, other_optimizer))
    )
    assert wanted.keys() == got.keys()
    for name, tensor in wanted.items():
        assert tensor.dtype == got[name].dtype and torch.equal(tensor, got[name]), name
    settle(optimizer)
    settle(other_optimizer)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_size_of_the_next_checkpoint_is_told_before_the_first_step(kind, tmp_path):
    model, optimizer = begun(kind, 0)
    told = checkpoint.state_bytes(model, optimizer)
    step_on(model, optimizer, 1)
    assert told == checkpoint.state_bytes(model, optimizer)


def test_state_keeps_its_keys_shapes_and_types(kind):
    model, optimizer = begun(kind, 2)
    kept = kept_states(optimizer)
    assert kept.keys() == optimizer.state.keys() == set(model.parameters())
    for parameter, state in optimizer.state.items():
        forms = {key: checkpoint.form_of(value) for key, value in state.items()}
        assert forms == {k: checkpoint.form_of(v) for k, v in kept[parameter].items()}
        assert all(value.device == parameter.device for value in state.values())


def test_state_of_another_optimizer_is_refused(kind, tmp_path):
    checkpoint.save_checkpoint(tmp_path, *begun(kind, 1), {"step": 1}, {})
    found, _ = checkpoint.newest_checkpoint(tmp_path)
    for other in NUMBERS.keys() - {kind}:
        with pytest.raises(ModelError, match="optimizer state does not fit"):
            checkpoint.restore(found, *begun(other, 0))


def test_state_without_a_key_or_of_another_shape_is_refused(tmp_path):
    for number, change in enumerate(("gone", "shape", "type")):
        model, optimizer = begun("adamw-8bit", 1)
        state = optimizer.state[model.embedding.weight]
        assert state["exp_avg"].dtype == torch.uint8
        changed = {"shape": state["exp_avg"][:-1], "type": state["exp_avg"].float()}
        del state["exp_avg"]
        if change != "gone":
            state["exp_avg"] = changed[change]
        folder = tmp_path / str(number)
        checkpoint.save_checkpoint(folder, model, optimizer, {"step": 1}, {})
        found, _ = checkpoint.newest_checkpoint(folder)
        with pytest.raises(ModelError, match=r"does not fit .*embedding\.weight"):
            checkpoint.restore(found, *begun("adamw-8bit", 0))


def state_bytes(kind, **numbers):
    model = tiny(**numbers)
    states = kept_states(optimizer_for(model, usual(kind), learning_rate=1.0)).values()
    return sum(value.nbytes for state in states for value in state.values())


def test_memory_of_the_state_against_adamws(tmp_path):
    sizes = {"width": 128, "hidden": 256, "depth": 2}
    share = {kind: state_bytes(kind, **sizes) / state_bytes("adamw", **sizes) for kind in NUMBERS}
    assert share["adamw-8bit"] < 0.3 and share["adafactor"] < 0.02
    assert 0.49 < share["lion"] < 0.501 and 0.5 < share["muon"] < 0.65
    assert 1 <= share["schedule-free"] < 1.001


@pytest.mark.parametrize("signed", [True, False])
def test_code_is_nearest_and_its_error_bounded(signed):
    draw = torch.Generator().manual_seed(4)
    sizes = 10 ** (-8 * torch.rand(40, 300, generator=draw))  # eight decades
    values = sizes * (torch.randn(40, 300, generator=draw).sign() if signed else 1.0)
    values[0] = 0
    codes, scales = fold(values, signed=signed, block=256)
    assert codes.dtype == torch.uint8 and codes.shape == values.shape and scales.shape == (40, 2)
    got = unfold(codes, scales, signed=signed, block=256)
    scale = scales.repeat_interleave(256, -1)[:, :300]
    assert torch.equal(got[0], values[0])
    share, error = (values / scale)[1:].abs(), ((got - values) / scale)[1:].abs()
    # half a slice of the decade that a share is in; below the last one its smallest number
    decade = (-share.log10()).floor().clamp(0, 6)
    bound = 0.45 * 10**-decade / 2 ** (7 - signed - decade)
    bound = torch.where(share < 1e-7, 3.25e-7, bound)
    assert (error <= bound * 1.0001 + 1e-8).all()
    biggest = got.abs().amax(1)[1:] / values.abs().amax(1)[1:]
    assert (biggest > 0.992).all() and (biggest <= 1).all()
    if not signed:
        assert ((got > 0) == (values > 0)).all()  # a root that is not zero stays so
    again, same = fold(got, signed=signed, block=256)
    assert torch.equal(unfold(again, same, signed=signed, block=256), got) or signed


@pytest.mark.parametrize("signed", [True, False])
def test_table_of_codes_finds_what_counting_finds(signed):
    draw = torch.Generator().manual_seed(5)
    share = 10 ** (-9 * torch.rand(20_000, generator=draw))
    share *= torch.randn(20_000, generator=draw).sign() if signed else 1.0
    code = torch.tensor(code_values(signed=signed), dtype=torch.float64)
    bounds = ((code[1:] + code[:-1]) / 2).float()
    near = [bounds.nextafter(torch.tensor(side)) for side in (-9.0, 9.0)]
    share = torch.cat([share, code.float(), bounds, *near])
    wanted = (share[:, None] > bounds[None]).sum(1)
    wanted = wanted if signed else torch.where((share > 0) & (wanted == 0), 1, wanted)
    assert torch.equal(nearest_code(share, signed=signed).long(), wanted)
    assert code[code == 0].numel() == code[code == 1].numel() == 1 and len(code.unique()) == 256


PIECES = {"element": (-1, -2, -3), "row": (-2, -3), "matrix": (-3,)}


def test_pieces_that_a_rule_names_move_alone_as_in_the_whole(kind):
    # what a sharded form may rely on, and what it may not
    rule = NUMBERS[kind].rule_for("matrix")
    draw = torch.Generator().manual_seed(6)
    whole = torch.randn(2, 16, 1024, generator=draw)
    moves = [torch.randn(whole.shape, generator=draw) for _ in range(3)]

    def moved(start, gradients):
        parameter, state = start.clone(), rule.fresh(start)
        for gradient in gradients:
            rule.move(parameter, gradient, state, rate=0.1, weight_decay=0.1)
        return parameter

    def halves(tensor, axis):
        return [half.contiguous() for half in tensor.chunk(2, axis)]

    wanted, alone = moved(whole, moves), PIECES[rule.piece]
    for axis in (-1, -2, -3):
        gradients = zip(*[halves(move, axis) for move in moves], strict=True)
        parts = [moved(*each) for each in zip(halves(whole, axis), gradients, strict=True)]
        same = torch.allclose(torch.cat(parts, axis), wanted, rtol=1e-5, atol=1e-6)
        # halves of a row are blocks of 256 here, so what is made of rows moves by them as well
        assert same if axis in alone else not same or rule.piece == "row", axis
