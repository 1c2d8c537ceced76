"""The tools themselves: known calls are counted in order, and broken at exactly the one named.

Faults that never strike would make every other test here pass.
"""

import errno
import os
import signal

import pytest

from tests.faults import shim
from tests.faults.shim import Fault

# eleven calls that count; reading, and writing elsewhere, do not
SCRIPT = """
os.mkdir("a")
handle = os.open("a/one", os.O_WRONLY | os.O_CREAT)
os.write(handle, b"12345678")
os.fsync(handle)
os.close(handle)
Path("a/one").read_bytes()
Path("../elsewhere").write_bytes(b"not counted")
folder = os.open("a", os.O_RDONLY)
os.rename("one", "two", src_dir_fd=folder, dst_dir_fd=folder)
os.symlink("two", "a/three")
os.fsync(folder)
os.truncate("a/two", 3)
os.unlink("three", dir_fd=folder)
os.remove(os.path.abspath("a/two"))
os.rmdir("a")
"""
NAMES = "mkdir open64 write fsync renameat symlink fsync truncate64 unlinkat unlink rmdir".split()


@pytest.fixture
def folder(tmp_path):
    below = tmp_path / "below"
    below.mkdir()
    return below


def test_known_calls_are_counted_in_order_and_no_others(zygote, folder):
    ended = zygote.run("calls", folder, fault=Fault(), script=SCRIPT)
    assert ended.code == 0, ended.err
    assert [call.name for call in ended.calls] == NAMES
    assert [call.number for call in ended.calls] == list(range(1, 12))
    assert (folder.parent / "elsewhere").read_bytes() == b"not counted"
    assert ended.calls[2].path == folder / "a" / "one" and ended.calls[2].size == 8
    assert (ended.calls[4].path, ended.calls[4].other) == (
        folder / "a" / "one",
        folder / "a" / "two",
    )
    assert ended.calls[6].path == folder / "a" and ended.calls[8].path == folder / "a" / "three"


def test_folder_whose_name_only_begins_alike_is_not_counted(zygote, folder):
    script = "os.mkdir('../below-not'); os.mkdir('yes')"
    ended = zygote.run("calls", folder, fault=Fault(), script=script)
    assert [call.path for call in ended.calls] == [folder / "yes"]


@pytest.mark.parametrize("number", range(1, 12))
def test_kill_comes_before_the_call_and_after_all_others(zygote, folder, number):
    ended = zygote.run("calls", folder, fault=shim.killed_before(number), script=SCRIPT)
    assert ended.code == -signal.SIGKILL
    assert [call.name for call in ended.calls] == NAMES[:number]
    a = folder / "a"
    assert a.exists() == (number > 1)
    assert (a / "one").exists() == (2 < number <= 5)
    if 2 < number <= 5:
        assert (a / "one").read_bytes() == (b"12345678" if number > 3 else b"")
    assert (a / "two").exists() == (5 < number <= 10)
    if (a / "two").exists():
        assert (a / "two").stat().st_size == (8 if number <= 8 else 3)


def test_kill_beyond_the_last_call_never_comes(zygote, folder):
    assert zygote.run("calls", folder, fault=shim.killed_before(12), script=SCRIPT).code == 0


def test_torn_write_leaves_half_of_its_bytes(zygote, folder):
    ended = zygote.run("calls", folder, fault=shim.torn_at(3), script=SCRIPT)
    assert ended.code == -signal.SIGKILL
    assert (folder / "a" / "one").read_bytes() == b"1234"


@pytest.mark.parametrize(("number", "name"), list(enumerate(NAMES, start=1)))
def test_one_refused_call_raises_there_and_is_not_made(zygote, folder, number, name):
    ended = zygote.run("calls", folder, fault=shim.fails_at(number, errno.EROFS), script=SCRIPT)
    assert ended.code == 1 and "[Errno 30] Read-only file system" in ended.err
    assert [call.name for call in ended.calls] == NAMES[:number]


def test_refusals_end_where_they_should(zygote, folder):
    script = """
for number in range(6):
    try:
        os.mkdir(str(number))
    except OSError as error:
        print(number, error.errno)
"""
    fault = Fault(shim.FAIL, 2, 4, errno.EDQUOT)
    ended = zygote.run("calls", folder, fault=fault, script=script)
    assert ended.out.split() == ["1", "122", "2", "122", "3", "122"]
    assert sorted(os.listdir(folder)) == ["0", "4", "5"]


def test_full_disk_refuses_what_needs_room_and_nothing_else(zygote, folder):
    (folder / "old").write_bytes(b"old")
    (folder / "there").write_bytes(b"there")
    (folder / "empty").mkdir()
    script = """
def tried(name, *arguments):
    try:
        getattr(os, name)(*arguments)
    except OSError as error:
        print(name, error.errno)
handle = os.open("there", os.O_WRONLY)
tried("write", handle, b"more")
tried("posix_fallocate", handle, 0, 9)
tried("fsync", handle)
tried("mkdir", "new")
tried("link", "old", "new")
tried("open", "new", os.O_CREAT | os.O_WRONLY)
tried("rename", "old", "older")
tried("remove", "older")
tried("rmdir", "empty")
"""
    ended = zygote.run("calls", folder, fault=shim.full_from(1, errno.ENOSPC), script=script)
    refused = [line.split() for line in ended.out.splitlines()]
    assert refused == [
        [name, str(errno.ENOSPC)] for name in ("write", "posix_fallocate", "mkdir", "link", "open")
    ]
    assert os.listdir(folder) == ["there"] and (folder / "there").read_bytes() == b"there"


def test_vectors_and_copies_between_files_are_seen_and_torn(zygote, folder):
    script = """
one = os.open("one", os.O_RDWR | os.O_CREAT)
two = os.open("two", os.O_RDWR | os.O_CREAT)
os.writev(one, [b"1234", b"5678"])
os.pwrite(one, b"0", 8)
os.copy_file_range(one, two, 8, 0)
os.sendfile(two, one, 0, 8)
"""
    ended = zygote.run("calls", folder, fault=Fault(), script=script)
    assert [call.size for call in ended.calls] == [0, 0, 8, 1, 8, 8]
    assert all(call.writes for call in ended.calls[2:])
    ended = zygote.run("calls", folder, fault=shim.torn_at(5), script=script)
    assert len(ended.calls) == 5 and (folder / "two").read_bytes()[:4] == b"1234"


def test_child_ends_as_a_process_ends(zygote, folder):
    script = "import atexit; atexit.register(print, 'bye'); print('hello'); raise SystemExit(7)"
    ended = zygote.run("calls", folder, script=script)
    assert (ended.code, ended.out, ended.calls) == (7, "hello\nbye\n", [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signal_reaches_the_child_and_the_zygote_lives(zygote, folder, number):
    script = "Path('up').touch(); import time; time.sleep(60)"
    child = zygote.start("calls", folder, script=script)
    assert child.wait_until((folder / "up").exists)
    child.send(number)
    assert child.wait().code == -number
    assert zygote.run("calls", folder, script="").code == 0


def test_keyboard_interrupt_is_one_in_the_child(zygote, folder):
    script = "Path('up').touch(); import time; time.sleep(60)"
    child = zygote.start("calls", folder, script=script)
    assert child.wait_until((folder / "up").exists)
    child.send(signal.SIGINT)
    ended = child.wait()
    assert ended.code != 0 and "KeyboardInterrupt" in ended.err
