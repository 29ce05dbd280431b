"""Measures the machine's limits with PyTorch: a program of its own, so that its memory is given back.

Owns what is timed. Working sets are larger than the last-level cache and walked through once a pass; of several passes
the fastest counts, for everything that disturbs makes a pass slower. What is timed as products and as reading are
functions in two tables, so another kernel is one more row there.
Called with a JSON object {"dtype", "threads", "max_isa", "is_quick"} as its argument; the last line of stdout is the
`Limits`. Under a cap of the instruction set only native loops are timed: PyTorch takes what the processor has.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from penstock.bench.limits import Ceiling, Limits, last_level_cache_bytes
from penstock.config import ELEMENT_BYTES, format_bytes, read_machine, wait_passively

wait_passively()
import torch  # noqa: E402  OpenMP reads how to wait when torch is loaded
from torch import Tensor  # noqa: E402

from penstock.kernels.native import Native, open_native  # noqa: E402
from penstock.weights import dense  # noqa: E402

UNKNOWN_CACHE_BYTES = 512 * 2**20
CACHE_FACTOR = 1.25  # of weights, which are read far less often than multiplied with
# Of what is only read: caches keep some of what is a quarter larger (105 GB/s of 40 MiB beside 32 MiB, where memory
# gives 51).
READ_FACTOR = 4.0
FEWEST_READ_BYTES = 256 * 2**20
MEMORY_SHARE = 0.25  # of what is free, at most
WIDTH = 4096  # of the square matrices
ROWS = 1024
PASSES = 3
LOOP_ROUNDS = 5000  # a tenth of a second, more or less

Pass = Callable[[], object]


class Unit(NamedTuple):
    """What is to be measured: these threads computing in a dtype, with the native kernels under a cap or `without`."""

    dtype: str
    threads: int
    max_isa: str | None
    native: Native | None
    without: str


def measure(dtype: str, threads: int, *, max_isa: str | None = None, is_quick: bool = False) -> Limits:
    """Measure every limit; takes a few seconds a pass. Quick: only the first product that can be made is timed."""
    torch.set_num_threads(threads)
    opened = open_native(dtype=dtype, threads=threads, max_isa=max_isa)
    unit = Unit(dtype, threads, max_isa, opened.native, str(opened.why_not))
    with torch.inference_mode():
        gemm = _gemm(unit, *working_set(CACHE_FACTOR), is_quick=is_quick)
        read = _read(unit, *working_set(READ_FACTOR, FEWEST_READ_BYTES))
    return Limits(dtype, threads, gemm, read, _tile(unit), max_isa)


def working_set(factor: float, least_bytes: int = 0) -> tuple[int, str]:
    """How many bytes to walk through, `factor` times the last-level cache, and what they compare to."""
    cache, free = last_level_cache_bytes(), read_machine().free_bytes
    wanted = max(least_bytes, int((cache or UNKNOWN_CACHE_BYTES) * factor))
    known = f"a last-level cache of {format_bytes(cache)}" if cache else "a last-level cache of unknown size"
    if wanted > free * MEMORY_SHARE:
        return int(free * MEMORY_SHARE), f"{known} (limited by free memory, so a cache may have helped)"
    return wanted, known


def _gemm(unit: Unit, size_bytes: int, note: str, *, is_quick: bool) -> Ceiling:
    matrix_bytes = WIDTH * WIDTH * ELEMENT_BYTES[unit.dtype]
    count = max(1, -(-size_bytes // matrix_bytes))
    flops = 2 * ROWS * WIDTH * WIDTH * count
    rates: dict[str, float] = {}
    missing = ""
    for name, product in PRODUCTS.items():
        if is_quick and rates:
            break
        made = product(unit, count)
        if isinstance(made, str):
            missing += f"; without {name}: {made}"
        else:
            rates[name] = flops / _least_s(made)
        del made  # its weights: the next one's would not fit beside them
    how = f"{ROWS} rows, {format_bytes(count * matrix_bytes)} of weights beside {note}, best of {PASSES} passes"
    return _fastest(rates, how + missing)


def _tile(unit: Unit) -> Ceiling:
    """Products whose operands never leave the registers and the nearest cache."""
    native = unit.native
    if native is None:
        return Ceiling(None, why_not=unit.without)
    kind = getattr(torch, unit.dtype)
    operations = native.register_loop(LOOP_ROUNDS, dtype=kind)
    seconds = _least_s(lambda: native.register_loop(LOOP_ROUNDS, dtype=kind))
    return Ceiling(
        operations / seconds, f"a loop of native {native.isa} products in registers, best of {PASSES} passes"
    )


def _torch_product(unit: Unit, count: int) -> Pass | str:
    """A pass over `count` matrices by PyTorch; or why not."""
    if unit.native is not None and unit.max_isa is not None:
        return f"it would not keep to {unit.max_isa}"
    x, matrix = _operands(unit.dtype)
    weights = [matrix.clone() for _ in range(count)]
    return lambda: [torch.nn.functional.linear(x, weight) for weight in weights]


def _native_product(unit: Unit, count: int) -> Pass | str:
    """A pass over `count` packed matrices by the native kernels; or why not."""
    native = unit.native
    if native is None:
        return unit.without
    x, matrix = _operands(unit.dtype)
    weights = [native.pack(dense(matrix)) for _ in range(count)]
    return lambda: [native.linear(x, weight) for weight in weights]


def _operands(dtype: str) -> tuple[Tensor, Tensor]:
    """x [ROWS, WIDTH] and a matrix [WIDTH, WIDTH]."""
    kind = getattr(torch, dtype)
    return torch.full((ROWS, WIDTH), 0.5, dtype=kind), torch.full((WIDTH, WIDTH), 0.01, dtype=kind)


# What is timed as products: a pass over a number of matrices, or a reason.
PRODUCTS: dict[str, Callable[[Unit, int], Pass | str]] = {
    "native linear": _native_product,
    "torch linear": _torch_product,
}


def _read(unit: Unit, size_bytes: int, note: str) -> Ceiling:
    """Every number of float32 x is read once."""
    x = torch.full((size_bytes // 4,), 0.5)
    reads: dict[str, Pass] = {
        "torch sum": lambda: torch.sum(x),
        "torch dot": lambda: torch.dot(x, x),
        "torch max of int32": lambda: torch.max(x.view(torch.int32)),
    }
    native = unit.native
    if native is not None:
        reads["native loop"] = lambda: native.read_loop(x)
    rates = {name: x.numel() * 4 / _least_s(read) for name, read in reads.items()}
    return _fastest(rates, f"{format_bytes(x.numel() * 4)} beside {note}, best of {PASSES} passes")


def _fastest(rates: dict[str, float], how: str) -> Ceiling:
    name = max(rates, key=lambda name: rates[name])
    among = f", the fastest of {', '.join(rates)}" if len(rates) > 1 else ""
    return Ceiling(rates[name], f"{name}{among}: {how}")


def _least_s(run: Pass) -> float:
    """The seconds of the fastest pass; one pass more warms up."""
    seconds = []
    for _ in range(PASSES + 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    sys.stdout.write(measure(**asked).dumps() + "\n")
