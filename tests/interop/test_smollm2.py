"""The real SmolLM2, from its GGUF file: the same numbers and words as transformers' own reader."""

import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from stemma import api
from stemma.core import assets
from stemma.infer.generate import generate
from stemma.infer.sampling import Sampling
from stemma.interop.tables import tables

pytestmark = pytest.mark.net  # 93 MB, once; about a minute on one core

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "In 1969, 12345 people",
    "Die Hauptstadt von Deutschland ist",
]
LENGTH = 64
NEAR = 1e-4  # two logits that are as near may change places between two orders of addition


@pytest.fixture(scope="module")
def file():
    (path,) = assets.pull("smollm2-135m").glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def ours(file, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEMMA_HOME", str(tmp_path_factory.mktemp("home")))
        return api.load(file)


@pytest.fixture(scope="module")
def theirs(file):
    """Its own reading of keys, names and order of rows; the door to it wants a package more."""
    numbers = load_gguf_checkpoint(str(file))["config"]
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**numbers))
    found = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    missing, unknown = model.load_state_dict(found, strict=False)
    assert (missing, unknown) == (["lm_head.weight"], [])
    model.tie_weights()
    return model.eval()


def test_weights_are_those_that_transformers_reads(ours, theirs):
    """Another reader: its own names, its own way back to halves."""
    found, mine = theirs.state_dict(), ours[0].state_dict()
    entries = list(tables()["llama"].entries(ours[0].config))
    assert len(entries) == len(mine) == len(found) - 1  # the head is the embedding
    for entry in entries:
        assert torch.equal(mine[entry.ours[0]], found[entry.theirs]), entry.theirs


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_transformers(prompt, ours, theirs):
    model, tokenizer = ours
    chosen = Sampling(max_new_tokens=LENGTH, temperature=0.0)
    (made,) = generate(model, tokenizer, [prompt], chosen, end_ids=api.end_ids(model, tokenizer))
    ids = torch.tensor([tokenizer.encode(prompt)])
    with torch.no_grad():
        wanted = theirs.generate(ids, do_sample=False, max_new_tokens=LENGTH, eos_token_id=2)[0]
    wanted = wanted[ids.shape[1] :].tolist()
    pairs = list(zip(made.token_ids, wanted, strict=False))
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    print(
        f"\n{prompt!r}: {'equal' if first is None else f'differs at {first}'}, {len(pairs)} tokens"
    )
    if first is None:
        assert abs(len(made.token_ids) - len(wanted)) <= 1  # one of them keeps the end token
        return
    with torch.no_grad():
        before = torch.cat([ids, torch.tensor([wanted[:first]], dtype=ids.dtype)], dim=1)
        best = theirs(before).logits[0, -1].topk(2).values
    assert best[0] - best[1] < NEAR, f"differs at {first}, {best[0] - best[1]} apart"


def test_a_question_is_answered(ours):
    """With the control tokens of its chat form set by number."""
    model, tokenizer = ours
    ids = [1, *tokenizer.encode("user\nWhat is the capital of France?"), 2]
    ids += [*tokenizer.encode("\n"), 1, *tokenizer.encode("assistant\n")]
    said = []
    with torch.no_grad():
        while len(said) < 16 and tokenizer.eos_id not in said:
            said.append(int(model(torch.tensor([ids + said]))[0, -1].argmax()))
    assert tokenizer.decode(said) == "The capital of France is Paris."
