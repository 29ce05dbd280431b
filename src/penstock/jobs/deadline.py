"""`Deadline`: when a run stops by itself, from what was asked for, and whether the job is expected to fit before it.

Owns the arithmetic of times; the clocks are passed in. A time of day is turned into a moment of the process's own clock
once, so a wall clock that is set meanwhile changes nothing.
One idea: a deadline stops a run as Ctrl-C does, after a step, with everything finished committed; it never changes what
a row's answer is.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from typing import NamedTuple

from penstock.errors import ConfigError
from penstock.jobs.progress import duration
from penstock.jobs.timeline import Prediction

HOUR_S = 3600.0
MAX_HOURS = 24 * 366


class Deadline(NamedTuple):
    """The moment to stop at, in seconds on the process's clock, and how it was asked for."""

    at_s: float
    asked: str

    def reach(self, prediction: Prediction | None, *, now_s: float) -> Reach:
        """How far a job gets before it, as far as is known, that begins now."""
        return Reach(self.asked, self.at_s - now_s, prediction)


class Reach(NamedTuple):
    """How far a job is expected to get before its deadline, `left_s` seconds from now; what is expected may be None."""

    asked: str
    left_s: float
    prediction: Prediction | None

    @property
    def fits(self) -> bool | None:
        """Whether the job will be done by then; None: that is not sure, or not known."""
        if self.prediction is None or self.prediction.least_s <= self.left_s < self.prediction.most_s:
            return None
        return self.prediction.most_s <= self.left_s

    @property
    def rows_done(self) -> int | None:
        """The rows that are expected to be done by then; None: not known."""
        if self.prediction is None:
            return None
        if self.prediction.predicted_s <= self.left_s:
            return self.prediction.rows
        return max((at.rows for at in self.prediction.curve if at.at_s <= self.left_s), default=0)

    @property
    def rows_later(self) -> int | None:
        """The others; None: not known."""
        return None if self.prediction is None or self.rows_done is None else self.prediction.rows - self.rows_done

    def describe(self) -> str:
        """It as a sentence."""
        rest = "what is not done by then stays for the same command"
        if self.left_s <= 0:
            return f"{self.asked} has passed before the first row; {rest}"
        stop = f"{self.asked} is in {duration(self.left_s)}"
        if self.prediction is None:
            return f"{stop}; how long this job takes is not known, so neither is whether it fits: {rest}"
        rows, seconds, low_s, high_s = self.prediction[:4]
        expected = f"the job is expected to take {duration(seconds)} ({duration(low_s)} to {duration(high_s)})"
        if self.fits:
            return f"{stop}; {expected}, so it fits"
        if self.rows_later:
            done = f"about {self.rows_done:,} of {rows:,} rows are expected to be done by then"
            rest = f"{done}, and {self.rows_later:,} to stay for the same command"
        return f"{stop}; {expected}, so it {'may' if self.fits is None else 'does'} not fit: {rest}"

    def as_json(self) -> dict[str, object]:
        """It for programs."""
        names = ("asked", "left_s", "fits", "rows_done", "rows_later")
        return {**{name: getattr(self, name) for name in names}, "said": self.describe()}


def read_deadline(
    finish_by: str | None, max_hours: str | None, *, now: datetime, now_s: float, started_s: float
) -> Deadline | None:
    """The earlier one of what was asked for; None: nothing was.

    Args:
        finish_by: a local time of day (`07:00`, the next one), or a date with a time in ISO format, with or without
            an offset; max_hours: hours since the process started.
        now: the time, with its zone; now_s: the same moment on the process's clock; started_s: when it started.

    Raises:
        ConfigError: they cannot be read, or lie in the past.
    """
    found = []
    if finish_by is not None:
        moment = next_time(finish_by, now)
        found.append(Deadline(now_s + (moment - now).total_seconds(), f"--finish-by {finish_by}"))
    if max_hours is not None:
        found.append(Deadline(started_s + read_hours(max_hours) * HOUR_S, f"--max-hours {max_hours}"))
    return min(found, default=None)


def next_time(text: str, now: datetime) -> datetime:
    """The next moment that a text names.

    Raises:
        ConfigError: it names none, or one in the past.
    """
    limit = "a local time such as 07:00, or a date and a time such as 2027-01-31T07:00 (with an offset, if not local)"
    try:
        if re.fullmatch(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?", text):
            return _next_time_of_day([int(part) for part in text.split(":")], now)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--finish-by is {text!r}; it must be {limit}") from None
    if not re.search(r"[T ]", text):
        raise ConfigError(f"--finish-by is {text!r}, which has no time of day; it must be {limit}")
    moment = moment.astimezone() if moment.tzinfo is None else moment
    if moment <= now:
        ago = duration((now - moment).total_seconds())
        raise ConfigError(
            f"--finish-by is {text!r}, which was {ago} ago (it is {now:%Y-%m-%d %H:%M}); give a later one"
        )
    return moment


def _next_time_of_day(parts: list[int], now: datetime) -> datetime:
    """That time today or, where it is past, tomorrow, by the local clock of that day."""
    local = now.replace(tzinfo=None)
    moment = local.replace(hour=parts[0], minute=parts[1], second=parts[2] if len(parts) > 2 else 0, microsecond=0)
    for candidate in (moment, moment + timedelta(days=1)):
        found = candidate.astimezone(None)
        if found > now:
            return found
    return (moment + timedelta(days=2)).astimezone(None)


def read_hours(text: str) -> float:
    """Hours, above 0.

    Raises:
        ConfigError: no such number.
    """
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours <= MAX_HOURS:
        raise ConfigError(f"--max-hours is {text!r}; it must be a number of hours above 0, and at most {MAX_HOURS}")
    return hours
