# ruff: noqa: E501  (tables are read by rows)
"""Bad places, cases 29 to 32: the input is the output, the output exists, it may not or cannot
be written.

A full disk is made twice: by the limit on the size of a file, in this process, and by a small
file system of its own where the machine lets a process mount one.
"""

import ctypes
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bad_inputs.command_line import (
    Outcome,
    Refused,
    call,
    check_kept,
    check_line,
    names,
    refuse,
    snapshot,
)
from tests.bad_inputs.layouts import CORPUS, good_documents, line, put, recipe

RUN = "run tiny.yaml"
MINE = "what a person wrote\n"
NOT_OURS = r"the (file|folder) exists and no run made it; .+"
MAY_WRITE_ALL = 1 << 1  # CAP_DAC_OVERRIDE: root passes over permissions with it
FULL_FILE = r"\S+: the file is larger than the limit set for it \(more than \d+ bytes needed\); raise `ulimit -f`"
FULL_DISK = (
    r"\S+: the disk is full \(more than \d+ bytes needed, \d+ bytes free\); free some space .*"
)


def mine(name: str):
    """A file of a person's at a place where a run writes."""

    def lay_out(folder: Path) -> None:
        good_documents(folder)
        put(folder / name, MINE)

    return lay_out


def finished_corpus(folder: Path) -> None:
    """A complete first stage."""
    good_documents(folder)
    assert call(folder, CORPUS).code == 0


def older_is_not_ours(folder: Path) -> None:
    """A complete first stage, and a person's file where its older generation would be kept."""
    finished_corpus(folder)
    put(folder / "runs" / "tiny" / "corpus.previous" / "mine.txt", MINE)


def linked(folder: Path) -> None:
    """A second name for the documents."""
    good_documents(folder)
    (folder / "link").symlink_to("docs")


def model_inside(folder: Path) -> None:
    """A recipe that goes on from a model in its own run folder."""
    recipe(
        "    tokenizer: words\n    model: {family: llama, width: 16, depth: 1, num_heads: 2}\n",
        "    init: ./mine/model\n",
    )(folder)
    put(folder / "mine" / "model" / "config.json", "{}")


