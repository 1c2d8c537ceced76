"""Reading a store back: damage is named with a way out, a machine that refuses is no damage."""

import errno
from pathlib import Path

import pytest

from stemma.core.errors import DataError, ResourceError
from stemma.data import store
from stemma.data.bpe import train_tokenizer
from stemma.data.packing import plan_packing, read_plan, write_plan

FILES = ["tokens.bin", "index.safetensors", "store.json"]


@pytest.fixture
def folder(tmp_path):
    texts = ["the cat sat on the mat", "the dog ran"]
    words = train_tokenizer(texts, vocab_size=262, splitting="gpt-2")
    made = store.write_store(tmp_path / "data", texts, words)
    write_plan(tmp_path / "data" / "plan.safetensors", plan_packing(made.offsets, 8))
    return tmp_path / "data"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["lost", "half", "empty"])
def test_damage_is_named_and_the_way_out_works(folder, name, harm):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if harm != "lost":
        path.write_bytes(content[: len(content) // 2] if harm == "half" else b"")
    with pytest.raises(DataError, match=rf"{folder}.*; remove {folder}: the stage makes it again"):
        store.open_store(folder)


@pytest.mark.parametrize("kept", [0, 7, 100])
def test_damaged_plan_is_named(folder, kept):
    path = folder / "plan.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"not a usable packing plan .*; remove {path}"):
        read_plan(path)


def test_machine_that_refuses_to_read_is_no_damage(folder, monkeypatch):
    def refused(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(store, "sha256_file", refused)
    with pytest.raises(ResourceError, match=r"too many open files; raise `ulimit -n`"):
        store.open_store(folder)
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ResourceError, match="too many open files"):
        read_plan(folder / "plan.safetensors")


def test_pairs_of_samples_add_up(folder):
    plan = read_plan(folder / "plan.safetensors")
    assert len(plan.pairs) == plan.num_samples and plan.pairs.sum() == plan.num_pairs
    assert plan.pairs.max() <= plan.context and (plan.pairs[:-1] == plan.context).all()
