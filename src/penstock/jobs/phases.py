"""`PhaseTrace`: the name of the phase a job is in, written where another process can read it.

Owns one small file, if it was asked for (PENSTOCK_PHASE_FILE), and costs one `pwrite` a phase; else nothing.
The file keeps its last word when the process is killed, so the kill test knows which phase it hit.
"""

from __future__ import annotations

import os
from enum import StrEnum

from penstock.errors import ConfigError

WIDTH_BYTES = 16


class Phase(StrEnum):
    """What a job is doing."""

    START_UP = "start-up"
    LOAD = "load"
    PLAN = "plan"
    READ = "read"
    STEP = "step"
    COMMIT = "commit"
    EXPORT = "export"
    DONE = "done"


class PhaseTrace:
    """Tells the current phase to whoever reads the file."""

    def __init__(self, path: str | None) -> None:
        try:
            self._fd = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(f"the phase file {path} cannot be opened: {error.strerror}") from None

    def enter(self, phase: Phase) -> None:
        """Say that a phase begins (and the one before it is over)."""
        if self._fd is not None:
            os.pwrite(self._fd, phase.ljust(WIDTH_BYTES).encode(), 0)
