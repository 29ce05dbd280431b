"""`penstock run` end to end, on a tiny model: what it prints, and the exit codes that scripts rely on."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import write_llama
from tests.job_runs import row, write_rows

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("cli") / "tiny")


def penstock(given: Path, model: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    output = given.parent / "out.jsonl"
    return subprocess.run(
        [sys.executable, "-m", "penstock.cli", "run", str(given), "-o", str(output), "--model", str(model), *flags],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_answers_and_sums_up(tmp_path: Path, model: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "the thing"}], "max_tokens": 4}
    asked = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": chat}
    given = tmp_path / "in.jsonl.gz"
    rows = [row("a", "the thing", model="gpt", user="me"), "{", json.dumps(asked)]
    given.write_bytes(gzip.compress("\n".join(rows).encode()))
    done = penstock(given, model, "--json", "--fail-on-error")
    assert done.returncode == 1, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["rows"], summary["failed"], summary["reused"], summary["exit_code"]) == (3, 1, 0, 1)
    assert summary["row_exact"] is True
    assert summary["wall_s"] == round(summary["load_s"] + summary["engine_s"], 3)
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in answers] == ["a", None, "c"]
    assert [line["response"] and line["response"]["body"]["model"] for line in answers] == ["gpt", None, "tiny"]
    usages = [line["response"]["body"]["usage"] for line in answers if line["response"]]
    assert summary["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in usages)
    assert summary["output_tokens"] == sum(usage["completion_tokens"] for usage in usages)
    for name in ("device", "dtype", "threads", "max sequences", "token budget", "kv memory", "seed"):
        assert done.stderr.count(f"\n  {name} ") + done.stderr.startswith(f"  {name} ") == 1
    assert "1 invalid_json; they are in" in done.stderr
    assert (tmp_path / "out.jsonl.errors.jsonl").read_text().count("\n") == 1


def test_a_finished_job_does_nothing_again_and_quiet_hides_all_but_json(tmp_path: Path, model: Path) -> None:
    given = write_rows(tmp_path / "in.jsonl", [row("a", "the thing")])
    assert penstock(given, model, "--quiet").stderr == ""
    again = penstock(given, model, "--quiet", "--json", "--fail-on-error")
    assert (again.returncode, again.stderr) == (0, "")
    summary = json.loads(again.stdout)
    assert (summary["reused"], summary["computed_tokens"]) == (1, 0)


def test_another_seed_gives_other_samples_and_is_refused_on_the_same_job(tmp_path: Path, model: Path) -> None:
    given = write_rows(tmp_path / "in.jsonl", [row("a", "the thing", max_tokens=12)])
    assert penstock(given, model, "--seed", "1").returncode == 0
    first = (tmp_path / "out.jsonl").read_bytes()
    refused = penstock(given, model, "--seed", "2")
    assert refused.returncode == 2
    assert "seed is 1 in the job and 2 now" in refused.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == first
    assert penstock(given, model, "--seed", "2", "--overwrite").returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() != first


def test_an_output_without_its_job_is_refused(tmp_path: Path, model: Path) -> None:
    given = write_rows(tmp_path / "in.jsonl", [row("a", "the thing")])
    (tmp_path / "out.jsonl").write_text("precious")
    done = penstock(given, model)
    assert done.returncode == 2
    assert "--overwrite to replace it" in done.stderr
    assert (tmp_path / "out.jsonl").read_text() == "precious"
