"""Memory does not grow with the number of rows: the real process, two sizes, the slope between their peaks."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.checkpoints import write_llama
from tests.job_runs import row, write_rows

pytestmark = pytest.mark.torch

SIZES = (2_000, 20_000)
MOST_BYTES_A_ROW = 500  # keeping only the custom ids, of 500 characters here, would take 549 a row


def peak_bytes(folder: Path, model: Path, rows: int) -> int:
    """The peak resident memory of a run (VmHWM, the last value before the process ended)."""
    given = write_rows(
        folder / f"in-{rows}.jsonl",
        (row(f"{n:0500}", [n % 200, 5], max_tokens=1) for n in range(rows)),
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "penstock.cli", "run", str(given), "-o", str(folder / f"out-{rows}.jsonl")),
            *("--model", str(model), "--device", "cpu", "--max-sequences", "256", "--token-budget", "512"),
            *("--kv-memory", "512KiB", "--quiet"),
        ]
    )
    peak = 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        peak = int(found[1]) * 1024 if found else peak
        time.sleep(0.05)
    assert process.returncode == 0
    with (folder / f"out-{rows}.jsonl").open("rb") as output:
        assert sum(1 for _ in output) == rows
    return peak


def test_the_peak_does_not_grow_with_the_number_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_llama(tmp_path / "model")
    small, big = (peak_bytes(tmp_path, model, rows) for rows in SIZES)
    slope = (big - small) / (SIZES[1] - SIZES[0])
    with capsys.disabled():
        print(f"\npeak {small / 2**20:.1f} MiB, {big / 2**20:.1f} MiB at {SIZES} rows: {slope:.0f} bytes a row")
    assert slope < MOST_BYTES_A_ROW
