"""`Engine`: plan -> execute -> commit, one step at a time, for any number of requests.

Owns requests and their sequences from `add` to `Finished` or `Failed`. Synchronous: nothing happens outside `step`.
Decides nothing itself (see `scheduler.py`), computes nothing itself (see `executor.py`), knows no files and no HTTP.
One idea: whatever happens becomes an event in the list that `step` returns, in an order that depends on the requests
alone; jobs, servers and the Python door are all listeners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from penstock.config import ELEMENT_BYTES, EngineConfig, wait_passively
from penstock.errors import ConfigError, OutOfMemory, RowError, RowErrorCode
from penstock.request import Answer, Request
from penstock.scheduler import Scheduler
from penstock.sequence import Sequence as LiveSequence
from penstock.step import Executor, StepPlan

if TYPE_CHECKING:
    from penstock.checkpoint import Checkpoint
    from penstock.kernels.native import Native
    from penstock.kernels.table import Kernels


class TokenEvent(NamedTuple):
    """Sample `sample` of request `number` drew a token."""

    number: int
    sample: int
    token: int


class Finished(NamedTuple):
    """Every sequence of request `number` has ended."""

    number: int
    answer: Answer


class Failed(NamedTuple):
    """Request `number` cannot be answered."""

    number: int
    error: RowError


Event = TokenEvent | Finished | Failed


class EngineStats(NamedTuple):
    """Counts since the start, the state of now, and what the answers rest on.

    Attributes:
        kv_used_tokens: held by running sequences; kv_kept_tokens: of kept prefixes that none of these holds.
        decode_tokens: those of the computed tokens that lie behind their row's prompt.
        row_exact: whether an answer depends on its row alone, bit for bit; `notes` says why where it does not.
        notes: what was changed or found while running that a user should know, each once.
        numerics: the numerics signature: everything outside the model on which the bits of an answer depend.
    """

    num_waiting: int
    num_running: int
    kv_used_tokens: int
    kv_kept_tokens: int
    kv_total_tokens: int
    computed_tokens: int
    decode_tokens: int
    cached_tokens: int
    output_tokens: int
    steps: int
    preemptions: int
    row_exact: bool
    notes: tuple[str, ...]
    numerics: dict[str, str]


@dataclass(frozen=True, slots=True)
class Numerics:
    """What the bits of an answer rest on; `why_not_exact` is None where a row's answer depends on the row alone."""

    signature: dict[str, str]
    why_not_exact: str | None = None


@dataclass(slots=True)
class _Live:
    """A request that is not finished: its sequences, by sample index."""

    number: int
    sequences: list[LiveSequence] = field(default_factory=list)


