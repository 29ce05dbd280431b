"""Protects what a measured program is asked: its answers among other lines, its deadline, its last words, its end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from penstock.bench.contestant import Contestant
from penstock.errors import BenchFailed


def program(folder: Path, text: str, *, timeout_s: float = 60.0) -> Contestant:
    (folder / "it.py").write_text(f"import sys, time\n{text}")
    return Contestant("it", [sys.executable, "-u", str(folder / "it.py")], timeout_s=timeout_s)


def test_answers_are_found_among_other_lines(tmp_path: Path) -> None:
    text = (
        "print('[1]')\nprint('{')\nprint('{\"ready\": true}')\n"
        'for line in sys.stdin:\n    print(\'working\')\n    print(\'{"wall_s": 2, "got": "%s"}\' % line.strip())\n'
    )
    with program(tmp_path, text) as running:
        assert running.ready == {"ready": True}
        assert running.ask("go") == {"wall_s": 2, "got": "go"}
        assert running.peak_bytes() > 2**20
        assert running.start_s > 0
    assert running.peak_bytes() == 0  # it has ended


def test_a_program_that_hangs_is_stopped(tmp_path: Path) -> None:
    hangs = program(tmp_path, "print('thinking')\ntime.sleep(600)", timeout_s=2.0)
    with pytest.raises(BenchFailed, match=r"it gave no answer in 2 s and was stopped"), hangs:
        raise AssertionError("it was never ready")


def test_a_program_that_ends_is_quoted(tmp_path: Path) -> None:
    ends = program(tmp_path, "print('{\"ready\": true}')\nsys.exit('no such unit')")
    with (
        ends as running,
        pytest.raises(BenchFailed, match=r"(?s)ended without an answer \(exit code 1\).*no such unit"),
    ):
        running.ask("go")


def test_a_program_that_cannot_be_started_is_named() -> None:
    with pytest.raises(BenchFailed, match="it could not be started"):
        Contestant("it", ["/no/such/program"], timeout_s=1.0)
