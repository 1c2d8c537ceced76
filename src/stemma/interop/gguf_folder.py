"""GGUF files as models: converted once into a Hugging Face folder, which is what loads then.

Decoding the weights takes seconds each time, so the first use leaves a folder under
`converted/<sha256 of the file>/` in the cache. It is built beside its place and renamed, with a
record of its files: a folder that was cut or changed since is made again.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from stemma.core.assets import REMEDY, cache_folder, staging_folder
from stemma.core.errors import ModelError, ResourceError
from stemma.core.files import (
    free_bytes,
    install_folder,
    require_writable,
    resource_error,
    sha256_file,
    write_json,
)
from stemma.interop.folder import write_folder
from stemma.interop.gguf_header import MAGIC
from stemma.interop.gguf_model import PackedModel, generation, open_model, read_state

log = logging.getLogger(__name__)

RECORD = "converted.json"
VERSION = 1  # of what is made of a file: a folder of another version is made again


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF by its name or by its first bytes."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:  # whoever reads the file next says what the machine refuses
        return False


def only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds no other form of a model; ModelError for several."""
    found = sorted(folder.glob("*.gguf")) or sorted(folder.glob("*/*.gguf"))
    if len(found) > 1:
        what, fix = f"holds {len(found)} GGUF files", f"name one of them, such as {found[0]}"
        raise ModelError(what, place=folder, fix=fix)
    return found[0] if found else None


def convert(path: Path) -> Path:
    """The Hugging Face folder of a GGUF file's content, made where it is not kept yet.

    Raises ModelError that names the file, and the key or tensor, for anything that does not fit;
    ResourceError where the cache has no room.
    """
    path = Path(path)
    room = cache_folder() / "converted"
    if path.is_file() and is_whole(room / _sha256(path)):  # made of these very bytes, once sound
        return room / _sha256(path)
    model = open_model(path)
    folder = room / _sha256(path)
    log.info("converting %s once, into %s", path.name, folder)
    try:
        require_writable(room)
        _require_space(model, room)
        with staging_folder(room, folder.name) as staging:
            made = staging / "model"
            write_folder(made, model.config, read_state(model), model.tokenizer, generation(model))
            write_json(made / RECORD, {"version": VERSION, "source": path.name, **_files(made)})
            install_folder(made, folder, whole=is_whole)
    except OSError as error:
        place = error.filename or room
        raise ResourceError(resource_error(error, place).what, place=place, fix=REMEDY) from error
    return folder


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise resource_error(error, path) from error


def _require_space(model: PackedModel, room: Path) -> None:
    """Refuse before the work what cannot fit."""
    needed, free = model.unpacked_size, free_bytes(room)
    if needed > free:
        what = f"the converted weights need {needed} bytes, {free} are free"
        raise ResourceError(what, place=room, fix=REMEDY)


def is_whole(folder: Path) -> bool:
    """Whether a converted folder has just the files that its record lists, unchanged since."""
    try:
        record: Any = json.loads((folder / RECORD).read_bytes())
        files = _files(folder)
    except (OSError, ValueError):
        return False
    if not isinstance(record, dict) or record.get("version") != VERSION:
        return False
    return bool(record.get("files") == files["files"])


def _files(folder: Path) -> dict[str, Any]:
    """Size and time of the last change of every file but the record."""
    found = {entry.name: entry.stat() for entry in os.scandir(folder) if entry.name != RECORD}
    return {"files": {name: [s.st_size, s.st_mtime_ns] for name, s in sorted(found.items())}}
