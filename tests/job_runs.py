"""Jobs for the tests: rows, a deterministic engine without torch, and processes that can be killed.

`ToyEngine` keeps the contract of `engine.Engine` and answers from the prompt alone, a token a step. As a program
(`python -m tests.job_runs INPUT OUTPUT`) it runs a job with that engine in a process of its own; a prompt that contains
CRASH kills it there, as a bug in native code would. `fork_command` runs the command line itself, many times over.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

from penstock.cli import run_command
from penstock.config import Choice
from penstock.engine import EngineStats, Event, Failed, Finished, TokenEvent
from penstock.errors import RowError, RowErrorCode, Stopped
from penstock.jobs.deadline import Deadline
from penstock.jobs.job import Job
from penstock.jobs.loading import Loaded
from penstock.jobs.loop import Surroundings
from penstock.jobs.phases import PhaseTrace
from penstock.jobs.progress import Watch
from penstock.jobs.runner import run
from penstock.jobs.stopping import StopSignals
from penstock.jobs.summary import Summary
from penstock.jobs.timing import Timer
from penstock.protocol import BatchRow
from penstock.request import Answer, Completion, FinishReason, Request, TokenSpan, stream_key

NUMERICS = {"device": "toy", "dtype": "float32"}
PROGRAM = [sys.executable, "-m", "tests.job_runs"]
REPOSITORY = Path(__file__).parent.parent


def row(custom_id: str, prompt: str | list[int], **body: object) -> str:
    """One line of a batch file."""
    return json.dumps(
        {
            "custom_id": custom_id,
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": prompt, "max_tokens": 3, **body},
        }
    )


def write_rows(path: Path, rows: Iterable[str]) -> Path:
    """A batch file of these lines."""
    path.write_text("".join(f"{line}\n" for line in rows))
    return path


@dataclass
class ToyEngine:
    """Finishes a request after max_tokens steps; `on_step` is called before each step with the prompts that run."""

    numerics: dict[str, str] = field(default_factory=lambda: dict(NUMERICS))
    row_exact: bool = True
    on_step: Callable[[list[str]], None] = lambda prompts: None
    live: dict[int, tuple[str, int, int]] = field(default_factory=dict)  # prompt, tokens wanted, tokens drawn
    started: list[str] = field(default_factory=list)
    reckoned: dict[int, int | None] = field(default_factory=dict)  # by number: how long each answer is taken to be
    most_unfinished: int = 0
    computed_tokens: int = 0
    decode_tokens: int = 0
    output_tokens: int = 0
    steps: int = 0

    def add(self, request: Request, expected_tokens: int | None = None, *, shared_tokens: int | None = None) -> int:
        prompt = bytes(request.prompt_tokens).decode()
        if "TOO BIG" in prompt:
            raise RowError(RowErrorCode.KV_TOO_SMALL, "the prompt has 9 tokens and the KV memory holds 8")
        number = len(self.started)
        self.reckoned[number] = expected_tokens
        self.started.append(prompt)
        self.live[number] = (prompt, request.params.max_tokens or 1, 0)
        self.most_unfinished = max(self.most_unfinished, len(self.live))
        return number

    def set_expected(self, number: int, expected_tokens: int | None) -> None:
        self.reckoned[number] = expected_tokens

    def step(self) -> list[Event]:
        self.on_step([prompt for prompt, _, _ in self.live.values()])
        events: list[Event] = []
        self.steps += 1
        for number, (prompt, wanted, drawn) in list(self.live.items()):
            self.computed_tokens += 1
            self.decode_tokens += drawn > 0
            self.output_tokens += 1
            self.live[number] = (prompt, wanted, drawn + 1)
            events.append(TokenEvent(number, 0, drawn))
            if "FAIL" in prompt:
                events.append(Failed(number, RowError(RowErrorCode.INTERNAL, "it could not be computed")))
            elif drawn + 1 == wanted:
                events.append(Finished(number, _answer(prompt, wanted)))
            else:
                continue
            del self.live[number]
        return events

    @property
    def num_unfinished(self) -> int:
        return len(self.live)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_waiting=0,
            num_running=len(self.live),
            kv_used_tokens=len(self.live),
            kv_kept_tokens=3,
            kv_total_tokens=100,
            computed_tokens=self.computed_tokens,
            decode_tokens=self.decode_tokens,
            cached_tokens=0,
            output_tokens=self.output_tokens,
            steps=self.steps,
            preemptions=0,
            row_exact=self.row_exact,
            notes=(),
            numerics=self.numerics,
        )


def _answer(prompt: str, wanted: int) -> Answer:
    completion = Completion(0, tuple(range(wanted)), f"{prompt}!" * wanted, FinishReason.LENGTH)
    return Answer((completion,), len(prompt), 0)


def tokens_of(asks: BatchRow, tokens: Sequence[int] | None = None) -> Request:
    """The request of a row: its prompt's bytes are its tokens."""
    prompt = str(asks.prompt)
    if "BUG" in prompt:
        raise ZeroDivisionError("a bug that only this row finds")
    key = stream_key(asks.params.seed, job_seed=0, custom_id=asks.custom_id)
    return Request((TokenSpan(tuple(prompt.encode())),), asks.params, stream_key=key)


