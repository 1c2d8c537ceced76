"""A byte tokenizer and tiny random models that have opinions (weights much larger than usual)."""

import importlib

import pytest
import torch

from stemma.nn.initial import initialise

BOS, EOS = 256, 257


class ByteTokenizer:
    """256 bytes, then bos and eos, which are no text."""

    def __init__(self, bos_id=BOS, eos_id=EOS, adds_bos=True):
        self.bos_id, self.eos_id, self.adds_bos = bos_id, eos_id, adds_bos

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")


def make_model(family, *, seed=1, **changes):
    """Double precision: the order of additions then never decides a token."""
    numbers = {"width": 16, "depth": 2, "num_heads": 2, "vocab_size": 258, "context": 64}
    module = importlib.import_module(f"stemma.models.{family}")
    if family == "llama":
        numbers["num_kv_heads"] = 1
    config = getattr(module, {"llama": "LlamaConfig", "gpt2": "GPT2Config"}[family])
    model = module.build(config(**{**numbers, **changes}))
    initialise(model, seed=seed, std=0.4, depth=2)
    return model.double().eval()


@pytest.fixture(scope="session")
def tokenizer():
    return ByteTokenizer()


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return make_model(request.param)


@pytest.fixture
def llama():
    return make_model("llama")


@pytest.fixture(scope="session")
def build():
    return make_model


@pytest.fixture(scope="session")
def make_tokenizer():
    return ByteTokenizer


@pytest.fixture(scope="session")
def say():
    """A model whose scores depend on the last token only, given as {last: next}."""

    def saying(follow):
        model = make_model("llama", depth=1, width=258, num_heads=1, num_kv_heads=1, hidden=1)
        with torch.no_grad():
            for block in model.blocks:
                block.attention.output.weight.zero_()
                block.mlp.down.weight.zero_()
            model.embedding.weight.copy_(torch.eye(258))
            model.head.weight.zero_()
            for last, following in follow.items():
                model.head.weight[following, last] = 1.0
        return model

    return saying
