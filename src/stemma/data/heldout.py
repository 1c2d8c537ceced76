"""Which texts are held out: whole works, chosen by hash, so that nothing is on both sides.

A group is a document, or all documents whose source matches the same name (two editions of one
play). Groups are taken in the order of a seeded hash, which adding other documents does not
change, each one only if it brings the held-out bytes nearer to the wanted share: a huge work
that would overshoot stays in training. At least one group is held out and at least one is not.
Only where whole groups reach less than half of the share (one document, or one that dwarfs the
rest) is the largest group cut: the end of each of its documents is held out.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field, field_validator

from stemma.core.config import StrictModel
from stemma.data.documents import Document


class Holdout(StrictModel):
    """How much text is kept from training, and which documents belong together."""

    fraction: float = Field(
        default=0.1,
        ge=0,
        lt=0.5,
        description="Share of the bytes that is held out; 0 holds out nothing.",
    )
    seed: int = Field(default=0, description="Seed of the order in which groups are taken.")
    group: str | None = Field(
        default=None,
        description="Regular expression on the source; what its first group matches names the "
        "work, and all documents of one work are held out together.",
    )

    @field_validator("group")
    @classmethod
    def _has_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        if groups == 0:
            raise ValueError(f"{pattern!r} has no (group) that names the work")
        return pattern


class Groups:
    """Documents gathered into groups while they are read; groups can be joined later.

    `bytes_of` and `choose` speak of root groups, after all joins.
    """

    def __init__(self, holdout: Holdout) -> None:
        self.holdout, self.matched = holdout, 0
        self._pattern = re.compile(holdout.group) if holdout.group else None
        self._named: dict[str, int] = {}
        self._parents: list[int] = []
        self._sizes: list[int] = []
        self._keys: list[bytes] = []

    def add(self, document: Document, size: int) -> int:
        """The group of a document of `size` bytes."""
        found = self._pattern.search(document.source) if self._pattern else None
        name = found.group(1) if found else None
        if name is None:
            group = self._new(f"document {document.source}:{document.line}")
        else:
            self.matched += 1
            if name not in self._named:
                self._named[name] = self._new(f"group {name}")
            group = self.root(self._named[name])
        self._sizes[group] += size
        return group

    def _new(self, name: str) -> int:
        self._parents.append(len(self._parents))
        self._sizes.append(0)
        self._keys.append(hashlib.sha256(f"{self.holdout.seed} {name}".encode()).digest())
        return len(self._parents) - 1

    def root(self, group: int) -> int:
        """The group that `group` has become part of."""
        while self._parents[group] != group:
            self._parents[group] = self._parents[self._parents[group]]
            group = self._parents[group]
        return group

    def join(self, first: int, second: int) -> None:
        """Make two groups one: they hold the same text and must stay on one side."""
        first, second = self.root(first), self.root(second)
        if first != second:
            self._parents[second] = first
            self._sizes[first] += self._sizes[second]

    def choose(self) -> "Choice":
        """The groups to hold out."""
        roots = [group for group, parent in enumerate(self._parents) if group == parent]
        roots.sort(key=lambda group: (self._keys[group], group))
        held, cut, share = choose([self._sizes[group] for group in roots], self.holdout.fraction)
        whole = frozenset(roots[position] for position in held)
        return Choice(whole, None if cut is None else roots[cut], share, len(roots))


@dataclass(frozen=True, slots=True)
class Choice:
    """The groups held out whole, and the group whose documents are cut, with the share cut off."""

    whole: frozenset[int]
    cut: int | None
    share: float
    groups: int


def choose(sizes: Sequence[int], fraction: float) -> tuple[list[int], int | None, float]:
    """Positions held out whole, the position to cut or None, and the share to cut off.

    `sizes` are the bytes of the groups in the order in which they are offered.

    >>> choose([10, 900, 90], 0.1)  # 900 would overshoot the wanted 100
    ([0, 2], None, 0.0)
    >>> choose([1000], 0.1)
    ([], 0, 0.1)
    """
    if fraction == 0 or not sizes:
        return [], None, 0.0
    if len(sizes) == 1:
        return [], 0, fraction
    wanted = fraction * sum(sizes)
    held: list[int] = []
    taken = 0
    for position, size in enumerate(sizes):
        if abs(taken + size - wanted) <= abs(taken - wanted):
            held.append(position)
            taken += size
    if not held:
        held = [min(range(len(sizes)), key=lambda position: sizes[position])]
        taken = sizes[held[0]]
    if taken >= wanted / 2:
        return held, None, 0.0
    left = [position for position in range(len(sizes)) if position not in held]
    largest = max(left, key=lambda position: sizes[position])
    return held, largest, (wanted - taken) / sizes[largest]


def cut_text(text: str, share: float) -> tuple[str, str] | None:
    """A text in two, the second part near `share` of it; None where it is too short to cut.

    The cut is at the line end nearest to the wanted place if that leaves between half and twice
    the wanted length, else at a space, else in the middle of a word.

    >>> cut_text("one\\ntwo\\nthree\\n", 0.4)
    ('one\\ntwo\\n', 'three\\n')
    """
    wanted = max(1, round(share * len(text)))
    place = len(text) - wanted
    for mark in ("\n", " "):
        ends = (text.rfind(mark, 0, place) + 1, text.find(mark, place) + 1)
        near = [end for end in ends if wanted / 2 <= len(text) - end <= 2 * wanted]
        for end in sorted(near, key=lambda end: abs(end - place)):
            if text[:end].strip() and text[end:].strip():
                return text[:end], text[end:]
    head, tail = text[:place], text[place:]
    return (head, tail) if head.strip() and tail.strip() else None
