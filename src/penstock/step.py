"""The waist: `StepPlan` and `StepResult`, all that crosses from deciding to computing.

The scheduler writes plans and never sees a tensor; the executor runs them and never decides. Both sides import this
file and not each other. A plan can be written as JSON (`dumps`, `loads`) to be replayed or run elsewhere.
One idea: a sequence is a number of computed tokens that catches up with its number of tokens; a `Chunk` is the piece
of it that runs in one step, whether that is a whole prompt, a part of one, or a single new token.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, NewType, Protocol

from penstock.request import TokenLogprob

Ticket = NewType("Ticket", int)


class SampledRef(NamedTuple):
    """An input token that is not known yet: number `sample` of the tokens drawn for `sequence` in step `step`."""

    step: int
    sequence: int
    sample: int


@dataclass(frozen=True, slots=True)
class SampleAt:
    """Draw one token from the logits behind `tokens[offset]` of a chunk.

    `uniform` in [0, 1) is the random number to use; `banned` ids cannot be drawn; `logprobs` as in `SamplingParams`;
    `grammar_mask` names a token mask (none exists yet: an executor must refuse one).
    """

    offset: int
    uniform: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    bias: tuple[tuple[int, float], ...] = ()
    banned: tuple[int, ...] = ()
    logprobs: int | None = None
    grammar_mask: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one sequence that run in one step: positions start .. start + len(tokens).

    `tables` holds one block table for each KV group: the block of position p is `tables[g][p // block_tokens]`, and the
    table covers every position up to the chunk's end. `samples` are in ascending order of offset.
    """

    sequence: int
    start: int
    tokens: tuple[int | SampledRef, ...]
    tables: tuple[tuple[int, ...], ...]
    samples: tuple[SampleAt, ...] = ()
    adapter: str = ""

    @property
    def end(self) -> int:
        """The number of computed tokens once this chunk has run."""
        return self.start + len(self.tokens)

    @property
    def wanted_offsets(self) -> list[int]:
        """The tokens that something is drawn from, each once, in ascending order."""
        return sorted({sample.offset for sample in self.samples})


class BlockCopy(NamedTuple):
    """Copy the first `num_tokens` positions of block `source` to block `target`, in every layer of `group`."""

    group: int
    source: int
    target: int
    num_tokens: int


class TierMove(NamedTuple):
    """Move a block between tiers (no tier but the device exists yet: an executor must refuse one)."""

    group: int
    block: int
    tier: str


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass: first the copies, in order, then the chunks."""

    step: int
    chunks: tuple[Chunk, ...]
    copies: tuple[BlockCopy, ...] = ()
    moves: tuple[TierMove, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(len(chunk.tokens) for chunk in self.chunks)

    def dumps(self) -> str:
        """The plan as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> StepPlan:
        """The plan that `dumps` wrote."""
        return _plan_from(json.loads(text))


class ChunkResult(NamedTuple):
    """What a chunk gave: a token for each `SampleAt`, or the reason why its logits cannot be used.

    A token's `logprob` is NaN where no logprobs were asked for.
    """

    sequence: int
    sampled: tuple[TokenLogprob, ...]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """The results of a plan's chunks, in the plan's order."""

    step: int
    chunks: tuple[ChunkResult, ...]


class Executor(Protocol):
    """Runs plans. Depth 1 on a CPU: each `submit` is followed by its `collect`.

    `submit` may raise `OutOfMemory`; then nothing of the plan counts, and it can be submitted again, smaller.
    """

    def submit(self, plan: StepPlan) -> Ticket:
        """Start a step."""

    def collect(self, ticket: Ticket) -> StepResult:
        """Wait for a step's results."""


def _plan_from(raw: dict[str, Any]) -> StepPlan:
    return StepPlan(
        step=raw["step"],
        chunks=tuple(_chunk_from(c) for c in raw["chunks"]),
        copies=tuple(BlockCopy(*c) for c in raw["copies"]),
        moves=tuple(TierMove(*m) for m in raw["moves"]),
    )


def _chunk_from(raw: dict[str, Any]) -> Chunk:
    tokens = tuple(t if isinstance(t, int) else SampledRef(*t) for t in raw["tokens"])
    tables = tuple(tuple(t) for t in raw["tables"])
    samples = tuple(_sample_from(s) for s in raw["samples"])
    return Chunk(**{**raw, "tokens": tokens, "tables": tables, "samples": samples})


def _sample_from(raw: dict[str, Any]) -> SampleAt:
    bias = tuple((int(token), float(value)) for token, value in raw["bias"])
    return SampleAt(**{**raw, "bias": bias, "banned": tuple(raw["banned"])})
