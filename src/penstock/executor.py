"""`TorchExecutor`: runs a `StepPlan` on tensors and gives back a `StepResult`.

Owns the way from a plan to input tensors and from logits to results. Decides nothing: a plan that asks for what does
not exist yet (a grammar mask, an adapter, a tier) is refused by name.
One idea: depth 1. `submit` computes, `collect` hands over; a device that runs by itself can put time between the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from penstock.errors import OutOfMemory
from penstock.kernels.reference import QUERY_ROWS, SEGMENT, AttentionTiles, tile_queries
from penstock.kv import KVCache
from penstock.models.decoder import Decoder, StepTensors
from penstock.sampling import Draw
from penstock.step import Chunk, ChunkResult, StepPlan, StepResult, Ticket

# What PyTorch and the libraries below it say when memory runs out, where they have no type for it.
MEMORY_MESSAGES = ("can't allocate memory", "could not create a memory", "not enough memory", "Cannot allocate memory")


class TorchExecutor:
    """Runs plans on one device."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        *,
        device: str,
        query_rows: int = QUERY_ROWS,
        needs_zeros: bool = True,
    ) -> None:
        """What the decoder's attention is made for: tiles of `query_rows` rows, and zeros where no key was written."""
        self._decoder = decoder
        self._cache = cache
        self._device = device
        self._query_rows = query_rows
        self._needs_zeros = needs_zeros
        self._results: dict[Ticket, StepResult] = {}
        self._drawn: dict[tuple[int, int, int], int] = {}  # of the last step, by `SampledRef`

    def submit(self, plan: StepPlan) -> Ticket:
        """Compute a step.

        Raises:
            OutOfMemory: the device could not hold it. NotImplementedError: the plan asks for what does not exist.
        """
        _refuse_unknown(plan)
        try:
            with torch.inference_mode():
                draws = self._run(plan)
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not _is_out_of_memory(error):
                raise
            raise OutOfMemory(f"a step of {plan.num_tokens} tokens did not fit: {str(error)[:200]}") from None
        ticket = Ticket(plan.step)
        self._results[ticket] = self._result(plan, draws)
        return ticket

    def collect(self, ticket: Ticket) -> StepResult:
        """Hand over a step's results, once."""
        return self._results.pop(ticket)

    def _run(self, plan: StepPlan) -> list[Draw]:
        self._cache.copy(plan.copies)
        logits = self._decoder.forward(self._inputs(plan), self._cache)
        return self._decoder.draw(logits, [sample for chunk in plan.chunks for sample in chunk.samples])

    def _inputs(self, plan: StepPlan) -> StepTensors:
        size = self._cache.block_tokens
        tokens: list[int] = []
        positions: list[int] = []
        blocks: list[int] = []
        sampled: list[int] = []
        for chunk in plan.chunks:
            sampled += [len(tokens) + sample.offset for sample in chunk.samples]
            tokens += [t if isinstance(t, int) else self._drawn[t] for t in chunk.tokens]
            positions += range(chunk.start, chunk.end)
            blocks += _blocks(chunk, size)
        where, block = self._tensor(positions), self._tensor(blocks)
        offsets = where % size
        if self._needs_zeros:
            self._cache.clear(block[offsets == 0])
        return StepTensors(
            tokens=self._tensor(tokens),
            positions=where,
            blocks=block,
            offsets=offsets,
            sampled=self._tensor(sampled),
            tiles=self._tiles(plan.chunks),
            num_positions=max(positions) + 1,
        )

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _tiles(self, chunks: tuple[Chunk, ...]) -> tuple[AttentionTiles, ...]:
        """Each chunk's queries in tiles: full ones together, and those of a single query together."""
        spec = self._decoder.spec
        width = tile_queries(spec.heads, spec.kv_heads, rows=self._query_rows)
        pieces = [piece for chunk, row in _first_rows(chunks) for piece in _cut(chunk, row, width)]
        single = [piece for piece in pieces if piece.queries == 1]
        several = [piece for piece in pieces if piece.queries > 1]
        return tuple(self._set_of_tiles(some, n) for some, n in ((several, width), (single, 1)) if some)

    def _set_of_tiles(self, pieces: list[_Piece], width: int) -> AttentionTiles:
        pieces = sorted(pieces, key=lambda piece: -_segments(piece.end))
        num_blocks = _segments(pieces[0].end) * (SEGMENT // self._cache.block_tokens)
        numbers = range(len(pieces))
        return AttentionTiles(
            rows=self._tensor([[*p.rows, *[0] * (width - p.queries)] for p in pieces]),
            positions=self._tensor([[*range(p.end - p.queries, p.end), *[-1] * (width - p.queries)] for p in pieces]),
            tables=self._tensor([self._table(p, num_blocks) for p in pieces]),
            num_segments=tuple(_segments(p.end) for p in pieces),
            places=self._tensor([n * width + q for n in numbers for q in range(pieces[n].queries)]),
            targets=self._tensor([row for p in pieces for row in p.rows]),
        )

    def _table(self, piece: _Piece, num_blocks: int) -> list[int]:
        """The blocks up to a piece's end, and then the zero block: what lies beyond may hold anything."""
        table = piece.table[: -(-piece.end // self._cache.block_tokens)]
        return [*table, *[self._cache.zero_block] * (num_blocks - len(table))]

    def _result(self, plan: StepPlan, draws: list[Draw]) -> StepResult:
        self._drawn.clear()
        left = iter(draws)
        return StepResult(plan.step, tuple(self._chunk_result(plan.step, chunk, left) for chunk in plan.chunks))

    def _chunk_result(self, step: int, chunk: Chunk, left: Iterator[Draw]) -> ChunkResult:
        """Take a chunk's draws; one without a token is a problem of them all."""
        sampled, problem = [], None
        for number, _ in enumerate(chunk.samples):
            drawn, why_not = next(left)
            if drawn is None:
                problem = problem or why_not
            else:
                sampled.append(drawn)
                self._drawn[step, chunk.sequence, number] = drawn.token
        return ChunkResult(chunk.sequence, () if problem else tuple(sampled), problem)


def _blocks(chunk: Chunk, size: int) -> list[int]:
    """The block of each of a chunk's tokens."""
    first, last = chunk.start // size, (chunk.end - 1) // size
    table = chunk.tables[0]
    if first == last:
        return [table[first]] * len(chunk.tokens)
    whole = [block for block in table[first : last + 1] for _ in range(size)]
    return whole[chunk.start % size :][: len(chunk.tokens)]


class _Piece(NamedTuple):
    """Some consecutive queries of a chunk: their rows in the step, and the position after the last one."""

    rows: range
    end: int
    table: tuple[int, ...]

    @property
    def queries(self) -> int:
        """How many queries."""
        return len(self.rows)


def _cut(chunk: Chunk, row: int, width: int) -> list[_Piece]:
    """The pieces of `width` queries of a chunk that begins at `row` of the step; the last one may be shorter."""
    starts = range(0, len(chunk.tokens), width)
    ends = [min(start + width, len(chunk.tokens)) for start in starts]
    return [
        _Piece(range(row + start, row + end), chunk.start + end, chunk.tables[0])
        for start, end in zip(starts, ends, strict=True)
    ]


def _first_rows(chunks: tuple[Chunk, ...]) -> list[tuple[Chunk, int]]:
    """Each chunk and the row of the step at which it begins."""
    pairs, row = [], 0
    for chunk in chunks:
        pairs.append((chunk, row))
        row += len(chunk.tokens)
    return pairs


def _segments(num_positions: int) -> int:
    return -(-num_positions // SEGMENT)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(message in str(error) for message in MEMORY_MESSAGES)


def _refuse_unknown(plan: StepPlan) -> None:
    if plan.moves:
        raise NotImplementedError(f"step {plan.step} moves blocks between tiers; there is no tier but the device yet")
    for chunk in plan.chunks:
        if chunk.adapter:
            raise NotImplementedError(f"sequence {chunk.sequence} asks for adapter {chunk.adapter!r}; none exist yet")
        if any(sample.grammar_mask is not None for sample in chunk.samples):
            raise NotImplementedError(f"sequence {chunk.sequence} asks for a grammar mask; none exist yet")
