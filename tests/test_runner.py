"""The life of a job, with an engine that answers from the prompt alone; no torch."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import ConfigError, JobLocked, JobMismatch, ModelError, OutputExists
from penstock.jobs.loading import Loaded
from penstock.jobs.locks import JobLock
from penstock.jobs.looking import one_line, verify
from penstock.jobs.plan_file import ROWS_A_PAGE
from penstock.jobs.stopping import StopSignals
from penstock.jobs.store import Store
from penstock.request import Request
from tests.job_runs import PROGRAM, REPOSITORY, ToyEngine, ToyModel, job_at, row, run_job, write_rows


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def codes(path: Path) -> list[str | None]:
    errors = [line["error"] for line in lines(path)]
    return [error["code"] if isinstance(error, dict) else None for error in errors]


def attempts(folder: Path) -> list[tuple[int, int]]:
    with closing(Store.look(job_at(folder).path)) as store:
        return store.attempts()


def ten_rows(folder: Path) -> None:
    write_rows(folder / "in.jsonl", [row(f"r{n}", f"p{n}", max_tokens=1 + n % 4) for n in range(10)])


def test_answers_stand_in_the_order_of_the_input_whatever_ends_first(tmp_path: Path) -> None:
    ten_rows(tmp_path)
    summary = run_job(job_at(tmp_path))
    assert [line["custom_id"] for line in lines(job_at(tmp_path).output)] == [f"r{n}" for n in range(10)]
    assert (summary.rows, summary.done, summary.failed, summary.reused, summary.exit_code) == (10, 10, 0, 0, 0)
    assert (summary.prompt_tokens, summary.output_tokens) == (20, 23)
    assert not job_at(tmp_path).errors.exists()


def test_the_times_add_up(tmp_path: Path) -> None:
    ten_rows(tmp_path)
    summary = run_job(job_at(tmp_path))
    assert summary.wall_s == round(summary.load_s + summary.engine_s, 3)


def test_only_a_bounded_number_of_rows_is_unfinished(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [row(f"r{n}", "p", max_tokens=1 + n % 3) for n in range(50)])
    model = ToyModel(at_once=7)
    run_job(job_at(tmp_path), model)
    assert model.engine.most_unfinished == 7


def test_bad_rows_become_error_rows_in_their_place_and_once_in_the_error_file(tmp_path: Path) -> None:
    rows = [row("a", "x"), "{", row("a", "y"), row("b", "TOO BIG"), row("c", "FAIL"), row("d", "BUG"), row("e", "z")]
    write_rows(tmp_path / "in.jsonl", rows)
    job = job_at(tmp_path)
    summary = run_job(job)
    expected = [None, "invalid_json", "duplicate_custom_id", "kv_too_small", "internal", "internal", None]
    assert codes(job.output) == expected
    assert codes(job.errors) == [code for code in expected if code]
    assert (summary.done, summary.failed) == (7, 5)
    assert summary.failures == {"duplicate_custom_id": 1, "internal": 2, "invalid_json": 1, "kv_too_small": 1}
    assert "ZeroDivisionError: a bug that only this row finds" in job.errors.read_text()


def test_the_line_of_an_error_counts_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n\n" + row("a", "x") + "\n\n{\n")
    run_job(job_at(tmp_path))
    error = lines(job_at(tmp_path).errors)[0]["error"]
    assert isinstance(error, dict)
    assert error["line"] == 5


def test_the_first_row_with_a_custom_id_that_can_be_read_is_answered(tmp_path: Path) -> None:
    rows = ['{"custom_id": "a"}', row("a", "x"), row("a", "y"), row("b", "TOO BIG"), row("b", "z")]
    write_rows(tmp_path / "in.jsonl", rows)
    run_job(job_at(tmp_path))
    found = codes(job_at(tmp_path).output)
    assert found == ["missing_field", None, "duplicate_custom_id", "kv_too_small", "duplicate_custom_id"]


def test_an_input_without_rows_gives_an_empty_output(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n \n")
    summary = run_job(job_at(tmp_path))
    assert (summary.rows, summary.exit_code) == (0, 0)
    assert job_at(tmp_path).output.read_bytes() == b""


def test_fields_without_effect_and_other_model_names_are_counted_once_a_row(tmp_path: Path) -> None:
    rows = [row("a", "x", user="u", model="gpt"), row("b", "y", user="u", model="toy"), row("c", "z")]
    write_rows(tmp_path / "in.jsonl", rows)
    stop = StopSignals()
    engine = ToyEngine(on_step=lambda prompts: setattr(stop, "asked", signal.SIGINT))
    run_job(job_at(tmp_path), ToyModel(engine), stop=stop)
    summary = run_job(job_at(tmp_path))
    assert summary.ignored == {"user": 2}
    assert summary.other_models == 1


def test_a_stopped_job_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        ten_rows(folder)
    run_job(job_at(whole))
    stop = StopSignals()

    def after_three_steps(prompts: list[str]) -> None:
        steps.append(prompts)
        stop.asked = signal.SIGINT if len(steps) == 3 else None

    steps: list[list[str]] = []
    first = run_job(job_at(parts), ToyModel(ToyEngine(on_step=after_three_steps)), stop=stop)
    assert (first.exit_code, first.stopped) == (130, "stopped by SIGINT")
    assert 0 < first.done < 10
    assert job_at(parts).output.read_bytes() == job_at(whole).output.read_bytes()[: job_at(parts).output.stat().st_size]
    model = ToyModel()
    second = run_job(job_at(parts), model)
    assert (second.reused, second.done, second.exit_code) == (first.done, 10, 0)
    assert len(model.engine.started) == 10 - first.done
    assert job_at(parts).output.read_bytes() == job_at(whole).output.read_bytes()


def test_a_clean_stop_is_no_crash(tmp_path: Path) -> None:
    ten_rows(tmp_path)
    for _ in range(5):
        stop = StopSignals()
        engine = ToyEngine(on_step=lambda prompts, stop=stop: setattr(stop, "asked", signal.SIGTERM))  # type: ignore[misc]
        summary = run_job(job_at(tmp_path), ToyModel(engine), stop=stop)
    assert summary.exit_code in (0, 3)
    with closing(Store.look(job_at(tmp_path).path)) as store:
        assert {state.crashes for state in store.states(range(10)).values()} == {0}


def test_a_stop_claims_no_more_rows(tmp_path: Path) -> None:
    ten_rows(tmp_path)
    stop = StopSignals()
    engine = ToyEngine(on_step=lambda prompts: setattr(stop, "asked", signal.SIGINT))
    assert run_job(job_at(tmp_path), ToyModel(engine), stop=stop).done == 0
    assert attempts(tmp_path) == [(1, 4)]


def test_sigterm_stops_with_exit_code_3(tmp_path: Path) -> None:
    ten_rows(tmp_path)
    stop = StopSignals()
    engine = ToyEngine(on_step=lambda prompts: setattr(stop, "asked", signal.SIGTERM))
    assert run_job(job_at(tmp_path), ToyModel(engine), stop=stop).exit_code == 3


def test_an_interrupt_in_a_step_loses_nothing_and_is_no_crash(tmp_path: Path) -> None:
    ten_rows(tmp_path)

    def interrupt(prompts: list[str]) -> None:
        raise KeyboardInterrupt

    first = run_job(job_at(tmp_path), ToyModel(ToyEngine(on_step=interrupt)))
    assert first.exit_code == 130
    assert run_job(job_at(tmp_path)).done == 10
    assert attempts(tmp_path) == [(1, 6), (2, 4)]


def test_a_finished_job_is_not_loaded_again_and_heals_its_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [row("a", "x"), "{", row("b", "y")])
    job = job_at(tmp_path)
    run_job(job)
    right, errors = job.output.read_bytes(), job.errors.read_bytes()
    job.output.write_bytes(right[:50] + b"#" + right[51:] + b"more")
    job.errors.unlink()
    model = ToyModel()
    summary = run_job(job, model)
    assert (model.loads, summary.reused, summary.exit_code) == (0, 3, 0)
    assert (job.output.read_bytes(), job.errors.read_bytes()) == (right, errors)


def test_an_output_without_its_job_is_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    ten_rows(tmp_path)
    job = job_at(tmp_path)
    job.output.write_text("precious")
    with pytest.raises(OutputExists, match=r"out.jsonl is there \(8 bytes\)"):
        run_job(job)
    assert job.output.read_text() == "precious"
    assert not job.path.exists()
    assert run_job(job_at(tmp_path, overwrite=True)).done == 10
    assert b"precious" not in job.output.read_bytes()


def test_overwrite_goes_on_with_a_job_that_matches(tmp_path: Path) -> None:
    ten_rows(tmp_path)
    run_job(job_at(tmp_path, overwrite=True))
    assert run_job(job_at(tmp_path, overwrite=True)).reused == 10


def test_a_job_of_another_seed_input_or_model_is_refused_with_both_values(tmp_path: Path) -> None:
    ten_rows(tmp_path)
    run_job(job_at(tmp_path))
    with pytest.raises(JobMismatch, match="seed is 0 in the job and 7 now"):
        run_job(job_at(tmp_path, seed=7))
    with pytest.raises(JobMismatch, match="model_sha256 is toy-1 in the job and toy-2 now"):
        run_job(job_at(tmp_path), ToyModel(fingerprint="toy-2"))
    write_rows(tmp_path / "in.jsonl", [row("other", "p")])
    with pytest.raises(JobMismatch, match=r"input_sha256 is [0-9a-f]{64} in the job and [0-9a-f]{64} now"):
        run_job(job_at(tmp_path))
    assert run_job(job_at(tmp_path, overwrite=True)).done == 1
    assert len(lines(job_at(tmp_path).output)) == 1


def half_done(folder: Path) -> None:
    ten_rows(folder)
    stop = StopSignals()
    steps: list[int] = []

    def second_step_stops(prompts: list[str]) -> None:
        steps.append(1)
        stop.asked = signal.SIGINT if len(steps) == 2 else None

    run_job(job_at(folder), ToyModel(ToyEngine(on_step=second_step_stops)), stop=stop)


def test_overwriting_a_job_loses_nothing_until_the_new_one_can_begin(tmp_path: Path) -> None:
    half_done(tmp_path)
    before = job_at(tmp_path).path.read_bytes()

    class Broken(ToyModel):
        def load(self, job_seed: int) -> Loaded:
            raise ModelError("no such weights")

    with pytest.raises(ModelError):
        run_job(job_at(tmp_path, seed=1, overwrite=True), Broken())
    assert job_at(tmp_path).path.read_bytes() == before
    assert run_job(job_at(tmp_path)).reused > 0


def test_a_model_that_cannot_be_loaded_leaves_no_job_behind(tmp_path: Path) -> None:
    ten_rows(tmp_path)

    class Broken(ToyModel):
        def load(self, job_seed: int) -> Loaded:
            raise ModelError("no such weights")

    with pytest.raises(ModelError):
        run_job(job_at(tmp_path), Broken())
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_output_that_is_removed_while_the_job_runs_is_written_anew(tmp_path: Path) -> None:
    ten_rows(tmp_path)

    def remove(prompts: list[str]) -> None:
        job_at(tmp_path).output.unlink(missing_ok=True)

    summary = run_job(job_at(tmp_path), ToyModel(ToyEngine(on_step=remove)))
    assert summary.exit_code == 3
    assert summary.stopped is not None
    assert "was removed or replaced" in summary.stopped
    assert run_job(job_at(tmp_path)).exit_code == 0
    assert len(lines(job_at(tmp_path).output)) == 10


def test_a_half_done_job_verifies(tmp_path: Path) -> None:
    half_done(tmp_path)
    assert verify(job_at(tmp_path).path).problems == ()
    assert one_line(job_at(tmp_path).path).startswith("stopped")


def test_a_bug_in_the_engine_is_a_crash_of_the_rows_in_flight(tmp_path: Path) -> None:
    ten_rows(tmp_path)

    def broken(prompts: list[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_job(job_at(tmp_path), ToyModel(ToyEngine(on_step=broken)))
    assert run_job(job_at(tmp_path)).done == 10
    with closing(Store.look(job_at(tmp_path).path)) as store:
        assert sorted(state.crashes for state in store.states(range(10)).values()) == [0] * 6 + [1] * 4


def test_other_numerics_are_refused_with_both_values_unless_accepted(tmp_path: Path) -> None:
    half_done(tmp_path)
    other = {"device": "toy", "dtype": "bfloat16"}
    with pytest.raises(JobMismatch, match=r"dtype was float32 and is bfloat16.*--accept-numerics"):
        run_job(job_at(tmp_path), ToyModel(ToyEngine(other)))
    summary = run_job(job_at(tmp_path, accept_numerics=True), ToyModel(ToyEngine(other)))
    assert (summary.done, summary.row_exact) == (10, False)
    assert any("dtype was float32 and is bfloat16" in note for note in summary.notes)
    with closing(Store.look(job_at(tmp_path).path)) as store:
        marks = {run.run: run.numerics["dtype"] for run in store.runs()}
    assert marks == {1: "float32", 2: "bfloat16"}
    assert run_job(job_at(tmp_path)).row_exact is False


def test_the_summary_is_not_row_exact_where_the_engine_is_not(tmp_path: Path) -> None:
    ten_rows(tmp_path)
    assert run_job(job_at(tmp_path), ToyModel(ToyEngine(row_exact=False))).row_exact is False
    assert run_job(job_at(tmp_path)).row_exact is False


def test_a_second_process_on_a_job_is_refused(tmp_path: Path) -> None:
    ten_rows(tmp_path)
    with JobLock(job_at(tmp_path).path), pytest.raises(JobLocked, match="another process works on the job"):
        run_job(job_at(tmp_path))


def test_paths_that_are_one_file_or_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        run_job(job_at(tmp_path))
    ten_rows(tmp_path)
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "in.jsonl")
    with pytest.raises(ConfigError, match="are the same file"):
        run_job(job_at(tmp_path))
    (tmp_path / "out.jsonl").unlink()
    (tmp_path / "out.jsonl").mkdir()
    with pytest.raises(ConfigError, match="is no regular file"):
        run_job(job_at(tmp_path))


@pytest.mark.parametrize("rows", [9, 10, 11])
def test_no_row_of_an_input_that_changed_while_the_job_runs_is_committed(tmp_path: Path, rows: int) -> None:
    ten_rows(tmp_path)
    before = (tmp_path / "in.jsonl").read_text()

    def touch_up(prompts: list[str]) -> None:
        write_rows(tmp_path / "in.jsonl", [row(f"r{n}", "other") for n in range(rows)])

    summary = run_job(job_at(tmp_path), ToyModel(ToyEngine(on_step=touch_up)))
    assert summary.exit_code == 3
    assert summary.stopped is not None
    assert "changed while the job ran" in summary.stopped
    with pytest.raises(JobMismatch):
        run_job(job_at(tmp_path))
    (tmp_path / "in.jsonl").write_text(before)
    assert run_job(job_at(tmp_path)).done == 10
    assert b"other" not in job_at(tmp_path).output.read_bytes()


def test_an_input_that_is_only_touched_does_not_stop_the_job(tmp_path: Path) -> None:
    ten_rows(tmp_path)
    engine = ToyEngine(on_step=lambda prompts: os.utime(tmp_path / "in.jsonl"))
    assert run_job(job_at(tmp_path), ToyModel(engine)).done == 10


def test_a_row_that_kills_the_process_runs_alone_in_the_end_and_becomes_an_error_row(tmp_path: Path) -> None:
    rows = [row(f"r{n}", "CRASH" if n == 2 else f"p{n}") for n in range(8)]
    write_rows(tmp_path / "in.jsonl", rows)
    ends = [
        subprocess.run([*PROGRAM, str(tmp_path)], cwd=REPOSITORY, capture_output=True, check=False).returncode
        for _ in range(5)
    ]
    assert ends == [-signal.SIGKILL] * 4 + [0]
    assert codes(job_at(tmp_path).output) == [None, None, "internal", None, None, None, None, None]
    assert "the process died 4 times" in job_at(tmp_path).errors.read_text()
    with closing(Store.look(job_at(tmp_path).path)) as store:
        assert [store.states([n])[n].attempts for n in range(8)] == [4, 4, 4, 4, 1, 1, 1, 1]


def test_equal_rows_are_computed_once_and_each_has_its_answer(tmp_path: Path) -> None:
    asks = [("a", {}), ("b", {}), ("a", {}), ("a", {"max_tokens": 2}), ("b", {}), ("a", {"seed": 1}), ("a", {"n": 1})]
    write_rows(tmp_path / "in.jsonl", [row(f"r{i}", p, temperature=0, **body) for i, (p, body) in enumerate(asks)])
    model = ToyModel()
    summary = run_job(job_at(tmp_path), model)
    assert sorted(model.engine.started) == ["a", "a", "b"]
    assert (summary.done, summary.failed, summary.equal_rows) == (7, 0, 4)
    found = [json.loads(line) for line in job_at(tmp_path).output.read_text().splitlines()]
    texts = [line["response"]["body"]["choices"][0]["text"] for line in found]
    assert texts == ["a!" * 3, "b!" * 3, "a!" * 3, "a!" * 2, "b!" * 3, "a!" * 3, "a!" * 3]
    assert [line["custom_id"] for line in lines(job_at(tmp_path).output)] == [f"r{i}" for i in range(7)]
    assert verify(job_at(tmp_path).path).problems == ()


def test_the_bytes_are_those_of_a_run_in_the_order_of_the_input_without_equal_rows(tmp_path: Path) -> None:
    for folder in ("planned", "in-order"):
        (tmp_path / folder).mkdir()
        rows = [row(f"r{i}", f"{9 - i % 5}", temperature=0.5, seed=7, max_tokens=1 + i % 5) for i in range(40)]
        write_rows(tmp_path / folder / "in.jsonl", [*rows, "{", row("r3", "taken")])
    planned, in_order = ToyModel(), ToyModel()
    run_job(job_at(tmp_path / "planned"), planned)
    run_job(replace(job_at(tmp_path / "in-order"), in_order=True), in_order)
    assert (len(planned.engine.started), len(in_order.engine.started)) == (5, 40)
    assert in_order.engine.started == [f"{9 - i % 5}" for i in range(40)]
    assert job_at(tmp_path / "planned").output.read_bytes() == job_at(tmp_path / "in-order").output.read_bytes()


def test_unseeded_rows_that_are_drawn_are_never_merged(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [row(f"r{i}", "p", temperature=1) for i in range(5)])
    model = ToyModel()
    assert run_job(job_at(tmp_path), model).equal_rows == 0
    assert model.engine.started == ["p"] * 5


def test_equal_rows_share_a_failure_and_a_crash(tmp_path: Path) -> None:
    rows = [row(f"r{n}", "CRASH" if n % 2 else "FAIL", temperature=0) for n in range(6)]
    write_rows(tmp_path / "in.jsonl", rows)
    ends = [
        subprocess.run([*PROGRAM, str(tmp_path)], cwd=REPOSITORY, capture_output=True, check=False).returncode
        for _ in range(5)
    ]
    assert ends == [-signal.SIGKILL] * 4 + [0], "the second and third CRASH are not tried as well"
    assert codes(job_at(tmp_path).output) == ["internal"] * 6


def equal_rows(folder: Path, count: int) -> None:
    write_rows(folder / "in.jsonl", (row(f"r{n}", "FAIL" if n % 2 else "p", temperature=0) for n in range(count)))


def test_any_number_of_equal_rows_is_finished_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SQLite takes far fewer variables in a statement than there are equal rows."""
    original = sqlite3.connect

    def limited(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = original(*args, **options)
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 2 * ROWS_A_PAGE)
        return connection

    monkeypatch.setattr(sqlite3, "connect", limited)
    equal_rows(tmp_path, 5000)
    model = ToyModel()
    summary = run_job(job_at(tmp_path), model)
    assert (summary.exit_code, summary.done, summary.failed, summary.equal_rows) == (0, 5000, 2500, 4998)
    assert sorted(model.engine.started) == ["FAIL", "p"]
    assert codes(job_at(tmp_path).output) == [None, "internal"] * 2500


