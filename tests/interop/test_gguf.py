"""GGUF in: values as the reference decodes them, ids as the source gives them, a cache that heals.

Files are written by the `gguf` package in llama.cpp's order of rows, so that a wrong permutation or
a wrong name shows as other logits. Files that lie are in tests/bad_inputs/test_gguf.py.
"""

import struct
from typing import get_args

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.models.qwen2 import tokenization_qwen2

from stemma import api
from stemma.core.errors import ModelError, ResourceError
from stemma.data import bpe
from stemma.data.bpe import END_OF_TEXT, Splitting, train_tokenizer
from stemma.interop import gguf_folder, gguf_header, gguf_model, gguf_tensors
from stemma.interop.gguf_header import KINDS, StoredTensor, read_header
from stemma.interop.gguf_model import open_model
from tests.bad_inputs.gguf_pieces import Pieces
from tests.interop.gguf_writing import (
    add,
    finished,
    in_pairs,
    metadata,
    same_weights,
    weights,
    write_gguf,
)

transformers.utils.logging.disable_progress_bar()
NUMBERS = {"width": 64, "depth": 2, "num_heads": 4, "hidden": 96, "context": 40}
TEXTS = ["The cat's mat, it'll do.\n\n  Naïve café 漢字 and 12345 numbers!! " * 20]
TORTURE = [
    "",
    " ",
    "   ",
    "\n\n\t \r\n x",
    "12345678901234567890 3.14 1,000",
    "²③ ⅷ Ⅷ ٣٤",
    "I'll DON'T it'S we'Ve 'tis ''",
    "漢字かな交じり文 한국어 ไทย हिन्दी",
    "e\u0301\u0302 n\u0303",
    "👩‍👩‍👧 🏳️‍🌈",
    "\x00\x01\x7f\ufeff\u200b",
    "a_b-c/d\\e {}[]()<|im_start|> <|im_end|>",
    f"a{END_OF_TEXT}b",
    "   leading and trailing   ",
    "\u00a0\u3000nbsp",
    "ΑΒΓ абв ßﬁ İı",
]
SHARED = train_tokenizer(TEXTS, vocab_size=330)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own."""
    monkeypatch.setenv("STEMMA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def built(**numbers):
    return api.build("llama", **{**NUMBERS, "vocab_size": 352, **numbers}, seed=3).eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(17)[None] * 7)


# The values of tensors


def blocks(kind, rows, columns):
    """Random bytes of so many blocks, of which every value is finite."""
    stored = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[stored]
    random = np.random.default_rng(len(kind))
    found, wanted = [], rows * columns // block
    while len(found) < wanted:
        raw = random.integers(0, 256, size, dtype=np.uint8)
        if np.isfinite(reference(raw[None], kind)).all():
            found.append(raw)
    return np.concatenate(found).reshape(rows, -1)


def reference(raw, kind):
    """What llama.cpp's library makes of the bytes; the definition, for the kind it leaves out."""
    if kind != "Q8_K":
        with np.errstate(all="ignore"):
            return gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    values = [
        struct.unpack("<f", one[:4])[0] * v
        for one in raw.reshape(-1, 292)
        for v in struct.unpack("<256b", one[4:260])
    ]
    with np.errstate(all="ignore"):
        return np.array(values).astype(np.float32).reshape(len(raw), -1)


