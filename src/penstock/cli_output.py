"""What every command says: text to a stream, and a failure with its exit code.

Owns the exit codes and how a message reaches the terminal, or a program that asked for JSON. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import TextIO

REFUSED, STOPPED, OUT_OF_TIME, INTERRUPTED = 2, 3, 4, 130


def failed(flags: argparse.Namespace, message: str, code: int) -> int:
    """Say why a command failed, to people and to programs; gives the exit code."""
    say(f"penstock: {message}", sys.stderr)
    if getattr(flags, "json", False):
        say(json.dumps({"exit_code": code, "error": message}))
    return code


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line (to stdout), now."""
    stream = stream or sys.stdout
    try:
        stream.write(f"{text}\n")
        stream.flush()
    except OSError:
        if stream is sys.stdout:
            raise  # a summary that was asked for and does not arrive is a failure; a closed terminal is not


def same_command() -> str:
    """The command that this process was started with, to be typed again."""
    return shlex.join(["penstock", *sys.argv[1:]])
