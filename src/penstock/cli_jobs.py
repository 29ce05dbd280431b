"""`penstock jobs`: looking at jobs from outside, whether a process works on them or not."""

from __future__ import annotations

import argparse
from pathlib import Path

from penstock.cli_output import say


def add_jobs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `penstock jobs` and what it can show."""
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
    text = "what a job did over time, as one HTML page"
    report = jobs.add_parser("report", help=text, description=text)
    report.add_argument("path", type=Path, metavar="JOB", help="a job or its output")
    report.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the page to write")
    report.set_defaults(command=_jobs_report)


def _jobs_list(flags: argparse.Namespace) -> int:
    from penstock.jobs.looking import find_jobs, one_line

    for path in find_jobs(flags.path):
        say(one_line(path))
    return 0


def _jobs_show(flags: argparse.Namespace) -> int:
    from penstock.jobs.looking import describe, find_jobs

    for path in find_jobs(flags.path):
        say("\n".join(describe(path)))
    return 0


def _jobs_verify(flags: argparse.Namespace) -> int:
    from penstock.jobs.looking import find_jobs, verify

    is_wrong = False
    for path in find_jobs(flags.path):
        report = verify(path)
        is_wrong = is_wrong or bool(report.problems)
        say("\n".join([f"{path}: {'wrong' if report.problems else 'right'}", *report.problems, *report.checked]))
    return 1 if is_wrong else 0


def _jobs_report(flags: argparse.Namespace) -> int:
    from penstock.errors import ConfigError
    from penstock.jobs.looking import find_jobs
    from penstock.jobs.report_facts import gather
    from penstock.jobs.report_page import write_page

    found = find_jobs(flags.path)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"the folder {flags.path} has {len(found)} jobs, and a report is of one; name it: {names}")
    write_page(gather(found[0]), flags.output, job=found[0])
    say(f"{flags.output}")
    return 0
