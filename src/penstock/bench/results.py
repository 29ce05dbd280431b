"""`Run`: what one run of a workload took, and the arithmetic of many runs: medians, rates, shares, ratios.

Owns the meaning of every number that the bench prints. Pure: no clock, no processes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from penstock.bench.workloads import Amount


@dataclass(frozen=True, slots=True)
class Inside:
    """What only Penstock's own run knows.

    wall_s = linear_s + attention_s + other_s + python_s: the kernel table's ops, and everything else (scheduling,
    building a step, KV writes, sampling, commit). least_s: the least time for the steps that ran, see `cost.py`;
    None where the limits were not measured. tile_s: the arithmetic of these steps at the rate of tile products, which
    no matrix product can pass; None where that was not measured. Counting costs is not in any of these times.
    """

    cached_tokens: int
    steps: int
    preemptions: int
    flops: int
    moved_bytes: int
    least_s: float | None
    tile_s: float | None
    linear_s: float
    attention_s: float
    other_s: float
    python_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a workload by one engine.

    Attributes:
        wall_s: the workload alone, model loaded; process_s: from the start of the process until its answer, where the
            workload is one that is timed so.
        amount: what was to be done, and was. computed_tokens: those that went through the model, of prompts and of
            answers fed back; None where the engine cannot tell.
        start_s: from the start of the process until it was ready; peak_bytes: most memory of all its processes.
    """

    wall_s: float
    amount: Amount
    start_s: float
    peak_bytes: int
    computed_tokens: int | None = None
    process_s: float | None = None
    inside: Inside | None = None

    @property
    def timed_s(self) -> float:
        """The seconds that engines are compared by."""
        return self.wall_s if self.process_s is None else self.process_s

    @property
    def computed_prompt_tokens(self) -> int | None:
        """Computed tokens without the answers that must be fed back: of prompts, and whatever was computed twice."""
        return None if self.computed_tokens is None else self.computed_tokens - self.amount.fed_back_tokens

    @property
    def computed_ratio(self) -> float | None:
        """Computed tokens of prompts over the distinct ones: 1 where each shared beginning was computed once."""
        computed = self.computed_prompt_tokens
        return None if computed is None else computed / self.amount.distinct_tokens

    def as_json(self) -> dict[str, object]:
        """The run, with its rates and shares, flat."""
        found: dict[str, object] = asdict(self)
        inside = asdict(self.inside) if self.inside is not None else {}
        computed = {"computed_prompt_tokens": self.computed_prompt_tokens, "computed_ratio": self.computed_ratio}
        del found["inside"], found["amount"]
        return found | self.amount._asdict() | computed | inside | self.rates() | self.shares()

    def rates(self) -> dict[str, float]:
        """Tokens a second, by kind; prompt tokens are those asked for, computed or cached."""
        counts = {"prompt": self.amount.prompt_tokens, "output": self.amount.output_tokens}
        if self.computed_tokens is not None:
            counts["computed"] = self.computed_tokens
        if self.inside is not None:
            counts["cached"] = self.inside.cached_tokens
        return {f"{name}_tokens_per_s": count / self.timed_s for name, count in counts.items()}

    def shares(self) -> dict[str, float | None]:
        """What part of the time its steps needed at least, and what part each kind of work took."""
        inside = self.inside
        if inside is None:
            return {}
        parts = {"linear": inside.linear_s, "attention": inside.attention_s, "other": inside.other_s}
        parts |= {"python": inside.python_s}
        least = {"least": inside.least_s, "tile": inside.tile_s}
        needed = {f"{name}_share": None if part is None else part / self.wall_s for name, part in least.items()}
        return needed | {f"{name}_share": part / self.wall_s for name, part in parts.items()}


def median_run(runs: Sequence[Run]) -> Run:
    """The run in the middle by time (of an even number, the faster of the two): one that happened, so its parts fit."""
    return sorted(runs, key=lambda run: run.timed_s)[(len(runs) - 1) // 2]


def median_s(runs: Sequence[Run]) -> float:
    """The median of the times."""
    return statistics.median(run.timed_s for run in runs)


def ratio(own: Sequence[Run], peer: Sequence[Run]) -> float:
    """How many times as fast the first is: the peer's median time over our own."""
    return median_s(peer) / median_s(own)
