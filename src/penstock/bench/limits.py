"""`Limits`: what this machine can do at most, as measured, each number with how it was measured or why it was not.

Owns the meaning of the limits and their way to a file and back; `ceilings.py` measures them. Pure: no tensors.
A limit that could not be measured is None with a reason, never a number from a datasheet.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from penstock.errors import ConfigError

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "": 1}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One limit: FLOPs or bytes a second, and how it was measured; or None, and why not."""

    per_s: float | None
    how: str = ""
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of this machine in one dtype.

    Attributes:
        gemm: FLOPs a second of matrix products whose weights come from memory, not from a cache.
        read: bytes a second read from memory.
        tile: FLOPs a second of the matrix unit alone, fed from registers and the nearest cache.
        max_isa: the cap of the instruction set that they were measured under; None: there was none.
    """

    dtype: str
    threads: int
    gemm: Ceiling
    read: Ceiling
    tile: Ceiling
    max_isa: str | None = None

    def dumps(self) -> str:
        """The limits as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> Limits:
        """The limits that `dumps` wrote.

        Raises:
            ValueError: something else did.
        """
        try:
            raw = json.loads(text)
            return Limits(**raw | {name: Ceiling(**raw[name]) for name in ("gemm", "read", "tile")})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"these are no measured limits: {error}") from None


def read_limits(path: Path, *, dtype: str, threads: int, max_isa: str | None) -> Limits:
    """Limits from a file, measured earlier with the same dtype, number of threads and cap of the instruction set.

    Raises:
        ConfigError: the file has no limits, or those of something else.
    """
    try:
        found = Limits.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"--ceilings {path}: {error}; name a file that is not there, to measure anew") from None
    measured, wanted = (found.dtype, found.threads, found.max_isa), (dtype, threads, max_isa)
    if measured != wanted:
        raise ConfigError(
            f"--ceilings {path} was measured with {_describe(*measured)} and this bench uses {_describe(*wanted)}; "
            "name another file, to measure anew"
        )
    return found


def _describe(dtype: str, threads: int, max_isa: str | None) -> str:
    return f"{dtype} on {threads} threads" + (f" up to {max_isa}" if max_isa else "")


def last_level_cache_bytes(folder: Path = CACHES) -> int | None:
    """The size of the largest cache of the first core, from the kernel; None where it does not say."""
    sizes = []
    for path in folder.glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip())
        if match:
            sizes.append(int(match[1]) * _UNITS[match[2]])
    return max(sizes, default=None)
