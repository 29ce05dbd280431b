"""`penstock bench`: its flags, and what it prints.

Owns nothing of how things are measured (see `bench/command.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from penstock import config
from penstock.cli_output import say
from penstock.errors import ConfigError

EPILOG = """\
The last line of stdout is everything as one JSON object. Progress goes to stderr.
Every engine runs in a process of its own, in turn: all workloads on Penstock, all on the first peer, and so on, then
again from the start. Times are medians, and every run's time is shown. Keep the machine idle meanwhile: what else runs
is measured too.

exit codes: 0 measured (a peer that failed is in the report, with its reason); 2 refused, nothing done;
3 Penstock failed
"""


def add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `penstock bench`."""
    bench = commands.add_parser(
        "bench",
        help="measure the speed of a model on this machine",
        description="Run named workloads; say how fast they went, and how far that is from what this machine can do.",
        epilog=EPILOG,
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
        metavar="NAME[:DTYPE]=PYTHON",
        help="also run another engine (vllm, transformers, llamacpp) with the Python that has it installed, in "
        "Penstock's dtype or in one of its own; may be repeated",
    )
    limits = bench.add_mutually_exclusive_group()
    limits.add_argument(
        "--ceilings", type=Path, metavar="FILE", help="keep the measured limits here, to use them again"
    )
    limits.add_argument("--no-ceilings", action="store_true", help="do not measure limits; no shares of the least time")
    bench.add_argument("--write", type=Path, metavar="FOLDER", help="only write the workloads, as JSONL of token ids")
    bench.add_argument("--json", action="store_true", help="no table: only the last line, the JSON object")


def _bench(flags: argparse.Namespace) -> int:
    from penstock.bench import command

    if flags.list:
        say("\n".join(command.list_workloads()))
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
        say("\n".join(str(path) for path in command.write_workloads(asked, flags.write)))
        return 0
    if settings.model is None:
        raise ConfigError("no model was named; give --model FOLDER, --model HUB/ID or --model demo")
    from penstock.jobs.stopping import StopSignals

    with StopSignals():  # a polite kill ends the engines too, which have processes of their own
        report = command.bench(asked, settings, lambda text: say(text, sys.stderr))
    say("\n".join([*([] if flags.json else report.lines), json.dumps(report.json)]))
    return 0
