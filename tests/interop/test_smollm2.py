"""The real SmolLM2, from its GGUF file: the same numbers and words as transformers' own reader."""

import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from stemma import api
from stemma.core import assets
from stemma.data.messages import Message
from stemma.data.renderer import Renderer
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
CHATS = [
    (Message("user", "What is the capital of France?"),),
    (Message("user", "Write one sentence about the sea."),),
    (
        Message("system", "You answer with one word."),
        Message("user", "Which colour has the sky on a clear day?"),
    ),
    (
        Message("user", "My name is Ada."),
        Message("assistant", "Hello Ada, how can I help you?"),
        Message("user", "What is my name?"),
    ),
    (Message("user", "Wie viel ist 12 + 30?  Rechne, 日本 👩‍👩‍👧, and\n\nanswer.\n"),),
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


def agree(ours, theirs, ids, name):
    """Both write on greedily: the same tokens, or others first where the two best are as good."""
    model, tokenizer = ours
    chosen = Sampling(max_new_tokens=LENGTH, temperature=0.0)
    (made,) = generate(model, tokenizer, [ids], chosen, end_ids=api.end_ids(model, tokenizer))
    begun = torch.tensor([ids])
    with torch.no_grad():
        wanted = theirs.generate(begun, do_sample=False, max_new_tokens=LENGTH, eos_token_id=2)[0]
    wanted = wanted[len(ids) :].tolist()
    pairs = list(zip(made.token_ids, wanted, strict=False))
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if first is None:
        print(f"\n{name!r}: equal, {len(pairs)} tokens")
        assert abs(len(made.token_ids) - len(wanted)) <= 1  # one of them keeps the end token
        return made.text
    with torch.no_grad():
        before = torch.tensor([[*ids, *wanted[:first]]])
        best = theirs(before).logits[0, -1].topk(2).values
    apart = float(best[0] - best[1])
    print(f"\n{name!r}: differs at {first}, where the two best are {apart:.1e} apart")
    assert apart < NEAR
    return made.text


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_transformers(prompt, ours, theirs):
    agree(ours, theirs, ours[1].encode(prompt), prompt)


@pytest.fixture(scope="module")
def renderer(ours):
    return Renderer(ours[1])


@pytest.fixture(scope="module")
def their_tokenizer(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, text in ours[1].files().items():
        (folder / name).write_text(text, "utf-8")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("messages", CHATS, ids=[chat[-1].content[:20] for chat in CHATS])
def test_greedy_answer_is_that_of_transformers(messages, ours, theirs, renderer, their_tokenizer):
    """The template applied by each, then the answer of each."""
    ids = renderer.prompt(messages)
    wanted = their_tokenizer.apply_chat_template(
        [message.to_json() for message in messages], add_generation_prompt=True, return_dict=False
    )
    assert ids == wanted
    answer = agree(ours, theirs, ids, messages[-1].content)
    assert answer.strip()
    if messages == CHATS[0]:
        assert "Paris" in answer
