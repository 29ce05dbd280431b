"""Protects memory: built under AddressSanitizer and UBSan, the native kernels read and write only what is theirs.

Runs their tests in a process of their own: the sanitizers must be loaded before anything else is. What is written for
AMX and VDPBF16PS runs here on every processor with AVX-512, those instructions in software (`tests/emulated/`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import native_isas

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parent.parent
COMPILER = shutil.which("g++")

RUN = """
import sys
from pathlib import Path
import pytest
from penstock.kernels import native
native.open_native.__kwdefaults__["library"] = Path(sys.argv[1])
tests = [f"tests/test_{name}.py" for name in ("native", "native_draw", "tiling", "scoring")]
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests, "-k", sys.argv[2]]))
"""
# Odd shapes of every op on every instruction set; without the largest, without what is no native code, and of what is
# done to scores (all of it at once is among them) without what is done to them alone.
CHOSEN = (
    "not fork and not reference] and (331-257 or 139-257 or 33-1055 or norms or embedding or step or gated"
    " or (attention and (129-12- or 129-80-)) or blocks or (stacked and [0- and not (cap or sinks or window-100))"
    " or no_numbers or (rules and (1- or 2- or 129-)) or (scores and all) or before_every_window)"
)


def runtime(name: str) -> str:
    assert COMPILER is not None
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.mark.skipif(COMPILER is None, reason="no g++ here")
def test_the_kernels_touch_only_their_own_memory(tmp_path: Path) -> None:
    emulate = ["--emulate"] if "avx512" in native_isas() else []  # sanitizers do not see what a tile loads
    build = [sys.executable, "setup.py", "-q", "build_ext", "--sanitize", *emulate]
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "objects")]
    subprocess.run([*build, *folders], cwd=ROOT, check=True, capture_output=True)
    library = tmp_path / "lib" / "penstock" / "kernels" / "libpenstock.so"
    assert library.exists()
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it allocates
    }
    command = [sys.executable, "-c", RUN, str(library), CHOSEN]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
