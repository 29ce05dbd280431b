"""From an input to its plan: read every row, tokenize it, put the rows in order; or go on where that was left.

Owns the order of these and nothing of what they do (see `tokenizing.py`, `plan_file.py`, `planner.py`).
One idea: what was read stays in the plan's file as it is read, so a job that was killed meanwhile, or goes on later,
does not tokenize again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from penstock.config import Settings, resident_bytes
from penstock.jobs.formats import InputLine, about_rows, read_lines
from penstock.jobs.plan_file import PLAN_VERSION, PlanFile
from penstock.jobs.tokenizing import WITHOUT_PRIORITY, Batch, Preparer, Setup, Workers
from penstock.memory import OTHER_BYTES
from penstock.planner import MIN_SHARED_TOKENS

BATCH_ROWS = 2000
BATCH_BYTES = 2**22
SMALL_BYTES = 2**21  # an input up to this size is read here: to start workers would take longer


class Planning(NamedTuple):
    """What a plan is made with.

    `key` names everything that the plan depends on beside the code; `workers` processes tokenize; `tell` hears how many
    rows were read, which are kept, and may raise to end the reading there; `priority` is the field of the rows'
    metadata whose number says what runs first; `in_order` keeps the order of the input, to compare. `spare_bytes`: the
    memory that the processes may take, None: any; `note` hears where that makes them fewer.
    """

    input: Path
    setup: Setup
    key: str
    workers: int
    tell: Callable[[int], None]
    min_tokens: int = MIN_SHARED_TOKENS
    priority: str | None = None
    in_order: bool = False
    spare_bytes: int | None = None
    note: Callable[[str], None] | None = None


def plan_path(job: Path) -> Path:
    """Where the plan of a job is: beside it."""
    return job.with_name(f"{job.name}.plan")


def num_cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def with_rows(settings: Settings, input_file: Path) -> Settings:
    """The settings of a job with the number of its rows, about, where memory is bounded: its plan counts."""
    return settings if settings.memory_bytes is None else replace(settings, planned_rows=about_rows(input_file))


def spare_bytes(memory_bytes: int | None) -> int | None:
    """What a limit on memory leaves beside this process now, before it begins to plan; None: there is no limit."""
    return None if memory_bytes is None else max(0, memory_bytes - resident_bytes()[0] - OTHER_BYTES)


def plan_key(fingerprint: str, setup: Setup, priority: str | None = None, *, in_order: bool = False) -> str:
    """What a plan depends on: the job (its input, model and seed), how its rows become tokens, what runs first."""
    return json.dumps([PLAN_VERSION, fingerprint, setup.key(), priority, in_order])


def make_plan(path: Path, planning: Planning) -> tuple[PlanFile, int]:
    """The complete plan in the file `path`, made as far as it is not there yet.

    Returns:
        The plan, and how many rows were lost with a worker that died: those are in it without their tokens.

    Raises:
        Refused: the input cannot be read. StorageFailed: the disk failed. What `tell` raises.
    """
    plan = PlanFile.open(path, key=planning.key)
    lost = 0
    try:
        if not plan.is_complete:
            lost = _read(plan, planning)
            plan.arrange(min_tokens=planning.min_tokens, in_order=planning.in_order)
    except BaseException:
        plan.close()
        raise
    return plan, lost


def describe_unranked(plan: PlanFile, priority: str | None) -> str | None:
    """How many rows have no number in the field that says what runs first; None: none is without."""
    rows = plan.counts().get(WITHOUT_PRIORITY, 0)
    return f"--priority {priority}: {rows} rows have no such number in their metadata and run last" if rows else None


def _read(plan: PlanFile, planning: Planning) -> int:
    """Prepare the rows that are not in the plan yet."""
    lost, start = 0, plan.next_row
    lines = (line for line in read_lines(planning.input) if line.row >= start)
    with closing(_prepare(planning, _batches(lines))) as batches:
        for batch in batches:
            plan.add(batch.rows, batch.counts)
            lost += batch.lost
            planning.tell(batch.rows[-1].row + 1)
    return lost


def _prepare(planning: Planning, batches: Iterator[list[InputLine]]) -> Generator[Batch, None, None]:
    if planning.input.stat().st_size <= SMALL_BYTES or planning.workers < 2:
        yield from map(Preparer(planning.setup, planning.priority).prepare, batches)
        return
    planning.setup.open()  # what is wrong with the tokenizer is told here, not by every worker
    workers = Workers(planning.setup, planning.workers, planning.priority, spare_bytes=planning.spare_bytes)
    try:
        if len(workers) < planning.workers and planning.note is not None:
            planning.note(f"{len(workers)} processes tokenize, not {planning.workers}: more do not fit the memory")
        yield from workers.prepare(batches)
    finally:
        workers.close()


def _batches(lines: Iterator[InputLine]) -> Iterator[list[InputLine]]:
    """Lines by the thousand, fewer where they are long."""
    while batch := list(islice(lines, 1)):
        size = len(batch[0].data)
        for line in lines:
            batch.append(line)
            size += len(line.data)
            if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
                break
        yield batch
