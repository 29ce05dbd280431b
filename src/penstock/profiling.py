"""From a model and its settings to a measured profile, kept for the next time.

Owns the order of it: the machine's limits (in a process of its own), then the model on its device, then the steps.
Both `penstock doctor --measure` and `penstock plan`, where there is no profile yet, come through here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

from penstock.bench.command import measure_limits
from penstock.checkpoint import Checkpoint
from penstock.config import ELEMENT_BYTES, EngineConfig, read_machine, wait_passively
from penstock.disturbance import cpu_times
from penstock.errors import BenchFailed
from penstock.measuring import Effort, measure, size_of, unmeasured
from penstock.profile import Profile, Rates
from penstock.profile_store import about_config, keep_profile
from penstock.simulation import Terms

Tell = Callable[[str], None]


def measure_profile(
    checkpoint: Checkpoint, config: EngineConfig, *, effort: Effort, tell: Tell, folder: Path | None = None
) -> Profile:
    """Measure a model's profile on this machine, and keep it."""
    tell("measuring the limits of this machine")
    rates = _rates(config, tell)
    tell(f"measuring the steps of {checkpoint.name} ({effort.seconds:.0f} s or a little more)")
    profile = _measure_steps(checkpoint, config, effort=effort, rates=rates)
    gc.collect()  # the weights: what comes next may load them again
    keep_profile(profile, folder=folder)
    return profile


def _rates(config: EngineConfig, tell: Tell) -> Rates:
    if config.device != "cpu":
        tell("the limits of a GPU are not measured, so no optimal time is told")
        return Rates()
    try:
        threads = config.threads or read_machine().cores
        limits = measure_limits(config.dtype, threads, max_isa=config.max_isa, is_quick=True)
    except BenchFailed as error:
        tell(f"no optimal time is told: {error}")
        return Rates()
    return Rates(limits.gemm.per_s, limits.read.per_s)


def _measure_steps(checkpoint: Checkpoint, config: EngineConfig, *, effort: Effort, rates: Rates) -> Profile:
    wait_passively()
    from penstock.device import open_device  # imports torch

    spec = checkpoint.spec
    per_token = spec.kv_bytes_per_token(ELEMENT_BYTES[config.dtype])
    size = size_of(spec, config, kv_bytes_per_token=per_token, effort=effort)
    opened = open_device(checkpoint, config, num_blocks=size.blocks)
    known = unmeasured(about_config(spec, config), opened.signature)
    terms = Terms(spec, config, known)
    clock = time.perf_counter
    return measure(opened.executor, terms, size=size, effort=effort, clock=clock, cpu=cpu_times, rates=rates)
