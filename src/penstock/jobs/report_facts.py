"""`Facts`: the numbers of a report, read from a job file at one moment, and what follows from them.

Owns what each number on the page means. Reads the store, draws nothing (see `report_page.py`).
A job has one clock here: the seconds of its runs behind each other, each from when its engine was ready to its last
sample. Loading and planning are told apart; the time between runs is no part of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from penstock.errors import ConfigError
from penstock.jobs.locks import is_locked
from penstock.jobs.prefix_picture import PrefixNode
from penstock.jobs.store import About, Run, Store, Totals
from penstock.jobs.timeline import History, Sample, histories, recorded_tree


class Failure(NamedTuple):
    """The error rows of a kind, and what the first of them says; no line: its output does not tell."""

    code: str
    rows: int
    message: str
    line: int | None


class Stretch(NamedTuple):
    """A run in its place behind the runs before it; `end_s` is `start_s` where it took no sample."""

    run: Run
    history: History
    start_s: float
    end_s: float
    start_rows: int

    @property
    def last(self) -> Sample | None:
        """What the run had done in the end, as far as is known."""
        return self.history.samples[-1] if self.history.samples else None


class Facts(NamedTuple):
    """Everything that a report tells. `state`: running, finished, interrupted, stopped, died, or "not begun"."""

    name: str
    state: str
    fingerprint: str
    about: About
    totals: Totals
    failures: tuple[Failure, ...]
    lengths: tuple[tuple[int, int], ...]  # (output tokens, rows), of the answers
    stretches: tuple[Stretch, ...]
    numerics: tuple[dict[str, str], ...]
    row_exact: bool
    tree: PrefixNode | None

    @property
    def engine_s(self) -> float:
        """The seconds of all runs."""
        return self.stretches[-1].end_s if self.stretches else 0.0

    @property
    def load_s(self) -> float:
        """The seconds that loading took, in all runs."""
        return sum(s.history.load_s or 0.0 for s in self.stretches)

    @property
    def plan_s(self) -> float:
        """The seconds that reading, tokenizing and planning took before the engine could run, in all runs."""
        return sum(s.history.plan_s or 0.0 for s in self.stretches)

    def sum(self, field: str) -> Any:
        """A count, added up over the runs."""
        return sum(getattr(s.last, field) for s in self.stretches if s.last is not None)


class Spent(NamedTuple):
    """Seconds by what they went to; `is_optimal`: what no plan can save on this machine."""

    name: str
    seconds: float
    meaning: str
    is_optimal: bool = False


class Optimal(NamedTuple):
    """What no plan of the whole job can beat on this machine; None: not known, and `why_not` says why."""

    seconds: float | None
    why_not: str = ""


def gather(path: Path) -> Facts:
    """Read a job file, whether a process works on it or not.

    Raises:
        ConfigError: the job was not created yet. JobMismatch: it is no job.
    """
    is_running = is_locked(path)
    with closing(Store.look(path)) as store, store.database.reading():
        meta = store.meta()
        if not meta:
            raise ConfigError(f"the job {path} has only just begun; there is nothing to report yet")
        runs = store.runs()
        about, totals = store.about(), store.totals()
        return Facts(
            name=path.parent.joinpath(about.output).name,
            state=_state(runs, is_running=is_running, is_done=totals.done == about.rows),
            fingerprint=meta["fingerprint"],
            about=about,
            totals=totals,
            failures=_failures(store),
            lengths=tuple(store.answer_lengths()),
            stretches=tuple(_stretches(runs, histories(store))),
            numerics=tuple(store.answer_numerics()),
            row_exact=store.is_row_exact(),
            tree=recorded_tree(store),
        )


def _state(runs: list[Run], *, is_running: bool, is_done: bool) -> str:
    if is_running:
        return "running"
    if is_done:
        return "finished"
    return "not begun" if not runs else runs[-1].outcome or "died"


def _failures(store: Store) -> tuple[Failure, ...]:
    counts = store.failures()
    found = []
    for result in store.first_failures():
        error = json.loads(result.output)["error"]
        found.append(Failure(str(result.code), counts[str(result.code)], error["message"], error.get("line")))
    return tuple(sorted(found, key=lambda failure: (-failure.rows, failure.code)))


def _stretches(runs: list[Run], found: list[History]) -> list[Stretch]:
    stretches = []
    at_s, rows = 0.0, 0
    for run, history in zip(runs, found, strict=True):
        end_s = at_s + (history.samples[-1].at_s if history.samples else 0.0)
        stretches.append(Stretch(run, history, at_s, end_s, rows))
        at_s, rows = end_s, rows + run.done
    return stretches


def optimal(facts: Facts) -> Optimal:
    """What the first prediction of the whole job said of its least time."""
    predictions = [s.history.prediction for s in facts.stretches if s.history.prediction is not None]
    whole = [p for p in predictions if p.rows == facts.about.rows]
    if not predictions:
        return Optimal(None, "no prediction was recorded")
    if not whole:
        return Optimal(None, "no prediction was recorded of the whole job, only of what was left of it")
    if whole[0].optimal_s is None:
        return Optimal(None, "the limits of this machine were not measured before the job")
    if facts.totals.done != facts.about.rows:
        return Optimal(None, "the optimal time is of the whole job, which is not finished")
    return Optimal(whole[0].optimal_s)


def spent(facts: Facts) -> list[Spent]:
    """Where the seconds of all runs went, the most first behind the optimal; they add up to `engine_s`."""
    least_s, step_s = optimal(facts).seconds, facts.sum("step_s")
    if least_s is None:
        found = [Spent("Computing", step_s, "steps of the model; how few would do is not known")]
    else:
        beyond = max(0.0, step_s - least_s)
        found = [
            Spent(
                "At the machine's limits",
                min(least_s, step_s),
                "what no plan can save: distinct tokens once, all answers together, of the lengths expected",
                is_optimal=True,
            ),
            Spent("Steps beyond the limits", beyond, "the model's steps, more of them or slower than the limits allow"),
        ]
    found += sorted(_around_the_steps(facts), key=lambda part: -part.seconds)
    rest = facts.engine_s - sum(part.seconds for part in found)
    return [*found, Spent("Not accounted for", max(0.0, rest), "between the phases that are timed")]


def _around_the_steps(facts: Facts) -> Iterator[Spent]:
    for name, field, meaning in (
        ("Queueing", "queue_s", "handing prompts to the engine"),
        ("Reading", "read_s", "reading rows, checking and claiming them"),
        ("Recording", "record_s", "turning tokens into answer lines"),
        ("Committing", "commit_s", "waiting for the disk, so that nothing is lost"),
        ("Exporting", "export_s", "writing the output files"),
    ):
        yield Spent(name, facts.sum(field), meaning)


def unknown_ends(facts: Facts) -> list[int]:
    """The runs that died: what they did after their last sample is not on the disk."""
    ended = [s.run for s in facts.stretches if s.run.outcome is None]
    if ended and facts.state == "running":
        ended.pop()
    return [run.run for run in ended]
