"""Times steps of a model on several builds of the native library, in turn, and says where each one's time went.

    python -m tests.emulated.steps MODEL new=PATH/libpenstock.so:amx old=OTHER/libpenstock.so:avx512 --steps p512,d64

`p512+512`: a prompt's 512 tokens behind 512 others; `d64+120`: 64 sequences that decode behind 120 tokens each. The
model is a folder in real shapes; its answers are not looked at, so a library built with `--clock` may be among them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from penstock.checkpoint import Checkpoint, find_checkpoint
from penstock.config import EngineConfig, wait_passively
from penstock.device import open_device
from penstock.executor import TorchExecutor
from penstock.kernels.native import LayerSeconds, Native, open_native
from penstock.measuring import GREEDY, Sheet, Size
from penstock.step import StepPlan

SIZE = Size(tokens=1024, sequences=256, blocks=4096, block_tokens=16, context=1024)


class Build(NamedTuple):
    """A library with a model on it."""

    executor: TorchExecutor
    native: Native


class Spent(NamedTuple):
    """Seconds of a step: all of them, and what its layers took."""

    wall: float
    layers: LayerSeconds


def main() -> None:
    """Read the arguments, open every build, and time the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("builds", nargs="+", metavar="NAME=LIBRARY:ISA")
    parser.add_argument("--steps", default="p512,p512+512,d64+120")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    wait_passively()
    model = find_checkpoint(asked.model)
    parted = [build.partition("=") for build in asked.builds]
    builds = {name: open_build(model, rest, asked.threads) for name, _, rest in parted}
    for step in asked.steps.split(","):
        for name, spent in time_step(builds, plan_of(step, vocab=model.spec.vocab), asked.rounds).items():
            print(f"{step:10} {name:8} {line_of(spent)}")


def open_build(model: Checkpoint, where: str, threads: int) -> Build:
    """A model on LIBRARY:ISA, in bfloat16."""
    path, _, isa = where.rpartition(":")
    config = EngineConfig("cpu", "bfloat16", 2**31, SIZE.tokens, SIZE.sequences, threads=threads, max_isa=isa)
    found = open_native(dtype=config.dtype, threads=threads, max_isa=isa, library=Path(path))
    if found.native is None or found.native.isa != isa:
        raise SystemExit(f"{path} does not run {isa} here: {found.why_not or found.native}")
    with mock.patch("penstock.device.open_native", return_value=found):
        opened = open_device(model, config, num_blocks=SIZE.blocks)
    return Build(opened.executor, found.native)


def plan_of(step: str, *, vocab: int) -> StepPlan:
    """`p512+64` or `d64+120` as a plan of random tokens."""
    tokens, start = (int(text or 0) for text in step[1:].partition("+")[::2])
    sheet = Sheet(SIZE, vocab=vocab)
    count, each = (1, tokens) if step[0] == "p" else (tokens, 1)
    return sheet.plan(sheet.chunks(count, each, start=start, sample=GREEDY))


def time_step(builds: dict[str, Build], plan: StepPlan, rounds: int) -> dict[str, list[Spent]]:
    """Every build's time for a step, in turn, behind one round that is not counted."""
    spent: dict[str, list[Spent]] = {name: [] for name in builds}
    for _ in range(rounds + 1):
        for name, (executor, native) in builds.items():
            before, began = native.layer_seconds(), time.perf_counter()
            executor.collect(executor.submit(plan))
            wall = time.perf_counter() - began
            layers = LayerSeconds(*(now - then for now, then in zip(native.layer_seconds(), before, strict=True)))
            spent[name].append(Spent(wall, layers))
    return {name: some[1:] for name, some in spent.items()}


def line_of(spent: list[Spent]) -> str:
    """The fastest and the median round, and the parts of the median one."""
    walls = [one.wall for one in spent]
    middle = min(spent, key=lambda one: abs(one.wall - statistics.median(walls)))
    parts = "  ".join(f"{name} {1e3 * value:.1f}" for name, value in middle.layers._asdict().items())
    rest = middle.wall - sum(middle.layers)
    return f"best {1e3 * min(walls):.1f}  median {1e3 * middle.wall:.1f} ms:  {parts}  rest {1e3 * rest:.1f}"


if __name__ == "__main__":
    main()
