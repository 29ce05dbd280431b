"""Protects what AMX is timed with where it is hidden: a build whose tiles are a clock, and the script that times it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import write_llama
from tests.models import native_isas

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
@pytest.mark.skipif("avx512_bf16" not in native_isas(), reason="no AVX-512 with bfloat16 here")
def test_steps_are_timed_on_a_build_whose_tiles_are_a_clock(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "-q", "build_ext", "--clock", "--build-lib", str(tmp_path / "lib")]
    subprocess.run([*build, "--build-temp", str(tmp_path / "objects")], cwd=ROOT, check=True, capture_output=True)
    library = tmp_path / "lib" / "penstock" / "kernels" / "libpenstock.so"
    write_llama(tmp_path / "model")
    builds = [f"clock={library}:amx", f"real={library}:avx512"]
    command = [sys.executable, "-m", "tests.emulated.steps", str(tmp_path / "model"), *builds]
    ran = subprocess.run(
        [*command, "--steps", "p40+40,d3+50", "--rounds", "2"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = ran.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [step, name] for step in ("p40+40", "d3+50") for name in ("clock", "real")
    ]
    assert all("attention" in line and "linear" in line for line in lines)
