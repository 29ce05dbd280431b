"""Runs workloads on Penstock, in a process of its own: what `bench/peers/` are for other engines.

Called with a file (see `Terms`); speaks the lines that `bench/peers/__init__.py` describes, and adds what only it
knows: tokens computed and cached, where the time went, what the steps must cost at least.
Every workload has its own salt, so nothing is found in the prefix cache that another workload left there.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from penstock import __version__
from penstock.bench.results import Inside
from penstock.bench.shapes import Row
from penstock.bench.terms import Terms
from penstock.bench.timers import StepWatch
from penstock.bench.workloads import read_jsonl
from penstock.checkpoint import find_checkpoint
from penstock.config import ELEMENT_BYTES, EngineConfig
from penstock.cost import Cost, least_s, step_cost
from penstock.engine import Engine, EngineStats, Failed, open_engine
from penstock.errors import BenchFailed, PenstockError
from penstock.models.spec import DecoderSpec
from penstock.planner import ListPlan
from penstock.request import Namespace, Request, SamplingParams, TokenSpan

WARM_UP = Row(list(range(60)), 4)


class Answered(NamedTuple):
    """What one workload took."""

    wall_s: float
    prompt_tokens: int
    output_tokens: int
    computed_tokens: int
    inside: Inside


class Bench:
    """A loaded model that runs workloads, one after the other."""

    def __init__(self, terms: Terms) -> None:
        checkpoint = find_checkpoint(terms.checkpoint, needs_tokenizer=False)
        self._config = EngineConfig(**terms.penstock["config"])
        self._rates = tuple(terms.penstock[name] for name in ("flops_per_s", "bytes_per_s", "tile_flops_per_s"))
        self._spec: DecoderSpec = checkpoint.spec
        self._watch = StepWatch()
        self._engine: Engine = open_engine(checkpoint, self._config, decode=lambda _: "", instruments=self._watch)
        self._num_workloads = 0
        if terms.warm_up:
            self.run([WARM_UP._replace(prompt_tokens=[t % self._spec.vocab for t in WARM_UP.prompt_tokens])])

    def stats(self) -> EngineStats:
        """The engine's counts, and what its answers rest on."""
        return self._engine.stats()

    def run(self, rows: list[Row]) -> Answered:
        """Run a workload to its end. The clock stops while the cost of a step is counted.

        Raises:
            BenchFailed: the engine could not answer a request.
        """
        self._num_workloads += 1
        before, parts = self.stats(), self._watch.seconds()
        wall_s = self._add(rows)
        costs: list[Cost] = []
        while self._engine.num_unfinished:
            wall_s += self._step()
            costs += self._cost()
        kernels = {name: seconds - parts[name] for name, seconds in self._watch.seconds().items()}
        prompt = sum(len(row.prompt_tokens) for row in rows)
        after = self.stats()
        output = after.output_tokens - before.output_tokens
        computed = after.computed_tokens - before.computed_tokens
        return Answered(wall_s, prompt, output, computed, self._inside(before, after, costs, kernels, wall_s))

    def _add(self, rows: list[Row]) -> float:
        started = time.perf_counter()
        namespace = Namespace(salt=f"workload {self._num_workloads}")
        plan = ListPlan([row.prompt_tokens for row in rows], [row.max_tokens for row in rows])
        for index in plan.order:
            row = rows[index]
            params = SamplingParams(max_tokens=row.max_tokens, temperature=0.0, ignore_eos=True)
            request = Request((TokenSpan(tuple(row.prompt_tokens)),), params, namespace=namespace)
            self._engine.add(request, row.max_tokens, shared_tokens=plan.shared_tokens[index])
        return time.perf_counter() - started

    def _step(self) -> float:
        self._watch.last_plan = None
        started = time.perf_counter()
        events = self._engine.step()
        seconds = time.perf_counter() - started
        failed = next((event for event in events if isinstance(event, Failed)), None)
        if failed is not None:
            raise BenchFailed(f"request {failed.number} failed: {failed.error.message}")
        return seconds

    def _cost(self) -> list[Cost]:
        plan = self._watch.last_plan
        if plan is None:
            return []
        element_bytes = ELEMENT_BYTES[self._config.dtype]
        return [step_cost(self._spec, plan, element_bytes=element_bytes, block_tokens=self._config.block_tokens)]

    def _inside(
        self, before: EngineStats, after: EngineStats, costs: list[Cost], kernels: dict[str, float], wall_s: float
    ) -> Inside:
        flops_per_s, bytes_per_s, tile_flops_per_s = self._rates
        flops = sum(cost.flops for cost in costs)
        least = None
        if flops_per_s and bytes_per_s:
            least = sum(least_s(cost, flops_per_s=flops_per_s, bytes_per_s=bytes_per_s) for cost in costs)
        return Inside(
            cached_tokens=after.cached_tokens - before.cached_tokens,
            steps=after.steps - before.steps,
            preemptions=after.preemptions - before.preemptions,
            flops=flops,
            moved_bytes=sum(cost.moved_bytes for cost in costs),
            least_s=least,
            tile_s=flops / tile_flops_per_s if tile_flops_per_s else None,
            linear_s=kernels["linear"],
            attention_s=kernels["attention"],
            other_s=kernels["other"],
            python_s=wall_s - sum(kernels.values()),
        )


def main(terms_file: str) -> int:
    """Answer the workloads that stdin names; gives the exit code."""
    try:
        bench = Bench(Terms(**json.loads(Path(terms_file).read_text(encoding="utf-8"))))
        stats = bench.stats()
        ready = {"ready": True, "title": f"penstock {__version__}", "notes": list(stats.notes)}
        _say({**ready, "row_exact": stats.row_exact, "numerics": stats.numerics})
        for line in sys.stdin:
            answered = bench.run(read_jsonl(Path(line.rstrip("\n"))))
            _say({**answered._asdict(), "inside": asdict(answered.inside)})
    except PenstockError as error:
        sys.stderr.write(f"penstock: {error}\n")
        return 3
    return 0


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
