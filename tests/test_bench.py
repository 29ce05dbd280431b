"""`penstock bench` end to end, on a tiny model and against tiny peers: what its JSON promises, and peers that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.bench.limits import Ceiling, Limits
from penstock.bench.workloads import WORKLOADS
from tests.checkpoints import write_llama

pytestmark = pytest.mark.torch

PEER = """
import json, sys
json.load(open(sys.argv[1]))
print("loading")
print(json.dumps({"ready": True, "title": "tiny peer 1.0", "notes": ["it computes nothing"]}), flush=True)
for line in sys.stdin:
    rows = [json.loads(row) for row in open(line.strip())]
    prompt = sum(len(row["prompt_token_ids"]) for row in rows)
    output = sum(row["max_tokens"] for row in rows)
    BODY
    print(json.dumps({"wall_s": 1.5, "prompt_tokens": prompt, "output_tokens": output}), flush=True)
"""


def penstock_bench(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "penstock.cli", "bench", *flags],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def write_peer(folder: Path, name: str, body: str = "pass") -> str:
    (folder / f"{name}.py").write_text(PEER.replace("BODY", body))
    return f"{folder}/{name}.py={sys.executable}"


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of a short bench: a tiny model, limits that were measured before, a small cache."""
    folder = tmp_path_factory.mktemp("bench")
    write_llama(folder / "tiny", config={"max_position_embeddings": 1024})
    (folder / "tiny" / "tokenizer.json").unlink()  # a checkpoint of random weights for measuring has none
    (folder / "tiny" / "tokenizer_config.json").unlink()
    limits = Limits("float32", 1, gemm=Ceiling(1e11, "given"), read=Ceiling(1e10, "given"), tile=Ceiling(2e11, "given"))
    (folder / "limits.json").write_text(limits.dumps())
    return [
        *("--model", str(folder / "tiny"), "--ceilings", str(folder / "limits.json")),
        *("--threads", "1", "--kv-memory", "16MiB", "--repeat", "1"),
    ]


def test_the_parts_of_every_run_sum_to_the_whole(usual: list[str], tmp_path: Path) -> None:
    peers = ["--against", write_peer(tmp_path, "same"), "--against", "sglang=python"]
    done = penstock_bench("small", "prefix", "--scale", "0.04", *usual, *peers, "--repeat", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["row_exact"] is True
    assert [w["name"] for w in found["workloads"]] == ["small", "prefix"]
    for workload in found["workloads"]:
        assert len(workload["runs"]) == 2
        for run in workload["runs"]:
            check_run(run)
        theirs = workload["against"]["same"]
        assert theirs["ratio"] == theirs["median_s"] / workload["median_s"]
        assert (theirs["title"], len(theirs["runs"])) == ("tiny peer 1.0", 2)
    assert [w["timed"] for w in found["workloads"]] == ["process", "workload"]
    assert [(p["name"], p["why_not"] is None) for p in found["peers"]] == [("same", True), ("sglang", False)]
    assert "against tiny peer 1.0: its median time over ours" in done.stdout
    assert "note: tiny peer 1.0: it computes nothing" in done.stdout
    assert "SGLang 0.5.23 cannot be installed for CPUs" in done.stdout


def check_run(run: dict[str, Any]) -> None:
    parts = [run[f"{part}_s"] for part in ("linear", "attention", "other", "python")]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(run["wall_s"])
    shares = [run[f"{part}_share"] for part in ("linear", "attention", "other", "python")]
    assert sum(shares) == pytest.approx(1)
    assert run["least_share"] == run["least_s"] / run["wall_s"] > 0
    assert run["tile_share"] == pytest.approx(run["flops"] / 2e11 / run["wall_s"])
    assert run["wall_s"] <= (run["process_s"] or run["wall_s"])
    # Every token but the last of each request is computed once or found in the cache.
    assert run["computed_tokens"] + run["cached_tokens"] < run["prompt_tokens"] + run["output_tokens"]
    assert run["computed_tokens"] >= run["output_tokens"]
    assert run["peak_bytes"] > 2**20
    assert run["flops"] > 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "sys.exit('no such unit')",
            "ended without an answer (exit code 1); it said last:\n    loading\n    no such unit",
        ),
        ("output -= 1", "did other work than decode: 32 prompt and 127 output tokens, not 32 and 128"),
    ],
)
def test_a_peer_that_fails_is_reported_and_the_bench_goes_on(
    usual: list[str], tmp_path: Path, body: str, message: str
) -> None:
    peer = write_peer(tmp_path, "broken", body)
    done = penstock_bench("decode", "--scale", "0.01", *usual, "--against", peer, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert message in found["peers"][0]["why_not"]
    assert found["workloads"][0]["against"] == {}
    assert len(found["workloads"][0]["runs"]) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["decoed"], "there is no workload decoed; name one or more of prefill, decode"),
        ([], "no workload was named"),
        (["decode", "--repeat", "0"], "--repeat must be 1 or more"),
        (["gsp", "--scale", "0.01"], "gsp has a request of 2432 tokens and the context of tiny is 1024"),
        (["decode", "--threads", "2"], "float32 on 1 threads and this bench uses float32 on 2"),
        (["decode", "--against", "vllm"], "it must be NAME=PYTHON"),
    ],
)
def test_what_cannot_be_measured_is_refused(usual: list[str], flags: list[str], message: str) -> None:
    done = penstock_bench(*usual, *flags, "--json")
    assert done.returncode == 2
    assert message in json.loads(done.stdout)["error"]


def test_the_workloads_are_listed_and_written(tmp_path: Path) -> None:
    listed = penstock_bench("--list").stdout
    assert [line.split()[0] for line in listed.splitlines() if not line.startswith(" ")] == list(WORKLOADS)
    assert "73728 prompt tokens, 10240 of them distinct; 4096 output tokens" in listed
    done = penstock_bench("decode", "small", "--scale", "0.1", "--write", str(tmp_path / "rows"))
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in paths] == ["decode.jsonl", "small.jsonl"]
    assert len(paths[0].read_text().splitlines()) == 6
