"""Every exception that Penstock raises on purpose, in one tree.

    PenstockError
    ├── Refused            nothing was done; exit code 2
    │   ├── ConfigError    a flag or an environment variable has a value that cannot be used
    │   ├── ModelError     the checkpoint is missing, damaged, or needs what Penstock does not have
    │   ├── JobLocked      another process works on this job
    │   ├── JobMismatch    a half-done job was made from another input, model, seed or numerics
    │   └── OutputExists   the output is there, but no job that made it
    ├── Stopped            work is kept and can be resumed; exit code 3
    │   ├── StorageFailed  a write or fsync failed (disk full, for one)
    │   └── Interrupted    the user asked to stop; exit code 130
    │       └── OutOfTime  ... at a time that has come (--finish-by, --max-hours); exit code 4
    ├── BenchFailed        a program that was to be measured ended without an answer
    ├── OutOfMemory        the device could not hold a step; the engine shrinks the step and goes on
    └── RowError           one row cannot be answered; it becomes an error row and the job goes on
        └── BadRow         its line cannot be read as a request (in `protocol.py`)

A message says what happened, the two numbers, and what to do.
"""

from __future__ import annotations

from enum import StrEnum


class PenstockError(Exception):
    """The root: whatever Penstock raises on purpose."""


class Refused(PenstockError):
    """Nothing was done."""


class ConfigError(Refused):
    """A flag or environment variable has a value that cannot be used."""


class ModelError(Refused):
    """The checkpoint is missing, damaged, or needs what Penstock does not have."""


class JobLocked(Refused):
    """Another process works on this job."""


class JobMismatch(Refused):
    """A half-done job was made from another input, model, seed or numerics."""


class OutputExists(Refused):
    """The output is there, but no job that made it."""


class Stopped(PenstockError):
    """The work so far is kept; the same command goes on."""


class StorageFailed(Stopped):
    """A write or fsync failed."""


class Interrupted(Stopped):
    """The user asked to stop."""


class OutOfTime(Interrupted):
    """The user asked to stop at a time that has come."""


class BenchFailed(PenstockError):
    """A program that was to be measured ended without an answer."""


class OutOfMemory(PenstockError):
    """The device could not hold a step."""


class RowErrorCode(StrEnum):
    """The kinds of error row, as they stand in the output."""

    INVALID_JSON = "invalid_json"
    MISSING_FIELD = "missing_field"
    INVALID_FIELD = "invalid_field"
    UNKNOWN_FIELD = "unknown_field"
    UNSUPPORTED_URL = "unsupported_url"
    DUPLICATE_CUSTOM_ID = "duplicate_custom_id"
    PROMPT_TOO_LONG = "prompt_too_long"
    KV_TOO_SMALL = "kv_too_small"
    INTERNAL = "internal"


class RowError(PenstockError):
    """One row cannot be answered.

    Attributes:
        code: which kind; message: what happened, the value found and the limit.
    """

    def __init__(self, code: RowErrorCode, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