class ToySetup(NamedTuple):
    """What tokenizes for a toy model."""

    model: str = "toy"
    context_tokens: int = 1000

    def open(self) -> Callable[[BatchRow], Request]:
        return tokens_of

    def key(self) -> str:
        return "toy"


@dataclass
class ToyModel:
    """A model that is its engine."""

    engine: ToyEngine = field(default_factory=ToyEngine)
    name: str = "toy"
    fingerprint: str = "toy-1"
    at_once: int = 4
    loads: int = 0

    def resolve(self) -> tuple[Choice, ...]:
        return (Choice("device", "toy", "test"),)

    def setup(self, job_seed: int) -> ToySetup:
        return ToySetup()

    def load(self, job_seed: int) -> Loaded:
        self.loads += 1
        return Loaded(self.engine, tokens_of, str, self.at_once)


def job_at(folder: Path, *, seed: int = 0, overwrite: bool = False, accept_numerics: bool = False) -> Job:
    """The job of folder/in.jsonl with the usual names."""
    out = folder / "out.jsonl"
    return Job(
        input=folder / "in.jsonl",
        output=out,
        errors=folder / "out.jsonl.errors.jsonl",
        path=folder / "out.jsonl.job",
        seed=seed,
        overwrite=overwrite,
        accept_numerics=accept_numerics,
    )


def surroundings(
    stop: StopSignals | None = None, phase_file: str | None = None, *, within_s: float | None = None
) -> Surroundings:
    """A run that shows nothing."""
    watch = Watch(StringIO(), is_quiet=True)
    timer = Timer(time.monotonic(), time.monotonic)
    deadline = None if within_s is None else Deadline(time.monotonic() + within_s, f"--max-hours {within_s / 3600}")
    return Surroundings(timer, watch, stop or StopSignals(), PhaseTrace(phase_file), deadline)


def run_job(
    job: Job, model: ToyModel | None = None, *, stop: StopSignals | None = None, within_s: float | None = None
) -> Summary:
    """Run a job in this process."""
    found = model or ToyModel()
    return run(job, lambda: found, surroundings(stop, within_s=within_s))


def fork_command(arguments: list[str], *, phase_file: Path, said: Path) -> ForkServerProcess:
    """The command line in a new process, forked from one that has imported all of it: PyTorch takes seconds to import.

    What it says goes into a file.
    """
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload([__name__, "penstock.device", "penstock.tokenizer", "penstock.jobs.loading"])
    process = forking.Process(target=_run_command, args=(arguments, phase_file, said))
    process.start()
    return process


def _run_command(arguments: list[str], phase_file: Path, said: Path) -> None:
    os.environ["PENSTOCK_PHASE_FILE"] = str(phase_file)
    with said.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(run_command(arguments))


def _crash(prompts: list[str]) -> None:
    if any("CRASH" in prompt for prompt in prompts):
        os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path) -> int:
    """Run the job of a folder with the toy engine; a prompt with CRASH kills the process.

    Arguments behind the folder: a pause before each step, the time after which to stop (both in seconds).
    """
    stop = StopSignals()
    pause_s = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    within_s = float(sys.argv[3]) if len(sys.argv) > 3 else None

    def on_step(prompts: list[str]) -> None:
        time.sleep(pause_s)
        _crash(prompts)

    with stop:
        try:
            summary = run_job(job_at(folder), ToyModel(ToyEngine(on_step=on_step)), stop=stop, within_s=within_s)
        except Stopped as error:
            print(error, file=sys.stderr)
            return 3
    print(summary.stopped or "", file=sys.stderr)
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
