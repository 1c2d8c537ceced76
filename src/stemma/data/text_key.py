"""Which key of JSON Lines, or which column of Parquet, holds the text: a guess for `stemma init`.

The key called "text" where there is one; otherwise the key with the most characters in the first
rows. A guess is written into the recipe, where a person sees it; reading itself never guesses.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stemma.core.errors import StemmaError
from stemma.data.flaws import Flaw
from stemma.data.jsonl import split_lines
from stemma.data.sources import format_of
from stemma.data.streams import read_blocks

FILES, ROWS = 20, 20  # looked at, at most
USUAL = "text"


def likely_text_key(files: Sequence[Path]) -> str:
    """The key that most likely holds the documents' text; "text" where nothing tells."""
    characters: Counter[str] = Counter()
    tables = [f for f in files if (form := format_of(f)) and form.kind in ("jsonl", "parquet")]
    rows = (row for path in tables[:FILES] for row in first_rows(path))
    for row in rows:
        characters.update({key: len(v) for key, v in row.items() if isinstance(v, str)})
    if USUAL in characters or not characters:
        return USUAL
    return characters.most_common(1)[0][0]


def first_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The first objects of a JSON Lines or Parquet file; whatever cannot be read is passed over."""
    form = format_of(path)
    try:
        if form is not None and form.kind == "parquet":
            with pq.ParquetFile(path) as table:
                batch = next(table.iter_batches(batch_size=ROWS), None)
            yield from batch.to_pylist() if batch is not None else []
        elif form is not None and form.kind == "jsonl":
            blocks = read_blocks(path, form.compression, max_expansion=1000, name=path.name)
            with closing(split_lines(blocks, 1 << 20)) as lines:
                parsed = (json.loads(line) for _, line in islice(lines, ROWS) if line)
                yield from (row for row in parsed if isinstance(row, dict))
    except (Flaw, StemmaError, OSError, ValueError, RecursionError, pa.ArrowException):
        return  # the run itself will say what is wrong with the file, with its line
