"""Settings: from flags, environment and machine to values, each with the reason why it has that value.

Owns `EngineConfig`, the names and limits of every setting, and all reading of the environment and of the machine's
size. Knows nothing of tensors or files; standard library only.
One idea: a setting is asked for (`Settings`: parsed, or None for "choose") and then resolved once (`Resolved`), where
each value carries its source, so that nothing is chosen silently.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from penstock.errors import ConfigError
from penstock.memory import OTHER_BYTES, SORT_BYTES, Footprint, Shape, footprint
from penstock.models.spec import DecoderSpec

T = TypeVar("T")

PREFIX = "PENSTOCK_"
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MAX_ISAS = ("auto", "reference", "portable", "avx2", "avx512", "avx512_bf16", "amx")
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MAX_SEED = 2**63 - 1

# Automatic values. The reference kernels of the CPU work in tiles of 64 rows, so budgets are multiples of 64.
TILE_ROWS = 64
AUTO_TOKEN_BUDGET = {"cpu": 512, "cuda": 4096}
AUTO_MAX_SEQUENCES = {"cpu": 64, "cuda": 256}
AUTO_KV_SHARE = {"cpu": 0.25, "cuda": 0.8}  # of the memory that is free once the weights are loaded
AUTO_KV_MAX_BYTES = {"cpu": 4 * 2**30, "cuda": 512 * 2**30}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The values that an engine is opened with; nothing in it is automatic any more.

    Attributes:
        device: `cpu` or `cuda`; dtype: `float32`, `bfloat16` or `float16`, of weights and KV.
        kv_memory_bytes: memory for the keys and values of all sequences and of reusable prefixes.
        token_budget: tokens that one step computes, at most; max_sequences: sequences that run at once, at most.
        block_tokens: token positions in a KV block.
        threads: threads that compute on the CPU; None: as many as torch takes.
        max_isa: the highest instruction set that the native kernels of the CPU may use; None: the fastest there is;
            `reference`: none, PyTorch computes.
    """

    device: str
    dtype: str
    kv_memory_bytes: int
    token_budget: int
    max_sequences: int
    block_tokens: int = 16
    threads: int | None = None
    max_isa: str | None = None


class Machine(NamedTuple):
    """What automatic values need to know of the machine; `cuda_free_bytes` is None where there is no CUDA device.

    `process_bytes`, `peak_bytes`: what this process takes, and the most it took so far; `has_native`: whether the
    native kernels can be opened. They are needed for a limit on memory alone.
    """

    cores: int
    free_bytes: int
    cuda_free_bytes: int | None = None
    process_bytes: int = 0
    peak_bytes: int = 0
    has_native: bool = True


class Choice(NamedTuple):
    """A resolved value, as it is printed, and its source: a flag, a variable, the machine, the model, a default."""

    name: str
    value: str
    source: str


class Resolved(NamedTuple):
    """An engine's configuration and the choice behind each value of it."""

    config: EngineConfig
    choices: tuple[Choice, ...]


class Knee(NamedTuple):
    """Where a measured curve bends: tokens in a step beyond which little is gained; `source` says who measured."""

    tokens: int
    source: str


# From a configuration to what was measured with it; None: nothing was.
FindKnee = Callable[[EngineConfig], Knee | None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for, parsed and checked; None: choose.

    `sources` has the flag or variable that gave each value that is not None. `planned_rows`: of the job,
    about; its plan takes memory.
    """

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    memory_bytes: int | None = None
    kv_memory_bytes: int | None = None
    token_budget: int | None = None
    max_sequences: int | None = None
    threads: int | None = None
    max_isa: str | None = None
    seed: int | None = None
    cache: str | None = None
    cache_bytes: int | None = None
    phase_file: str | None = None
    planned_rows: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)


def _text(value: str, name: str) -> str:
    if not value:
        raise ConfigError(f"{name} is empty; leave it out or give it a value")
    return value


def _one_of(names: tuple[str, ...]) -> Callable[[str, str], str | None]:
    def parse(value: str, name: str) -> str | None:
        if value not in names:
            raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(names)}")
        return None if value == "auto" else value

    return parse


def _whole(minimum: int, maximum: int) -> Callable[[str, str], int]:
    def parse(value: str, name: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", value) or not minimum <= int(value) <= maximum:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number from {minimum} to {maximum}")
        return int(value)

    return parse


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(value: str, name: str = "size") -> int:
    """Bytes of a size such as `1GiB`, `512 MiB`, `1.5GB` or `1048576`.

    Raises:
        ConfigError: not such a size, or less than one byte.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", value.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a size such as 1GiB, 512MiB or 1048576 (bytes)")
    return size


