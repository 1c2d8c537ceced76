"""Boxes of a tensor: as torch cuts, whatever the lengths; and files as the library writes them."""

import math

import pytest
import torch
from safetensors.torch import save, save_file

from stemma.core.errors import ModelError, UsageError
from stemma.train import reader as reader_module
from stemma.train.reader import Reader
from stemma.train.shard import CODES, write_shard
from stemma.train.slices import boxes_of, chunk, part_of
from stemma.train.snapshot import require_finite, shared_out, take


def positions(runs):
    """All positions of runs, in order."""
    return [place for start, length in runs for place in range(start, start + length)]


@pytest.mark.parametrize("length", [0, 1, 5, 8, 13])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_chunks_are_those_of_torch(length, count):
    runs = [(0, length)] if length else []
    wanted = [part.tolist() for part in torch.arange(length).chunk(count)] if length else []
    found = [positions(chunk(runs, count, number)) for number in range(count)]
    assert [part for part in found if part] == wanted


@pytest.mark.parametrize("length", [4, 7, 12, 13])
@pytest.mark.parametrize(("strides", "count"), [(2, 2), (3, 2), (2, 4)])
def test_strided_parts_cut_within_each_chunk(length, strides, count):
    """As torch documents `_StridedShard`: chunks first, then the parts of one number of all."""
    chunks = [part.chunk(count) for part in torch.arange(length).chunk(strides)]
    for number in range(count):
        wanted = [one[number].tolist() for one in chunks if number < len(one)]
        found = part_of([(0, length)], strides, count, number)
        assert positions(found) == sum(wanted, [])
        assert all(
            sum(a) != b[0] for a, b in zip(found, found[1:], strict=False)
        )  # neighbours joined


def test_boxes_are_the_product_of_runs():
    whole = torch.arange(6 * 7).view(6, 7)
    runs = [[(1, 2), (4, 1)], [(0, 1), (3, 4)]]
    held = whole[[1, 2, 4]][:, [0, 3, 4, 5, 6]]
    pieces = boxes_of(runs)
    assert sum(math.prod(piece.shape) for piece in pieces) == held.numel()
    for piece in pieces:
        there = tuple(slice(a, a + n) for a, n in zip(piece.start, piece.shape, strict=True))
        assert torch.equal(held[piece.here], whole[there])
    assert not boxes_of([[(0, 2)], []]) and len(boxes_of([])) == 1  # nothing, and a number


def test_files_have_the_bytes_of_the_library(tmp_path):
    tensors = {
        f"{number}{'é' * (number % 2)}": torch.randn(2 + number, 3).mul(9).to(dtype)
        for number, dtype in enumerate(reversed(CODES))
    }
    tensors |= {"number": torch.tensor(3.0), "none": torch.zeros(0, 4)}
    tensors |= {"turned": torch.arange(6.0).view(2, 3).T}
    entry = write_shard(tmp_path / "ours", tensors)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    assert (tmp_path / "ours").read_bytes() == save(contiguous)
    assert entry["bytes"] == (tmp_path / "ours").stat().st_size


def test_type_that_has_no_name_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"weight: torch\.complex128 values cannot be saved"):
        write_shard(tmp_path / "x", {"weight": torch.zeros(2, dtype=torch.complex128)})


def folder_of(tmp_path, tensor, cuts):
    """The reader of a tensor that is cut into columns, a file for each."""
    slices = []
    for number, (low, high) in enumerate(cuts):
        save_file({"w": tensor[:, low:high].contiguous()}, tmp_path / str(number))
        shape = [tensor.shape[0], high - low]
        slices.append({"file": str(number), "start": [0, low], "shape": shape})
    about = {"shape": list(tensor.shape), "dtype": "float32", "slices": slices}
    files = {one["file"]: {} for one in slices}
    return Reader(tmp_path, {"tensors": {"w": about}, "files": files})


def test_each_file_is_opened_once_and_only_if_it_is_met(tmp_path, monkeypatch):
    tensor, opened = torch.arange(28.0).view(4, 7), []
    real = reader_module.safe_open
    monkeypatch.setattr(
        reader_module,
        "safe_open",
        lambda path, **how: (opened.append(path.name), real(path, **how))[1],
    )
    reader = folder_of(tmp_path, tensor, [(0, 3), (3, 5), (5, 7)])
    for row in range(4):
        found = reader.read("w", start=[row, 1], shape=[1, 3])
        assert torch.equal(found, tensor[row : row + 1, 1:4])
    assert opened == ["0", "1"]


def test_file_that_lacks_what_the_manifest_tells_is_named(tmp_path):
    reader = folder_of(tmp_path, torch.ones(2, 4), [(0, 2), (2, 4)])
    save_file({"other": torch.ones(2, 2)}, tmp_path / "1")
    with pytest.raises(ModelError, match="1: w: not as the manifest tells"):
        reader.read("w")


class World:
    """Processes that say what they are told to."""

    def __init__(self, layouts):
        self.rank, self.size, self.layouts = 0, len(layouts), layouts

    def gather(self, value):
        return [{"made": layout} for layout in self.layouts]


def layout(boxes, shape=(4,), dtype="float32"):
    """One tensor as a process tells of it."""
    return {"w": {"shape": list(shape), "dtype": dtype, "bytes": 4, "boxes": boxes}}


def test_one_of_those_that_hold_a_box_writes_it():
    left, right, whole = [[0], [2]], [[2], [2]], [[0], [4]]
    assert shared_out([layout([left]), layout([left]), layout([right])]) == {
        "w": {((0,), (2,)): 0, ((2,), (2,)): 2}
    }
    many = [{f"{n}": layout([whole])["w"] for n in range(9)} for _ in range(3)]
    shares = shared_out(many)
    written = [rank for boxes in shares.values() for rank in boxes.values()]
    assert sorted(written) == [0] * 3 + [1] * 3 + [2] * 3


@pytest.mark.parametrize(
    ("layouts", "words"),
    [
        ([layout([[[0], [2]]]), layout([[[3], [1]]])], "3 values, the whole 4"),
        ([layout([[[0], [4]]]), layout([[[0], [5]]], shape=(5,))], r"\[5\] float32 at rank 1"),
        ([layout([[[0], [4]]]), layout([[[0], [4]]], dtype="int32")], "int32 at rank 1"),
    ],
)
def test_parts_that_do_not_make_a_whole_are_refused(layouts, words):
    with pytest.raises(UsageError, match=words):
        take({"w": torch.zeros(4)}, World(layouts))


def test_values_beyond_the_sum_are_no_divergence():
    largest = torch.finfo(torch.float32).max
    require_finite({"w": torch.full((9,), largest)}, step=1)
    require_finite({"w": torch.full((9,), torch.finfo(torch.float16).max).half()}, step=1)
