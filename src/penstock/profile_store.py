"""Where profiles are kept, and what tells one from another.

Owns `about`: all that the times of a step depend on, found without loading the model or torch, so that a run can look
for its profile before it starts. A profile's file is named by the hash of it, so another processor, model shape, dtype,
number of threads, instruction set or build of the kernels finds none, rather than a wrong one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from penstock.config import EngineConfig, FindKnee, Knee, cache_folder
from penstock.models.spec import DecoderSpec
from penstock.profile import Profile

PROFILE_VERSION = "4"  # counts changes of what is measured, or what the numbers mean
LIBRARY = Path(__file__).parent / "kernels" / "libpenstock.so"
NO_LIBRARY = "none"


class Kept(NamedTuple):
    """A file of the profile folder: the profile, or None and why it cannot be read."""

    path: Path
    profile: Profile | None
    why_not: str | None = None


def about(spec: DecoderSpec, *, device: str, dtype: str, threads: int | None, max_isa: str | None) -> dict[str, str]:
    """All that the times of a step depend on."""
    shape = json.dumps(asdict(spec), sort_keys=True)
    return {
        "version": PROFILE_VERSION,
        "model": f"{spec.layers} x {spec.hidden}, {hashlib.sha256(shape.encode()).hexdigest()[:16]}",
        "device": gpu_name() if device == "cuda" else device,
        "dtype": dtype,
        "processor": processor_name(),
        "threads": str(threads or "auto"),
        "max_isa": max_isa or "auto",
        "kernels": library_digest(),
        "torch": _version("torch"),
        "penstock": _version("penstock"),
    }


def about_config(spec: DecoderSpec, config: EngineConfig) -> dict[str, str]:
    """The same, of settings that are resolved."""
    return about(spec, device=config.device, dtype=config.dtype, threads=config.threads, max_isa=config.max_isa)


def find_profile(known: dict[str, str], *, folder: Path | None = None) -> Profile | None:
    """The profile of exactly this, or None: not measured yet, or the file is damaged (`penstock doctor` says so)."""
    kept = _read(path_of(known, folder=folder))
    return kept.profile if kept.profile is not None and kept.profile.about == known else None


def knee_finder(spec: DecoderSpec) -> FindKnee:
    """Looks up the knee of a model's profile with a configuration."""

    def find(config: EngineConfig) -> Knee | None:
        found = find_profile(about_config(spec, config))
        return found.knee() if found is not None else None

    return find


def keep_profile(profile: Profile, *, folder: Path | None = None) -> Path:
    """Write a profile to its place, whole or not at all."""
    path = path_of(profile.about, folder=folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(profile.dumps() + "\n", encoding="utf-8")
    part.replace(path)
    return path


def kept_profiles(*, folder: Path | None = None) -> Iterator[Kept]:
    """Every profile that is kept here, and every file that should be one."""
    for path in sorted((folder or profile_folder()).glob("*.json")):
        yield _read(path)


def profile_folder() -> Path:
    """The folder of all profiles."""
    return cache_folder() / "profiles"


def path_of(known: dict[str, str], *, folder: Path | None = None) -> Path:
    """Where the profile of this is kept, whether it is there or not."""
    name = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:24]
    return (folder or profile_folder()) / f"{name}.json"


def _read(path: Path) -> Kept:
    try:
        return Kept(path, Profile.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return Kept(path, None, str(error))


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor as it names itself, with family and model, since hypervisors shorten names."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    name = found.get("model name") or platform.processor() or platform.machine()
    numbers = " ".join(f"{key} {found[key]}" for key in ("cpu family", "model", "stepping") if key in found)
    return f"{name} ({numbers})" if numbers else name


def gpu_name(folder: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """What the driver calls the first GPU."""
    for path in sorted(folder.glob("*/information")):
        for line in path.read_text().splitlines():
            if line.startswith("Model:"):
                return line.removeprefix("Model:").strip()
    return "cuda, unknown model"


def library_digest(path: Path = LIBRARY) -> str:
    """What tells one build of the native kernels from another."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return NO_LIBRARY


def _version(package: str) -> str:
    return importlib.metadata.version(package)