def format_bytes(size_bytes: int) -> str:
    """A size as people read it: `1.5 GiB`, `512 MiB`, `37 B`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.4g} {unit}"
    return f"{size_bytes} B"


# Every setting: its field in `Settings` and how its text is read. Flag: --kv-memory; variable: PENSTOCK_KV_MEMORY.
_PARSERS: dict[str, tuple[str, Callable[[str, str], object]]] = {
    "model": ("model", _text),
    "device": ("device", _one_of(DEVICES)),
    "dtype": ("dtype", _one_of(DTYPES)),
    "memory": ("memory_bytes", parse_bytes),
    "kv-memory": ("kv_memory_bytes", parse_bytes),
    "token-budget": ("token_budget", _whole(1, 2**20)),
    "max-sequences": ("max_sequences", _whole(1, 2**16)),
    "threads": ("threads", _whole(1, 4096)),
    "max-isa": ("max_isa", _one_of(MAX_ISAS)),
    "seed": ("seed", _whole(0, MAX_SEED)),
    "cache": ("cache", _text),
    "cache-size": ("cache_bytes", parse_bytes),
    "phase-file": ("phase_file", _text),
}


def variable(setting: str) -> str:
    """The environment variable of a setting: `kv-memory` is PENSTOCK_KV_MEMORY."""
    return PREFIX + setting.upper().replace("-", "_")


def read_settings(flags: Mapping[str, str | None], environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of flags (by name, without dashes; None: not given) and environment; a flag wins.

    Raises:
        ConfigError: a value that cannot be used, or a PENSTOCK_ variable that is no setting.
    """
    environment = os.environ if environment is None else environment
    _refuse_unknown(environment)
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for setting, (name, parse) in _PARSERS.items():
        for source, text in (
            (f"--{setting}", flags.get(setting)),
            (variable(setting), environment.get(variable(setting))),
        ):
            if text is not None:
                values[name], sources[name] = parse(text, source), source
                break
    return Settings(**values, sources=sources)  # type: ignore[arg-type]  # each parser gives its field's type


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = [variable(setting) for setting in _PARSERS]
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            import difflib  # takes longer to import than all the rest of this module

            close = difflib.get_close_matches(name, known, 1, cutoff=0.85)
            hint = f"did you mean {close[0]}?" if close else f"the settings are {', '.join(known)}"
            raise ConfigError(f"the environment variable {name} is no setting of Penstock; {hint}")


def resolve(
    settings: Settings, *, machine: Machine, spec: DecoderSpec, stored_dtype: str, find_knee: FindKnee | None = None
) -> Resolved:
    """Turn every setting into a value, once, and say why.

    Args:
        settings: what was asked for.
        machine: what there is (see `read_machine`).
        spec: the model, for its dtype and the size of its KV; stored_dtype: the dtype of its checkpoint.
        find_knee: looks up what was measured with a configuration (its memory and token budget count for nothing).

    Raises:
        ConfigError: values that cannot go together, or a device that is not there.
    """
    choices: list[Choice] = []

    def choose(name: str, asked: T | None, automatic: tuple[T, str], show: Callable[[T], str] = str) -> T:
        value, source = automatic if asked is None else (asked, settings.sources.get(name, "argument"))
        choices.append(Choice(name.removesuffix("_bytes").replace("_", " "), show(value), source))
        return value

    device = choose("device", settings.device, _auto_device(machine))
    if device == "cuda" and machine.cuda_free_bytes is None:
        raise ConfigError("device is 'cuda', but PyTorch finds no CUDA device here; use --device cpu")
    dtype = choose("dtype", settings.dtype, (stored_dtype, "model"))
    threads = choose("threads", settings.threads, (machine.cores, "machine: its physical cores"))
    sequences = choose("max_sequences", settings.max_sequences, _auto_sequences(device, settings.token_budget))
    isa = settings.max_isa
    knee = find_knee(EngineConfig(device, dtype, 0, 0, sequences, threads=threads, max_isa=isa)) if find_knee else None
    budget = choose("token_budget", settings.token_budget, _auto_budget(device, sequences, knee))
    if sequences > budget:
        raise ConfigError(
            f"max sequences is {sequences} and the token budget {budget}; each running sequence takes at least one "
            f"token of a step, so use --token-budget {sequences} or more, or --max-sequences {budget} or less"
        )
    automatic_kv = _auto_kv(machine, spec=spec, device=device, dtype=dtype, sequences=sequences)
    if isa is not None:
        choose("max_isa", isa, (isa, ""))
    if settings.memory_bytes is not None:
        shape = Shape(ELEMENT_BYTES[dtype], ELEMENT_BYTES[stored_dtype], budget, sequences, threads, machine.has_native)
        parts = _within(settings, machine, spec=spec, device=device, shape=shape)
        choices += _memory_choices(settings, parts, shape)
        automatic_kv = parts.kv_bytes(settings.memory_bytes), "what the memory leaves"
    kv_bytes = choose("kv_memory_bytes", settings.kv_memory_bytes, automatic_kv, format_bytes)
    config = EngineConfig(device, dtype, kv_bytes, budget, sequences, threads=threads, max_isa=isa)
    return Resolved(config, tuple(choices))


