"""`StepWatch`: times the parts of every step, by wrapping the kernel table's functions and the executor.

Owns no engine; it is given to `open_engine` as its instruments. Knows the kernel table only by its field names, so a
table with other ops is timed as well: what is not named in `PARTS` is an "other" op.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from penstock.step import Executor, StepPlan, StepResult, Ticket

if TYPE_CHECKING:
    from penstock.kernels.native import LayerSeconds
    from penstock.kernels.table import Kernels

PARTS = {"linear": "linear", "logits": "linear", "attention": "attention"}
OTHER = "other"
LAYERS = "layers"


class Layers(Protocol):
    """What runs whole layers, and knows where their time went."""

    def layer_seconds(self) -> LayerSeconds:
        """The seconds of all layers so far."""


class StepWatch:
    """Times the ops, and keeps the plan of the last step that was submitted.

    Invariant: times of parts do not overlap, as no op of the table calls another one through the table. Layers that
    are one op are not timed from outside: what runs them says what it spent in each part.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys((*PARTS.values(), OTHER), 0.0)
        self._layers: Layers | None = None
        self.last_plan: StepPlan | None = None

    def seconds(self) -> dict[str, float]:
        """Seconds in each part so far."""
        inside = self._layers.layer_seconds()._asdict() if self._layers is not None else {}
        return {part: seconds + inside.get(part, 0.0) for part, seconds in self._seconds.items()}

    def wrap_kernels(self, kernels: Kernels, native: Layers | None) -> Kernels:
        """The same ops, timed."""
        self._layers = native
        ops = {
            name: op if op is None or (name == LAYERS and native is not None) else self._timed(name, op)
            for name, op in kernels._asdict().items()
        }
        return type(kernels)(**ops)

    def wrap_executor(self, executor: Executor) -> Executor:
        """The same executor, whose plans are kept until the next one."""
        return _WatchedExecutor(executor, self)

    def _timed(self, name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        seconds, part = self._seconds, PARTS.get(name, OTHER)

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = op(*arguments, **named)
            seconds[part] += time.perf_counter() - started
            return result

        return timed


class _WatchedExecutor:
    def __init__(self, executor: Executor, watch: StepWatch) -> None:
        self._executor = executor
        self._watch = watch

    def submit(self, plan: StepPlan) -> Ticket:
        self._watch.last_plan = plan
        return self._executor.submit(plan)

    def collect(self, ticket: Ticket) -> StepResult:
        return self._executor.collect(ticket)
