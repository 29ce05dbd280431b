"""How long the rest of a job will take, worked out before its first row runs.

Owns what of a job is predicted (the rows that have no result yet) and when a model's profile is measured for it: a job
that is long by its arithmetic alone is worth the minute, and so is one with a deadline, of which it is to be said
whether it fits. How it is predicted is in `forecast.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from penstock.disturbance import describe_disturbance
from penstock.forecast import forecast, limits_of_run
from penstock.jobs.loading import Loaded
from penstock.jobs.outlook import PlannedJob
from penstock.jobs.plan_file import PlanFile
from penstock.jobs.store import Store
from penstock.jobs.timeline import Prediction
from penstock.measuring import QUICK
from penstock.models.spec import DecoderSpec
from penstock.simulation import Terms

SLOW_FLOPS_PER_S = 5e10  # of a small machine
LONG_S = 600.0


def predict(
    plan: PlanFile,
    store: Store,
    input_file: Path,
    *,
    loaded: Loaded,
    left_s: float | None,
    tell: Callable[[str], None],
) -> Prediction | None:
    """What is expected of the rows that have no result; None: this model was not measured on this machine.

    `left_s`: the seconds until the job's deadline, which measuring takes some of; None: it has none.
    """
    terms = loaded.terms
    if terms is None and loaded.measure is not None:
        reason = _why_measure(plan, loaded.measure.spec, left_s)
        if reason is not None:
            tell(f"{reason} and the model's speed here is not known yet: measuring it")
            terms = loaded.measure.terms()
    if terms is None:
        return None
    disturbed = describe_disturbance(terms.profile)
    if disturbed is not None:
        tell(disturbed)
    return _predict(plan, store, input_file, terms)


def _why_measure(plan: PlanFile, spec: DecoderSpec, left_s: float | None) -> str | None:
    """Why the model is to be measured before the first row; None: it is not worth the time."""
    if left_s is not None:
        return "this job has a deadline" if left_s > QUICK.seconds else None
    return "this job is long" if _is_long(plan, spec) else None


def _predict(plan: PlanFile, store: Store, input_file: Path, terms: Terms) -> Prediction:
    done = store.done_rows()
    job = PlannedJob(plan, input_file, is_done=lambda row: row < len(done) and bool(done[row]))
    try:
        limits = limits_of_run(terms.config.max_sequences)
        found = forecast(job.outlines, job.load, terms, is_certain=job.is_certain, limits=limits)
        rows = store.about().rows - store.totals().done
        return job.prediction(found, terms, rows=rows)
    finally:
        job.close()


def _is_long(plan: PlanFile, spec: DecoderSpec) -> bool:
    """Whether the products alone take long on a small machine."""
    totals = plan.totals()
    tokens = totals.distinct_tokens + totals.expected_tokens
    return 2.0 * spec.layers * spec.layer_elements * tokens > LONG_S * SLOW_FLOPS_PER_S
