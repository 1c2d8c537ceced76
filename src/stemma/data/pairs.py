"""Sentence pairs from parallel text files: line n of one file says what line n of the other says.

Files pair up in the order of their names, and may be packed (.gz, .zst) and end in anything
(`train.en`, `train.de.gz`). Two files of different length are an error with both counts: after
one line lost, every later pair would be wrong. Lines with an empty side are no pairs, and counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from stemma.core.errors import DataError
from stemma.data.flaws import Flaw
from stemma.data.jsonl import split_lines
from stemma.data.sources import Compression, Kind, format_of, source_name
from stemma.data.streams import read_blocks

LONGEST = 1 << 20  # bytes of one sentence
MAX_EXPANSION = 200  # times its size that a packed file may unpack to
MARK = "\ufeff"  # of byte order


class AnyText(Mapping[str, Kind]):
    """A table of endings in which every ending is plain text."""

    def __getitem__(self, ending: str) -> Kind:
        return "text"

    def __iter__(self) -> Iterator[str]:
        yield ".txt"

    def __len__(self) -> int:
        return 1


ANY_TEXT = AnyText()


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its translation, "" for one that is missing.

    `line` is where both stand in their files; `file` is the name of that of the sentence.
    """

    source: str
    target: str
    line: int
    file: str

    @property
    def whole(self) -> bool:
        """Whether both sides say something."""
        return bool(self.source and self.target)

    @property
    def place(self) -> str:
        """Where the sentence stands: "talk.en:12"."""
        return f"{self.file}:{self.line}"


@dataclass
class PairCounts:
    """What became of the lines: pairs kept, and lines with an empty side."""

    lines: int = 0
    pairs: int = 0
    empty: int = 0


def read_pairs(
    sources: Sequence[Path], targets: Sequence[Path], root: Path, counts: PairCounts
) -> Iterator[Pair]:
    """Every pair of the files; `counts` is kept up to date, `root` is where names are told from.

    Raises what `read_lines` raises.
    """
    for pair in read_lines(sources, targets, root):
        counts.lines += 1
        if pair.whole:
            counts.pairs += 1
            yield pair
        else:
            counts.empty += 1


def read_lines(sources: Sequence[Path], targets: Sequence[Path], root: Path) -> Iterator[Pair]:
    """Every line of the files, also those of which a side is empty.

    Raises DataError, naming file and line, where files do not pair up or a line is no text.
    """
    if len(sources) != len(targets):
        what = f"{len(sources)} source files but {len(targets)} target files"
        raise DataError(what, place=source_name(sources[0], root), fix="give one for each")
    for source, target in zip(sources, targets, strict=True):
        yield from _lines_of(source, target, root)


def _lines_of(source: Path, target: Path, root: Path) -> Iterator[Pair]:
    both = zip_longest(read_sentences(source, root), read_sentences(target, root))
    names = [source_name(path, root) for path in (source, target)]
    for line, (ours, theirs) in enumerate(both, start=1):
        if ours is None or theirs is None:
            lines = [sum(1 for _ in read_sentences(path, root)) for path in (source, target)]
            what = f"{lines[0]} lines, but {names[1]} has {lines[1]}"
            raise DataError(what, place=names[0], fix="give files whose lines belong together")
        yield Pair(ours, theirs, line, names[0])


def read_sentences(path: Path, root: Path) -> Iterator[str]:
    """The lines of a text file without surrounding blanks, "" for an empty one.

    Raises DataError at the first line that is no UTF-8 or longer than a sentence can be.
    """
    name, form = source_name(path, root), format_of(path, ANY_TEXT)
    compression: Compression = form.compression if form else "none"
    try:
        blocks = read_blocks(path, compression, max_expansion=MAX_EXPANSION, name=name)
        for number, line in split_lines(blocks, LONGEST):
            if line is None:
                raise Flaw(f"longer than {LONGEST} bytes", line=number, fix="cut it")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                what, fix = "not UTF-8", "convert the file, for example with iconv"
                raise Flaw(what, line=number, byte=error.start, fix=fix) from error
            yield (text.removeprefix(MARK) if number == 1 else text).strip()
    except Flaw as flaw:
        fix = flaw.fix or "correct the file"
        raise DataError(flaw.reason, place=flaw.place(name), fix=fix) from flaw
