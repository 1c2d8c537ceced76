"""From the names in a recipe to the files to read: files, folders and globs, in a fixed order.

A folder is walked to its end and only files with a known ending are taken; the others are
counted in one warning, because a corpus that is silently smaller than its folder is a trap.
Hidden names are left out. A link inside a folder is followed only to a file of that folder, so
no walk is endless and nothing from outside slips in. A `.json` file may be anything, so it is
read only where a name or a glob asks for it. The result is sorted by name: the same folder
gives the same order on every machine.
"""

import glob
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from stemma.core.errors import DataError, StemmaError, UsageError, closest, printable
from stemma.core.files import resource_error

log = logging.getLogger("stemma")

Kind = Literal["text", "jsonl", "json", "parquet", "yaml"]
Compression = Literal["none", "gzip", "zstd"]

KINDS: dict[str, Kind] = {  # of documents; other tables stand where other things are read
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}

MANY = 2000  # names of a folder that are compared with a missing one


@dataclass(frozen=True, slots=True)
class Format:
    """What the name of a file promises about its content."""

    kind: Kind
    compression: Compression = "none"


def endings(kinds: Mapping[str, Kind] = KINDS) -> str:
    """The endings of a table in words, for messages; a .json file has to be asked for."""
    packed = " ".join(name for name, kind in kinds.items() if kind not in ("json", "parquet"))
    return f"known endings: {packed} (also .gz, .zst), .parquet"


ENDINGS = endings()


def format_of(path: PurePath, kinds: Mapping[str, Kind] = KINDS) -> Format | None:
    """The format that a name promises, or None: "a.jsonl.gz" -> Format("jsonl", "gzip")."""
    ending = path.suffix.lower()
    compression = COMPRESSIONS.get(ending, "none")
    if compression != "none":
        ending = PurePath(path.stem).suffix.lower()
    kind = kinds.get(ending)
    if kind is None or (kind == "parquet" and compression != "none"):
        return None
    return Format(kind, compression)


def source_name(path: Path, root: Path) -> str:
    """How a file is called in errors and in lineage: relative to `root` where it lies inside."""
    try:
        relative = Path(os.path.abspath(path)).relative_to(os.path.abspath(root))
    except ValueError:
        relative = path
    return printable(relative.as_posix())


@dataclass
class _Notes:
    """The endings looked for; and what was passed over, for one warning of each sort at the end."""

    kinds: Mapping[str, Kind] = field(default_factory=lambda: KINDS)
    endings: Counter[str] = field(default_factory=Counter)
    links: list[Path] = field(default_factory=list)
    special: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)

    def skip(self, path: Path) -> None:
        self.endings[path.suffix.lower() or "no ending"] += 1

    def other_endings(self) -> str:
        """The endings that were passed over and how often: ".csv 3, .png 2"."""
        return ", ".join(f"{printable(name)} {n}" for name, n in self.endings.most_common(5))

    def warn(self, root: Path) -> None:
        if self.endings:
            count = self.endings.total()
            log.warning("skipped %d files by their ending (%s)", count, self.other_endings())
        for paths, what in (
            (self.links, "skipped %d links that leave their folder or lead nowhere; first: %s"),
            (self.special, "skipped %d entries that are not regular files; first: %s"),
            (self.repeated, "%d files are named more than once and read once; first: %s"),
        ):
            if paths:
                log.warning(what, len(paths), source_name(min(paths), root))


def find_files(inputs: Sequence[str], root: Path, kinds: Mapping[str, Kind] = KINDS) -> list[Path]:
    """All files that `inputs` name, each once, sorted by name; relative inputs start at `root`.

    An input is a file, a folder, or a glob (`*`, `?`, `[]`, `**`). An existing path wins over
    its reading as a glob. Files whose endings are not in `kinds` are none.

    Raises UsageError for an input that does not exist, matches nothing or is not a regular
    file, DataError where the inputs exist but hold no readable file, and ResourceError for a
    folder that may not be read.
    """
    notes = _Notes(kinds)
    found: dict[tuple[int, int], Path] = {}
    for text in inputs:
        try:
            files = _once(_files_of(text, root, notes))
        except OSError as error:  # a folder that may be listed but not entered, a vanished file
            raise resource_error(error, error.filename or text) from error
        notes.repeated += [path for identity, path in files.items() if identity in found]
        found = files | found
    notes.warn(root)
    if not found:
        what = f"no documents in {', '.join(inputs[:3]) or 'an empty list of inputs'}"
        if notes.endings:
            what += f" ({notes.endings.total()} other files: {notes.other_endings()})"
        raise DataError(what, fix=endings(kinds))
    return sorted(found.values(), key=lambda path: source_name(path, root))


