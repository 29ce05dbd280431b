"""`penstock bench`: from flags to a sitting and its report.

Owns the order of things: refuse what cannot be done, settle the settings once for all engines, measure the limits,
write the workloads, sit, report. Imports no torch: whatever computes does so in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from penstock.bench.against import Peer, parse_peer
from penstock.bench.limits import Limits, read_limits
from penstock.bench.report import as_json, table
from penstock.bench.shapes import Row
from penstock.bench.sitting import OWN, Entrant, Sitting
from penstock.bench.terms import Task, Terms
from penstock.bench.workloads import USUAL_VOCABULARY, WORKLOADS, amount, build, write_jsonl
from penstock.checkpoint import Checkpoint, find_checkpoint
from penstock.config import EngineConfig, Settings, read_machine, resolve
from penstock.errors import BenchFailed, ConfigError
from penstock.profile_store import knee_finder

MOST_SEQUENCES = 256
NAME_WIDTH = max(map(len, WORKLOADS))


@dataclass(frozen=True, slots=True)
class Asked:
    """What to measure, from the flags.

    Attributes:
        against: NAME=PYTHON each; ceilings: a file with measured limits, written where it is not there; None: measure
            anew. measures_ceilings: false leaves out the limits, and with them the shares of the least time.
    """

    workloads: tuple[str, ...]
    repeats: int
    scale: float
    seed: int
    against: tuple[str, ...]
    ceilings: Path | None
    measures_ceilings: bool
    timeout_s: float


class Report(NamedTuple):
    """What was found, for people and for programs."""

    lines: list[str]
    json: dict[str, object]


def list_workloads() -> list[str]:
    """A line for each workload, and one for what it amounts to."""
    lines = []
    for name, workload in WORKLOADS.items():
        work = amount(build(name))
        lines.append(f"{name:<{NAME_WIDTH}}  {workload.purpose}")
        lines.append(
            f"{'':<{NAME_WIDTH}}  {work.prompt_tokens} prompt tokens, {work.distinct_tokens} of them distinct; "
            f"{work.output_tokens} output tokens"
        )
    return lines


def write_workloads(asked: Asked, folder: Path) -> list[Path]:
    """Write workloads to files, for other programs."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.jsonl" for name in _checked(asked)]
    for path in paths:
        write_jsonl(build(path.stem, seed=asked.seed, scale=asked.scale), path)
    return paths


def bench(asked: Asked, settings: Settings, tell: Callable[[str], None]) -> Report:
    """Measure; `tell` gets a line whenever something has happened.

    Raises:
        ConfigError, ModelError: it cannot be done. BenchFailed: Penstock itself could not finish a workload.
    """
    names = _checked(asked)
    peers = [parse_peer(text) for text in asked.against]
    checkpoint = find_checkpoint(settings.model or "", needs_tokenizer=False)
    vocab = min(USUAL_VOCABULARY, checkpoint.spec.vocab)
    rows = {name: build(name, seed=asked.seed, vocab=vocab, scale=asked.scale) for name in names}
    context_tokens = _longest(rows, checkpoint)
    config = _config(settings, checkpoint, most_requests=max(map(len, rows.values())))
    limits = _limits(asked, config, tell)
    terms = _terms(checkpoint, config, limits, context_tokens)
    entrants = _entrants(peers)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        tasks = [_write(name, rows[name], Path(folder)) for name in names]
        Sitting(entrants, tasks, terms, Path(folder), asked.timeout_s, tell).run(asked.repeats)
    told = {"model": checkpoint.name, "seed": asked.seed, "scale": asked.scale, "vocab": vocab, **asdict(config)}
    found = as_json(tasks, entrants, limits=limits, settings=told)
    return Report(table(tasks, entrants, limits), found)


def _checked(asked: Asked) -> tuple[str, ...]:
    unknown = [name for name in asked.workloads if name not in WORKLOADS]
    if unknown or not asked.workloads:
        found = f"there is no workload {unknown[0]}" if unknown else "no workload was named"
        raise ConfigError(f"{found}; name one or more of {', '.join(WORKLOADS)} (penstock bench --list says more)")
    if asked.repeats < 1 or not asked.scale > 0 or not asked.timeout_s > 0:
        raise ConfigError("--repeat must be 1 or more; --scale and --timeout must be above 0")
    return tuple(dict.fromkeys(asked.workloads))


