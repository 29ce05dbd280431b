"""Measures a `Profile`: runs synthetic steps on a real executor and takes the median of each.

Owns which steps are run. They are random token ids at random places of the KV memory: prompts of every length, decoding
with short, long and shared contexts, later pieces of prompts, mixtures, copies, ways to draw. The executor, what
`about` says of it and the clocks are passed in.
One idea: passes over all steps, not repetitions of one, so that what disturbs the machine for a second disturbs one
pass of a step, and the median of its passes leaves it out.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from penstock.config import ELEMENT_BYTES, EngineConfig
from penstock.cost import token_elements
from penstock.disturbance import CpuTimes, disturbance
from penstock.models.spec import DecoderSpec
from penstock.profile import Measured, Prices, Profile, Rates, fit, queries_of_tile
from penstock.request import SamplingParams
from penstock.simulation import SimRow, SimulatedExecutor, Terms, simulate
from penstock.step import BlockCopy, Chunk, Executor, SampleAt, StepPlan, Ticket

POOL_BYTES = 2**30  # of KV that is measured on: far more than any cache, and soon filled
LEAST_TOKENS = 512  # the curve goes that far at least, so that its bend is in it
SHORT, LONG, PIECE = 32, 1024, 16
GREEDY = SampleAt(0, 0.5, 0.0, 0, 1.0, 0.0)
DRAWN = replace(GREEDY, temperature=1.0)
CUT = replace(DRAWN, top_p=0.9)
COPIES_AT_ONCE = 64

Clock = Callable[[], float]
CpuClock = Callable[[], CpuTimes | None]


class Effort(NamedTuple):
    """How long to measure: passes until so many seconds are over, within these numbers."""

    least_passes: int
    most_passes: int
    seconds: float
    most_tokens: int


FULL = Effort(3, 9, 30.0, 2**20)
QUICK = Effort(2, 3, 6.0, 256)
SLOW_S = 0.5  # a step that takes so long is not disturbed by what disturbs short ones
SLOW_PASSES = 2


class Size(NamedTuple):
    """What the synthetic steps may take: tokens and sequences in a step, blocks, positions of a context."""

    tokens: int
    sequences: int
    blocks: int
    block_tokens: int
    context: int


def size_of(spec: DecoderSpec, config: EngineConfig, *, kv_bytes_per_token: int, effort: Effort) -> Size:
    """As large as jobs with this configuration, but in less KV memory."""
    tokens = min(max(config.token_budget, LEAST_TOKENS), effort.most_tokens, spec.context_tokens - 1)
    pool_bytes = min(POOL_BYTES, config.kv_memory_bytes)
    blocks = max(1, pool_bytes // (kv_bytes_per_token * config.block_tokens))
    held = blocks * config.block_tokens
    sequences = max(1, min(config.max_sequences, tokens, blocks // 3))
    tokens = min(tokens, held)
    return Size(tokens, sequences, blocks, config.block_tokens, min(LONG, held // 2, spec.context_tokens - 1))


class Sheet:
    """Writes plans of random ids at random places. Within a plan no two chunks share a block unless it is asked for."""

    def __init__(self, size: Size, *, vocab: int, seed: int = 0) -> None:
        self._size = size
        self._vocab = vocab
        self._random = random.Random(seed)

    def plan(self, *groups: list[Chunk], copies: int = 0) -> StepPlan:
        """A plan of chunks, with copies between blocks."""
        chunks = tuple(replace(c, sequence=n) for n, c in enumerate((c for group in groups for c in group), 1))
        pairs = [self._blocks(2) for _ in range(copies)]
        return StepPlan(1, chunks, tuple(BlockCopy(0, a, b, self._size.block_tokens // 2) for a, b in pairs))

    def chunks(
        self, count: int, tokens: int, *, start: int = 0, sample: SampleAt | None = None, is_shared: bool = False
    ) -> list[Chunk]:
        """`count` chunks of so many tokens each; shared: they have all blocks but their last ones in common."""
        width = -(-(start + tokens) // self._size.block_tokens)
        own = width - start // self._size.block_tokens if is_shared else width
        places = self._blocks(width - own + count * own)
        shared, rest = places[: width - own], places[width - own :]
        tables = [(*shared, *rest[n * own : (n + 1) * own]) for n in range(count)]
        samples = (replace(sample, offset=tokens - 1),) if sample else ()
        return [Chunk(0, start, self._tokens(tokens), (table,), samples) for table in tables]

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._random.randrange(self._vocab) for _ in range(count))

    def _blocks(self, count: int) -> list[int]:
        """So many different blocks; where there are not enough, some more than once."""
        whole, rest = divmod(count, self._size.blocks)
        return list(range(self._size.blocks)) * whole + self._random.sample(range(self._size.blocks), rest)


def synthetic_steps(sheet: Sheet, size: Size) -> Iterator[StepPlan]:
    """The steps that are run."""
    for tokens in powers_to(size.tokens):
        yield sheet.plan(sheet.chunks(1, tokens))
    yield from _decoding(sheet, size)
    yield from _pieces(sheet, size)
    most, part = size.sequences, max(2, size.tokens // 4)
    for sample in (DRAWN, CUT):
        yield sheet.plan(sheet.chunks(most, 1, start=SHORT, sample=sample))
    yield sheet.plan(sheet.chunks(min(8, most), 1, start=SHORT, sample=GREEDY), copies=8)
    context = _context(size, most)
    decoding = sheet.chunks(most, 1, start=context, sample=GREEDY)
    yield sheet.plan(decoding, sheet.chunks(1, part, sample=GREEDY))
    yield sheet.plan(decoding, sheet.chunks(4, max(2, part // 4), start=min(SHORT, size.context)))


def _decoding(sheet: Sheet, size: Size) -> Iterator[StepPlan]:
    for count in sample_knots(size.sequences):
        yield sheet.plan(sheet.chunks(count, 1, start=SHORT, sample=GREEDY))
        yield sheet.plan(sheet.chunks(count, 1, start=_context(size, count), sample=GREEDY))
        yield sheet.plan(sheet.chunks(count, 1, start=SHORT))
        yield sheet.plan(sheet.chunks(count, 1, start=size.context - 1, sample=GREEDY, is_shared=True))


def _pieces(sheet: Sheet, size: Size) -> Iterator[StepPlan]:
    """Prompts that go on where others ended: one long piece, and many short ones."""
    start = size.context // 2
    room = max(2, min(size.tokens // 2, size.context - start))
    for tokens in sorted({min(64, room), room}):
        yield sheet.plan(sheet.chunks(1, tokens, start=start))
    for tokens in (4, PIECE):
        count = max(1, min(8, size.tokens // tokens))
        yield sheet.plan(sheet.chunks(count, tokens, start=start, is_shared=True))


def _context(size: Size, count: int) -> int:
    """The longest context that so many sequences can each have for themselves."""
    blocks = size.blocks // count
    return max(0, min(size.context, blocks * size.block_tokens) - 1)


def powers_to(most: int) -> list[int]:
    """1, 2, 4 .. and `most` itself."""
    return sorted({2**n for n in range(most.bit_length())} | {most})


def sample_knots(most: int) -> list[int]:
    """1, 8, 64 .. and `most` itself."""
    return sorted({8**n for n in range(most.bit_length()) if 8**n <= most} | {most})


# --- running them


def measure(
    executor: Executor, terms: Terms, *, size: Size, effort: Effort, clock: Clock, cpu: CpuClock, rates: Rates
) -> Profile:
    """Run the steps and fit the profile. `terms.profile` says what is measured; its times are not looked at."""
    spec, config, known = terms
    sheet = Sheet(size, vocab=spec.vocab)
    _fill(executor, sheet, size)
    plans = list(synthetic_steps(sheet, size))
    before = cpu()
    times = _run_passes(executor, plans, effort=effort, clock=clock)
    disturbed = disturbance(before, cpu())
    known = replace(
        known,
        block_tokens=config.block_tokens,
        tile_queries=queries_of_tile(spec.heads, spec.kv_heads),
        windows=tuple(spec.layers_by_window.items()),
    )
    measured = [Measured(known.work(plan), statistics.median(some)) for plan, some in zip(plans, times, strict=True)]
    fastest_s = math.fsum(map(min, times))
    found = fit(measured, token_knots=powers_to(size.tokens), sample_knots=sample_knots(size.sequences))
    fitted = replace(
        known,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        rates=rates,
        measured=tuple(measured),
        disturbance=disturbed,
        spread=math.fsum(step.seconds for step in measured) / fastest_s - 1,
        **found._asdict(),
    )
    fitted = replace(fitted, rates=_reached(fitted, spec, config))
    return replace(fitted, decide_s=_decide_s(terms._replace(profile=fitted), clock))


def _reached(profile: Profile, spec: DecoderSpec, config: EngineConfig) -> Rates:
    """The machine's limits, or what these steps reached, whichever is more: what was reached is no limit."""
    flops_per_s, bytes_per_s = profile.rates
    elements = token_elements(spec)
    if flops_per_s is not None:
        flops_per_s = max(flops_per_s, *(2 * elements * profile.tokens_per_s(p.number) for p in profile.tokens))
    if bytes_per_s is not None and profile.tokens[0].seconds:
        bytes_per_s = max(bytes_per_s, elements * ELEMENT_BYTES[config.dtype] / profile.tokens[0].seconds)
    return Rates(flops_per_s, bytes_per_s)


