"""The whole model: names, initial weights, wrappers, and settings that cannot be."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError

from stemma.models import gpt2, llama
from stemma.nn.context import Context
from stemma.nn.initial import initialise, initialise_by_fan_in
from stemma.nn.stack import run

NUMBERS = {"width": 64, "depth": 2, "num_heads": 4, "vocab_size": 100}


def llama_of(**changes):
    return llama.build(llama.LlamaConfig(**{**NUMBERS, **changes}))


def gpt2_of(**changes):
    return gpt2.build(gpt2.GPT2Config(**{**NUMBERS, **changes}))


LLAMA_NAMES = """embedding.weight blocks.0.attention_norm.weight blocks.0.attention.query.weight
blocks.0.attention.key.weight blocks.0.attention.value.weight blocks.0.attention.output.weight
blocks.0.mlp_norm.weight blocks.0.mlp.gate.weight blocks.0.mlp.up.weight blocks.0.mlp.down.weight
norm.weight head.weight""".split()
GPT2_NAMES = """embedding.weight position.weight blocks.0.attention_norm.weight
blocks.0.attention_norm.bias blocks.0.attention.query.weight blocks.0.attention.query.bias
blocks.0.attention.key.weight blocks.0.attention.key.bias blocks.0.attention.value.weight
blocks.0.attention.value.bias blocks.0.attention.output.weight blocks.0.attention.output.bias
blocks.0.mlp_norm.weight blocks.0.mlp_norm.bias blocks.0.mlp.up.weight blocks.0.mlp.up.bias
blocks.0.mlp.down.weight blocks.0.mlp.down.bias norm.weight norm.bias""".split()


def test_parameter_names_are_the_contract():
    """Files in the world carry these names: they never change. No buffers, no doubled tied head."""
    assert sorted(llama_of(depth=1).state_dict()) == sorted(LLAMA_NAMES)
    assert sorted(gpt2_of(depth=1).state_dict()) == sorted(GPT2_NAMES)
    assert sorted(llama_of(depth=1, tied=True).state_dict()) == sorted(LLAMA_NAMES[:-1])


@pytest.mark.parametrize("make", [llama_of, gpt2_of])
def test_wrappers_and_copies_keep_the_names_and_the_numbers(make, tokens_of):
    model = make()
    initialise(model, seed=3, std=0.02, depth=2)
    names, logits = list(model.state_dict()), model(tokens_of(1, 5))
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(tokens_of(1, 5)), logits, rtol=0, atol=0)
    with torch.no_grad():
        twin.embedding.weight.add_(1)
    torch.testing.assert_close(model(tokens_of(1, 5)), logits, rtol=0, atol=0)
    model.compile(backend="eager")  # wraps; nothing is compiled before the first call
    for block in model.blocks:
        block.compile(backend="eager")
    assert list(model.state_dict()) == names


def test_a_model_built_without_memory_is_filled_later(tokens_of):
    """Build on meta, materialise, initialise: the result equals a model built at once."""
    with torch.device("meta"):
        later = llama_of()
    later = later.to_empty(device="cpu")
    at_once = llama_of()
    for model in (later, at_once):
        initialise(model, seed=3, std=0.02, depth=2)
    torch.testing.assert_close(later(tokens_of(1, 5)), at_once(tokens_of(1, 5)), rtol=0, atol=0)


def test_initial_weights_are_a_function_of_seed_and_name():
    """Neither the depth around a parameter nor what else is drawn moves its numbers."""
    first, again, other, deeper = llama_of(), llama_of(), llama_of(), llama_of(depth=3)
    for model, seed in ((first, 5), (again, 5), (other, 6), (deeper, 5)):
        torch.rand(1)
        initialise(model, seed=seed, std=0.02, depth=2)
    found = [dict(model.named_parameters()) for model in (first, again, other, deeper)]
    for name, weight in found[0].items():
        assert torch.equal(weight, found[1][name])
        assert torch.equal(weight, found[3][name])
        assert weight.ndim == 1 or not torch.equal(weight, found[2][name])
    matrices = [weight.flatten()[:6] for weight in found[0].values() if weight.ndim == 2]
    assert len({tuple(weight.tolist()) for weight in matrices}) == len(matrices)


def test_initial_weights_have_the_named_deviation():
    model = gpt2_of(vocab_size=1000, depth=3)
    initialise(model, seed=0, std=0.05, depth=3)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            assert (weight == 0).all(), name
        elif weight.ndim == 1:
            assert (weight == 1).all(), name
        else:
            writes = name.endswith(("output.weight", "down.weight"))
            expected = 0.05 / math.sqrt(6) if writes else 0.05
            assert abs(weight.std().item() / expected - 1) < 0.05, name
            assert abs(weight.mean().item()) < 0.005, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_every_precision_starts_from_the_single_precision_numbers(dtype):
    single, other = llama_of(), llama_of().to(dtype)
    for model in (single, other):
        initialise(model, seed=1, std=0.02, depth=2)
    for ours, theirs in zip(other.parameters(), single.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(dtype))


def test_a_tied_head_is_the_embedding(tokens_of):
    model = llama_of(tied=True)
    stream, losses = model.hidden(tokens_of(2, 3))
    torch.testing.assert_close(model(tokens_of(2, 3)), stream @ model.embedding.weight.T)
    assert losses == {}


def test_losses_are_named_by_layer():
    class Tells(torch.nn.Module):
        def forward(self, x_BTC, context):
            return x_BTC + 1, {"told": x_BTC.sum()}

    blocks = torch.nn.ModuleList([Tells(), Tells()])
    stream, losses = run(blocks, torch.zeros(1, 1, 1), Context())
    assert (stream.item(), losses) == (
        2,
        {"0.told": torch.tensor(0.0), "1.told": torch.tensor(1.0)},
    )


@pytest.mark.parametrize(
    ("make", "changes", "names"),
    [
        (llama_of, {"width": 63}, ["width (63)", "num_heads (4)"]),
        (gpt2_of, {"width": 63}, ["width (63)", "num_heads (4)"]),
        (llama_of, {"num_kv_heads": 3}, ["num_heads (4)", "num_kv_heads (3)"]),
        (llama_of, {"num_kv_heads": 8}, ["num_heads (4)", "num_kv_heads (8)"]),
        (llama_of, {"width": 12}, ["width / num_heads (3)", "2"]),
        (llama_of, {"widht": 64}, ["widht"]),
        (llama_of, {"num_heads": 0}, ["num_heads"]),
        (gpt2_of, {"dropout": 1.5}, ["dropout"]),
        (gpt2_of, {"vocab_size": 0}, ["vocab_size"]),
        (gpt2_of, {"depth": "2"}, ["depth"]),
    ],
    ids=str,
)
def test_impossible_numbers_are_refused_by_name(make, changes, names):
    with pytest.raises(ValidationError) as caught:
        make(**changes)
    for name in names:
        assert name in str(caught.value)


def test_settings_follow_from_each_other():
    config = llama.LlamaConfig(**NUMBERS)
    assert (config.num_kv_heads, config.hidden, config.head_dim) == (4, 192, 16)
    assert gpt2.GPT2Config(**NUMBERS).hidden == 256
    assert llama.LlamaConfig(**{**NUMBERS, "width": 4096, "num_heads": 32}).hidden == 10944
    with pytest.raises(ValidationError):
        config.width = 3


@pytest.mark.parametrize("module", [llama, gpt2])
def test_presets_are_models(module):
    """Built without memory; every preset's numbers must fit together."""
    config = next(value for name, value in vars(module).items() if name.endswith("Config"))
    for numbers in module.PRESETS.values():
        with torch.device("meta"):
            module.build(config(**{**numbers, "depth": 1}))


def test_fan_in_rule_starts_every_block_as_the_identity():
    model = llama.build(
        llama.LlamaConfig(width=256, depth=2, num_heads=4, vocab_size=500, hidden=512)
    )
    initialise_by_fan_in(model, seed=0, embedding_std=0.05)
    weights = dict(model.named_parameters())
    assert weights["embedding.weight"].std().item() == pytest.approx(0.05, rel=0.02)
    assert weights["blocks.1.mlp.up.weight"].std().item() == pytest.approx(1 / 16, rel=0.02)
    tokens_BT = torch.arange(20)[None]
    embedded_BTC = model.norm(model.embedding(tokens_BT))
    assert torch.equal(model.hidden(tokens_BT)[0], embedded_BTC)
