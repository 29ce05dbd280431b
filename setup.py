"""Builds the native kernels: one shared library with a C interface, each file for the instruction set that it names.

The rest of the package is described in pyproject.toml. Where there is no compiler the package installs without the
library and computes on the reference kernels, which `penstock.kernels.native` then says.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = Path("src/penstock/kernels/native")

# Sums and products round as they are written, on every machine: no contraction, no -ffast-math, no -march=native.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
]
FLAGS += ["-Wno-psabi", "-Wno-unused-function"]  # each set uses some of what the shared headers hold
# As it is written: what is read for nothing is read all the same, and compiling takes a third of what it does at -O1.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O0"]

AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
AVX512_BF16 = [*AVX512, "-mavx512bf16"]
AMX = [*AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-mprfchw"]
X86_FILES = {"avx2": AVX2, "avx512": AVX512, "avx512_bf16": AVX512_BF16, "amx": AMX}

# For tests: AMX and VDPBF16PS in software, and a library that takes both to be there.
EMULATED = Path("tests/emulated")
EMULATION = [*AVX512, "-mprfchw", "-include", str(EMULATED / "tiles.h")]
EMULATED_FILES = {**X86_FILES, "avx512_bf16": EMULATION, "amx": EMULATION}

# For development: what AMX would take, where it is hidden. Its results are nonsense.
CLOCK = [*AVX512_BF16, "-mprfchw", "-include", str(EMULATED / "clock.h"), *(f"-ffixed-xmm{n}" for n in range(16, 32))]
CLOCK_FILES = {**X86_FILES, "amx": CLOCK}


def files(*, emulate: bool = False, clock: bool = False) -> dict[Path, list[str]]:
    """The files to compile and what each is compiled for: its name ends in the instruction set."""
    sets = EMULATED_FILES if emulate else CLOCK_FILES if clock else X86_FILES
    found: dict[Path, list[str]] = {}
    for path in sorted(FOLDER.glob("*.cpp")):
        suffix = next((s for s in sorted(sets, key=len, reverse=True) if path.stem.endswith("_" + s)), None)
        if suffix is None or platform.machine() == "x86_64":
            found[path] = sets[suffix] if suffix else []
    if emulate or clock:
        found[EMULATED / "isa.cpp"] = [*found.pop(FOLDER / "isa.cpp"), "-I", str(FOLDER)]
    return found


class BuildLibrary(build_ext):
    """Compiles each file with flags of its own, and links them into a plain library rather than a Python module."""

    user_options: ClassVar = [
        *build_ext.user_options,
        ("sanitize", None, "build under AddressSanitizer and UBSan, for tests"),
        ("emulate", None, "AMX and VDPBF16PS in software, for tests on processors with AVX-512"),
        ("clock", None, "AMX as a clock whose results are nonsense (tests/emulated/clock.h), for development"),
    ]
    boolean_options: ClassVar = [*build_ext.boolean_options, "sanitize", "emulate", "clock"]

    def initialize_options(self) -> None:
        """Adds our options."""
        super().initialize_options()
        self.sanitize = False
        self.emulate = False
        self.clock = False

    def get_ext_filename(self, fullname: str) -> str:
        """One name whatever the Python version: nothing of Python is in it."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link."""
        extra = SANITIZE if self.sanitize else []
        compiler = os.environ.get("CXX", "g++")
        self.compiler.set_executable("compiler_so_cxx", compiler)
        self.compiler.set_executable("compiler_so", compiler)

        def compile_file(path: Path, flags: list[str]) -> list[str]:
            arguments = [*FLAGS, *flags, *extra]
            return self.compiler.compile([str(path)], self.build_temp, extra_postargs=arguments, depends=ext.depends)

        with ThreadPoolExecutor(os.cpu_count()) as cores:
            found = files(emulate=self.emulate, clock=self.clock)
            objects = [*chain.from_iterable(cores.map(compile_file, found, found.values()))]
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.set_executable("linker_so", f"{compiler} -shared")
        self.compiler.set_executable("linker_so_cxx", f"{compiler} -shared")
        self.compiler.link_shared_object(objects, target, extra_postargs=["-pthread", *extra], target_lang="c++")


setup(
    ext_modules=[
        Extension(
            "penstock.kernels.libpenstock",
            [str(path) for path in files()],
            depends=sorted(str(path) for path in FOLDER.glob("*.h")),
            language="c++",
            optional=True,  # without a compiler the package still works
        )
    ],
    cmdclass={"build_ext": BuildLibrary},
)
