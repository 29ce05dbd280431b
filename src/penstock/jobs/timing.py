"""`Timer`: where the seconds of a run go, under the rule wall_s = load_s + engine_s.

Loading is from the start of the process until the engine can take rows, less the reading of the input in it; everything
else counts as the engine's, whoever did it. The clock is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a run."""

    wall_s: float
    load_s: float
    engine_s: float


class Timer:
    """Measures a run. `started_s` is when the process started, on `clock`."""

    def __init__(self, started_s: float, clock: Callable[[], float]) -> None:
        self._started_s = started_s
        self._clock = clock
        self._reading_s = 0.0
        self._ready_s: float | None = None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Reading the input before the engine is ready is not loading."""
        before = self._clock()
        yield
        self._reading_s += self._clock() - before

    def ready(self) -> None:
        """The engine can take rows."""
        self._ready_s = self._clock()

    def now_s(self) -> float:
        """The time on the run's clock."""
        return self._clock()

    def run_s(self) -> float:
        """Seconds since the engine was ready."""
        return 0.0 if self._ready_s is None else self._clock() - self._ready_s

    def times(self) -> Times:
        """The seconds until now."""
        now = self._clock()
        load = max(0.0, (now if self._ready_s is None else self._ready_s) - self._started_s - self._reading_s)
        load_s, engine_s = round(load, 3), round(now - self._started_s - load, 3)
        return Times(round(load_s + engine_s, 3), load_s, engine_s)
