"""`Loop`: one process's work on a job, row by row; see `_drain` for the life of a row on one screen.

Owns the order in which things become durable, and the one place where a row's error is caught. The engine, the store
and the output files are passed in; only the rows in flight are in memory.
One idea: a row is claimed on disk before anything is done with it, and its result is on disk before it is exported, so
the process may die anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from penstock.engine import Event, Failed, Finished
from penstock.errors import Interrupted, PenstockError, RowError, RowErrorCode
from penstock.jobs.export import Export
from penstock.jobs.formats import InputLine, read_lines
from penstock.jobs.job import UnchangedInput
from penstock.jobs.loading import Loaded
from penstock.jobs.phases import Phase, PhaseTrace
from penstock.jobs.progress import Position, Watch
from penstock.jobs.stopping import StopSignals
from penstock.jobs.store import CRASHES_TO_SUSPECT, Item, Result, Store, Totals
from penstock.jobs.timing import Timer
from penstock.protocol import BadRow, BatchRow, answer_line, duplicate_custom_id, error_line, parse_row
from penstock.request import Answer

ROWS_AT_ONCE = 512  # lines taken from the input between two steps, at most: bad rows take no room in the engine


class Surroundings(NamedTuple):
    """What a job runs in, beside its files and its model."""

    timer: Timer
    watch: Watch
    stop: StopSignals
    phases: PhaseTrace


class Row(NamedTuple):
    """A row that was claimed: its item in the store, and what it asks."""

    item: Item
    asks: BatchRow


class Loop:
    """Work on one store. Invariant: when a step begins, the rows in flight on disk are those in `_running`."""

    def __init__(
        self, store: Store, loaded: Loaded, *, read: UnchangedInput, export: Export, around: Surroundings
    ) -> None:
        self._store = store
        self._loaded = loaded
        self._read = read
        self._export = export
        self._around = around
        self._about = store.about()
        self._fingerprint: str = store.meta()["fingerprint"]
        self._totals = self._start = store.totals()
        self._last_row = store.last_row()
        self._running: dict[int, Row] = {}  # by the engine's number

    def run(self) -> None:
        """Finish every row that has no result.

        Raises:
            Interrupted: a signal asked to stop; everything is committed. StorageFailed: the disk failed.
        """
        self._drain(self._missing(), at_once=self._loaded.at_once)
        self._drain(self._suspects(), at_once=1)

    # --- the life of a row --------------------------------------------------------------------------------------

    def _drain(self, lines: Iterator[InputLine], *, at_once: int) -> None:
        """Read, claim, commit; then tokenize and queue; then step, and record what ended; commit, export; and again."""
        is_over = False
        while not is_over:
            claimed, is_ended = self._claim(lines, room=at_once - len(self._running))
            self._commit()  # what the last step finished, and these claims
            self._stop_if_asked()
            for row in claimed:
                self._queue(row)
            if self._running:
                for event in self._step():
                    self._record(event)
            is_over = is_ended and not self._running
            self._around.watch.update(self._position)
        self._commit()

    def _claim(self, lines: Iterator[InputLine], *, room: int) -> tuple[list[Row], bool]:
        """Take up to `room` rows that can run; bad ones are recorded. Second: whether the input is at its end."""
        self._around.phases.enter(Phase.READ)
        claimed: list[Row] = []
        for _ in range(ROWS_AT_ONCE):
            if len(claimed) >= room or self._around.stop.asked:
                return claimed, False
            line = next(lines, None)
            if line is None:
                return claimed, True
            row = self._claim_line(line)
            if row is not None:
                claimed.append(row)
        return claimed, False

    def _claim_line(self, line: InputLine) -> Row | None:
        """Claim one row on disk; None: it is bad, or a duplicate, and recorded as such."""
        try:
            asks = parse_row(line.data)
        except BadRow as error:
            self._refuse(line, error)
            return None
        item = Item(line.row, line.line, len(line.data), asks.custom_id)
        first_line = self._store.claim(item)
        if first_line is not None:
            self._refuse(line, duplicate_custom_id(asks.custom_id, line=line.line, first_line=first_line))
            return None
        if self._last_row is None or line.row > self._last_row:
            self._count(asks)
        return Row(item, asks)

    def _queue(self, row: Row) -> None:
        """Tokenize a claimed row and give it to the engine."""
        with self._one_row(row):
            self._running[self._loaded.engine.add(self._loaded.request(row.asks))] = row

    def _step(self) -> list[Event]:
        self._around.phases.enter(Phase.STEP)
        return self._loaded.engine.step()

    def _record(self, event: Event) -> None:
        """Write down what became of a row; on disk with the next commit."""
        if isinstance(event, Finished):
            row = self._running.pop(event.number)
            with self._one_row(row):
                self._answer(row, event.answer)
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

    def _answer(self, row: Row, answer: Answer) -> None:
        output = answer_line(
            row.asks,
            answer,
            fingerprint=self._fingerprint,
            number=row.item.row,
            model=self._about.model,
            token_text=self._loaded.token_text,
        )
        tokens = (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens)
        self._finish(row.item, Result(row.item.row, output, None, *tokens))

    def _fail(self, row: Row, error: RowError) -> None:
        self._finish(row.item, self._error_result(row.item, error, row.asks.custom_id))

    def _refuse(self, line: InputLine, error: BadRow) -> None:
        item = Item(line.row, line.line, len(line.data), None)
        self._store.add_refused(item)
        self._finish(item, self._error_result(item, error, error.custom_id))

    def _error_result(self, item: Item, error: RowError, custom_id: str | None) -> Result:
        output = error_line(error, custom_id=custom_id, fingerprint=self._fingerprint, number=item.row, line=item.line)
        return Result(item.row, output, str(error.code))

    def _finish(self, item: Item, result: Result) -> None:
        self._store.finish(result)
        failed = 0 if result.code is None else 1
        tokens = (result.prompt_tokens, result.cached_tokens, result.output_tokens)
        more = Totals(1, failed, *tokens, item.size_bytes)
        self._totals = Totals(*(a + b for a, b in zip(self._totals, more, strict=True)))

    def _count(self, asks: BatchRow) -> None:
        """Count what the summary tells of rows, once a row."""
        for name in asks.ignored:
            self._store.count(f"ignored:{name}")
        if asks.model is not None and asks.model != self._about.model:
            self._store.count("other_models")

    # --- which rows ---------------------------------------------------------------------------------------------

    def _missing(self) -> Iterator[InputLine]:
        """The rows without a result, but for those that run last, alone."""
        for line in read_lines(self._read.path):
            if line.row >= self._about.rows:
                return  # the input grew; the next commit says so
            if line.row < self._export.num_rows:
                continue
            state = self._store.state(line.row) if line.row <= (self._last_row or 0) else None
            if state is None or not (state.is_done or state.crashes >= CRASHES_TO_SUSPECT):
                yield line

    def _suspects(self) -> Iterator[InputLine]:
        """The rows that were in flight at too many crashes."""
        wanted = set(self._store.suspects())
        if not wanted:
            return
        self._around.watch.warn(
            f"{len(wanted)} rows were in flight at {CRASHES_TO_SUSPECT} crashes; they run alone now"
        )
        for line in read_lines(self._read.path):
            if line.row in wanted:
                yield line

    def settle_crashes(self) -> None:
        """Count a crash for the rows that a dead process had in flight; one that crashed alone is given up."""
        crashed = self._store.count_crashes()
        if crashed:
            self._around.watch.note(f"the last process died; {len(crashed)} rows were in flight and run again")
        for row, crashes in crashed:
            if crashes <= CRASHES_TO_SUSPECT:
                continue
            item = self._store.item(row)
            found = f"the process died {crashes} times while it computed this row, the last time with no other row"
            error = RowError(RowErrorCode.INTERNAL, found)
            self._finish(item, self._error_result(item, error, item.custom_id))
        self._store.commit()

    # --- the outside --------------------------------------------------------------------------------------------

    def _stop_if_asked(self) -> None:
        if self._around.stop.asked is not None:
            raise Interrupted(f"stopped by {self._around.stop.asked.name}")

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
