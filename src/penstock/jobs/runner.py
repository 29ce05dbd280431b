"""The life of a job: refuse what cannot be done, load, plan, compute what is missing, export, sum up.

Owns the order of these. The model, the clock, the signals and what shows progress are passed in.
Whatever can be refused is refused before the model is loaded, and leaves nothing behind. `loop.py` has the life of a
row.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial

from penstock.errors import Interrupted, OutOfTime, Refused, Stopped, StorageFailed
from penstock.jobs import job as jobs
from penstock.jobs.export import Export, OutputFile
from penstock.jobs.job import Job, UnchangedInput
from penstock.jobs.loading import Loaded, Model
from penstock.jobs.locks import JobLock
from penstock.jobs.loop import Loop, Surroundings
from penstock.jobs.phases import Phase
from penstock.jobs.plan_file import PlanFile, remove_plan
from penstock.jobs.planning import Planning, describe_unranked, make_plan, num_cores, plan_key, plan_path, spare_bytes
from penstock.jobs.predicting import predict
from penstock.jobs.prefix_picture import tree_of
from penstock.jobs.progress import Watch, duration
from penstock.jobs.queue import Queue
from penstock.jobs.store import Identity, Store
from penstock.jobs.summary import Outcome, Summary, summarize
from penstock.jobs.timeline import Prediction, record_prediction, record_tree, recorded_tree
from penstock.jobs.tokenizing import Setup

FindModel = Callable[[], Model]


def run(job: Job, find_model: FindModel, around: Surroundings) -> Summary:
    """Do what is missing of a job; after any interruption the same call goes on.

    Returns:
        What was done. Where work had begun and was stopped, `stopped` says why; everything finished is kept.

    Raises:
        Refused: nothing was done. StorageFailed: nothing was done either, since the disk did not take the job itself.
    """
    around.phases.enter(Phase.START_UP)
    jobs.check_paths(job)
    with JobLock(job.path) as lock:
        try:
            with ExitStack() as opened:
                return _run_locked(job, find_model, around=around, lock=lock, opened=opened)
        finally:
            lock.discard()


def _run_locked(job: Job, find_model: FindModel, *, around: Surroundings, lock: JobLock, opened: ExitStack) -> Summary:
    store = jobs.existing_store(job, lock)
    if store is not None:
        opened.callback(store.close)
    with around.timer.reading():
        read = UnchangedInput(job.input)
    model = find_model()
    identity = jobs.identity_of(job, input_sha256=read.sha256, model_sha256=model.fingerprint)
    store = jobs.same_or_none(job, store, identity=identity)
    if store is not None and store.totals().done == store.about().rows:
        return _finish_again(job, store, around)
    loaded = _load(job, model, around)
    plan = opened.enter_context(closing(_plan(job, model.setup(job.seed), identity, around)))
    if store is None:
        store = jobs.new_store(job, lock, identity=identity, model=model.name, plan=plan)
        opened.callback(store.close)
    if recorded_tree(store) is None:
        record_tree(store, tree_of(plan.forest(), plan.own_rows()))
    _check_numerics(job, store, loaded=loaded, around=around)
    store.move(**dict(jobs.relative_paths(job)))
    with closing(_open_export(job, store)) as export:
        cache = jobs.open_cache(job, store, stats=loaded.engine.stats(), tell=around.watch.warn)
        with around.timer.reading():
            queue = Queue(plan, store)
        loop = Loop(store, loaded, queue, read=read, export=export, around=around, cache=cache)
        expect = partial(predict, plan, store, job.input, loaded=loaded, left_s=around.left_s, tell=around.watch.note)
        return _run_loop(job, store, loop, loaded=loaded, export=export, around=around, expect=expect)


def _load(job: Job, model: Model, around: Surroundings) -> Loaded:
    around.phases.enter(Phase.LOAD)
    around.watch.choices(model.resolve())
    return model.load(job.seed)


def _plan(job: Job, setup: Setup, identity: Identity, around: Surroundings) -> PlanFile:
    """The job's plan: made now, gone on with, or as it was made before."""
    around.phases.enter(Phase.PLAN)
    key = plan_key(identity.fingerprint(), setup, job.priority, in_order=job.in_order)
    planning = Planning(
        job.input,
        setup,
        key,
        num_cores(),
        partial(_hear, around),
        priority=job.priority,
        in_order=job.in_order,
        spare_bytes=spare_bytes(job.memory_bytes),
        note=around.watch.note,
    )
    with around.timer.reading():
        plan, lost = make_plan(plan_path(job.path), planning)
    if lost:
        around.watch.warn(f"a process that tokenized died; its {lost} rows are tokenized when they run")
    unranked = describe_unranked(plan, job.priority)
    if unranked is not None:
        around.watch.warn(unranked)
    return plan


