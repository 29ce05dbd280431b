"""Protects the judgement of a disturbed machine, and the count it rests on, beside a process that is really busy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.disturbance import CpuTimes, cpu_times, describe_disturbance, disturbance
from penstock.profile import Disturbance
from tests.profiles import profile

START = CpuTimes(all_s=1000.0, stolen_s=10.0, busy_s=500.0, own_s=5.0)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (CpuTimes(1020.0, 10.0, 518.0, 23.0), Disturbance(0.0, 0.0)),  # all that was done was our own
        (CpuTimes(1020.0, 10.0, 518.0, 24.0), Disturbance(0.0, 0.0)),  # two clocks differ by a little
        (CpuTimes(1020.0, 12.0, 518.0, 14.0), Disturbance(0.1, 0.45)),
        (CpuTimes(1020.0, 14.0, 510.0, 19.0), Disturbance(0.2, 0.0)),  # stolen, whatever we had
        (CpuTimes(1000.0, 10.0, 500.0, 6.0), None),  # a count that stands still
        (None, None),
    ],
)
def test_what_was_taken_is_what_was_stolen_and_what_others_did(
    after: CpuTimes | None, expected: Disturbance | None
) -> None:
    found = disturbance(START, after)
    assert found == (None if expected is None else pytest.approx(expected))
    assert disturbance(after, None) is None


@pytest.mark.parametrize(
    ("found", "device"), [(None, "cpu"), (Disturbance(0.05, 0.05), "cpu"), (Disturbance(0.2, 0.3), "cuda")]
)
def test_nothing_is_said_where_nothing_is_known_or_within_what_forecasts_allow_for(
    found: Disturbance | None, device: str
) -> None:
    assert describe_disturbance(replace(profile(), disturbance=found, about={"device": device})) is None


def test_a_disturbed_profile_says_what_was_seen_what_it_means_and_what_to_do() -> None:
    disturbed = replace(profile(), disturbance=Disturbance(0.1, 0.4))
    assert describe_disturbance(disturbed, "penstock doctor --measure --model demo") == (
        "while the profile was measured, 40% of the processors went to other processes and 10% to the hypervisor, so "
        "its times may be too long, by a factor of about 2.0; to measure again, on an idle machine: penstock doctor "
        "--measure --model demo"
    )


@pytest.fixture
def one_processor() -> Iterator[int]:
    """This process, and those that it starts, may use one processor only."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    yield min(usable)
    os.sched_setaffinity(0, usable)


def test_the_count_is_that_of_the_processors_that_may_be_used(one_processor: int, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    rest = f"cpu{one_processor}0 900 0 0 0 0 0 0 0 0 0\nintr 1 2 3\n"
    stat.write_text(f"cpu 9999 0 0 0 0 0 0 0 0 0\ncpu{one_processor} 100 10 200 3000 400 20 30 50 7 0\n{rest}")
    found = cpu_times(stat)
    assert found is not None
    ticks = [seconds * os.sysconf("SC_CLK_TCK") for seconds in found[:3]]
    assert ticks == pytest.approx([3810, 50, 360])
    for text in ("", rest, f"cpu{one_processor} 1 2 3\n"):
        stat.write_text(text)
        assert cpu_times(stat) is None
    assert cpu_times(tmp_path / "none") is None


@pytest.mark.usefixtures("one_processor")
def test_a_busy_process_beside_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            before = cpu_times()
            time.sleep(1.0)
            found = disturbance(before, cpu_times())
        finally:
            busy.kill()
    assert found is not None
    assert found.share > 0.3
