# ruff: noqa: E501  (tables are read by rows)
"""Checkpoints that do not fit, cases 67 to 70: of another network, not whole, of other data or of
more processes.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stemma.core.files import sha256_file
from tests.bad_inputs.command_line import call, check_line, snapshot
from tests.bad_inputs.interrupted import (
    BASE,
    MODEL,
    RESUMED,
    RUN,
    goes_on,
    killed_at,
    lay_out,
    messages,
    record,
)
from tests.bad_inputs.layouts import change_json, put

SHORT = r"\w{8}"  # a fingerprint's first digits


# 67: a checkpoint of another network


@pytest.mark.parametrize(
    "change, said",
    [
        ("base.model.depth=2", "depth 2, here 1"),
        ("base.model.width=32", "width 32, here 16; hidden 96, here 64"),
        ("base.model.tied=true", "tied True, here False"),
    ],
    ids=["67-depth", "67-width", "67-tied"],
)
def test_checkpoint_of_another_network(change, said, half_done):
    killed_at(half_done, 3, f"{RUN} {change} out=other")
    shutil.rmtree(half_done / BASE / "steps")
    shutil.copytree(half_done / "other" / "base" / "steps", half_done / BASE / "steps")
    before = snapshot(half_done / BASE / "steps")
    outcome = call(half_done, RUN)
    head = r"runs/tiny/base/steps/00000002: the checkpoint was made with another network "
    check_line(outcome, 4, head + rf"\({said}\); remove runs/tiny/base to train it again, .+")
    assert snapshot(half_done / BASE / "steps") == before


# 68: a checkpoint that is not whole


def lost(name: str) -> Callable[[Path], None]:
    """A file of the checkpoint is gone."""
    return lambda folder: (folder / name).unlink()


def shorter(folder: Path) -> None:
    """Half of the tensors were written."""
    path = folder / "rank-00000.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_step(folder: Path) -> None:
    """The tensors are those of another step."""
    name = "rank-00000.safetensors"
    shutil.copy(folder.parent / "00000002" / name, folder / name)


def other_manifest(folder: Path) -> None:
    """The manifest is another than the one that was hashed."""
    change_json(folder / "manifest.json", step=5)


def no_hash(folder: Path) -> None:
    """What should be a hash is none."""
    (folder / "manifest.sha256").write_text("x" * 64)


RANK = r"00000004/rank-00000\.safetensors: "


@pytest.mark.parametrize(
    "damage, said",
    [
        (lost("rank-00000.safetensors"), RANK + "the file is missing"),
        (shorter, RANK + r"\d+ bytes wanted, \d+ found"),
        (other_step, RANK + "the content does not match its sha256"),
        (lost("state.json"), r"00000004/state\.json: the file is missing"),
        (lost("manifest.json"), r"00000004/manifest\.json: the file is missing"),
        (lost("manifest.sha256"), r"00000004/manifest\.sha256: the file is missing"),
        (other_manifest, r"00000004/manifest\.json: does not agree with manifest\.sha256"),
        (no_hash, r"00000004/manifest\.sha256: not a sha256"),
    ],
    ids=["68-rank-lost", "68-half", "68-other-step", "68-state-lost", "68-manifest-lost", "68-hash-lost", "68-manifest", "68-no-hash"],
)  # fmt: skip
def test_checkpoint_that_is_not_whole_gives_way_to_the_older(damage, said, half_done, unbroken):
    damage(half_done / BASE / "steps" / "00000004")
    outcome = goes_on(half_done, unbroken)
    assert any(re.search(said, text) for text in outcome.warnings), outcome.err
    assert "base: resumed from step 2" in messages(outcome)
    assert (half_done / BASE / "steps" / "00000004.damaged").is_dir()


def test_half_a_save_is_no_checkpoint(half_done, unbroken):
    steps = half_done / BASE / "steps"
    shutil.copytree(steps / "00000004", steps / ".00000006.77.partial")
    shutil.copytree(steps / "00000004", steps / ".00000004.77.aside")
    (steps / "00000004" / "state.json").rename(steps / ".state.json.77.partial")
    shutil.rmtree(steps / "00000004")  # killed between two renames: what was set aside comes back
    (steps / ".state.json.77.partial").unlink()
    assert RESUMED in messages(goes_on(half_done, unbroken))


def test_no_checkpoint_is_told(tmp_path, unbroken):
    lay_out(tmp_path)
    killed_at(tmp_path, 1)
    outcome = goes_on(tmp_path, unbroken)
    assert "base: no checkpoint yet: starts at step 0" in messages(outcome)


# 69: other data than it began with


def more_documents(folder: Path) -> None:
    """A document that was not there when the run began."""
    put(folder / "docs" / "z.md", "the dog ran after the cat\n" * 4)


def nothing(folder: Path) -> None:
    """All as it was."""


def from_another(change: str, part: str) -> Callable[[Path], None]:
    """The run has a folder of a run with other settings."""

    def swap(folder: Path) -> None:
        killed_at(folder, 5, f"{RUN} {change} out=other")
        shutil.rmtree(folder / BASE / part)
        shutil.copytree(folder / "other" / "base" / part, folder / BASE / part)

    return swap


@dataclass(frozen=True)
class OtherData:
    """An interrupted run whose data are others: the refusal, and that `--reset-data` goes on."""

    number: int
    name: str
    change: Callable[[Path], None]
    more: str  # of the command
    code: int
    line: str


HEAD = r"runs/tiny/base: made with other settings "
GO = r"; --reset-data goes on with .+"
CHECKPOINT = r"runs/tiny/base/steps/00000004: the checkpoint was made with other data "
OTHER_DATA = [
    OtherData(69, "documents", more_documents, "", 2, rf"runs/tiny/corpus: made with other settings \(input files was {SHORT}, now {SHORT}\){GO}"),
    OtherData(69, "batch", nothing, "base.batch_tokens=48", 2, HEAD + rf"\(batch_tokens was 32, now 48\){GO}"),
    OtherData(69, "micro-batch", nothing, "base.micro_batch_tokens=16", 2, HEAD + rf"\(micro_batch_tokens was None, now 16\){GO}"),
    OtherData(69, "order", nothing, "seed=1", 2, rf"runs/tiny/corpus: made with other settings \(seed was 0, now 1\){GO}"),
    OtherData(69, "store", from_another("corpus.drop_duplicates=false corpus.inputs=[docs/more.jsonl]", "data"), "", 4, CHECKPOINT + rf"\(documents {SHORT}, here {SHORT}; packing {SHORT}, here {SHORT}\){GO}"),
    OtherData(69, "steps", from_another("base.batch_tokens=16", "steps"), "", 4, CHECKPOINT + rf"\(order or size of batches {SHORT}, here {SHORT}; steps or micro-batches {SHORT}, here {SHORT}\){GO}"),
]  # fmt: skip
BY_NAME = [f"{case.number}-{case.name}" for case in OTHER_DATA]


@pytest.mark.parametrize("case", OTHER_DATA, ids=BY_NAME)
def test_other_data_are_refused_and_taken_where_asked_for(case, half_done):
    case.change(half_done)
    before = snapshot(half_done / BASE / "steps")
    outcome = call(half_done, f"{RUN} {case.more}")
    check_line(outcome, case.code, case.line)
    assert snapshot(half_done / BASE / "steps") == before
    outcome = call(half_done, f"{RUN} {case.more} --reset-data")
    assert outcome.code == 0, outcome.err
    assert RESUMED in messages(outcome)
    after = call(half_done, f"{RUN} {case.more}")
    assert after.code == 0 and sum("complete, skipped" in m for m in messages(after)) == 3
    resets = record(half_done).get("data_resets", [])
    saved = half_done / BASE / "steps" / "00000006" / "state.json"
    assert json.loads(saved.read_text())["data_resets"] == resets
    if case.name == "store":
        assert resets == [], "the data are those of the recipe again"
        return
    (reset,) = resets
    assert reset["step"] == 4 and reset["from"] != reset["to"]
    rows = [
        json.loads(text)
        for text in (half_done / BASE / "metrics.jsonl").read_text().splitlines()[1:]
    ]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    ledger = record(half_done)["summary"]["ledger"]
    assert ledger["trained"] + ledger["padded"] == ledger["places"] >= rows[-1]["tokens"]


def test_tokenizer_of_the_weights_stays_with_other_documents(half_done):
    words = half_done / "runs/tiny/words"
    tokens = sha256_file(words / "final" / "tokenizer.json")
    learned_from = record(half_done, "words")["inputs"]
    more_documents(half_done)
    assert call(half_done, f"{RUN} --reset-data").code == 0
    assert sha256_file(words / "final" / "tokenizer.json") == tokens
    assert record(half_done, "words")["made_from"] == learned_from
    assert record(half_done, "words")["inputs"] != learned_from
    assert (half_done / "runs/tiny/corpus.previous/train.jsonl").is_file()


@pytest.mark.parametrize("step", [5, 6])
def test_interrupted_reset_goes_on_to_the_same_bits(step, half_done, tmp_path):
    command = f"{RUN} base.batch_tokens=48 --reset-data"
    shutil.copytree(half_done, tmp_path / "whole")
    assert call(tmp_path / "whole", command).code == 0
    killed_at(half_done, step, f"{command} base.checkpoint_every=1")
    goes_on(half_done, sha256_file(tmp_path / "whole" / MODEL), command)
    assert record(half_done)["data_resets"] == record(tmp_path / "whole")["data_resets"]


KEPT = r"; --reset-data changes data alone and of unfinished training; out=FOLDER keeps both"


@pytest.mark.parametrize(
    "more, line",
    [
        ("base.learning_rate=1", HEAD + r"\(learning_rate was 0\.01, now 1\.0\)" + KEPT),
        ("base.batch_tokens=16 base.clip=9", HEAD + r"\(batch_tokens was 32, now 16; clip was 1\.0, now 9\.0\)" + KEPT),
        ("words.vocab_size=280", r"runs/tiny/words: .+\(vocab_size was 270, now 280\)" + KEPT),
        ("--fresh", r"--fresh and --reset-data exclude each other; choose one"),
        ("--overwrite", r"--overwrite and --reset-data exclude each other; choose one"),
        ("base.steps=3", r"base: 4 steps are done, and the data now make 3; give it more tokens, steps or epochs"),
        ("base.batch_tokens=3200", r"base: batch_tokens: \d+ samples of 16 tokens are less than a batch of 200; .+"),
    ],
    ids=["69-rate", "69-rate-too", "69-vocabulary", "69-fresh", "69-overwrite", "69-done", "69-small"],
)  # fmt: skip
def test_more_than_data_is_refused(more, line, half_done, unbroken):
    before = snapshot(half_done / BASE / "steps")
    check_line(call(half_done, f"{RUN} {more} --reset-data"), 2, line)
    assert snapshot(half_done / BASE / "steps") == before
    goes_on(half_done, unbroken)


def test_complete_training_is_never_reset(half_done, unbroken):
    goes_on(half_done, unbroken)
    outcome = call(half_done, f"{RUN} base.batch_tokens=16 --reset-data")
    check_line(outcome, 2, HEAD + r"\(batch_tokens was 32, now 16\)" + KEPT)
    goes_on(half_done, unbroken, f"{RUN} --reset-data")


# 70: written by more processes than read it


def in_two(folder: Path) -> None:
    """A checkpoint as two processes would have written it: rows of every tensor in two files."""
    whole = load_file(folder / "rank-00000.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    for name, tensor in whole.items():
        rows = tensor.shape[0] if tensor.ndim else 0
        cuts = [(0, rows // 2), (rows // 2, rows)] if rows > 1 else [None, None]
        slices = []
        for rank, cut in enumerate(cuts):
            if cut is None and rank:
                continue
            part = tensor if cut is None else tensor[cut[0] : cut[1]]
            shards[rank][name] = part.contiguous().clone()
            start = [0] * tensor.ndim if cut is None else [cut[0]] + [0] * (tensor.ndim - 1)
            file = f"rank-{rank:05d}.safetensors"
            slices.append({"file": file, "start": start, "shape": list(part.shape)})
        manifest["tensors"][name]["slices"] = slices
    manifest["world_size"] = 2
    for rank, shard in enumerate(shards):
        path = folder / f"rank-{rank:05d}.safetensors"
        save_file(shard, path)
        manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "manifest.sha256").write_text(sha256_file(folder / "manifest.json"))


@pytest.mark.parametrize("lose", [False, True], ids=["70-two", "70-second-lost"])
def test_checkpoint_of_two_processes(lose, half_done, unbroken):
    folder = half_done / BASE / "steps" / "00000004"
    in_two(folder)
    if lose:
        (folder / "rank-00001.safetensors").unlink()
    outcome = goes_on(half_done, unbroken)
    if lose:
        assert any("rank-00001.safetensors: the file is missing" in m for m in outcome.warnings)
        assert "base: resumed from step 2" in messages(outcome)
    else:
        assert "base: written by 2 processes, read by 1" in messages(outcome)
        assert RESUMED in messages(outcome)
