"""Parameter names are a contract: checkpoints, optimizer states and adapters are keyed by them.

Each family has a golden list in `golden/FAMILY.txt`: first the numbers it is built by, then every
parameter's name in the order of the network.
"""

import json
import re
from pathlib import Path

import pytest

from stemma import api

GOLDEN = Path(__file__).parent / "golden"
CONTRACT = [  # the forms that names may have, whatever the family
    r"(embedding|source_embedding|position|segment|norm|embedding_norm|head)\.(weight|bias)",
    r"blocks\.\d+\.(attention|cross_attention|mlp|moe|recurrence)(_post)?_norm\.(weight|bias)",
    r"blocks\.\d+\.(attention|cross_attention)\.(query|key|value|output)\.(weight|bias)",
    r"blocks\.\d+\.attention\.(query_norm|key_norm|beta)\.weight",
    r"blocks\.\d+\.mlp\.(gate|up|down)\.(weight|bias)",
    r"blocks\.\d+\.moe\.router\.weight",
    r"blocks\.\d+\.moe\.experts\.(gate|up|down)",
    r"blocks\.\d+\.recurrence(\.forwards|\.backwards)?\.(input|hidden)\.(weight|bias)",
    r"blocks\.\d+\.recurrence\.(context|begin)\.(weight|bias)",
    r"blocks\.\d+\.recurrence\.alignment\.(query|key|score)\.weight",
    r"relative\.weight",
    r"(pooler\.dense|pair_head|label_head|head\.dense|head\.norm|readout\.pair)\.(weight|bias)",
]
FORM = re.compile(rf"((encoder|decoder)\.)?({'|'.join(CONTRACT)})")


def golden(family):
    """The numbers and the names of a family's list."""
    numbers, *names = (GOLDEN / f"{family}.txt").read_text().splitlines()
    return json.loads(numbers), names


@pytest.mark.parametrize("family", api.families())
def test_parameter_names_are_the_golden_list(family):
    numbers, names = golden(family)
    model = api.sketch(family, **numbers)
    assert [name for name, _ in model.named_parameters()] == names
    assert sorted(model.state_dict()) == sorted(names)  # and nothing else is saved


@pytest.mark.parametrize("family", api.families())
def test_names_have_the_forms_of_the_contract(family):
    for name in golden(family)[1]:
        assert FORM.fullmatch(name), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma3"])
def test_a_tied_head_has_no_parameter_of_its_own(family):
    numbers, names = golden(family)
    tied = api.sketch(family, **{**numbers, "tied": True})
    untied = api.sketch(family, **{**numbers, "tied": False})
    rest = [name for name in names if name != "head.weight"]
    assert [name for name, _ in tied.named_parameters()] == rest
    assert [name for name, _ in untied.named_parameters()] == [*rest, "head.weight"]
