"""Protects the machine of whoever stops a benchmark: no engine outlives it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.torch
@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_bench_that_is_stopped_leaves_no_engine(name: signal.Signals) -> None:
    command = ["bench", "decode", "--model", "demo", "--no-ceilings"]
    bench = subprocess.Popen([sys.executable, "-m", "penstock.cli", *command], stderr=subprocess.PIPE)
    engines: list[int] = []
    try:
        while not engines:
            time.sleep(0.05)
            assert bench.poll() is None
            engines = children(bench.pid)
        bench.send_signal(name)
        _, said = bench.communicate(timeout=60)
    finally:
        bench.kill()  # nothing, where it has ended
        bench.wait()
    assert bench.returncode == 130
    assert b"Traceback" not in said
    deadline = time.monotonic() + 30
    while any(map(is_alive, engines)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, engines))
