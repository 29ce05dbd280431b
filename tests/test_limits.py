"""Protects the machine's limits: what is read from the kernel, and files of limits that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.bench.limits import Ceiling, Limits, last_level_cache_bytes, read_limits
from penstock.errors import ConfigError

LIMITS = Limits(
    "bfloat16", 2, gemm=Ceiling(2e12, "a"), read=Ceiling(3e10, "b"), tile=Ceiling(None, why_not="no native kernel")
)


def test_the_last_level_cache_is_the_largest(tmp_path: Path) -> None:
    for number, size in enumerate(("48K", "2048K", "480M", "strange")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    assert last_level_cache_bytes(tmp_path) == 480 * 2**20
    assert last_level_cache_bytes(tmp_path / "nothing") is None


def test_limits_survive_a_file(tmp_path: Path) -> None:
    for limits in (LIMITS, replace(LIMITS, max_isa="avx2")):
        (tmp_path / "limits").write_text(limits.dumps())
        assert read_limits(tmp_path / "limits", dtype="bfloat16", threads=2, max_isa=limits.max_isa) == limits


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LIMITS.dumps().replace("bfloat16", "float32"), "float32 on 2 threads and this bench uses bfloat16 on 2"),
        (
            replace(LIMITS, max_isa="avx2").dumps(),
            "bfloat16 on 2 threads up to avx2 and this bench uses bfloat16 on 2 thr",
        ),
        ("{", "name a file that is not there"),
        ("[]", "these are no measured limits"),
        ('{"gemm": {}}', "these are no measured limits"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "limits").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_limits(tmp_path / "limits", dtype="bfloat16", threads=2, max_isa=None)
