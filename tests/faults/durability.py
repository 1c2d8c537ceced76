"""What survives a power cut, told from a trace of calls: the order to keep, and what is lost.

A disk keeps what was synced. Bytes written since the last sync of their file may be gone, and so
may a rename since the last sync of the folder it is in.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from tests.faults.shim import Call


def parents(path: Path) -> set[Path]:
    """A path and all folders above it."""
    return {path, *path.parents}


def check_order(calls: list[Call], *, root: Path | None = None) -> None:
    """The order of a safe commit, of every rename in a trace to a name that is seen.

    What is below the renamed path is synced after its last change and before the rename, the
    folder above after it, and nothing is removed between the two. A folder above that was made in
    the trace is recorded by its own parent, but for `root`, which the trace does not cover itself.
    """
    renames = [call for call in calls if call.commits]
    assert renames, "nothing was committed"
    for rename in renames:
        before = [call for call in calls if call.number < rename.number]
        after = [call for call in calls if call.number > rename.number]
        unsynced = changed_since_sync(before)
        late = {path for path in unsynced if rename.path in parents(path)}
        assert not late, f"renamed before it was synced: {late}"
        folder = rename.other.parent
        synced = [call for call in after if call.syncs and call.path == folder]
        assert synced, f"the rename to {rename.other} is never made durable"
        for made in (c for c in before if c.name.startswith("mkdir")):
            if made.path in parents(folder) and made.path.parent != root:
                kept = [c for c in calls if c.syncs and c.path == made.path.parent]
                last = kept[-1].number if kept else 0
                assert last > made.number, f"{made.path} was made and its parent never synced"
        removed = [call for call in after if call.removes and call.number < synced[0].number]
        assert not removed, f"removed before the rename was durable: {removed[0]}"


def changed_since_sync(calls: Iterable[Call]) -> set[Path]:
    """Files written, and folders whose entries changed, since each was synced last."""
    changed: set[Path] = set()
    for call in calls:
        if call.syncs:
            changed.discard(call.path)
        elif call.writes:
            changed.add(call.path)
        elif call.name.startswith(("open", "creat", "mkdir")):
            changed.add(call.path.parent)
            changed.add(call.path)
    return changed


def cut_power(calls: list[Call], *, undone: int, at: Path, to: Path) -> None:
    """Do to a copy `to` of the folder `at` what a power cut at the trace's end might have done.

    The bytes of files that were not synced go, and so do the last `undone` of the renames that
    their folder had not recorded: a file system forgets the newest first. The last call of the
    trace was not made.
    """
    made = calls[:-1]
    moved = {call.path: call.other for call in made if call.other is not None}
    for path in changed_since_sync(made):
        for old, new in moved.items():
            if old in parents(path):
                path = new / path.relative_to(old)
        copy = to / path.relative_to(at)
        if copy.is_file():
            copy.write_bytes(b"")
    for call in undurable(made)[::-1][:undone]:
        assert call.other is not None
        os.rename(to / call.other.relative_to(at), to / call.path.relative_to(at))


def undurable(calls: list[Call]) -> list[Call]:
    """Renames that their folder had not recorded at the end of a trace."""
    found: list[Call] = []
    for call in calls:
        if call.other is not None:
            found.append(call)
        elif call.syncs:
            found = [c for c in found if c.other is not None and c.other.parent != call.path]
    return found
