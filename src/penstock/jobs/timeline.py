"""The timeline of a run: what it had done at some moments, and what was predicted before it began.

Owns the tables `samples`, `predictions` and `prefix_tree` of a job file. Knows the counts of an engine, no rows and no
pictures.
One idea: a sample is written in the transaction of the rows that it counts, so after a kill the timeline and the
results tell of the same moment. Counts are sums since the start, so any sample can be left out; when there are
MOST_SAMPLES, every second one is left out, and from then on they are taken half as often: a run of any length has a
bounded number, and the price of one is an insert.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from penstock.engine import EngineStats
from penstock.errors import ConfigError
from penstock.jobs.phases import Phase, PhaseTrace
from penstock.jobs.prefix_picture import PrefixNode
from penstock.jobs.store import Store
from penstock.jobs.timing import Timer

MOST_SAMPLES = 1000  # of a run; more than a screen has columns
FIRST_EVERY_S = 0.05  # 50 s pass before the first are thinned out
SCHEMA = 2  # the first schema of job files that has these tables
KEPT_SCHEMA = 3  # the first whose samples have `kv_kept_tokens`


class Sample(NamedTuple):
    """A run at `at_s` seconds since its engine was ready.

    rows: finished by this run, error rows included. prefill_tokens, decode_tokens: computed, of prompts and behind
    them; cached_tokens: found in the prefix cache instead. The fields up to `preemptions` are sums since the start,
    and so are the seconds by phase; the five after it are the state at this moment. No `kv_kept_tokens`: the sample is
    of before they were recorded.
    """

    at_s: float
    rows: int
    steps: int
    prefill_tokens: int
    decode_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int
    kv_used_tokens: int
    kv_kept_tokens: int | None
    kv_total_tokens: int
    running: int
    waiting: int
    read_s: float
    queue_s: float
    step_s: float
    record_s: float
    commit_s: float
    export_s: float

    @property
    def kv_held_tokens(self) -> int:
        """What running sequences and kept prefixes take."""
        return self.kv_used_tokens + (self.kv_kept_tokens or 0)


class PredictedAt(NamedTuple):
    """A point of a predicted curve: the rows that the run will have finished after so many seconds."""

    at_s: float
    rows: int


class Prediction(NamedTuple):
    """What was said of a run before it began; all of it counts from when its engine is ready, and of its rows only.

    Attributes:
        predicted_s: the time expected, which is between `least_s` and `most_s`.
        optimal_s: what no plan can beat on this machine, see `Forecast`; None: its limits are not known.
        prefill_tokens, cached_tokens: prompt tokens to be computed, and to be found in the prefix cache.
        parts_s: the predicted seconds by kind of work, where they are known.
        curve: rows finished over time, where it is known.
    """

    rows: int
    predicted_s: float
    least_s: float
    most_s: float
    optimal_s: float | None
    prefill_tokens: int
    cached_tokens: int
    output_tokens: int
    parts_s: dict[str, float] | None = None
    curve: tuple[PredictedAt, ...] = ()


class History(NamedTuple):
    """The timeline of one run; `load_s` and `plan_s`, the seconds before it, are None where it took no sample."""

    run: int
    load_s: float | None
    plan_s: float | None
    samples: tuple[Sample, ...]
    prediction: Prediction | None


class Timeline:
    """Writes down how a run goes. Invariant: fewer than `most` samples, the last that was taken among them."""

    def __init__(
        self,
        store: Store,
        stats: Callable[[], EngineStats],
        *,
        timer: Timer,
        phases: PhaseTrace,
        every_s: float = FIRST_EVERY_S,
        most: int = MOST_SAMPLES,
    ) -> None:
        self._store = store
        self._stats = stats
        self._timer = timer
        self._phases = phases
        self._every_s = every_s
        self._most = most
        self._taken: list[float] = []  # `at_s` of each sample

    def update(self, *, rows: int, is_last: bool = False) -> None:
        """Take a sample, if it is time to; in the store's open transaction."""
        at_s = self._timer.run_s()
        if self._taken and not is_last and at_s - self._taken[-1] < self._every_s:
            return
        if not self._taken:
            before_s = (self._timer.times().load_s, self._phases.seconds()[Phase.PLAN])
            self._store.database.write(
                "UPDATE runs SET load_s = ?, plan_s = ? WHERE run = ?", *before_s, self._store.run
            )
        values = (self._store.run, *self._sample(at_s, rows))
        places = ", ".join("?" * len(values))
        self._store.database.write(f"INSERT OR REPLACE INTO samples ({_columns('run')}) VALUES ({places})", *values)
        if self._taken[-1:] != [at_s]:
            self._taken.append(at_s)
        if len(self._taken) >= self._most:
            self._thin_out()

    def _thin_out(self) -> None:
        """Drop every second sample, the last one never."""
        gone = self._taken[-2::-2]
        self._store.database.write_all(
            "DELETE FROM samples WHERE run = ? AND at_s = ?", ((self._store.run, at_s) for at_s in gone)
        )
        self._taken = self._taken[::-2][::-1]
        self._every_s *= 2

    def _sample(self, at_s: float, rows: int) -> Sample:
        now, seconds = self._stats(), self._phases.seconds()
        return Sample(
            at_s=at_s,
            rows=rows,
            steps=now.steps,
            prefill_tokens=now.computed_tokens - now.decode_tokens,
            decode_tokens=now.decode_tokens,
            cached_tokens=now.cached_tokens,
            output_tokens=now.output_tokens,
            preemptions=now.preemptions,
            kv_used_tokens=now.kv_used_tokens,
            kv_kept_tokens=now.kv_kept_tokens,
            kv_total_tokens=now.kv_total_tokens,
            running=now.num_running,
            waiting=now.num_waiting,
            read_s=seconds[Phase.READ],
            queue_s=seconds[Phase.QUEUE],
            step_s=seconds[Phase.STEP],
            record_s=seconds[Phase.RECORD],
            commit_s=seconds[Phase.COMMIT],
            export_s=seconds[Phase.EXPORT],
        )


