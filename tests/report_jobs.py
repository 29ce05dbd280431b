"""Job files with a known timeline, for the tests of the report: nothing is run, so every number is exact."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from penstock.jobs.prefix_picture import PrefixNode
from penstock.jobs.store import About, Identity, Item, Result, Store
from penstock.jobs.timeline import PredictedAt, Prediction, Sample, record_prediction, record_tree

NUMERICS = {"dtype": "float32", "device": "toy"}
IDENTITY = Identity(input_sha256="aa", model_sha256="bb", seed=0, defaults_version=1, output_version=1)
PREDICTION = Prediction(
    rows=4,
    predicted_s=8.0,
    least_s=6.0,
    most_s=12.0,
    optimal_s=5.0,
    prefill_tokens=300,
    cached_tokens=100,
    output_tokens=40,
    curve=(PredictedAt(4.0, 1), PredictedAt(8.0, 4)),
)


def sample(at_s: float, rows: int, **fields: float | None) -> Sample:
    """A sample whose seconds add up to 90 % of `at_s`, and whose counts grow with it."""
    known = {
        "steps": round(at_s * 10),
        "prefill_tokens": round(at_s * 30),
        "decode_tokens": round(at_s * 4),
        "cached_tokens": round(at_s * 10),
        "output_tokens": round(at_s * 5),
        "preemptions": 0,
        "kv_used_tokens": round(at_s * 10),
        "kv_kept_tokens": round(at_s * 20),
        "kv_total_tokens": 1000,
        "running": 2,
        "waiting": 1,
        "read_s": at_s * 0.05,
        "queue_s": at_s * 0.05,
        "step_s": at_s * 0.6,
        "record_s": at_s * 0.05,
        "commit_s": at_s * 0.1,
        "export_s": at_s * 0.05,
    }
    return Sample(at_s=at_s, rows=rows, **{**known, **fields})  # type: ignore[arg-type]


def answer(row: int, output_tokens: int = 10) -> Result:
    """A row that was answered."""
    return Result(row, f"line {row}\n".encode(), None, 100, 25, output_tokens)


def error(row: int, code: str, message: str) -> Result:
    """A row that failed, as `protocol.error_line` writes it."""
    found = {"code": code, "message": message, "line": row + 1}
    return Result(row, json.dumps({"custom_id": None, "response": None, "error": found}).encode() + b"\n", code)


class MadeRun(NamedTuple):
    """A run to be made up; no outcome: it died."""

    samples: Iterable[Sample] = ()
    results: Iterable[Result] = ()
    prediction: Prediction | None = None
    outcome: str | None = "finished"


def made_job(folder: Path, *runs: MadeRun, rows: int, model: str = "toy") -> Path:
    """A job of `rows` rows with these runs."""
    path = folder / "out.jsonl.job"
    about = About(model, rows, 30, "2026-11-20T19:00:00+00:00", "0.1.0", "in.jsonl", "out.jsonl", "errors.jsonl")
    with closing(Store.open(path)) as store:
        store.create(IDENTITY, about)
        for made in runs:
            _make(store, made)
    return path


def _make(store: Store, made: MadeRun) -> None:
    store.begin_run("2026-11-20T19:00:05+00:00", NUMERICS, row_exact=True)
    assert store.run is not None
    if made.prediction is not None:
        record_prediction(store, store.run, made.prediction)
    for result in made.results:
        item = Item(result.row, result.row + 1, 10, f"r{result.row}")
        assert store.claim(item) is None
        store.finish(result)
    for taken in made.samples:
        names = ", ".join(("run", *Sample._fields))
        places = ", ".join("?" * (len(Sample._fields) + 1))
        store.database.write(f"INSERT INTO samples ({names}) VALUES ({places})", store.run, *taken)
    store.database.write("UPDATE runs SET load_s = 2.5, plan_s = 0.5 WHERE run = ?", store.run)
    store.commit()
    if made.outcome is not None:
        store.end_run(made.outcome)


def add_tree(path: Path, tree: PrefixNode) -> None:
    """As if the job had been planned."""
    with closing(Store.open(path)) as store:
        record_tree(store, tree)
        store.commit()


def whole_job(folder: Path, prediction: Prediction | None = PREDICTION) -> Path:
    """Four rows in one run of 10 s, one of which failed."""
    results = [answer(0, 5), answer(1, 10), answer(2, 20), error(3, "invalid_field", "a <b>bold</b> claim & more")]
    made = MadeRun([sample(2.5, 1), sample(5.0, 2), sample(10.0, 4)], results, prediction)
    return made_job(folder, made, rows=4)


def resumed_job(folder: Path) -> Path:
    """Four rows in three runs: one that died after 4 s, one that took no sample, and one of 6 s that finished."""
    first = MadeRun([sample(2.0, 1), sample(4.0, 2)], [answer(0), answer(1)], PREDICTION, None)
    third = MadeRun([sample(3.0, 1), sample(6.0, 2)], [answer(2), answer(3)])
    return made_job(folder, first, MadeRun(outcome="interrupted"), third, rows=4)