@pytest.mark.parametrize("piece", [1, 1000, 4 << 20])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_reference(kind, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_tensors, "PIECE", piece)
    raw = blocks(kind, 5, 512)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("before", np.ones((3, 4), np.float32))
    writer.add_tensor("x", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.add_tensor("after", np.ones(3, np.float32))
    path = finished(writer, tmp_path / "x.gguf")
    stored = read_header(path).tensors["x"]
    assert (stored.kind, stored.shape, stored.size) == (kind, (5, 512), raw.size)
    with open(path, "rb") as file:
        values = gguf_tensors.read_values(file, stored, place="x")
    assert values.shape == (5, 512)
    assert torch.equal(values.float(), torch.from_numpy(reference(raw, kind).copy()))
    assert values.dtype == gguf_tensors.PLAIN.get(kind, torch.float32)


def test_header_says_what_the_library_reads(tmp_path):
    """Keys, types, shapes and places of a whole file, against llama.cpp's own reader."""
    path = write_gguf(tmp_path / "m.gguf", built(), SHARED, kind="Q5_1", general__name="tiny")
    header, theirs = read_header(path), gguf.GGUFReader(path)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            wanted = field.contents()
            mine = header.values[key]
            assert (
                list(mine) == wanted if isinstance(wanted, list) else mine == pytest.approx(wanted)
            )
    assert len(header.values) == len(theirs.fields) - 3
    assert header.tensors == {
        t.name: StoredTensor(
            t.tensor_type.name, tuple(map(int, t.shape[::-1])), int(t.data_offset), int(t.n_bytes)
        )
        for t in theirs.tensors
    }


def test_a_file_that_shrinks_is_refused(tmp_path):
    """The header was read when the file was whole."""
    path = write_gguf(tmp_path / "m.gguf", built())
    model = open_model(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"m.gguf: \S+: truncated while it was read"):
        gguf_model.read_state(model)


# The network


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"num_kv_heads": 2},
        {"num_kv_heads": 1, "tied": True},
        {"rope_base": 100_000.0, "norm_eps": 1e-6, "num_heads": 8},
    ],
    ids=["plain", "grouped", "tied", "base"],
)
def test_round_trip_is_the_same_network(numbers, tmp_path):
    model = built(**numbers)
    again, none = api.load(write_gguf(tmp_path / "m.gguf", model))
    assert none is None
    assert again.config == model.config
    assert same_weights(again, model)
    assert torch.equal(logits(again), logits(model))


def test_transformers_agrees(tmp_path):
    """The converted folder is one that transformers reads, with equal logits."""
    model = built(num_kv_heads=2)
    folder = gguf_folder.convert(write_gguf(tmp_path / "m.gguf", model, SHARED))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        found = theirs(torch.arange(17)[None] * 7).logits
    torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=1e-5)


def test_rows_of_pairs_become_halves():
    rows = np.arange(2 * 6 * 3, dtype=np.float32).reshape(12, 3)
    paired = torch.from_numpy(in_pairs(rows, 2))
    assert gguf_model.gguf_llama.in_halves(paired, 2).tolist() == rows.tolist()
    assert paired[:, 0].tolist() == [0, 9, 3, 12, 6, 15, 18, 27, 21, 30, 24, 33]