INSIDE = r"\S+: .*input lies in (the run folder \S+|run folders); .*another folder with out="
CASES = [
    # 29: the output is the input
    Refused(29, "same", good_documents, f"{RUN} out=docs", 2, INSIDE),
    Refused(29, "around", good_documents, f"{RUN} out=.", 2, INSIDE),
    Refused(29, "around-a-file", good_documents, f"{RUN} corpus.inputs=[docs/good.jsonl] out=docs", 2, INSIDE),
    Refused(29, "around-a-glob", good_documents, f"{RUN} 'corpus.inputs=[\"docs/*.jsonl\"]' out=docs", 2, INSIDE),
    Refused(29, "link", linked, f"{RUN} out=link", 2, INSIDE),
    Refused(29, "through-a-link", linked, f"{RUN} corpus.inputs=[link] out=docs", 2, INSIDE),
    Refused(29, "spelling", good_documents, f"{RUN} out=docs/../docs/.", 2, INSIDE),
    Refused(29, "model", model_inside, f"{RUN} out=mine", 2, INSIDE),
    Refused(29, "init", good_documents, "init docs --output docs/good.jsonl", 2, r"docs/good\.jsonl: the file exists; .*--output FILE"),
    # 30: the output exists
    Refused(30, "stage", mine("runs/tiny/corpus/train.jsonl"), CORPUS, 2, r"runs/tiny/corpus: " + NOT_OURS),
    Refused(30, "later-stage", mine("runs/tiny/base/final/model.safetensors"), RUN, 2, r"runs/tiny/base: " + NOT_OURS),
    Refused(30, "stage-fresh", mine("runs/tiny/base/notes.txt"), f"{RUN} --fresh", 2, r"runs/tiny/base: " + NOT_OURS),
    Refused(30, "stage-overwrite", mine("runs/tiny/base/notes.txt"), f"{RUN} --overwrite", 2, r"runs/tiny/base: " + NOT_OURS),
    Refused(30, "recipe", mine("runs/tiny/recipe.yaml"), RUN, 2, r"runs/tiny/recipe\.yaml: " + NOT_OURS),
    Refused(30, "report", mine("runs/tiny/report.html"), RUN, 2, r"runs/tiny/report\.html: " + NOT_OURS),
    Refused(30, "other-settings", finished_corpus, f"{CORPUS} corpus.drop_duplicates=false", 2, r"runs/tiny/corpus: made with other settings \(drop_duplicates was True, now False\); --overwrite .*out=FOLDER.*"),
    Refused(30, "other-seed", finished_corpus, f"{CORPUS} seed=1", 2, r"runs/tiny/corpus: made with other settings \(.*seed.*\); --overwrite .*"),
    Refused(30, "other-documents", lambda f: (finished_corpus(f), put(f / "docs" / "more.md", MINE))[0], CORPUS, 2, r"runs/tiny/corpus: made with other settings \(.*files.*\); --overwrite .*"),
    Refused(30, "older-not-ours", older_is_not_ours, f"{CORPUS} --overwrite corpus.drop_duplicates=false", 2, r"runs/tiny/corpus\.previous: " + NOT_OURS),
    Refused(30, "init", mine("docs.yaml"), "init docs", 2, r"docs\.yaml: the file exists; .*--output FILE"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=names)
def test_refused(case, tmp_path):
    refuse(case, tmp_path)


@contextmanager
def obeying_permissions() -> Iterator[None]:
    """Root passes over permissions; while the block runs, this thread lays that power down."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    before, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    less[:] = before[:]
    less[0] &= ~MAY_WRITE_ALL  # of what is in effect; what is permitted stays, to take it back
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A folder in which nothing may be made."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o555)
    try:
        with obeying_permissions():
            yield
    finally:
        folder.chmod(0o755)


DENIED = r": permission denied; choose another place or change its permissions"


@pytest.mark.parametrize(
    "command, place",
    [
        (f"{RUN} out=locked", r"locked"),
        (f"{RUN} out=locked/below/it", r"locked/below/it"),
        ("init docs --output locked/docs.yaml", r"locked/docs\.yaml"),
    ],
    ids=["31-folder", "31-below", "31-init"],
)
def test_folder_that_may_not_be_written(command, place, tmp_path):
    """It is said before any work starts: no stage has begun."""
    good_documents(tmp_path)
    with locked(tmp_path / "locked"):
        before = snapshot(tmp_path)
        outcome = call(tmp_path, command)
    check_line(outcome, 5, place + DENIED)
    assert "corpus" not in outcome.err
    assert snapshot(tmp_path) == before


def test_lock_holds(tmp_path):
    """The folder of the tests above refuses a file indeed, whoever runs them."""
    with locked(tmp_path / "locked"), pytest.raises(PermissionError):
        (tmp_path / "locked" / "a").touch()


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def large_documents(folder: Path) -> None:
    """Good documents, and 300 KB beside them."""
    good_documents(folder)
    texts = (f"{number} " + "words and words " * 60 for number in range(300))
    put(folder / "docs" / "large.jsonl", "".join(line(text) for text in texts))


def check_no_result(stage: Path) -> None:
    """A stage that failed has its record and no result, half or whole."""
    record = json.loads((stage / "stage.json").read_text())
    assert record["status"] == "running" and record["outputs"] == {}
    names = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
    assert not [name for name in names if re.search(r"final|partial|steps/|train\.jsonl", name)]


def test_full_disk_at_the_first_stage(tmp_path):
    """Case 32: documents do not fit."""
    large_documents(tmp_path)
    before = snapshot(tmp_path)
    with file_limit(64 << 10):
        outcome = call(tmp_path, CORPUS)
    check_line(outcome, 5, r"runs/tiny/corpus" + FULL_FILE.removeprefix(r"\S+"))
    check_kept(before, tmp_path)
    check_no_result(tmp_path / "runs" / "tiny" / "corpus")
    assert call(tmp_path, CORPUS).code == 0, "the same command goes on once there is room"


@pytest.mark.parametrize("change", ["", "base.steps=4 --overwrite"], ids=["32-new", "32-again"])
def test_full_disk_at_a_later_stage(change, tmp_path):
    """Case 32: the checkpoint does not fit; complete stages and the older result stay."""
    good_documents(tmp_path)
    out = tmp_path / "runs" / "tiny"
    assert call(tmp_path, RUN if change else f"{RUN} --until words").code == 0
    before = snapshot(out)
    with file_limit(40 << 10):
        outcome = call(tmp_path, f"{RUN} {change}")
    check_line(outcome, 5, r"runs/tiny/base/\S*" + FULL_FILE.removeprefix(r"\S+"))
    after = snapshot(out)
    for name, held in before.items():
        kept = name.replace("base", "base.previous", 1) if name.startswith("base") else name
        if name not in ("run.json", "recipe.yaml", "ledger.json", "report.html"):
            assert after[kept] == held, name
    check_no_result(out / "base")
    assert call(tmp_path, f"{RUN} {change}".replace(" --overwrite", "")).code == 0


def private_mounts(place: Path) -> list[str] | None:
    """The command that lets a process mount for itself alone; None where the machine forbids it."""
    prefix = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-r", "-m"]
    if shutil.which("unshare") is None:
        return None
    script = 'mount -t tmpfs none "$0" && "$1" -V'
    tried = [*prefix, "sh", "-c", script, str(place), sys.executable]
    done = subprocess.run(tried, capture_output=True, check=False)
    return prefix if done.returncode == 0 else None


MOUNTED = """\
mount -t tmpfs -o size="$SIZE" none runs || exit 99
cp -r before/. runs/ || exit 98
if [ "$SIZE_AFTER" = ro ]; then mount -o remount,ro runs || exit 97; fi
"$PYTHON" -m stemma run tiny.yaml
code=$?
cp -r runs after || exit 96
exit $code
"""


def run_mounted(folder: Path, prefix: list[str], *, size: str, read_only: bool = False) -> Outcome:
    """Run the recipe with `runs/` on a small file system, which holds `before/` at the start.

    What it holds in the end is copied to `after/`, since it vanishes with the process.
    """
    (folder / "runs").mkdir(exist_ok=True)
    (folder / "before").mkdir(exist_ok=True)
    settings = {"SIZE": size, "SIZE_AFTER": "ro" if read_only else "", "PYTHON": sys.executable}
    done = subprocess.run(
        [*prefix, "sh", "-c", MOUNTED],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_read_only_file_system(tmp_path):
    """Case 31 on a file system that is read-only; where none can be mounted, on a locked folder."""
    good_documents(tmp_path)
    (tmp_path / "runs").mkdir()
    prefix = private_mounts(tmp_path / "runs")
    before = snapshot(tmp_path / "docs")
    if prefix is None:
        with locked(tmp_path / "runs"):
            outcome, said = call(tmp_path, RUN), r"permission denied"
    else:
        outcome = run_mounted(tmp_path, prefix, size="1m", read_only=True)
        said = r"the file system is read-only"
    check_line(outcome, 5, rf"runs/tiny: {said}; choose another place.*")
    assert "corpus" not in outcome.err
    assert snapshot(tmp_path / "docs") == before
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("stage", ["corpus", "base"], ids=["32-mounted-corpus", "32-mounted-base"])
def test_full_file_system(stage, tmp_path):
    """Case 32 on a file system without room; where none can be mounted, with a limit per file."""
    prefix, size = private_mounts(tmp_path), 96 << 10
    (large_documents if stage == "corpus" else good_documents)(tmp_path)
    if stage == "base":
        assert call(tmp_path, f"{RUN} --until words").code == 0
        shutil.move(tmp_path / "runs", tmp_path / "before")
        held = [p for p in (tmp_path / "before").rglob("*") if p.is_file()]
        size += sum(-(-path.stat().st_size // 4096) * 4096 for path in held)
    before = snapshot(tmp_path / "before")
    if prefix is None:
        (tmp_path / "before").mkdir(exist_ok=True)
        shutil.copytree(tmp_path / "before", tmp_path / "runs", dirs_exist_ok=True)
        with file_limit(40 << 10):
            outcome = call(tmp_path, RUN)
        shutil.move(tmp_path / "runs", tmp_path / "after")
        check_line(outcome, 5, rf"runs/tiny/{stage}\S*" + FULL_FILE.removeprefix(r"\S+"))
    else:
        outcome = run_mounted(tmp_path, prefix, size=str(size))
        check_line(outcome, 5, rf"runs/tiny/{stage}\S*" + FULL_DISK.removeprefix(r"\S+"))
    after = snapshot(tmp_path / "after")
    papers = ("tiny/run.json", "tiny/recipe.yaml", "tiny/ledger.json", "tiny/report.html")
    assert {k: after.get(k) for k in before if k not in papers} == {
        k: v for k, v in before.items() if k not in papers
    }
    check_no_result(tmp_path / "after" / "tiny" / stage)