class Engine:
    """Runs requests. `clock`-free and single-threaded: the caller owns the loop."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        *,
        decode: Callable[[Sequence[int]], str],
        eos_ids: frozenset[int],
        context_tokens: int,
        numerics: Numerics,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._decode = decode
        self._eos_ids = eos_ids
        self._context_tokens = context_tokens
        self._numerics = numerics
        self._live: dict[int, _Live] = {}
        self._owner: dict[int, int] = {}  # sequence number to request number
        self._num_requests = 0
        self._num_sequences = 0
        self._output_tokens = 0
        self._budget_at_start = scheduler.token_budget

    def add(self, request: Request, expected_tokens: int | None = None, *, shared_tokens: int | None = None) -> int:
        """Queue a request; gives its number.

        `expected_tokens`: the length to reckon with for each of its answers. `shared_tokens`: with how many of its
        first tokens other requests may begin, so that what is behind them need not be kept for these; None: with all.

        Raises:
            RowError: `kv_too_small`, where its prompt can never fit.
        """
        total = self._scheduler.pool.total * self._scheduler.block_tokens
        length = len(request.prompt_tokens)
        if length + 1 > total:
            raise RowError(
                RowErrorCode.KV_TOO_SMALL,
                f"the prompt has {length} tokens and the KV memory holds {total}; give more with --kv-memory",
            )
        self._num_requests += 1
        live = _Live(self._num_requests)
        self._live[live.number] = live
        for sample in range(request.params.n):
            self._add_sequence(
                live,
                request,
                sample=sample,
                expected_tokens=expected_tokens,
                shared_tokens=shared_tokens if request.params.n == 1 else None,  # else samples that wait begin with it
            )
        return live.number

    def _add_sequence(
        self, live: _Live, request: Request, *, sample: int, expected_tokens: int | None, shared_tokens: int | None
    ) -> None:
        self._num_sequences += 1
        sequence = LiveSequence(
            self._num_sequences,
            request,
            sample=sample,
            eos_ids=self._eos_ids,
            context_tokens=self._context_tokens,
            expected_tokens=expected_tokens,
            shared_tokens=shared_tokens,
        )
        live.sequences.append(sequence)
        self._owner[sequence.number] = live.number
        self._scheduler.add(sequence)

    def set_expected(self, number: int, expected_tokens: int | None) -> None:
        """Reckon with another length for each answer of a request, None: the most that it may have; unknown or finished
        numbers are fine.
        """
        live = self._live.get(number)
        for sequence in live.sequences if live is not None else ():
            sequence.set_expected(expected_tokens)

    def step(self) -> list[Event]:
        """Run one step; what happened, in the plan's order."""
        plan = self._scheduler.plan()
        events = self._give_up_outgrown()
        if not plan.chunks:
            return events
        try:
            result = self._executor.collect(self._executor.submit(plan))
        except OutOfMemory as error:
            return events + self._shrink(plan, error)
        for sequence, problem in self._scheduler.commit(plan, result):
            if problem is not None:
                events += self._fail(sequence, RowError(RowErrorCode.INTERNAL, problem))
            elif self._owner.get(sequence.number) is not None:
                events += self._advance(sequence)
        return events

    def _advance(self, sequence: LiveSequence) -> list[Event]:
        """A token was drawn: say so, and end the sequence, and its request, where it was the last."""
        live = self._live[self._owner[sequence.number]]
        self._output_tokens += 1
        events: list[Event] = [TokenEvent(live.number, sequence.sample, sequence.tokens[-1])]
        end = sequence.find_end(self._decode)
        if end is None:
            return events
        self._scheduler.finish(sequence, end)
        if all(s.end is not None for s in live.sequences):
            events.append(Finished(live.number, self._answer(live)))
            self._forget(live)
        return events

    def _answer(self, live: _Live) -> Answer:
        first = live.sequences[0]
        completions = tuple(s.completion(self._decode) for s in live.sequences)
        return Answer(completions, len(first.prompt_tokens), first.num_cached)

    def _fail(self, sequence: LiveSequence, error: RowError) -> list[Event]:
        """End the whole request of a sequence that cannot go on."""
        live = self._live.get(self._owner.get(sequence.number, 0))
        if live is None:
            return []  # another sequence of the request failed in this very step
        self.abort(live.number)
        return [Failed(live.number, error)]

    def _give_up_outgrown(self) -> list[Event]:
        events: list[Event] = []
        total = self._scheduler.pool.total * self._scheduler.block_tokens
        for sequence in self._scheduler.outgrown:
            length = len(sequence.tokens)
            text = f"the sequence grew to {length} tokens and the KV memory holds {total}; give more with --kv-memory"
            events += self._fail(sequence, RowError(RowErrorCode.KV_TOO_SMALL, text))
        self._scheduler.outgrown.clear()
        return events

    def _shrink(self, plan: StepPlan, error: OutOfMemory) -> list[Event]:
        """A step did not fit: make the next ones smaller, or give up the row that does not fit alone."""
        if plan.num_tokens > 1:
            self._scheduler.shrink(plan.num_tokens)
            return []
        sequence = next(s for s in self._scheduler.running if s.number == plan.chunks[0].sequence)
        return self._fail(sequence, RowError(RowErrorCode.INTERNAL, f"out of memory for this row alone: {error}"))

    def abort(self, number: int) -> None:
        """Drop a request; unknown or finished numbers are fine."""
        live = self._live.get(number)
        if live is None:
            return
        for sequence in live.sequences:
            self._scheduler.finish(sequence, sequence.end)
        self._forget(live)

    def _forget(self, live: _Live) -> None:
        del self._live[live.number]
        for sequence in live.sequences:
            del self._owner[sequence.number]

    @property
    def executor(self) -> Executor:
        """What runs the plans; others may run theirs on it while no request is unfinished."""
        assert not self._live
        return self._executor

    @property
    def num_unfinished(self) -> int:
        """Requests that are neither finished nor failed."""
        return len(self._live)

    def stats(self) -> EngineStats:
        """Counts since the start, the state of now, and what the answers rest on."""
        scheduler = self._scheduler
        counts, pool = scheduler.stats(), scheduler.pool
        return EngineStats(
            num_waiting=counts.num_waiting,
            num_running=counts.num_running,
            kv_used_tokens=(pool.total - pool.num_available) * scheduler.block_tokens,
            kv_kept_tokens=pool.num_idle * scheduler.block_tokens,
            kv_total_tokens=pool.total * scheduler.block_tokens,
            computed_tokens=counts.computed_tokens,
            decode_tokens=counts.decode_tokens,
            cached_tokens=counts.cached_tokens,
            output_tokens=self._output_tokens,
            steps=counts.steps,
            preemptions=counts.preemptions,
            row_exact=self._numerics.why_not_exact is None,
            notes=self._notes(),
            numerics=self._numerics.signature,
        )

    def _notes(self) -> tuple[str, ...]:
        notes = [f"not row-exact: {self._numerics.why_not_exact}"] if self._numerics.why_not_exact else []
        budget = self._scheduler.token_budget
        if budget < self._budget_at_start:
            notes.append(f"memory ran out: token budget lowered from {self._budget_at_start} to {budget}")
        return tuple(notes)


