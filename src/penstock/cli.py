"""The command line: which commands there are, and the exit code of each exception.

Owns nothing of what a command does: each has its own `cli_*.py`. Heavy modules are imported only by the command that
needs them, so that `penstock --help` answers at once.
Exit codes: 0 every row has an answer or an error row; 1 the same, with --fail-on-error and error rows (or a job that
does not verify); 2 refused, nothing done; 3 stopped (SIGTERM, a failing disk, a bug), the same command goes on;
4 stopped by a deadline, the same command goes on; 130 interrupted (Ctrl-C), the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from penstock.cli_bench import add_bench
from penstock.cli_doctor import add_doctor
from penstock.cli_jobs import add_jobs
from penstock.cli_output import INTERRUPTED, REFUSED, STOPPED, failed, say
from penstock.cli_plan import add_plan
from penstock.cli_run import add_run
from penstock.errors import PenstockError, Refused


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
        return failed(flags, "interrupted; the same command goes on", INTERRUPTED)
    except Refused as error:
        return failed(flags, str(error), REFUSED)
    except PenstockError as error:
        return failed(flags, str(error), STOPPED)
    except Exception:  # noqa: BLE001  a bug: say all that is known, and keep to the exit codes
        import traceback

        traceback.print_exc()
        return failed(flags, "this is a bug in Penstock; what was finished is kept, the same command goes on", STOPPED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock", description="Run a file of prompts through a language model, without ever losing a row."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_run, add_plan, add_bench, add_jobs, add_doctor):
        add(commands)
    return parser


class _Version(argparse.Action):
    """Prints the version; looking it up takes time that other commands need not spend."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from penstock import __version__

        say(f"penstock {__version__}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
