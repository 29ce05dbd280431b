"""Deadlines: what times mean, what is said before the start, and that a run stops at one with everything kept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from penstock.errors import ConfigError, OutOfTime
from penstock.jobs import planning
from penstock.jobs.deadline import Deadline, next_time, read_deadline, read_hours
from penstock.jobs.timeline import PredictedAt, Prediction
from penstock.protocol import BatchRow
from penstock.request import Request
from tests.job_runs import (
    PROGRAM,
    REPOSITORY,
    ToyEngine,
    ToyModel,
    ToySetup,
    job_at,
    row,
    run_job,
    tokens_of,
    write_rows,
)


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is that of a place whose clock is changed twice a year."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone()


@pytest.mark.parametrize(
    ("text", "now", "expected"),
    [
        ("07:00", "2026-11-25T22:00", "2026-11-26T07:00"),
        ("7:00", "2026-11-25T06:59", "2026-11-25T07:00"),
        ("07:00", "2026-11-25T07:00", "2026-11-26T07:00"),  # now is past
        ("07:00:30", "2026-11-25T07:00", "2026-11-25T07:00:30"),
        ("00:00", "2026-12-31T23:59", "2027-01-01T00:00"),
        ("2026-11-27T07:00", "2026-11-25T22:00", "2026-11-27T07:00"),
        ("2026-11-27 07:00", "2026-11-25T22:00", "2026-11-27T07:00"),
        ("2026-11-27T07:00Z", "2026-11-25T22:00", "2026-11-27T07:00Z"),
        ("2026-11-27T07:00-05:00", "2026-11-25T22:00", "2026-11-27T12:00Z"),
    ],
)
def test_the_next_such_time(text: str, now: str, expected: str) -> None:
    assert next_time(text, moment(now)) == moment(expected)


def test_a_night_with_a_change_of_clocks_is_an_hour_shorter_or_longer() -> None:
    spring, autumn = moment("2027-03-27T22:00"), moment("2026-10-24T22:00")
    assert next_time("07:00", spring) - spring == timedelta(hours=8)
    assert next_time("07:00", autumn) - autumn == timedelta(hours=10)


@pytest.mark.parametrize("text", ["", "7", "25:00", "07:60", "tomorrow", "2026-11-26", "2026-13-01T07:00", "07:00Z"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--finish-by is .* it must be a local time such as 07:00, or a date"):
        next_time(text, moment("2026-11-25T22:00"))


def test_a_time_that_has_passed_is_refused_with_both() -> None:
    with pytest.raises(ConfigError, match=r"'2026-11-25T21:30', which was 30m00s ago \(it is 2026-11-25 22:00\)"):
        next_time("2026-11-25T21:30", moment("2026-11-25T22:00"))


def test_hours() -> None:
    assert [read_hours(text) for text in ("3", "0.5", "1e-3")] == [3.0, 0.5, 0.001]
    for text in ("0", "-1", "nan", "inf", "", "3h", "1e9"):
        with pytest.raises(ConfigError, match=r"--max-hours is .* it must be a number of hours above 0"):
            read_hours(text)


def test_the_earlier_one_counts_on_the_clock_of_the_process() -> None:
    def found(finish_by: str | None, max_hours: str | None) -> Deadline | None:
        return read_deadline(finish_by, max_hours, now=moment("2026-11-25T22:00"), now_s=1000.0, started_s=990.0)

    assert found(None, None) is None
    assert found("23:00", None) == Deadline(4600.0, "--finish-by 23:00")
    assert found(None, "0.5") == Deadline(2790.0, "--max-hours 0.5")
    assert found("23:00", "0.5") == found(None, "0.5")
    assert found("22:10", "0.5") == found("22:10", None)


def taking(seconds: float, low_s: float, high_s: float) -> Prediction:
    curve = tuple(PredictedAt(seconds * n / 5, 2 * n) for n in range(1, 6))
    return Prediction(10, seconds, low_s, high_s, None, 100, 0, 100, curve=curve)


@pytest.mark.parametrize(
    ("prediction", "fits", "rows", "expected"),
    [
        (taking(1800, 1500, 2400), True, (10, 0), "is expected to take 30m00s (25m00s to 40m00s), so it fits"),
        (taking(3000, 2700, 3700), None, (10, 0), "so it may not fit: what is not done by then stays for the same"),
        (
            taking(4000, 3500, 4500),
            None,
            (8, 2),
            "so it may not fit: about 8 of 10 rows are expected to be done by then, and 2 to stay for the same",
        ),
        (
            taking(7200, 6000, 9000),
            False,
            (4, 6),
            "so it does not fit: about 4 of 10 rows are expected to be done by then, and 6 to stay for the same",
        ),
        (None, None, (None, None), "is not known, so neither is whether it fits: what is not done by then stays for"),
    ],
)
def test_what_is_said_before_the_start(
    prediction: Prediction | None, fits: bool | None, rows: tuple[int | None, int | None], expected: str
) -> None:
    found = Deadline(4600.0, "--finish-by 23:00").reach(prediction, now_s=1000.0)
    assert found.describe().startswith("--finish-by 23:00 is in 1h00m; ")
    assert expected in found.describe()
    assert (found.fits, found.rows_done, found.rows_later) == (fits, *rows)
    assert found.as_json()["said"] == found.describe()


def test_a_deadline_that_passed_while_the_model_was_loaded_is_said() -> None:
    passed = Deadline(5.0, "--max-hours 0.1").reach(taking(3.0, 2.0, 4.0), now_s=6.0)
    assert "has passed before the first row" in passed.describe()
    assert (passed.fits, passed.rows_done, passed.rows_later) == (False, 0, 10)


def rows(folder: Path, count: int) -> None:
    write_rows(folder / "in.jsonl", (row(f"r{n}", f"prompt {n}") for n in range(count)))


def test_a_process_stops_at_its_deadline_and_the_same_command_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    for folder in (tmp_path, whole):
        rows(folder, 120)
    run_job(job_at(whole))
    started = time.monotonic()
    first = subprocess.run([*PROGRAM, str(tmp_path), "0.05", "1.5"], cwd=REPOSITORY, capture_output=True, text=True)
    assert first.returncode == 4, first.stderr
    assert "stopped by --max-hours" in first.stderr
    assert time.monotonic() - started < 60
    job, expected = job_at(tmp_path), job_at(whole).output.read_bytes()
    kept = job.output.read_bytes()
    assert 0 < len(kept) < len(expected)
    assert expected.startswith(kept)
    again = run_job(job)
    assert (again.exit_code, again.done) == (0, 120)
    assert kept.count(b"\n") <= again.reused < 120
    assert job.output.read_bytes() == expected


def test_a_deadline_in_the_past_stops_before_the_first_row_and_loses_no_attempt(tmp_path: Path) -> None:
    rows(tmp_path, 8)
    with pytest.raises(OutOfTime, match="has passed before the first row; the 8 rows that were read"):
        run_job(job_at(tmp_path), within_s=-1.0)
    for _ in range(5):  # more often than a row may crash
        stopped = run_job(job_at(tmp_path), within_s=-1.0)
        assert (stopped.exit_code, stopped.done) == (4, 0)
        assert stopped.stopped is not None
        assert "with 0 of 8 rows done" in stopped.stopped
    done = run_job(job_at(tmp_path))
    assert (done.exit_code, done.done, done.failed) == (0, 8, 0)


def test_a_deadline_ends_the_reading_and_what_was_read_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BATCH_ROWS", 10)
    seen: list[str] = []

    def request(asks: BatchRow, tokens: Sequence[int] | None = None) -> Request:
        seen.append(asks.custom_id)
        return tokens_of(asks, tokens)

    monkeypatch.setattr(ToySetup, "open", lambda self: request)
    rows(tmp_path, 35)
    job = job_at(tmp_path)
    for kept in (10, 20, 30, 35):
        with pytest.raises(OutOfTime, match=f"the {kept} rows that were read and tokenized are kept"):
            run_job(job, within_s=-1.0)
        assert not job.path.exists()
        assert not job.output.exists()
    planned = run_job(job, within_s=-1.0)
    assert (planned.exit_code, planned.done, planned.rows) == (4, 0, 35)
    assert run_job(job).done == 35
    assert seen == [f"r{n}" for n in range(35)], "each is tokenized once"


def test_a_job_that_is_done_in_time_is_done(tmp_path: Path) -> None:
    rows(tmp_path, 8)
    assert run_job(job_at(tmp_path), within_s=600.0).exit_code == 0


def test_rows_of_a_higher_priority_run_first_and_the_output_is_the_same(tmp_path: Path) -> None:
    plain, urgent = tmp_path / "plain", tmp_path / "urgent"
    for folder in (plain, urgent):
        folder.mkdir()
        lines = [row(f"r{n}", f"prompt {n}", metadata={"rank": f"{n % 7}"} if n % 10 else {}) for n in range(50)]
        write_rows(folder / "in.jsonl", lines)
    run_job(job_at(plain))
    engine = ToyEngine()
    summary = run_job(replace(job_at(urgent), priority="rank"), ToyModel(engine))
    started = [int(prompt.split()[1]) for prompt in engine.started]
    ranks = [n % 7 if n % 10 else -1 for n in started]
    assert ranks == sorted(ranks, reverse=True)
    assert len(started) == 50
    assert "--priority rank: 5 rows have no such number in their metadata and run last" in summary.notes
    assert job_at(urgent).output.read_bytes() == job_at(plain).output.read_bytes()


def tiny_command(folder: Path, output: str) -> list[str]:
    from tests.checkpoints import write_llama  # imports torch

    model = folder / "model"
    if not model.exists():
        write_llama(model)
    command = [sys.executable, "-m", "penstock.cli", "run", str(folder / "in.jsonl"), "-o", str(folder / output)]
    return [*command, "--model", str(model), "--device", "cpu", "--kv-memory", "4MiB"]


@pytest.mark.torch
def test_the_command_stops_with_exit_code_4_and_says_so(tmp_path: Path) -> None:
    rows(tmp_path, 4)
    command = tiny_command(tmp_path, "out.jsonl")
    stopped = subprocess.run([*command, "--max-hours", "0.0001"], capture_output=True, text=True)
    assert stopped.returncode == 4, stopped.stderr
    assert "--max-hours 0.0001 has passed before the first row" in stopped.stderr
    assert "to go on: penstock run" in stopped.stderr
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == 4


@pytest.mark.torch
def test_the_command_measures_first_whether_a_job_fits(tmp_path: Path) -> None:
    """A model without a profile is measured for any job with a deadline, and none else that is short."""
    rows(tmp_path, 4)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def said(output: str, *flags: str) -> str:
        command = [*tiny_command(tmp_path, output), *flags]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        return done.stderr

    assert "measuring it" not in said("none.jsonl")
    first, second = said("first.jsonl", "--max-hours", "1"), said("second.jsonl", "--max-hours", "1")
    assert "this job has a deadline and the model's speed here is not known yet: measuring it" in first
    assert "measuring it" not in second
    for told in (first, second):
        assert "so it fits" in told
