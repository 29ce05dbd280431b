"""The lock of a job: held by the kernel for as long as the process lives, so a dead process never locks anybody out.

Owns the file descriptor that carries the lock. It is opened before SQLite opens the file and closed after SQLite has
closed it, because closing any descriptor of a file drops the POSIX locks that SQLite holds on it in this process.
`flock` and SQLite's locks do not see each other, so readers can look at a job while it runs.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from penstock.errors import ConfigError, JobLocked, StorageFailed

LOOK_S = 0.2  # `is_locked` holds the lock for a moment; a job that starts meanwhile tries again for this long


class JobLock:
    """The exclusive lock on a job file. States: held, then closed. `created` says whether the file was not there."""

    def __init__(self, path: Path) -> None:
        """Take the lock, making an empty file if there is none.

        Raises:
            JobLocked: another process has it.
        """
        self.path = path
        self.created = not path.exists()
        self._fd = _open(path)
        deadline = time.monotonic() + LOOK_S
        while not (_try_lock(self._fd, fcntl.LOCK_EX) and self._is_current()):
            if time.monotonic() > deadline:
                os.close(self._fd)
                raise JobLocked(
                    f"another process works on the job {path}; wait for it or stop it "
                    f"(`penstock jobs show {path}` looks from outside)"
                )
            time.sleep(0.02)
            self._reopen()

    def clear(self) -> None:
        """Empty the file without letting go of the lock; SQLite must not have it open."""
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        os.ftruncate(self._fd, 0)

    @property
    def size_bytes(self) -> int:
        """The size of the job file; 0: there is no job in it yet."""
        return os.fstat(self._fd).st_size

    def discard(self) -> None:
        """Remove the file if this lock made it and there is no job in it; SQLite must not have it open."""
        if self.created and self._is_current() and self.size_bytes == 0:
            self.path.unlink()

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._fd)

    def __enter__(self) -> JobLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _is_current(self) -> bool:
        """Whether the path still names the file that is locked; it may have been removed in between."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _reopen(self) -> None:
        os.close(self._fd)
        self._fd = _open(self.path)


def is_locked(path: Path) -> bool:
    """Whether a process works on the job."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return not _try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ConfigError(f"the job file {path} cannot be opened for writing: {error.strerror}") from None
    except OSError as error:
        raise StorageFailed(f"the job file {path} cannot be opened: {error.strerror}") from error


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
