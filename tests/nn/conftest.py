"""Tiny random models in double precision, with weights large enough that every path matters."""

import pytest
import torch

from stemma.models import gpt2, llama
from stemma.nn.initial import initialise

VOCAB = 50
LLAMA = {"width": 24, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "vocab_size": VOCAB}
GPT2 = {"width": 24, "depth": 2, "num_heads": 4, "vocab_size": VOCAB, "context": 32}


def make(family):
    if family == "llama":
        model = llama.build(llama.LlamaConfig(**LLAMA))
    else:
        model = gpt2.build(gpt2.GPT2Config(**GPT2))
    initialise(model, seed=1, std=0.3, depth=2)
    return model.double().eval().requires_grad_(False)


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return make(request.param)


@pytest.fixture(scope="session")
def build():
    return make


@pytest.fixture(scope="session")
def tokens_of():
    """Random tokens (rows, length), a pure function of the seed."""

    def make_tokens(rows, length, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, VOCAB, (rows, length), generator=generator)

    return make_tokens
