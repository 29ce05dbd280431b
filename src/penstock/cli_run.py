"""`penstock run`: its flags, and the way from them to a job and its summary.

Owns nothing of how a job runs (see `jobs/runner.py`); heavy modules are imported once the flags are known to be right.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import config
from penstock.cli_output import OUT_OF_TIME, failed, same_command, say
from penstock.errors import ConfigError, OutOfTime

if TYPE_CHECKING:
    from penstock.jobs.job import Job
    from penstock.jobs.loop import Surroundings
    from penstock.jobs.summary import Summary

EPILOG = """\
Each setting can also be given as an environment variable, such as PENSTOCK_MODEL or PENSTOCK_KV_MEMORY; a flag wins.
What a row does not say is as in the OpenAI API: temperature 1, top_p 1, no stop strings; max_tokens is 16 for
completions, and what the context leaves for chats. Rows without a seed draw from --seed and their custom_id.
Killed or interrupted? The same command goes on where it was, and ends with the same bytes.

exit codes: 0 every row has an answer or an error row; 1 the same, with --fail-on-error and error rows;
2 refused, nothing done; 3 stopped, 4 stopped by --finish-by or --max-hours, 130 interrupted: the same command goes on
"""


SETTINGS = (
    *("model", "device", "dtype", "memory", "kv-memory", "token-budget", "max-sequences", "threads", "seed"),
    *("cache", "cache-size"),
)


def add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `penstock run`."""
    run = commands.add_parser(
        "run",
        help="answer every row of a file",
        description="Answer every row of an OpenAI Batch file (JSONL; plain, gzip or zstd).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(command=_run)
    run.add_argument("input", type=Path, metavar="INPUT", help="the rows")
    run.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="their answers, in the same order")
    run.add_argument("--model", help="a Hugging Face folder, a hub id, or demo")
    for name, metavar, text in (
        ("device", "auto|cpu|cuda", "where to compute (default: auto)"),
        ("dtype", "auto|float32|bfloat16|float16", "of weights and KV (default: auto, the checkpoint's)"),
        ("memory", "SIZE", "bounds the process: weights, keys and values and all else, such as 8GiB"),
        ("kv-memory", "SIZE", "memory for keys and values, such as 1GiB (default: by model and machine)"),
        ("token-budget", "N", "tokens a step, at most"),
        ("max-sequences", "N", "sequences that run at once, at most"),
        ("threads", "N", "threads that compute on the CPU (default: the physical cores)"),
        ("cache", "DIR", "keeps answers across jobs, and takes from there what is known (default: off)"),
        ("cache-size", "SIZE", "what --cache may keep (default: 1GiB)"),
        ("seed", "N", "names the random numbers of rows without a seed of their own (default: 0)"),
    ):
        run.add_argument(f"--{name}", metavar=metavar, help=text)
    add_order(run)
    run.add_argument("--errors", type=Path, metavar="FILE", help="error rows once more (default: OUT.errors.jsonl)")
    run.add_argument("--job", type=Path, metavar="PATH", help="the job file, which is the truth (default: OUT.job)")
    for name, text in (
        ("overwrite", "replace an output that has no job, or a job made from something else"),
        ("fail-on-error", "exit code 1 if there are error rows"),
        ("accept-numerics", "go on although earlier rows were computed with other numerics; marks the rows"),
        ("in-order", "run rows in the order of the input, equal ones too, to compare: the answers are the same"),
        ("quiet", "no progress; errors and --json are printed all the same"),
        ("json", "print the summary as one JSON object, the last line of stdout"),
    ):
        run.add_argument(f"--{name}", action="store_true", help=text)


def add_order(run: argparse._ActionsContainer) -> None:
    """Add what says which rows run first, and until when: `penstock plan` takes it too."""
    run.add_argument("--finish-by", metavar="TIME", help="stop at a local time (07:00) or date and time, with all kept")
    run.add_argument("--max-hours", metavar="HOURS", help="stop so long after the start, such as 1.5, with all kept")
    run.add_argument("--priority", metavar="FIELD", help="rows with a higher number in metadata.FIELD run first")


def _run(flags: argparse.Namespace) -> int:
    settings = config.read_settings({name: getattr(flags, name.replace("-", "_")) for name in SETTINGS})
    if settings.model is None:
        raise ConfigError("no model was named; give --model FOLDER, --model HUB/ID or --model demo")
    model = settings.model
    from penstock.jobs.loading import find_model
    from penstock.jobs.planning import with_rows
    from penstock.jobs.runner import run

    job = _job(flags, settings)
    around = _surroundings(flags, settings.phase_file)
    with around.stop:
        try:
            summary = run(job, lambda: find_model(model, with_rows(settings, job.input)), around)
        except KeyboardInterrupt:
            return failed(flags, "stopped; the same command goes on", around.stop.exit_code)
        except OutOfTime as error:
            return failed(flags, f"{error}\nto go on: {same_command()}", OUT_OF_TIME)
    code = 1 if flags.fail_on_error and summary.failed and not summary.exit_code else summary.exit_code
    _show_summary(summary, flags, code)
    return code


def _job(flags: argparse.Namespace, settings: config.Settings) -> Job:
    from penstock.jobs.answer_cache import DEFAULT_BYTES
    from penstock.jobs.job import Job

    beside = flags.output.parent / flags.output.name
    return Job(
        input=flags.input,
        output=flags.output,
        errors=flags.errors or beside.with_name(f"{beside.name}.errors.jsonl"),
        path=flags.job or beside.with_name(f"{beside.name}.job"),
        seed=settings.seed or 0,
        overwrite=flags.overwrite,
        accept_numerics=flags.accept_numerics,
        priority=flags.priority,
        in_order=flags.in_order,
        memory_bytes=settings.memory_bytes,
        cache=None if settings.cache is None else Path(settings.cache),
        cache_bytes=settings.cache_bytes or DEFAULT_BYTES,
    )


def _surroundings(flags: argparse.Namespace, phase_file: str | None) -> Surroundings:
    from datetime import datetime

    from penstock.jobs.deadline import read_deadline
    from penstock.jobs.loop import Surroundings
    from penstock.jobs.phases import PhaseTrace
    from penstock.jobs.progress import Watch
    from penstock.jobs.stopping import StopSignals
    from penstock.jobs.timing import Timer

    watch = Watch(is_quiet=flags.quiet)
    started_s = process_start_s()
    if started_s is None:
        started_s = _now_s()
        watch.note("the start of the process is not known here; times count from the start of the command")
    deadline = read_deadline(
        flags.finish_by, flags.max_hours, now=datetime.now().astimezone(), now_s=_now_s(), started_s=started_s
    )
    return Surroundings(Timer(started_s, _now_s), watch, StopSignals(), PhaseTrace(phase_file), deadline)


def _show_summary(summary: Summary, flags: argparse.Namespace, code: int) -> None:
    from penstock.jobs.summary import report

    for line in [] if flags.quiet else report(summary):
        say(line, sys.stderr)
    for note in summary.late_notes:
        say(f"note: {note}", sys.stderr)
    if summary.stopped is not None:
        say(f"penstock: {summary.stopped}\nto go on: {same_command()}", sys.stderr)
    if flags.json:
        say(json.dumps({**summary.as_json(), "exit_code": code}))


def process_start_s() -> float | None:
    """When this process started, in seconds since the machine did; None where /proc does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) / config.clock_ticks_per_s()
    except (OSError, ValueError, IndexError):
        return None


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
