"""Damage on the disk: every flipped byte of a checkpoint is found, and the file at fault named."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import save

from stemma.core.errors import ModelError
from stemma.core.files import sha256_file
from stemma.train.checkpoint import newest_checkpoint, open_checkpoint, read_tensor
from tests.faults import scenes

FLIPS = 1000
SHARD = "rank-00000.safetensors"
FILES = (SHARD, "state.json", "manifest.json", "manifest.sha256")
BOTH = "manifest"  # manifest.json and manifest.sha256 vouch for each other: either may be named


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Two checkpoints of one run, verified."""
    folder = tmp_path_factory.mktemp("sound")
    for step in (1, 2):
        open_checkpoint(scenes.save(folder, step))
    return folder


@pytest.fixture
def steps(sound, tmp_path):
    """A copy to damage."""
    return shutil.copytree(sound, tmp_path / "steps")


@pytest.fixture
def folder(steps):
    """The newer checkpoint."""
    return steps / "00000002"


def named(name):
    """What of a file's name an error must say."""
    return BOTH if name.startswith(BOTH) else name


def finds(folder, name):
    """Whether opening fails with a model error that names the file."""
    try:
        open_checkpoint(folder)
    except ModelError as error:
        return named(name) in str(error)
    return False


def test_every_random_byte_flip_is_found_and_the_file_named(folder, tell):
    draw = random.Random(6)
    contents = {name: (folder / name).read_bytes() for name in FILES}
    found = dict.fromkeys(FILES, 0)
    for number in range(FLIPS):
        name = FILES[number % len(FILES)]
        raw = bytearray(contents[name])
        raw[draw.randrange(len(raw))] ^= draw.randrange(1, 256)
        (folder / name).write_bytes(raw)
        found[name] += finds(folder, name)
        (folder / name).write_bytes(contents[name])
    tell(f"{sum(found.values())} of {FLIPS} flips found: {found}")
    assert sum(found.values()) == FLIPS
    assert open_checkpoint(folder).step == 2  # put back, it is sound


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_truncated_file_is_named(folder, name, share):
    raw = (folder / name).read_bytes()
    (folder / name).write_bytes(raw[: int(len(raw) * share)])
    assert finds(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_longer_file_is_named(folder, name):
    with open(folder / name, "ab") as file:
        file.write(b"\n")
    assert finds(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert finds(folder, name)


@pytest.mark.parametrize("name", [SHARD, "state.json", "manifest.json", "manifest.sha256"])
def test_file_of_another_step_is_named(steps, folder, name):
    shutil.copy(steps / "00000001" / name, folder / name)
    assert finds(folder, name)


def written_by_two(folder):
    """A checkpoint as two processes would have written it: half of a tensor each."""
    folder.mkdir()
    tensor, shards = (
        torch.arange(8.0).view(4, 2),
        ("rank-00000.safetensors", "rank-00001.safetensors"),
    )
    for rank, name in enumerate(shards):
        (folder / name).write_bytes(save({"model/w": tensor[2 * rank : 2 * rank + 2].clone()}))
    (folder / "state.json").write_text(json.dumps({"step": 3}))
    slices = [
        {"file": name, "start": [2 * rank, 0], "shape": [2, 2]} for rank, name in enumerate(shards)
    ]
    files = [*shards, "state.json"]
    manifest = {
        "format_version": 1,
        "step": 3,
        "world_size": 2,
        "fingerprints": {},
        "tensors": {"model/w": {"shape": [4, 2], "dtype": "float32", "slices": slices}},
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
            for name in files
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "manifest.sha256").write_text(sha256_file(folder / "manifest.json"))
    return tensor, shards


def test_two_shards_swapped_are_noticed(tmp_path):
    folder = tmp_path / "00000003"
    tensor, (first, second) = written_by_two(folder)
    assert torch.equal(read_tensor(open_checkpoint(folder), "model/w"), tensor)
    (folder / first).rename(folder / "away")
    (folder / second).rename(folder / first)
    (folder / "away").rename(folder / second)
    assert finds(folder, first)


def test_file_replaced_by_a_folder_or_a_link_to_nothing_is_named(folder):
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to("nowhere")
    assert finds(folder, SHARD)


def test_damaged_newest_gives_way_and_is_kept_for_inspection(steps, folder):
    raw = bytearray((folder / SHARD).read_bytes())
    raw[-1] ^= 1
    (folder / SHARD).write_bytes(raw)
    found, damaged = newest_checkpoint(steps)
    assert found is not None and found.step == 1 and SHARD in str(damaged[0])
    assert sorted(path.name for path in steps.iterdir()) == ["00000001", "00000002.damaged"]
