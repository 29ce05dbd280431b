"""`penstock doctor`: its flags, and what it prints.

Owns nothing of what is looked at (see `doctor.py`) or measured (see `profiling.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from penstock import config
from penstock.cli_output import same_command, say
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.doctor import Finding

EPILOG = """\
--measure runs a model's steps on this machine, for under a minute, and keeps what they take. `penstock plan` predicts
with it, and `penstock run` takes its token budget from it (and says so). Keep the machine idle meanwhile: where it was
not, that is said, and kept with what was measured.

exit codes: 0 all is well; 1 something is not; 2 refused, nothing done; 3 the measuring failed
"""


def add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `penstock doctor`."""
    doctor = commands.add_parser(
        "doctor",
        help="look at this machine, and measure it",
        description="Say what this machine has and lacks for Penstock; with --measure, how fast a model is on it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.set_defaults(command=_doctor)
    doctor.add_argument("--measure", action="store_true", help="measure a model's steps (needs --model)")
    doctor.add_argument("--quick", action="store_true", help="measure for less long, and less exactly")
    doctor.add_argument("--model", help="a Hugging Face folder, a hub id, or demo")
    for name, metavar, text in (
        ("device", "auto|cpu|cuda", "where to compute (default: auto)"),
        ("dtype", "auto|float32|bfloat16|float16", "of weights and KV (default: auto, the checkpoint's)"),
        ("max-sequences", "N", "sequences that run at once, at most"),
        ("threads", "N", "threads that compute on the CPU (default: the physical cores)"),
    ):
        doctor.add_argument(f"--{name}", metavar=metavar, help=text)
    doctor.add_argument("--json", action="store_true", help="everything as one JSON object, the last line of stdout")


def _doctor(flags: argparse.Namespace) -> int:
    names = ("model", "device", "dtype", "max-sequences", "threads")
    settings = config.read_settings({name: getattr(flags, name.replace("-", "_")) for name in names})
    if (flags.measure or flags.quick) and settings.model is None:
        raise ConfigError("--measure measures a model; give --model FOLDER, --model HUB/ID or --model demo")
    if flags.measure or flags.quick:
        return _measure(flags, settings)
    from penstock.doctor import examine

    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not flags.json:
            say(_line(finding))
    code = 0 if all(finding.is_well for finding in findings) else 1
    if flags.json:
        say(json.dumps({"is_well": not code, "findings": [f._asdict() for f in findings], "exit_code": code}))
    return code


def _line(finding: Finding) -> str:
    mark = "ok " if finding.is_well else "BAD"
    advice = f"\n     {'':<17} ({finding.advice})" if finding.advice else ""
    return f"{mark}  {finding.name:<17} {finding.value}{advice}"


def _measure(flags: argparse.Namespace, settings: config.Settings) -> int:
    from penstock.checkpoint import find_checkpoint
    from penstock.disturbance import describe_disturbance
    from penstock.jobs.loading import resolve_here
    from penstock.measuring import FULL, QUICK
    from penstock.profile_report import describe_profile
    from penstock.profile_store import path_of
    from penstock.profiling import measure_profile

    checkpoint = find_checkpoint(settings.model or "")
    resolved = resolve_here(checkpoint, settings)
    profile = measure_profile(
        checkpoint, resolved.config, effort=QUICK if flags.quick else FULL, tell=lambda text: say(text, sys.stderr)
    )
    path, knee, disturbed = path_of(profile.about), profile.knee(), describe_disturbance(profile, same_command())
    if flags.json:
        found = {"path": str(path), "knee_tokens": knee.tokens, "disturbed": disturbed, "profile": asdict(profile)}
        say(json.dumps({**found, "exit_code": 0}))
    else:
        note = [] if disturbed is None else [f"note: {disturbed}"]
        say("\n".join([*describe_profile(profile, checkpoint.spec, resolved.config), f"Kept in {path}", *note]))
    return 0
