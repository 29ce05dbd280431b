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


def describe_fit(deadline: Deadline, prediction: Prediction | None, *, now_s: float) -> str:
    """Whether a job is expected to fit, as a sentence; it is said before the first row runs."""
    left_s = deadline.at_s - now_s
    rest = "what is not done by then stays for the same command"
    if left_s <= 0:
        return f"{deadline.asked} has passed before the first row; {rest}"
    stop = f"{deadline.asked} is in {duration(left_s)}"
    if prediction is None:
        return f"{stop}; how long this job takes is not known, so neither is whether it fits: {rest}"
    seconds, low_s, high_s = prediction.predicted_s, prediction.least_s, prediction.most_s
    expected = f"the job is expected to take {duration(seconds)} ({duration(low_s)} to {duration(high_s)})"
    if high_s <= left_s:
        return f"{stop}; {expected}, so it fits"
    if low_s <= left_s:
        return f"{stop}; {expected}, so it may not fit: {rest}"
    return f"{stop}; {expected}, so it does not fit, and about {left_s / seconds:.0%} of it will be done: {rest}"
