"""The token store: all documents of a split as one memory-mapped row of token ids.

Every document of plain text stands as `bos, text, eos`, so each of its text tokens is predicted
from something and its end is learned. A conversation stands as its template renders it, with one
flag a token: whether it is a target that counts. `tokens.bin` holds the ids (2 bytes each where
the vocabulary allows, else 4), `counted.bin` the flags where there are any, `index.safetensors`
the offset of every document and its size in bytes of text, `store.json` what all must agree with.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from stemma.core.errors import DataError, ModelError
from stemma.core.files import atomic_file, resource_error, sha256_file, sha256_json, write_json
from stemma.data.tokenizer import Tokenizer

FORMAT_VERSION = 1
COUNTED = "counted.bin"
BATCH = 64  # documents encoded at once, at most
BATCH_CHARACTERS = 8 << 20  # and their text: long documents are encoded by fewer, or alone


@dataclass(frozen=True)
class Row:
    """One document on its way into a store; `counted` has a flag a token, or is None: all count."""

    ids: Sequence[int]
    text_bytes: int
    counted: Sequence[bool] | None = None


@dataclass(frozen=True)
class TokenStore:
    """An open store. `offsets` has one entry more than there are documents.

    `counted` says for every token whether it is a target that counts; None where all are.
    """

    tokens: NDArray[Any]
    offsets: NDArray[np.int64]
    text_bytes: NDArray[np.int64]
    about: dict[str, Any]
    counted: NDArray[np.bool_] | None = None

    @property
    def num_documents(self) -> int:
        """Documents in the store."""
        return len(self.text_bytes)

    @property
    def fingerprint(self) -> str:
        """sha256 of the token ids and flags: what a resumed run must find unchanged."""
        if self.counted is None:
            return str(self.about["sha256"])
        return sha256_json([self.about["sha256"], self.about["counted_sha256"]])

    def document(self, index: int) -> NDArray[Any]:
        """Ids of one document, its bos and eos included, as a view of the file."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def targets(self, index: int, start: int, stop: int, *, ignored: int) -> NDArray[np.int64]:
        """Tokens `start` to `stop` of a document as targets, those that do not count `ignored`."""
        cut = slice(self.offsets[index] + start, self.offsets[index] + stop)
        found = self.tokens[cut].astype(np.int64)
        if self.counted is not None:
            found[~self.counted[cut]] = ignored
        return found


def batched(texts: Iterable[str]) -> Iterator[list[str]]:
    """Cut a stream into lists of at most `BATCH` texts and `BATCH_CHARACTERS`, or one longer."""
    batch: list[str] = []
    held = 0
    for text in texts:
        if batch and (len(batch) == BATCH or held + len(text) > BATCH_CHARACTERS):
            yield batch
            batch, held = [], 0
        batch.append(text)
        held += len(text)
    if batch:
        yield batch


