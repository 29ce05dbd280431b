"""`Loop`: one process's work on a job, row by row; see `_drain` for the life of a row on one screen.

Owns the order in which things become durable, and the one place where a row's error is caught. The engine, the store
and the output files are passed in; only the rows in flight are in memory.
One idea: a row is claimed on disk before anything is done with it, and its result is on disk before it is exported, so
the process may die anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

from penstock.engine import Event, Failed, Finished
from penstock.errors import Interrupted, OutOfTime, PenstockError, RowError, RowErrorCode
from penstock.jobs.answer_cache import AnswerCache
from penstock.jobs.deadline import Deadline
from penstock.jobs.export import Export
from penstock.jobs.formats import LineReader
from penstock.jobs.job import UnchangedInput
from penstock.jobs.loading import Loaded
from penstock.jobs.phases import Phase, PhaseTrace
from penstock.jobs.plan_file import PlannedRow
from penstock.jobs.progress import Position, Watch
from penstock.jobs.queue import Queue
from penstock.jobs.stopping import StopSignals
from penstock.jobs.store import CRASHES_TO_SUSPECT, Item, Result, Store, Totals
from penstock.jobs.timeline import Timeline
from penstock.jobs.timing import Timer
from penstock.planner import unpack_tokens
from penstock.protocol import BadRow, BatchRow, answer_line, duplicate_custom_id, error_line, parse_row
from penstock.request import Answer

ROWS_AT_ONCE = 512  # lines taken from the input between two steps, at most: bad rows take no room in the engine


class Surroundings(NamedTuple):
    """What a job runs in, beside its files and its model."""

    timer: Timer
    watch: Watch
    stop: StopSignals
    phases: PhaseTrace
    deadline: Deadline | None = None

    @property
    def left_s(self) -> float | None:
        """The seconds until the deadline, 0 or less where it has passed; None: there is none."""
        return None if self.deadline is None else self.deadline.at_s - self.timer.now_s()

    @property
    def late(self) -> Deadline | None:
        """The deadline, if it has passed."""
        return self.deadline if self.left_s is not None and self.left_s <= 0 else None


class Row(NamedTuple):
    """A row that was claimed: its item, its place in the plan, what it asks, what its answer is cached under."""

    item: Item
    planned: PlannedRow
    asks: BatchRow
    cache_key: bytes | None = None


class Loop:
    """Work on one store. Invariant: when a step begins, the rows in flight on disk are those in `_running`."""

    def __init__(
        self,
        store: Store,
        loaded: Loaded,
        queue: Queue,
        *,
        read: UnchangedInput,
        export: Export,
        around: Surroundings,
        cache: AnswerCache | None = None,
    ) -> None:
        self._store = store
        self._cache = cache or AnswerCache.off()
        self._loaded = loaded
        self._queue = queue
        self._read = read
        self._lines = LineReader(read.path)
        self._export = export
        self._around = around
        self._about = store.about()
        self._fingerprint: str = store.meta()["fingerprint"]
        self._totals = self._start = store.totals()
        self._in_flight: set[int] = set()  # the rows that are claimed and not finished
        self._running: dict[int, Row] = {}  # by the engine's number
        self._timeline = Timeline(store, loaded.engine.stats, timer=around.timer, phases=around.phases)

    def run(self) -> None:
        """Finish every row that has no result.

        Raises:
            Interrupted: a signal asked to stop; everything is committed. StorageFailed: the disk failed.
        """
        with closing(self._lines), closing(self._cache):
            self._drain(self._queue.missing(self._in_flight.__contains__), at_once=self._loaded.at_once)
            self._drain(self._suspects(), at_once=1)

    # --- the life of a row --------------------------------------------------------------------------------------

    def _drain(self, rows: Iterator[PlannedRow], *, at_once: int) -> None:
        """Read, claim, commit; then give to the engine and step, and record what ended; commit, export; and again."""
        is_over = False
        while not is_over:
            claimed, is_ended = self._claim(rows, room=at_once - len(self._running))
            self._commit()  # what the last step finished, and these claims
            self._stop_if_asked()
            self._around.phases.enter(Phase.QUEUE)
            for row in claimed:
                self._hand_over(row)
            if self._running:
                events = self._step()
                self._around.phases.enter(Phase.RECORD)
                for event in events:
                    self._record(event)
            is_over = is_ended and not self._running
            self._timeline.update(rows=self._totals.done - self._start.done, is_last=is_over)
            self._around.watch.update(self._position)
        self._commit()

    def _claim(self, rows: Iterator[PlannedRow], *, room: int) -> tuple[list[Row], bool]:
        """Take up to `room` rows that can run; bad ones are recorded. Second: whether no row is left to take."""
        self._around.phases.enter(Phase.READ)
        claimed: list[Row] = []
        for _ in range(ROWS_AT_ONCE):
            if len(claimed) >= room or self._around.stop.asked:
                return claimed, False
            planned = next(rows, None)
            if planned is None:
                return claimed, True
            row = self._claim_row(planned)
            if row is not None:
                claimed.append(row)
        return claimed, False

    def _claim_row(self, planned: PlannedRow) -> Row | None:
        """Claim one row on disk; None: it is bad, or its custom id is taken, and it is recorded as such."""
        try:
            asks = parse_row(planned.text(self._lines))
        except BadRow as error:
            self._refuse(planned, error)
            return None
        item = Item(planned.row, planned.line, planned.size_bytes, asks.custom_id)
        first_line = self._store.claim(item) if planned.first_line is None else planned.first_line
        if first_line is not None:
            self._refuse(planned, duplicate_custom_id(asks.custom_id, line=planned.line, first_line=first_line))
            return None
        self._in_flight.add(planned.row)
        return Row(item, planned, asks)

    def _hand_over(self, row: Row) -> None:
        """Give a claimed row to the engine, with the tokens of the plan, if its answer is not known."""
        with self._one_row(row):
            tokens = None if row.planned.tokens is None else unpack_tokens(row.planned.tokens)
            request = self._loaded.request(row.asks, tokens)
            row = row._replace(cache_key=self._cache.key(request))
            known = self._cache.get(row.cache_key)
            if known is None:
                expected, shared = self._queue.expect(row.planned), row.planned.shared_tokens
                self._running[self._loaded.engine.add(request, expected, shared_tokens=shared)] = row
            elif self._answer(row, known):
                self._store.count("from_cache")

    def _step(self) -> list[Event]:
        self._around.phases.enter(Phase.STEP)
        return self._loaded.engine.step()

    def _record(self, event: Event) -> None:
        """Write down what became of a row; on disk with the next commit."""
        if isinstance(event, Finished):
            row = self._running.pop(event.number)
            with self._one_row(row):
                self._answer(row, event.answer)
                self._cache.put(row.cache_key, event.answer)
        elif isinstance(event, Failed):
            self._fail(self._running.pop(event.number), event.error)

    def _commit(self) -> None:
        """Put what is recorded on disk, then bring the files up to it."""
        self._around.phases.enter(Phase.COMMIT)
        self._read.check()
        self._store.commit()
        self._around.phases.enter(Phase.EXPORT)
        self._export.advance()

    @contextmanager
    def _one_row(self, row: Row) -> Iterator[None]:
        """The one place where an error that is about one row is caught: it becomes the row's answer."""
        try:
            yield
        except RowError as error:
            self._fail(row, error)
        except PenstockError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a row does to the code, it must not end the job
            found = f"{type(error).__name__}: {error}"
            self._around.watch.warn(f"line {row.item.line}: {found}")
            self._fail(row, RowError(RowErrorCode.INTERNAL, found))

    # --- results ------------------------------------------------------------------------------------------------

    def _answer(self, row: Row, answer: Answer) -> bool:
        """Whether the row is finished: not, if the job is to stop before all that ask the same are."""
        if not self._finish_equals(row, lambda equal: self._answer_result(equal, answer, answer.prompt_tokens)):
            return False
        self._finish(row.item, self._answer_result(row, answer, answer.cached_tokens))
        if self._queue.learn(row.planned, answer.output_tokens):
            for number, running in self._running.items():
                self._loaded.engine.set_expected(number, self._queue.expect(running.planned))
        return True

    def _answer_result(self, row: Row, answer: Answer, cached_tokens: int) -> Result:
        output = answer_line(
            row.asks,
            answer,
            fingerprint=self._fingerprint,
            number=row.item.row,
            model=self._about.model,
            token_text=self._loaded.token_text,
        )
        return Result(row.item.row, output, None, answer.prompt_tokens, cached_tokens, answer.output_tokens)

    def _fail(self, row: Row, error: RowError) -> None:
        if self._finish_equals(row, lambda equal: self._error_result(equal.item, error, equal.asks.custom_id)):
            self._finish(row.item, self._error_result(row.item, error, row.asks.custom_id))

    def _finish_equals(self, row: Row, result: Callable[[Row], Result]) -> bool:
        """Claim and finish the rows that ask the same; False where the job is to stop before all of them are.

        One commit holds a bounded number of them, so the row itself comes last: as long as it has no result, a process
        that goes on computes it again, and finds the others by it.
        """
        if row.planned.tokens is None:
            return True
        with closing(self._queue.followers(row.item.row)) as parts:
            for number, part in enumerate(parts):
                if number and not self._go_on():
                    return False
                for follower in filter(None, map(self._claim_row, part)):
                    self._store.count("equal_rows")
                    self._finish(follower.item, result(follower))
        return True

    def _go_on(self) -> bool:
        """Commit in the midst of recording; whether to go on with it."""
        self._commit()
        self._around.phases.enter(Phase.RECORD)
        self._around.watch.update(self._position)
        return self._why_stop() is None

    def _refuse(self, planned: PlannedRow, error: BadRow) -> None:
        item = Item(planned.row, planned.line, planned.size_bytes, None)
        self._store.add_refused(item)
        self._finish(item, self._error_result(item, error, error.custom_id))

    def _error_result(self, item: Item, error: RowError, custom_id: str | None) -> Result:
        output = error_line(error, custom_id=custom_id, fingerprint=self._fingerprint, number=item.row, line=item.line)
        return Result(item.row, output, str(error.code))

    def _finish(self, item: Item, result: Result) -> None:
        self._store.finish(result)
        self._in_flight.discard(item.row)
        failed = 0 if result.code is None else 1
        tokens = (result.prompt_tokens, result.cached_tokens, result.output_tokens)
        more = Totals(1, failed, *tokens, item.size_bytes)
        self._totals = Totals(*(a + b for a, b in zip(self._totals, more, strict=True)))

    # --- after a crash ------------------------------------------------------------------------------------------

    def _suspects(self) -> Iterator[PlannedRow]:
        """The rows that were in flight at too many crashes."""
        found = list(self._queue.suspects())
        if found:
            crashes = f"{len(found)} rows were in flight at {CRASHES_TO_SUSPECT} crashes"
            self._around.watch.warn(f"{crashes}; they run alone now")
        yield from found

    def settle_crashes(self) -> None:
        """Count a crash for the rows that a dead process had in flight; one that crashed alone is given up."""
        crashed = self._store.count_crashes()
        if crashed:
            self._around.watch.note(f"the last process died; {len(crashed)} rows were in flight and run again")
        for row, crashes in crashed:
            if crashes <= CRASHES_TO_SUSPECT:
                continue
            found = f"the process died {crashes} times while it computed this row, the last time with no other row"
            self._give_up(row, RowError(RowErrorCode.INTERNAL, found))
        self._store.commit()

    def _give_up(self, row: int, error: RowError) -> None:
        """End a row that cannot be computed, and the rows that ask the same."""
        planned = self._queue.find(row)
        self._fail(Row(self._store.item(row), planned, parse_row(planned.text(self._lines))), error)

    # --- the outside --------------------------------------------------------------------------------------------

    def _stop_if_asked(self) -> None:
        reason = self._why_stop()
        if reason is not None:
            raise reason

    def _why_stop(self) -> Interrupted | None:
        if self._around.stop.asked is not None:
            return Interrupted(f"stopped by {self._around.stop.asked.name}")
        late, done = self._around.late, self._totals.done
        if late is not None and done < self._about.rows:
            return OutOfTime(f"stopped by {late.asked}, with {done} of {self._about.rows} rows done")
        return None

    def _position(self) -> Position:
        stats, at, start = self._loaded.engine.stats(), self._totals, self._start
        return Position(
            rows=self._about.rows,
            done=at.done,
            failed=at.failed,
            reused=start.done,
            input_bytes=self._about.input_bytes,
            done_bytes=at.size_bytes,
            prompt_tokens=at.prompt_tokens,
            output_tokens=at.output_tokens,
            run_prompt_tokens=at.prompt_tokens - start.prompt_tokens,
            run_output_tokens=at.output_tokens - start.output_tokens,
            run_processed_tokens=stats.computed_tokens + stats.cached_tokens,
            run_s=self._around.timer.run_s(),
            kv_used_tokens=stats.kv_used_tokens,
            kv_total_tokens=stats.kv_total_tokens,
        )