class Instruments(Protocol):
    """What may watch an engine at work: it gives back the same ops and the same executor, watched."""

    def wrap_kernels(self, kernels: Kernels, native: Native | None) -> Kernels:
        """The ops that the model computes with; the native library, which can tell what it does in a layer."""

    def wrap_executor(self, executor: Executor) -> Executor:
        """What runs the plans."""


def open_engine(
    checkpoint: Checkpoint,
    config: EngineConfig,
    *,
    decode: Callable[[Sequence[int]], str],
    instruments: Instruments | None = None,
) -> Engine:
    """Load a model and open an engine on it.

    Raises:
        ModelError: the checkpoint cannot be loaded. ConfigError: the KV memory holds not even one block.
    """
    wait_passively()
    from penstock.device import open_device  # torch is imported here, not with the engine

    block_bytes = checkpoint.spec.kv_bytes_per_token(ELEMENT_BYTES[config.dtype]) * config.block_tokens
    num_blocks = config.kv_memory_bytes // block_bytes
    if num_blocks < 1:
        raise ConfigError(
            f"--kv-memory is {config.kv_memory_bytes} bytes and one block of {config.block_tokens} tokens takes "
            f"{block_bytes} bytes of this model; give at least that"
        )
    wrap = instruments.wrap_kernels if instruments else None
    opened = open_device(checkpoint, config, num_blocks=num_blocks, wrap_kernels=wrap)
    executor: Executor = opened.executor
    scheduler = Scheduler(
        num_blocks=num_blocks,
        block_tokens=config.block_tokens,
        token_budget=config.token_budget,
        max_sequences=config.max_sequences,
    )
    return Engine(
        scheduler,
        instruments.wrap_executor(executor) if instruments else executor,
        decode=decode,
        eos_ids=checkpoint.eos_ids,
        context_tokens=checkpoint.spec.context_tokens,
        numerics=Numerics(opened.signature, opened.why_not_exact),
    )
