"""GGUF files as llama.cpp's converter writes them: its library, and its order of rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

LAYER = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
TOP = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}


def in_pairs(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of query or key with the two of each rotary pair side by side, row by row."""
    width = len(rows) // num_heads
    order = [
        head * width + pair + half * (width // 2)
        for head in range(num_heads)
        for pair in range(width // 2)
        for half in (0, 1)
    ]
    return rows[order]


def theirs(name: str) -> str:
    """llama.cpp's name of a parameter of ours."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blocks":
        return f"blk.{parts[1]}.{LAYER['.'.join(parts[2:])]}.weight"
    return f"{TOP[parts[0]]}.weight"


def weights(model: Any) -> dict[str, np.ndarray]:
    """All tensors of a Llama of ours, under the names and in the order of rows of llama.cpp."""
    heads = {"query": model.config.num_heads, "key": model.config.num_kv_heads}
    found = {}
    for name, value in model.state_dict().items():
        rows = value.float().numpy()
        kind = name.split(".")[-2]
        found[theirs(name)] = in_pairs(rows, heads[kind]) if kind in heads else rows
    return found


def write_gguf(
    path: Path, model: Any, tokenizer: Any = None, *, kind: str = "F32", **more: Any
) -> Path:
    """A file of a Llama of ours; matrices in the given kind, keys of `more` on top.

    A key of `more` has its dots written as two underscores; None leaves one out.
    """
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {**metadata(model), **vocabulary(tokenizer), **spelled(more)}.items():
        if value is not None:
            add(writer, key, value)
    for name, values in weights(model).items():
        stored = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quantize(values, stored), raw_dtype=stored)
    return finished(writer, path)


def finished(writer: gguf.GGUFWriter, path: Path) -> Path:
    """Write what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def spelled(more: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in more.items()}


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a value in the type that the converter uses for it."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    kinds |= {str: writer.add_string, list: writer.add_array}
    if key != "general.architecture":  # the writer has added it
        kinds[type(value)](key, value)


def metadata(model: Any) -> dict[str, Any]:
    """The numbers of a network."""
    config = model.config
    return {
        "llama.block_count": config.depth,
        "llama.context_length": config.context,
        "llama.embedding_length": config.width,
        "llama.feed_forward_length": config.hidden,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_base,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.vocab_size": config.vocab_size,
    }


def vocabulary(tokenizer: Any) -> dict[str, Any]:
    """The keys of a tokenizer that splits as GPT-2 does."""
    if tokenizer is None:
        return {}
    ids = tokenizer.backend.get_vocab(with_added_tokens=True)
    merges = tokenizer_merges(tokenizer)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": sorted(ids, key=ids.__getitem__),
        "tokenizer.ggml.token_type": [
            3 if i in tokenizer.backend.get_added_tokens_decoder() else 1 for i in range(len(ids))
        ],
        "tokenizer.ggml.merges": [f"{first} {second}" for first, second in merges],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.add_bos_token": True,
    }


def tokenizer_merges(tokenizer: Any) -> list[tuple[str, str]]:
    """The merges of a byte-level BPE, in order."""
    return [tuple(pair) for pair in json.loads(tokenizer.backend.to_str())["model"]["merges"]]


def same_weights(model: Any, other: Any) -> bool:
    """Whether two models have the same parameters to the last bit."""
    mine, yours = model.state_dict(), other.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[n], yours[n]) for n in mine)
