"""The command line: `penstock run`, `penstock jobs` and `penstock bench`.

Owns flags, exit codes and what goes to stdout; everything else is done by `jobs/` and `bench/`. Heavy modules are
imported only by the command that needs them, so that `penstock --help` answers at once.
Exit codes: 0 every row has an answer or an error row; 1 the same, with --fail-on-error and error rows (or a job that
does not verify); 2 refused, nothing done; 3 stopped (SIGTERM, a failing disk, a bug), the same command goes on;
130 interrupted (Ctrl-C), the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from penstock import config
from penstock.errors import ConfigError, PenstockError, Refused

if TYPE_CHECKING:
    from penstock.jobs.job import Job
    from penstock.jobs.loop import Surroundings
    from penstock.jobs.summary import Summary

REFUSED, STOPPED, INTERRUPTED = 2, 3, 130

EPILOG = """\
Each setting can also be given as an environment variable, such as PENSTOCK_MODEL or PENSTOCK_KV_MEMORY; a flag wins.
What a row does not say is as in the OpenAI API: temperature 1, top_p 1, no stop strings; max_tokens is 16 for
completions, and what the context leaves for chats. Rows without a seed draw from --seed and their custom_id.
Killed or interrupted? The same command goes on where it was, and ends with the same bytes.

exit codes: 0 every row has an answer or an error row; 1 the same, with --fail-on-error and error rows;
2 refused, nothing done; 3 stopped, the same command goes on; 130 interrupted, the same command goes on
"""

BENCH_EPILOG = """\
The last line of stdout is everything as one JSON object. Progress goes to stderr.
Every engine runs in a process of its own, in turn: all workloads on Penstock, all on the first peer, and so on, then
again from the start. Times are medians, and every run's time is shown. Keep the machine idle meanwhile: what else runs
is measured too.

