"""Protects what is learned of the lengths of answers: a job that goes on expects what it would have expected."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

from penstock.jobs.plan_file import remove_plan
from penstock.jobs.planning import plan_path
from penstock.jobs.stopping import StopSignals
from penstock.request import Request
from tests.job_runs import ToyEngine, ToyModel, job_at, row, run_job, write_rows


@dataclass
class BriefEngine(ToyEngine):
    """Answers with a few tokens whatever max_tokens is, and remembers what it was told to expect."""

    expected: list[int | None] = field(default_factory=list)

    def add(self, request: Request, expected_tokens: int | None = None, *, shared_tokens: int | None = None) -> int:
        self.expected.append(expected_tokens)
        tokens = 1 + request.prompt_tokens[-1] % 4
        return super().add(replace(request, params=replace(request.params, max_tokens=tokens)), expected_tokens)


def rows(folder: Path) -> Path:
    """Rows below two prefixes, of several values of max_tokens."""
    folder.mkdir(exist_ok=True)
    asks = [(f"{'one' if n % 3 else 'two'} {'x' * 20} {n:03}", 50 + 70 * (n % 7)) for n in range(300)]
    write_rows(folder / "in.jsonl", [row(f"r{n}", prompt, max_tokens=most) for n, (prompt, most) in enumerate(asks)])
    return folder


def run_until(folder: Path, answers: int) -> BriefEngine:
    """Go on with a job, one row at a time, until so many rows were begun by this process."""
    stop = StopSignals()
    engine = BriefEngine()

    def on_step(prompts: list[str]) -> None:
        stop.asked = signal.SIGINT if len(engine.started) >= answers else None

    engine.on_step = on_step
    run_job(job_at(folder), ToyModel(engine, at_once=1), stop=stop)
    return engine


def ended(engine: BriefEngine) -> list[tuple[str, int | None]]:
    """The rows that were begun, but for the one that was left when it stopped, with what was expected of each."""
    begun = list(zip(engine.started, engine.expected, strict=True))
    return begun[:-1] if engine.live else begun


def test_a_job_that_goes_on_expects_and_orders_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, parts = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    uninterrupted = run_until(whole, 1000)
    found = [run_until(parts, 50), run_until(parts, 70), run_until(parts, 1000)]
    expected = ended(uninterrupted)
    assert [begun for engine in found for begun in ended(engine)] == expected
    assert min(guess or 0 for _, guess in expected[:8]) >= 50, "nothing is known yet"
    assert max(guess or 0 for _, guess in expected[50:]) < 50, "all is known"
    assert job_at(parts).output.read_bytes() == job_at(whole).output.read_bytes()


def test_a_plan_that_was_made_anew_is_revised_by_what_was_learned_before(tmp_path: Path) -> None:
    whole, parts = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    uninterrupted = run_until(whole, 1000)
    run_until(parts, 100)
    remove_plan(plan_path(job_at(parts).path))
    again = run_until(parts, 1000)
    assert again.started == uninterrupted.started[-len(again.started) :]
    assert max(guess or 0 for guess in again.expected) < 50
    assert job_at(parts).output.read_bytes() == job_at(whole).output.read_bytes()


def test_what_is_learned_counts_for_the_rows_that_run(tmp_path: Path) -> None:
    engine = BriefEngine()
    run_job(job_at(rows(tmp_path)), ToyModel(engine, at_once=300))
    assert min(guess or 0 for guess in engine.expected) >= 50, "all were begun before anything was known"
    longest = [number for number, prompt in enumerate(engine.started) if 1 + ord(prompt[-1]) % 4 == 4]
    assert all(0 < (engine.reckoned[number] or 0) < 50 for number in longest)
