"""What this machine is and has, as far as Penstock needs it: a list of findings, each right or wrong.

Owns what is looked at and when it counts as wrong: when something that should work does not, or computes much slower
than it could. Changes nothing. Whatever is missing comes with the reason and with what to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from penstock.config import (
    Machine,
    Settings,
    cache_folder,
    format_bytes,
    hub_cache_folder,
    read_machine,
    wait_passively,
)
from penstock.profile import Profile
from penstock.profile_store import Kept, gpu_name, kept_profiles, processor_name, profile_folder

LEAST_FREE_BYTES = 2**30
SETS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd")
FALLBACK = (
    "PyTorch's reference kernels compute instead: exact, but with every product in tiles of 64 rows and every op "
    "a pass of its own"
)


class Finding(NamedTuple):
    """One thing that was looked at; `advice` says what to do where it is not well, or what else is worth knowing."""

    name: str
    value: str
    is_well: bool = True
    advice: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything, the cheap things first."""
    machine = read_machine()
    yield Finding("processor", f"{processor_name()}, {_count(machine.cores, 'core')}")
    yield Finding("instruction sets", " ".join(_instruction_sets()) or "unknown", advice=_cap(settings))
    yield _memory(machine)
    yield from _computing(settings, machine)
    yield _folder("cache", cache_folder())
    yield _folder("hub cache", hub_cache_folder())
    yield from _profiles()


def _instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in SETS if name in flags]


def _cap(settings: Settings) -> str:
    if settings.max_isa is None:
        return "no cap: the fastest is used"
    return f"capped at {settings.max_isa} by {settings.sources.get('max_isa', 'argument')}"


def _memory(machine: Machine) -> Finding:
    is_well = machine.free_bytes >= LEAST_FREE_BYTES
    advice = "" if is_well else f"less than {format_bytes(LEAST_FREE_BYTES)}: hardly a model fits; end other programs"
    return Finding("memory", f"{format_bytes(machine.free_bytes)} free for Penstock", is_well, advice)


def _computing(settings: Settings, machine: Machine) -> Iterator[Finding]:
    """PyTorch, the native kernels, the GPU."""
    wait_passively()
    try:
        from penstock.kernels.native import open_native
        from penstock.kernels.torch_facts import torch_facts
    except (ImportError, OSError) as error:
        yield Finding("torch", "cannot be imported", is_well=False, advice=f"{error}; install penstock again")
        return
    facts = torch_facts()
    yield Finding("torch", f"{facts.version}, vectors: {facts.vectors}")
    opened = open_native(dtype="bfloat16", threads=settings.threads or machine.cores, max_isa=settings.max_isa)
    if opened.native is not None:
        yield Finding("native kernels", f"built; they use {opened.native.isa}", advice=opened.native.passed_over or "")
    else:
        asked = settings.max_isa == "reference"
        advice = f"{FALLBACK}{_measured_cost()}"
        yield Finding("native kernels", f"not used: {opened.why_not}", is_well=asked, advice=advice)
    yield Finding("gpu", gpu_name() if facts.why_no_gpu is None else f"none: {facts.why_no_gpu}")


def _measured_cost() -> str:
    """What the lack of native kernels costs, where both were measured on this machine."""
    ratios = list(_ratios([kept.profile for kept in kept_profiles() if kept.profile is not None]))
    return f"; measured here: {max(ratios):.1f} times as long" if ratios else "; not measured here"


def _ratios(profiles: list[Profile]) -> Iterator[float]:
    """How much faster native kernels were, for each pair of profiles that differ in nothing else."""

    def setting(profile: Profile) -> dict[str, str]:
        return {key: value for key, value in profile.about.items() if key not in {"kernels", "max_isa"}}

    for native in profiles:
        for reference in profiles:
            if _is_native(native) and not _is_native(reference) and setting(native) == setting(reference):
                tokens = min(native.tokens[-1].number, reference.tokens[-1].number)
                yield native.tokens_per_s(tokens) / reference.tokens_per_s(tokens)


def _is_native(profile: Profile) -> bool:
    return profile.numerics.get("kernel.linear", "").startswith("native")


def _folder(name: str, path: Path) -> Finding:
    """A folder that is there, or can be made."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    is_well = there.is_dir() and os.access(there, os.W_OK)
    state = f"{format_bytes(_size_bytes(path))} in it" if path.is_dir() else "not made yet"
    return Finding(name, f"{path} ({state})", is_well, "" if is_well else f"{there} may not be written")


def _size_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def _profiles() -> Iterator[Finding]:
    found = list(kept_profiles())
    if not found:
        yield Finding("profiles", f"none in {profile_folder()}", advice="penstock doctor --measure --model M makes one")
    yield from map(_profile, found)


def _profile(kept: Kept) -> Finding:
    if kept.profile is None:
        return Finding("profile", f"{kept.path} is damaged: {kept.why_not}", is_well=False, advice="remove it")
    about, knee = kept.profile.about, kept.profile.knee()
    name = f"{about['model']} in {about['dtype']} on {about['device']}, {about['threads']} threads"
    kernels = kept.profile.numerics.get("kernel.linear", "unknown kernels")
    return Finding("profile", f"{name}, {kernels}: {kept.profile.measured_at[:10]}, knee at {knee.tokens} tokens")


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
