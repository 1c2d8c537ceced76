"""FlexAttention's path against the plain kernel, on a CPU: the same network, the same numbers.

The path is chosen on a GPU alone; here it is forced, so that all that stands around the kernel
(masks, padding, documents, ragged caches) is run by every test run.
"""

import pytest
import torch

from stemma.models import gpt2, llama
from stemma.nn import flex
from stemma.nn.context import Context
from stemma.nn.initial import initialise
from stemma.nn.mask import Window

CLOSE = {"rtol": 0, "atol": 1e-4}
PADDED = torch.tensor([[True] * 9, [False] * 4 + [True] * 5, [True] * 3 + [False] * 6])
IDS = torch.tensor([[0] * 4 + [1] * 5, [2] * 9, [0, 1, 1, 1, 1, 1, 2, 2, 2]])
FRESH = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], list(range(9)), [0, 0, 1, 2, 3, 4, 0, 1, 2]])
CONTEXTS = {
    "padding": Context(padding_BT=PADDED),
    "documents": Context(positions_BT=FRESH, document_ids_BT=IDS),
    "documents, one row of places": Context(document_ids_BT=IDS),
    "one row of documents": Context(document_ids_BT=IDS[:1]),
}


@pytest.fixture(params=["window", "causal", "wide groups"])
def model(request):
    if request.param == "causal":
        config = gpt2.GPT2Config(width=32, depth=2, num_heads=2, vocab_size=50, context=32)
        network = gpt2.build(config)
    else:
        config = llama.LlamaConfig(width=32, depth=2, num_heads=2, num_kv_heads=1, vocab_size=50)
        network = llama.build(config)
    if request.param == "window":
        network.blocks[0].attention.mask = Window(3)
    initialise(network, seed=1, std=0.2, depth=2)
    return network.eval()


@pytest.fixture
def forced(monkeypatch):
    """Every pass of two tokens or more goes through blocks; counts how many did."""
    real, made = flex.block_mask, []
    monkeypatch.setattr(flex, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(flex, "LEAST", 2)
    monkeypatch.setattr("stemma.nn.sight.block_mask", lambda *given: made.append(1) or real(*given))
    return made


def tokens_of(rows, length):
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:.*flex_attention.*")
@pytest.mark.parametrize("case", CONTEXTS)
@torch.no_grad()
def test_blocks_give_the_same_scores(model, forced, monkeypatch, case):
    tokens, context = tokens_of(3, 9), CONTEXTS[case]
    with monkeypatch.context() as plain:
        plain.setattr(flex, "LEAST", 1 << 30)
        expected = model(tokens, context)
        assert not forced
    real = context.padding_BT if context.padding_BT is not None else torch.ones(3, 9).bool()
    torch.testing.assert_close(model(tokens, context)[real], expected[real], **CLOSE)
    assert forced


def test_what_is_to_learn_gets_a_mask(model, forced):
    """A CPU has no gradients through blocks, and on a GPU nobody has compared them yet."""
    model(tokens_of(3, 9), CONTEXTS["padding"]).sum().backward()
    assert not forced


@pytest.mark.filterwarnings("ignore:.*flex_attention.*")
@torch.no_grad()
def test_blocks_see_the_padding_of_each_row_in_a_ragged_cache(model, forced):
    """One row of new places against rows that were padded differently."""
    tokens, more = tokens_of(3, 9), tokens_of(3, 4)
    answers = []
    for least in (1 << 30, 2):
        flex.LEAST = least
        cache = model.new_cache(20)
        model(tokens, Context(caches=cache, padding_BT=PADDED))
        places = torch.tensor([[9, 10, 11, 12]])
        answers.append(model(more, Context(caches=cache, positions_BT=places)))
    assert forced
    torch.testing.assert_close(answers[1], answers[0], **CLOSE)


@torch.no_grad()
def test_layers_that_drop_scores_keep_their_mask(forced):
    """Dropout in training goes through the plain kernel: no later token may leak."""
    config = llama.LlamaConfig(width=32, depth=1, num_heads=2, vocab_size=50, dropout=0.1)
    network = llama.build(config)
    initialise(network, seed=1, std=0.2, depth=1)
    network.blocks[0].attention.mask = Window(3)
    tokens = tokens_of(1, 9)
    changed = tokens.clone()
    changed[0, 6] = (tokens[0, 6] + 1) % 50
    network.train()
    logits = []
    for each in (tokens, changed):
        torch.manual_seed(0)
        logits.append(network(each, Context(padding_BT=torch.ones(1, 9).bool())))
    assert not forced
    torch.testing.assert_close(logits[0][:, :6], logits[1][:, :6], rtol=0, atol=0)


@pytest.mark.parametrize("change", ["narrow", "double"])
@torch.no_grad()
def test_what_the_compiled_kernel_refuses_is_not_asked_of_it(forced, change):
    width = 16 if change == "narrow" else 32
    config = llama.LlamaConfig(width=width, depth=1, num_heads=2, vocab_size=50)
    network = llama.build(config)
    initialise(network, seed=1, std=0.2, depth=1)
    network = network.double() if change == "double" else network
    network.blocks[0].attention.mask = Window(3)
    network(tokens_of(1, 9))
    assert not forced