@pytest.mark.parametrize(("end", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_job_that_ends_between_the_parts_of_equal_rows_goes_on_with_the_same_bytes(
    tmp_path: Path, end: signal.Signals, code: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        equal_rows(folder, 6_000)
    run_job(job_at(whole))
    job = job_at(parts)
    with subprocess.Popen([*PROGRAM, str(parts)], cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
        while not num_done(job.path):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(end)
    assert process.returncode == code
    assert 0 < num_done(job.path) < 6_000
    assert verify(job.path).problems == ()
    model = ToyModel()
    summary = run_job(job, model)
    assert (summary.done, summary.failed, summary.equal_rows) == (6_000, 3_000, 5_998)
    assert len(model.engine.started) <= 2, "none but the two that were not finished when it ended"
    assert job.output.read_bytes() == job_at(whole).output.read_bytes()


def num_done(path: Path) -> int:
    if not path.exists() or not path.stat().st_size:
        return 0
    with closing(Store.look(path)) as store:
        return store.totals().done if store.meta() else 0


def test_a_resumed_job_tokenizes_nothing_again_and_computes_equal_rows_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(
        tmp_path / "in.jsonl", [row(f"r{i}", f"p{i % 5}", temperature=0, max_tokens=1 + i % 5) for i in range(20)]
    )
    stop = StopSignals()
    engine = ToyEngine(on_step=lambda prompts: setattr(stop, "asked", signal.SIGINT))
    assert run_job(job_at(tmp_path), ToyModel(engine), stop=stop).done < 20
    monkeypatch.setattr("tests.job_runs.ToySetup.open", lambda self: pytest.fail("it tokenizes again"))
    model = ToyModel()
    assert run_job(job_at(tmp_path), model).done == 20
    assert len(model.engine.started) <= 5
    assert not list(tmp_path.glob("*.plan*")), "a finished job needs no plan"


def test_a_taken_custom_id_is_refused_whichever_row_runs_first(tmp_path: Path) -> None:
    rows = [row("same", "zzz", max_tokens=1), row("same", "aaa", max_tokens=9), row("other", "mmm")]
    write_rows(tmp_path / "in.jsonl", rows)
    run_job(job_at(tmp_path))
    assert codes(job_at(tmp_path).output) == [None, "duplicate_custom_id", None]


def test_the_plan_is_revised_when_answers_are_shorter_than_guessed(tmp_path: Path) -> None:
    """Half of the prompts get answers of a quarter of max_tokens; the others run first once that is known."""
    prompts = [f"{'long' if i % 2 else 'brief'} {'x' * 20} {i:03}" for i in range(400)]
    write_rows(tmp_path / "in.jsonl", [row(f"r{i}", p, max_tokens=16) for i, p in enumerate(prompts)])
    model = ToyModel()
    engine = model.engine
    original = engine.add
    engine.add = lambda request, *_, **__: original(_brief(request))  # type: ignore[method-assign]
    run_job(job_at(tmp_path), model)
    first, last = engine.started[:32], engine.started[-150:]
    assert all(p.startswith("brief") for p in first)
    assert all(p.startswith("brief") for p in last)
    assert sorted(engine.started) == sorted(prompts)


def _brief(request: Request) -> Request:
    is_brief = bytes(request.prompt_tokens).startswith(b"brief")
    return replace(request, params=replace(request.params, max_tokens=4)) if is_brief else request
