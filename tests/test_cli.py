"""The command line as a user meets it: the real program, its exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import __version__, cli, cli_run
from tests.job_runs import job_at, row, run_job, write_rows


def penstock(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "penstock.cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with a finished job of the toy engine, one of whose three rows failed."""
    write_rows(tmp_path / "in.jsonl", [row("a", "x"), "{", row("b", "y")])
    run_job(job_at(tmp_path))
    return tmp_path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from penstock.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "answer every row of a file" in done.stdout
    modules = set(done.stdout.splitlines()[-1].split())
    assert not modules & {"torch", "rich", "tokenizers", "sqlite3", "zstandard", "jinja2", "huggingface_hub"}
    assert not {name for name in modules if name.startswith("penstock.jobs")}


def test_refusing_a_job_imports_no_torch(finished: Path) -> None:
    code = "import sys; from penstock.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    flags = [
        "run",
        str(finished / "in.jsonl"),
        "-o",
        str(finished / "other"),
        "--model",
        str(finished),
        "--device",
        "cpu",
    ]
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_version() -> None:
    assert penstock("--version").stdout == f"penstock {__version__}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dtype", "int8"], "--dtype is 'int8'; it must be one of"),
        (["--kv-memory", "lots"], "--kv-memory is 'lots'; it must be a size"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["-o", "/no/such/folder/out.jsonl"], "the folder /no/such/folder of the output is not there"),
    ],
)
def test_what_cannot_be_done_is_refused_with_exit_code_2(tmp_path: Path, flags: list[str], message: str) -> None:
    given = write_rows(tmp_path / "in.jsonl", [row("a", "x")])
    usual = ["run", str(given), "-o", str(tmp_path / "out.jsonl"), "--model", str(tmp_path), "--json", "--quiet"]
    done = penstock(*usual, *flags)
    assert done.returncode == 2
    assert message in done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["exit_code"] == 2
    assert message in answer["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_run_without_a_model_says_how_to_name_one(tmp_path: Path) -> None:
    done = penstock("run", "in.jsonl", "-o", "out.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert "give --model FOLDER" in done.stderr


def test_an_unknown_variable_is_refused(tmp_path: Path) -> None:
    done = penstock("run", "in.jsonl", "-o", "out.jsonl", PENSTOCK_DTYPES="float32")
    assert done.returncode == 2
    assert "did you mean PENSTOCK_DTYPE?" in done.stderr


def test_the_model_can_come_from_the_environment(tmp_path: Path) -> None:
    given = write_rows(tmp_path / "in.jsonl", [row("a", "x")])
    done = penstock("run", str(given), "-o", str(tmp_path / "out"), PENSTOCK_MODEL="/no/such/model")
    assert done.returncode == 2
    assert "/no/such/model" in done.stderr


def test_jobs_are_listed_shown_and_verified(finished: Path) -> None:
    listed = penstock("jobs", "list", str(finished))
    assert listed.returncode == 0
    assert "finished" in listed.stdout
    assert "3/3" in listed.stdout
    assert "1 failed" in listed.stdout
    for name in ("out.jsonl", "out.jsonl.job"):
        shown = penstock("jobs", "show", str(finished / name)).stdout
        assert "input_sha256" in shown
        assert "1 invalid_json" in shown
        verified = penstock("jobs", "verify", str(finished / name))
        assert (verified.returncode, "right" in verified.stdout) == (0, True)
        assert "3 results and the fingerprint hashed" in verified.stdout


def test_a_job_is_reported_as_one_page(finished: Path) -> None:
    page = finished / "report.html"
    done = penstock("jobs", "report", str(finished / "out.jsonl"), "-o", str(page))
    assert (done.returncode, done.stdout) == (0, f"{page}\n")
    assert "<b>3 rows</b>" in page.read_text()
    assert penstock("jobs", "report", str(finished), "-o", str(page)).returncode == 0  # over the earlier one
    output = (finished / "out.jsonl").read_bytes()
    refused = penstock("jobs", "report", str(finished), "-o", str(finished / "out.jsonl"))
    assert refused.returncode == 2
    assert "is no report of Penstock's" in refused.stderr
    assert (finished / "out.jsonl").read_bytes() == output


def test_a_report_is_of_one_job(finished: Path) -> None:
    (finished / "more.job").write_bytes((finished / "out.jsonl.job").read_bytes())
    refused = penstock("jobs", "report", str(finished), "-o", str(finished / "report.html"))
    assert refused.returncode == 2
    assert "has 2 jobs, and a report is of one; name it: more.job, out.jsonl.job" in refused.stderr
    assert not (finished / "report.html").exists()


def test_verify_finds_a_changed_output_and_a_changed_input(finished: Path) -> None:
    (finished / "out.jsonl").write_text("changed")
    write_rows(finished / "in.jsonl", [row("a", "other")])
    done = penstock("jobs", "verify", str(finished))
    assert done.returncode == 1
    assert "out.jsonl differs from the job at row 0" in done.stdout
    assert "in.jsonl has SHA-256" in done.stdout


def test_looking_at_nothing_is_refused(tmp_path: Path) -> None:
    assert penstock("jobs", "list", str(tmp_path)).returncode == 2
    done = penstock("jobs", "show", str(tmp_path / "no.jsonl"))
    assert done.returncode == 2
    assert "there is no" in done.stderr


def test_a_file_that_is_no_job_does_not_hide_the_others(finished: Path) -> None:
    (finished / "a.job").write_text("a user's own file")
    lines = penstock("jobs", "list", str(finished)).stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("unknown")
    assert lines[1].startswith("finished")


def test_a_bug_keeps_to_the_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("penstock.config.read_settings", broken)
    assert cli.main(["run", "in.jsonl", "-o", "out.jsonl"]) == 3


def test_the_process_started_before_now() -> None:
    started = cli_run.process_start_s()
    assert started is not None
    assert 0 < started <= cli_run._now_s() + 0.01
