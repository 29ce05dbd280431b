"""Protects the order of a sitting: engines in turn, whole-process workloads in processes of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.bench.sitting import Entrant, Sitting
from penstock.bench.terms import Task, Terms
from penstock.bench.workloads import Amount
from penstock.errors import BenchFailed

SCRIPT = """
import json, os, sys
terms = json.load(open(sys.argv[1]))
with open(sys.argv[0] + ".log", "a") as log:
    log.write("warm" if terms["warm_up"] else "cold")
    log.write("" if terms["dtype"] == "float32" else terms["dtype"])
    log.write(os.environ.get("ONEDNN_MAX_CPU_ISA", ""))
print(json.dumps({"ready": True, "title": "NAME", "notes": ["n"]}), flush=True)
for line in sys.stdin:
    BODY
    print(json.dumps({"wall_s": 1.0, "prompt_tokens": 3, "output_tokens": 2, "computed_tokens": 5}), flush=True)
"""


def terms(warm_up: bool) -> Terms:
    return Terms("model", "float32", 1, None, 1, 1, 5, warm_up, {})


def capped(warm_up: bool) -> Terms:
    return replace(terms(warm_up), max_isa="avx2")


def entrant(folder: Path, name: str, body: str = "pass") -> Entrant:
    script = folder / f"{name}.py"
    script.write_text(SCRIPT.replace("NAME", name).replace("BODY", body))
    return Entrant(name, (sys.executable, str(script)))


def sit(folder: Path, entrants: list[Entrant], *, repeats: int, how: Callable[[bool], Terms] = terms) -> list[str]:
    tasks = [Task(name, folder / name, Amount(1, 3, 2, 3, 1), name == "small") for name in ("small", "decode", "chat")]
    told: list[str] = []
    Sitting(entrants, tasks, how, folder, 60.0, told.append).run(repeats)
    return [" ".join(line.split()[:3]).rstrip(":") for line in told]


def test_engines_run_in_turn(tmp_path: Path) -> None:
    both = [entrant(tmp_path, "penstock"), entrant(tmp_path, "peer")]
    told = sit(tmp_path, both, repeats=2)
    order = [f"{name} {engine}" for engine in ("penstock", "peer") for name in ("decode", "chat", "small")]
    assert told == [f"1/2 {line}" for line in order] + [f"2/2 {line}" for line in order]
    assert (tmp_path / "peer.py.log").read_text() == "warmcoldwarmcold"
    assert both[1].notes == ["n"]
    for run in both[1].runs["small"]:
        assert run.process_s is not None
        assert run.process_s > run.start_s > 0
    assert [(run.timed_s, run.computed_tokens) for run in both[1].runs["decode"]] == [(1.0, 5), (1.0, 5)]


def test_a_peer_may_compute_in_a_dtype_of_its_own(tmp_path: Path) -> None:
    peer = entrant(tmp_path, "peer")
    peer.dtype = "bfloat16"
    own = entrant(tmp_path, "penstock")
    sit(tmp_path, [own, peer], repeats=1)
    assert ((tmp_path / "peer.py.log").read_text(), peer.title) == ("warmbfloat16coldbfloat16", "peer in bfloat16")
    assert ((tmp_path / "penstock.py.log").read_text(), own.title) == ("warmcold", "penstock")


def test_a_cap_of_the_instruction_set_holds_for_a_peer_and_is_told(tmp_path: Path) -> None:
    both = [entrant(tmp_path, "penstock"), entrant(tmp_path, "peer")]
    sit(tmp_path, both, repeats=1, how=capped)
    assert (tmp_path / "peer.py.log").read_text() == "warmAVX2coldAVX2"
    assert (tmp_path / "penstock.py.log").read_text() == "warmcold"
    assert both[1].notes[0].startswith("Penstock is capped at avx2: PyTorch and oneDNN are")


def test_a_peer_that_failed_is_not_run_again(tmp_path: Path) -> None:
    peer = entrant(tmp_path, "peer", "sys.exit('broken') if 'chat' in line else None")
    told = sit(tmp_path, [entrant(tmp_path, "penstock"), peer], repeats=2)
    assert [line for line in told if "peer" in line] == ["1/2 decode peer", "1/2 peer ended"]
    assert peer.why_not is not None
    assert "broken" in peer.why_not
    assert list(peer.runs) == ["decode"]


def test_when_penstock_fails_the_bench_ends(tmp_path: Path) -> None:
    with pytest.raises(BenchFailed, match="penstock ended without an answer"):
        sit(tmp_path, [entrant(tmp_path, "penstock", "sys.exit(1)")], repeats=1)
