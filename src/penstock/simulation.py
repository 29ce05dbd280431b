"""A job without its model: the real engine and scheduler, and an executor that draws at once and moves a clock.

Owns `SimulatedExecutor` and the loop around it. Computes no tensors and reads no clock, so the same rows give the same
numbers everywhere. What is drawn is a token that no other sequence has, so nothing is shared that the rows do not
share; a sequence ends where its row says that it will.
One idea: whatever the scheduler does about memory, order and budgets happens here too, because it is the scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from penstock.blocks import BlockPool
from penstock.config import ELEMENT_BYTES, EngineConfig
from penstock.engine import Engine, Failed, Numerics, TokenEvent
from penstock.errors import RowError
from penstock.models.spec import DecoderSpec
from penstock.profile import Profile, Work, interpolate
from penstock.request import Request, SamplingParams, TokenLogprob, TokenSpan
from penstock.scheduler import Scheduler
from penstock.step import Chunk, ChunkResult, StepPlan, StepResult, Ticket

UNFINISHED_PER_SEQUENCE = 2  # as a job feeds its engine, see jobs/loading.py


class SimRow(NamedTuple):
    """A row as the scheduler sees it, how long each of its answers will be, and is taken to be (None: the same).

    `shared_tokens`: as in `Engine.add`.
    """

    prompt: tuple[int, ...]
    output_tokens: int
    params: SamplingParams
    expected_tokens: int | None = None
    shared_tokens: int | None = None


class Terms(NamedTuple):
    """What a job is simulated on."""

    spec: DecoderSpec
    config: EngineConfig
    profile: Profile

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that a token takes."""
        return self.spec.kv_bytes_per_token(ELEMENT_BYTES[self.config.dtype])


@dataclass(frozen=True, slots=True)
class Simulated:
    """What became of the rows.

    Attributes:
        parts: the seconds by kind of work; they sum to `seconds`.
        failed: rows that do not fit the KV memory.
        ends_s: after how many seconds each row ended, in ascending order; empty where they are not known one by one.
    """

    seconds: float
    steps: int
    preemptions: int
    computed_tokens: int
    cached_tokens: int
    output_tokens: int
    peak_kv_tokens: int
    failed: int
    parts: dict[str, float]
    ends_s: tuple[float, ...]


class SimulatedExecutor:
    """Draws for every sample of a plan and adds up what its steps would take."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._vocab = terms.spec.vocab
        self.ends: list[int] = []  # by sequence number, from 1: how many tokens it has when it ends
        self.work = Work(*[0] * len(Work._fields))
        self.matrices_s = self.logits_s = 0.0
        self._peak_blocks = 0
        self.pool: BlockPool | None = None  # of the scheduler whose plans these are
        self._waiting: StepResult | None = None

    def submit(self, plan: StepPlan) -> Ticket:
        """Count a step."""
        profile = self._terms.profile
        work = profile.work(plan)
        self.work = Work(*map(int.__add__, self.work, work))
        self.matrices_s += interpolate(profile.tokens, work.tokens)
        self.logits_s += interpolate(profile.samples, work.samples)
        if self.pool is not None:
            self._peak_blocks = max(self._peak_blocks, self.pool.total - self.pool.num_available)
        self._waiting = StepResult(plan.step, tuple(self._draw(chunk) for chunk in plan.chunks))
        return Ticket(plan.step)

    def collect(self, ticket: Ticket) -> StepResult:
        """What was drawn."""
        result, self._waiting = self._waiting, None
        assert result is not None
        assert result.step == ticket
        return result

    def _draw(self, chunk: Chunk) -> ChunkResult:
        if not chunk.samples:
            return ChunkResult(chunk.sequence, ())
        ends = chunk.end + 1 >= self.ends[chunk.sequence - 1]
        token = self._vocab if ends else self._vocab + chunk.sequence
        return ChunkResult(chunk.sequence, (TokenLogprob(token, math.nan, ()),))

    @property
    def peak_kv_tokens(self) -> int:
        """What the blocks hold that were taken at most at once."""
        return self._peak_blocks * self._terms.config.block_tokens

    @property
    def seconds(self) -> float:
        """What the steps so far would take."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """The seconds by kind of work."""
        profile, work = self._terms.profile, self.work
        price = profile.prices
        attention = work.reads * price.reads + work.shared_reads * price.shared_reads
        attention += work.tile_reads * price.tile_reads + work.pairs * price.pairs
        python = work.chunks * (price.chunks + profile.decide_s) + work.copies * price.copies
        logits = self.logits_s + work.draws * price.draws + work.cuts * price.cuts
        return {"matrices": self.matrices_s, "logits": logits, "attention": attention, "python": python}


def simulate(rows: Iterable[SimRow], terms: Terms, *, executor: SimulatedExecutor | None = None) -> Simulated:
    """Run rows, in this order, to their end."""
    executor = executor or SimulatedExecutor(terms)
    engine = _open(executor, terms)
    left, failed = iter(rows), 0
    ends_s: list[float] = []
    at_once = UNFINISHED_PER_SEQUENCE * terms.config.max_sequences
    more = True
    while more or engine.num_unfinished:
        while more and engine.num_unfinished < at_once:
            row = next(left, None)
            more = row is not None
            if row is not None and not _add(engine, executor, row):
                failed += 1
                ends_s.append(executor.seconds)
        if engine.num_unfinished:
            ended = [event for event in engine.step() if not isinstance(event, TokenEvent)]
            failed += sum(isinstance(event, Failed) for event in ended)
            ends_s += [executor.seconds] * len(ended)
    return _result(engine, executor, failed=failed, ends_s=ends_s)


def _open(executor: SimulatedExecutor, terms: Terms) -> Engine:
    spec, config, _ = terms
    block_bytes = terms.kv_bytes_per_token * config.block_tokens
    scheduler = Scheduler(
        num_blocks=max(1, config.kv_memory_bytes // block_bytes),
        block_tokens=config.block_tokens,
        token_budget=config.token_budget,
        max_sequences=config.max_sequences,
    )
    executor.pool = scheduler.pool
    return Engine(
        scheduler,
        executor,
        decode=lambda _: "",
        eos_ids=frozenset({spec.vocab}),
        context_tokens=spec.context_tokens,
        numerics=Numerics({}),
    )


def _add(engine: Engine, executor: SimulatedExecutor, row: SimRow) -> bool:
    try:
        request, expected = Request((TokenSpan(row.prompt),), row.params), row.expected_tokens or row.output_tokens
        engine.add(request, expected, shared_tokens=row.shared_tokens)
    except RowError:
        return False
    executor.ends += [len(row.prompt) + row.output_tokens] * row.params.n
    return True


def _result(engine: Engine, executor: SimulatedExecutor, *, failed: int, ends_s: list[float]) -> Simulated:
    stats = engine.stats()
    return Simulated(
        seconds=executor.seconds,
        steps=stats.steps,
        preemptions=stats.preemptions,
        computed_tokens=stats.computed_tokens,
        cached_tokens=stats.cached_tokens,
        output_tokens=stats.output_tokens,
        peak_kv_tokens=executor.peak_kv_tokens,
        failed=failed,
        parts=executor.parts(),
        ends_s=tuple(ends_s),
    )
