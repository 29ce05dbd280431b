"""The real process, killed and interrupted with real signals: it goes on, and ends with the same bytes.

Where it is killed many times, each process is forked from one that has imported PyTorch already; its end and all else
is the command as a user starts it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import pytest

from penstock.jobs.phases import WIDTH_BYTES, Phase
from penstock.jobs.store import Store
from tests.checkpoints import write_llama
from tests.job_runs import fork_command, row, write_rows

pytestmark = pytest.mark.torch

KILLS = 30
KILLS_A_JOB = 8
LEAST_A_PHASE = 3
PHASES = (Phase.START_UP, Phase.STEP, Phase.COMMIT, Phase.EXPORT)
ROWS = 240


class Place(NamedTuple):
    """A folder with a job in it."""

    folder: Path
    model: Path

    @property
    def output(self) -> Path:
        return self.folder / "out.jsonl"

    @property
    def job(self) -> Path:
        return self.folder / "out.jsonl.job"

    @property
    def errors(self) -> Path:
        return self.folder / "out.jsonl.errors.jsonl"

    def arguments(self, *flags: str) -> list[str]:
        """What the command line is told for the job."""
        inputs = [str(self.model.parent / "in.jsonl"), "-o", str(self.output), "--model", str(self.model)]
        small = ["--max-sequences", "8", "--token-budget", "64", "--kv-memory", "1MiB", "--device", "cpu"]
        return ["run", *inputs, *small, "--json", *flags]

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        """Start the real command on the job."""
        return subprocess.Popen(
            [sys.executable, "-m", "penstock.cli", *self.arguments(*flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PENSTOCK_PHASE_FILE": str(self.folder / "phase")},
        )

    def fork(self, *flags: str) -> ForkServerProcess:
        """The same in a process that need not import everything first."""
        return fork_command(self.arguments(*flags), phase_file=self.folder / "phase", said=self.folder / "said")

    def run(self, *flags: str) -> tuple[int, dict[str, object], str]:
        """Run the real command to its end: exit code, JSON, stderr."""
        process = self.start(*flags)
        out, err = process.communicate(timeout=300)
        return process.returncode, json.loads(out.splitlines()[-1]), err.decode()

    def phase(self) -> str:
        try:
            return (self.folder / "phase").read_bytes()[:WIDTH_BYTES].decode().strip()
        except FileNotFoundError:
            return ""

    def await_phase(
        self, wanted: str, process: subprocess.Popen[bytes] | ForkServerProcess, *, pause_s: float = 0.001
    ) -> bool:
        """Wait for a phase of the job; False where it ended before. Pause 0 sees the shortest, and takes a core."""
        while self.phase() != wanted:
            has_ended = process.poll() is not None if isinstance(process, subprocess.Popen) else not process.is_alive()
            if has_ended:
                return False
            if pause_s:
                time.sleep(pause_s)
        return True


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    rows = [
        "{}"
        if n % 40 == 13
        else row(f"r{n}", f"the thing {n} and", max_tokens=8 + n % 15, logprobs=1 if n % 7 else None)
        for n in range(ROWS)
    ]
    write_rows(folder / "in.jsonl", rows)
    return write_llama(folder / "model")


@pytest.fixture(scope="module")
def whole(model: Path) -> Place:
    """The job as it ends when nothing interrupts it."""
    place = new_place(model, "whole")
    code, summary, _ = place.run()
    assert (code, summary["done"], summary["failed"]) == (0, ROWS, 6)
    return place


def new_place(model: Path, name: str) -> Place:
    folder = model.parent / name
    folder.mkdir()
    return Place(folder, model)


def kill_at(place: Place, phase: Phase, after_s: float, *flags: str) -> bool:
    """Start the job and kill it in a phase, `after_s` seconds after its first step; False where it ended before."""
    (place.folder / "phase").unlink(missing_ok=True)
    process = place.fork(*flags)
    if phase is not Phase.START_UP and place.await_phase(Phase.STEP, process):
        time.sleep(after_s)
    place.await_phase(phase, process, pause_s=0)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


class Kill(NamedTuple):
    """What a kill left: the phase it hit, the rows in flight and those that were done, each with its attempts."""

    phase: str
    in_flight: dict[int, int]
    done: dict[int, int]


def look(place: Place) -> Kill:
    if not place.job.exists() or not place.job.stat().st_size:
        return Kill(place.phase(), {}, {})
    with closing(Store.look(place.job)) as store:
        if not store.meta():
            return Kill(place.phase(), {}, {})
        assert not list(store.verify())
        states = {n: state for n in range(ROWS) if (state := store.states([n]).get(n)) is not None}
        done = {n: state.attempts for n, state in states.items() if state.is_done}
        return Kill(place.phase(), {n: states[n].attempts for n in store.in_flight()}, done)


@pytest.mark.timeout(1500)  # about 30 s on two cores
def test_killed_at_30_random_points_it_ends_with_the_same_bytes_and_computes_no_row_twice(
    model: Path, whole: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(20261120)
    hits: Counter[str] = Counter()
    jobs = 0
    while sum(hits.values()) < KILLS or min(hits[phase] for phase in PHASES) < LEAST_A_PHASE:
        assert jobs < KILLS, f"too many jobs for {hits}"
        place = new_place(model, f"killed-{jobs}")
        jobs += 1
        kills = []
        for _ in range(KILLS_A_JOB):
            target = min(PHASES, key=lambda phase: (hits[phase], draw.random()))
            if not kill_at(place, target, after_s=draw.uniform(0.0, 0.15)):
                break
            kills.append(look(place))
            hits[kills[-1].phase] += 1
            assert whole.output.read_bytes().startswith(place.output.read_bytes() if place.output.exists() else b"")
        check_end(place, whole, kills)
    with capsys.disabled():
        print(f"\n{sum(hits.values())} kills of {jobs} jobs: {dict(hits)}")


def check_end(place: Place, whole: Place, kills: list[Kill]) -> None:
    code, summary, _ = place.run()
    assert (code, summary["done"], summary["row_exact"]) == (0, ROWS, True)
    assert place.output.read_bytes() == whole.output.read_bytes()
    assert place.errors.read_bytes() == whole.errors.read_bytes()
    final = look(place)
    in_flight = Counter(n for n, _ in {attempt for kill in kills for attempt in kill.in_flight.items()})
    failed = {n for n in range(ROWS) if n % 40 == 13}
    assert final.done == {n: 0 if n in failed else 1 + in_flight[n] for n in range(ROWS)}
    for kill in kills:
        assert kill.done.items() <= final.done.items()


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(model: Path, whole: Place) -> None:
    place = new_place(model, "interrupted")
    process = place.start()
    assert place.await_phase(Phase.STEP, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "to go on: " in err.decode()
    assert json.loads(out.splitlines()[-1])["exit_code"] == 130
    assert not look(place).in_flight
    assert place.run()[0] == 0
    assert place.output.read_bytes() == whole.output.read_bytes()


def test_sigterm_and_a_second_ctrl_c_stop_resumably(model: Path, whole: Place) -> None:
    place = new_place(model, "stopped")
    process = place.start()
    assert place.await_phase(Phase.STEP, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 3
    process = place.start()
    assert place.await_phase(Phase.STEP, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    assert place.run()[0] == 0
    assert place.output.read_bytes() == whole.output.read_bytes()


def test_ctrl_c_while_the_model_loads_leaves_nothing_behind(model: Path) -> None:
    place = new_place(model, "loading")
    process = place.start()
    assert place.await_phase(Phase.LOAD, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    assert not place.job.exists()
    assert not place.output.exists()


def test_a_second_process_is_refused_while_the_first_one_runs(model: Path) -> None:
    place = new_place(model, "locked")
    process = place.start()
    assert place.await_phase(Phase.STEP, process)
    process.send_signal(signal.SIGSTOP)  # so that it is not done before the second one has begun
    try:
        code, _, err = place.run()
        listed = subprocess.run(
            [sys.executable, "-m", "penstock.cli", "jobs", "list", str(place.folder)], capture_output=True, check=True
        )
    finally:
        process.send_signal(signal.SIGCONT)
    assert code == 2
    assert "another process works on the job" in err
    assert b"running" in listed.stdout
    process.communicate(timeout=300)
    assert process.returncode == 0


def test_a_half_done_job_under_another_dtype_is_refused_unless_accepted(model: Path) -> None:
    place = new_place(model, "numerics")
    process = place.start("--dtype", "float32")
    assert place.await_phase(Phase.STEP, process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert look(place).done
    code, _, err = place.run("--dtype", "bfloat16")
    assert code == 2
    assert "dtype was float32 and is bfloat16" in err
    code, summary, _ = place.run("--dtype", "bfloat16", "--accept-numerics")
    assert (code, summary["done"], summary["row_exact"]) == (0, ROWS, False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_500_rows_greedy_and_sampled_killed_and_resumed_end_with_the_same_bytes(tmp_path: Path, dtype: str) -> None:
    rows = [
        row(f"r{n}", f"the {'thing ' * (n % 9)}{n}", max_tokens=6 + n % 18, logprobs=n % 3, temperature=n % 2)
        for n in range(500)
    ]
    write_rows(tmp_path / "in.jsonl", rows)
    model = write_llama(tmp_path / "model", dtype=dtype)
    whole, killed = new_place(model, "whole"), new_place(model, "killed")
    assert whole.run("--dtype", dtype)[0] == 0
    for after_s in (0.1, 0.3):
        assert kill_at(killed, Phase.STEP, after_s, "--dtype", dtype)
    code, summary, _ = killed.run("--dtype", dtype)
    assert (code, summary["row_exact"], summary["numerics"]["dtype"]) == (0, True, dtype)  # type: ignore[index]
    assert summary["done"] == 500
    assert int(str(summary["reused"])) > 0
    assert killed.output.read_bytes() == whole.output.read_bytes()
