"""Compilation by block: the same numbers, the same names, and nothing left behind."""

import pytest
import torch

from stemma import api
from stemma.core.errors import ResourceError
from stemma.train.compiled import CALL, compiling, require_compiler, resting


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks itself
def test_blocks_are_compiled_for_a_while():
    model = api.build("gpt2", width=16, depth=2, num_heads=2, vocab_size=19, context=16).train()
    tokens, names, seen = torch.arange(12).view(2, 6), list(model.state_dict()), []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    def gradients():
        model.zero_grad()
        model(tokens).logsumexp(-1).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    wanted = gradients()
    with compiling(model, backend=backend):
        found = gradients()
        assert seen and list(model.state_dict()) == names
        made = len(seen)
        with resting(model):
            model(tokens.repeat(3, 1))
        assert len(seen) == made  # new shapes would be compiled anew
        assert getattr(model.blocks[1], CALL) is not None
    assert all(getattr(module, CALL) is None for module in model.modules())
    for got, gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, gradient, rtol=1e-6, atol=1e-7)


def test_without_a_compiler_the_way_out_is_told(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ResourceError, match=r"base: compile: no C\+\+ compiler .*compile: false"):
        require_compiler(torch.device("cpu"), place="base: compile")
