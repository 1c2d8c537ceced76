"""Checkpoints: everything comes back, damage is named, a half save is never taken for one."""

import errno
import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from stemma.core.errors import DivergedError, ModelError, ResourceError, UsageError
from stemma.models import gpt2, llama
from stemma.nn.initial import initialise
from stemma.train import checkpoint, saving
from stemma.train.optimizer import AdamW, adamw

PRINTS = {"config": "a", "data": "b"}


def trained(family=llama, steps=3, **numbers):
    numbers = {"width": 16, "depth": 2, "num_heads": 2, "vocab_size": 31, "context": 16} | numbers
    config = family.LlamaConfig if family is llama else family.GPT2Config
    model = family.build(config(**numbers))
    initialise(model, seed=0, std=0.1, depth=2)
    optimizer = adamw(model, AdamW(), learning_rate=1e-2)
    step_on(model, optimizer, steps)
    return model, optimizer


def step_on(model, optimizer, steps):
    for number in range(steps):
        tokens = torch.randint(0, 31, (2, 8), generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        model(tokens).logsumexp(-1).mean().backward()
        optimizer.step()


def write(folder, model, optimizer, step=3):
    return checkpoint.save_checkpoint(folder, model, optimizer, {"step": step}, PRINTS)


@pytest.mark.parametrize("family", [llama, gpt2])
def test_restored_run_goes_on_bit_for_bit(tmp_path, family):
    model, optimizer = trained(family)
    write(tmp_path, model, optimizer)
    other, other_optimizer = trained(family, steps=0)
    found, damaged = checkpoint.newest_checkpoint(tmp_path)
    assert found is not None and found.step == 3 and not damaged
    checkpoint.restore(found, other, other_optimizer)
    for each in ((model, optimizer), (other, other_optimizer)):
        step_on(*each, 4)
    for name, tensor in checkpoint.named_state(model, optimizer).items():
        assert torch.equal(tensor, checkpoint.named_state(other, other_optimizer)[name]), name


def test_manifest_lists_every_tensor_and_names_the_optimizer_state(tmp_path):
    model, optimizer = trained()
    folder = write(tmp_path, model, optimizer)
    manifest = json.loads((folder / "manifest.json").read_text())
    name = "blocks.0.attention.query.weight"
    assert manifest["tensors"][f"model/{name}"] == {
        "shape": [16, 16],
        "dtype": "float32",
        "slices": [{"file": "rank-00000.safetensors", "start": [0, 0], "shape": [16, 16]}],
    }
    assert f"optimizer/{name}/exp_avg" in manifest["tensors"]
    assert manifest["world_size"] == 1 and manifest["format_version"] == 1
    assert manifest["fingerprints"] == PRINTS


FILES = ["rank-00000.safetensors", "state.json", "manifest.json", "manifest.sha256"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 100, -2])
def test_one_flipped_bit_is_found_and_the_file_named(tmp_path, name, place):
    folder = write(tmp_path, *trained())
    raw = bytearray((folder / name).read_bytes())
    raw[min(place, len(raw) - 1)] ^= 1
    (folder / name).write_bytes(bytes(raw))
    with pytest.raises(ModelError, match="manifest" if name.startswith("manifest") else name):
        checkpoint.open_checkpoint(folder)


def test_damaged_newest_gives_way_to_the_older(tmp_path):
    model, optimizer = trained()
    write(tmp_path, model, optimizer, step=3)
    newest = write(tmp_path, model, optimizer, step=6)
    (newest / "rank-00000.safetensors").unlink()
    found, damaged = checkpoint.newest_checkpoint(tmp_path)
    assert found is not None and found.step == 3
    assert len(damaged) == 1 and "rank-00000" in str(damaged[0])
    assert [f.name for f in checkpoint.checkpoints(tmp_path)] == ["00000003"]


def test_checkpoint_of_a_later_version_is_not_taken_for_damage(tmp_path):
    folder = write(tmp_path, *trained())
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format_version": 2}
    raw = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sha256").write_text(hashlib.sha256(raw).hexdigest())
    with pytest.raises(UsageError, match="newer"):
        checkpoint.newest_checkpoint(tmp_path)
    assert folder.is_dir()


