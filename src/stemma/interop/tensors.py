"""safetensors files: the header is checked by us, then the tensors are mapped by the library.

The format is eight bytes of header length, a JSON header, and one buffer. A header that lies is
found before anything is allocated by its word: lengths against the file's size, shapes times
element size against byte ranges, and byte ranges that must cover the buffer without hole or
overlap. Pickle files are recognised by name and by their first bytes, and never opened further.
"""

import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stemma.core.errors import ModelError, UsageError
from stemma.core.files import atomic_file, resource_error
from stemma.interop.json_file import DAMAGED, parse_object

MAX_HEADER = 100_000_000
MAX_TENSORS = 100_000
MAX_RANK = 64
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
ALIGNMENT = 8  # of the buffer's first byte in the file

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor; `start` and `end` count bytes from the buffer's start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def refuse_pickle(path: Path) -> None:
    """Raise ModelError where a file is a pickle, by its name or by its first bytes."""
    if path.suffix.lower() in PICKLE_SUFFIXES or _looks_pickled(path):
        raise ModelError(
            "pickle files are not loaded, because loading one runs code from it",
            place=path,
            fix="convert it on a trusted machine with transformers: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
        )


def _looks_pickled(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError:  # whoever reads the file next says what the machine refuses
        return False
    if head[8:] == b"{":  # a safetensors header whose length spells a pickle's first bytes
        return False
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return len(head) < 8 or head[3:8] != bytes(5)
    if head[:4] != b"PK\x03\x04":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of a safetensors file; nothing of the buffer is read.

    Raises ModelError that names the file, the tensor where there is one, and what was wanted and
    what was found; for a pickle, how to convert it.
    """
    path = Path(path)
    refuse_pickle(path)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            raw = _raw_header(file, size, path)
    except FileNotFoundError as error:
        raise ModelError("no such file", place=path, fix=DAMAGED) from error
    except OSError as error:
        raise resource_error(error, path) from error
    entries = parse_object(raw, place=f"{path}: header")
    _metadata(entries.pop("__metadata__", {}), path)
    if len(entries) > MAX_TENSORS:
        _fail(f"{len(entries)} tensors, more than the {MAX_TENSORS} that are read", path)
    infos = {name: _info(entry, f"{path}: {name}") for name, entry in entries.items()}
    _tiles(infos, size - 8 - len(raw), path)
    return infos


def _fail(what: str, place: object) -> None:
    raise ModelError(what, place=place, fix=DAMAGED)


def _raw_header(file: BinaryIO, size: int, path: Path) -> bytes:
    if size < 8:
        _fail(f"truncated: wanted 8 bytes of header length, got {size}", path)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER:
        _fail(f"not a safetensors file: header of {length} bytes, at most {MAX_HEADER}", path)
    if length > size - 8:
        _fail(f"truncated: wanted a header of {length} bytes, got {size - 8}", path)
    raw = file.read(length)
    if raw[:1] != b"{":
        _fail(f"not a safetensors file: its header begins with {raw[:1]!r}, not b'{{'", path)
    return raw


def _metadata(metadata: Any, path: Path) -> None:
    plain = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not plain:
        _fail("__metadata__ must map text to text", path)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _info(entry: Any, place: str) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _fail("wanted dtype, shape and data_offsets in the header", place)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}", place=place, fix=f"known: {', '.join(DTYPES)}")
    # sizes below 2^63 and few of them: the product stays small enough to compute at once
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_whole, shape)):
        _fail(f"shape {shape!r:.60} is not a list of whole numbers", place)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        _fail(f"data_offsets {offsets!r:.60} are not two whole numbers", place)
    start, end = offsets
    wanted = prod(shape) * DTYPES[dtype].itemsize
    if end - start != wanted:
        _fail(
            f"{dtype} of shape {shape} takes {wanted} bytes, its data_offsets {end - start}", place
        )
    return TensorInfo(DTYPES[dtype], tuple(shape), start, end)


def _tiles(infos: Mapping[str, TensorInfo], size: int, path: Path) -> None:
    """The byte ranges must cover the whole buffer, each byte once."""
    reached = 0
    for name, info in sorted(infos.items(), key=lambda item: (item[1].start, item[1].end)):
        place = f"{path}: {name}"
        if info.end > size:
            _fail(f"truncated: wanted {info.end} bytes of tensors, got {size}", place)
        if info.start != reached:
            kind = "overlap" if info.start < reached else "leave a hole"
            _fail(f"data_offsets {kind}: begin at {info.start}, wanted {reached}", place)
        reached = info.end
    if reached != size:
        _fail(f"tensors end at byte {reached} of the buffer, wanted {size}", path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a safetensors file, after `read_header` found it sound.

    The tensors share the file's pages: copy them before the file may change.
    """
    path = Path(path)
    infos = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in infos}
    except OSError as error:
        raise resource_error(error, path) from error
    except SafetensorError as error:
        raise ModelError(f"not a safetensors file ({error})", place=path, fix=DAMAGED) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all, one tensor at a time.

    Tensors stand by falling element size, then by name, so every one is aligned in the file and
    equal tensors give equal bytes. Raises UsageError where two names share memory: written twice
    they would come back as two parameters.
    """
    _refuse_shared(tensors, path)
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    reached = 0
    for name in order:
        tensor = tensors[name]
        end = reached + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": _code(tensor, name, path),
            "shape": list(tensor.shape),
            "data_offsets": [reached, end],
        }
        reached = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % ALIGNMENT)
    with atomic_file(Path(path)) as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().view(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def _code(tensor: Tensor, name: str, path: Path) -> str:
    if tensor.dtype not in CODES or tensor.is_meta:
        what = f"{tensor.dtype} values on {tensor.device} cannot be written"
        raise UsageError(what, place=f"{path}: {name}", fix=f"known: {', '.join(DTYPES)}")
    return CODES[tensor.dtype]


def _refuse_shared(tensors: Mapping[str, Tensor], path: Path) -> None:
    owners: dict[int, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or tensor.is_meta:
            continue
        owner = owners.setdefault(tensor.untyped_storage().data_ptr(), name)
        if owner != name:
            what = f"{owner} and {name} share memory"
            raise UsageError(what, place=path, fix="write one of them, or a copy of it")


def bad_values(tensor: Tensor) -> int:
    """How many values of a tensor are NaN or infinite.

    One sum answers for a sound tensor, since NaN and infinity survive addition; only where it is
    not finite are the values looked at one by one.
    """
    if not tensor.is_floating_point() or tensor.sum(dtype=torch.float32).isfinite():
        return 0
    return int((~tensor.isfinite()).sum())
