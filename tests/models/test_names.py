"""Parameter names are a contract: checkpoints, optimizer states and adapters are keyed by them."""

import pytest

from stemma import api

LLAMA_BLOCK = """
attention_norm.weight
attention.query.weight
attention.key.weight
attention.value.weight
attention.output.weight
mlp_norm.weight
mlp.gate.weight
mlp.up.weight
mlp.down.weight
"""
GPT2_BLOCK = """
attention_norm.weight
attention_norm.bias
attention.query.weight
attention.query.bias
attention.key.weight
attention.key.bias
attention.value.weight
attention.value.bias
attention.output.weight
attention.output.bias
mlp_norm.weight
mlp_norm.bias
mlp.up.weight
mlp.up.bias
mlp.down.weight
mlp.down.bias
"""
OUTSIDE = {
    "llama": ["embedding.weight", "norm.weight"],
    "gpt2": ["embedding.weight", "position.weight", "norm.weight", "norm.bias"],
}
BLOCKS = {"llama": LLAMA_BLOCK, "gpt2": GPT2_BLOCK}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", BLOCKS)
def test_parameter_names_are_the_golden_list(family, tied):
    model = api.build(family, width=8, depth=2, num_heads=2, vocab_size=11, context=16, tied=tied)
    golden = [f"blocks.{i}.{name}" for i in range(2) for name in BLOCKS[family].split()]
    golden += OUTSIDE[family] + ([] if tied else ["head.weight"])
    assert sorted(name for name, _ in model.named_parameters()) == sorted(golden)
    assert sorted(model.state_dict()) == sorted(golden)  # and nothing else is saved


def test_every_family_has_a_golden_list():
    assert sorted(BLOCKS) == api.families()
