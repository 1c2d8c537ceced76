"""One file of a checkpoint: written as safetensors lays it out, synced, and hashed on the way.

The library's own writer holds the whole file in memory twice. Here every tensor goes from where it
lies to the file; equal tensors give the bytes that the library gives.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.core.errors import UsageError

# the library's names, by falling alignment: in a file tensors stand in this order, then by name
CODES: dict[torch.dtype, str] = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
RANK = {dtype: place for place, dtype in enumerate(CODES)}
ALIGNMENT = 8  # of the first tensor in the file
BUFFER = 1 << 20  # bytes of small tensors that go to the disk together


def shard_name(rank: int) -> str:
    """The file of a process.

    >>> shard_name(3)
    'rank-00003.safetensors'
    """
    return f"rank-{rank:05d}.safetensors"


def write_shard(
    path: Path, tensors: Mapping[str, Tensor], *, pause: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Write and sync tensors of this machine's memory; returns the file's entry in the manifest.

    `pause` is called before each of them; what it raises ends the writing. Raises OSError where the
    machine refuses, UsageError for values that safetensors has no name for.
    """
    order = sorted(tensors, key=lambda name: (RANK.get(tensors[name].dtype, 0), name))

    def contents() -> Iterable[bytes | memoryview]:
        yield header(order, tensors)
        for name in order:
            pause()
            yield raw(tensors[name])

    return write_synced(path, contents())


def header(order: Iterable[str], tensors: Mapping[str, Tensor]) -> bytes:
    """The head of a safetensors file: its length, and where each tensor lies in the rest."""
    told, reached = dict[str, Any](), 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in CODES:
            what = f"{tensor.dtype} values cannot be saved"
            raise UsageError(what, place=f"checkpoint: {name}", fix="keep them in another type")
        end = reached + tensor.numel() * tensor.element_size()
        code, shape = CODES[tensor.dtype], list(tensor.shape)
        told[name] = {"dtype": code, "shape": shape, "data_offsets": [reached, end]}
        reached = end
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row after row; not copied where they lie so."""
    view: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return view


def write_synced(path: Path, contents: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write and sync one file of a folder that is still hidden; returns its manifest entry.

    The hash is of what should be in the file, not of what a disk may have made of it.
    """
    digest, size = hashlib.sha256(), 0
    with open(path, "wb", buffering=BUFFER) as file:
        for content in contents:
            file.write(content)
            digest.update(content)
            size += len(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}
