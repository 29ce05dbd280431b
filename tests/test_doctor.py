"""Protects what `penstock doctor` finds, and that it says so: the real program on this machine, and broken ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from penstock import doctor
from penstock.config import Machine, Settings
from penstock.disturbance import MOST_SHARE
from penstock.profile import Point
from penstock.profile_report import decoding_work, describe_profile
from penstock.profile_store import keep_profile, path_of, profile_folder
from tests.checkpoints import write_llama
from tests.job_runs import row, write_rows
from tests.profiles import SPEC, config, profile

pytestmark = pytest.mark.torch


def run_doctor(*flags: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "penstock.cli", "doctor", *flags],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def findings(settings: Settings | None = None) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine(settings or Settings())}


def test_this_machine_as_json(tmp_path: Path) -> None:
    done = run_doctor("--json", cache=tmp_path, PENSTOCK_MAX_ISA="reference")
    found = json.loads(done.stdout)
    assert (done.returncode, found["exit_code"], found["is_well"]) == (0, 0, True)
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert {"processor", "memory", "torch", "native kernels", "gpu", "cache", "hub cache", "profiles"} <= set(by_name)
    assert by_name["instruction sets"]["advice"] == "capped at reference by PENSTOCK_MAX_ISA"
    assert "capped at 'reference'" in by_name["native kernels"]["value"]
    assert not (tmp_path / "penstock").exists()


def test_measuring_makes_a_profile_that_run_and_plan_then_use(tmp_path: Path) -> None:
    model = str(write_llama(tmp_path / "model"))
    done = run_doctor("--measure", "--quick", "--model", model, "--device", "cpu", "--json", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["path"]).is_file()
    assert found["profile"]["error"] < 1
    stolen, others = found["profile"]["disturbance"]
    assert 0 <= stolen + others <= 1
    assert (found["disturbed"] is not None) is (stolen + others > MOST_SHARE)
    shown = run_doctor(cache=tmp_path)
    assert f"knee at {found['knee_tokens']} tokens" in shown.stdout
    rows = tmp_path / "in.jsonl"
    write_rows(rows, [row("a", [7, 8, 9], max_tokens=2)])
    command = ["run", str(rows), "-o", str(tmp_path / "out"), "--model", model, "--device", "cpu"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-m", "penstock.cli", *command], env=environment, capture_output=True, text=True, check=True
    )
    assert f"profile of {found['profile']['measured_at'][:10]}: its knee is {found['knee_tokens']}" in told.stderr
    command = ["plan", str(rows), "--model", model, "--device", "cpu", "--json", "--watts", "50"]
    planned = subprocess.run(
        [sys.executable, "-m", "penstock.cli", *command], env=environment, capture_output=True, text=True, check=True
    )
    outlook = json.loads(planned.stdout)
    assert (outlook["rows"], outlook["prompt_tokens"], outlook["output_tokens"]) == (1, 3, 2)
    assert 0 < outlook["low_s"] < outlook["seconds"] < outlook["high_s"]
    assert outlook["profile"]["measured_at"] == found["profile"]["measured_at"]
    assert outlook["energy_kwh"] > 0
    assert outlook["settings"]["token budget"].endswith(f"its knee is {found['knee_tokens']})")
    assert planned.stderr == ""
    bounded = subprocess.run(
        [sys.executable, "-m", "penstock.cli", *command, "--memory", "1GiB"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(bounded.stdout)["settings"]["kv memory"].endswith("(what the memory leaves)")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "model", "out", "out.job", "penstock"]


def test_measuring_needs_a_model(tmp_path: Path) -> None:
    done = run_doctor("--measure", cache=tmp_path)
    assert done.returncode == 2
    assert "give --model FOLDER" in done.stderr


def test_missing_kernels_are_not_well_and_their_price_is_told_where_it_was_measured(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "penstock.kernels.native.open_native.__kwdefaults__", {"max_isa": None, "library": cache / "none.so"}
    )
    found = findings()["native kernels"]
    assert not found.is_well
    assert "was not built" in found.value
    assert found.advice.endswith("not measured here")
    slow = tuple(Point(n, 3 * s) for n, s in profile().tokens)
    keep_profile(
        replace(profile(), about={"kernels": "a", "threads": "2", "model": "m", "dtype": "f", "device": "cpu"})
    )
    keep_profile(
        replace(
            profile(),
            about={"kernels": "b", "threads": "2", "model": "m", "dtype": "f", "device": "cpu"},
            numerics={"kernel.linear": "reference"},
            tokens=slow,
        )
    )
    assert findings()["native kernels"].advice.endswith("measured here: 3.0 times as long")


def test_little_memory_damaged_profiles_and_folders_without_permission_are_not_well(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "read_machine", lambda: Machine(2, 2**20))
    profile_folder().mkdir(parents=True)
    path_of({}).write_text("{")
    monkeypatch.setattr("os.access", lambda path, _: path != cache / "penstock")
    found = findings()
    assert [name for name, one in found.items() if not one.is_well] == ["memory", "cache", "profile"]
    assert "may not be written" in found["cache"].advice


def test_a_profile_is_shown_with_its_knee_and_its_limits() -> None:
    text = "\n".join(describe_profile(profile(), SPEC, config()))
    assert "               4  1000.0       4.0  ##############################  <- knee" in text
    assert "        8 sequences" in text
    assert "of this machine's" in text
    none = replace(profile(), rates=profile().rates._replace(flops_per_s=None))
    assert "(the machine's limit was not measured)" in "\n".join(describe_profile(none, SPEC, config()))
    noisy = describe_profile(replace(profile(), spread=0.25), SPEC, config())
    assert noisy[-1].endswith("over 0 steps); the steps took 25% longer than at their fastest.")
    assert profile().seconds(decoding_work(4, 64)) == 1.25
