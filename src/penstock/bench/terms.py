"""`Terms` and `Task`: what every engine of a sitting is told, the same for all.

Pure data; `Terms` crosses to the processes of the engines as JSON.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from penstock.bench.workloads import Amount


@dataclass(frozen=True, slots=True)
class Terms:
    """How to run: for every engine, and in `penstock` what only Penstock takes.

    Attributes:
        context_tokens: prompt and output of the longest request.
        max_isa: the cap of the instruction set, for those that can be capped; None: there is none.
        warm_up: false where the whole process is timed: then do nothing but load.
        penstock: `config` (the fields of `EngineConfig`), and the limits `flops_per_s`, `bytes_per_s`
            and `tile_flops_per_s`, or None.
    """

    checkpoint: str
    dtype: str
    threads: int
    max_isa: str | None
    kv_bytes: int
    max_sequences: int
    context_tokens: int
    warm_up: bool
    penstock: dict[str, Any]

    def dumps(self) -> str:
        """The terms as JSON."""
        return json.dumps(asdict(self))


class Task(NamedTuple):
    """A workload written to a file, with what every engine must have done."""

    name: str
    path: Path
    amount: Amount
    is_whole_process: bool
