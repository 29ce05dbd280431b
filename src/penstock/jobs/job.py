"""`Job`: what a user asks for, and whether it can be done at all.

Owns everything that is refused before a model is loaded: wrong paths, an output without its job, a job made from
something else. Knows the store and the input's lines, no engine.
One idea: a job is its identity (input, model, seed, versions). Equal identity: go on. Another: refuse, or start over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from penstock import __version__
from penstock.engine import EngineStats
from penstock.errors import ConfigError, JobMismatch, OutputExists, Stopped
from penstock.jobs.answer_cache import DEFAULT_BYTES, SMALLEST_BYTES, AnswerCache, Scope
from penstock.jobs.export import sync_folder
from penstock.jobs.formats import digest
from penstock.jobs.locks import JobLock
from penstock.jobs.plan_file import PlanFile
from penstock.jobs.store import About, Identity, Store

DEFAULTS_VERSION = 1  # of the sampling defaults in `request.py` and `protocol.py`
OUTPUT_VERSION = 1  # of the lines that `protocol.py` writes


@dataclass(frozen=True, slots=True)
class Job:
    """The files of a job and how far it may go.

    Attributes:
        input: rows to answer; output: their answers; errors: error rows once more; path: the job file, the truth.
        seed: names the random streams of rows without a seed of their own.
        overwrite: an output without a job, or a job made from something else, may be replaced.
        accept_numerics: go on although the earlier rows were computed with other numerics.
        priority: the field of the rows' metadata whose number says what runs first, the highest; None: no matter.
        in_order: rows run in the order of the input, equal ones too; the answers are the same, so this is to compare.
        memory_bytes: what this process and those that tokenize for it may take; None: no matter.
        cache: the folder that keeps answers across jobs; None: none does; cache_bytes: how much it may keep.
    """

    input: Path
    output: Path
    errors: Path
    path: Path
    seed: int = 0
    overwrite: bool = False
    accept_numerics: bool = False
    priority: str | None = None
    in_order: bool = False
    memory_bytes: int | None = None
    cache: Path | None = None
    cache_bytes: int = DEFAULT_BYTES


def check_paths(job: Job) -> None:
    """Refuse files that cannot be what they are meant to be.

    Raises:
        ConfigError: two of the files are one, or one is no regular file, or has no folder to be in.
    """
    if job.priority is not None and job.in_order:
        raise ConfigError("--priority says what runs first and --in-order that the input does; give one of them")
    if not job.input.is_file():
        found = "is no regular file" if job.input.exists() else "is not there"
        raise ConfigError(f"the input {job.input} {found}; it must be a file, since a job may read it more than once")
    if job.cache is not None and job.cache_bytes < SMALLEST_BYTES:
        raise ConfigError(f"--cache-size is {job.cache_bytes} bytes; a cache needs {SMALLEST_BYTES} at least")
    names = {"input": job.input, "output": job.output, "--errors file": job.errors, "--job file": job.path}
    seen: dict[Path, str] = {}
    for name, path in names.items():
        other = seen.setdefault(path.resolve(), name)
        if other != name:
            raise ConfigError(f"the {other} and the {name} are the same file, {path}; give them different names")
        if path.exists() and not path.is_file():
            raise ConfigError(f"the {name} {path} is no regular file; name one, or a new one")
        if not path.parent.is_dir():
            raise ConfigError(f"the folder {path.parent} of the {name} is not there; make it first")
        if name != "input" and not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"the {name} {path} may not be written; change its permissions or name another")


def existing_store(job: Job, lock: JobLock) -> Store | None:
    """The job's store; None: there is none yet, and none of its outputs is in the way.

    Raises:
        JobMismatch: the file is no job, or one with another seed. OutputExists: outputs without a job.
    """
    store = Store.open(job.path) if lock.size_bytes else None
    if store is not None:
        identity = store.identity()
        if identity is not None:
            return store
        store.close()  # a process died before it had written what the job is
        lock.clear()
    _refuse_orphans(job)
    return None


def _refuse_orphans(job: Job) -> None:
    for path in (job.output, job.errors):
        if not job.overwrite and path.exists() and path.stat().st_size:
            raise OutputExists(
                f"{path} is there ({path.stat().st_size} bytes), but not the job {job.path} that made it; "
                "name another output, or --overwrite to replace it"
            )


def same_or_none(job: Job, store: Store | None, *, identity: Identity) -> Store | None:
    """The store if it was made from the same things; None where there is none, or `overwrite` lets it start over.

    (Then it is closed, and still whole: it is emptied only when the new one can be written.)

    Raises:
        JobMismatch: it was made from something else.
    """
    found = store.identity() if store is not None else None
    if store is None or found == identity:
        return store
    totals = store.totals()
    store.close()
    if found is not None and not job.overwrite:
        raise JobMismatch(
            f"the job {job.path} ({totals.done} rows done) was made from something else: "
            f"{'; '.join(found.differences(identity))}. Name another output, or --overwrite to start over"
        )
    return None


def new_store(job: Job, lock: JobLock, *, identity: Identity, model: str, plan: PlanFile) -> Store:
    """Write down a new job, over an old one if there is one."""
    lock.clear()
    store = Store.open(job.path)
    totals = plan.totals()
    paths = dict(relative_paths(job))
    known = About(model, totals.rows, totals.size_bytes, now(), __version__, **paths)
    store.create(identity, known, plan.counts())
    sync_folder(job.path.parent)
    return store


def identity_of(job: Job, *, input_sha256: str, model_sha256: str) -> Identity:
    """What the job is made from."""
    return Identity(input_sha256, model_sha256, job.seed, DEFAULTS_VERSION, OUTPUT_VERSION)


def relative_paths(job: Job) -> Iterator[tuple[str, str]]:
    """The job's other files, as seen from its folder."""
    for name in ("input", "output", "errors"):
        yield name, os.path.relpath(getattr(job, name).absolute(), job.path.absolute().parent)


