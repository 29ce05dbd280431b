"""Measures the machine's limits with PyTorch: a program of its own, so that its memory is given back.

Owns what is timed. Working sets are a quarter larger than the last-level cache, walked through once a pass, so nothing
is found in a cache; of several passes the fastest counts, for everything that disturbs makes a pass slower. What is
timed as "a product" and as "reading" are functions in two tables: a native kernel is one more row there.
Called with a JSON object {"dtype", "threads"} as its argument; the last line of stdout is the `Limits`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from penstock.bench.limits import Ceiling, Limits, last_level_cache_bytes
from penstock.config import ELEMENT_BYTES, format_bytes, read_machine, wait_passively

wait_passively()
import torch  # noqa: E402  OpenMP reads how to wait when torch is loaded
from torch import Tensor  # noqa: E402

UNKNOWN_CACHE_BYTES = 512 * 2**20
CACHE_FACTOR = 1.25
MEMORY_SHARE = 0.25  # of what is free, at most
WIDTH = 4096  # of the square matrices
ROWS = 1024
PASSES = 3

Product = Callable[[Tensor, Tensor], object]
Read = Callable[[Tensor], object]

# x [ROWS, WIDTH], weight [WIDTH, WIDTH]
PRODUCTS: dict[str, Product] = {"torch linear": torch.nn.functional.linear}
# float32 [elements]; every element is read once
READS: dict[str, Read] = {
    "torch sum": torch.sum,
    "torch dot": lambda x: torch.dot(x, x),
    "torch max of int32": lambda x: torch.max(x.view(torch.int32)),
}


def measure(dtype: str, threads: int) -> Limits:
    """Measure every limit; takes a few seconds a pass."""
    torch.set_num_threads(threads)
    size_bytes, note = working_set()
    with torch.inference_mode():
        gemm = _gemm(dtype, size_bytes, note)
        read = _read(size_bytes, note)
    tile = Ceiling(None, why_not="only a native kernel can run the matrix unit in a loop, and there is none yet")
    return Limits(dtype, threads, gemm, read, tile)


def working_set() -> tuple[int, str]:
    """How many bytes to walk through, and what they compare to."""
    cache, free = last_level_cache_bytes(), read_machine().free_bytes
    wanted = int((cache or UNKNOWN_CACHE_BYTES) * CACHE_FACTOR)
    known = f"a last-level cache of {format_bytes(cache)}" if cache else "a last-level cache of unknown size"
    if wanted > free * MEMORY_SHARE:
        return int(free * MEMORY_SHARE), f"{known} (limited by free memory, so a cache may have helped)"
    return wanted, known


def _gemm(dtype: str, size_bytes: int, note: str) -> Ceiling:
    matrix_bytes = WIDTH * WIDTH * ELEMENT_BYTES[dtype]
    count = max(1, -(-size_bytes // matrix_bytes))
    weights = torch.full((count, WIDTH, WIDTH), 0.01, dtype=getattr(torch, dtype))
    x = torch.full((ROWS, WIDTH), 0.5, dtype=weights.dtype)
    flops = 2 * ROWS * WIDTH * WIDTH * count
    rates = {name: flops / _least_s(_pass, product, x, weights) for name, product in PRODUCTS.items()}
    how = f"{ROWS} rows, {format_bytes(count * matrix_bytes)} of weights beside {note}, best of {PASSES} passes"
    return _fastest(rates, how)


def _read(size_bytes: int, note: str) -> Ceiling:
    x = torch.full((size_bytes // 4,), 0.5)
    rates = {name: x.numel() * 4 / _least_s(read, x) for name, read in READS.items()}
    return _fastest(rates, f"{format_bytes(x.numel() * 4)} beside {note}, best of {PASSES} passes")


def _fastest(rates: dict[str, float], how: str) -> Ceiling:
    name = max(rates, key=lambda name: rates[name])
    among = f", the fastest of {', '.join(rates)}" if len(rates) > 1 else ""
    return Ceiling(rates[name], f"{name}{among}: {how}")


def _pass(product: Product, x: Tensor, weights: Tensor) -> None:
    for weight in weights:
        product(x, weight)


def _least_s(run: Callable[..., object], *arguments: object) -> float:
    """The seconds of the fastest pass; one pass more warms up."""
    seconds = []
    for _ in range(PASSES + 1):
        started = time.perf_counter()
        run(*arguments)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    sys.stdout.write(measure(asked["dtype"], asked["threads"]).dumps() + "\n")