@pytest.mark.parametrize("kind, dtype", [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_half_precision_is_kept_as_it_is(kind, dtype, tmp_path):
    model = built()
    path = write_gguf(tmp_path / "m.gguf", model, kind=kind)
    again, _ = api.load(path)
    for name, value in model.state_dict().items():
        wanted = value.to(dtype).float() if value.ndim > 1 else value
        assert torch.equal(again.state_dict()[name], wanted), name
    size = (gguf_folder.convert(path) / "model.safetensors").stat().st_size
    assert size < 2.2 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantized_weights_are_near(kind, tmp_path):
    """At most half a step of a block's range away, in every matrix and in its own rows."""
    model = built()
    again, _ = api.load(write_gguf(tmp_path / "m.gguf", model, kind=kind))
    steps = {"Q8_0": 254, "Q4_1": 15}[kind]
    for name, value in model.state_dict().items():
        error = (again.state_dict()[name] - value).abs()
        if value.ndim > 1:
            groups = value.view(-1, 32)
            span = groups.amax(1) - groups.amin(1)
            bound = 2 * groups.abs().amax(1) if kind == "Q8_0" else span
            assert (error.view(-1, 32).amax(1) <= bound / steps * 0.51 + 1e-4).all(), name
        else:
            assert not error.any(), name


def test_old_tables_of_angles_are_passed_over(tmp_path):
    model = built()
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata(model).items():
        add(writer, key, value)
    for name, values in weights(model).items():
        writer.add_tensor(name, values)
    writer.add_tensor("blk.0.attn_rot_embd.weight", np.ones(8, np.float32))
    assert same_weights(api.load(finished(writer, path))[0], model)


# The tokenizer


def loaded(path, tokenizer=SHARED, **more):
    """The tokenizer that comes back out of a file."""
    return api.load(write_gguf(path / "m.gguf", built(depth=1), tokenizer, **more))[1]


def with_token(word):
    """The tokens of the shared tokenizer, and one more."""
    ids = SHARED.backend.get_vocab()
    assert word not in ids
    return [*sorted(ids, key=ids.__getitem__), word]


@pytest.mark.parametrize("rule", get_args(Splitting))
def test_ids_equal_those_of_the_source(rule, tmp_path):
    source = train_tokenizer(TEXTS, vocab_size=340, splitting=rule)
    source.backend.model.ignore_merges = rule == "llama-bpe"
    again = loaded(tmp_path, source, tokenizer__ggml__pre=rule)
    for text in [*TORTURE, *TEXTS]:
        assert again.encode(text) == source.encode(text), text
        assert again.decode(again.encode(text)) == text
    assert (again.bos_id, again.eos_id, again.adds_bos) == (source.bos_id, source.eos_id, True)


def test_ids_equal_those_of_the_source_for_any_text(tmp_path):
    again = loaded(tmp_path)

    @settings(max_examples=50, deadline=None)
    @given(text=st.text())
    def equal(text):
        assert again.encode(text) == SHARED.encode(text)

    equal()


@pytest.mark.parametrize("rule", get_args(Splitting))
def test_ids_equal_those_of_transformers(rule, tmp_path):
    source = train_tokenizer(TEXTS, vocab_size=340, splitting=rule)
    path = write_gguf(tmp_path / "m.gguf", built(), source, tokenizer__ggml__pre=rule)
    theirs = transformers.AutoTokenizer.from_pretrained(gguf_folder.convert(path))
    _, mine = api.load(path)
    for text in [text for text in TORTURE if END_OF_TEXT not in text]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == mine.encode(text), text
        assert theirs(text)["input_ids"] == [mine.bos_id, *mine.encode(text)]


def test_rule_of_qwen_2_is_that_of_its_reference():
    pattern = tokenization_qwen2.PRETOKENIZE_REGEX
    reference = bpe.pre_tokenizers.Split(bpe.Regex(pattern), behavior="isolated")
    rule = bpe.pre_tokenizer("qwen2")
    for text in [*TORTURE, *TEXTS]:
        spans = [span for _, span in reference.pre_tokenize_str(text)]
        assert [span for _, span in rule.pre_tokenize_str(text)] == spans, text


def test_a_whole_word_is_taken_before_merges_where_the_rule_says_so(tmp_path):
    """Llama 3's vocabulary has words that its merges do not reach."""
    tokens = with_token("qzx")
    types = [3] + [1] * (len(tokens) - 1)
    more = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": types}
    for rule, found in (("llama-bpe", 1), ("qwen2", 3)):
        again = loaded(tmp_path, **more, tokenizer__ggml__pre=rule)
        assert len(again.encode("qzx")) == found
        (tmp_path / "m.gguf").unlink()


def test_plain_text_never_becomes_a_control_token(tmp_path):
    types = [3] + [1] * (SHARED.vocab_size - 1)
    again = loaded(tmp_path, tokenizer__ggml__token_type=types)
    for text in (END_OF_TEXT, f"a{END_OF_TEXT}b", f" {END_OF_TEXT}\n"):
        assert again.eos_id not in again.encode(text)
        assert again.decode(again.encode(text)) == text
    assert again.decode([again.eos_id, *again.encode("a")]) == "a"


def test_roles_make_control_tokens_whatever_their_type(tmp_path):
    """Converters have left the end of a turn as plain text; it would then be written out."""
    again = loaded(tmp_path, tokenizer__ggml__token_type=[1] * SHARED.vocab_size)
    assert again.decode([again.eos_id]) == ""
    assert again.eos_id not in again.encode(END_OF_TEXT)


def test_tokens_of_the_user_are_found_in_text(tmp_path):
    """Type 4: one token wherever it is written, but no control token."""
    tokens = with_token("<tab>")
    types = [3] + [1] * (len(tokens) - 2) + [4]
    more = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": types}
    again = loaded(tmp_path, **more)
    assert again.encode("a<tab>b") == [*again.encode("a"), len(tokens) - 1, *again.encode("b")]
    assert again.decode(again.encode("a<tab>b")) == "a<tab>b"


@pytest.mark.parametrize(
    "rule, said, adds",
    [
        ("gpt-2", None, False),
        ("gpt-2", True, True),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
    ],
)
def test_a_text_begins_as_the_file_says(rule, said, adds, tmp_path):
    more = {"tokenizer__ggml__pre": rule, "tokenizer__ggml__add_bos_token": said}
    assert loaded(tmp_path, **more).adds_bos is adds


def test_template_and_roles_come_along(tmp_path):
    words = "{% for message in messages %}{{ message.content }}{% endfor %}"
    path = write_gguf(
        tmp_path / "m.gguf",
        built(),
        SHARED,
        tokenizer__chat_template=words,
        tokenizer__ggml__padding_token_id=5,
        tokenizer__ggml__unknown_token_id=0,
    )
    _, tokenizer = api.load(path)
    assert (tokenizer.template, tokenizer.pad_id) == (words, 5)
    assert tokenizer.decode([5]) != "", "padding with a plain token leaves it one"
    theirs = transformers.AutoTokenizer.from_pretrained(gguf_folder.convert(path))
    assert theirs.chat_template == words
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, 5)


# Generation settings


def test_the_end_of_a_turn_ends_a_text(tmp_path):
    tokens = with_token("<|eot|>")
    path = write_gguf(
        tmp_path / "m.gguf",
        built(),
        SHARED,
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__token_type=[3] + [1] * (len(tokens) - 1),
        tokenizer__ggml__eot_token_id=len(tokens) - 1,
        general__sampling__temp=0.6,
        general__sampling__top_k=20,
        general__sampling__top_p=0.95,
        general__sampling__penalty_repeat=1.1,
    )
    model, tokenizer = api.load(path)
    assert api.end_ids(model, tokenizer) == {0, len(tokens) - 1}
    said = api.sampling(model)
    assert (said.temperature, said.top_k, said.top_p) == (0.6, 20, 0.95)
    assert said.repetition_penalty == 1.1


def test_temperature_0_is_greedy_for_transformers_too(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", built(), SHARED, general__sampling__temp=0.0)
    assert api.sampling(api.load(path)[0]).temperature == 0
    config = transformers.GenerationConfig.from_pretrained(gguf_folder.convert(path))
    config.validate(strict=True)
    assert config.do_sample is False


# The cache of converted files


@pytest.fixture
def file(tmp_path):
    return write_gguf(tmp_path / "m.gguf", built(), SHARED, kind="Q8_0")


def test_second_load_reads_the_converted_folder(file, home, monkeypatch):
    first, _ = api.load(file)
    (folder,) = (home / "converted").iterdir()
    assert folder.name == gguf_folder.sha256_file(file)
    monkeypatch.setattr(gguf_model, "read_values", lambda *_, **__: pytest.fail("decoded again"))
    again, tokenizer = api.load(file)
    assert same_weights(again, first)
    assert tokenizer.encode("The cat") == SHARED.encode("The cat")


def test_place_and_name_of_the_file_do_not_matter(file, tmp_path, home):
    api.load(file)
    (tmp_path / "other").mkdir()
    api.load(file.rename(tmp_path / "other" / "blob"))
    assert len(list((home / "converted").iterdir())) == 1


def test_another_file_under_the_name_is_another_model(file, tmp_path):
    api.load(file)
    model = built(tied=True)
    write_gguf(file, model)
    assert same_weights(api.load(file)[0], model)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def flipped(folder):
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 255
    path.write_bytes(raw)


def changed_record(folder):
    path = folder / gguf_folder.RECORD
    path.write_text(path.read_text().replace('"version": 1', '"version": 0'))


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flipped,
        changed_record,
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: (folder / "stray").touch(),
        lambda folder: (folder / gguf_folder.RECORD).unlink(),
        lambda folder: (folder / gguf_folder.RECORD).write_text("[]"),
        lambda folder: [path.unlink() for path in folder.iterdir()],
    ],
    ids="cut flipped version tokenizer config stray record list empty".split(),
)
def test_a_damaged_folder_is_made_again(damage, file, home):
    first, _ = api.load(file)
    (folder,) = (home / "converted").iterdir()
    damage(folder)
    assert not gguf_folder.is_whole(folder)
    again, _ = api.load(file)
    assert same_weights(again, first)
    assert gguf_folder.is_whole(folder)
    assert list((home / "converted").iterdir()) == [folder]


