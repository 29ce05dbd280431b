"""`Contestant`: a program under measurement, ours or a peer's, spoken to in lines (see `bench/peers/`).

Owns the process: its start, its answers, its deadline, its peak memory and its end. Knows nothing of workloads.
One idea: all engines run in processes of their own, one after the other, so none of them shares memory, threads or a
warm cache with another one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from penstock.errors import BenchFailed

SHOWN_LINES = 8  # of what a failed program said last
END_S = 20.0
PROC = Path("/proc")
Answer = dict[str, object]


class Contestant:
    """A running program. Use it as a context manager: its process, and all that it started, ends with the block.

    Attributes:
        ready: its first line; start_s: seconds until it came. started_s: when it was started, on `time.perf_counter`.
    """

    def __init__(self, name: str, command: Sequence[str], *, timeout_s: float) -> None:
        self.name = name
        self._timeout_s = timeout_s
        self._said = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  closed by close()
        self._late = False
        self.started_s = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            self._said.close()
            raise BenchFailed(f"{name} could not be started: {error}") from None

    def __enter__(self) -> Contestant:
        try:
            self.ready = self._answer("ready")
        except BaseException:
            self.close()
            raise
        self.start_s = time.perf_counter() - self.started_s
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, line: str) -> Answer:
        """Send a line and wait for the answer.

        Raises:
            BenchFailed: the program ended, or gave no answer in time.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: waiting for its answer says so, and why
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self._answer("wall_s")

    def _answer(self, key: str) -> Answer:
        """The next line of stdout that is a JSON object with `key`; others are kept for the error message."""
        assert self._process.stdout is not None
        with self._deadline():
            for line in self._process.stdout:
                with suppress(ValueError):
                    found = json.loads(line)
                    if isinstance(found, dict) and key in found:
                        return found
                self._said.write(line.encode())
        raise BenchFailed(self._what_happened())

    @contextmanager
    def _deadline(self) -> Iterator[None]:
        timer = threading.Timer(self._timeout_s, self._give_up)
        timer.daemon = True  # an interrupt may come anywhere, and what waits for it must not keep the process
        try:
            timer.start()
            yield
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._late = True
        self._kill()

    def _what_happened(self) -> str:
        if self._late:
            return f"{self.name} gave no answer in {self._timeout_s:.0f} s and was stopped{self._last_words()}"
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        return f"{self.name} ended without an answer (exit code {self._process.poll()}){self._last_words()}"

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()[-SHOWN_LINES:]
        return "; it said last:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""

    def close(self) -> None:
        """End the program: politely, then not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._kill()
        self._process.stdout.close()
        self._process.wait()
        self._said.close()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    # Memory

    def forget_peak(self) -> bool:
        """Count peak memory from now on; False where the kernel does not allow it: then it counts from the start."""
        try:
            for process in self._processes():
                (process / "clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def peak_bytes(self) -> int:
        """The sum of the peaks of the program's processes (memory that they share counts for each)."""
        total = 0
        for process in self._processes():
            with suppress(OSError, StopIteration):  # it may end while we look
                lines = (process / "status").read_text().splitlines()
                total += int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
        return total

    def _processes(self) -> list[Path]:
        """The folders in /proc of the processes of the program's session."""
        found = []
        for path in PROC.glob("[0-9]*"):
            with suppress(OSError, IndexError):
                session = (path / "stat").read_text().rpartition(")")[2].split()[3]
                if int(session) == self._process.pid:
                    found.append(path)
        return found
