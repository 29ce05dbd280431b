"""Protects ARM: the portable kernels compile for it, where a cross compiler is at hand. They were never run there."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "src" / "penstock" / "kernels" / "native"
OF_X86 = ("_avx2", "_avx512", "_avx512_bf16", "_amx")
SOURCES = [path for path in sorted(FOLDER.glob("*.cpp")) if not path.stem.endswith(OF_X86)]
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Werror", "-Wno-psabi"]
FLAGS += ["-Wno-unused-function"]


def cross_compiler() -> list[str]:
    """GCC for ARM, or clang as PyPI's `ziglang` has it; empty: neither is here."""
    gcc = shutil.which("aarch64-linux-gnu-g++")
    if gcc is not None:
        return [gcc]
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu"]
    return zig if importlib.util.find_spec("ziglang") is not None else []


@pytest.mark.skipif(not cross_compiler(), reason="no cross compiler for ARM here")
@pytest.mark.parametrize("source", SOURCES, ids=[path.stem for path in SOURCES])
def test_the_portable_kernels_compile_for_arm(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.o"
    done = subprocess.run([*cross_compiler(), *FLAGS, "-c", source, "-o", made], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    header = made.read_bytes()[:20]
    assert (header[:4], int.from_bytes(header[18:20], "little")) == (b"\x7fELF", 183), "it is no object for AArch64"