def test_a_failure_leaves_nothing(tmp_path, home):
    """A weight that is no number is found after others were decoded."""
    model = built()
    with torch.no_grad():
        model.norm.weight[3] = float("nan")
    path = write_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(ModelError, match=r"m.gguf: output_norm.weight: 1 of 64 values are NaN"):
        api.load(path)
    assert not list((home / "converted").iterdir())


def test_no_room_is_said_before_the_work(file, monkeypatch):
    monkeypatch.setattr(gguf_folder, "free_bytes", lambda place: 1000)
    monkeypatch.setattr(gguf_folder, "read_state", lambda model: pytest.fail("decoded"))
    with pytest.raises(ResourceError, match=r"need \d+ bytes, 1000 are free; .*STEMMA_HOME"):
        api.load(file)


def test_a_cache_that_cannot_be_written_is_named(file, home):
    home.mkdir()
    (home / "converted").write_text("in the way")
    with pytest.raises(ResourceError, match=r"home/converted: .*; .+"):
        api.load(file)


# Names of models


def test_a_folder_of_one_file_is_that_file(file, tmp_path):
    (tmp_path / "folder").mkdir()
    file.rename(tmp_path / "folder" / "m.gguf")
    assert api.load(tmp_path / "folder")[1] is not None
    write_gguf(tmp_path / "folder" / "n.gguf", built())
    with pytest.raises(ModelError, match=r"folder: holds 2 GGUF files; name one of them"):
        api.load(tmp_path / "folder")