def now() -> str:
    """The time, for people."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_numerics(job: Job, store: Store, *, numerics: dict[str, str]) -> str | None:
    """Compare the numerics of the rows done so far with those of now.

    Returns:
        None; or, where they differ and that is accepted, a sentence that says how.

    Raises:
        JobMismatch: they differ.
    """
    earlier = store.answer_numerics()
    if not earlier or earlier[-1] == numerics:
        return None
    differing = _differing(earlier[-1], numerics)
    if job.accept_numerics:
        return f"other numerics than before, as accepted: {differing}"
    raise JobMismatch(
        f"{store.totals().done} rows of the job {job.path} were computed with other numerics: {differing}. Go back to "
        "the former (the same flags, machine and versions), or give --accept-numerics to go on (each row is marked, "
        f"and the file is then not what one run would give), or remove {job.path} and give --overwrite to start over"
    )


def open_cache(job: Job, store: Store, *, stats: EngineStats, tell: Callable[[str], None]) -> AnswerCache:
    """The cache that the job may use; off where none was asked for, or an answer depends on more than its row."""
    if job.cache is None:
        return AnswerCache.off()
    if not stats.row_exact:
        tell("--cache is without effect: the numerics are not row-exact, so an answer depends on its neighbours too")
        return AnswerCache.off()
    identity = store.identity()
    assert identity is not None
    scope = Scope(identity.model_sha256, stats.numerics, (identity.defaults_version, identity.output_version))
    return AnswerCache.open(job.cache, limit_bytes=job.cache_bytes, scope=scope, tell=tell)


def _differing(before: dict[str, str], after: dict[str, str]) -> str:
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return "; ".join(f"{key} was {before.get(key, 'absent')} and is {after.get(key, 'absent')}" for key in keys)


def check_all_done(job: Job, store: Store) -> None:
    """Refuse to call a job done when the input ended before its rows did."""
    done, rows = store.totals().done, store.about().rows
    if done != rows:
        raise Stopped(f"the input {job.input} ended after {done} rows; it had {rows} when the job began")


class UnchangedInput:
    """Watches that the input stays as it was when it was hashed, so that no row of another file is ever committed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._mark()
        self.sha256 = digest(path)

    def check(self) -> None:
        """Look at the file's size and time; only if they changed, at its bytes.

        Raises:
            Stopped: it is not the same file any more.
        """
        mark = self._mark()
        if mark == self._seen:
            return
        if mark is None or digest(self.path) != self.sha256:
            raise Stopped(
                f"the input {self.path} changed while the job ran; what was done before is kept: "
                "restore it and run the same command again, or remove the job and its output and start over"
            )
        self._seen = mark

    def _mark(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns
