"""The job file: what is committed is there for everybody and after a crash; nothing else is."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from penstock.errors import JobMismatch, StorageFailed
from penstock.jobs.store import MIGRATIONS, About, Identity, Item, Result, State, Store, Totals

IDENTITY = Identity(input_sha256="aa", model_sha256="bb", seed=0, defaults_version=1, output_version=1)
ABOUT = About("toy", 3, 30, "2026-11-20T19:00:00+00:00", "0.1.0", "in.jsonl", "out.jsonl", "out.jsonl.errors.jsonl")
NUMERICS = {"dtype": "float32"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.job"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store.open(path)) as store:
        store.create(IDENTITY, ABOUT)
        store.begin_run("now", NUMERICS, row_exact=True)
        yield store


def item(row: int, custom_id: str | None = None) -> Item:
    return Item(row, row + 1, 10, f"r{row}" if custom_id is None else custom_id)


def result(row: int, code: str | None = None) -> Result:
    return Result(row, f"line {row}\n".encode(), code, 5, 2, 3)


def finish(store: Store, row: int, code: str | None = None) -> None:
    assert store.claim(item(row)) is None
    store.finish(result(row, code))


def test_what_is_committed_is_there_after_the_process_is_gone(path: Path) -> None:
    first = Store.open(path)
    first.create(IDENTITY, ABOUT)
    first.begin_run("now", NUMERICS, row_exact=True)
    finish(first, 0)
    first.commit()
    finish(first, 1)  # not committed
    first.close()
    with closing(Store.open(path)) as again:
        assert again.identity() == IDENTITY
        assert again.about() == ABOUT
        assert list(again.results()) == [result(0)]
        assert again.states([1]).get(1) is None


def test_a_reader_sees_commits_while_the_writer_goes_on(store: Store, path: Path) -> None:
    with closing(Store.look(path)) as reader:
        finish(store, 0)
        assert list(reader.results()) == []
        store.commit()
        assert list(reader.results()) == [result(0)]


def test_results_end_before_the_first_row_that_is_missing(store: Store) -> None:
    for row in (0, 1, 3):
        finish(store, row)
    assert [found.row for found in store.results()] == [0, 1]
    assert [found.row for found in store.results(3)] == [3]
    assert [found.row for found in store.results(2)] == []


def test_a_custom_id_belongs_to_the_first_row_that_claims_it(store: Store) -> None:
    assert store.claim(item(0, "same")) is None
    assert store.claim(item(4, "same")) == 1
    assert store.states([4]).get(4) is None
    assert store.claim(item(0, "same")) is None  # its own row again
    assert store.states([0]).get(0) == State(attempts=2, crashes=0, is_done=False)


def test_a_refused_row_claims_no_custom_id(store: Store) -> None:
    store.add_refused(item(0, "same"))
    store.finish(result(0, "invalid_field"))
    assert store.claim(item(1, "same")) is None
    assert store.states([0]).get(0) == State(attempts=0, crashes=0, is_done=True)


def test_a_rollback_forgets_since_the_last_commit(store: Store) -> None:
    finish(store, 0)
    store.commit()
    finish(store, 1)
    store.rollback()
    assert [found.row for found in store.results()] == [0]


def test_rows_in_flight_of_a_dead_process_count_a_crash_and_suspects_are_those_with_three(store: Store) -> None:
    finish(store, 0)
    for crash in (1, 2, 3):
        assert store.claim(item(1)) is None
        store.commit()
        assert store.in_flight() == [1]
        assert store.suspects() == []
        assert store.count_crashes() == [(1, crash)]
    assert store.in_flight() == []
    assert store.suspects() == [1]
    assert store.states([1]).get(1) == State(attempts=3, crashes=3, is_done=False)
    store.finish(result(1, "internal"))
    assert store.suspects() == []


def test_a_run_that_ends_lets_go_without_a_crash(store: Store) -> None:
    store.claim(item(0))
    store.end_run("interrupted")
    assert store.count_crashes() == []
    assert [(run.outcome, run.done) for run in store.runs()] == [("interrupted", 0)]


def test_sums_and_counts(store: Store) -> None:
    finish(store, 0)
    finish(store, 1, "internal")
    store.count("ignored:user")
    store.count("ignored:user")
    assert store.totals() == Totals(2, 1, 10, 4, 6, 20)
    assert store.failures() == {"internal": 1}
    assert store.counts() == {"ignored:user": 2}
    assert store.attempts() == [(1, 2)]
    assert store.item(1) == item(1)


def test_the_numerics_of_answers_are_known_and_error_rows_have_none(store: Store) -> None:
    assert store.answer_numerics() == []
    finish(store, 0, "internal")
    assert store.answer_numerics() == []
    finish(store, 1)
    assert store.answer_numerics() == [NUMERICS]
    assert store.is_row_exact()
    store.begin_run("later", {"dtype": "bfloat16"}, row_exact=True)
    finish(store, 2)
    assert store.answer_numerics() == [NUMERICS, {"dtype": "bfloat16"}]
    assert not store.is_row_exact()


def test_identities_differ_by_name_and_value() -> None:
    other = Identity(input_sha256="cc", model_sha256="bb", seed=7, defaults_version=1, output_version=1)
    assert IDENTITY.differences(other) == ["input_sha256 is aa in the job and cc now", "seed is 0 in the job and 7 now"]
    assert IDENTITY.fingerprint() != other.fingerprint()
    assert len(IDENTITY.fingerprint()) == 64


def test_a_sound_job_verifies(store: Store) -> None:
    finish(store, 0)
    store.commit()
    assert list(store.verify()) == []


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("UPDATE results SET output = X'00' WHERE row = 0", "row 0: the hash of its result"),
        ("UPDATE results SET output_tokens = 9 WHERE row = 1", "row 1: the hash of its result"),
        ("UPDATE results SET code = 'internal' WHERE row = 1", "row 1: the hash of its result"),
        ("UPDATE meta SET value = '8' WHERE key = 'seed'", "the fingerprint is"),
        ("UPDATE items SET owner = 1 WHERE row = 0", "row 0 has a result and is in flight"),
        ("DELETE FROM items WHERE row = 0", "names an entry of items that is not there"),
    ],
)
def test_every_damage_is_found(store: Store, path: Path, damage: str, found: str) -> None:
    finish(store, 0)
    finish(store, 1)
    store.commit()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(damage)
    problems = list(store.verify())
    assert any(found in problem for problem in problems), problems


def test_a_file_that_was_just_made_is_an_empty_job(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode=WAL")
    with closing(Store.look(path)) as reader:
        assert (reader.meta(), reader.identity(), list(reader.verify())) == ({}, None, [])


def test_a_damaged_page_is_found(store: Store, path: Path) -> None:
    for row in range(50):
        finish(store, row)
    store.commit()
    store.close()
    data = bytearray(path.read_bytes())
    place = data.rindex(b"line 20\n")
    data[place : place + 4] = b"LINE"
    path.write_bytes(data)
    with closing(Store.look(path)) as reader:
        assert list(reader.verify()) == ["row 20: the hash of its result is not the one that was stored with it"]


def test_the_schema_version_is_in_the_file_and_a_later_one_is_refused(store: Store, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(JobMismatch, match=f"has schema 99 and this Penstock knows {len(MIGRATIONS)}"):
        Store.open(path)


def test_a_file_that_is_no_job_is_refused(path: Path) -> None:
    path.write_text("some text of a user, long enough not to be taken for an empty database " * 20)
    with pytest.raises(JobMismatch, match="no job of Penstock, or is damaged"):
        Store.open(path)
    path.unlink()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE mine (x)")
    with pytest.raises(JobMismatch, match="is a database, but no job"):
        Store.open(path)
    with pytest.raises(JobMismatch, match="there is no job"):
        Store.look(path.with_name("other"))


def test_durability_is_what_it_says(store: Store, path: Path) -> None:
    assert store._db.query("PRAGMA synchronous") == [(2,)]  # FULL
    assert store._db.query("PRAGMA journal_mode") == [("wal",)]


def test_a_write_that_fails_is_a_failed_storage(store: Store, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA busy_timeout = 0")
        store._db.query("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageFailed, match=r"database is locked \(SQLITE_BUSY\).*run the same command again"):
            store.claim(item(0))


def test_answer_lengths_leave_out_what_failed_and_the_first_failure_of_each_code_is_found(store: Store) -> None:
    for row, (code, output_tokens) in enumerate([(None, 7), ("a", 0), (None, 3), ("b", 9), ("a", 0), (None, 7)]):
        assert store.claim(item(row)) is None
        store.finish(result(row, code)._replace(output_tokens=output_tokens))
    assert store.answer_lengths() == [(3, 1), (7, 2)]
    assert [found.row for found in store.first_failures()] == [1, 3]


def test_all_that_is_read_at_once_is_of_one_moment(store: Store, path: Path) -> None:
    finish(store, 0)
    store.commit()
    with closing(Store.look(path)) as reader:
        with reader.database.reading():
            assert reader.totals().done == 1
            finish(store, 1)
            store.commit()
            assert reader.totals().done == 1
        assert reader.totals().done == 2