def _fill(executor: Executor, sheet: Sheet, size: Size) -> None:
    """Write every block once: memory that was never written is read from nowhere, and far too fast."""
    first = sheet.plan(sheet.chunks(1, min(size.block_tokens, size.tokens)))
    source = first.chunks[0].tables[0][0]
    executor.collect(executor.submit(first))
    others = [block for block in range(size.blocks) if block != source]
    for at in range(0, len(others), COPIES_AT_ONCE):
        copies = tuple(BlockCopy(0, source, b, size.block_tokens) for b in others[at : at + COPIES_AT_ONCE])
        executor.collect(executor.submit(replace(first, copies=copies)))


def _run_passes(executor: Executor, plans: list[StepPlan], *, effort: Effort, clock: Clock) -> list[list[float]]:
    """The seconds of each plan in each pass. A pass that counts for nothing comes first, of the small steps."""
    for plan in plans:
        if plan.num_tokens <= PIECE:
            executor.collect(executor.submit(plan))
    times: list[list[float]] = [[] for _ in plans]
    began = clock()
    for number in range(effort.most_passes):
        if number >= effort.least_passes and clock() - began > effort.seconds:
            break
        for plan, some in zip(plans, times, strict=True):
            if number >= SLOW_PASSES and some[0] > SLOW_S:
                continue
            started = clock()
            executor.collect(executor.submit(plan))
            some.append(clock() - started)
    return times


class _Stopwatch(SimulatedExecutor):
    """Measures how long an executor that computes nothing is busy all the same."""

    def __init__(self, terms: Terms, clock: Clock) -> None:
        super().__init__(terms)
        self._clock = clock
        self.busy_s = 0.0

    def submit(self, plan: StepPlan) -> Ticket:
        started = self._clock()
        ticket = super().submit(plan)
        self.busy_s += self._clock() - started
        return ticket


def _decide_s(terms: Terms, clock: Clock) -> float:
    """What the engine itself takes for each chunk of a step: planning, commit, events."""
    params = SamplingParams(max_tokens=64, ignore_eos=True, temperature=0.0)
    rows = [SimRow(tuple(range(n, n + 64)), 64, params) for n in range(4 * terms.config.max_sequences)]
    executor = _Stopwatch(terms, clock)
    started = clock()
    simulate(rows, terms, executor=executor)
    return max(0.0, clock() - started - executor.busy_s) / max(1, executor.work.chunks)


def unmeasured(about: dict[str, str], numerics: dict[str, str]) -> Profile:
    """What is to be measured, without any time yet."""
    return Profile(about, numerics, "", 0, 0, (), (), Prices())