def text_rows(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[Row]:
    """Documents of plain text as rows; raises ModelError for a tokenizer without an end of text."""
    end = tokenizer.eos_id
    begin = tokenizer.bos_id if tokenizer.bos_id is not None else end
    if begin is None or end is None:
        raise ModelError(
            "the tokenizer has no end-of-text token",
            fix="set eos_token in tokenizer_config.json",
        )
    for batch in batched(texts):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            yield Row([begin, *ids, end], len(text.encode()))


def write_store(folder: Path, texts: Iterable[str], tokenizer: Tokenizer) -> TokenStore:
    """Encode texts into a new store, streaming.

    Memory holds one batch (`batched`), its tokens and two numbers a document, whatever the size
    of the corpus.

    Raises ModelError for a tokenizer without an end-of-text token, DataError for no documents.
    """
    return write_rows(folder, text_rows(texts, tokenizer), tokenizer)


def write_rows(folder: Path, rows: Iterable[Row], tokenizer: Tokenizer) -> TokenStore:
    """Write rows into a new store, streaming. All have flags, or none has.

    Raises DataError for no rows.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    lengths, text_bytes, flagged = [], [], 0
    with ExitStack() as stack:
        tokens, flags = (
            stack.enter_context(atomic_file(folder / name)) for name in ("tokens.bin", COUNTED)
        )
        for row in rows:
            tokens.write(np.array(row.ids, dtype=dtype).tobytes())
            if row.counted is not None:
                flags.write(np.array(row.counted, dtype=np.bool_).tobytes())
                flagged += len(row.counted)
            lengths.append(len(row.ids))
            text_bytes.append(row.text_bytes)
    if not lengths:
        raise DataError("no documents to store", place=folder, fix="check the corpus stage")
    if not flagged:
        (folder / COUNTED).unlink()
    elif flagged != sum(lengths):
        raise ValueError(f"{flagged} flags for {sum(lengths)} tokens")
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    index = {"offsets": offsets, "text_bytes": np.array(text_bytes, dtype=np.int64)}
    with atomic_file(folder / "index.safetensors") as file:
        file.write(save(index))
    about = {
        "format_version": FORMAT_VERSION,
        "dtype": np.dtype(dtype).name,
        "documents": len(lengths),
        "tokens": int(offsets[-1]),
        "text_bytes": int(sum(text_bytes)),
        "tokenizer": tokenizer.fingerprint,
        "sha256": sha256_file(folder / "tokens.bin"),
        "index_sha256": sha256_file(folder / "index.safetensors"),
        **({"counted_sha256": sha256_file(folder / COUNTED)} if flagged else {}),
    }
    write_json(folder / "store.json", about)
    return open_store(folder)


def in_memory(rows: Iterable[Row]) -> TokenStore:
    """A store of rows with flags that lies in no file: what is scored once and not kept."""
    kept = list(rows)
    offsets = np.concatenate(([0], np.cumsum([len(row.ids) for row in kept]))).astype(np.int64)
    ids = np.array([token for row in kept for token in row.ids], dtype=np.int64)
    counted = np.array([flag for row in kept for flag in row.counted or ()], dtype=np.bool_)
    text_bytes = np.array([row.text_bytes for row in kept], dtype=np.int64)
    return TokenStore(ids, offsets, text_bytes, {}, counted)


def open_store(folder: Path) -> TokenStore:
    """Open a store; raises DataError where its files are missing, damaged or of another size."""
    fix = f"remove {folder}: the stage makes it again"
    try:
        about = json.loads((folder / "store.json").read_text("utf-8"))
        if about["format_version"] > FORMAT_VERSION:
            found = about["format_version"]
            raise DataError(
                f"format {found} is newer than this version knows",
                place=folder,
                fix="update stemma-lm",
            )
        tokens = np.memmap(folder / "tokens.bin", dtype=about["dtype"], mode="r")
        if len(tokens) != about["tokens"]:
            found = f"{about['tokens']} tokens wanted, {len(tokens)} found"
            raise DataError(found, place=folder / "tokens.bin", fix=fix)
        files = {"sha256": "tokens.bin", "index_sha256": "index.safetensors"}
        files |= {"counted_sha256": COUNTED} if "counted_sha256" in about else {}
        for key, name in files.items():
            if sha256_file(folder / name) != about[key]:
                what = "the content does not match its sha256"
                raise DataError(what, place=folder / name, fix=fix)
        index = load((folder / "index.safetensors").read_bytes())
        counted = None
        if "counted_sha256" in about:
            counted = np.memmap(folder / COUNTED, dtype=np.bool_, mode="r")
    except DataError:
        raise
    except (FileNotFoundError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DataError(f"not a usable token store ({error})", place=folder, fix=fix) from error
    except OSError as error:  # the machine refuses to read: that is no damage
        raise resource_error(error, folder) from error
    return TokenStore(tokens, index["offsets"], index["text_bytes"], about, counted)
