"""The timeline of a run: bounded in number, of one moment with the rows, and there after a kill."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from penstock.engine import EngineStats
from penstock.errors import ConfigError
from penstock.jobs.phases import Phase, PhaseTrace
from penstock.jobs.prefix_picture import PrefixNode
from penstock.jobs.store import MIGRATIONS, Store
from penstock.jobs.timeline import (
    SCHEMA,
    History,
    Sample,
    Timeline,
    histories,
    record_prediction,
    record_tree,
    recorded_tree,
)
from penstock.jobs.timing import Timer
from tests.job_runs import PROGRAM, REPOSITORY, ToyEngine, ToyModel, job_at, row, run_job, write_rows
from tests.report_jobs import IDENTITY, PREDICTION, MadeRun, made_job, sample


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store.open(made_job(tmp_path, rows=9))) as store:
        store.begin_run("now", {}, row_exact=True)
        yield store


def stats() -> EngineStats:
    return ToyEngine(steps=7, computed_tokens=50, decode_tokens=20, output_tokens=21).stats()


def timeline(store: Store, clock: Clock, *, every_s: float = 1.0, most: int = 8) -> Timeline:
    timer = Timer(98.0, clock)
    timer.ready()
    return Timeline(store, stats, timer=timer, phases=PhaseTrace(None, clock), every_s=every_s, most=most)


def taken(store: Store) -> list[float]:
    return [sample.at_s for sample in histories(store)[0].samples]


def test_a_sample_is_taken_at_once_then_when_it_is_time_to_and_at_the_end(store: Store) -> None:
    clock = Clock()
    line = timeline(store, clock)
    for at_s in (0.25, 0.5, 1.0, 1.25, 1.5, 2.5):
        clock.now_s = 100.0 + at_s
        line.update(rows=3)
    clock.now_s = 102.75
    line.update(rows=4, is_last=True)
    assert taken(store) == [0.25, 1.25, 2.5, 2.75]
    history = histories(store)[0]
    assert (history.load_s, history.plan_s) == (2.0, 0.0)
    assert [sample.rows for sample in history.samples] == [3, 3, 3, 4]


def test_a_sample_tells_the_counts_of_the_engine_and_the_seconds_of_the_phases(store: Store) -> None:
    clock = Clock()
    phases, timer = PhaseTrace(None, clock), Timer(98.0, clock)
    timer.ready()
    for phase, seconds in ((Phase.READ, 1.0), (Phase.STEP, 4.0), (Phase.COMMIT, 2.0), (Phase.STEP, 8.0)):
        phases.enter(phase)
        clock.now_s += seconds
    Timeline(store, stats, timer=timer, phases=phases).update(rows=5)
    assert histories(store)[0].samples == (
        Sample(
            at_s=15.0,
            rows=5,
            steps=7,
            prefill_tokens=30,
            decode_tokens=20,
            cached_tokens=0,
            output_tokens=21,
            preemptions=0,
            kv_used_tokens=0,
            kv_kept_tokens=3,
            kv_total_tokens=100,
            running=0,
            waiting=0,
            read_s=1.0,
            queue_s=0.0,
            step_s=12.0,
            record_s=0.0,
            commit_s=2.0,
            export_s=0.0,
        ),
    )


def test_a_run_of_any_length_has_a_bounded_number_of_samples_over_all_of_it(store: Store) -> None:
    clock = Clock()
    line = timeline(store, clock)
    for second in range(1000):
        clock.now_s = 100.0 + second
        line.update(rows=second)
        assert len(taken(store)) < 8
    line.update(rows=1000, is_last=True)
    found = taken(store)
    assert found[-1] == 999.0
    gaps = [after - before for before, after in pairwise(found[:-1])]
    assert len(found) >= 4
    assert len(set(gaps)) == 1
    assert found[0] <= gaps[0]


def test_a_sample_is_forgotten_with_the_rows_of_its_transaction(store: Store) -> None:
    clock = Clock()
    line = timeline(store, clock)
    line.update(rows=1)
    store.commit()
    clock.now_s += 5.0
    line.update(rows=2)
    store.rollback()
    assert taken(store) == [0.0]


def test_a_prediction_is_read_as_it_was_recorded(store: Store) -> None:
    record_prediction(store, 1, PREDICTION)
    record_prediction(store, 1, PREDICTION._replace(optimal_s=None, parts_s={"matrices": 3.0}, curve=()))
    store.commit()
    assert histories(store)[0].prediction == PREDICTION._replace(optimal_s=None, parts_s={"matrices": 3.0}, curve=())
    record_prediction(store, 1, PREDICTION)
    assert histories(store)[0].prediction == PREDICTION


def test_a_tree_is_read_as_it_was_recorded_last(store: Store) -> None:
    assert recorded_tree(store) is None
    for tree in (PrefixNode(1, 1), PrefixNode(0, 3, (PrefixNode(2.5, 3, (), "own"),))):
        record_tree(store, tree)
        assert recorded_tree(store) == tree


def test_a_prediction_that_contradicts_itself_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="contradicts itself"):
        record_prediction(store, 1, PREDICTION._replace(least_s=9.0))


def test_a_job_of_before_has_runs_without_a_timeline(tmp_path: Path) -> None:
    path = tmp_path / "old.job"
    with closing(Store.open(path)) as store:
        store.create(IDENTITY, Store.look(made_job(tmp_path, rows=1)).about())
        store.begin_run("now", {}, row_exact=True)
    with closing(sqlite3.connect(path)) as other:
        other.executescript(
            "DROP TABLE samples; DROP TABLE predictions; DROP TABLE prefix_tree;"
            "ALTER TABLE runs DROP COLUMN load_s; ALTER TABLE runs DROP COLUMN plan_s; PRAGMA user_version = 1"
        )
    with closing(Store.look(path)) as store:
        assert histories(store) == [History(1, None, None, (), None)]
        assert recorded_tree(store) is None
    with closing(Store.open(path)) as store:  # and is brought up to date when it is written to
        assert store.database.schema() == len(MIGRATIONS) >= SCHEMA
        assert histories(store) == [History(1, None, None, (), None)]


def test_a_job_of_before_kept_prefixes_were_recorded_can_be_read_and_goes_on(tmp_path: Path) -> None:
    path = made_job(tmp_path, MadeRun([sample(1.0, 1)]), rows=1)
    with closing(sqlite3.connect(path)) as other:
        other.executescript("ALTER TABLE samples DROP COLUMN kv_kept_tokens; PRAGMA user_version = 2")
    old = sample(1.0, 1, kv_kept_tokens=None)
    with closing(Store.look(path)) as store:
        assert histories(store)[0].samples == (old,)
    with closing(Store.open(path)) as store:
        assert store.database.schema() == len(MIGRATIONS)
        assert histories(store)[0].samples == (old,)


def test_a_job_records_itself(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [row(f"r{n}", f"p{n}") for n in range(6)] + ["{"])
    engine = ToyEngine(on_step=lambda prompts: time.sleep(0.02))
    run_job(job_at(tmp_path), ToyModel(engine))
    with closing(Store.look(job_at(tmp_path).path)) as store:
        [history] = histories(store)
    last = history.samples[-1]
    assert (last.rows, last.steps, last.prefill_tokens, last.decode_tokens) == (7, engine.steps, 6, 12)
    assert (last.output_tokens, last.running) == (18, 0)
    assert last.step_s >= 0.02 * engine.steps
    assert last.read_s + last.queue_s + last.step_s + last.record_s + last.commit_s + last.export_s <= last.at_s
    assert history.load_s is not None
    assert history.plan_s


def test_after_a_kill_the_timeline_tells_of_rows_that_are_there(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [row(f"r{n}", f"p{n}") for n in range(400)])
    with subprocess.Popen([*PROGRAM, str(tmp_path), "0.01"], cwd=REPOSITORY) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _has_samples(job_at(tmp_path).path):
            time.sleep(0.02)
        process.kill()
    with closing(Store.look(job_at(tmp_path).path)) as store:
        [killed] = histories(store)
        assert 0 < killed.samples[-1].rows <= store.totals().done < 400
    run_job(job_at(tmp_path))
    with closing(Store.look(job_at(tmp_path).path)) as store:
        first, second = histories(store)
        assert first == killed
        assert second.samples[-1].rows == store.runs()[1].done == 400 - store.runs()[0].done


def _has_samples(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with closing(Store.look(path)) as store:
        if not store.meta():
            return False
        found = histories(store)
        return bool(found and len(found[0].samples) > 3 and found[0].samples[-1].rows)