exit codes: 0 measured (a peer that failed is in the report, with its reason); 2 refused, nothing done;
3 Penstock failed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives its exit code, or as a program (no arguments given) exits with it."""
    code = run_command(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and "torch" in sys.modules:
        os._exit(code)  # all is closed and flushed; taking torch down would take another half second
    return code


def run_command(arguments: Sequence[str]) -> int:
    """Run a command, with every exception as its exit code."""
    flags = _parser().parse_args(arguments)
    try:
        return int(flags.command(flags))
    except KeyboardInterrupt:
        return _failed(flags, "interrupted; the same command goes on", INTERRUPTED)
    except Refused as error:
        return _failed(flags, str(error), REFUSED)
    except PenstockError as error:
        return _failed(flags, str(error), STOPPED)
    except Exception:  # noqa: BLE001  a bug: say all that is known, and keep to the exit codes
        import traceback

        traceback.print_exc()
        return _failed(flags, "this is a bug in Penstock; what was finished is kept, the same command goes on", STOPPED)


def _failed(flags: argparse.Namespace, message: str, code: int) -> int:
    _say(f"penstock: {message}", sys.stderr)
    if getattr(flags, "json", False):
        _say(json.dumps({"exit_code": code, "error": message}))
    return code


def _say(text: str, stream: TextIO | None = None) -> None:
    stream = stream or sys.stdout
    try:
        stream.write(f"{text}\n")
        stream.flush()
    except OSError:
        if stream is sys.stdout:
            raise  # a summary that was asked for and does not arrive is a failure; a closed terminal is not


# --- flags ----------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock", description="Run a file of prompts through a language model, without ever losing a row."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_bench(commands)
    jobs = commands.add_parser("jobs", help="look at jobs from outside").add_subparsers(required=True, metavar="WHAT")
    for name, command, text in (
        ("list", _jobs_list, "one line for each job"),
        ("show", _jobs_show, "all that is known of a job"),
        ("verify", _jobs_verify, "check every hash of a job, and its files against it; exit code 1 if one is wrong"),
    ):
        parsed = jobs.add_parser(name, help=text, description=text)
        parsed.add_argument(
            "path", nargs="?", default=".", type=Path, help="a folder, a job or its output (default: .)"
        )
        parsed.set_defaults(command=command)
    return parser


class _Version(argparse.Action):
    """Prints the version; looking it up takes time that other commands need not spend."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from penstock import __version__

        _say(f"penstock {__version__}")
        parser.exit()


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
        ("kv-memory", "SIZE", "memory for keys and values, such as 1GiB (default: by model and machine)"),
        ("token-budget", "N", "tokens a step, at most"),
        ("max-sequences", "N", "sequences that run at once, at most"),
        ("threads", "N", "threads that compute on the CPU (default: the physical cores)"),
        ("seed", "N", "names the random numbers of rows without a seed of their own (default: 0)"),
    ):
        run.add_argument(f"--{name}", metavar=metavar, help=text)
    run.add_argument("--errors", type=Path, metavar="FILE", help="error rows once more (default: OUT.errors.jsonl)")
    run.add_argument("--job", type=Path, metavar="PATH", help="the job file, which is the truth (default: OUT.job)")
    for name, text in (
        ("overwrite", "replace an output that has no job, or a job made from something else"),
        ("fail-on-error", "exit code 1 if there are error rows"),
        ("accept-numerics", "go on although earlier rows were computed with other numerics; marks the rows"),
        ("quiet", "no progress; errors and --json are printed all the same"),
        ("json", "print the summary as one JSON object, the last line of stdout"),
    ):
        run.add_argument(f"--{name}", action="store_true", help=text)


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure the speed of a model on this machine",
        description="Run named workloads; say how fast they went, and how far that is from what this machine can do.",
        epilog=BENCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.set_defaults(command=_bench)
    bench.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="one or more names; --list shows them")
    bench.add_argument("--list", action="store_true", help="print the workloads and exit")
    bench.add_argument("--model", help="a Hugging Face folder, a hub id, or demo")
    for name, metavar, text in (
        ("dtype", "auto|float32|bfloat16|float16", "of weights and KV (default: auto, the checkpoint's)"),
        (
            "kv-memory",
            "SIZE",
            "memory for keys and values, such as 1GiB, for all engines (default: by model and machine)",
        ),
        ("token-budget", "N", "tokens a step of Penstock, at most"),
        ("max-sequences", "N", "sequences at once, for all engines (default: enough for the workloads, 256 at most)"),
        ("threads", "N", "threads that compute, for all engines (default: the physical cores)"),
        ("seed", "N", "another seed makes other token ids of the same shape (default: 0)"),
    ):
        bench.add_argument(f"--{name}", metavar=metavar, help=text)
    for name, kind, default, text in (
        ("repeat", int, 3, "runs of every workload (default: 3)"),
        ("scale", float, 1.0, "a share of each workload's requests, such as 0.1 (default: 1)"),
        ("timeout", float, 3600.0, "seconds after which an engine that gives no answer is stopped (default: 3600)"),
    ):
        bench.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=text)
    bench.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help="also run another engine (vllm, transformers) with the Python that has it installed; may be repeated",
    )
    limits = bench.add_mutually_exclusive_group()
    limits.add_argument(
        "--ceilings", type=Path, metavar="FILE", help="keep the measured limits here, to use them again"
    )
    limits.add_argument(
        "--no-ceilings", action="store_true", help="do not measure limits; no shares of the optimal time"
    )
    bench.add_argument("--write", type=Path, metavar="FOLDER", help="only write the workloads, as JSONL of token ids")
    bench.add_argument("--json", action="store_true", help="no table: only the last line, the JSON object")


# --- run ------------------------------------------------------------------------------------------------------------


