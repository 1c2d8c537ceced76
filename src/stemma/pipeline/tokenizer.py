"""Stage `tokenizer`: learn a byte-level BPE vocabulary from the training documents."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.core.files import write_text
from stemma.data.bpe import Splitting, train_tokenizer
from stemma.data.curate import read_texts
from stemma.pipeline.work import Work

VERSION = 1
MEASURED = 1 << 20  # bytes of text on which compression is measured


class TokenizerStage(StrictModel):
    """Train a tokenizer."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {"corpus": ("curate",)}
    UNSEEN: ClassVar[frozenset[str]] = frozenset({"minutes"})

    kind: Literal["tokenizer"] = Field(description="the kind of stage")
    corpus: str = Field(description="the curate stage whose training documents are read")
    vocab_size: int = Field(ge=257, description="entries, the 256 bytes and end-of-text included")
    splitting: Splitting = Field(
        default="gpt-2", description="rule that cuts words, by its name in llama.cpp"
    )
    minutes: float | None = Field(default=None, ge=0, description="budget, printed beforehand")


def run(stage: TokenizerStage, work: Work) -> dict[str, Any]:
    """Write tokenizer.json and tokenizer_config.json."""
    train, _ = work.corpus(stage.corpus)
    tokenizer = train_tokenizer(
        read_texts(train), vocab_size=stage.vocab_size, splitting=stage.splitting
    )
    final = work.folder / "final"
    for name, text in tokenizer.files().items():
        write_text(final / name, text)
    measured = tokens = 0
    for text in read_texts(train):
        text = text[:MEASURED]
        measured, tokens = measured + len(text.encode()), tokens + len(tokenizer.encode(text))
        if measured >= MEASURED:
            break
    return {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": measured / max(1, tokens),
        "fingerprint": tokenizer.fingerprint,
    }
