"""Looking at jobs from outside: list, show, verify. Changes nothing, and works while a job runs.

Owns how jobs are found and described. Reads stores, never writes; a job that cannot be read is described as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from penstock.errors import ConfigError, PenstockError, Refused
from penstock.jobs.export import differences
from penstock.jobs.formats import digest
from penstock.jobs.locks import is_locked
from penstock.jobs.store import Store


class Report(NamedTuple):
    """What is wrong with a job, and what was looked at."""

    problems: tuple[str, ...]
    checked: tuple[str, ...]


def find_jobs(path: Path) -> list[Path]:
    """The jobs of a folder, or the job of an output, or the job itself.

    Raises:
        ConfigError: there is nothing of the kind.
    """
    if path.is_dir():
        found = sorted(path.glob("*.job"))
        if not found:
            raise ConfigError(f"the folder {path} has no jobs (files that end in .job)")
        return found
    beside = path.with_name(f"{path.name}.job")
    if path.suffix != ".job" and beside.is_file():
        return [beside]
    if not path.is_file():
        raise ConfigError(f"there is no {path}, and no job {beside}")
    return [path]


def one_line(path: Path) -> str:
    """A job as one line: its state, its rows, its model and its name."""
    try:
        state = "running" if is_locked(path) else ""
        with closing(Store.look(path)) as store:
            if not store.meta():
                return f"{state or 'empty':<9} {'':>17}  {path}"
            about, totals = store.about(), store.totals()
    except (OSError, PenstockError) as error:
        return f"{'unknown':<9} {path}: {error}"
    state = state or ("finished" if totals.done == about.rows else "stopped")
    return f"{state:<9} {totals.done:>8}/{about.rows:<8} rows, {totals.failed} failed  {about.model}  {path}"


def describe(path: Path) -> Iterator[str]:
    """Everything that is known of a job, a line each."""
    yield one_line(path)
    with closing(Store.look(path)) as store:
        for key, value in store.meta().items():
            yield f"  {key:<18} {value}"
        totals = store.totals()
        tokens = f"{totals.prompt_tokens} prompt ({totals.cached_tokens} cached), {totals.output_tokens} output"
        yield f"  {'tokens':<18} {tokens}"
        for code, number in store.failures().items():
            yield f"  {'failed':<18} {number} {code}"
        for attempts, number in store.attempts():
            yield f"  {'attempts':<18} {number} rows started {attempts} times"
        for run in store.runs():
            yield f"  {'run ' + str(run.run):<18} {run.started}  {run.done} rows  {run.outcome or 'runs, or died'}"
        for numerics in store.answer_numerics():
            yield f"  {'numerics':<18} {', '.join(f'{key}={value}' for key, value in sorted(numerics.items()))}"


def verify(path: Path) -> Report:
    """Re-derive every hash that the store holds and compare the job's files with it.

    The input is hashed where it is still in its place. The model's fingerprint is not derived anew.
    """
    try:
        with closing(Store.look(path)) as store:
            problems = list(store.verify())
            meta = store.meta()
            if problems or not meta:
                return Report(tuple(problems), ("the job is empty",) if not meta else ())
            output, errors = path.parent / meta["output"], path.parent / meta["errors"]
            done = store.totals().done
            is_complete = [run.outcome for run in store.runs()][-1:] == ["finished"] and not is_locked(path)
            problems += differences(store.results(), output=output, errors=errors, is_complete=is_complete)
            checked = [f"{done} results and the fingerprint hashed", f"{output} and {errors} compared"]
            return _with_input(
                path.parent / meta["input"], meta["input_sha256"], Report(tuple(problems), tuple(checked))
            )
    except PenstockError as error:
        return Report((str(error),), ())


def _with_input(path: Path, sha256: str, report: Report) -> Report:
    try:
        found = digest(path)
    except Refused as error:
        return report._replace(checked=(*report.checked, f"the input was not hashed: {error}"))
    if found == sha256:
        return report._replace(checked=(*report.checked, f"the input {path} hashed"))
    problem = f"the input {path} has SHA-256 {found}; the job was made from {sha256}"
    return report._replace(problems=(*report.problems, problem))
