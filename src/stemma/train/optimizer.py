"""The optimizers to choose from, told apart by `kind`; one file each.

What they share, the grouping of parameters included, is in `stemma.train.rule`.
"""

import torch
from torch import nn

from stemma.train.adafactor import Adafactor
from stemma.train.adamw import AdamW, adamw
from stemma.train.adamw8bit import AdamW8Bit
from stemma.train.lion import Lion
from stemma.train.muon import Muon
from stemma.train.rule import RuleOptimizer
from stemma.train.schedule_free import ScheduleFree

__all__ = ["AdamW", "OptimizerNumbers", "adamw", "optimizer_for"]

OptimizerNumbers = AdamW | Muon | Lion | Adafactor | ScheduleFree | AdamW8Bit


def optimizer_for(
    model: nn.Module, numbers: OptimizerNumbers, *, learning_rate: float
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters; each group's `scale` multiplies its rate."""
    if isinstance(numbers, AdamW):
        return adamw(model, numbers, learning_rate=learning_rate)
    return RuleOptimizer(model, numbers, learning_rate=learning_rate)
