"""Checkpoints of several processes: whatever saved, whatever reads, the same tensors come back."""

import json
import os

import pytest
import torch
from torch import nn

from stemma.core.distributed import ALONE
from stemma.core.errors import ModelError
from stemma.train.checkpoint import checkpoints, newest_checkpoint, open_checkpoint, restore
from tests.distributed import checkpoint_cases
from tests.distributed.checkpoint_cases import LAYOUTS, SHAPES
from tests.distributed.pool import Pool

CASES = "tests.distributed.checkpoint_cases:"


def run(pools, size, case, **given):
    """What each process of a size finds."""
    if size == 1:
        return [getattr(checkpoint_cases, case)(ALONE, **given)]
    return pools(size).run(CASES + case, **given)


@pytest.fixture(scope="module")
def saved(pools, tmp_path_factory):
    """The folder of each layout, saved by its processes."""
    folder = tmp_path_factory.mktemp("saved")
    found = {}
    for number, (layout, (size, *_)) in enumerate(LAYOUTS.items()):
        place = folder / str(number)
        run(pools, size, "save", folder=str(place), layout=layout)
        found[layout] = place
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_what_every_layout_saved(pools, saved, layout):
    folders = [str(folder) for folder in saved.values()]
    for wrong in run(pools, LAYOUTS[layout][0], "load", folders=folders, layout=layout):
        assert not wrong


@pytest.mark.parametrize("layout", [name for name, (_, mesh, _) in LAYOUTS.items() if mesh])
def test_boxes_are_where_torch_has_them(pools, layout):
    for wrong in run(pools, LAYOUTS[layout][0], "pieces_against_torch", layout=layout):
        assert not wrong


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_value_is_written_once_and_copies_are_shared_out(saved, layout):
    folder = saved[layout] / "00000001"
    manifest = json.loads((folder / "manifest.json").read_text())
    size = LAYOUTS[layout][0]
    assert manifest["world_size"] == size and manifest["parallel"] == {"layout": layout}
    files = [f"rank-{rank:05d}.safetensors" for rank in range(size)]
    assert sorted(manifest["files"]) == [*files, "state.json"]
    written = dict.fromkeys(files, 0)
    for about in manifest["tensors"].values():
        values = 0
        for piece in about["slices"]:
            written[piece["file"]] += 4 * torch.Size(piece["shape"]).numel()
            values += torch.Size(piece["shape"]).numel()
        assert values == torch.Size(about["shape"]).numel()
    largest = 4 * max(torch.Size(shape).numel() for shape in SHAPES.values())
    if "copies" in layout or "plain" in layout:
        assert max(written.values()) - min(written.values()) <= largest
    assert sum(written.values()) == sum(
        about["bytes"] - len_of_header(folder / name)
        for name, about in manifest["files"].items()
        if name in files
    ) - 4 * size_of_count(manifest)


def len_of_header(path):
    """Bytes of a safetensors file before its tensors."""
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def size_of_count(manifest):
    """The counter is a whole number of eight bytes, where four were counted: those amiss, by 4."""
    return int(manifest["tensors"]["model/count"]["dtype"] == "int64")


@pytest.mark.parametrize("mesh", [[2], [4], [2, 2]])
def test_fsdp_and_tensor_parallel_are_saved_as_they_lie(pools, tmp_path, mesh):
    size = torch.Size(mesh).numel()
    found = run(pools, size, "fully_sharded", folder=str(tmp_path), mesh=mesh)
    assert all(one["equal"] for one in found)
    alone = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 6))
    optimizer = torch.optim.AdamW(alone.parameters())
    newest, _ = newest_checkpoint(tmp_path)
    restore(newest, alone, optimizer)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, torch.tensor(found[0]["whole"][name])), name
    for parameter in alone.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


def test_stages_of_a_pipeline_save_what_only_they_have(pools, tmp_path):
    assert run(pools, 4, "stages_of_a_pipeline", folder=str(tmp_path)) == [True] * 4


def test_tensors_that_do_not_belong_together_are_refused_by_all(pools, tmp_path):
    for kind, words in run(pools, 2, "different_tensors", folder=str(tmp_path)):
        assert kind == "UsageError"
        assert "model/weight" in words and "[4]" in words and "[5]" in words
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(("rank", "phase"), [(0, "begin"), (1, "write"), (0, "commit")])
def test_full_disk_of_one_process_ends_the_save_of_all(pools, tmp_path, rank, phase, background):
    run(pools, 2, "save", folder=str(tmp_path), layout="rows of 2")
    found = run(
        pools,
        2,
        "save_that_fails",
        folder=str(tmp_path),
        rank=rank,
        phase=phase,
        background=background,
    )
    assert [kind for kind, _ in found] == ["ResourceError"] * 2
    for each, (_, words) in enumerate(found):
        assert "00000002" in words and "the disk is full" in words
        assert (f"rank {rank}: " in words) == (each != rank)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    assert open_checkpoint(tmp_path / "00000001").step == 1


def test_background_saves_hold_the_values_of_their_steps(pools, tmp_path):
    assert run(pools, 2, "background", folder=str(tmp_path)) == [[100.0]] * 2
    assert [path.name for path in checkpoints(tmp_path)] == ["00000001", "00000002"]
    found = open_checkpoint(tmp_path / "00000001")
    module, optimizer = checkpoint_cases.network("alone", filled=False)
    restore(found, module, optimizer)
    wanted, _ = checkpoint_cases.network("alone", filled=True)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, wanted.get_parameter(name))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("damage", ["flip", "missing", "exchanged"])
def test_damage_to_the_file_of_any_process_is_named(pools, tmp_path, rank, damage):
    run(pools, 2, "save", folder=str(tmp_path), layout="rows of 2")
    folder = tmp_path / "00000001"
    path, other = (folder / f"rank-{number:05d}.safetensors" for number in (rank, 1 - rank))
    raw = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "flip":
        raw[-1] ^= 1
        path.write_bytes(raw)
    else:
        path.write_bytes(other.read_bytes())
        other.write_bytes(raw)
    name = "rank-" if damage == "exchanged" else path.name
    with pytest.raises(ModelError, match=name):
        open_checkpoint(folder)
    found, damaged = newest_checkpoint(tmp_path)
    assert found is None and len(damaged) == 1


def test_process_killed_while_it_saves_leaves_the_older_checkpoint(tmp_path):
    pool = Pool(2)
    try:
        request = {"case": CASES + "killed_while_saving", "given": {"folder": str(tmp_path)}}
        for member in pool.members:
            member.stdin.write(json.dumps(request) + "\n")
            member.stdin.flush()
        (kind, _) = pool.read(pool.members[0])["found"]
        assert kind.endswith("Error") and pool.members[1].wait() == -9
    finally:
        for member in pool.members:
            member.kill()
            member.wait()
            member.stdin.close()
            member.stdout.close()
    assert os.listdir(tmp_path) == ["00000001"]
    assert open_checkpoint(tmp_path / "00000001").step == 1
