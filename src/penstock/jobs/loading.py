"""From a model's name to an engine that can take rows.

Owns the order of it: find the checkpoint (cheap, no torch), then resolve the settings, open the tokenizer and load.
Knows nothing of jobs: it gives the runner what `Model` and `Loaded` name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from penstock.config import (
    Choice,
    EngineConfig,
    Machine,
    Resolved,
    Settings,
    read_machine,
    resident_bytes,
    resolve,
    wait_passively,
)
from penstock.disturbance import cpu_times
from penstock.engine import Engine, EngineStats, Event, open_engine
from penstock.intake import Intake
from penstock.jobs.tokenizing import Setup
from penstock.measuring import QUICK, measure, size_of, unmeasured
from penstock.models.spec import DecoderSpec
from penstock.profile import Rates
from penstock.profile_store import about_config, find_profile, keep_profile, knee_finder
from penstock.protocol import BatchRow
from penstock.request import Request
from penstock.simulation import Terms

if TYPE_CHECKING:
    from penstock.checkpoint import Checkpoint
    from penstock.tokenizer import Tokenizer

UNFINISHED_PER_SEQUENCE = 2  # requests waiting in the engine, so that a sequence that ends is replaced at once


class RowEngine(Protocol):
    """What a job asks of an engine (see `engine.Engine`)."""

    def add(self, request: Request, expected_tokens: int | None = None, *, shared_tokens: int | None = None) -> int:
        """Queue a request, with the length to reckon with for its answers and what others share of it; its number."""

    def set_expected(self, number: int, expected_tokens: int | None) -> None:
        """Reckon with another length for each answer of a request; unknown or finished numbers are fine."""

    def step(self) -> list[Event]:
        """Run one step; what happened."""

    def stats(self) -> EngineStats:
        """Counts, state, and what the answers rest on."""

    @property
    def num_unfinished(self) -> int:
        """Requests that are neither finished nor failed."""


class Loaded(NamedTuple):
    """An engine and what is needed to feed it; `at_once` requests keep it busy.

    `request` makes a request of a row, tokenizing it where its tokens are not given. `terms` is what jobs can be
    simulated on, where this model was measured on this machine; `measure` measures it, where it was not.
    """

    engine: RowEngine
    request: Callable[[BatchRow, Sequence[int] | None], Request]
    token_text: Callable[[int], str]
    at_once: int
    terms: Terms | None = None
    measure: Measure | None = None


class Measure:
    """Measures a model that is loaded: its engine must be idle. Quick, and kept for the next time."""

    def __init__(self, engine: Engine, spec: DecoderSpec, config: EngineConfig) -> None:
        self._engine = engine
        self._config = config
        self.spec = spec

    def terms(self) -> Terms:
        """The model with its profile."""
        known = unmeasured(about_config(self.spec, self._config), self._engine.stats().numerics)
        terms = Terms(self.spec, self._config, known)
        size = size_of(self.spec, self._config, kv_bytes_per_token=terms.kv_bytes_per_token, effort=QUICK)
        executor, clock = self._engine.executor, time.perf_counter
        profile = measure(executor, terms, size=size, effort=QUICK, clock=clock, cpu=cpu_times, rates=Rates())
        keep_profile(profile)
        return terms._replace(profile=profile)


class Model(Protocol):
    """A model that was found and not loaded yet."""

    @property
    def name(self) -> str:
        """The name that answers carry where a row names no model."""

    @property
    def fingerprint(self) -> str:
        """What its answers depend on, hashed."""

    def resolve(self) -> tuple[Choice, ...]:
        """Choose every setting that was left open, once."""

    def setup(self, job_seed: int) -> Setup:
        """What tells how rows become requests."""

    def load(self, job_seed: int) -> Loaded:
        """Load it, with the settings as resolved."""


class CheckpointSetup(NamedTuple):
    """How the rows of a job become requests for a checkpoint (see `Intake`)."""

    folder: Path
    context_tokens: int
    job_seed: int
    vocab: int
    model: str

    def open(self) -> Callable[[BatchRow], Request]:
        """Open the tokenizer."""
        from penstock.tokenizer import Tokenizer

        return self.intake(Tokenizer.open(self.folder)).request

    def intake(self, tokenizer: Tokenizer) -> Intake:
        """What makes requests of rows with this tokenizer."""
        return Intake(tokenizer, context_tokens=self.context_tokens, job_seed=self.job_seed, vocab=self.vocab)

    def key(self) -> str:
        """What the requests depend on; the model's fingerprint in the job's identity covers the tokenizer."""
        return f"context {self.context_tokens}, vocabulary {self.vocab}, model {self.model}"


class CheckpointModel:
    """A checkpoint and the settings to run it with."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self._config: EngineConfig | None = None
        self._tokenizer: Tokenizer | None = None
        self._beside: tuple[int, int, bool] | None = None  # what this process takes beside the model: see `_measured`
        self.name = checkpoint.name
        self.fingerprint = checkpoint.fingerprint

    def resolve(self) -> tuple[Choice, ...]:
        """Choose every setting that was left open, once."""
        resolved = self.resolved()
        self._config = resolved.config
        seed = Choice("seed", str(self._settings.seed or 0), self._settings.sources.get("seed", "default"))
        return (*resolved.choices, seed)

    def resolved(self) -> Resolved:
        """Every setting, as it is chosen by what is known now."""
        bounded = self._settings.memory_bytes is not None
        return resolve_here(self._checkpoint, self._settings, self._measured if bounded else None)

    def setup(self, job_seed: int) -> CheckpointSetup:
        """What tells how rows become requests."""
        spec = self._checkpoint.spec
        return CheckpointSetup(self._checkpoint.folder, spec.context_tokens, job_seed, spec.vocab, self.name)

    def _measured(self, machine: Machine) -> Machine:
        """The machine with what this process takes beside the model, at the first look: all else is opened first."""
        if self._beside is None:
            self._beside = self._measure_process()
        now, peak, has_native = self._beside
        return machine._replace(process_bytes=now, peak_bytes=peak, has_native=has_native)

    def _measure_process(self) -> tuple[int, int, bool]:
        wait_passively()
        from penstock import device  # with torch
        from penstock.kernels.native import open_native

        assert device
        self._open_tokenizer()
        native = open_native(
            dtype=self._settings.dtype or self._checkpoint.dtype, threads=1, max_isa=self._settings.max_isa
        )
        return *resident_bytes(), native.native is not None

    def _open_tokenizer(self) -> Tokenizer:
        from penstock.tokenizer import Tokenizer

        if self._tokenizer is None:
            self._tokenizer = Tokenizer.open(self._checkpoint.folder)
        return self._tokenizer

    def load(self, job_seed: int) -> Loaded:
        """Open the tokenizer and load the weights."""
        assert self._config is not None, "resolve() comes first"
        found, config, tokenizer = self._checkpoint, self._config, self._open_tokenizer()
        intake = self.setup(job_seed).intake(tokenizer)
        engine = open_engine(found, config, decode=tokenizer.decode)
        profile = find_profile(about_config(found.spec, config))
        return Loaded(
            engine,
            intake.request,
            tokenizer.token_text,
            UNFINISHED_PER_SEQUENCE * config.max_sequences,
            terms=Terms(found.spec, config, profile) if profile is not None else None,
            measure=Measure(engine, found.spec, config),
        )


def find_model(name: str, settings: Settings) -> CheckpointModel:
    """Find a model's files; nothing is loaded yet.

    Raises:
        ModelError: there is no such model, or one that cannot be used.
    """
    from penstock.checkpoint import find_checkpoint

    return CheckpointModel(find_checkpoint(name), settings)


def resolve_here(
    checkpoint: Checkpoint, settings: Settings, measure: Callable[[Machine], Machine] | None = None
) -> Resolved:
    """Choose every setting that was left open, by what this machine has and what was measured on it.

    `measure` adds to the machine what this process takes of its memory, where that counts.
    """
    machine = read_machine(cuda_free_bytes=_cuda_free_bytes(settings.device))
    return resolve(
        settings,
        machine=machine if measure is None else measure(machine),
        spec=checkpoint.spec,
        stored_dtype=checkpoint.dtype,
        find_knee=knee_finder(checkpoint.spec),
    )


def _cuda_free_bytes(device: str | None) -> int | None:
    if device == "cpu":
        return None
    wait_passively()
    from penstock.kernels.cuda_memory import cuda_free_bytes  # imports torch

    return cuda_free_bytes()
