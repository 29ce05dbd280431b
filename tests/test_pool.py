"""Protects the team of threads: every task runs once, nothing is read before it is written, no call waits for ever.

A small program drives `native/pool.cpp` under ThreadSanitizer, which reports any two accesses that race.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path("src/penstock/kernels/native")
SOURCES = (NATIVE / "pool.cpp", Path("tests/threads/pool_stress.cpp"))


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built; a compiler that has no ThreadSanitizer is a reason to skip."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    built = tmp_path_factory.mktemp("pool") / "stress"
    flags = ("-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", "-I", str(NATIVE))
    made = subprocess.run(["g++", *flags, *map(str, SOURCES), "-o", str(built)], capture_output=True, text=True)
    if "cannot find" in made.stderr and "tsan" in made.stderr:
        pytest.skip("this g++ comes without ThreadSanitizer")
    assert made.returncode == 0, made.stderr
    return built


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_of_every_call_runs_once_without_a_race(stress: Path, threads: int) -> None:
    done = subprocess.run([str(stress), str(threads), "4000"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stdout + done.stderr[:3000]
