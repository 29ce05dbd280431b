"""`TorchExecutor`: runs a `StepPlan` on tensors and gives back a `StepResult`.

Owns the way from a plan to input tensors and from logits to results. Decides nothing: a plan that asks for what does
not exist yet (a grammar mask, an adapter, a tier) is refused by name.
One idea: depth 1. `submit` computes, `collect` hands over; a device that runs by itself can put time between the two.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from penstock.errors import OutOfMemory
from penstock.kernels.reference import NARROW, TileRows, tile_queries
from penstock.kv import KVCache
from penstock.models.decoder import Decoder, StepTensors
from penstock.sampling import Draw
from penstock.step import Chunk, ChunkResult, StepPlan, StepResult, Ticket
from penstock.tiling import Tiling, make_tiles

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
        tile_rows: TileRows = NARROW,
        needs_zeros: bool = True,
    ) -> None:
        """What the decoder's attention is made for: tiles of so many rows, and zeros where no key was written."""
        self._decoder = decoder
        self._cache = cache
        self._device = device
        heads, kv_heads = decoder.spec.heads, decoder.spec.kv_heads
        self._tiling = Tiling(
            width=tile_queries(heads, kv_heads, rows=tile_rows.most),
            block_tokens=cache.block_tokens,
            zero_block=cache.zero_block,
            device=device,
            least=tile_queries(heads, kv_heads, rows=tile_rows.least),
            tiles=-(-tile_rows.tasks // kv_heads),
        )
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
        wanted: list[int] = []
        sampled: list[int] = []
        for chunk in plan.chunks:
            numbers = {offset: number for number, offset in enumerate(chunk.wanted_offsets, len(wanted))}
            wanted += [len(tokens) + offset for offset in numbers]
            sampled += [numbers[sample.offset] for sample in chunk.samples]
            tokens += [t if isinstance(t, int) else self._drawn[t] for t in chunk.tokens]
            positions += range(chunk.start, chunk.end)
            blocks += _blocks(chunk, size)
        where, block = self._tensor(positions), self._tensor(blocks)
        offsets = where % size
        if self._needs_zeros:
            self._cache.clear(block[offsets == 0])
        all_wanted = len(wanted) == len(tokens)
        ends_early = self._decoder.ends_early and not all_wanted
        return StepTensors(
            tokens=self._tensor(tokens),
            positions=where,
            blocks=block,
            offsets=offsets,
            sampled=self._tensor(sampled),
            tiles=make_tiles(plan.chunks, self._tiling),
            num_positions=max(positions) + 1,
            wanted=None if all_wanted else self._tensor(wanted),
            wanted_tiles=make_tiles(plan.chunks, self._tiling, only_wanted=True) if ends_early else (),
        )

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

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
