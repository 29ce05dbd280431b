"""`Sitting`: every engine runs every workload, in turn (A B A B A B), so that a drifting machine hurts all alike.

Owns the order and what is kept of each run. An engine starts anew for each turn; workloads that are timed as a whole
process get one of their own. A peer that fails is recorded with its reason and not run again; when Penstock itself
fails, there is nothing to compare and the bench ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from penstock.bench.contestant import Answer, Contestant
from penstock.bench.results import Inside, Run
from penstock.bench.terms import Task, Terms
from penstock.errors import BenchFailed

OWN = "penstock"

# What caps PyTorch's kernels and oneDNN's as `max_isa` caps ours: every peer that has PyTorch computes with these.
CAPS = {
    "avx2": ("ATEN_CPU_CAPABILITY=avx2", "ONEDNN_MAX_CPU_ISA=AVX2"),
    "avx512": ("ATEN_CPU_CAPABILITY=avx512", "ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI"),
    "avx512_bf16": ("ATEN_CPU_CAPABILITY=avx512", "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16"),
}


@dataclass(slots=True)
class Entrant:
    """An engine of the sitting and what became of it.

    Attributes:
        dtype: what it computes in, where that is not what everybody does.
        title: its name and version, as it says itself; ready: the whole line.
        runs: by workload; why_not: why it was not run (again).
    """

    name: str
    command: tuple[str, ...]
    dtype: str | None = None
    title: str = ""
    ready: Answer = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    why_not: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sitting:
    """One sitting. `folder` takes the files with the terms; `tell` gets a line for each run as it ends."""

    entrants: Sequence[Entrant]
    tasks: Sequence[Task]
    terms: Callable[[bool], Terms]  # whether to warm up -> how to run
    folder: Path
    timeout_s: float
    tell: Callable[[str], None]

    def run(self, repeats: int) -> None:
        """Let each engine have `repeats` turns.

        Raises:
            BenchFailed: Penstock itself failed.
        """
        for turn in range(repeats):
            for entrant in self.entrants:
                if entrant.why_not is None:
                    self._turn(entrant, f"{turn + 1}/{repeats}")

    def _turn(self, entrant: Entrant, label: str) -> None:
        try:
            warm = [task for task in self.tasks if not task.is_whole_process]
            if warm:
                self._process(entrant, warm, warm_up=True, label=label)
            for task in self.tasks:
                if task.is_whole_process:
                    self._process(entrant, [task], warm_up=False, label=label)
        except BenchFailed as error:
            if entrant.name == OWN:
                raise
            entrant.why_not = str(error)
            self.tell(f"{label} {error}")

    def _process(self, entrant: Entrant, tasks: Sequence[Task], *, warm_up: bool, label: str) -> None:
        terms_file = self.folder / f"terms-{'warm' if warm_up else 'cold'}.json"
        terms = self.terms(warm_up)
        terms_file.write_text(replace(terms, dtype=entrant.dtype or terms.dtype).dumps(), encoding="utf-8")
        command = [*_cap(entrant, terms), *entrant.command, str(terms_file)]
        with Contestant(entrant.name, command, timeout_s=self.timeout_s) as running:
            entrant.ready = running.ready
            entrant.title = str(running.ready.get("title", entrant.name))
            if entrant.dtype is not None:
                entrant.title += f" in {entrant.dtype}"
            _note(entrant, running.ready.get("notes"))
            for task in tasks:
                if not running.forget_peak():
                    _note(entrant, ["peak memory counts from the start of the process: it cannot be reset here"])
                run = _run(running, task)
                entrant.runs.setdefault(task.name, []).append(run)
                self.tell(f"{label} {task.name:<18} {entrant.title}: {run.timed_s:.2f} s")


def _cap(entrant: Entrant, terms: Terms) -> tuple[str, ...]:
    """What a peer's command begins with to cap its instruction set as far as it can be; what cannot be is noted."""
    if entrant.name == OWN or terms.max_isa is None:
        return ()
    cap = CAPS.get(terms.max_isa)
    what = "PyTorch and oneDNN are, kernels of its own may not be" if cap else "there is no such cap for it"
    _note(entrant, [f"Penstock is capped at {terms.max_isa}: {what}"])
    return ("env", *cap) if cap else ()


def _run(running: Contestant, task: Task) -> Run:
    answer: dict[str, Any] = running.ask(str(task.path))
    process_s = time.perf_counter() - running.started_s
    done = (answer.get("prompt_tokens"), answer.get("output_tokens"))
    asked = (task.amount.prompt_tokens, task.amount.output_tokens)
    if done != asked:
        raise BenchFailed(
            f"{running.name} did other work than {task.name}: {done[0]} prompt and {done[1]} output tokens, not "
            f"{asked[0]} and {asked[1]}"
        )
    return Run(
        wall_s=answer["wall_s"],
        amount=task.amount,
        start_s=running.start_s,
        peak_bytes=running.peak_bytes(),
        computed_tokens=answer.get("computed_tokens"),
        process_s=process_s if task.is_whole_process else None,
        inside=Inside(**answer["inside"]) if "inside" in answer else None,
    )


def _note(entrant: Entrant, notes: object) -> None:
    for note in notes if isinstance(notes, list) else []:
        if note not in entrant.notes:
            entrant.notes.append(str(note))
