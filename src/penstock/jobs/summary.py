"""`Summary`: what a run did, as numbers for programs (`--json`) and as lines for people.

Owns what each number means. Numbers of the whole job come from the store; those of this run are differences to what the
store had when it began, so that rows reused from earlier runs count for nothing in speeds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from penstock.engine import EngineStats
from penstock.jobs.job import Job
from penstock.jobs.progress import Watch, duration
from penstock.jobs.store import Store, Totals
from penstock.jobs.timing import Times


class Outcome(NamedTuple):
    """How a run ended: what the store had when it began, the engine's counts (None: not loaded), why it stopped."""

    start: Totals
    engine: EngineStats | None = None
    stopped: str | None = None
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did and how the job stands.

    Attributes:
        rows, failed: of the whole job; reused: rows that were done before this run.
        done: rows that have an answer or an error row.
        prompt_tokens, cached_tokens, output_tokens: of the rows that this run finished.
        computed_tokens: tokens that this run computed, those of rows that are not finished included.
        row_exact: whether every answer of the job depends on its row alone, to the bit; `notes` say why not.
        notes: all that must be known of this run; late_notes: those of them that were found only at its end.
        equal_rows: rows of the job that got the answer of an equal row, which was computed once.
        failures: error rows by code; ignored: fields that were accepted without effect, with the rows that had them.
        from_cache: rows whose answer was kept by an earlier job (--cache).
        other_models: rows that name another model than the job's.
        numerics: the numerics signature of this run; settings: its values and their sources; both empty where
            nothing had to be computed.
        stopped: why the run ended early; None: it did not. exit_code: 0, or by how it was stopped.
    """

    rows: int
    done: int
    failed: int
    reused: int
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    output_tokens: int
    wall_s: float
    load_s: float
    engine_s: float
    row_exact: bool
    steps: int = 0
    preemptions: int = 0
    equal_rows: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    from_cache: int = 0
    other_models: int = 0
    notes: tuple[str, ...] = ()
    late_notes: tuple[str, ...] = ()
    numerics: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    output: str = ""
    errors: str = ""
    job: str = ""
    stopped: str | None = None
    exit_code: int = 0

    def as_json(self) -> dict[str, object]:
        """The summary as JSON can hold it."""
        found = asdict(self)
        del found["late_notes"]
        return found


def summarize(job: Job, store: Store, outcome: Outcome, *, times: Times, watch: Watch) -> Summary:
    """Sum up a run and its job."""
    now, start, engine = store.totals(), outcome.start, outcome.engine
    counts = store.counts()
    exact = store.is_row_exact()
    ignored = {name.removeprefix("ignored:"): n for name, n in counts.items() if name.startswith("ignored:")}
    mixed = (
        () if exact else ("rows of this job were computed with different numerics, or with some that are not exact",)
    )
    late = (*(engine.notes if engine else ()), *mixed)
    return Summary(
        rows=store.about().rows,
        done=now.done,
        failed=now.failed,
        reused=start.done,
        prompt_tokens=now.prompt_tokens - start.prompt_tokens,
        cached_tokens=now.cached_tokens - start.cached_tokens,
        computed_tokens=engine.computed_tokens if engine else 0,
        output_tokens=now.output_tokens - start.output_tokens,
        wall_s=times.wall_s,
        load_s=times.load_s,
        engine_s=times.engine_s,
        row_exact=exact and (engine is None or engine.row_exact),
        steps=engine.steps if engine else 0,
        preemptions=engine.preemptions if engine else 0,
        equal_rows=counts.get("equal_rows", 0),
        failures=store.failures(),
        ignored=ignored,
        from_cache=counts.get("from_cache", 0),
        other_models=counts.get("other_models", 0),
        notes=(*watch.warnings, *late),
        late_notes=late,
        numerics=engine.numerics if engine else {},
        settings=dict(watch.settings),
        output=str(job.output),
        errors=str(job.errors),
        job=str(job.path),
        stopped=outcome.stopped,
        exit_code=outcome.exit_code,
    )


def report(summary: Summary) -> list[str]:
    """The summary as lines for people."""
    s = summary
    seconds = max(s.engine_s, 1e-9)
    lines = [
        f"{s.done} of {s.rows} rows done: {s.done - s.failed} answered, {s.failed} failed; {s.reused} were done before",
        f"{duration(s.wall_s)} in all: {s.load_s:.1f} s loading, {s.engine_s:.1f} s for {s.prompt_tokens} prompt tokens"
        f" ({s.cached_tokens} from the prefix cache) and {s.output_tokens} output tokens, "
        f"{(s.prompt_tokens + s.output_tokens) / seconds:.0f} a second",
    ]
    if s.equal_rows:
        lines.append(f"{s.equal_rows} rows ask the same as others and got their answers")
    if s.from_cache:
        lines.append(f"{s.from_cache} rows were answered from the cache of earlier jobs")
    if s.failures:
        counts = ", ".join(f"{number} {code}" for code, number in s.failures.items())
        lines.append(f"failed rows: {counts}; they are in {s.errors}")
    if s.ignored:
        fields = ", ".join(f"{name} ({number} rows)" for name, number in s.ignored.items())
        lines.append(f"fields accepted without effect: {fields}")
    if s.other_models:
        lines.append(f"{s.other_models} rows name another model; the job's model answered them")
    if not s.row_exact:
        lines.append("not row-exact: near-ties may differ from a run that computes everything anew")
    return lines
