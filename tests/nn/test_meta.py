"""Shapes without memory: nothing is allocated, nothing drawn, and outside all is as before."""

import torch
from torch import nn

from stemma.nn.meta import shapes_only


def test_shapes_only_holds_inside_and_ends_outside():
    before = torch.get_rng_state()
    with shapes_only():
        large = nn.Linear(2**20, 2**20)  # 4 TiB
    assert torch.equal(torch.get_rng_state(), before)
    assert large.weight.is_meta and large.weight.shape == (2**20, 2**20)
    usual = nn.Linear(3, 3)
    assert not usual.weight.is_meta and usual.weight.std() > 0


def test_drawing_functions_leave_values_alone():
    weight = torch.full((3, 3), 7.0)
    with shapes_only():
        assert nn.init.normal_(weight) is weight
        assert nn.init.kaiming_uniform_(tensor=weight) is weight
    assert (weight == 7).all()
