"""The memory dial: the arithmetic, what is refused, and real processes whose peak stays under the limit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.config import Machine, Resolved, Settings, format_bytes, parse_bytes, resident_bytes, resolve
from penstock.errors import ConfigError
from penstock.memory import (
    FEWEST_KV_TOKENS,
    OTHER_BYTES,
    PLAN_BYTES,
    ROW_BYTES,
    SORT_BYTES,
    Linear,
    Shape,
    footprint,
    layer_linears,
)
from penstock.models.spec import DecoderSpec
from tests.job_runs import row, write_rows

GIB, MIB = 2**30, 2**20
QWEN = DecoderSpec(
    vocab=151936,
    hidden=1024,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    mlp_width=3072,
    context_tokens=40960,
    norm="rms",
    norm_eps=1e-6,
    positions="rotary",
    mlp="swiglu",
    qk_norm=True,
    tied=True,
)
SHAPE = Shape(element_bytes=2, stored_bytes=2, token_budget=512, sequences=64, threads=2, is_native=True)
MACHINE = Machine(cores=2, free_bytes=16 * GIB, process_bytes=230 * MIB, peak_bytes=240 * MIB)


def resolved(settings: Settings, machine: Machine = MACHINE) -> Resolved:
    return resolve(settings, machine=machine, spec=QWEN, stored_dtype="bfloat16")


def test_weights_are_counted_as_they_are_packed() -> None:
    assert Linear(33, 40).packed_bytes(2) == 64 * 64 * 2
    assert Linear(33, 40).packed_bytes(4) == 64 * 40 * 4
    assert Linear(33, 40, bias=True).packed_bytes(2) == 64 * 64 * 2 + 64 * 4
    assert [(w.out, w.inner) for w in layer_linears(QWEN)] == [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)]


def test_the_parts_of_a_run_and_the_kv_that_a_limit_leaves_add_up_to_the_limit() -> None:
    parts = footprint(QWEN, SHAPE, process_bytes=230 * MIB, peak_bytes=240 * MIB, rows=1000)
    matrices = QWEN.vocab * QWEN.hidden + 28 * sum(w.out * w.inner for w in layer_linears(QWEN))
    assert 0 < parts.weights - 2 * matrices < 50 * MIB  # norms, and the rotary table twice
    kv = parts.kv_bytes(3 * GIB)
    assert kv % parts.block_kv == 0
    used = (
        230 * MIB
        + OTHER_BYTES
        + PLAN_BYTES
        + ROW_BYTES * 1000
        + parts.weights
        + parts.workspace
        + (kv // parts.block_kv + 1) * parts.block
    )
    assert 3 * GIB - parts.block < used <= 3 * GIB


def test_the_smallest_limit_leaves_kv_that_answers_rows_and_one_byte_less_does_not() -> None:
    parts = footprint(QWEN, SHAPE, process_bytes=230 * MIB, peak_bytes=240 * MIB, rows=0)
    tokens = FEWEST_KV_TOKENS // 16
    assert parts.kv_bytes(parts.smallest) == tokens * parts.block_kv
    assert parts.kv_bytes(parts.smallest - 1) == (tokens - 1) * parts.block_kv


def test_what_planning_takes_beside_the_weights_counts_and_grows_with_the_rows() -> None:
    few, many = (footprint(QWEN, SHAPE, process_bytes=0, peak_bytes=0, rows=rows) for rows in (0, 10**7))
    assert many.kv_bytes(4 * GIB) < few.kv_bytes(4 * GIB) - ROW_BYTES * 10**7 * 0.9
    tiny = replace(few, workspace=0, block=0)
    assert tiny.smallest == OTHER_BYTES + tiny.weights + PLAN_BYTES + SORT_BYTES


def test_reading_a_table_takes_its_source_and_its_packed_form_at_once() -> None:
    parts = footprint(QWEN, SHAPE, process_bytes=0, peak_bytes=0, rows=0)
    assert parts.loading < parts.weights + 100 * MIB  # the table comes first, beside nothing
    untied = footprint(replace(QWEN, tied=False), SHAPE, process_bytes=0, peak_bytes=0, rows=0)
    table = QWEN.vocab * QWEN.hidden * 2
    assert untied.weights - parts.weights == table
    wide = footprint(QWEN, SHAPE._replace(stored_bytes=4), process_bytes=0, peak_bytes=0, rows=0)
    assert wide.loading >= parts.loading


@pytest.mark.parametrize("change", [{"token_budget": 4096}, {"sequences": 512}, {"threads": 16}, {"is_native": False}])
def test_a_larger_step_leaves_less_for_kv(change: dict[str, Any]) -> None:
    small, large = (
        footprint(QWEN, s, process_bytes=0, peak_bytes=0, rows=0) for s in (SHAPE, SHAPE._replace(**change))
    )
    assert large.workspace > small.workspace
    assert large.kv_bytes(4 * GIB) < small.kv_bytes(4 * GIB)


def test_a_limit_decides_the_kv_memory_and_every_part_is_said_with_its_source() -> None:
    found = resolved(Settings(memory_bytes=3 * GIB, sources={"memory_bytes": "--memory"}))
    assert GIB < found.config.kv_memory_bytes < 3 * GIB // 2
    said = {choice.name: choice for choice in found.choices}
    assert said["memory"][1:] == ("3 GiB", "--memory")
    assert said["process memory"][1:] == ("230 MiB", "measured, before the model was loaded")
    assert said["kv memory"].source == "what the memory leaves"
    assert {"weights", "step memory", "other memory", "plan memory"} <= said.keys()


def test_without_a_limit_nothing_changes() -> None:
    plain, measured = Machine(2, 16 * GIB), MACHINE
    settings = Settings(kv_memory_bytes=GIB)
    assert resolved(settings, plain) == resolved(settings, measured)
    assert resolved(settings).config.kv_memory_bytes == GIB


def test_a_limit_that_is_too_small_is_refused_with_the_numbers_and_the_least_that_is_enough() -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(Settings(memory_bytes=GIB, sources={"memory_bytes": "--memory"}))
    text = str(caught.value)
    assert text.startswith("--memory is 1 GiB and the least that is enough is 1.")
    assert "the weights 1.1" in text
    least = parse_bytes(text.split("is enough is ")[1].split(":")[0])
    assert resolved(Settings(memory_bytes=least + 2 * MIB)).config.kv_memory_bytes > 0
    with pytest.raises(ConfigError):
        resolved(Settings(memory_bytes=least - 2 * MIB))


def test_both_limits_are_taken_together_where_they_agree_and_refused_where_they_do_not() -> None:
    both = Settings(memory_bytes=3 * GIB, kv_memory_bytes=GIB, sources={"kv_memory_bytes": "--kv-memory"})
    assert resolved(both).config.kv_memory_bytes == GIB
    with pytest.raises(ConfigError, match=r"memory is 3 GiB, which leaves 1\..* and --kv-memory is 2 GiB; give one"):
        resolved(replace(both, kv_memory_bytes=2 * GIB))


def test_on_another_device_the_limit_is_refused() -> None:
    gpu = MACHINE._replace(cuda_free_bytes=80 * GIB)
    with pytest.raises(ConfigError, match="on the CPU, and the device is cuda; use --kv-memory"):
        resolved(Settings(memory_bytes=8 * GIB), gpu)


def test_the_memory_of_this_process_is_read() -> None:
    now, peak = resident_bytes()
    assert 5 * MIB < now <= peak


def peak_of(command: list[str], environment: dict[str, str], said: Path) -> int:
    """The most memory that a program took (VmHWM: ru_maxrss would begin with what this process takes)."""
    peak = 0
    with said.open("wb") as stdout:
        process = subprocess.Popen(command, stdout=stdout, env=environment)
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            peak = int(found[1]) * 1024 if found else peak
            time.sleep(0.02)
    assert process.returncode == 0
    return peak


@pytest.mark.torch
@pytest.mark.parametrize("isa", ["amx", "reference"])
def test_a_real_process_stays_under_its_limit_with_its_kv_memory_full(tmp_path: Path, isa: str) -> None:
    rows = (row(f"r{n}", [3 + (7 * n + i * i) % 900 for i in range(800)], max_tokens=2, logprobs=3) for n in range(8))
    given = write_rows(tmp_path / "in.jsonl", rows)
    command = [sys.executable, "-m", "penstock.cli", "run", str(given), "-o", str(tmp_path / "out.jsonl"), "--json"]
    command += ["--model", "demo", "--device", "cpu", "--memory"]
    environment = {**os.environ, "PENSTOCK_MAX_ISA": isa}
    refused = subprocess.run([*command, "100MiB"], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    least = re.search(r"--memory is 100 MiB and the least that is enough is ([^:]+):", refused.stderr)
    assert least is not None, refused.stderr
    limit_bytes = parse_bytes(least[1]) + 30 * MIB
    peak_bytes = peak_of([*command, str(limit_bytes)], environment, tmp_path / "said")
    settings = json.loads((tmp_path / "said").read_text())["settings"]
    kv_bytes, process_bytes = (parse_bytes(settings[f"{name} memory"].split(" (")[0]) for name in ("kv", "process"))
    assert peak_bytes <= limit_bytes, f"peak {format_bytes(peak_bytes)}"
    # The limit could have been broken: the KV was used, and is a good part of it.
    assert kv_bytes > 20 * MIB
    assert peak_bytes > process_bytes + min(kv_bytes, 8 * 800 * 6144)
