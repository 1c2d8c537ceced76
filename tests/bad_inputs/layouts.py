"""What is laid out before a command: a tiny recipe, good documents beside the bad one, a model."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOOD = ("one good text", "two good texts", "three good texts")
NOTE = "# A note\nwith two lines\n"

RECIPE = """\
name: tiny
stages:
  corpus: {kind: curate, inputs: [docs], holdout: {fraction: 0}}
  words: {kind: tokenizer, corpus: corpus, vocab_size: 270}
  base:
    kind: pretrain
    corpus: corpus
    tokenizer: words
    model: {family: llama, width: 16, depth: 1, num_heads: 2}
    context: 16
    steps: 2
    batch_tokens: 32
    learning_rate: 1e-2
    schedule: {kind: cosine, warmup: 1}
    device: cpu
"""
CORPUS = "run tiny.yaml --until corpus"
SKIP = f"{CORPUS} corpus.bad_lines=skip"

LayOut = Callable[[Path], None]


def put(path: Path, content: str | bytes) -> None:
    """Write a file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def line(text: str) -> str:
    """A JSON line with a text."""
    return json.dumps({"text": text}) + "\n"


def good_documents(folder: Path) -> None:
    """The recipe, three good lines and a note."""
    put(folder / "tiny.yaml", RECIPE)
    put(folder / "docs" / "good.jsonl", "".join(line(text) for text in GOOD))
    put(folder / "docs" / "note.md", NOTE)


def documents(files: dict[str, str | bytes]) -> LayOut:
    """Good documents and others beside them in `docs/`."""

    def lay_out(folder: Path) -> None:
        good_documents(folder)
        for name, content in files.items():
            put(folder / "docs" / name, content)

    return lay_out


def only(files: dict[str, str | bytes]) -> LayOut:
    """These documents and no good ones."""

    def lay_out(folder: Path) -> None:
        put(folder / "tiny.yaml", RECIPE)
        (folder / "docs").mkdir()
        for name, content in files.items():
            put(folder / "docs" / name, content)

    return lay_out


def recipe(old: str, new: str) -> LayOut:
    """Good documents and a recipe with one part replaced."""
    assert old in RECIPE, f"{old} is not in the recipe"

    def lay_out(folder: Path) -> None:
        good_documents(folder)
        put(folder / "tiny.yaml", RECIPE.replace(old, new, 1))

    return lay_out


def split_file(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and buffer of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_file(path: Path, header: bytes, buffer: bytes) -> None:
    """Write a safetensors file from whatever stands for its header."""
    path.write_bytes(struct.pack("<Q", len(header)) + header + buffer)


def change_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the header of a safetensors file; the buffer stays."""
    header, buffer = split_file(path)
    change(header)
    join_file(path, json.dumps(header).encode(), buffer)


def change_json(path: Path, **values: Any) -> None:
    """Replace keys of a JSON object on disk."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