def test_optimizer_state_of_another_set_of_parameters_is_refused(tmp_path):
    model, optimizer = trained()
    del optimizer.state[model.norm.weight]
    write(tmp_path, model, optimizer)
    found, _ = checkpoint.newest_checkpoint(tmp_path)
    other, other_optimizer = trained(steps=0)
    with pytest.raises(ModelError, match=r"norm\.weight"):
        checkpoint.restore(found, other, other_optimizer)


def test_leftover_of_a_crash_is_no_checkpoint_and_is_cleared(tmp_path):
    folder = write(tmp_path, *trained())
    leftover = tmp_path / ".00000009.123.partial"
    shutil.copytree(folder, leftover)
    assert checkpoint.checkpoints(tmp_path) == [folder]
    checkpoint.retain(tmp_path, keep=2)
    assert not leftover.exists() and folder.exists()


def test_retention_keeps_the_newest(tmp_path):
    model, optimizer = trained()
    for step in (1, 2, 3):
        write(tmp_path, model, optimizer, step=step)
    checkpoint.retain(tmp_path, keep=2)
    assert [f.name for f in checkpoint.checkpoints(tmp_path)] == ["00000002", "00000003"]


def test_checkpoint_of_another_model_names_both_sides(tmp_path):
    model, optimizer = trained()
    write(tmp_path, model, optimizer)
    deeper, deeper_optimizer = trained(depth=3, steps=0)
    found, _ = checkpoint.newest_checkpoint(tmp_path)
    with pytest.raises(ModelError, match=r"missing .*blocks\.2"):
        checkpoint.restore(found, deeper, deeper_optimizer)
    wider, wider_optimizer = trained(width=32, steps=0)
    with pytest.raises(ModelError, match=r"\[31, 16\] stored, \[31, 32\] wanted"):
        checkpoint.restore(found, wider, wider_optimizer)


def sliced(folder, tensor, cuts):
    """A checkpoint as several ranks would have written it: one file per row range."""
    folder.mkdir()
    slices = []
    for rank, (low, high) in enumerate(cuts):
        name = f"rank-{rank:05d}.safetensors"
        save_file({"model/w": tensor[low:high].contiguous()}, folder / name)
        slices.append({"file": name, "start": [low, 0], "shape": [high - low, tensor.shape[1]]})
    entry = {"shape": list(tensor.shape), "dtype": "float32", "slices": slices}
    manifest = {"tensors": {"model/w": entry}, "files": {one["file"]: {} for one in slices}}
    return checkpoint.Checkpoint(folder, manifest, {"step": 0})


@pytest.mark.parametrize("cuts", [[(0, 7)], [(0, 3), (3, 7)], [(0, 2), (2, 4), (4, 6), (6, 7)]])
def test_any_slicing_reads_back_whole_and_in_part(tmp_path, cuts):
    tensor = torch.arange(35.0).view(7, 5)
    found = sliced(tmp_path / "step", tensor, cuts)
    assert torch.equal(checkpoint.read_tensor(found, "model/w"), tensor)
    part = checkpoint.read_tensor(found, "model/w", start=[1, 2], shape=[5, 3])
    assert torch.equal(part, tensor[1:6, 2:5])


def test_slices_that_do_not_cover_are_refused(tmp_path):
    found = sliced(tmp_path / "step", torch.ones(7, 5), [(0, 3), (4, 7)])
    with pytest.raises(ModelError, match="cover 30 of 35"):
        checkpoint.read_tensor(found, "model/w")


def test_slices_that_cover_one_part_twice_are_refused(tmp_path):
    """Counting values would take twice the first half for the whole."""
    found = sliced(tmp_path / "step", torch.ones(8, 5), [(0, 4), (0, 4)])
    with pytest.raises(ModelError, match="cover 20 of 40"):
        checkpoint.read_tensor(found, "model/w")


