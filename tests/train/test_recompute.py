"""What is computed again is the same to the bit, and less is kept."""

import pytest
import torch

from stemma import api
from stemma.core.errors import UsageError
from stemma.nn.stack import Block
from stemma.train.pretrain import pushed_by
from stemma.train.recompute import Recompute, chosen, recomputing

SMALL = {"width": 16, "depth": 3, "num_heads": 2, "vocab_size": 19, "context": 16}
NETWORKS = {
    "gpt2": {"dropout": 0.2},
    "mixtral": {"dropout": 0.2, "hidden": 24, "num_experts": 4, "balance_loss": 0.3, "z_loss": 0.1},
    "transformer": {"dropout": 0.2},
    "lstm": {"dropout": 0.2},
    "seq2seq": {},
}
HEADLESS = ("lstm", "seq2seq")


def network(family):
    left = {"num_heads"} if family in HEADLESS else set()
    numbers = {key: value for key, value in SMALL.items() if key not in left}
    if family in ("transformer", "seq2seq"):
        numbers["source_vocab_size"] = numbers["vocab_size"]
    return api.build(family, **numbers, **NETWORKS[family]).train()


def step(model):
    """The loss of one batch with its auxiliary losses, its gradients, and the auxiliary losses."""
    model.zero_grad()
    torch.manual_seed(4)
    tokens = torch.randint(0, 19, (2, 12), generator=torch.Generator().manual_seed(1))
    both = hasattr(model, "encode")
    x, losses = model.hidden(*(tokens, tokens.flip(1)) if both else (tokens,))
    logits = model.logits(x).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, tokens.roll(-1).flatten(), reduction="sum")
    pushed_by(losses, loss, counted=24).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return loss.item(), found, {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize(
    "recompute", [{"every": 1}, {"every": 2}, {"modules": ("*blocks.*.*_norm", "*blocks.1")}]
)
@pytest.mark.parametrize("family", NETWORKS)
def test_gradients_are_the_same_to_the_bit(family, recompute):
    model = network(family)
    wanted_loss, wanted, wanted_losses = step(model)
    with recomputing(model, Recompute(**recompute), place="here"):
        loss, found, losses = step(model)
    assert loss == wanted_loss and losses == wanted_losses
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert family != "mixtral" or len(losses) == 6


def runs(model, name, recompute):
    """How often a module runs in one step."""
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda *_: seen.append(name))
    with recomputing(model, Recompute(**recompute), place="here"):
        step(model)
    handle.remove()
    return len(seen)


def test_only_what_is_chosen_runs_again():
    model = network("gpt2")
    for block, both, second in ((0, 2, 2), (1, 2, 1), (2, 2, 2)):
        assert runs(model, f"blocks.{block}.mlp.up", {"every": 1}) == both
        assert runs(model, f"blocks.{block}.mlp.up", {"every": 2}) == second
    assert runs(model, "blocks.1.mlp.up", {"modules": ("blocks.*.mlp",)}) == 2
    assert runs(model, "blocks.1.attention.query", {"modules": ("blocks.*.mlp",)}) == 1
    with torch.no_grad(), recomputing(model, Recompute(every=1), place="here"):
        assert model.hidden(torch.zeros(1, 3, dtype=torch.long))[0].isfinite().all()


def kept(model, recompute):
    """Numbers that are kept for the backward pass."""
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (sizes.__setitem__(tensor.data_ptr(), tensor.numel()), tensor)[1],
        lambda tensor: tensor,
    ):
        with recomputing(model, Recompute(**recompute), place="here"):
            x, _ = model.hidden(torch.zeros(4, 16, dtype=torch.long))
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    del x
    return sum(size for place, size in sizes.items() if place not in parameters)


def test_less_is_kept():
    model = network("gpt2")
    everything = kept(model, {})
    blocks, mlp = kept(model, {"every": 1}), kept(model, {"modules": ("blocks.*.mlp",)})
    assert blocks < everything / 3 and blocks < mlp < everything


def test_the_network_is_as_before():
    model = network("gpt2")
    names, blocks = list(model.state_dict()), list(model.blocks)
    with pytest.raises(KeyError), recomputing(model, Recompute(every=1), place="here"):
        assert list(model.state_dict()) == names
        raise KeyError
    assert not any("forward" in vars(module) for module in model.modules())
    assert list(model.blocks) == blocks and all(type(block) is Block for block in blocks)


def test_what_lies_below_a_chosen_module_is_not_chosen_twice():
    found = chosen(network("gpt2"), Recompute(modules=("blocks.*", "*.mlp")), place="here")
    assert [name for name, _ in found] == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_pattern_that_names_nothing_is_told():
    with pytest.raises(
        UsageError, match=r"here: no module matches 'blocks\.\*\.mpl'; nearest: .*mlp"
    ):
        chosen(network("gpt2"), Recompute(modules=("blocks.*.mpl",)), place="here")
    with pytest.raises(ValueError, match="one of every and modules"):
        Recompute(every=1, modules=("norm",))
