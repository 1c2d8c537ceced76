"""The values of GGUF tensors: from blocks of few bits to the numbers that they stand for.

Unquantized values stay in their own precision; quantized ones become the float32 numbers that
llama.cpp computes with, by the `gguf` package's own decoders. A tensor is read and decoded a few
megabytes at a time, so the memory beside the result does not grow with it.
"""

from math import prod
from typing import Any, BinaryIO

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from stemma.core.errors import ModelError
from stemma.interop.gguf_header import StoredTensor
from stemma.interop.json_file import DAMAGED
from stemma.interop.tensors import bad_values

PIECE = 4 << 20  # bytes read at once, at least one row
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def value_type(kind: str) -> torch.dtype:
    """The precision that a tensor of a kind is read in."""
    return PLAIN.get(kind, torch.float32)


def read_values(file: BinaryIO, tensor: StoredTensor, *, place: str) -> Tensor:
    """The values of one tensor, in memory of their own.

    Raises ModelError, naming `place`, where the file has become shorter than its header was, or
    where a value is NaN or infinite.
    """
    rows = prod(tensor.shape[:-1])
    row_size = tensor.size // rows
    step = max(1, PIECE // row_size)
    values = torch.empty(rows, tensor.shape[-1], dtype=value_type(tensor.kind))
    file.seek(tensor.start)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        raw = bytearray(file.read(count * row_size))
        if len(raw) != count * row_size:
            raise ModelError("truncated while it was read", place=place, fix=DAMAGED)
        values[first : first + count] = decoded(raw, tensor.kind, count)
    if wrong := bad_values(values):
        what = f"{wrong} of {values.numel()} values are NaN or infinite"
        raise ModelError(what, place=place, fix="use another file of the model")
    return values.view(tensor.shape)


def decoded(raw: bytearray, kind: str, rows: int) -> Tensor:
    """The rows of values (rows, columns) that some bytes stand for."""
    if kind in PLAIN:
        return torch.frombuffer(raw, dtype=PLAIN[kind]).view(rows, -1)
    blocks = np.frombuffer(raw, np.uint8).reshape(rows, -1)
    with np.errstate(all="ignore"):  # a scale that is none is counted afterwards
        if kind == "Q8_K":
            return torch.from_numpy(_q8_k(blocks)).view(rows, -1)
        values = quants.dequantize(blocks, GGMLQuantizationType[kind])
    return torch.from_numpy(values)


def _q8_k(blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Q8_K, which the package does not decode: a float32 scale, 256 signed bytes, 16 sums."""
    record = np.dtype([("scale", "<f4"), ("values", "i1", 256), ("sums", "<i2", 16)])
    parts = blocks.reshape(-1).view(record)
    scaled: np.ndarray[Any, Any] = parts["scale"][:, None] * parts["values"].astype(np.float32)
    return scaled
