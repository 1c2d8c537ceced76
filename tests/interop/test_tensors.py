"""safetensors files: what is written comes back; what lies is refused by name, before any harm."""

import json
import pickle
import struct
import zipfile

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.core.errors import ModelError, UsageError
from stemma.interop import tensors as module
from stemma.interop.tensors import read_header, read_tensors, refuse_pickle, write_tensors

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
    "c": {"dtype": "F16", "shape": [0, 7], "data_offsets": [32, 32]},
}


def encode(header, buffer=bytes(32), length=None):
    """The bytes of a file; `header` as a dict or as raw bytes, `length` to lie about it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + buffer


def changed(name, **fields):
    return {**GOOD, name: {**GOOD[name], **fields}}


def entry(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


TWICE = json.dumps(GOOD)[:-1].encode() + b', "a": ' + json.dumps(GOOD["a"]).encode() + b"}"

BAD = {  # what the file holds: (its bytes, words of the message)
    "empty file": (b"", "wanted 8 bytes of header length, got 0"),
    "cut inside the length": (b"\x10\0\0", "wanted 8 bytes of header length, got 3"),
    "cut inside the header": (encode(GOOD)[:40], "wanted a header of"),
    "cut inside the buffer": (encode(GOOD)[:-1], "wanted 32 bytes of tensors, got 31"),
    "bytes after the buffer": (encode(GOOD) + b"\0", "end at byte 32 of the buffer, wanted 33"),
    "header of 2^63": (encode(GOOD, length=2**63), f"header of {2**63} bytes"),
    "header of 101 MB": (encode(GOOD, length=101_000_000), "header of 101000000 bytes"),
    "header past the end": (encode(GOOD, length=9_999), "wanted a header of 9999 bytes"),
    "header one byte past the end": (
        encode(GOOD, buffer=b"", length=len(json.dumps(GOOD)) + 1),
        f"wanted a header of {len(json.dumps(GOOD)) + 1} bytes, got {len(json.dumps(GOOD))}",
    ),
    "header not UTF-8": (encode(b'{"\xff": 1}'), "not UTF-8 at byte 2"),
    "header not JSON": (encode(b"{oops"), "not usable JSON"),
    "header a list": (encode(b"[1]"), "begins with b'['"),
    "header NaN": (encode(b'{"a": NaN}'), "NaN is not JSON"),
    "header too deep": (encode(b'{"a":' + b"[" * 100_000), "nested too deep"),
    "header of many items": (encode(b'{"a":[' + b"0," * 5_000_001), "more than the 5000000"),
    "a number of 5000 digits": (encode(b'{"a": ' + b"9" * 5_000 + b"}"), "not usable JSON"),
    "name twice": (encode(TWICE), "'a' stands there twice"),
    "metadata not text": (encode({**GOOD, "__metadata__": {"x": 1}}), "__metadata__"),
    "entry not an object": (encode({**GOOD, "b": 3}), "b: wanted dtype, shape and data_offsets"),
    "entry with a key more": (encode(changed("a", extra=1)), "a: wanted dtype, shape"),
    "unknown dtype": (encode(changed("a", dtype="F31")), "a: unknown dtype 'F31'"),
    "dtype a list": (encode(changed("a", dtype=["F32"])), "a: unknown dtype"),
    "negative size": (encode(changed("a", shape=[-2, -3])), "a: shape [-2, -3] is not"),
    "size true": (encode(changed("b", shape=[True])), "b: shape [True] is not"),
    "size a fraction": (encode(changed("a", shape=[2.0, 3])), "a: shape [2.0, 3] is not"),
    "a thousand axes": (encode(changed("a", shape=[2**62] * 1000)), "a: shape"),
    "size 2^62 x 8": (encode(changed("b", shape=[2**62])), f"takes {2**65} bytes"),
    "size wraps to right": (encode(changed("b", shape=[2**61 + 1])), f"takes {2**64 + 8} bytes"),
    "too few bytes": (encode(changed("a", shape=[2, 2])), "takes 16 bytes, its data_offsets 24"),
    "offsets reversed": (encode(changed("a", data_offsets=[24, 0])), "takes 24 bytes"),
    "offsets negative": (encode(changed("a", data_offsets=[-8, 16])), "data_offsets [-8, 16]"),
    "one offset": (encode(changed("a", data_offsets=[0])), "data_offsets [0] are not"),
    "out of range": (encode({"a": entry("F32", [8], 8, 40)}), "a: truncated: wanted 40"),
    "overlap": (
        encode({"a": entry("F32", [6], 0, 24), "b": entry("F32", [4], 16, 32)}),
        "b: data_offsets overlap: begin at 16, wanted 24",
    ),
    "hole": (
        encode({"a": entry("F32", [2], 0, 8), "b": entry("F32", [4], 16, 32)}),
        "b: data_offsets leave a hole: begin at 16, wanted 8",
    ),
    "hole at the end": (encode({"a": entry("F32", [6], 0, 24)}), "end at byte 24"),
}


@pytest.mark.parametrize("case", BAD, ids=lambda name: name.replace(" ", "-"))
def test_lying_file_is_refused_by_name(case, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(BAD[case][0])
    for read in (read_header, read_tensors):
        with pytest.raises(ModelError) as error:
            read(path)
        assert BAD[case][1] in str(error.value)
        assert str(path) in str(error.value)
        assert len(str(error.value)) <= 300


def test_too_many_tensors_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode(GOOD))
    monkeypatch.setattr(module, "MAX_TENSORS", 2)
    with pytest.raises(ModelError, match="3 tensors, more than the 2"):
        read_header(path)


def test_huge_header_length_allocates_nothing(tmp_path):
    import tracemalloc

    path = tmp_path / "model.safetensors"
    path.write_bytes(encode(GOOD, length=99_000_000))
    tracemalloc.start()
    with pytest.raises(ModelError):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_missing_file_is_a_model_error(tmp_path):
    for read in (read_header, read_tensors):
        with pytest.raises(ModelError, match="no such file"):
            read(tmp_path / "model.safetensors")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_mean_what_the_library_reads(tmp_path_factory, data):
    raw = bytearray(encode({**GOOD, "__metadata__": {"format": "pt"}}))
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 33))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw))) if data.draw(st.booleans()) else None]
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    path.write_bytes(raw)
    try:
        found = read_header(path)
    except ModelError:
        return
    theirs = safetensors.torch.load(bytes(raw))  # what we accept, the library accepts
    assert {n: (t.dtype, tuple(t.shape)) for n, t in theirs.items()} == {
        n: (info.dtype, info.shape) for n, info in found.items()
    }


dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
shapes = st.lists(st.integers(0, 4), max_size=3)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(names.filter(lambda n: n != "__metadata__"), st.tuples(dtypes, shapes)))
def test_written_tensors_come_back_here_and_in_the_library(tmp_path_factory, specification):
    written = {
        name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in specification.items()
    }
    path = tmp_path_factory.mktemp("written") / "model.safetensors"
    write_tensors(path, written, {"format": "pt"})
    for found in (read_tensors(path), safetensors.torch.load_file(path)):
        assert found.keys() == written.keys()
        for name, tensor in written.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    before = path.read_bytes()
    write_tensors(path, dict(reversed(written.items())), {"format": "pt"})
    assert path.read_bytes() == before  # the same tensors, the same bytes


def test_strided_tensors_are_written_by_value(tmp_path):
    matrix = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "x.safetensors", {"t": matrix.T}, {})
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["t"], matrix.T)


def test_shared_memory_is_refused_and_the_old_file_stays(tmp_path):
    path, x = tmp_path / "x.safetensors", torch.zeros(4)
    write_tensors(path, {"x": x}, {})
    before = path.read_bytes()
    with pytest.raises(UsageError, match="x and y share memory"):
        write_tensors(path, {"x": x, "y": x[1:]}, {})
    with pytest.raises(UsageError, match="complex64"):
        write_tensors(path, {"x": torch.zeros(1, dtype=torch.complex64)}, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.PTH", "model.ckpt", "x.pkl"])
def test_pickle_is_refused_by_name(name, tmp_path):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ModelError, match="pickle files are not loaded.*trusted machine"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("kind", ["zip", *range(2, 6)])
def test_pickle_under_another_name_is_refused_and_never_run(kind, tmp_path):
    path, mark = tmp_path / "model.safetensors", tmp_path / "executed"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(mark)))
    else:
        path.write_bytes(pickle.dumps(Bomb(mark), protocol=kind))
    with pytest.raises(ModelError, match="pickle files are not loaded"):
        read_tensors(path)
    assert not mark.exists()


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_header_length_that_spells_a_pickle_is_still_safetensors(length, tmp_path):
    path = tmp_path / "model.safetensors"
    raw = json.dumps({"a": entry("F32", [1], 0, 4)}).encode()
    path.write_bytes(encode(raw.ljust(length), buffer=bytes(4)))
    assert path.read_bytes()[:2] == bytes([0x80, length >> 8])
    refuse_pickle(path)
    assert read_tensors(path)["a"].item() == 0.0
