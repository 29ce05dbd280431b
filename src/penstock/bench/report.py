"""What a sitting found: as a table for people, and as one JSON object for programs.

Owns the wording and the fields. Numbers come from `results.py`; every run is shown beside each median and ratio.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from penstock.bench.limits import Ceiling, Limits
from penstock.bench.results import Run, median_run, median_s, ratio
from penstock.bench.sitting import Entrant
from penstock.bench.terms import Task
from penstock.config import format_bytes

COLUMNS = ("workload", "requests", "seconds", "prompt/s", "computed/s", "cached/s", "output/s", "memory")
SHARES = ("least", "tile", "linear", "attention", "other", "python")


def table(tasks: Sequence[Task], entrants: Sequence[Entrant], limits: Limits | None) -> list[str]:
    """The report for people."""
    own, *peers = entrants
    lines = [
        f"{own.title}; runs of every workload: {_count(own, tasks)}; shown is the median one",
        *_limit_lines(limits),
        "",
    ]
    lines += _columns([COLUMNS, *(_speed_row(task, median_run(own.runs[task.name])) for task in tasks)])
    lines += [
        "",
        "how much of the time its steps needed at least (tile: the arithmetic as tile products), and where it went:",
    ]
    lines += _columns([("workload", *SHARES), *(_share_row(task, median_run(own.runs[task.name])) for task in tasks)])
    lines += [
        "",
        "tokens of prompts: asked for, distinct (a shared beginning once), computed, and computed over distinct:",
    ]
    lines += _columns([("workload", "asked", "distinct", "computed", "ratio"), *(_token_row(t, own) for t in tasks)])
    for peer in peers:
        lines += ["", *_against(own, peer, tasks)]
    notes = [f"note: {entrant.title or entrant.name}: {note}" for entrant in entrants for note in _notes(entrant)]
    return [*lines, *([""] if notes else []), *notes]


def _notes(entrant: Entrant) -> list[str]:
    why_not = entrant.ready.get("computed_why_not")
    return [*entrant.notes, *([f"computed tokens are not known: {why_not}"] if why_not else [])]


def _count(entrant: Entrant, tasks: Sequence[Task]) -> int:
    return len(entrant.runs[tasks[0].name])


def _limit_lines(limits: Limits | None) -> list[str]:
    if limits is None:
        return ["limits of the machine: not measured, so there are no shares of the least time (--no-ceilings)"]
    return [
        f"limits of the machine ({limits.dtype}, {limits.threads} threads):",
        f"  products of matrices   {_limit(limits.gemm, 1e12, 'TFLOP/s')}",
        f"  tile products          {_limit(limits.tile, 1e12, 'TFLOP/s')}",
        f"  reading memory         {_limit(limits.read, 1e9, 'GB/s')}",
    ]


def _limit(ceiling: Ceiling, unit: float, name: str) -> str:
    if ceiling.per_s is None:
        return f"not measured: {ceiling.why_not}"
    return f"{ceiling.per_s / unit:.3g} {name} ({ceiling.how})"


def _speed_row(task: Task, run: Run) -> tuple[str, ...]:
    rates = run.rates()
    speeds = (f"{rates[f'{kind}_tokens_per_s']:.1f}" for kind in ("prompt", "computed", "cached", "output"))
    return (task.name, str(task.amount.requests), f"{run.timed_s:.2f}", *speeds, format_bytes(run.peak_bytes))


def _token_row(task: Task, own: Entrant) -> tuple[str, ...]:
    asked, distinct = task.amount.prompt_tokens, task.amount.distinct_tokens
    computed = median_run(own.runs[task.name]).computed_prompt_tokens
    return (task.name, str(asked), str(distinct), str(computed), _computed_ratio(own.runs[task.name]))


def _computed_ratio(runs: Sequence[Run]) -> str:
    found = median_run(runs).computed_ratio
    return "-" if found is None else f"{found:.3f}"


def _share_row(task: Task, run: Run) -> tuple[str, ...]:
    shares = run.shares()
    return (task.name, *("-" if (part := shares[f"{name}_share"]) is None else f"{part:.1%}" for name in SHARES))


def _against(own: Entrant, peer: Entrant, tasks: Sequence[Task]) -> list[str]:
    lines = [f"against {peer.title or peer.name}: its median time over ours, and every run in seconds"]
    compared = [task for task in tasks if peer.runs.get(task.name)]
    rows = [_compared_row(task, own.runs[task.name], peer.runs[task.name]) for task in compared]
    if compared:
        rows.insert(0, ("workload", "faster", "ours", "theirs", "theirs: prompt/s", "output/s", "memory", "computed"))
    if peer.why_not is not None:
        missing = [task.name for task in tasks if task not in compared]
        names = f" ({', '.join(missing)})" if compared and missing else ""
        return [*lines, *_columns(rows), f"  not run{' to the end' if compared else ''}{names}: {peer.why_not}"]
    return [*lines, *_columns(rows)]


def _compared_row(task: Task, ours: Sequence[Run], theirs: Sequence[Run]) -> tuple[str, ...]:
    median = median_run(theirs)
    speeds = (f"{median.rates()[f'{kind}_tokens_per_s']:.1f}" for kind in ("prompt", "output"))
    memory = format_bytes(median.peak_bytes)
    return (
        task.name,
        f"{ratio(ours, theirs):.2f}x",
        _every(ours),
        _every(theirs),
        *speeds,
        memory,
        _computed_ratio(theirs),
    )


def _every(runs: Iterable[Run]) -> str:
    return ", ".join(f"{run.timed_s:.2f}" for run in runs)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows under each other: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join([f"  {row[0]:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def as_json(
    tasks: Sequence[Task], entrants: Sequence[Entrant], *, limits: Limits | None, settings: dict[str, object]
) -> dict[str, object]:
    """The report for programs: every run, the run in the middle, and each peer's ratio."""
    own, *peers = entrants
    return {
        "engine": own.title,
        "settings": settings,
        "row_exact": own.ready.get("row_exact"),
        "numerics": own.ready.get("numerics"),
        "notes": own.notes,
        "ceilings": asdict(limits) if limits else None,
        "workloads": [_workload_json(task, own, peers) for task in tasks],
        "peers": [_peer_json(peer) for peer in peers],
    }


def _peer_json(peer: Entrant) -> dict[str, object]:
    told = {"name": peer.name, "title": peer.title or peer.name, "dtype": peer.dtype, "notes": peer.notes}
    return told | {"why_not": peer.why_not, "computed_why_not": peer.ready.get("computed_why_not")}


def _workload_json(task: Task, own: Entrant, peers: Sequence[Entrant]) -> dict[str, object]:
    runs = own.runs[task.name]
    return {
        "name": task.name,
        "requests": task.amount.requests,
        "timed": "process" if task.is_whole_process else "workload",
        "median_s": median_s(runs),
        "median": median_run(runs).as_json(),
        "runs": [run.as_json() for run in runs],
        "against": {
            peer.name: {
                "title": peer.title,
                "ratio": ratio(runs, theirs),
                "median_s": median_s(theirs),
                "runs": [run.as_json() for run in theirs],
            }
            for peer in peers
            if (theirs := peer.runs.get(task.name))
        },
    }
