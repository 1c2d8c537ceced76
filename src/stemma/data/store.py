"""The token store: all documents of a split as one memory-mapped row of token ids.

Every document stands as `bos, text, eos`, so each of its text tokens is predicted from something
and its end is learned. `tokens.bin` holds the ids (2 bytes each where the vocabulary allows, else
4), `index.safetensors` the offset of every document and its size in bytes of text, `store.json`
what both must agree with.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from stemma.core.errors import DataError, ModelError
from stemma.core.files import atomic_file, sha256_file, write_json
from stemma.data.tokenizer import Tokenizer

FORMAT_VERSION = 1
BATCH = 64  # documents encoded at once, at most
BATCH_CHARACTERS = 8 << 20  # and their text: long documents are encoded by fewer, or alone


@dataclass(frozen=True)
class TokenStore:
    """An open store. `offsets` has one entry more than there are documents."""

    tokens: NDArray[Any]
    offsets: NDArray[np.int64]
    text_bytes: NDArray[np.int64]
    about: dict[str, Any]

    @property
    def num_documents(self) -> int:
        """Documents in the store."""
        return len(self.text_bytes)

    @property
    def fingerprint(self) -> str:
        """sha256 of the token ids: what a resumed run must find unchanged."""
        return str(self.about["sha256"])

    def document(self, index: int) -> NDArray[Any]:
        """Ids of one document, its bos and eos included, as a view of the file."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


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


def write_store(folder: Path, texts: Iterable[str], tokenizer: Tokenizer) -> TokenStore:
    """Encode texts into a new store, streaming.

    Memory holds one batch (`batched`), its tokens and two numbers a document, whatever the size
    of the corpus.

    Raises ModelError for a tokenizer without an end-of-text token, DataError for no documents.
    """
    end = tokenizer.eos_id
    begin = tokenizer.bos_id if tokenizer.bos_id is not None else end
    if begin is None or end is None:
        raise ModelError(
            "the tokenizer has no end-of-text token",
            fix="set eos_token in tokenizer_config.json",
        )
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    lengths, text_bytes = [], []
    with atomic_file(folder / "tokens.bin") as file:
        for batch in batched(texts):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                file.write(np.array([begin, *ids, end], dtype=dtype).tobytes())
                lengths.append(len(ids) + 2)
                text_bytes.append(len(text.encode()))
    if not lengths:
        raise DataError("no documents to store", place=folder, fix="check the corpus stage")
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
    }
    write_json(folder / "store.json", about)
    return open_store(folder)


def open_store(folder: Path) -> TokenStore:
    """Open a store; raises DataError where its files are missing, damaged or of another size."""
    fix = "run the stage again with --fresh"
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
        for name, key in (("tokens.bin", "sha256"), ("index.safetensors", "index_sha256")):
            if sha256_file(folder / name) != about[key]:
                what = "the content does not match its sha256"
                raise DataError(what, place=folder / name, fix=fix)
        index = load_file(folder / "index.safetensors")
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not a usable token store ({error})", place=folder, fix=fix) from error
    return TokenStore(tokens, index["offsets"], index["text_bytes"], about)
