"""Gemma 3 out of GGUF: the same network and the same ids, from files written here.

Weights are written in llama.cpp's form, one added to every norm. The tokenizer is held against
SentencePiece's own rule (join the best-scored pair of neighbours, the leftmost of equals), written
once more in the plainest way.
"""

import random

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from stemma import api
from stemma.core.errors import MAX_MESSAGE, ModelError
from stemma.interop import gguf_folder
from stemma.interop.gguf_model import open_model
from stemma.interop.gguf_pieces import BYTE, NORMAL, NUM_BYTES, USER_DEFINED, merges
from stemma.nn.rope_scaling import Interpolation
from tests.interop.gguf_writing import add, finished, same_weights, spelled

transformers.utils.logging.disable_progress_bar()
NUMBERS = {"width": 32, "depth": 7, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
NUMBERS |= {"hidden": 64, "context": 64, "window": 5, "vocab_size": 320}
CONTROL = 3
NAMES = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp_post_norm": "post_ffw_norm",
    "embedding": "token_embd",
    "norm": "output_norm",
    "head": "output",
}
WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<h1>", "\n", "\n\n", "  ", "   "]
PIECES = ["▁", "▁a", "ab", "▁ab", "abc", "bc", "▁abc", "aa", "aaa", "▁▁a", "é", "cé", "1", "12"]
LETTERS = ["a", "b", "c", "<", "h", ">", "m", "s", "k", "r", "0", "x", "A"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own."""
    monkeypatch.setenv("STEMMA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def built(**numbers):
    """A network in which every parameter matters."""
    model = api.build("gemma3", **{**NUMBERS, **numbers}, seed=3).eval()
    torch.manual_seed(4)
    for name, value in model.state_dict().items():
        spread = 0.3 if name.endswith("norm.weight") else 1.2 * value.shape[-1] ** -0.5
        value.copy_(torch.randn(value.shape) * spread)
    return model


def metadata(config):
    return {
        "gemma3.block_count": config.depth,
        "gemma3.context_length": config.context,
        "gemma3.embedding_length": config.width,
        "gemma3.feed_forward_length": config.hidden,
        "gemma3.attention.head_count": config.num_heads,
        "gemma3.attention.head_count_kv": config.num_kv_heads,
        "gemma3.attention.key_length": config.head_dim,
        "gemma3.attention.value_length": config.head_dim,
        "gemma3.attention.sliding_window": config.window,
        "gemma3.attention.layer_norm_rms_epsilon": config.norm_eps,
        "gemma3.rope.freq_base": config.rope_base,
    }


def vocabulary():
    """The keys of a small tokenizer of pieces; the better pieces stand before the others."""
    tokens = [*WORDS, *(f"<0x{byte:02X}>" for byte in range(NUM_BYTES)), *PIECES, *LETTERS]
    types = [CONTROL] * 5 + [USER_DEFINED] * 5 + [BYTE] * NUM_BYTES
    types += [NORMAL] * (len(tokens) - len(types))
    scores = [-1000.0] * (10 + NUM_BYTES) + [-float(i) for i in range(len(PIECES + LETTERS))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def write(path, model, **more):
    """A file of a Gemma of ours; a key of `more` has its dots as two underscores."""
    writer = gguf.GGUFWriter(path, "gemma3")
    for key, value in {**metadata(model.config), **vocabulary(), **spelled(more)}.items():
        if value is not None:
            add(writer, key, value)
    for name, value in model.state_dict().items():
        parts = name.removesuffix(".weight").split(".")
        block = f"blk.{parts[1]}." if parts[0] == "blocks" else ""
        theirs = NAMES[".".join(parts[2:] if block else parts)]
        stored = value.numpy() + (1 if "norm" in parts[-1] else 0)
        writer.add_tensor(f"{block}{theirs}.weight", stored.astype(np.float32))
    return finished(writer, path)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(30)[None] * 7 % 300)


# The network


@pytest.mark.parametrize(
    "numbers",
    [{}, {"num_kv_heads": 1, "head_dim": 24, "query_scalar": 24}, {"tied": False}],
    ids=["tied", "wide heads", "untied"],
)
def test_round_trip_is_the_same_network(numbers, tmp_path):
    model = built(**numbers)
    again, _ = api.load(write(tmp_path / "m.gguf", model))
    assert again.config == model.config
    for name, value in model.state_dict().items():
        near = 1e-6 if name.endswith("norm.weight") else 0  # one was added, and taken off
        torch.testing.assert_close(again.state_dict()[name], value, atol=near, rtol=0)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-4, rtol=1e-5)


def test_transformers_reads_the_same_weights_out_of_the_file(tmp_path):
    path = write(tmp_path / "m.gguf", built())
    again, _ = api.load(path)
    numbers = load_gguf_checkpoint(str(path))["config"]
    numbers |= {"query_pre_attn_scalar": 16, "vocab_size": 320}  # they count tokens, not rows
    shape = transformers.Gemma3TextConfig(**numbers)
    theirs = transformers.Gemma3ForCausalLM(shape).eval()
    found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=theirs)["tensors"]
    missing, unknown = theirs.load_state_dict(found, strict=False)
    assert (missing, unknown) == (["lm_head.weight"], [])
    theirs.tie_weights()
    with torch.no_grad():
        wanted = theirs(torch.arange(30)[None] * 7 % 300).logits
    assert wanted.std() > 1
    torch.testing.assert_close(logits(again), wanted, atol=1e-4, rtol=1e-5)


def test_the_converted_folder_is_read_by_transformers(tmp_path):
    path = write(tmp_path / "m.gguf", built())
    again, tokenizer = api.load(path)
    folder = gguf_folder.convert(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found = theirs(torch.arange(30)[None] * 7 % 300).logits
    torch.testing.assert_close(found, logits(again), atol=1e-5, rtol=1e-5)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("abc  ab\n\nx", "<h1>é 12"):
        assert words(text)["input_ids"] == [2, *tokenizer.encode(text)]


def test_angles_may_be_stretched_where_a_block_sees_all(tmp_path):
    more = {"gemma3__rope__scaling__type": "linear", "gemma3__rope__scaling__factor": 8.0}
    config = open_model(write(tmp_path / "m.gguf", built(), **more)).config
    assert config.rope_scaling == Interpolation(factor=8.0)
    assert config.local_rope_scaling.kind == "none"


def test_the_base_of_windowed_blocks_is_told_by_newer_files(tmp_path):
    path = write(tmp_path / "m.gguf", built(), gemma3__rope__freq_base_swa=5000.0)
    assert open_model(path).config.local_rope_base == 5000.0


def test_the_largest_model_divides_its_scores_by_another_root(tmp_path):
    """Told by its depth alone, as llama.cpp tells it: 62 blocks, width / num_heads."""
    small = {"width": 32, "num_heads": 4, "head_dim": 16, "hidden": 8}
    model = built(depth=62, **small)
    assert open_model(write(tmp_path / "m.gguf", model)).config.query_scalar == 8
    model = built(depth=3, **small)
    assert open_model(write(tmp_path / "n.gguf", model)).config.query_scalar == 16


REFUSALS = {
    "window missing": ({"gemma3__attention__sliding_window": None}, r"sliding_window: the key is"),
    "every fourth": (
        {"gemma3__attention__sliding_window_pattern": 4},
        "4 is not supported, only 6",
    ),
    "yarn": ({"gemma3__rope__scaling__type": "yarn"}, "'yarn' is not supported"),
    "softcap": ({"gemma3__final_logit_softcapping": 30.0}, "30.0 is not supported"),
    "value width": ({"gemma3__attention__value_length": 8}, "8, wanted the width of a head, 16"),
    "heads": ({"gemma3__attention__head_count": 3}, r"attention.head_count \(3\)"),
    "scores": ({"tokenizer__ggml__scores": [0.0]}, "1 scores for"),
    "nan": ({"tokenizer__ggml__scores": [float("nan")] * 293}, "a score is NaN or infinite"),
    "prefix": ({"tokenizer__ggml__add_space_prefix": True}, "a space in front of every text"),
    "prefix said by silence": ({"tokenizer__ggml__add_space_prefix": None}, "a space in front"),
    "spaces": ({"tokenizer__ggml__remove_extra_whitespaces": True}, "repeated spaces"),
    "unknown": ({"tokenizer__ggml__unknown_token_id": None}, "unknown_token_id: the key is"),
    "bytes": ({"tokenizer__ggml__token_type": [3] * 11 + [6] * 255 + [1] * 27}, "255 of the 256"),
}


@pytest.mark.parametrize("more, complaint", REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_computed_is_refused_by_its_key(more, complaint, tmp_path):
    path = write(tmp_path / "m.gguf", built(), **more)
    with pytest.raises(ModelError, match=complaint) as caught:
        open_model(path)
    assert str(caught.value).startswith(f"{path}") and len(str(caught.value)) <= MAX_MESSAGE


# The tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    return open_model(write(tmp_path / "m.gguf", built(depth=1))).tokenizer


def by_score(text):
    """SentencePiece's rule, on a text without words of the user: ids by joining the best pair."""
    keys = vocabulary()
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    worth = {t: s for t, s in zip(tokens, scores, strict=True) if t in PIECES + LETTERS}
    parts = list(text.replace(" ", "▁"))
    while True:
        joined = [
            (-worth[a + b], at)
            for at, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
            if a + b in worth
        ]
        if not joined:
            break
        at = min(joined)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    raw = [[p] if p in worth else [f"<0x{byte:02X}>" for byte in p.encode()] for p in parts]
    return [tokens.index(token) for part in raw for token in part]


def test_ids_follow_the_scores(tokenizer):
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choices("abcaab 1é漢x", k=rng.randrange(20))).replace("  ", " ")
        assert tokenizer.encode(text) == by_score(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_of_the_user_are_found_in_text(tokenizer):
    tokens = vocabulary()["tokenizer.ggml.tokens"]
    assert tokenizer.encode("a<h1>\n\n") == [tokens.index(t) for t in ("a", "<h1>", "\n\n")]
    assert tokenizer.encode("x   1") == [tokens.index(t) for t in ("x", "   ", "1")]


def test_plain_text_spells_neither_control_tokens_nor_bytes(tokenizer):
    for word in ("<mask>", "<bos>", "<eos>", "<0x0A>"):
        number = tokenizer.backend.token_to_id(word)
        assert number is not None
        assert number not in tokenizer.encode(f"a{word} b")
        assert tokenizer.decode(tokenizer.encode(f"a{word} b")) == f"a{word} b"
    assert tokenizer.encode_template("<bos>a")[0] == tokenizer.bos_id == 2


def test_a_text_begins_with_the_token_that_the_file_says(tokenizer):
    assert tokenizer.adds_bos
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 1, 0)


def test_pairs_are_joined_in_the_order_of_what_they_make():
    """Best score first, then the longer left part; control tokens are never made."""
    tokens = ["a", "b", "ab", "aba", "ba", "bb"]
    types = np.array([1, 1, 1, 1, 1, CONTROL])
    scores = np.array([-9.0, -8.0, -2.0, -1.0, -3.0, 0.0])
    wanted = [("ab", "a"), ("a", "ba"), ("a", "b"), ("b", "a")]
    assert merges(tokens, types, scores) == wanted
    assert merges(tokens, np.where(scores == -3, USER_DEFINED, types), scores)[0] == ("b", "a")


def test_a_second_load_is_the_same(tmp_path):
    path = write(tmp_path / "m.gguf", built(depth=1))
    first, tokenizer = api.load(path)
    again, same = api.load(path)
    assert same_weights(first, again)
    assert same.encode("abc  é\n\n") == tokenizer.encode("abc  é\n\n")
