"""Fast weights: a matrix that keys and values write and queries read, by rules given as values.

Every rule has the same three forms. Recurrent: one token after the other, memory flat in time.
Parallel: all tokens at once, quadratic in time. Chunked: parallel within a chunk and recurrent from
chunk to chunk, which is what one trains with (arXiv:2406.06484, section 3.2). They give the same
numbers up to rounding, from any memory to start with.

Tokens of different documents do not meet: with `run_BT`, numbers that change where a document
begins, a memory is read and kept only by the document that wrote it. A key of zeros writes nothing.

Axes: B batch, H heads, T time, S time of the keys, F features, D width of one head
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from stemma.nn.feature_map import SMALLEST, Features

NOTHING = -1e30  # logarithm of a unit below all others, of what is not there: finite, so no NaN


class Tokens(NamedTuple):
    """What a rule gets of each token: features, a value, and for some a rate of writing."""

    query: Features
    key: Features
    value_BHTD: Tensor
    rate_BHT: Tensor | None = None
    run_BT: Tensor | None = None

    def part(self, start: int, end: int) -> "Tokens":
        """The tokens from `start` to before `end`."""
        along = slice(start, end)
        (query, query_unit), (key, key_unit) = self.query, self.key
        return Tokens(
            Features(query[:, :, along], None if query_unit is None else query_unit[:, :, along]),
            Features(key[:, :, along], None if key_unit is None else key_unit[:, :, along]),
            self.value_BHTD[:, :, along],
            None if self.rate_BHT is None else self.rate_BHT[:, :, along],
            None if self.run_BT is None else self.run_BT[:, along],
        )


class Memory(NamedTuple):
    """What stays of all tokens so far; the last three only where a rule or the tokens have them.

    `run_B` is the run that wrote the memory; None means the run of the next token.
    """

    matrix_BHFD: Tensor
    normaliser_BHF: Tensor | None = None
    unit_BH: Tensor | None = None
    run_B: Tensor | None = None


class Rule(Protocol):
    """What the rules have in common; `learns_rate` asks the layer for a rate of writing."""

    learns_rate: ClassVar[bool]

    def start(self, tokens: Tokens, /) -> Memory:
        """The memory before the first token."""

    def step(self, tokens: Tokens, memory: Memory, /) -> tuple[Tensor, Memory]:
        """What one token reads (B, H, 1, D) after it has written, and the new memory."""

    def chunk(self, tokens: Tokens, memory: Memory, /) -> tuple[Tensor, Memory]:
        """What the tokens of a chunk read (B, H, T, D), and the new memory."""


@dataclass(frozen=True)
class Additive:
    """W += v phi(k)^T, read as W phi(q): fast weights, arXiv:2102.11174, equations 10 and 11."""

    learns_rate: ClassVar[bool] = False

    def start(self, tokens: Tokens) -> Memory:
        return Memory(_zeros(tokens))

    def step(self, tokens: Tokens, memory: Memory) -> tuple[Tensor, Memory]:
        query, key = tokens.query.plain(), tokens.key.plain()
        matrix = _kept(tokens, memory) * memory.matrix_BHFD + key.mT @ tokens.value_BHTD
        return query @ matrix, Memory(matrix, run_B=_run(tokens))

    def chunk(self, tokens: Tokens, memory: Memory) -> tuple[Tensor, Memory]:
        query, key = tokens.query.plain(), tokens.key.plain()
        reach, carry = _reach(tokens, memory)
        weight_BHTS = (query @ key.mT) * reach
        read = _read(weight_BHTS, tokens.value_BHTD, query, memory.matrix_BHFD, carry)
        matrix = _write(memory.matrix_BHFD, key, tokens.value_BHTD, reach, carry)
        return read, Memory(matrix, run_B=_run(tokens))


@dataclass(frozen=True)
class Normalised:
    """The additive rule divided by z . phi(q), z += phi(k), arXiv:2006.16236, equations 16 to 20.

    Where the keys have units, the memory is kept in the largest of those it has met and scaled
    anew when a larger one comes. The quotient knows nothing of it, and no sum overflows. A query
    that no key answers reads zero.
    """

    learns_rate: ClassVar[bool] = False

    def start(self, tokens: Tokens) -> Memory:
        matrix = _zeros(tokens)
        unit_BHT = tokens.key.unit_BHT
        unit_BH = None if unit_BHT is None else unit_BHT.new_full(unit_BHT.shape[:2], NOTHING)
        return Memory(matrix, matrix[..., 0].clone(), unit_BH)

    def step(self, tokens: Tokens, memory: Memory) -> tuple[Tensor, Memory]:
        assert memory.normaliser_BHF is not None
        query, key = tokens.query.values_BHTF, tokens.key.values_BHTF
        keep_BH11, unit_BH = _kept(tokens, memory), None
        if tokens.key.unit_BHT is not None:
            assert memory.unit_BH is not None
            old_BH = torch.where(keep_BH11[..., 0, 0] > 0, memory.unit_BH, NOTHING)
            unit_BH = torch.maximum(old_BH, tokens.key.unit_BHT[:, :, 0]).detach()
            keep_BH11 = keep_BH11 * (old_BH - unit_BH).exp()[..., None, None]
            key = key * (tokens.key.unit_BHT - unit_BH[..., None]).exp()[..., None]
        matrix = keep_BH11 * memory.matrix_BHFD + key.mT @ tokens.value_BHTD
        normaliser_BHF = keep_BH11[..., 0] * memory.normaliser_BHF + key[:, :, 0]
        read = _divide(query @ matrix, query @ normaliser_BHF[..., None])
        return read, Memory(matrix, normaliser_BHF, unit_BH, _run(tokens))

    def chunk(self, tokens: Tokens, memory: Memory) -> tuple[Tensor, Memory]:
        assert memory.normaliser_BHF is not None
        query, key = tokens.query.values_BHTF, tokens.key.values_BHTF
        reach, carry = _reach(tokens, memory)
        unit_BH = None
        if tokens.key.unit_BHT is not None and memory.unit_BH is not None:
            reach, carry, unit_BH = _scale(tokens.key.unit_BHT, memory.unit_BH, reach, carry)
        z_BHF1 = memory.normaliser_BHF[..., None]
        weight_BHTS, one_BHT1 = (query @ key.mT) * reach, torch.ones_like(key[..., :1])
        read = _read(weight_BHTS, tokens.value_BHTD, query, memory.matrix_BHFD, carry)
        total = _read(weight_BHTS, one_BHT1, query, z_BHF1, carry)
        matrix = _write(memory.matrix_BHFD, key, tokens.value_BHTD, reach, carry)
        z_BHF1 = _write(z_BHF1, key, one_BHT1, reach, carry)
        return _divide(read, total), Memory(matrix, z_BHF1[..., 0], unit_BH, _run(tokens))


@dataclass(frozen=True)
class Delta:
    """W += beta (v - W phi(k)) phi(k)^T, arXiv:2102.11174, equations 20 to 25.

    What is written is the difference to what the key would read, so a key written again replaces
    its value. In a chunk the differences depend on each other through the overlaps of the keys,
    one triangular system (arXiv:2406.06484, section 3.2). Features must be normalised: with a key
    longer than 1 an update may overshoot and the memory grow without end.
    """

    learns_rate: ClassVar[bool] = True

    def start(self, tokens: Tokens) -> Memory:
        return Memory(_zeros(tokens))

    def step(self, tokens: Tokens, memory: Memory) -> tuple[Tensor, Memory]:
        assert tokens.rate_BHT is not None
        query, key = tokens.query.plain(), tokens.key.plain()
        matrix = _kept(tokens, memory) * memory.matrix_BHFD
        difference = tokens.rate_BHT[..., None] * (tokens.value_BHTD - key @ matrix)
        matrix = matrix + key.mT @ difference
        return query @ matrix, Memory(matrix, run_B=_run(tokens))

    def chunk(self, tokens: Tokens, memory: Memory) -> tuple[Tensor, Memory]:
        assert tokens.rate_BHT is not None
        query, key, rate = tokens.query.plain(), tokens.key.plain(), tokens.rate_BHT[..., None]
        reach, carry = _reach(tokens, memory)
        found = carry[..., None] * (key @ memory.matrix_BHFD)
        # the solver takes the diagonal for ones and does not look above it
        overlap_BHTS = rate * (key @ key.mT) * reach
        difference = torch.linalg.solve_triangular(
            overlap_BHTS, rate * (tokens.value_BHTD - found), upper=False, unitriangular=True
        )
        weight_BHTS = (query @ key.mT) * reach
        read = _read(weight_BHTS, difference, query, memory.matrix_BHFD, carry)
        matrix = _write(memory.matrix_BHFD, key, difference, reach, carry)
        return read, Memory(matrix, run_B=_run(tokens))


def recurrent(rule: Rule, tokens: Tokens, memory: Memory | None = None) -> tuple[Tensor, Memory]:
    """All reads (B, H, T, D) and the last memory, one token after the other."""
    memory, reads = memory or rule.start(tokens), [tokens.value_BHTD[:, :, :0]]
    for at in range(tokens.value_BHTD.shape[2]):
        read, memory = rule.step(tokens.part(at, at + 1), memory)
        reads.append(read)
    return torch.cat(reads, dim=2), memory


def chunked(
    rule: Rule, tokens: Tokens, memory: Memory | None = None, *, size: int = 64
) -> tuple[Tensor, Memory]:
    """All reads (B, H, T, D) and the last memory, `size` tokens at once."""
    memory, reads = memory or rule.start(tokens), [tokens.value_BHTD[:, :, :0]]
    for start in range(0, tokens.value_BHTD.shape[2], size):
        read, memory = rule.chunk(tokens.part(start, start + size), memory)
        reads.append(read)
    return torch.cat(reads, dim=2), memory


def parallel(rule: Rule, tokens: Tokens, memory: Memory | None = None) -> tuple[Tensor, Memory]:
    """All reads (B, H, T, D) and the last memory, all tokens at once."""
    return rule.chunk(tokens, memory or rule.start(tokens))


def _zeros(tokens: Tokens) -> Tensor:
    key, value = tokens.key.values_BHTF, tokens.value_BHTD
    return value.new_zeros(*value.shape[:2], key.shape[-1], value.shape[-1])


def _run(tokens: Tokens) -> Tensor | None:
    """The run of the last token, which the new memory belongs to."""
    return None if tokens.run_BT is None else tokens.run_BT[:, -1]


def _continues(tokens: Tokens, memory: Memory) -> Tensor | None:
    """Which tokens (B, T) are of the memory's run; None where all are."""
    if tokens.run_BT is None:
        return None
    run_B = tokens.run_BT[:, 0] if memory.run_B is None else memory.run_B
    return tokens.run_BT == run_B[:, None]


