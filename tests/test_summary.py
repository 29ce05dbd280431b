"""The numbers and the words of a summary, and the times in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import ConfigError
from penstock.jobs.phases import Phase, PhaseTrace
from penstock.jobs.summary import Summary, report
from penstock.jobs.timing import Timer, Times

SUMMARY = Summary(
    rows=10,
    done=10,
    failed=2,
    reused=3,
    prompt_tokens=700,
    cached_tokens=100,
    computed_tokens=900,
    output_tokens=300,
    wall_s=62.5,
    load_s=12.5,
    engine_s=50.0,
    row_exact=True,
    errors="out.errors",
)


def test_reading_before_the_engine_is_ready_is_not_loading() -> None:
    now = [100.0]
    timer = Timer(90.0, lambda: now[0])
    with timer.reading():
        now[0] += 4.0
    now[0] += 6.0
    timer.ready()
    now[0] += 5.0
    assert timer.times() == Times(wall_s=25.0, load_s=16.0, engine_s=9.0)
    assert timer.run_s() == 5.0


def test_a_run_that_never_loaded_has_loaded_all_the_time() -> None:
    assert Timer(90.0, lambda: 92.0).times() == Times(wall_s=2.0, load_s=2.0, engine_s=0.0)


def test_people_read_what_counts() -> None:
    assert report(SUMMARY) == [
        "10 of 10 rows done: 8 answered, 2 failed; 3 were done before",
        "1m02s in all: 12.5 s loading, 50.0 s for 700 prompt tokens (100 from the prefix cache) and 300 output tokens, "
        "20 a second",
    ]


def test_people_read_what_was_unusual() -> None:
    fields = {**SUMMARY.as_json(), "failures": {"internal": 2}, "ignored": {"user": 4}, "other_models": 5}
    lines = report(Summary(**{**fields, "row_exact": False}))  # type: ignore[arg-type]
    assert lines[2:] == [
        "failed rows: 2 internal; they are in out.errors",
        "fields accepted without effect: user (4 rows)",
        "5 rows name another model; the job's model answered them",
        "not row-exact: near-ties may differ from a run that computes everything anew",
    ]


def test_the_seconds_of_a_phase_are_those_until_the_next() -> None:
    now = [100.0]
    trace = PhaseTrace(None, lambda: now[0])
    now[0] += 50.0  # in no phase
    for phase, seconds in ((Phase.STEP, 3.0), (Phase.COMMIT, 2.0), (Phase.STEP, 1.0)):
        trace.enter(phase)
        now[0] += seconds
    assert {phase: s for phase, s in trace.seconds().items() if s} == {Phase.STEP: 4.0, Phase.COMMIT: 2.0}


def test_the_phase_stands_in_its_file_padded(tmp_path: Path) -> None:
    trace = PhaseTrace(str(tmp_path / "phase"))
    trace.enter(Phase.START_UP)
    trace.enter(Phase.STEP)
    assert (tmp_path / "phase").read_bytes() == b"step            "
    PhaseTrace(None).enter(Phase.STEP)
    with pytest.raises(ConfigError, match=r"the phase file .* cannot be opened"):
        PhaseTrace(str(tmp_path / "no" / "phase"))
