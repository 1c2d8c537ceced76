"""A GGUF file in pieces, so that a test can harm one of them; written by hand, by no library."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WIDTH, HIDDEN, HEADS = 8, 16, 2
TOKENS = ["<|end|>", "a", "b", "Ġ", "ab", "c", "ĠĠ", "abc"]
MERGES = ["a b", "Ġ Ġ", "ab c"]
U8, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10
FORMS = {U8: "B", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q"}
Value = tuple[int, bytes]  # the format's number of a type, and the bytes that follow


def text(word: str | bytes) -> bytes:
    """A string as the format has it: its length, then its bytes."""
    raw = word.encode() if isinstance(word, str) else word
    return struct.pack("<Q", len(raw)) + raw


def one(kind: int, value: Any) -> Value:
    """A single value."""
    return kind, text(value) if kind == STRING else struct.pack("<" + FORMS[kind], value)


def many(kind: int, values: Sequence[Any], count: int | None = None) -> Value:
    """An array, which may lie about its length."""
    head = struct.pack("<IQ", kind, len(values) if count is None else count)
    return ARRAY, head + b"".join(one(kind, value)[1] for value in values)


@dataclass
class Line:
    """One tensor of the table; axes in the order of the format, the fastest first."""

    axes: list[int]
    kind: int
    start: int
    axes_said: int | None = None

    def packed(self, name: str) -> bytes:
        said = len(self.axes) if self.axes_said is None else self.axes_said
        middle = b"".join(struct.pack("<Q", axis) for axis in self.axes)
        return (
            text(name)
            + struct.pack("<I", said)
            + middle
            + struct.pack("<IQ", self.kind, self.start)
        )


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama of one block, by name, rows first."""
    layer = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (WIDTH // HEADS, WIDTH),
        "attn_v": (WIDTH // HEADS, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (HIDDEN, WIDTH),
        "ffn_up": (HIDDEN, WIDTH),
        "ffn_down": (WIDTH, HIDDEN),
    }
    named = {f"blk.0.{name}.weight": shape for name, shape in layer.items()}
    return {"token_embd.weight": (len(TOKENS), WIDTH), **named, "output_norm.weight": (WIDTH,)}


def sound_values() -> dict[str, Value]:
    """The metadata of a sound file."""
    numbers = {
        "block_count": 1,
        "context_length": 32,
        "embedding_length": WIDTH,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": 1,
    }
    return {
        "general.architecture": one(STRING, "llama"),
        **{f"llama.{key}": one(U32, value) for key, value in numbers.items()},
        "llama.attention.layer_norm_rms_epsilon": one(F32, 1e-5),
        "tokenizer.ggml.model": one(STRING, "gpt2"),
        "tokenizer.ggml.pre": one(STRING, "gpt-2"),
        "tokenizer.ggml.tokens": many(STRING, TOKENS),
        "tokenizer.ggml.token_type": many(I32, [3] + [1] * (len(TOKENS) - 1)),
        "tokenizer.ggml.merges": many(STRING, MERGES),
        "tokenizer.ggml.bos_token_id": one(U32, 0),
        "tokenizer.ggml.eos_token_id": one(U32, 0),
    }


def sound_tensors(alignment: int = 32) -> tuple[dict[str, Line], bytearray]:
    """The table and the bytes of a sound file's tensors, each padded."""
    random, lines, data = np.random.default_rng(0), {}, bytearray()
    for name, shape in shapes().items():
        lines[name] = Line(list(shape[::-1]), 0, len(data))
        data += random.normal(0, 0.1, shape).astype("<f4").tobytes()
        data += bytes(-len(data) % alignment)
    return lines, data


@dataclass
class Pieces:
    """All parts of a sound file; what is not None replaces what would be written."""

    values: dict[str, Value] = field(default_factory=sound_values)
    lines: dict[str, Line] = field(default_factory=lambda: sound_tensors()[0])
    data: bytearray = field(default_factory=lambda: sound_tensors()[1])
    magic: bytes = b"GGUF"
    version: int = 3
    num_tensors: int | None = None
    num_keys: int | None = None
    more_values: bytes = b""
    more_lines: bytes = b""
    alignment: int = 32

    def header(self) -> bytes:
        """Everything before the tensors, padded."""
        num_tensors = len(self.lines) if self.num_tensors is None else self.num_tensors
        num_keys = len(self.values) if self.num_keys is None else self.num_keys
        head = self.magic + struct.pack("<IQQ", self.version, num_tensors, num_keys)
        for key, (kind, raw) in self.values.items():
            head += text(key) + struct.pack("<I", kind) + raw
        head += self.more_values
        head += b"".join(line.packed(name) for name, line in self.lines.items()) + self.more_lines
        return head + bytes(-len(head) % self.alignment)

    def built(self) -> bytes:
        """The whole file."""
        return self.header() + bytes(self.data)
