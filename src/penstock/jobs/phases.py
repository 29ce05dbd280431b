"""`PhaseTrace`: the phase a job is in, for other processes, and the seconds that each phase took.

Owns one small file, if it was asked for (PENSTOCK_PHASE_FILE). A change of phase costs a look at the clock, and one
`pwrite` where there is a file.
The file keeps its last word when the process is killed, so the kill test knows which phase it hit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from enum import StrEnum

from penstock.errors import ConfigError

WIDTH_BYTES = 16


class Phase(StrEnum):
    """What a job is doing."""

    START_UP = "start-up"
    LOAD = "load"
    PLAN = "plan"
    READ = "read"
    QUEUE = "queue"
    STEP = "step"
    RECORD = "record"
    COMMIT = "commit"
    EXPORT = "export"
    DONE = "done"


class PhaseTrace:
    """Tells the current phase to whoever reads the file, and keeps the seconds of those that are over."""

    def __init__(self, path: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now: Phase | None = None
        self._since_s = clock()
        self._seconds = dict.fromkeys(Phase, 0.0)
        try:
            self._fd = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(f"the phase file {path} cannot be opened: {error.strerror}") from None

    def enter(self, phase: Phase) -> None:
        """Say that a phase begins (and the one before it is over)."""
        if self._fd is not None:
            os.pwrite(self._fd, phase.ljust(WIDTH_BYTES).encode(), 0)
        now_s = self._clock()
        if self._now is not None:
            self._seconds[self._now] += now_s - self._since_s
        self._now, self._since_s = phase, now_s

    def seconds(self) -> dict[Phase, float]:
        """The seconds that each phase took so far, the current one included."""
        found = dict(self._seconds)
        if self._now is not None:
            found[self._now] += self._clock() - self._since_s
        return found
