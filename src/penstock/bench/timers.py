"""`StepWatch`: times the parts of every step, by wrapping the kernel table's functions and the executor.

Owns no engine; it is given to `open_engine` as its instruments. Knows the kernel table only by its field names, so a
table with other ops is timed as well: what is not named in `PARTS` is an "other" op.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from penstock.step import Executor, StepPlan, StepResult, Ticket

if TYPE_CHECKING:
    from penstock.kernels.table import Kernels

PARTS = {"linear": "linear", "attention": "attention"}
OTHER = "other"


class StepWatch:
    """Seconds in each part so far, and the plan of the last step that was submitted.

    Invariant: times of parts do not overlap, as no op of the table calls another one through the table.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*PARTS.values(), OTHER), 0.0)
        self.last_plan: StepPlan | None = None

    def wrap_kernels(self, kernels: Kernels) -> Kernels:
        """The same ops, timed."""
        ops = {name: self._timed(PARTS.get(name, OTHER), op) for name, op in kernels._asdict().items()}
        return type(kernels)(**ops)

    def wrap_executor(self, executor: Executor) -> Executor:
        """The same executor, whose plans are kept until the next one."""
        return _WatchedExecutor(executor, self)

    def _timed(self, part: str, op: Callable[..., Any]) -> Callable[..., Any]:
        seconds = self.seconds

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
