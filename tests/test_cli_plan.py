"""Protects what `penstock plan` says of deadlines and priorities: as the run does, with exit code 0 whatever it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock import cli
from penstock.checkpoint import find_checkpoint
from penstock.config import Settings
from penstock.jobs.loading import resolve_here
from penstock.profile_store import about_config, keep_profile
from tests.job_runs import row, write_rows
from tests.profiles import profile

SLOWER = 1000.0  # than what a profile of round numbers says, so that reading the rows takes nothing beside it
FLAGS = ("--model", "demo", "--device", "cpu", "--max-sequences", "4")
Plan = Callable[..., dict[str, Any]]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows of long and of short answers in turn, the short ones with a rank; and a slow machine that was measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint = find_checkpoint("demo")
    resolved = resolve_here(checkpoint, Settings(device="cpu", max_sequences=4)).config
    slow = replace(
        profile(),
        about=about_config(checkpoint.spec, resolved),
        tokens=tuple(point._replace(seconds=SLOWER * point.seconds) for point in profile().tokens),
    )
    keep_profile(slow)
    long, short = {"max_tokens": 30}, {"max_tokens": 1, "metadata": {"rank": 1}}
    lines = [row(f"r{n}", f"prompt {n}", ignore_eos=True, **(short if n % 2 else long)) for n in range(40)]
    return write_rows(tmp_path / "in.jsonl", lines)


@pytest.fixture
def plan(given: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    def planned(*flags: str) -> dict[str, Any]:
        assert cli.main(["plan", str(given), *FLAGS, *flags, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert found["exit_code"] == 0
        return found

    return planned


def hours(seconds: float) -> tuple[str, str]:
    return "--max-hours", f"{seconds / 3600:.4f}"


def test_whether_a_job_fits_and_how_many_rows_are_done_in_time(plan: Plan) -> None:
    found = plan()
    assert found["deadline"] is None
    roomy, close, half = (plan(*hours(share * found["seconds"]))["deadline"] for share in (2, 1.001, 0.5))
    assert (roomy["fits"], roomy["rows_done"], roomy["rows_later"]) == (True, 40, 0)
    assert (close["fits"], close["rows_done"], close["rows_later"]) == (None, 40, 0)
    assert half["fits"] is False
    assert 0 < half["rows_done"] < 40
    assert half["rows_done"] + half["rows_later"] == 40
    assert f"about {half['rows_done']} of 40 rows are expected to be done by then" in half["said"]
    assert half["left_s"] == pytest.approx(found["seconds"] / 2, rel=1e-3)


def test_with_the_short_rows_first_more_are_done_in_time(
    plan: Plan, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = hours(plan()["seconds"] / 2)
    by_itself, short_first = (plan(*half, *flags)["deadline"]["rows_done"] for flags in ((), ("--priority", "rank")))
    assert short_first > by_itself + 5
    assert cli.main(["plan", str(given), *FLAGS, "--priority", "rank"]) == 0
    assert capsys.readouterr().err == "--priority rank: 20 rows have no such number in their metadata and run last\n"


@pytest.mark.parametrize(("flag", "value"), [("--finish-by", "noon"), ("--max-hours", "-1")])
def test_a_deadline_that_cannot_be_read_is_refused(
    given: Path, flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", str(given), *FLAGS, flag, value]) == 2
    assert f"{flag} is '{value}'" in capsys.readouterr().err


@pytest.mark.torch
def test_what_is_said_of_a_deadline_is_what_the_run_says(
    plan: Plan, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for the numbers: when the run says it, it has read its rows and loaded its model."""
    flags = [*FLAGS, "--priority", "rank", *hours(plan()["seconds"] / 2)]
    assert cli.main(["plan", str(given), *flags]) == 0
    [said] = re.findall("^deadline +(.*)$", capsys.readouterr().out, re.MULTILINE)
    command = [sys.executable, "-m", "penstock.cli", "run", str(given), "-o", str(given.with_name("out")), *flags]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert re.sub(r"\d+", "N", said) in re.sub(r"\d+", "N", told).splitlines()
    assert "so it does not fit: about" in said
