"""`TorchExecutor`: runs a `StepPlan` on tensors and gives back a `StepResult`.

Owns the way from a plan to input tensors and from logits to results. Decides nothing: a plan that asks for what does
not exist yet (a grammar mask, an adapter, a tier) is refused by name.
One idea: depth 1. `submit` computes, `collect` hands over; a device that runs by itself can put time between the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.errors import OutOfMemory
from penstock.kernels.reference import QUERY_ROWS, SEGMENT, AttentionTiles
from penstock.kv import KVCache
from penstock.models.decoder import Decoder, StepTensors
from penstock.sampling import Draw, draw_all
from penstock.step import Chunk, ChunkResult, SampledRef, StepPlan, StepResult, Ticket

# What PyTorch and the libraries below it say when memory runs out, where they have no type for it.
MEMORY_MESSAGES = ("can't allocate memory", "could not create a memory", "not enough memory", "Cannot allocate memory")


class TorchExecutor:
    """Runs plans on one device."""

    def __init__(self, decoder: Decoder, cache: KVCache, *, device: str) -> None:
        self._decoder = decoder
        self._cache = cache
        self._device = device
        self._results: dict[Ticket, StepResult] = {}
        self._drawn: dict[SampledRef, int] = {}  # of the last step

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
        return draw_all(logits, [sample for chunk in plan.chunks for sample in chunk.samples])

    def _inputs(self, plan: StepPlan) -> StepTensors:
        size = self._cache.block_tokens
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampled: list[int] = []
        for chunk in plan.chunks:
            sampled += [len(tokens) + sample.offset for sample in chunk.samples]
            table = chunk.tables[0]
            tokens += [self._drawn[t] if isinstance(t, SampledRef) else t for t in chunk.tokens]
            positions += range(chunk.start, chunk.end)
            slots += [table[p // size] * size + p % size for p in range(chunk.start, chunk.end)]
        return StepTensors(
            tokens=self._tensor(tokens),
            positions=self._tensor(positions),
            slots=self._tensor(slots),
            sampled=self._tensor(sampled),
            tiles=self._tiles(plan.chunks),
            num_positions=max(chunk.end for chunk in plan.chunks),
        )

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _tiles(self, chunks: tuple[Chunk, ...]) -> AttentionTiles:
        """Cut each chunk into tiles of consecutive queries, the tiles that read most segments first."""
        group = self._decoder.spec.heads // self._decoder.spec.kv_heads
        queries = max(1, QUERY_ROWS // group)
        starts = [(chunk, row, at) for chunk, row in _first_rows(chunks) for at in range(0, len(chunk.tokens), queries)]
        ends = [min(chunk.start + at + queries, chunk.end) for chunk, _, at in starts]
        order = sorted(range(len(starts)), key=lambda i: -_segments(ends[i]))
        longest = _segments(max(ends)) * (SEGMENT // self._cache.block_tokens)
        rows, positions, tables = [], [], []
        target = [0] * sum(len(chunk.tokens) for chunk in chunks)
        for place, i in enumerate(order):
            chunk, row, at = starts[i]
            count = min(queries, len(chunk.tokens) - at)
            padding = queries - count
            rows.append([*range(row + at, row + at + count), *[0] * padding])
            positions.append([*range(chunk.start + at, chunk.start + at + count), *[-1] * padding])
            table = chunk.tables[0][:longest]
            tables.append([*table, *[0] * (longest - len(table))])
            target[row + at : row + at + count] = range(place * queries, place * queries + count)
        return AttentionTiles(
            rows=torch.tensor(rows, device=self._device),
            positions=torch.tensor(positions, device=self._device),
            tables=torch.tensor(tables, device=self._device),
            num_segments=tuple(_segments(ends[i]) for i in order),
            target=self._tensor(target),
        )

    def _result(self, plan: StepPlan, draws: list[Draw]) -> StepResult:
        self._drawn.clear()
        results, at = [], 0
        for chunk in plan.chunks:
            mine = draws[at : at + len(chunk.samples)]
            at += len(mine)
            tokens = tuple(draw.token for draw in mine if draw.token is not None)
            problem = next((draw.problem for draw in mine if draw.problem is not None), None)
            for number, token in enumerate(tokens):
                self._drawn[SampledRef(plan.step, chunk.sequence, number)] = token.token
            results.append(ChunkResult(chunk.sequence, () if problem else tokens, problem))
        return StepResult(plan.step, tuple(results))


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
