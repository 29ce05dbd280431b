"""A disk that takes no more stops a job resumably: real processes, limits on files, a real full disk if it can be."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from penstock.errors import StorageFailed
from penstock.jobs.export import OutputFile
from penstock.jobs.store import Store
from tests.job_runs import PROGRAM, REPOSITORY, job_at, row, run_job, write_rows

KIB = 1024
ROWS = 60
# Fills a disk of 200 KiB, then makes room and goes on. The mount is seen by these processes only.
FULL_DISK = """
set -e
mount -t tmpfs -o size=200k none "$1"
cp "$2" "$1/in.jsonl"
set +e
"$3" -m tests.job_runs "$1"; echo "first $?"
df --output=avail "$1" | tail -1
mount -o remount,size=50m "$1"
"$3" -m tests.job_runs "$1"; echo "second $?"
cp "$1/out.jsonl" "$4"
"""


def big_rows(folder: Path) -> Path:
    return write_rows(folder / "in.jsonl", [row(f"r{n}", f"prompt {n} " + "x" * 900) for n in range(ROWS)])


def run_limited(folder: Path, limit_bytes: int | None) -> subprocess.CompletedProcess[str]:
    """Run the job in a process whose files cannot grow beyond a limit: writes past it fail with EFBIG."""

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))

    return subprocess.run(
        [*PROGRAM, str(folder)],
        cwd=REPOSITORY,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    big_rows(folder)
    run_job(job_at(folder))
    return job_at(folder).output.read_bytes()


@pytest.mark.parametrize("limit_kib", [1, 20, 40, 80, 130])
def test_a_write_that_fails_stops_the_job_with_exit_code_3_and_it_goes_on_later(
    tmp_path: Path, whole: bytes, limit_kib: int
) -> None:
    big_rows(tmp_path)
    stopped = run_limited(tmp_path, limit_kib * KIB)
    assert stopped.returncode == 3, stopped.stderr
    assert "failed" in stopped.stderr
    assert "run the same command again" in stopped.stderr
    job = job_at(tmp_path)
    output = job.output.read_bytes() if job.output.exists() else b""
    assert whole.startswith(output)
    assert output.endswith(b"\n") or not output
    resumed = run_limited(tmp_path, None)
    assert resumed.returncode == 0, resumed.stderr
    assert job.output.read_bytes() == whole


def test_rows_in_flight_when_the_disk_was_full_did_not_crash(tmp_path: Path, whole: bytes) -> None:
    big_rows(tmp_path)
    for limit_kib in range(64, 200, 20):
        run_limited(tmp_path, limit_kib * KIB)
    assert run_limited(tmp_path, None).returncode == 0
    assert job_at(tmp_path).output.read_bytes() == whole
    with closing(Store.look(job_at(tmp_path).path)) as store:
        assert not list(store.verify())


def test_a_real_full_disk_stops_the_job_and_room_lets_it_go_on(tmp_path: Path, whole: bytes) -> None:
    disk, given = tmp_path / "disk", tmp_path / "given"
    disk.mkdir()
    given.mkdir()
    source, copy = big_rows(given), tmp_path / "copy"
    unshare = shutil.which("unshare")
    private = [str(unshare), "--user", "--map-root-user", "--mount"]
    if unshare is None or subprocess.run([*private, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no private mounts here: no unshare, or not allowed")
    done = subprocess.run(
        [*private, "bash", "-c", FULL_DISK, "bash", str(disk), str(source), sys.executable, str(copy)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "first 3" in done.stdout, done.stderr
    assert "second 0" in done.stdout, done.stderr
    assert copy.read_bytes() == whole


def test_a_failing_write_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = OutputFile(tmp_path / "out", required=True)
    file.put(b"one\n")
    file.flush()

    def full(fd: int, data: bytes, at: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    file.put(b"two\n")
    with pytest.raises(StorageFailed, match=r"No space left on device \(errno 28\)"):
        file.flush()
    assert (tmp_path / "out").read_bytes() == b"one\n"


def test_an_fsync_that_fails_stops_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big_rows(tmp_path)

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("penstock.jobs.export.os.fsync", broken)
    with pytest.raises(StorageFailed, match="Input/output error"):
        run_job(job_at(tmp_path))
