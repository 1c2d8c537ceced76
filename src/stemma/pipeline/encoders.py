"""What the stages that train encoders share: the heads that they train.

A head that a stage does not train would stay as it began and look as if it had learned; so each
stage leaves the heads of its task on the network, and no other.
"""

from collections.abc import Callable
from typing import Any

from stemma import api

MASKED = {"masked_head": True, "pooler": False, "pair_head": False, "num_labels": 0}


def labelling(count: int) -> dict[str, Any]:
    """The heads of a classifier of so many labels, as its config names them."""
    return {"masked_head": False, "pooler": True, "pair_head": False, "num_labels": count}


def with_heads(
    model: Any,
    heads: dict[str, Any],
    *,
    seed: int,
    keeps: Callable[[str], bool] = lambda name: True,
) -> Any:
    """The network with these heads: those it has keep their weights, the others begin from a seed.

    `keeps` says by a parameter's name whether its weights stay.
    """
    config = model.config
    made = api.build(config.family, seed=seed, **(config.model_dump() | heads))
    known = {name: tensor for name, tensor in model.state_dict().items() if keeps(name)}
    made.load_state_dict({n: known.get(n, tensor) for n, tensor in made.state_dict().items()})
    return made
