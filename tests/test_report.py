"""Protects the report: the table as people see it, to the letter, and what is said of peers that were not run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from penstock.bench.limits import Ceiling, Limits
from penstock.bench.report import as_json, table
from penstock.bench.results import Inside, Run
from penstock.bench.sitting import Entrant
from penstock.bench.terms import Task
from penstock.bench.workloads import Amount

AMOUNT = Amount(requests=4, prompt_tokens=100, output_tokens=20, distinct_tokens=50, fed_back_tokens=15)
TASKS = [Task("decode", Path("d"), AMOUNT, False), Task("small", Path("s"), AMOUNT._replace(requests=2), True)]
INSIDE = Inside(30, 7, 0, 10, 20, 3.0, None, 2.0, 1.5, 0.5, 1.0)
RUN = Run(wall_s=5.0, amount=AMOUNT, start_s=1.0, peak_bytes=2**30, computed_tokens=90, inside=INSIDE)
SMALL = replace(RUN, process_s=10.0)
PEER_RUN = replace(RUN, wall_s=12.5, computed_tokens=None, inside=None)
LIMITS = Limits("bfloat16", 2, gemm=Ceiling(2e12, "a"), read=Ceiling(3e10, "b"), tile=Ceiling(None, why_not="none yet"))

TABLE = """\
penstock 1; runs of every workload: 1; shown is the median one
limits of the machine (bfloat16, 2 threads):
  products of matrices   2 TFLOP/s (a)
  tile products          not measured: none yet
  reading memory         30 GB/s (b)

  workload  requests  seconds  prompt/s  computed/s  cached/s  output/s  memory
  decode           4     5.00      20.0        18.0       6.0       4.0   1 GiB
  small            2    10.00      10.0         9.0       3.0       2.0   1 GiB

how much of the time its steps needed at least (tile: the arithmetic as tile products), and where it went:
  workload  least  tile  linear  attention  other  python
  decode    60.0%     -   40.0%      30.0%  10.0%   20.0%
  small     60.0%     -   40.0%      30.0%  10.0%   20.0%

tokens of prompts: asked for, distinct (a shared beginning once), computed, and computed over distinct:
  workload  asked  distinct  computed  ratio
  decode      100        50        75  1.500
  small       100        50        75  1.500

against peer 2: its median time over ours, and every run in seconds
  workload  faster  ours  theirs  theirs: prompt/s  output/s  memory  computed
  decode     2.50x  5.00   12.50               8.0       1.6   1 GiB         -
  not run to the end (small): it fell over

against third: its median time over ours, and every run in seconds
  not run: it cannot be

note: peer 2: it takes whole GiB only
note: peer 2: computed tokens are not known: it does not count"""


def entrants() -> list[Entrant]:
    own = Entrant("penstock", (), title="penstock 1", runs={"decode": [RUN], "small": [SMALL]})
    fallen = Entrant("peer", (), title="peer 2", runs={"decode": [PEER_RUN]}, why_not="it fell over")
    fallen.notes.append("it takes whole GiB only")
    fallen.ready["computed_why_not"] = "it does not count"
    return [own, fallen, Entrant("third", (), why_not="it cannot be")]


def test_the_table() -> None:
    assert table(TASKS, entrants(), LIMITS) == TABLE.splitlines()


def test_a_peer_that_counts_its_computed_tokens_shows_the_ratio() -> None:
    own, peer, _ = entrants()
    peer.runs["decode"] = [replace(PEER_RUN, computed_tokens=115)]
    assert next(line for line in table(TASKS, [own, peer], LIMITS) if "2.50x" in line).split()[-1] == "2.000"


def test_without_limits_there_is_a_reason_and_a_dash() -> None:
    own = replace(entrants()[0], runs={"decode": [replace(RUN, inside=replace(INSIDE, least_s=None))]})
    lines = table(TASKS[:1], [own], None)
    assert "not measured, so there are no shares of the least time" in lines[1]
    assert ["decode", "-", "-", "40.0%"] in [line.split()[:4] for line in lines]


def test_the_json_has_every_run_and_reason() -> None:
    found = json.loads(json.dumps(as_json(TASKS, entrants(), limits=LIMITS, settings={"seed": 0})))
    decode, small = found["workloads"]
    assert decode["against"]["peer"]["ratio"] == 2.5
    assert (decode["timed"], small["timed"], small["against"]) == ("workload", "process", {})
    assert (small["median_s"], small["median"]["output_tokens_per_s"]) == (10.0, 2.0)
    assert [peer["why_not"] for peer in found["peers"]] == ["it fell over", "it cannot be"]
    assert [peer["computed_why_not"] for peer in found["peers"]] == ["it does not count", None]
    assert (decode["median"]["computed_ratio"], decode["against"]["peer"]["runs"][0]["computed_ratio"]) == (1.5, None)
    assert found["ceilings"]["tile"] == {"per_s": None, "how": "", "why_not": "none yet"}
