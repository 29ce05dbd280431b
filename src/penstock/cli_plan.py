"""`penstock plan`: its flags, and the way from them to an outlook on a job.

Owns nothing of how a job is planned (`jobs/planning.py`), predicted (`forecast.py`) or told (`plan_report.py`). The
plan is made in a temporary folder, so nothing is left beside the input.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import config
from penstock.cli_output import say
from penstock.cli_run import add_order
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.checkpoint import Checkpoint
    from penstock.jobs.deadline import Deadline
    from penstock.jobs.outlook import Outlook
    from penstock.jobs.tokenizing import Setup
    from penstock.profile import Profile
    from penstock.simulation import Terms

EPILOG = """\
Nothing is computed and nothing is written beside the input. The time is what it took to read the rows here, and that of
the engine, simulated step by step with what this machine was measured to take. Where no profile of the model is kept
yet, one is measured first, quickly (`penstock doctor --measure` does it thoroughly). The optimal time is what no plan
of these rows can beat here, whatever its memory: distinct tokens computed once, all answers drawn together, arithmetic
and memory at their limits. With --finish-by or --max-hours, it is said whether a run that starts now fits before that
time and, if not, how many rows will be done and how many stay for later.

exit codes: 0 planned, whether it fits before a deadline or not; 2 refused, nothing done; 3 the measuring failed
"""


def add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `penstock plan`."""
    plan = commands.add_parser(
        "plan",
        help="say how long a file of rows will take, and what would help",
        description="Read a whole job, plan it, and say what it will take on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.set_defaults(command=_plan)
    plan.add_argument("input", type=Path, metavar="INPUT", help="the rows, as for penstock run")
    plan.add_argument("--model", help="a Hugging Face folder, a hub id, or demo")
    for name, metavar, text in (
        ("device", "auto|cpu|cuda", "where to compute (default: auto)"),
        ("dtype", "auto|float32|bfloat16|float16", "of weights and KV (default: auto, the checkpoint's)"),
        ("memory", "SIZE", "what bounds the process, as for penstock run, such as 8GiB"),
        ("kv-memory", "SIZE", "memory for keys and values, such as 1GiB (default: by model and machine)"),
        ("token-budget", "N", "tokens a step, at most"),
        ("max-sequences", "N", "sequences that run at once, at most"),
        ("threads", "N", "threads that compute on the CPU (default: the physical cores)"),
    ):
        plan.add_argument(f"--{name}", metavar=metavar, help=text)
    plan.add_argument("--price-per-hour", type=_amount, metavar="N", help="what an hour of this machine costs")
    plan.add_argument("--watts", type=_amount, metavar="N", help="what this machine draws while it computes")
    add_order(plan.add_argument_group("options of the run that is planned"))
    plan.add_argument("--json", action="store_true", help="everything as one JSON object, the last line of stdout")


def _amount(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return value


def _plan(flags: argparse.Namespace) -> int:
    names = ("model", "device", "dtype", "memory", "kv-memory", "token-budget", "max-sequences", "threads")
    settings = config.read_settings({name: getattr(flags, name.replace("-", "_")) for name in names})
    if settings.model is None:
        raise ConfigError("no model was named; give --model FOLDER, --model HUB/ID or --model demo")
    if not flags.input.is_file():
        raise ConfigError(f"the input {flags.input} is not there, or no regular file; name a file of rows")
    _deadline(flags)  # what cannot be read is refused before anything else is
    from penstock.checkpoint import find_checkpoint
    from penstock.jobs.loading import CheckpointModel
    from penstock.jobs.planning import with_rows
    from penstock.plan_report import describe_outlook, outlook_as_json
    from penstock.simulation import Terms

    checkpoint = find_checkpoint(settings.model)
    model = CheckpointModel(checkpoint, with_rows(settings, flags.input))
    profile = _profile(checkpoint, model.resolved().config)
    resolved = model.resolved()  # with the knee of the profile
    terms = Terms(checkpoint.spec, resolved.config, profile)
    outlook = _look_ahead(flags, model.setup(settings.seed or 0), terms, settings.memory_bytes)
    deadline = _deadline(flags)
    reach = None if deadline is None else deadline.reach(outlook.prediction, now_s=0.0)
    chosen = {choice.name: f"{choice.value} ({choice.source})" for choice in resolved.choices}
    if flags.json:
        say(json.dumps({**outlook_as_json(outlook, profile, reach), "settings": chosen, "exit_code": 0}))
        return 0
    say("\n".join(describe_outlook(outlook, profile, reach)))
    return 0


def _deadline(flags: argparse.Namespace) -> Deadline | None:
    """When a run that starts now stops by itself, in seconds from now."""
    from datetime import datetime

    from penstock.jobs.deadline import read_deadline

    now = datetime.now().astimezone()
    return read_deadline(flags.finish_by, flags.max_hours, now=now, now_s=0.0, started_s=0.0)


def _look_ahead(flags: argparse.Namespace, setup: Setup, terms: Terms, memory_bytes: int | None) -> Outlook:
    """Plan the job in a temporary folder, and see what it will take."""
    from penstock.jobs.outlook import Price, look_ahead
    from penstock.jobs.planning import Planning, describe_unranked, make_plan, num_cores, spare_bytes

    with tempfile.TemporaryDirectory(prefix="penstock-plan-") as folder:
        planning = Planning(
            flags.input,
            setup,
            "only looked at",
            num_cores(),
            lambda rows: None,
            priority=flags.priority,
            spare_bytes=spare_bytes(memory_bytes),
            note=_tell,
        )
        started_s = time.monotonic()
        plan, lost = make_plan(Path(folder) / "plan", planning)
        reading_s = time.monotonic() - started_s
        with closing(plan):
            outlook = look_ahead(
                plan,
                flags.input,
                terms=terms,
                setup=setup,
                price=Price(flags.price_per_hour, flags.watts),
                reading_s=reading_s,
                memory_bytes=memory_bytes,
            )
            unranked = describe_unranked(plan, flags.priority)
    if lost:
        _tell(f"a process that tokenized died; its {lost} rows are not in these numbers")
    if unranked is not None:
        _tell(unranked)
    return outlook


def _profile(checkpoint: Checkpoint, wanted: config.EngineConfig) -> Profile:
    """The profile of this model here; measured now where there is none."""
    from penstock.measuring import QUICK
    from penstock.profile_store import about_config, find_profile
    from penstock.profiling import measure_profile

    found = find_profile(about_config(checkpoint.spec, wanted))
    if found is not None:
        return found
    _tell(f"no profile of {checkpoint.name} on this machine yet: measuring one, quickly")
    return measure_profile(checkpoint, wanted, effort=QUICK, tell=_tell)


def _tell(text: str) -> None:
    say(text, sys.stderr)
