"""`StopSignals`: what Ctrl-C and a polite kill mean to a job.

The first one asks: the step in progress is finished and committed. The second one does not wait for the step. The
third is the system's own: the process dies at once. Whichever it is, the same command goes on.
While nothing runs that is worth finishing (`is_graceful` is False: start-up, loading) the first one acts as the second.
SIGTERM and SIGHUP (a closed terminal, unless nohup ignores it) count like Ctrl-C, but with exit code 3.
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Listens while it is entered; main thread only. `asked` is the first signal that came."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.is_graceful = False
        self._before: dict[signal.Signals, object] = {}

    @property
    def exit_code(self) -> int:
        """The exit code of a process that was stopped: 130 by Ctrl-C, else 3."""
        return 130 if self.asked in (None, signal.SIGINT) else 3

    def __enter__(self) -> StopSignals:
        for name in SIGNALS:
            if signal.getsignal(name) is not signal.SIG_IGN:
                self._before[name] = signal.signal(name, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)  # type: ignore[arg-type]  # what signal.signal itself gave

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_first = self.asked is None
        self.asked = self.asked or signal.Signals(number)
        if is_first and self.is_graceful:
            os.write(2, b"\nstopping after this step (once more: at once)\n")
            return
        for name in self._before:
            signal.signal(name, signal.SIG_DFL)
        raise KeyboardInterrupt