def _auto_device(machine: Machine) -> tuple[str, str]:
    return ("cpu", "machine: no CUDA device") if machine.cuda_free_bytes is None else ("cuda", "machine: it has one")


def _auto_sequences(device: str, asked_budget: int | None) -> tuple[int, str]:
    most = AUTO_MAX_SEQUENCES[device]
    if asked_budget is not None and asked_budget < most:
        return asked_budget, "the token budget"
    return most, f"default on {device}"


def _auto_budget(device: str, sequences: int, knee: Knee | None) -> tuple[int, str]:
    """As many tokens of prompts as the knee has, beside a token of each sequence that decodes."""
    if knee is not None:
        return -(-(knee.tokens + sequences) // TILE_ROWS) * TILE_ROWS, f"{knee.source}: its knee is {knee.tokens}"
    least = -(-sequences // TILE_ROWS) * TILE_ROWS
    if least > AUTO_TOKEN_BUDGET[device]:
        return least, "one token a sequence"
    return AUTO_TOKEN_BUDGET[device], f"default on {device}"


def weight_bytes(spec: DecoderSpec, element_bytes: int) -> int:
    """About what the weights of a model take (norms and biases left out)."""
    tables = spec.vocab * spec.hidden * (1 if spec.tied else 2)
    return (spec.layers * spec.layer_elements + tables) * element_bytes


def _auto_kv(machine: Machine, *, spec: DecoderSpec, device: str, dtype: str, sequences: int) -> tuple[int, str]:
    element = ELEMENT_BYTES[dtype]
    useful = 2 * sequences * spec.context_tokens * spec.kv_bytes_per_token(element)
    there = machine.free_bytes if device == "cpu" else machine.cuda_free_bytes or 0
    share = int(AUTO_KV_SHARE[device] * max(0, there - weight_bytes(spec, element)))
    if useful <= min(share, AUTO_KV_MAX_BYTES[device]):
        return useful, "model: twice the context of every sequence"
    if share <= AUTO_KV_MAX_BYTES[device]:
        return max(1, share), f"machine: {AUTO_KV_SHARE[device]:.0%} of the memory left beside the weights"
    return AUTO_KV_MAX_BYTES[device], f"default limit on {device}"


def _within(settings: Settings, machine: Machine, *, spec: DecoderSpec, device: str, shape: Shape) -> Footprint:
    """What a run takes, part by part, where that is within `memory_bytes`."""
    limit, asked_kv = settings.memory_bytes or 0, settings.kv_memory_bytes
    name = settings.sources.get("memory_bytes", "memory")
    if device != "cpu":
        raise ConfigError(
            f"{name} bounds the memory of a process on the CPU, and the device is {device}; use --kv-memory"
        )
    parts = footprint(
        spec,
        shape,
        process_bytes=machine.process_bytes,
        peak_bytes=machine.peak_bytes,
        rows=settings.planned_rows,
    )
    if parts.smallest > limit:
        needed = (
            f"the process takes {format_bytes(parts.process + OTHER_BYTES)}, the plan {format_bytes(parts.plan)} "
            f"({format_bytes(SORT_BYTES)} more while it is made), the weights {format_bytes(parts.weights)} "
            f"({format_bytes(parts.loading)} while they are read), and a step of {shape.token_budget} tokens and "
            f"{shape.sequences} sequences on the {shape.kernels} kernels {format_bytes(parts.workspace)}"
        )
        least = format_bytes(-(-parts.smallest // 2**20) * 2**20)
        raise ConfigError(f"{name} is {format_bytes(limit)} and the least that is enough is {least}: {needed}")
    if asked_kv is not None and asked_kv > parts.kv_bytes(limit):
        raise ConfigError(
            f"{name} is {format_bytes(limit)}, which leaves {format_bytes(parts.kv_bytes(limit))} for keys and values, "
            f"and {settings.sources.get('kv_memory_bytes', 'kv memory')} is {format_bytes(asked_kv)}; give one of them"
        )
    return parts


def _memory_choices(settings: Settings, parts: Footprint, shape: Shape) -> Iterator[Choice]:
    yield Choice("memory", format_bytes(settings.memory_bytes or 0), settings.sources.get("memory_bytes", "argument"))
    yield Choice("process memory", format_bytes(parts.process), "measured, before the model was loaded")
    yield Choice("other memory", format_bytes(OTHER_BYTES), "default: buffers, caches, the allocator's holes")
    yield Choice("plan memory", format_bytes(parts.plan), f"input: about {settings.planned_rows} rows")
    yield Choice("weights", format_bytes(parts.weights), f"model; {format_bytes(parts.loading)} while they are read")
    yield Choice("step memory", format_bytes(parts.workspace), f"token budget, sequences, {shape.kernels} kernels")


def resident_bytes(pid: int | None = None) -> tuple[int, int]:
    """What a process (None: this one) takes of the machine's memory now, and the most it took so far."""
    text = Path(f"/proc/{pid or 'self'}/status").read_text()
    sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", text, re.MULTILINE)}
    return sizes["VmRSS"], sizes["VmHWM"]


def read_machine(*, cuda_free_bytes: int | None = None) -> Machine:
    """The cores and the free memory that this process may use, with the limits of its control group."""
    return Machine(_cores(), _free_bytes(), cuda_free_bytes)


def _cores() -> int:
    """Physical cores (two threads of one core share its arithmetic), within affinity and the control group's quota."""
    threads = os.sched_getaffinity(0)
    siblings = {_first_line(Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list")) for n in threads}
    cores = len(siblings) if None not in siblings else len(threads)
    for folder in _cgroups():
        quota, _, period = (_first_line(folder / "cpu.max") or "max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _free_bytes() -> int:
    """Available memory, or what the control group (version 2) still allows, whichever is less."""
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    free = int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for folder in _cgroups():
        limit, used = _first_line(folder / "memory.max") or "max", _first_line(folder / "memory.current") or "0"
        cache = (_first_line(folder / "memory.stat", starting="inactive_file ") or "0").split()[-1]
        if limit.isdigit() and used.isdigit() and cache.isdigit():
            free = min(free, max(0, int(limit) - int(used) + int(cache)))  # the cache of files gives way
    return free


def _cgroups() -> Iterator[Path]:
    """The folders of this process's control group and of those above it."""
    own = (_first_line(Path("/proc/self/cgroup"), starting="0::") or "0::/").removeprefix("0::/")
    folder = Path("/sys/fs/cgroup") / own
    yield folder
    for parent in folder.parents:
        if parent.is_relative_to("/sys/fs/cgroup"):
            yield parent


def _first_line(path: Path, starting: str = "") -> str | None:
    with suppress(OSError):  # not every kernel has every file: absent means no limit
        for line in path.read_text().splitlines():
            if line.startswith(starting):
                return line
    return None


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where Penstock keeps what it can make again: `penstock` in XDG_CACHE_HOME, or in ~/.cache."""
    given = (os.environ if environment is None else environment).get("XDG_CACHE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".cache") / "penstock"


def hub_cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where the Hugging Face library keeps checkpoints: HF_HUB_CACHE, or `hub` in HF_HOME or in its usual place."""
    environment = os.environ if environment is None else environment
    if given := environment.get("HF_HUB_CACHE"):
        return Path(given).expanduser()
    cache = Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(environment.get("HF_HOME") or cache / "huggingface").expanduser() / "hub"


def wait_passively() -> None:
    """Let idle OpenMP threads sleep. Call before torch is first imported; a value that the user set is kept.

    By default they spin, which takes the cores from whoever else computes: on two shared cores a step took 50 times
    as long (docs/log.md, 2026-11-20).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def clock_ticks_per_s() -> int:
    """The unit of the times in /proc."""
    return os.sysconf("SC_CLK_TCK")
