"""The kernel's lock on a job: one holder, gone with its process, seen by readers without being taken."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from penstock.errors import ConfigError, JobLocked
from penstock.jobs.locks import JobLock, is_locked
from penstock.jobs.store import Store

HOLD = """
import pathlib, sys
from penstock.jobs.locks import JobLock
lock = JobLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_holder_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "a.job"
    with JobLock(path):
        assert is_locked(path)
        with pytest.raises(JobLocked, match="penstock jobs show"):
            JobLock(path)
    assert not is_locked(path)
    JobLock(path).close()


def test_the_lock_of_another_process_goes_when_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.job"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert is_locked(path)
        process.kill()
        process.wait()
    assert not is_locked(path)


def test_the_lock_outlives_the_store_that_is_opened_and_closed_under_it(tmp_path: Path) -> None:
    path = tmp_path / "a.job"
    with JobLock(path):
        Store.open(path).close()
        assert is_locked(path)
        with closing(Store.look(path)) as reader:
            assert reader.meta() == {}


def test_a_lock_that_made_an_empty_file_takes_it_away_again(tmp_path: Path) -> None:
    path = tmp_path / "a.job"
    with JobLock(path) as lock:
        lock.discard()
    assert not path.exists()
    path.touch()
    with JobLock(path) as lock:
        lock.discard()
    assert path.exists()


def test_clearing_empties_the_file_and_keeps_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.job"
    with JobLock(path) as lock:
        Store.open(path).close()
        (tmp_path / "a.job-wal").write_text("left over")
        assert lock.size_bytes > 0
        lock.clear()
        assert lock.size_bytes == 0
        assert is_locked(path)
        assert not (tmp_path / "a.job-wal").exists()


def test_a_folder_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened for writing"):
        JobLock(tmp_path / "no" / "a.job")