def test_info_reads_no_weight(file, home, monkeypatch):
    monkeypatch.setattr(gguf_model, "read_values", lambda *_, **__: pytest.fail("decoded"))
    facts = api.info(file)
    assert facts["parameters"] == sum(p.numel() for p in built().parameters())
    assert facts["bytes"] == file.stat().st_size
    assert (facts["dtype"], facts["context"], facts["vocabulary"]) == ("F32, Q8_0", 40, 352)
    assert (facts["tokenizer"], facts["template"]) == (True, False)
    assert not home.exists()


# Files that were changed at random


SOUND = Pieces().built()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=4))
def test_changed_bytes_are_taken_or_refused(changes, tmp_path_factory):
    raw = bytearray(SOUND)
    for place, value in changes:
        raw[place] = value
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    path.write_bytes(raw)
    try:
        gguf_model.read_state(open_model(path))
    except ModelError as error:
        assert len(str(error)) <= 300 and "\n" not in str(error)


def test_every_cut_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    for size in range(0, len(SOUND) - 1, 29):
        path.write_bytes(SOUND[:size])
        with pytest.raises(ModelError):
            open_model(path)


def test_limits_hold_for_the_sum_of_a_header(tmp_path, monkeypatch):
    """Many allowed lists could be too much together."""
    path = tmp_path / "m.gguf"
    path.write_bytes(SOUND)
    monkeypatch.setattr(gguf_header, "MAX_STRINGS", 10)
    with pytest.raises(ModelError, match=r"merges: 11 strings, more than the 10 that are read"):
        read_header(path)
    monkeypatch.setattr(gguf_header, "MAX_HEADER", 500)
    with pytest.raises(ModelError, match="more than 500 bytes before the tensors"):
        read_header(path)