def _kept(tokens: Tokens, memory: Memory) -> Tensor:
    """1 where a single token goes on with the memory, else 0: (B or 1, 1, 1, 1)."""
    continues_BT = _continues(tokens, memory)
    if continues_BT is None:
        return tokens.value_BHTD.new_ones(1, 1, 1, 1)
    return continues_BT[:, None, :, None].to(tokens.value_BHTD.dtype)


def _reach(tokens: Tokens, memory: Memory) -> tuple[Tensor, Tensor]:
    """How much of each write a token finds (B or 1, 1, T, S), and of the memory (B or 1, 1, T)."""
    value, length = tokens.value_BHTD, tokens.value_BHTD.shape[2]
    reach_1TS = value.new_ones(1, length, length).tril()
    continues_BT = _continues(tokens, memory)
    if tokens.run_BT is None or continues_BT is None:
        return reach_1TS[:, None], value.new_ones(1, 1, length)
    same_BTS = tokens.run_BT[:, :, None] == tokens.run_BT[:, None, :]
    return (reach_1TS * same_BTS)[:, None], continues_BT[:, None].to(value.dtype)


def _scale(
    unit_BHT: Tensor, old_BH: Tensor, reach: Tensor, carry: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Reach and carry in the largest unit each token has met, and that of the last token."""
    write_BHTS = torch.where(reach > 0, unit_BHT[:, :, None, :], NOTHING)
    old_BHT = torch.where(carry > 0, old_BH[..., None], NOTHING)
    largest_BHT = torch.maximum(write_BHTS.amax(-1), old_BHT).detach()
    reach = reach * (write_BHTS - largest_BHT[..., None]).exp()
    return reach, carry * (old_BHT - largest_BHT).exp(), largest_BHT[..., -1]


def _read(
    weight_BHTS: Tensor, written_BHSD: Tensor, query: Tensor, matrix_BHFD: Tensor, carry: Tensor
) -> Tensor:
    """What the queries find of a chunk's writes and of the memory before it, (B, H, T, D)."""
    return weight_BHTS @ written_BHSD + carry[..., None] * (query @ matrix_BHFD)


def _write(
    matrix_BHFD: Tensor, key: Tensor, written_BHSD: Tensor, reach: Tensor, carry: Tensor
) -> Tensor:
    """The memory after a chunk: what its last token finds, for any query."""
    written = (key * reach[..., -1, :, None]).mT @ written_BHSD
    return carry[..., -1, None, None] * matrix_BHFD + written


def _divide(read: Tensor, total_BHT1: Tensor) -> Tensor:
    return read / total_BHT1.masked_fill(total_BHT1.abs() < SMALLEST, 1.0)
