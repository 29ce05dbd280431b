"""From lines of the input to what a plan keeps of them, on all cores.

Owns the workers: processes that `serve`, which get batches of lines through their standard input and answer with
prepared rows. They end when their input does, so none outlives a killed job. A worker that dies takes
its batch with it: those rows count as not tokenized, and the job will meet them again where crashes are counted.
One idea: preparing a row is a pure function of its line, so who does it, and how many at once, changes nothing.
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple, Protocol

from penstock.config import resident_bytes
from penstock.jobs.formats import InputLine
from penstock.jobs.plan_file import Prepared
from penstock.planner import pack_tokens
from penstock.protocol import BadRow, BatchRow, parse_row, priority_of
from penstock.request import Request

WITHOUT_PRIORITY = "without_priority"  # what rows are counted as that have no number where the priority should be
LOWEST_PRIORITY = -sys.float_info.max
BATCHES_BYTES = 24 * 2**20  # that a worker takes of memory for batches of long lines, in it and in the job's process


class Setup(Protocol):
    """What tells how the rows of a job become requests; it is sent to the workers, so it must be small."""

    @property
    def model(self) -> str:
        """The name of the job's model."""

    @property
    def context_tokens(self) -> int:
        """The most tokens that a prompt and its answer may have together."""

    def open(self) -> Callable[[BatchRow], Request]:
        """Open the tokenizer: what makes a request of a row, or raises `RowError`."""

    def key(self) -> str:
        """What the requests depend on, beside the job's identity."""


class Batch(NamedTuple):
    """Prepared rows, in order, and what the summary tells of them; `lost`: how many died with their worker."""

    rows: list[Prepared]
    counts: dict[str, int]
    lost: int = 0


class Preparer:
    """Prepares rows in this process; `priority` names the field of their metadata that says what runs first."""

    def __init__(self, setup: Setup, priority: str | None = None) -> None:
        self._setup = setup
        self._priority = priority
        self._request = setup.open()

    def prepare(self, lines: Iterable[InputLine]) -> Batch:
        """What a plan keeps of each line, whatever the line is."""
        counts: Counter[str] = Counter()
        rows = [self._row(line, counts) for line in lines]
        return Batch(rows, dict(counts))

    def _row(self, line: InputLine, counts: Counter[str]) -> Prepared:
        found, asks = identify(line, self._setup.model, counts)
        if asks is None:
            return found
        try:
            request = self._request(asks)
        except Exception:  # noqa: BLE001  it comes again, and is written down, when the row is claimed
            return found
        return found._replace(
            tokens=pack_tokens(request.prompt_tokens),
            max_tokens=asks.params.max_tokens,
            room_tokens=self._setup.context_tokens - len(request.prompt_tokens),
            samples=asks.params.n,
            priority=self._rank(asks, counts),
            fingerprint=bytes.fromhex(request.fingerprint())[:16] if request.is_repeatable else None,
        )

    def _rank(self, asks: BatchRow, counts: Counter[str]) -> float:
        """A row's priority; the lowest one where it has none, which is counted."""
        if self._priority is None:
            return 0.0
        found = priority_of(asks, self._priority)
        if found is None:
            counts[WITHOUT_PRIORITY] += 1
            return LOWEST_PRIORITY
        return found


def identify(line: InputLine, model: str, counts: Counter[str]) -> tuple[Prepared, BatchRow | None]:
    """What is known of a line without a tokenizer; adds to what is counted of rows. No row: it is a bad one."""
    known = (line.row, line.line, len(line.data), line.at, line.data if line.at is None else None)
    try:
        asks = parse_row(line.data)
    except BadRow:
        return Prepared(*known, None), None
    for name in asks.ignored:
        counts[f"ignored:{name}"] += 1
    if asks.model is not None and asks.model != model:
        counts["other_models"] += 1
    return Prepared(*known, blake2b(asks.custom_id.encode(), digest_size=16).digest()), asks


class Workers:
    """Some processes that prepare rows, each one batch at a time; batches come back in order.

    There are `number` of them, or as many as `spare_bytes` of memory allow: one at least, and each takes what the first
    one took.
    """

    def __init__(
        self, setup: Setup, number: int, priority: str | None = None, *, spare_bytes: int | None = None
    ) -> None:
        self._setup = setup
        self._priority = priority
        self._workers = [self._start()]
        if spare_bytes is not None:
            number = min(number, spare_bytes // self._first_bytes())
        self._workers += [self._start() for _ in range(number - 1)]

    def __len__(self) -> int:
        return len(self._workers)

    def _start(self) -> subprocess.Popen[bytes]:
        # In a session of its own: Ctrl-C in a terminal reaches the job, whose end then ends the worker.
        worker = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert worker.stdin is not None
        pickle.dump((self._setup, self._priority), worker.stdin)
        worker.stdin.flush()
        return worker

    def _first_bytes(self) -> int:
        """What the first worker takes of memory: it has opened its tokenizer when it has prepared nothing."""
        self._send(0, [])
        self._receive(0, [[]])
        return resident_bytes(self._workers[0].pid)[1] + BATCHES_BYTES

    def prepare(self, batches: Iterable[list[InputLine]]) -> Iterator[Batch]:
        """Prepare batches on all workers at once."""
        pending: list[list[InputLine] | None] = [None] * len(self._workers)
        at = 0
        for lines in batches:
            if pending[at] is not None:
                yield self._receive(at, pending)
            pending[at] = lines
            self._send(at, lines)
            at = (at + 1) % len(self._workers)
        for _ in self._workers:
            if pending[at] is not None:
                yield self._receive(at, pending)
            at = (at + 1) % len(self._workers)

    def _send(self, at: int, lines: list[InputLine]) -> None:
        stdin = self._workers[at].stdin
        assert stdin is not None
        with suppress(BrokenPipeError):  # it died; `_receive` finds out
            pickle.dump(_columns(lines), stdin)
            stdin.flush()

    def _receive(self, at: int, pending: list[list[InputLine] | None]) -> Batch:
        lines, worker = pending[at], self._workers[at]
        pending[at] = None
        assert lines is not None
        assert worker.stdout is not None
        try:
            columns, counted = pickle.load(worker.stdout)
        except (EOFError, pickle.UnpicklingError):
            self._end(worker)
            self._workers[at] = self._start()
            counts: Counter[str] = Counter()
            return Batch([identify(line, self._setup.model, counts)[0] for line in lines], counts, lost=len(lines))
        return Batch(list(map(Prepared._make, zip(*columns, strict=True))), counted)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            self._end(worker)

    @staticmethod
    def _end(worker: subprocess.Popen[bytes]) -> None:
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what was left in it goes nowhere
                pipe.close()


def _columns(rows: Iterable[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Rows as they go through a pipe: by columns, since to name each row's type takes longer than what is in it."""
    return list(zip(*rows, strict=True))


def serve() -> None:
    """Prepare batches from the standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preparer = Preparer(*pickle.load(sys.stdin.buffer))
    while True:
        try:
            lines = map(InputLine._make, zip(*pickle.load(sys.stdin.buffer), strict=True))
        except EOFError:
            return
        batch = preparer.prepare(lines)
        pickle.dump((_columns(batch.rows), batch.counts), sys.stdout.buffer)
        sys.stdout.buffer.flush()