def _longest(rows: dict[str, list[Row]], checkpoint: Checkpoint) -> int:
    longest = {name: max(len(row.prompt_tokens) + row.max_tokens for row in some) for name, some in rows.items()}
    limit = checkpoint.spec.context_tokens
    for name, tokens in longest.items():
        if tokens > limit:
            raise ConfigError(
                f"{name} has a request of {tokens} tokens and the context of {checkpoint.name} is {limit}; leave it out"
            )
    return max(longest.values())


def _config(settings: Settings, checkpoint: Checkpoint, *, most_requests: int) -> EngineConfig:
    """As `penstock run` resolves it, but for the sequences at once: enough for the widest workload, for all engines."""
    if settings.device == "cuda":
        raise ConfigError(
            "the device is cuda and penstock bench measures CPUs only, as its timers do not wait for a GPU; use cpu"
        )
    sequences = settings.max_sequences or min(MOST_SEQUENCES, most_requests)
    asked = {
        name: getattr(settings, name) for name in ("dtype", "kv_memory_bytes", "token_budget", "threads", "max_isa")
    }
    wanted = Settings(device="cpu", max_sequences=sequences, sources={"max-sequences": "the workloads"}, **asked)
    return resolve(
        wanted,
        machine=read_machine(),
        spec=checkpoint.spec,
        stored_dtype=checkpoint.dtype,
        find_knee=knee_finder(checkpoint.spec),
    ).config


def _threads(config: EngineConfig) -> int:
    return config.threads or read_machine().cores


def _limits(asked: Asked, config: EngineConfig, tell: Callable[[str], None]) -> Limits | None:
    if not asked.measures_ceilings:
        return None
    threads = _threads(config)
    if asked.ceilings is not None and asked.ceilings.exists():
        return read_limits(asked.ceilings, dtype=config.dtype, threads=threads, max_isa=config.max_isa)
    tell("measuring the limits of this machine")
    limits = measure_limits(config.dtype, threads, max_isa=config.max_isa)
    if asked.ceilings is not None:
        asked.ceilings.write_text(limits.dumps() + "\n", encoding="utf-8")
    return limits


def measure_limits(dtype: str, threads: int, *, max_isa: str | None = None, is_quick: bool = False) -> Limits:
    """Measure the machine's limits, in a process of its own; quick: with one kind of product only.

    Raises:
        BenchFailed: that process ended without them.
    """
    asked = json.dumps({"dtype": dtype, "threads": threads, "max_isa": max_isa, "is_quick": is_quick})
    command = [sys.executable, "-m", "penstock.bench.ceilings", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchFailed(f"the limits could not be measured:\n{done.stderr.strip()}\n(--no-ceilings goes without)")
    return Limits.loads(done.stdout.splitlines()[-1])


def _terms(
    checkpoint: Checkpoint, config: EngineConfig, limits: Limits | None, context_tokens: int
) -> Callable[[bool], Terms]:
    rates = {
        "flops_per_s": limits.gemm.per_s if limits else None,
        "bytes_per_s": limits.read.per_s if limits else None,
        "tile_flops_per_s": limits.tile.per_s if limits else None,
    }

    def terms(warm_up: bool) -> Terms:  # noqa: FBT001  the only argument of a callback
        return Terms(
            checkpoint=str(checkpoint.folder.resolve()),
            dtype=config.dtype,
            threads=_threads(config),
            max_isa=config.max_isa,
            kv_bytes=config.kv_memory_bytes,
            max_sequences=config.max_sequences,
            context_tokens=context_tokens,
            warm_up=warm_up,
            penstock={"config": asdict(config), **rates},
        )

    return terms


def _entrants(peers: Sequence[Peer]) -> list[Entrant]:
    own = Entrant(OWN, (sys.executable, "-m", "penstock.bench.measure"))
    return [own, *(Entrant(peer.name, peer.command, peer.dtype, why_not=peer.why_not) for peer in peers)]


def _write(name: str, rows: list[Row], folder: Path) -> Task:
    path = folder / f"{name}.jsonl"
    write_jsonl(rows, path)
    return Task(
        name=name,
        path=path,
        amount=amount(rows),
        is_whole_process=WORKLOADS[name].is_whole_process,
    )
