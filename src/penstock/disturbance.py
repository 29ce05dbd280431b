"""What else the machine did while something was measured, and when it did too much for the times to be believed.

Owns the reading of the kernel's count of processor time (Linux's; elsewhere nothing is known, and nothing is said) and
the judgement of what was read. One idea: what others had, or the hypervisor kept, is what the steps waited for, so a
machine of which a share is taken takes 1 / (1 - share) times as long, about.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from penstock.config import clock_ticks_per_s
from penstock.forecast import LEAST_ERROR
from penstock.profile import Disturbance, Profile

MOST_SHARE = LEAST_ERROR  # what a forecast reckons with anyhow: as much as a machine differs from day to day


class CpuTimes(NamedTuple):
    """Seconds of the processors that this process may use: all, the hypervisor's, those of work, those of own work."""

    all_s: float
    stolen_s: float
    busy_s: float
    own_s: float


def cpu_times(stat: Path = Path("/proc/stat")) -> CpuTimes | None:
    """The times until now; None: this system does not count them."""
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
        counts = [[int(ticks) for ticks in line[1:9]] for line in lines if line and line[0] in usable]
        user, nice, system, idle, waiting, irq, softirq, stolen = map(sum, zip(*counts, strict=True))
    except (OSError, ValueError):
        return None
    busy = user + nice + system + irq + softirq
    all_s, stolen_s, busy_s = (ticks / clock_ticks_per_s() for ticks in (busy + idle + waiting + stolen, stolen, busy))
    return CpuTimes(all_s, stolen_s, busy_s, time.process_time())


def disturbance(before: CpuTimes | None, after: CpuTimes | None) -> Disturbance | None:
    """What was taken from this process between two moments; None: it is not known."""
    if before is None or after is None or after.all_s <= before.all_s:
        return None
    all_s, stolen_s, busy_s, own_s = (b - a for a, b in zip(before, after, strict=True))
    return Disturbance(max(0.0, stolen_s) / all_s, max(0.0, busy_s - own_s) / all_s)


def describe_disturbance(profile: Profile, again: str = "penstock doctor --measure") -> str | None:
    """That a profile's times may be too long, and that the command `again` measures anew; None: all is well."""
    found = profile.disturbance
    if found is None or found.share <= MOST_SHARE or profile.about["device"] != "cpu":
        return None  # a GPU does not wait for processors
    factor = 1 / max(0.01, 1 - found.share)
    return (
        f"while the profile was measured, {found.others:.0%} of the processors went to other processes and "
        f"{found.stolen:.0%} to the hypervisor, so its times may be too long, by a factor of about {factor:.1f}; "
        f"to measure again, on an idle machine: {again}"
    )