def _once(paths: Iterable[Path]) -> dict[tuple[int, int], Path]:
    """Each file once, under the first of its names; the key is its place on the disk."""
    unique: dict[tuple[int, int], Path] = {}
    for path in paths:
        status = path.stat()
        unique.setdefault((status.st_dev, status.st_ino), path)
    return unique


def _files_of(text: str, root: Path, notes: _Notes) -> list[Path]:
    path = root / text
    status = _status(path, text)
    if status is None and glob.has_magic(text):
        return _matches(text, root, notes)
    if status is None:
        raise _missing(path, text, root)
    if stat.S_ISDIR(status.st_mode):
        return _walk(path, notes)
    require_regular(path, text)
    if format_of(path, notes.kinds) is None:
        raise UsageError(f"unknown ending {path.suffix!r}", place=text, fix=endings(notes.kinds))
    return [path]


def _status(path: Path, name: str) -> os.stat_result | None:
    """The file status, or None where nothing has this name."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            what = f"is a link to {os.readlink(path)}, which does not exist"
            raise UsageError(what, place=name, fix="repair or remove the link") from error
        return None
    except PermissionError as error:
        raise resource_error(error, name) from error
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a NUL in the name
        what = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"is no usable path ({what})", place=name, fix="name a file") from error


def require_regular(path: Path, name: str) -> None:
    """Refuse folders, pipes, devices and the kernel's made-up files, whose sizes are no sizes."""
    status = _status(path, name)
    if status is None:
        raise DataError("does not exist any more", place=name, fix="run the command again")
    made_up = os.path.realpath(path).startswith(("/proc/", "/sys/"))
    if not stat.S_ISREG(status.st_mode) or made_up:
        kind = "is a folder" if stat.S_ISDIR(status.st_mode) else "is a pipe, device or the like"
        raise UsageError(f"not a regular file ({kind})", place=name, fix="copy it to a file first")


def _matches(text: str, root: Path, notes: _Notes) -> list[Path]:
    """The files of a glob; a folder among the matches is walked."""
    parts = PurePath(text).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base, pattern = root.joinpath(*parts[:first]), str(PurePath(*parts[first:]))
    try:
        matches = sorted(path for path in base.glob(pattern) if not _hidden(path, base))
    except (ValueError, OSError) as error:
        raise UsageError(f"is no glob: {error}", place=text, fix="check its stars") from error
    if not matches:
        raise _missing(base / parts[first], text, root)
    files: list[Path] = []
    for path in matches:
        if path.is_dir():
            files += [] if path.is_symlink() else _walk(path, notes)
        elif not path.is_file():
            notes.special.append(path)
        elif format_of(path, notes.kinds) is None:
            notes.skip(path)
        else:
            files.append(path)
    return files


def _hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)


def _walk(folder: Path, notes: _Notes) -> list[Path]:
    """The readable files below `folder`, files before links so that a file keeps its own name."""
    inside = folder.resolve()
    files: list[Path] = []
    links: list[Path] = []
    for here, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        notes.links += [path for name in folders if (path := Path(here, name)).is_symlink()]
        for path in (Path(here, name) for name in sorted(names) if not name.startswith(".")):
            _sort_entry(path, inside, files, links, notes)
    return files + links


def _sort_entry(
    path: Path, inside: Path, files: list[Path], links: list[Path], notes: _Notes
) -> None:
    """Put one entry of a folder where it belongs: files, links, or the notes."""
    linked = path.is_symlink()
    if linked and not (path.is_file() and Path(os.path.realpath(path)).is_relative_to(inside)):
        notes.links.append(path)
    elif not path.is_file():
        notes.special.append(path)
    elif (form := format_of(path, notes.kinds)) is None or form.kind == "json":
        notes.skip(path)
    else:
        (links if linked else files).append(path)


def _refuse(error: OSError) -> None:
    raise resource_error(error, error.filename) from error


def _missing(path: Path, text: str, root: Path) -> StemmaError:
    """The error for a name that does not exist, with the nearest name that does."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    try:
        names = sorted(name for name in os.listdir(parent) if not name.startswith("."))[:MANY]
    except OSError as error:
        return resource_error(error, parent)
    near = closest(path.name, names, count=5, likeness=0)
    if meant := closest(path.name, near):
        fix = f"did you mean {source_name(parent / meant[0], root)}"
    else:
        fix = f"in {source_name(parent, root)} there is: {', '.join(near) or 'nothing'}"
    what = "matches nothing" if glob.has_magic(text) else "no such file or folder"
    return UsageError(what, place=text, fix=fix)
