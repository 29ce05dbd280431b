"""The numbers of a report are the store's, and the seconds add up."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from penstock.errors import ConfigError, JobMismatch
from penstock.jobs.locks import JobLock
from penstock.jobs.report_facts import Facts, Failure, Optimal, gather, optimal, spent, unknown_ends
from penstock.jobs.store import Store
from tests.report_jobs import PREDICTION, MadeRun, answer, error, made_job, resumed_job, sample, whole_job


def seconds(facts: Facts) -> dict[str, float]:
    return {part.name: round(part.seconds, 6) for part in spent(facts)}


def test_the_numbers_are_those_of_the_store(tmp_path: Path) -> None:
    path = whole_job(tmp_path)
    facts = gather(path)
    with closing(Store.look(path)) as store:
        assert facts.totals == store.totals()
        assert facts.about == store.about()
        assert facts.fingerprint == store.meta()["fingerprint"]
        assert [s.run for s in facts.stretches] == store.runs()
    assert facts.state == "finished"
    assert facts.name == "out.jsonl"
    assert facts.lengths == ((5, 1), (10, 1), (20, 1))
    assert facts.failures == (Failure("invalid_field", 1, "a <b>bold</b> claim & more", 4),)
    assert (facts.engine_s, facts.load_s, facts.plan_s) == (10.0, 2.5, 0.5)
    assert facts.sum("steps") == 100


def test_each_kind_of_error_has_its_number_and_what_the_first_says_the_most_frequent_first(tmp_path: Path) -> None:
    errors = [error(0, "b", "one"), error(1, "a", "two"), error(2, "a", "three")]
    facts = gather(made_job(tmp_path, MadeRun([sample(1.0, 3)], errors), rows=3))
    assert facts.failures == (Failure("a", 2, "two", 2), Failure("b", 1, "one", 1))
    assert facts.lengths == ()


def test_the_seconds_add_up_to_the_time_of_the_engine(tmp_path: Path) -> None:
    facts = gather(whole_job(tmp_path))
    assert seconds(facts) == {
        "At the machine's limits": 5.0,
        "Steps beyond the limits": 1.0,
        "Committing": 1.0,
        "Queueing": 0.5,
        "Reading": 0.5,
        "Recording": 0.5,
        "Exporting": 0.5,
        "Not accounted for": 1.0,
    }
    assert sum(part.seconds for part in spent(facts)) == pytest.approx(facts.engine_s)


def test_runs_stand_behind_each_other(tmp_path: Path) -> None:
    facts = gather(resumed_job(tmp_path))
    assert [(s.start_s, s.end_s, s.start_rows) for s in facts.stretches] == [(0, 4, 0), (4, 4, 2), (4, 10, 2)]
    assert facts.engine_s == 10.0
    assert facts.sum("prefill_tokens") == 300
    assert unknown_ends(facts) == [1]
    assert seconds(facts)["Steps beyond the limits"] == 1.0
    assert sum(part.seconds for part in spent(facts)) == pytest.approx(10.0)


def test_an_optimum_above_what_the_steps_took_is_no_negative_time(tmp_path: Path) -> None:
    facts = gather(whole_job(tmp_path, PREDICTION._replace(optimal_s=7.0)))
    assert optimal(facts) == Optimal(7.0)
    assert seconds(facts)["At the machine's limits"] == 6.0
    assert seconds(facts)["Steps beyond the limits"] == 0.0


def test_where_the_optimum_is_not_known_the_reason_is(tmp_path: Path) -> None:
    reasons = {}
    for name, said in (
        ("none", None),
        ("part", PREDICTION._replace(rows=3)),
        ("limits", PREDICTION._replace(optimal_s=None)),
    ):
        (tmp_path / name).mkdir()
        facts = gather(whole_job(tmp_path / name, said))
        assert "Computing" in seconds(facts)
        reasons[name] = optimal(facts).why_not
    unfinished = MadeRun([sample(1.0, 1)], [answer(0)], PREDICTION, "interrupted")
    reasons["unfinished"] = optimal(gather(made_job(tmp_path, unfinished, rows=4))).why_not
    assert reasons == {
        "none": "no prediction was recorded",
        "part": "no prediction was recorded of the whole job, only of what was left of it",
        "limits": "the limits of this machine were not measured before the job",
        "unfinished": "the optimal time is of the whole job, which is not finished",
    }


@pytest.mark.parametrize(("outcome", "state"), [("interrupted", "interrupted"), ("stopped", "stopped"), (None, "died")])
def test_the_state_of_a_job_that_is_not_finished(tmp_path: Path, outcome: str | None, state: str) -> None:
    path = made_job(tmp_path, MadeRun([sample(1.0, 1)], [answer(0)], outcome=outcome), rows=2)
    assert gather(path).state == state
    with JobLock(path):
        assert gather(path).state == "running"
        assert unknown_ends(gather(path)) == []


def test_a_job_without_a_run(tmp_path: Path) -> None:
    facts = gather(made_job(tmp_path, rows=2))
    assert (facts.state, facts.engine_s, facts.stretches, facts.totals.done) == ("not begun", 0.0, (), 0)
    assert sum(part.seconds for part in spent(facts)) == 0


def test_what_is_no_job_is_refused(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "made.job")):
        pass
    with pytest.raises(ConfigError, match="only just begun"):
        gather(tmp_path / "made.job")
    (tmp_path / "text.job").write_text("hello, I am no database at all" * 100)
    with pytest.raises(JobMismatch):
        gather(tmp_path / "text.job")
