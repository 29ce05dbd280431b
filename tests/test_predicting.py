"""Protects what a run says of itself beforehand: of the rows that are left, and written down to be compared."""

from __future__ import annotations

import signal
from contextlib import closing
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path

import pytest

from penstock.jobs.loading import Loaded, Measure
from penstock.jobs.progress import Watch
from penstock.jobs.runner import run
from penstock.jobs.stopping import StopSignals
from penstock.jobs.store import Store
from penstock.jobs.timeline import histories
from penstock.profile import Disturbance
from penstock.simulation import Terms
from tests.job_runs import ToyEngine, ToyModel, job_at, row, run_job, surroundings, write_rows
from tests.profiles import SPEC, profile, terms


class MeasuredModel(ToyModel):
    """A toy model whose speed on this machine is known."""

    def load(self, job_seed: int) -> Loaded:
        return super().load(job_seed)._replace(terms=terms())


def rows(folder: Path) -> None:
    asks = {"temperature": 0, "ignore_eos": True}
    write_rows(folder / "in.jsonl", [row(f"r{n}", f"p{n % 15}", **asks) for n in range(20)] + ["{"])


def test_a_run_is_predicted_and_its_prediction_kept(tmp_path: Path) -> None:
    rows(tmp_path)
    run_job(job_at(tmp_path), MeasuredModel())
    with closing(Store.look(job_at(tmp_path).path)) as store:
        [history] = histories(store)
    found = history.prediction
    assert found is not None
    assert found.rows == 21, "all of them, the bad one and the equal ones too"
    assert found.output_tokens == 45, "of 15 that are computed"
    assert found.prefill_tokens > 0
    assert 0 < found.least_s < found.predicted_s < found.most_s
    assert found.curve[-1].at_s == pytest.approx(found.predicted_s)
    assert found.curve[-1].rows == 21
    assert found.curve[0].at_s > 0, "nothing is finished until the first answer is"
    assert found.curve[0].rows == 0
    assert [at.rows for at in found.curve] == sorted(at.rows for at in found.curve)


def test_a_resumed_run_is_predicted_for_what_is_left(tmp_path: Path) -> None:
    rows(tmp_path)
    stop = StopSignals()
    engine = ToyEngine(on_step=lambda prompts: setattr(stop, "asked", signal.SIGINT if "p4" in prompts else None))
    first = run_job(job_at(tmp_path), MeasuredModel(engine), stop=stop)
    assert 0 < first.done < 21
    run_job(job_at(tmp_path), MeasuredModel())
    with closing(Store.look(job_at(tmp_path).path)) as store:
        before, after = (history.prediction for history in histories(store))
    assert before is not None
    assert after is not None
    assert after.rows == 21 - first.done
    assert after.output_tokens < before.output_tokens
    assert after.predicted_s < before.predicted_s


@dataclass
class DisturbedModel(ToyModel):
    """A toy model that was measured on a machine that others used too."""

    disturbance: Disturbance | None = None

    def load(self, job_seed: int) -> Loaded:
        measured = replace(profile(), disturbance=self.disturbance)
        return super().load(job_seed)._replace(terms=terms()._replace(profile=measured))


@pytest.mark.parametrize(("found", "count"), [(None, 0), (Disturbance(0.01, 0.02), 0), (Disturbance(0.2, 0.3), 1)])
def test_that_a_profile_was_disturbed_is_said_before_the_first_row(
    tmp_path: Path, found: Disturbance | None, count: int
) -> None:
    rows(tmp_path)
    shown = StringIO()
    run(job_at(tmp_path), lambda: DisturbedModel(disturbance=found), surroundings()._replace(watch=Watch(shown)))
    said = "so its times may be too long, by a factor of about 2.0"
    assert shown.getvalue().count(said) == count


class NewMeasure(Measure):
    """Measures a toy model: its speed is known at once, and how often it was asked for."""

    def __init__(self) -> None:
        self.spec = SPEC
        self.asked = 0

    def terms(self) -> Terms:
        self.asked += 1
        return terms()


@dataclass
class NewModel(ToyModel):
    """A toy model whose speed is not known yet."""

    measure: NewMeasure = field(default_factory=NewMeasure)

    def load(self, job_seed: int) -> Loaded:
        return super().load(job_seed)._replace(measure=self.measure)


@pytest.mark.parametrize(("within_s", "asked"), [(None, 0), (3600.0, 1), (3.0, 0)])
def test_a_new_model_is_measured_for_a_deadline_that_leaves_the_time(
    tmp_path: Path, within_s: float | None, asked: int
) -> None:
    rows(tmp_path)
    model = NewModel()
    run_job(job_at(tmp_path), model, within_s=within_s)
    assert model.measure.asked == asked
    with closing(Store.look(job_at(tmp_path).path)) as store:
        assert [history.prediction is not None for history in histories(store)] == [bool(asked)]


def test_a_model_that_was_not_measured_is_not_predicted(tmp_path: Path) -> None:
    rows(tmp_path)
    run_job(job_at(tmp_path), ToyModel())
    with closing(Store.look(job_at(tmp_path).path)) as store:
        assert [history.prediction for history in histories(store)] == [None]
