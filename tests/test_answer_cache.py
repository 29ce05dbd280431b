"""The cache of answers: what it keeps, what it gives up, and that no damage to it ever reaches an answer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.jobs.answer_cache import FILE, PENDING, AnswerCache, Scope
from penstock.jobs.job import Job
from penstock.jobs.summary import Summary
from penstock.request import (
    Answer,
    Completion,
    FinishReason,
    Request,
    SamplingParams,
    TokenLogprob,
    TokenSpan,
    stream_key,
)
from tests.job_runs import ToyEngine, ToyModel, job_at, row, run_job, write_rows

MIB = 2**20
SCOPE = Scope("model", {"device": "toy"}, (1, 1))
SHARED_DISK = """
set -e
mount -t tmpfs -o size=$4 none "$1"
"$2" -m tests.test_answer_cache "$1/cache" "$3"
mount -o remount,$5 "$1"
"$2" -m tests.test_answer_cache "$1/cache" "$3"
"""


def request(prompt: int, **params: object) -> Request:
    made = SamplingParams(**{"temperature": 0.0, **params})  # type: ignore[arg-type]
    return Request((TokenSpan((prompt, 2, 3)),), made, stream_key(made.seed, job_seed=0, custom_id=str(prompt)))


def answer(text: str = "out", tokens: int = 2) -> Answer:
    logprobs = tuple(TokenLogprob(n, -0.1 * n, ((n, -0.1 * n), (5, -float("inf")))) for n in range(tokens))
    one = Completion(0, tuple(range(tokens)), text, FinishReason.LENGTH, logprobs)
    return Answer((one, replace(one, index=1, logprobs=None, finish_reason=FinishReason.STOP)), 3, 0)


def opened(folder: Path, told: list[str] | None = None, *, scope: Scope = SCOPE, limit: int = 64 * MIB) -> AnswerCache:
    tell: Callable[[str], None] = pytest.fail if told is None else told.append
    return AnswerCache.open(folder, limit_bytes=limit, scope=scope, tell=tell)


def filled(folder: Path, count: int, *, limit: int = 64 * MIB, size: int = 10) -> None:
    with closing(opened(folder, limit=limit)) as cache:
        for n in range(count):
            cache.put(cache.key(request(n)), answer(f"{n}" + "x" * size))


def known(folder: Path, count: int, told: list[str] | None = None, *, limit: int = 64 * MIB) -> set[int]:
    with closing(opened(folder, told, limit=limit)) as cache:
        return {n for n in range(count) if cache.get(cache.key(request(n))) is not None}


# --- what it keeps ------------------------------------------------------------------------------------------------


def test_an_answer_comes_back_whole_at_once_and_after_the_cache_was_closed(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "new" / "folder")) as cache:
        key = cache.key(request(1))
        assert cache.get(key) is None
        cache.put(key, answer())
        assert cache.get(key) == replace(answer(), cached_tokens=3)
        assert cache.stats()[:2] == (1, 1)
    with closing(opened(tmp_path / "new" / "folder")) as cache:
        assert cache.get(key) == replace(answer(), cached_tokens=3)
        assert cache.stats().entries == 1


@pytest.mark.parametrize(
    "other",
    [
        Scope("another model", {"device": "toy"}, (1, 1)),
        Scope("model", {"device": "another"}, (1, 1)),
        Scope("model", {"device": "toy"}, (1, 2)),
    ],
)
def test_another_model_other_numerics_or_versions_find_nothing(tmp_path: Path, other: Scope) -> None:
    filled(tmp_path, 1)
    with closing(opened(tmp_path, scope=other)) as cache:
        assert cache.get(cache.key(request(0))) is None


def test_only_answers_that_their_request_decides_have_a_key(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as cache:
        assert cache.key(request(1, temperature=1.0)) is None
        assert cache.key(request(1, temperature=1.0, seed=7)) is not None
        assert len({cache.key(request(1, temperature=1.0, seed=s)) for s in (7, 8)}) == 2
    assert AnswerCache.off().key(request(1)) is None


# --- what it gives up ---------------------------------------------------------------------------------------------


def test_the_file_stays_within_its_limit_and_what_was_used_stays(tmp_path: Path) -> None:
    with closing(opened(tmp_path, limit=MIB)) as cache:
        favourite = cache.key(request(10**6))
        cache.put(favourite, answer("favourite", tokens=20))
        for n in range(1500):
            cache.put(cache.key(request(n)), answer("x" * 2000))
            if n % 10 == 0:
                assert cache.get(favourite) is not None
        cache.save()
        found = cache.stats()
        assert found.evicted > 500
        assert found.used_bytes <= MIB
        assert found.entries > 100
    assert (tmp_path / FILE).stat().st_size <= 2 * MIB


def test_what_was_cheap_and_large_goes_before_what_was_dear_and_small(tmp_path: Path) -> None:
    with closing(opened(tmp_path, limit=MIB)) as cache:
        for n in range(100):
            cache.put(cache.key(request(n)), answer("dear", tokens=60))
            cache.put(cache.key(request(1000 + n)), answer("cheap" * 8000, tokens=1))
        cache.save()
        assert all(cache.get(cache.key(request(n))) is not None for n in range(100))
        cheap = sum(cache.get(cache.key(request(1000 + n))) is not None for n in range(100))
        assert 0 < cheap < 50


def test_what_was_used_long_ago_gives_way_in_the_end(tmp_path: Path) -> None:
    with closing(opened(tmp_path, limit=MIB)) as cache:
        old = cache.key(request(10**6))
        cache.put(old, answer("x" * 1000))
        for _ in range(3):
            cache.get(old)
        for n in range(5000):
            cache.put(cache.key(request(n)), answer("x" * 1000))
        cache.save()
        assert cache.get(old) is None


def test_a_smaller_limit_shrinks_the_file(tmp_path: Path) -> None:
    filled(tmp_path, 2000, size=2000)
    assert (tmp_path / FILE).stat().st_size > 3 * MIB
    opened(tmp_path, limit=MIB).close()
    assert (tmp_path / FILE).stat().st_size <= MIB
    assert known(tmp_path, 2000)


# --- damage -------------------------------------------------------------------------------------------------------


def test_a_damaged_entry_is_dropped_counted_and_told(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute("UPDATE entries SET answer = replace(answer, 'out', 'bad') || ' '")
        connection.execute("UPDATE entries SET answer = 5 WHERE rowid = 2")
    told: list[str] = []
    with closing(opened(tmp_path, told)) as cache:
        assert [cache.get(cache.key(request(n))) for n in range(3)] == [None, None, None]
        assert cache.stats().damaged == 3
        assert cache.stats().entries == 0
    assert "has damaged entries; their rows are computed again" in told[0]
    assert told[1:] == ["3 damaged entries were dropped from the cache"]
    assert known(tmp_path, 3) == set()  # and nothing more is told


@pytest.mark.parametrize("at", [0, 20, 100, 5000, 20000, 40000])
def test_bytes_changed_anywhere_never_give_a_wrong_answer(tmp_path: Path, at: int) -> None:
    filled(tmp_path, 200)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:at] + bytes(b ^ 0x5A for b in whole[at : at + 600]) + whole[at + 600 :])
    with closing(opened(tmp_path, [])) as cache:
        for n in range(200):
            found = cache.get(cache.key(request(n)))
            assert found is None or found == replace(answer(f"{n}xxxxxxxxxx"), cached_tokens=3)
            cache.put(cache.key(request(n)), answer(f"{n}xxxxxxxxxx"))
    filled_again = known(tmp_path, 200, [])
    assert filled_again <= set(range(200))


@pytest.mark.parametrize("length", [0, 1, 50, 4096, 10000])
def test_a_file_cut_short_starts_anew(tmp_path: Path, length: int) -> None:
    filled(tmp_path, 100)
    os.truncate(tmp_path / FILE, length)
    told: list[str] = []
    known(tmp_path, 100, told)
    filled(tmp_path, 100)
    assert known(tmp_path, 100) == set(range(100))


def test_a_folder_that_cannot_be_made_and_a_file_of_something_else_switch_it_off(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    told: list[str] = []
    assert not opened(tmp_path / "file" / "cache", told).is_on
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute("CREATE TABLE mine (x)")
    assert not opened(tmp_path, told).is_on
    assert len(told) == 2
    assert all("cannot be used, so every row is computed" in text for text in told)


# --- processes ----------------------------------------------------------------------------------------------------


def _fill(folder: Path, first: int) -> None:
    told: list[str] = []
    with closing(opened(folder, told, limit=4 * MIB)) as cache:
        for n in range(first, first + 300):
            key = cache.key(request(n))
            found = cache.get(key)
            assert found is None or found == replace(answer(f"{n}"), cached_tokens=3)
            cache.put(key, answer(f"{n}"))
    assert told == []


def test_processes_share_it_from_its_first_moment(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(tmp_path, first)) for first in (0, 0, 150, 300)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert known(tmp_path, 600) == set(range(600))


def _stamp(folder: Path) -> list[tuple[int, int]]:
    files = [path.stat() for path in (folder / f"{FILE}{suffix}" for suffix in ("", "-wal")) if path.exists()]
    return [(found.st_size, found.st_mtime_ns) for found in files]


def _fill_for_ever(folder: Path) -> None:
    with closing(opened(folder, [])) as cache:
        for n in range(10**9):
            cache.put(cache.key(request(n % 500)), answer(f"{n % 500}"))


def test_killed_at_any_moment_it_opens_again_with_whole_answers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for attempt in range(5):
        worker = context.Process(target=_fill_for_ever, args=(tmp_path,))
        worker.start()
        deadline = time.monotonic() + 60
        while not (tmp_path / FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        before = _stamp(tmp_path)
        while _stamp(tmp_path) == before and time.monotonic() < deadline:
            time.sleep(0.003)  # until it writes
        time.sleep(0.1 * attempt)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        with closing(opened(tmp_path)) as cache:
            for n in range(500):
                assert cache.get(cache.key(request(n))) in (None, replace(answer(f"{n}"), cached_tokens=3))
    assert len(known(tmp_path, 500)) >= PENDING


# --- jobs ---------------------------------------------------------------------------------------------------------


def job_rows(folder: Path, count: int = 30) -> Path:
    greedy = {"temperature": 0}
    rows = [row(f"r{n}", f"prompt {n}", **greedy) for n in range(count)]
    return write_rows(folder / "in.jsonl", [*rows, row("free", "sampled"), row("seeded", "sampled", seed=3)])


def cached_job(folder: Path, cache: Path) -> Job:
    folder.mkdir(exist_ok=True)
    job_rows(folder)
    return replace(job_at(folder), cache=cache)


def run_cached(folder: Path, cache: Path) -> tuple[Summary, ToyEngine]:
    engine = ToyEngine()
    return run_job(cached_job(folder, cache), ToyModel(engine)), engine


def test_a_second_job_computes_only_what_is_sampled_and_gives_the_same_bytes(tmp_path: Path) -> None:
    job_rows(tmp_path)
    run_job(job_at(tmp_path))
    first, engine = run_cached(tmp_path / "a", tmp_path / "cache")
    assert (first.from_cache, len(engine.started)) == (0, 32)
    second, engine = run_cached(tmp_path / "b", tmp_path / "cache")
    assert (second.from_cache, engine.started, second.failed) == (31, ["sampled"], 0)
    whole = (tmp_path / "out.jsonl").read_bytes()
    assert (tmp_path / "a" / "out.jsonl").read_bytes() == (tmp_path / "b" / "out.jsonl").read_bytes() == whole
    assert second.prompt_tokens == first.prompt_tokens
    assert second.output_tokens == first.output_tokens


def test_numerics_that_are_not_row_exact_keep_nothing_and_say_so(tmp_path: Path) -> None:
    job = cached_job(tmp_path / "a", tmp_path / "cache")
    summary = run_job(job, ToyModel(ToyEngine(row_exact=False)))
    assert any("--cache is without effect" in note for note in summary.notes)
    assert not (tmp_path / "cache").exists()


def test_a_job_does_not_care_what_happens_to_the_cache_under_it(tmp_path: Path) -> None:
    job_rows(tmp_path)
    run_job(job_at(tmp_path))
    run_cached(tmp_path / "a", tmp_path / "cache")
    steps = 0

    def spoil(_: list[str]) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            (tmp_path / "cache" / FILE).write_bytes(b"spoilt" * 9999)

    job = cached_job(tmp_path / "b", tmp_path / "cache")
    job = replace(job, seed=0)
    write_rows(job.input, [row(f"r{n}", f"new {n}", temperature=0) for n in range(300)])
    summary = run_job(job, ToyModel(ToyEngine(on_step=spoil)))
    assert (summary.done, summary.failed, summary.exit_code) == (300, 0, 0)
    again, _ = run_cached(tmp_path / "c", tmp_path / "cache")
    assert (again.done, again.failed) == (32, 0)
    assert (tmp_path / "c" / "out.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def _as_root_of_its_own(folder: Path, *, size: str, then: str, count: int) -> list[str]:
    """Fill a cache on a disk of its own, twice: before and after the disk is mounted anew as `then`."""
    script = ["unshare", "--mount", "bash", "-c", SHARED_DISK, "-", str(folder), sys.executable, str(count), size, then]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    if done.returncode and "mount" in done.stderr + done.stdout:
        pytest.skip(f"no disk can be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_disk_that_may_not_be_written_any_more_switches_it_off(tmp_path: Path) -> None:
    first, told, second = _as_root_of_its_own(tmp_path, size="20m", then="ro", count=100)
    assert first == "on, 100 known"
    assert "cannot be used, so every row is computed" in told
    assert second == "off, 0 known"


def test_a_full_disk_keeps_what_there_was_room_for(tmp_path: Path) -> None:
    told, first, *_, last = _as_root_of_its_own(tmp_path, size="300k", then="size=300k", count=2000)
    assert "answers cannot be kept any more" in told
    for line in (first, last):
        assert line.startswith("on, ")
        assert 0 < int(line.split()[1]) < 2000


def main(folder: Path, count: int) -> None:
    """Look up and keep so many answers; say what was told and what was known at the end."""
    told: list[str] = []
    with closing(opened(folder, told)) as cache:
        for n in range(count):
            key = cache.key(request(n))
            assert cache.get(key) in (None, replace(answer(f"{n}"), cached_tokens=3))
            cache.put(key, answer(f"{n}"))
        cache.save()
        found = sum(cache.get(cache.key(request(n))) is not None for n in range(count))
        state = "on" if cache.is_on else "off"
    print(*told, sep="\n", end="\n" if told else "")
    print(f"{state}, {found} known")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
