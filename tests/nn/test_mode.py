"""Evaluation for a while: each module comes back in the mode it was in, also after an error."""

import pytest
from torch import nn

from stemma.nn.mode import evaluating


def test_every_module_comes_back_in_its_own_mode():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(1, 1)))
    model[1].eval()
    model[1][1].train()
    before = [module.training for module in model.modules()]
    assert before == [True, True, False, False, True]
    with pytest.raises(ZeroDivisionError), evaluating(model.modules()):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before
