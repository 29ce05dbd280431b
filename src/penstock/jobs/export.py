"""The output files of a job: always a contiguous prefix of the store's lines, and healed when they are not.

Owns the bytes of the output and error files. The store is the truth; a file that differs from it is kept as far as it
is equal and cut there. Knows nothing of engines or of what a line means.
One idea: a line is `put`, whether it is there already or not. As long as the file has the same bytes they are only
compared; from the first difference on they are written. So the first export of a resumed job heals the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from penstock.errors import StorageFailed
from penstock.jobs.store import Result

BUFFER_BYTES = 2**20


class OutputFile:
    """A file that is made to hold the lines that are put. States: comparing (from its start), then writing.

    Made only when there is a first line or `required`. `size_bytes`: what it holds of the lines, flushed or not;
    `cut_bytes`: what was taken away because it was not theirs.
    """

    def __init__(self, path: Path, *, required: bool) -> None:
        self.path = path
        self.size_bytes = 0
        self.kept_bytes = 0
        self.cut_bytes = 0
        self._pending = bytearray()
        self._fd: int | None = None
        self._existing: BinaryIO | None = None
        with self._storing():
            if path.exists():
                self._existing = path.open("rb", buffering=BUFFER_BYTES)
            if required or path.exists():
                self._open()

    def put(self, line: bytes) -> None:
        """Have this line next in the file."""
        with self._storing():
            if self._existing is not None and self._existing.read(len(line)) == line:
                self.size_bytes += len(line)
                self.kept_bytes += len(line)
                return
            self._start_writing()
        self._pending += line
        self.size_bytes += len(line)
        if len(self._pending) >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was put; the file ends with the last line that was."""
        with self._storing():
            self._start_writing()
            if self._pending and self._fd is None:
                self._open()
            written = self.size_bytes - len(self._pending)
            try:
                self._write_pending()
            except OSError:
                self._drop_torn_line(written)
                raise

    def sync(self) -> None:
        """Flush, and return when the bytes are on the disk."""
        self.flush()
        with self._storing():
            if self._fd is not None:
                os.fsync(self._fd)
                self._check_place(self._fd)

    def close(self) -> None:
        """Close the file; what was put and not flushed is lost."""
        if self._existing is not None:
            self._existing.close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _check_place(self, fd: int) -> None:
        if not self.path.exists() or not os.path.samestat(os.fstat(fd), self.path.stat()):
            raise StorageFailed(
                f"{self.path} was removed or replaced while it was written; run the same command again to write it anew"
            )

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        sync_folder(self.path.parent)

    def _start_writing(self) -> None:
        """Leave the comparing state: cut what follows the lines that were equal."""
        if self._existing is None or self._fd is None:
            return
        self._existing.close()
        self._existing = None
        self.cut_bytes = os.fstat(self._fd).st_size - self.size_bytes
        if self.cut_bytes:
            os.ftruncate(self._fd, self.size_bytes)

    def _write_pending(self) -> None:
        while self._pending and self._fd is not None:
            written = os.pwrite(self._fd, self._pending, self.size_bytes - len(self._pending))
            del self._pending[:written]

    def _drop_torn_line(self, whole_bytes: int) -> None:
        """After a write that failed: cut back to what was whole. (If that fails too, the next start heals the file.)"""
        with suppress(OSError):
            if self._fd is not None:
                os.ftruncate(self._fd, whole_bytes)

    def _storing(self) -> _Storing:
        return _Storing(self.path)


class _Storing:
    """A block in which a failing system call means that the storage failed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        if isinstance(error, OSError):
            raise StorageFailed(
                f"writing {self._path} failed: {error.strerror} (errno {error.errno}); every finished row is kept in "
                "the job: make room or mend the disk, then run the same command again"
            ) from error


class Export:
    """Both files of a job. `num_rows`: rows 0 .. num_rows - 1 are in them."""

    def __init__(self, results: Callable[[int], Iterator[Result]], output: OutputFile, errors: OutputFile) -> None:
        self._results = results
        self.output = output
        self.errors = errors
        self.num_rows = 0

    def advance(self) -> None:
        """Bring the files up to the first row that has no result yet."""
        for result in self._results(self.num_rows):
            self.output.put(result.output)
            if result.code is not None:
                self.errors.put(result.output)
            self.num_rows += 1
        self.output.flush()
        self.errors.flush()

    def sync(self) -> None:
        """Return when both files are on the disk."""
        self.output.sync()
        self.errors.sync()

    def close(self) -> None:
        """Close both files."""
        self.output.close()
        self.errors.close()


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on the disk, so that a new file in it outlives a power cut."""
    with _Storing(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def differences(results: Iterator[Result], *, output: Path, errors: Path, is_complete: bool = True) -> Iterator[str]:
    """Compare the files with the store without changing them; a sentence for each that is wrong.

    While a job is not complete, or runs, its files may end before or after what was read of it.
    """
    places = {output: _Place(output), errors: _Place(errors)}
    for result in results:
        places[output].compare(result)
        if result.code is not None:
            places[errors].compare(result)
    for place in places.values():
        yield from place.verdict(is_complete=is_complete)


class _Place:
    """How far one file is equal to the lines of the store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("rb", buffering=BUFFER_BYTES) if path.is_file() else None
        self.missing = 0
        self.problem: str | None = None

    def compare(self, result: Result) -> None:
        found = self.file.read(len(result.output)) if self.file is not None and not self.missing else b""
        if not found:
            self.missing += 1
        elif found != result.output and self.problem is None:
            self.problem = f"{self.path} differs from the job at row {result.row}; running the job again mends it"

    def verdict(self, *, is_complete: bool) -> Iterator[str]:
        rest = self.file.read(1) if self.file is not None else b""
        if self.file is not None:
            self.file.close()
        if self.problem is not None:
            yield self.problem
        elif not is_complete:
            return
        elif self.missing:
            yield f"{self.path} lacks {self.missing} lines that the job has; running the job again adds them"
        elif rest:
            yield f"{self.path} has bytes after the last line of the job; running the job again cuts them"
