# ruff: noqa: E501  (tables are read by rows)
"""Bad GGUF files, cases 61, 63 and 64: one line with the file, the key or tensor, and the way out.

Every case harms one piece of a sound file. No claim of a header may be believed for an allocation,
and no byte outside a tensor may end up in a weight.
"""

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stemma import api
from tests.bad_inputs.command_line import Refused, call, names, refuse
from tests.bad_inputs.gguf_pieces import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    TOKENS,
    U32,
    U64,
    WIDTH,
    Line,
    Pieces,
    many,
    one,
    sound_tensors,
    text,
)
from tests.bad_inputs.layouts import put, recipe

INFO = "info model.gguf"
GENERATE = "generate model.gguf --raw --prompt ab --max-new-tokens 1 --device cpu"
FILE = r"model\.gguf: "
AGAIN = r"; download or export the model again"
UP, NORM, EMBEDDING = "blk.0.ffn_up.weight", "output_norm.weight", "token_embd.weight"
TOKEN_KEYS = r"tokenizer\.ggml\."


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """A cache of its own, outside the folder that must stay as it was."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("STEMMA_HOME", str(folder))
    return folder


def harmed(change: Callable[[Pieces], object]) -> Callable[[Path], None]:
    """A file of which one piece is changed."""

    def lay_out(folder: Path) -> None:
        pieces = Pieces()
        change(pieces)
        put(folder / "model.gguf", pieces.built())

    return lay_out


def has(**pieces: Any) -> Callable[[Path], None]:
    """A file with other numbers at its head."""
    return harmed(lambda p: [setattr(p, name, value) for name, value in pieces.items()])


def key(name: str, value: Any) -> Callable[[Path], None]:
    """A file with another value of one key; None takes the key out."""

    def change(pieces: Pieces) -> None:
        pieces.values[name] = value
        if value is None:
            del pieces.values[name]

    return harmed(change)


def llama(name: str, kind: int, value: Any) -> Callable[[Path], None]:
    return key(f"llama.{name}", one(kind, value))


def words(name: str, value: Any) -> Callable[[Path], None]:
    return key(f"tokenizer.ggml.{name}", value)


def line(name: str, **changed: Any) -> Callable[[Path], None]:
    """A file with another line for one tensor."""
    return harmed(lambda p: [setattr(p.lines[name], k, v) for k, v in changed.items()])


def added(name: str, made: Line) -> Callable[[Path], None]:
    return harmed(lambda p: p.lines.__setitem__(name, made))


def moved(pieces: Pieces) -> None:
    """One tensor begins in the middle of the one before it."""
    pieces.lines[UP].start -= 32


def cut(size: int) -> Callable[[Path], None]:
    """A file that ends early; negative sizes count from the end."""
    return lambda folder: put(folder / "model.gguf", Pieces().built()[:size])


def other_values(name: str, kind: str, value: float) -> Callable[[Path], None]:
    """A file with another number in a tensor, twice."""

    def change(pieces: Pieces) -> None:
        start = pieces.lines[name].start
        pieces.data[start : start + 8] = np.array([value, value], kind).tobytes()

    return harmed(change)


def raw_value(kind: int, raw: bytes) -> Callable[[Path], None]:
    return key("general.name", (kind, raw))


HUGE = 2**64 - 1
NUM_KEYS = len(Pieces().values)
TWICE = text("general.architecture") + struct.pack("<I", STRING) + text("llama")
LINE_TWICE = Line([8], 0, 0).packed(NORM)

CASES = [
    # 61: values that are none
    Refused(61, "nan", other_values(UP, "<f4", np.nan), GENERATE, 4, FILE + UP + r": 2 of 128 values are NaN or infinite; use another file of the model"),
    Refused(61, "infinite", other_values(NORM, "<f4", -np.inf), GENERATE, 4, FILE + NORM + r": 2 of 8 values are NaN or infinite; .+"),
    # 63: sizes and places that lie
    Refused(63, "end-of-file", cut(-32), INFO, 4, FILE + NORM + r": truncated: it ends at byte \d+ of a file of \d+" + AGAIN),
    Refused(63, "in-a-tensor", cut(-400), GENERATE, 4, FILE + r"\S+: truncated: it ends at byte \d+ of a file of \d+" + AGAIN),
    Refused(63, "offset-past-end", line(NORM, start=2**40), INFO, 4, FILE + NORM + r": truncated: it ends at byte \d+ of a file of \d+" + AGAIN),
    Refused(63, "offset-2-to-64", line(NORM, start=2**64 - 32), INFO, 4, FILE + NORM + r": truncated: it ends at byte 184467440737095\d+ of a file of \d+" + AGAIN),
    Refused(63, "offset-not-aligned", line(NORM, start=4), INFO, 4, FILE + NORM + r": begins at 4, no multiple of the alignment 32" + AGAIN),
    Refused(63, "overlap", harmed(moved), GENERATE, 4, FILE + UP + r": overlaps with blk\.0\.ffn_gate\.weight: begins at \d+, wanted \d+" + AGAIN),
    Refused(63, "same-place", line(NORM, start=0), INFO, 4, FILE + r"\S+: overlaps with \S+: begins at \d+, wanted \d+" + AGAIN),
    Refused(63, "more-rows", line(NORM, axes=[8, 2**20]), INFO, 4, FILE + NORM + r": truncated: it ends at byte \d+ of a file of \d+" + AGAIN),
    Refused(63, "product-2-to-63", line(NORM, axes=[2**32, 2**31]), INFO, 4, FILE + NORM + r": shape \[2147483648, 4294967296\] is none of a tensor" + AGAIN),
    Refused(63, "product-2-to-64", line(NORM, axes=[2**32, 2**32]), INFO, 4, FILE + NORM + r": shape .* is none of a tensor" + AGAIN),
    Refused(63, "axis-of-0", line(NORM, axes=[0]), INFO, 4, FILE + NORM + r": shape \[0\] is none of a tensor" + AGAIN),
    Refused(63, "axis-of-minus-1", line(NORM, axes=[HUGE]), INFO, 4, FILE + NORM + r": shape \[18446744073709551615\] is none of a tensor" + AGAIN),
    Refused(63, "no-axes", line(NORM, axes=[]), INFO, 4, FILE + NORM + r": 0 axes, wanted 1 to 4" + AGAIN),
    Refused(63, "five-axes", line(NORM, axes=[8, 1, 1, 1, 1]), INFO, 4, FILE + NORM + r": 5 axes, wanted 1 to 4" + AGAIN),
    Refused(63, "a-million-axes", line(NORM, axes_said=10**6), INFO, 4, FILE + NORM + r": 1000000 axes, wanted 1 to 4" + AGAIN),
    Refused(63, "part-of-a-block", line(NORM, kind=3), INFO, 4, FILE + NORM + r": Q4_1 stores 32 values at once, a row has 8" + AGAIN),
    Refused(63, "unknown-type", line(NORM, kind=4), INFO, 4, FILE + NORM + r": values of the unknown type 4" + AGAIN),
    Refused(63, "type-not-read", line(NORM, kind=26), INFO, 4, FILE + NORM + r": values of type I32 cannot be read; use a file with values of F32, .*Q8_K"),
    Refused(63, "fewer-columns", line(UP, axes=[4, 16]), GENERATE, 4, FILE + UP + r": shape \[16, 4\], wanted \[16, 8\]; check feed_forward_length and embedding_length"),
    Refused(63, "one-axis", line(UP, axes=[128]), GENERATE, 4, FILE + UP + r": shape \[128\], wanted \[16, 8\]; check .+"),
    Refused(63, "missing", harmed(lambda p: p.lines.pop(UP)), INFO, 4, FILE + r"does not fit the architecture llama: 1 tensors missing, 0 unused; missing " + UP + r"; .+"),
    Refused(63, "bias", harmed(lambda p: (p.lines.update({"blk.0.attn_q.bias": Line([8], 0, len(p.data))}), p.data.extend(bytes(32)))), INFO, 4, FILE + r"does not fit .*0 tensors missing, 1 unused; unused blk\.0\.attn_q\.bias; .+"),
    Refused(63, "name-twice", has(more_lines=LINE_TWICE, num_tensors=12), INFO, 4, FILE + NORM + r": the name stands there twice" + AGAIN),
    Refused(63, "no-embedding", harmed(lambda p: p.lines.pop(EMBEDDING)), INFO, 4, FILE + EMBEDDING + r": the tensor is missing" + AGAIN),
    Refused(63, "no-tensors", harmed(lambda p: p.lines.clear()), INFO, 4, FILE + EMBEDDING + r": the tensor is missing" + AGAIN),
    # 64: a head that lies
    Refused(64, "empty", cut(0), INFO, 4, FILE + r"not a GGUF file: it begins with b''" + AGAIN),
    Refused(64, "only-magic", cut(4), INFO, 4, FILE + r"truncated: wanted 4 bytes at 4, got 0" + AGAIN),
    Refused(64, "no-counts", cut(12), INFO, 4, FILE + r"truncated: wanted 8 bytes at 8, got 4" + AGAIN),
    Refused(64, "in-a-key", cut(40), INFO, 4, FILE + r"truncated: .*" + AGAIN),
    Refused(64, "magic", has(magic=b"GGML"), INFO, 4, FILE + r"not a GGUF file: it begins with b'GGML'" + AGAIN),
    Refused(64, "pickle", lambda f: put(f / "model.gguf", b"\x80\x04K\x01."), INFO, 4, FILE + r"not a GGUF file: it begins with b'\\x80\\x04K\\x01'" + AGAIN),
    Refused(64, "version-1", has(version=1), INFO, 4, FILE + r"GGUF of version 1, wanted 2 or 3; .+"),
    Refused(64, "version-0", has(version=0), INFO, 4, FILE + r"GGUF of version 0, wanted 2 or 3; .+"),
    Refused(64, "version-4", has(version=4), INFO, 4, FILE + r"GGUF of version 4, wanted 2 or 3; .+"),
    Refused(64, "big-endian", has(version=3 << 24), INFO, 4, FILE + r"numbers of the other byte order; use the little-endian file of the model"),
    Refused(64, "keys-minus-1", has(num_keys=HUGE), INFO, 4, FILE + r"18446744073709551615 keys, more than the 65536 that are read" + AGAIN),
    Refused(64, "keys-more-than-file", has(num_keys=60_000), INFO, 4, FILE + r"truncated: 60000 keys do not fit into the \d+ bytes that are left" + AGAIN),
    Refused(64, "keys-one-more", has(num_keys=NUM_KEYS + 1), INFO, 4, FILE + r".+" + AGAIN),
    Refused(64, "keys-one-less", has(num_keys=NUM_KEYS - 1), INFO, 4, FILE + r".+; .+"),
    Refused(64, "tensors-minus-1", has(num_tensors=HUGE), INFO, 4, FILE + r"18446744073709551615 tensors, more than the 100000 that are read" + AGAIN),
    Refused(64, "tensors-more-than-file", has(num_tensors=90_000), INFO, 4, FILE + r"truncated: 90000 tensors do not fit into the \d+ bytes that are left" + AGAIN),
    Refused(64, "key-twice", has(more_values=TWICE, num_keys=NUM_KEYS + 1), INFO, 4, FILE + r"general\.architecture: the key stands there twice" + AGAIN),
    Refused(64, "key-16-eib", has(more_values=struct.pack("<Q", HUGE), num_keys=NUM_KEYS + 1), INFO, 4, FILE + r"text of 18446744073709551615 bytes, more than the 65535 that are read" + AGAIN),
    Refused(64, "string-16-eib", raw_value(STRING, struct.pack("<Q", HUGE)), INFO, 4, FILE + r"general\.name: text of 18446744073709551615 bytes, more than the 16777216 that are read" + AGAIN),
    Refused(64, "string-past-end", raw_value(STRING, struct.pack("<Q", 2**20)), INFO, 4, FILE + r"general\.name: truncated: wanted 1048576 bytes at \d+, got \d+" + AGAIN),
    Refused(64, "string-not-utf8", raw_value(STRING, text(b"caf\xe9")), INFO, 4, FILE + r"general\.name: not UTF-8 at byte 3 of a text" + AGAIN),
    Refused(64, "type-13", raw_value(13, b""), INFO, 4, FILE + r"general\.name: a value of the unknown type 13" + AGAIN),
    Refused(64, "truth-2", raw_value(BOOL, b"\2"), INFO, 4, FILE + r"general\.name: a truth value that is neither 0 nor 1" + AGAIN),
    Refused(64, "array-of-arrays", raw_value(ARRAY, struct.pack("<IQ", ARRAY, 1)), INFO, 4, FILE + r"general\.name: an array of arrays, which no key of a model needs" + AGAIN),
    Refused(64, "array-of-type-13", raw_value(ARRAY, struct.pack("<IQ", 13, 1)), INFO, 4, FILE + r"general\.name: an array of the unknown type 13" + AGAIN),
    Refused(64, "array-minus-1", key("general.name", many(U64, [], HUGE)), INFO, 4, FILE + r"general\.name: 18446744073709551615 entries, more than the 67108864 that are read" + AGAIN),
    Refused(64, "array-2-to-61", key("general.name", many(U64, [], 2**61)), INFO, 4, FILE + r"general\.name: 2305843009213693952 entries, more than .*" + AGAIN),
    Refused(64, "array-past-end", key("general.name", many(U32, [1], 2**20)), INFO, 4, FILE + r"general\.name: truncated: 1048576 entries do not fit .*" + AGAIN),
    Refused(64, "array-of-strings-past-end", key("general.name", many(STRING, ["a"], 2**20)), INFO, 4, FILE + r"general\.name: truncated: 1048576 entries do not fit .*" + AGAIN),
    Refused(64, "alignment-0", key("general.alignment", one(U32, 0)), INFO, 4, FILE + r"general\.alignment: 0 is no power of two" + AGAIN),
    Refused(64, "alignment-48", key("general.alignment", one(U32, 48)), INFO, 4, FILE + r"general\.alignment: 48 is no power of two" + AGAIN),
    Refused(64, "alignment-text", key("general.alignment", one(STRING, "32")), INFO, 4, FILE + r"general\.alignment: '32' is no power of two" + AGAIN),
    Refused(64, "alignment-2-to-31", key("general.alignment", one(U32, 2**31)), INFO, 4, FILE + r"\S+: begins at 256, no multiple of the alignment 2147483648" + AGAIN),
    # 64: a model that is none of ours
    Refused(64, "no-architecture", key("general.architecture", None), INFO, 4, FILE + r"general\.architecture: the key is missing; known: llama, gemma3"),
    Refused(64, "architecture", key("general.architecture", one(STRING, "gemma2")), INFO, 4, FILE + r"general\.architecture: unknown architecture 'gemma2'; known: llama, gemma3"),
    Refused(64, "architecture-list", key("general.architecture", many(STRING, ["llama"])), INFO, 4, FILE + r"general\.architecture: wanted one value, got 1; .+"),
    Refused(64, "adapter", key("general.type", one(STRING, "adapter")), INFO, 4, FILE + r"general\.type: holds 'adapter', not a model; .+"),
    Refused(64, "one-of-three", key("split.count", one(U32, 3)), INFO, 4, FILE + r"one of 3 parts of a model; join them first: .+"),
    Refused(64, "scaling-key", llama("rope.scaling.type", STRING, "yarn"), INFO, 4, FILE + r"llama\.rope\.scaling\.type: 'yarn' is not supported, only 'none'; .+"),
    Refused(64, "scaling-factor", llama("rope.scaling.factor", F32, 8.0), INFO, 4, FILE + r"llama\.rope\.scaling\.factor: 8\.0 is not supported, only 1\.0; .+"),
    Refused(64, "scaling-tensor", harmed(lambda p: (p.lines.update({"rope_freqs.weight": Line([2], 0, len(p.data))}), p.data.extend(bytes(32)))), INFO, 4, FILE + r"rope_freqs\.weight: scaled rotary positions are not supported; .+"),
    Refused(64, "experts", llama("expert_count", U32, 8), INFO, 4, FILE + r"llama\.expert_count: 8 is not supported, only 0; .+"),
    Refused(64, "heads-by-block", key("llama.attention.head_count", many(U32, [2])), INFO, 4, FILE + r"llama\.attention\.head_count: wanted one value, got 1; .+"),
    Refused(64, "no-width", key("llama.embedding_length", None), INFO, 4, FILE + r"llama\.embedding_length: the key is missing" + AGAIN),
    Refused(64, "width-text", llama("embedding_length", STRING, "8"), INFO, 4, FILE + r"llama\.embedding_length: .*integer.*'8'.*" + AGAIN),
    Refused(64, "eps-nan", llama("attention.layer_norm_rms_epsilon", F32, float("nan")), INFO, 4, FILE + r"llama\.attention\.layer_norm_rms_epsilon: nan is no number to compute with" + AGAIN),
    Refused(64, "base-infinite", llama("rope.freq_base", F32, float("inf")), INFO, 4, FILE + r"llama\.rope\.freq_base: inf is no number to compute with" + AGAIN),
    Refused(64, "heads-3", llama("attention.head_count", U32, 3), INFO, 4, FILE + r"embedding_length \(8\) must be a multiple of attention\.head_count \(3\), such as .+" + AGAIN),
    Refused(64, "heads-0", llama("attention.head_count", U32, 0), INFO, 4, FILE + r"llama\.attention\.head_count: .*greater than or equal to 1.*" + AGAIN),
    Refused(64, "rotated-part", llama("rope.dimension_count", U32, 2), INFO, 4, FILE + r"llama\.rope\.dimension_count: 2, wanted the width of a head, 4; .+"),
    Refused(64, "rows", llama("vocab_size", U32, 9), INFO, 4, FILE + r"llama\.vocab_size: 9, but token_embd\.weight has 8 rows" + AGAIN),
    Refused(64, "blocks-2-to-32", llama("block_count", U32, 2**32 - 1), INFO, 4, FILE + r"block_count is 4294967295, but there are 11 tensors" + AGAIN),
    Refused(64, "hidden-2-to-32", llama("feed_forward_length", U32, 2**32 - 1), INFO, 4, FILE + r".+; .+"),
    Refused(64, "width-2-to-62", llama("embedding_length", U64, 2**62), INFO, 4, FILE + r".+; .+"),
    # 64: a tokenizer that does not fit
    Refused(64, "sentencepiece", words("model", one(STRING, "llama")), INFO, 4, FILE + TOKEN_KEYS + r"add_space_prefix: a space in front of every text is not supported; .+"),
    Refused(64, "word-piece", words("model", one(STRING, "bert")), INFO, 4, FILE + TOKEN_KEYS + r"model: tokenizers of the kind 'bert' cannot be read; .+"),
    Refused(64, "rule", words("pre", one(STRING, "tekken")), INFO, 4, FILE + TOKEN_KEYS + r"pre: unknown splitting rule 'tekken'; known: gpt-2, smollm, llama-bpe, qwen2"),
    Refused(64, "no-rule", words("pre", None), INFO, 4, FILE + TOKEN_KEYS + r"pre: the key is missing; known: gpt-2, .+"),
    Refused(64, "no-tokens", words("tokens", None), INFO, 4, FILE + TOKEN_KEYS + r"tokens: there are none" + AGAIN),
    Refused(64, "tokens-numbers", words("tokens", many(U32, range(8))), INFO, 4, FILE + TOKEN_KEYS + r"tokens: wanted list, got ndarray" + AGAIN),
    Refused(64, "token-twice", words("tokens", many(STRING, [*TOKENS[:-1], "a"])), INFO, 4, FILE + TOKEN_KEYS + r"tokens: tokens 1 and 7 are both 'a'" + AGAIN),
    Refused(64, "token-empty", words("tokens", many(STRING, ["", *TOKENS[1:]])), INFO, 4, FILE + TOKEN_KEYS + r"tokens: token 0 is empty" + AGAIN),
    Refused(64, "more-tokens-than-rows", harmed(lambda p: p.values.update({"tokenizer.ggml.tokens": many(STRING, [*TOKENS, "x"]), "tokenizer.ggml.token_type": many(I32, [1] * 9)})), INFO, 4, FILE + TOKEN_KEYS + r"tokens: 9 tokens, but the embedding has 8 rows" + AGAIN),
    Refused(64, "types-too-few", words("token_type", many(I32, [3])), INFO, 4, FILE + TOKEN_KEYS + r"token_type: 1 types for 8 tokens" + AGAIN),
    Refused(64, "merge-of-one", words("merges", many(STRING, ["ab"])), INFO, 4, FILE + TOKEN_KEYS + r"merges: merge 0 is 'ab', not two tokens" + AGAIN),
    Refused(64, "merge-unknown", words("merges", many(STRING, ["a b", "b c"])), INFO, 4, FILE + TOKEN_KEYS + r"merges: merge 1, 'b c', needs the token 'bc', which is not there" + AGAIN),
    Refused(64, "end-past-tokens", words("eos_token_id", one(U32, 8)), INFO, 4, FILE + TOKEN_KEYS + r"eos_token_id: 8 is no token: there are 8" + AGAIN),
    Refused(64, "end-minus-1", words("eos_token_id", one(I32, -1)), INFO, 4, FILE + TOKEN_KEYS + r"eos_token_id: -1 is no token: there are 8" + AGAIN),
    Refused(64, "control-from-merge", words("token_type", many(I32, [3, 1, 1, 1, 3, 1, 1, 1])), INFO, 4, FILE + TOKEN_KEYS + r"token_type: the control token 'ab' would come out of plain text; .+"),
    Refused(64, "control-from-byte", words("eos_token_id", one(U32, 1)), INFO, 4, FILE + TOKEN_KEYS + r"token_type: the control token 'a' would come out of plain text; .+"),
    Refused(64, "control-whole", harmed(lambda p: p.values.update({"tokenizer.ggml.pre": one(STRING, "llama-bpe"), "tokenizer.ggml.merges": many(STRING, ["a b"]), "tokenizer.ggml.token_type": many(I32, [3, 1, 1, 1, 1, 1, 1, 3])})), INFO, 4, FILE + TOKEN_KEYS + r"token_type: the control token 'abc' would come out of plain text; .+"),
    Refused(64, "template-number", key("tokenizer.chat_template", one(U32, 7)), INFO, 4, FILE + r"tokenizer\.chat_template: wanted str, got int" + AGAIN),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=names)
def test_refused(case, tmp_path, home):
    refuse(case, tmp_path)
    assert not list(home.glob("converted/*")), "something half done is left in the cache"


def test_sound_file_is_taken(tmp_path):
    """What the cases harm is otherwise accepted."""
    put(tmp_path / "model.gguf", Pieces().built())
    assert call(tmp_path, INFO).code == 0
    outcome = call(tmp_path, GENERATE)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("case", CASES, ids=names)
def test_a_claim_is_not_allocated(case, tmp_path):
    case.lay_out(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            api.load(tmp_path / "model.gguf")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_stage_may_begin_with_a_file(tmp_path, home):
    """Planning reads no weight; a changed file is another model."""
    recipe(
        "    tokenizer: words\n    model: {family: llama, width: 16, depth: 1, num_heads: 2}\n",
        "    init: ./model.gguf\n",
    )(tmp_path)
    small = (tmp_path / "tiny.yaml").read_text().replace("batch_tokens: 32", "batch_tokens: 16")
    put(tmp_path / "tiny.yaml", small)
    put(tmp_path / "model.gguf", Pieces().built())
    assert call(tmp_path, "run tiny.yaml --dry-run").code == 0
    assert not (home / "converted").exists()
    outcome = call(tmp_path, "run tiny.yaml")
    assert outcome.code == 0, outcome.err
    assert api.load(tmp_path / "runs" / "tiny")[0].config.width == WIDTH
    other = Pieces()
    other.data[:4] = struct.pack("<f", 0.5)
    put(tmp_path / "model.gguf", other.built())
    assert call(tmp_path, "run tiny.yaml").code == 2, "results of another model stay"


def test_bytes_between_and_after_tensors_reach_no_weight(tmp_path):
    """Padding and tail are NaN in one file and zero in another: both are the same model."""
    lines, data = sound_tensors(alignment=256)
    values = {"general.alignment": one(U32, 256), **Pieces().values}
    clean = Pieces(values, lines, bytearray(data), alignment=256)
    loud = Pieces(values, lines, bytearray(data), alignment=256)
    starts = [*(line.start for line in lines.values()), len(data)][1:]
    ends = [line.start + 4 * int(np.prod(line.axes)) for line in lines.values()]
    for end, start in zip(ends, starts, strict=True):
        loud.data[end:start] = b"\xff" * (start - end)
    put(tmp_path / "clean.gguf", clean.built())
    put(tmp_path / "loud.gguf", loud.built() + b"\xff" * 100)
    first, second = (api.load(tmp_path / name)[0] for name in ("clean.gguf", "loud.gguf"))
    assert sum(a != b for a, b in zip(clean.data, loud.data, strict=True)) > 900
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
