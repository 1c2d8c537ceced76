"""A disk that is really full, and one that is really read-only: mounts of a few hundred kilobytes.

Needs the right to mount. Each mount is below the test's own folder and is gone when the test is.
"""

import shutil
import subprocess
from contextlib import contextmanager

import pytest

from stemma.train.checkpoint import checkpoints, open_checkpoint
from tests.faults.trial import Trial

pytestmark = pytest.mark.mount


def mount(*arguments):
    """Run mount, which must work."""
    subprocess.run(["mount", *map(str, arguments)], check=True)


@contextmanager
def small_disk(folder, kilobytes):
    """A file system in memory of a size."""
    folder.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def size_of(folder):
    """Kilobytes that a folder's files take, in whole pages as tmpfs counts."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(-(-path.stat().st_size // 4096) * 4 for path in files)


@pytest.fixture
def disk(ready, tmp_path):
    """The trainer's project, its run folder on a disk of its own."""
    place = tmp_path / "project"
    shutil.copytree(ready.folder, place, ignore=shutil.ignore_patterns("out"))
    with small_disk(place / "out", 4096) as folder:
        shutil.copytree(ready.folder / "out", folder, dirs_exist_ok=True)
        yield Trial(ready.zygote, ready.trainer, place)


def room_for(disk, unbroken, saves):
    """Size of the disk for that many checkpoints and all else that the stage writes."""
    newest = checkpoints(unbroken.steps)[-1]
    others = size_of(unbroken.folder / "out") - size_of(unbroken.steps)
    return others - size_of(unbroken.stage / "final") + int(saves * size_of(newest))


@pytest.mark.parametrize("saves", [0.5, 1.5, 2.5])
def test_run_that_fills_the_disk_ends_and_goes_on_when_there_is_room(disk, unbroken, saves):
    out = disk.folder / "out"
    mount("-o", f"remount,size={room_for(disk, unbroken, saves)}k", out)
    ended = disk.run()
    assert ended.code == 5, ended.err
    (line,) = ended.errors
    place = f"out/{disk.trainer.stage}/steps/{5 * int(saves + 1):08d}"
    assert place in line and "the disk is full" in line and "bytes free" in line
    assert [open_checkpoint(each).step for each in checkpoints(disk.steps)] == [5, 10][: int(saves)]
    assert not disk.leftovers()
    assert disk.run().code == 5  # again, and nothing is lost by it
    mount("-o", "remount,size=8m", out)
    assert disk.finish().resumed == (5 * int(saves) or None)
    assert disk.results() == unbroken.results()


def test_read_only_disk_is_refused_before_any_work(disk, unbroken):
    out = disk.folder / "out"
    mount("-o", "remount,ro", out)
    ended = disk.run()
    assert ended.code == 5
    assert ended.errors == [
        "error: out: the file system is read-only; choose another place with out=FOLDER"
    ]
    assert not disk.stage.exists() and not ended.messages
    mount("-o", "remount,rw", out)
    disk.finish()
    assert disk.results() == unbroken.results()


def test_disk_that_turns_read_only_in_a_run_ends_it_and_keeps_what_was(disk, unbroken):
    out = disk.folder / "out"
    child = disk.start(at="save", number=3, act="hold")
    assert child.held()
    mount("-o", "remount,ro", out)
    ended = child.let_go()
    mount("-o", "remount,rw", out)
    assert ended.code == 5 and "the file system is read-only" in ended.errors[0]
    assert disk.finish().resumed == 10
    assert disk.results() == unbroken.results()