@pytest.mark.parametrize("name", ["../other.safetensors", "more.safetensors"])
def test_slices_in_files_that_nobody_vouches_for_are_refused(tmp_path, name):
    found = sliced(tmp_path / "step", torch.ones(7, 5), [(0, 7)])
    save_file({"model/w": torch.ones(7, 5)}, tmp_path / "step" / name)
    found.manifest["tensors"]["model/w"]["slices"][0]["file"] = name
    with pytest.raises(ModelError, match="does not vouch for"):
        checkpoint.read_tensor(found, "model/w")


def test_machine_that_refuses_to_read_is_no_damage(tmp_path, monkeypatch):
    folder = write(tmp_path, *trained())

    def refused(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(checkpoint, "sha256_file", refused)
    with pytest.raises(ResourceError, match="too many open files"):
        checkpoint.newest_checkpoint(tmp_path)
    assert folder.is_dir()


@pytest.mark.parametrize("renames", [0, 1])
def test_same_step_again_never_loses_the_step(tmp_path, monkeypatch, renames):
    """A process may end before any rename, that of the old folder and that of the new."""
    model, optimizer = trained()
    folder = write(tmp_path, model, optimizer)
    old = (folder / "rank-00000.safetensors").read_bytes()
    step_on(model, optimizer, 1)
    real, done = os.replace, []

    def replace(source, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace)
        write(tmp_path, model, optimizer)
    checkpoint.clear_leftovers(tmp_path)
    found, damaged = checkpoint.newest_checkpoint(tmp_path)
    assert found is not None and found.step == 3 and not damaged
    assert (found.folder / "rank-00000.safetensors").read_bytes() == old
    assert [f.name for f in tmp_path.iterdir()] == ["00000003"]
    write(tmp_path, model, optimizer)
    assert (folder / "rank-00000.safetensors").read_bytes() != old
    assert [f.name for f in tmp_path.iterdir()] == ["00000003"]


def test_older_goes_only_when_the_newer_is_durable(tmp_path, monkeypatch):
    model, optimizer = trained()
    write(tmp_path, model, optimizer, step=3)
    removed, synced = [], []
    real = saving.sync_folder
    monkeypatch.setattr(saving, "sync_folder", lambda f: (real(f), synced.append(f))[0])
    rmtree = shutil.rmtree

    def watched(folder, **settings):
        if folder.exists():
            removed.append((folder.name.split(".")[1], len(synced)))
        rmtree(folder, **settings)

    monkeypatch.setattr(shutil, "rmtree", watched)
    write(tmp_path, model, optimizer, step=6)
    checkpoint.retain(tmp_path, keep=1)
    assert removed == [("00000003", 2)]  # after the new one and its place were synced


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["parameter", "optimizer"])
def test_state_that_is_not_finite_is_not_written(tmp_path, value, where):
    model, optimizer = trained()
    write(tmp_path, model, optimizer, step=3)
    weight = model.norm.weight
    target = weight if where == "parameter" else optimizer.state[weight]["exp_avg"]
    with torch.no_grad():
        target[1] = value
    with pytest.raises(DivergedError, match=r"after step 6 values of \w+/norm\.weight"):
        write(tmp_path, model, optimizer, step=6)
    assert [f.name for f in tmp_path.iterdir()] == ["00000003"]


@pytest.mark.parametrize("steps", [0, 3])
def test_size_of_the_next_checkpoint_is_known_before(tmp_path, steps):
    model, optimizer = trained(width=64, steps=steps)
    told = checkpoint.state_bytes(model, optimizer)
    step_on(model, optimizer, 1)
    folder = write(tmp_path, model, optimizer)
    size = (folder / "rank-00000.safetensors").stat().st_size
    assert told <= size <= 1.1 * told


def test_what_is_wrong_with_the_manifest_is_named(tmp_path):
    folder = write(tmp_path, *trained())
    hashed = folder / "manifest.sha256"
    sound = hashed.read_text()
    hashed.write_text(sound[::-1])
    with pytest.raises(ModelError, match=r"manifest\.json: does not agree with manifest\.sha256; "):
        checkpoint.open_checkpoint(folder)
    for text in ("", sound[:-1], sound + "\n", "g" * 64):
        hashed.write_text(text)
        with pytest.raises(ModelError, match=r"manifest\.sha256: not a sha256"):
            checkpoint.open_checkpoint(folder)