def _run(flags: argparse.Namespace) -> int:
    names = ("model", "device", "dtype", "kv-memory", "token-budget", "max-sequences", "threads", "seed")
    settings = config.read_settings({name: getattr(flags, name.replace("-", "_")) for name in names})
    if settings.model is None:
        raise ConfigError("no model was named; give --model FOLDER, --model HUB/ID or --model demo")
    model = settings.model
    from penstock.jobs.loading import find_model
    from penstock.jobs.runner import run

    job = _job(flags, settings.seed or 0)
    around = _surroundings(flags, settings.phase_file)
    with around.stop:
        try:
            summary = run(job, lambda: find_model(model, settings), around)
        except KeyboardInterrupt:
            return _failed(flags, "stopped; the same command goes on", around.stop.exit_code)
    code = 1 if flags.fail_on_error and summary.failed and not summary.exit_code else summary.exit_code
    _show_summary(summary, flags, code)
    return code


def _job(flags: argparse.Namespace, seed: int) -> Job:
    from penstock.jobs.job import Job

    beside = flags.output.parent / flags.output.name
    return Job(
        input=flags.input,
        output=flags.output,
        errors=flags.errors or beside.with_name(f"{beside.name}.errors.jsonl"),
        path=flags.job or beside.with_name(f"{beside.name}.job"),
        seed=seed,
        overwrite=flags.overwrite,
        accept_numerics=flags.accept_numerics,
    )


def _surroundings(flags: argparse.Namespace, phase_file: str | None) -> Surroundings:
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
    return Surroundings(Timer(started_s, _now_s), watch, StopSignals(), PhaseTrace(phase_file))


def _show_summary(summary: Summary, flags: argparse.Namespace, code: int) -> None:
    from penstock.jobs.summary import report

    for line in [] if flags.quiet else report(summary):
        _say(line, sys.stderr)
    for note in summary.late_notes:
        _say(f"note: {note}", sys.stderr)
    if summary.stopped is not None:
        import shlex

        _say(f"penstock: {summary.stopped}\nto go on: {shlex.join(['penstock', *sys.argv[1:]])}", sys.stderr)
    if flags.json:
        _say(json.dumps({**summary.as_json(), "exit_code": code}))


def process_start_s() -> float | None:
    """When this process started, in seconds since the machine did; None where /proc does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) / config.clock_ticks_per_s()
    except (OSError, ValueError, IndexError):
        return None


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# --- bench ---------------------------------------------------------------------------------------------------------


def _bench(flags: argparse.Namespace) -> int:
    from penstock.bench import command

    if flags.list:
        _say("\n".join(command.list_workloads()))
        return 0
    names = ("model", "dtype", "kv-memory", "token-budget", "max-sequences", "threads", "seed")
    settings = config.read_settings({name: getattr(flags, name.replace("-", "_")) for name in names})
    asked = command.Asked(
        workloads=tuple(flags.workloads),
        repeats=flags.repeat,
        scale=flags.scale,
        seed=settings.seed or 0,
        against=tuple(flags.against),
        ceilings=flags.ceilings,
        measures_ceilings=not flags.no_ceilings,
        timeout_s=flags.timeout,
    )
    if flags.write is not None:
        _say("\n".join(str(path) for path in command.write_workloads(asked, flags.write)))
        return 0
    if settings.model is None:
        raise ConfigError("no model was named; give --model FOLDER, --model HUB/ID or --model demo")
    report = command.bench(asked, settings, lambda text: _say(text, sys.stderr))
    _say("\n".join([*([] if flags.json else report.lines), json.dumps(report.json)]))
    return 0


# --- jobs -----------------------------------------------------------------------------------------------------------


def _jobs_list(flags: argparse.Namespace) -> int:
    from penstock.jobs.looking import find_jobs, one_line

    for path in find_jobs(flags.path):
        _say(one_line(path))
    return 0


def _jobs_show(flags: argparse.Namespace) -> int:
    from penstock.jobs.looking import describe, find_jobs

    for path in find_jobs(flags.path):
        _say("\n".join(describe(path)))
    return 0


def _jobs_verify(flags: argparse.Namespace) -> int:
    from penstock.jobs.looking import find_jobs, verify

    is_wrong = False
    for path in find_jobs(flags.path):
        report = verify(path)
        is_wrong = is_wrong or bool(report.problems)
        _say("\n".join([f"{path}: {'wrong' if report.problems else 'right'}", *report.problems, *report.checked]))
    return 1 if is_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
