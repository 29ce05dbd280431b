"""What a job tells while it runs: choices and notes as lines, progress as a bar, or as a plain line now and then.

Owns stderr while a job runs; the only module that knows rich. Decides nothing.
Time left comes from tokens, not rows, since rows differ: `estimate` says how.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, TextIO

from penstock.config import Choice

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_S = 10.0
REFRESH_EVERY_S = 0.2


class Position(NamedTuple):
    """How far a job has come.

    rows, input_bytes: of the whole input (uncompressed); done_bytes: of the lines that are done.
    prompt_tokens, output_tokens: of all rows that are done; the `run_` ones of those that this process did.
    run_processed_tokens: tokens that this process computed or found in its cache, finished rows or not.
    """

    rows: int
    done: int
    failed: int
    reused: int
    input_bytes: int
    done_bytes: int
    prompt_tokens: int
    output_tokens: int
    run_prompt_tokens: int
    run_output_tokens: int
    run_processed_tokens: int
    run_s: float
    kv_used_tokens: int = 0
    kv_total_tokens: int = 0


def estimate(position: Position) -> float | None:
    """Seconds left; None: too early to say.

    Tokens left = bytes left x prompt tokens a byte so far + rows left x output tokens a row so far, less what is
    processed of rows that are not finished. They are divided by the tokens a second of this process.
    """
    at = position
    if not at.prompt_tokens or not at.run_processed_tokens or at.run_s <= 0:
        return None
    prompt_tokens = (at.input_bytes - at.done_bytes) * at.prompt_tokens / at.done_bytes
    output_tokens = (at.rows - at.done) * at.output_tokens / at.done
    finished = at.run_prompt_tokens + at.run_output_tokens  # those of equal rows too, which are not processed
    under_way = max(0, at.run_processed_tokens - finished)
    left = max(0.0, prompt_tokens + output_tokens - under_way)
    return left * at.run_s / (finished + under_way)


def describe(position: Position) -> str:
    """A position as one plain line."""
    at = position
    seconds = max(at.run_s, 1e-9)
    share = at.kv_used_tokens / at.kv_total_tokens if at.kv_total_tokens else 0.0
    left = estimate(at)
    return (
        f"{at.done}/{at.rows} rows  {at.failed} failed  {at.reused} reused  "
        f"left {'?' if left is None else duration(left)}  prompt {at.run_prompt_tokens / seconds:.0f} tok/s  "
        f"output {at.run_output_tokens / seconds:.0f} tok/s  KV {share:.0%}"
    )


def duration(seconds: float) -> str:
    """Seconds as people read them: 42s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Watch:
    """Shows a job on a stream. `is_quiet` hides choices, notes and progress, but not warnings.

    `settings` and `warnings` keep what was told, for the summary. A stream that takes no more (a closed terminal) ends
    the showing, not the job.
    """

    def __init__(
        self, stream: TextIO | None = None, *, is_quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream or sys.stderr
        self._is_quiet = is_quiet
        self._is_broken = False
        self._clock = clock
        self._last_s = clock()
        self._bar: tuple[Progress, TaskID] | None = None
        self.settings: dict[str, str] = {}
        self.warnings: list[str] = []

    def choices(self, choices: Iterable[Choice]) -> None:
        """Print every resolved value with its source."""
        for name, value, source in choices:
            self.settings[name] = f"{value} ({source})"
            self.note(f"  {name:<14} {value:<12} ({source})")

    def note(self, text: str) -> None:
        """Print a line that is good to know."""
        if not self._is_quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        """Print a line that must be known, and keep it."""
        self.warnings.append(text)
        self._line(f"note: {text}")

    def update(self, position: Callable[[], Position]) -> None:
        """Show a position, if it is time to; it is worked out only then."""
        now = self._clock()
        every_s = REFRESH_EVERY_S if self._stream.isatty() else LINE_EVERY_S
        if self._is_quiet or now - self._last_s < every_s:
            return
        self._last_s = now
        if self._stream.isatty():
            self._show(lambda: self._draw(position()))
        else:
            self._line(describe(position()))

    def reading(self, rows: int) -> None:
        """Show how many rows have been read, if it is time to."""
        now = self._clock()
        if not self._is_quiet and now - self._last_s >= LINE_EVERY_S:
            self._last_s = now
            self._line(f"{rows} rows read and tokenized")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._show(self._bar[0].stop)
            self._bar = None

    def _show(self, write: Callable[[], None]) -> None:
        if self._is_broken:
            return
        try:
            write()
        except OSError as error:
            self._is_broken = True
            self.warnings.append(f"nothing more was shown, since writing to stderr failed: {error}")

    def _line(self, text: str) -> None:
        self._show(lambda: self._write(text))

    def _write(self, text: str) -> None:
        if self._bar is not None:
            self._bar[0].console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def _draw(self, position: Position) -> None:
        if self._bar is None:
            self._bar = _bar(self._stream, position.rows)
        progress, task = self._bar
        progress.update(task, completed=position.done, text=describe(position))
        progress.refresh()


def _bar(stream: TextIO, rows: int) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=10), TextColumn("{task.fields[text]}", markup=False))
    progress = Progress(*columns, console=Console(file=stream), auto_refresh=False, transient=True)
    progress.start()
    return progress, progress.add_task("", total=rows, text="")