def _hear(around: Surroundings, rows: int) -> None:
    """So many rows were read; where the deadline has passed, it ends there."""
    around.watch.reading(rows)
    if around.late is not None:
        kept = f"the {rows} rows that were read and tokenized are kept"
        raise OutOfTime(f"{around.late.asked} has passed before the first row; {kept}")


def _check_numerics(job: Job, store: Store, *, loaded: Loaded, around: Surroundings) -> None:
    accepted = jobs.check_numerics(job, store, numerics=loaded.engine.stats().numerics)
    if accepted is not None:
        around.watch.warn(accepted)


def _run_loop(
    job: Job,
    store: Store,
    loop: Loop,
    *,
    loaded: Loaded,
    export: Export,
    around: Surroundings,
    expect: Callable[[], Prediction | None],
) -> Summary:
    start = store.totals()
    if start.done:
        around.watch.note(f"{start.done} of {store.about().rows} rows were done before; going on with the rest")
    stats = loaded.engine.stats()
    store.begin_run(jobs.now(), stats.numerics, row_exact=stats.row_exact)
    with around.timer.reading():
        prediction = expect()
    _tell_expected(store, prediction, around)
    around.timer.ready()
    around.stop.is_graceful = True
    stopped: BaseException | None = None
    try:
        loop.settle_crashes()
        loop.run()
        jobs.check_all_done(job, store)
        _finish(store, export, around)
        remove_plan(plan_path(job.path))
    except (KeyboardInterrupt, Stopped, Refused) as error:
        _let_go(store, export, around=around, error=error)
        stopped = error
    finally:
        around.stop.is_graceful = False
        around.watch.close()
    outcome = Outcome(start, loaded.engine.stats(), _reason(stopped, around), _exit_code(stopped, around))
    return summarize(job, store, outcome, times=around.timer.times(), watch=around.watch)


def _tell_expected(store: Store, prediction: Prediction | None, around: Surroundings) -> None:
    """Say beforehand how long it will take, and write it down to be compared."""
    if prediction is not None:
        assert store.run is not None
        record_prediction(store, store.run, prediction)
        store.commit()
        low, high = duration(prediction.least_s), duration(prediction.most_s)
        around.watch.note(f"expected to take {duration(prediction.predicted_s)} ({low} to {high})")
    if around.deadline is not None:
        around.watch.note(around.deadline.reach(prediction, now_s=around.timer.now_s()).describe())


def _finish(store: Store, export: Export, around: Surroundings) -> None:
    around.phases.enter(Phase.EXPORT)
    export.sync()
    _tell_healed(export, around.watch)
    around.phases.enter(Phase.COMMIT)
    store.end_run("finished")
    around.phases.enter(Phase.DONE)


def _let_go(store: Store, export: Export, *, around: Surroundings, error: BaseException) -> None:
    """End a run early, so that its unfinished rows do not count as crashed."""
    try:
        store.rollback()
        store.end_run("interrupted" if isinstance(error, KeyboardInterrupt | Interrupted) else "stopped")
        if isinstance(error, Interrupted):
            export.sync()
    except StorageFailed as again:
        around.watch.warn(f"the rows in flight could not be let go, so this counts as one crash of theirs: {again}")


def _reason(stopped: BaseException | None, around: Surroundings) -> str | None:
    if isinstance(stopped, KeyboardInterrupt):
        return "stopped at once" if around.stop.asked is None else f"stopped at once by {around.stop.asked.name}"
    return None if stopped is None else str(stopped)


def _exit_code(stopped: BaseException | None, around: Surroundings) -> int:
    if stopped is None:
        return 0
    if isinstance(stopped, OutOfTime):
        return 4
    return around.stop.exit_code if isinstance(stopped, KeyboardInterrupt | Interrupted) else 3


def _finish_again(job: Job, store: Store, around: Surroundings) -> Summary:
    """A job that has every result: make sure that its files say the same, without loading the model."""
    around.timer.ready()
    around.phases.enter(Phase.EXPORT)
    store.move(**dict(jobs.relative_paths(job)))
    with closing(_open_export(job, store)) as export:
        export.advance()
        export.sync()
    _tell_healed(export, around.watch)
    around.watch.note(f"this job was finished before: all {export.num_rows} rows are in {job.output}")
    return summarize(job, store, Outcome(store.totals()), times=around.timer.times(), watch=around.watch)


def _open_export(job: Job, store: Store) -> Export:
    return Export(store.results, OutputFile(job.output, required=True), OutputFile(job.errors, required=False))


def _tell_healed(export: Export, watch: Watch) -> None:
    for file in (export.output, export.errors):
        if file.cut_bytes:
            watch.warn(
                f"{file.path}: the {file.cut_bytes} bytes after its first {file.kept_bytes} were not the job's; cut"
            )