def record_prediction(store: Store, run: int, prediction: Prediction) -> None:
    """Write down what a run is expected to take; on disk with the next commit.

    Raises:
        ConfigError: the numbers contradict each other.
    """
    at = prediction
    if not 0 <= at.least_s <= at.predicted_s <= at.most_s or (at.optimal_s is not None and at.optimal_s < 0):
        raise ConfigError(
            f"a prediction of {at.predicted_s} s between {at.least_s} s and {at.most_s} s, at best {at.optimal_s} s, "
            "contradicts itself"
        )
    text = json.dumps(at._asdict())
    store.database.write("INSERT OR REPLACE INTO predictions VALUES (?, ?)", run, text)


def record_tree(store: Store, tree: PrefixNode) -> None:
    """Keep the prefix tree of the job's plan, as far as it is drawn; on disk with the next commit."""
    store.database.write("DELETE FROM prefix_tree")
    store.database.write("INSERT INTO prefix_tree VALUES (?)", json.dumps(tree))


def recorded_tree(store: Store) -> PrefixNode | None:
    """The prefix tree of the job's plan; None: the job never had one."""
    if store.database.schema() < SCHEMA:
        return None
    found = store.database.query("SELECT tree FROM prefix_tree")
    return _tree(json.loads(found[0][0])) if found else None


def histories(store: Store) -> list[History]:
    """The timeline of every run, oldest first; empty runs where the job file is older than timelines."""
    database = store.database
    runs = [run.run for run in store.runs()]
    if database.schema() < SCHEMA:
        return [History(run, None, None, (), None) for run in runs]
    before = {run: (load_s, plan_s) for run, load_s, plan_s in database.query("SELECT run, load_s, plan_s FROM runs")}
    predictions = {run: _prediction(json.loads(text)) for run, text in database.query("SELECT * FROM predictions")}
    samples: dict[int, list[Sample]] = {run: [] for run in runs}
    columns = _columns("run")
    if database.schema() < KEPT_SCHEMA:
        columns = columns.replace("kv_kept_tokens", "NULL")
    for run, *fields in database.query(f"SELECT {columns} FROM samples ORDER BY run, at_s"):
        samples[run].append(Sample(*fields))
    return [History(run, *before[run], tuple(samples[run]), predictions.get(run)) for run in runs]


def _tree(fields: Any) -> PrefixNode:
    tokens, rows, children, kind = fields
    return PrefixNode(tokens, rows, tuple(map(_tree, children)), kind)


def _columns(*more: str) -> str:
    return ", ".join((*more, *Sample._fields))


def _prediction(found: dict[str, Any]) -> Prediction:
    curve = tuple(PredictedAt(*point) for point in found.pop("curve"))
    return Prediction(**found, curve=curve)
