"""Protects which profile is found: exactly the one of this model, machine and settings, or none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from penstock import profile_store
from penstock.config import EngineConfig
from penstock.profile import Disturbance
from penstock.profile_store import (
    about,
    about_config,
    find_profile,
    keep_profile,
    kept_profiles,
    knee_finder,
    library_digest,
    path_of,
    processor_name,
)
from tests.profiles import SPEC, config, profile


def known(**other: object) -> dict[str, str]:
    usual: dict[str, object] = {"device": "cpu", "dtype": "bfloat16", "threads": 2, "max_isa": None}
    return about(SPEC, **(usual | other))  # type: ignore[arg-type]


def test_a_profile_is_found_again_and_no_other(tmp_path: Path) -> None:
    kept = replace(profile(), about=known())
    assert keep_profile(kept, folder=tmp_path).parent == tmp_path
    assert find_profile(known(), folder=tmp_path) == kept
    disturbed = replace(kept, disturbance=Disturbance(0.1, 0.2), spread=0.3)
    keep_profile(disturbed, folder=tmp_path)
    assert find_profile(known(), folder=tmp_path) == disturbed
    keep_profile(kept, folder=tmp_path)
    others: list[dict[str, object]] = [{"threads": 1}, {"dtype": "float32"}, {"max_isa": "avx2"}]
    for other in others:
        assert find_profile(known(**other), folder=tmp_path) is None
    assert [one.profile for one in kept_profiles(folder=tmp_path)] == [kept]


def test_a_profile_of_before_disturbances_were_noted_is_read(tmp_path: Path) -> None:
    raw = json.loads(replace(profile(), about=known()).dumps())
    del raw["disturbance"], raw["spread"]
    path_of(known(), folder=tmp_path).write_text(json.dumps(raw))
    assert find_profile(known(), folder=tmp_path) == replace(profile(), about=known())


def test_another_model_shape_processor_or_library_is_another_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = known()
    assert about(replace(SPEC, mlp_width=32), device="cpu", dtype="bfloat16", threads=2, max_isa=None) != first
    monkeypatch.setattr(profile_store, "library_digest", lambda: "other")
    assert known() != first
    (tmp_path / "lib").write_bytes(b"1")
    assert library_digest(tmp_path / "lib") != library_digest(tmp_path / "none") == "none"


def test_a_damaged_file_is_no_profile_and_is_told(tmp_path: Path) -> None:
    path_of(known(), folder=tmp_path).write_text("{")
    assert find_profile(known(), folder=tmp_path) is None
    (kept,) = kept_profiles(folder=tmp_path)
    assert kept.profile is None
    assert kept.why_not


def test_a_profile_in_the_place_of_another_is_not_taken(tmp_path: Path) -> None:
    path_of(known(), folder=tmp_path).write_text(replace(profile(), about=known(threads=1)).dumps())
    assert find_profile(known(), folder=tmp_path) is None


def test_the_knee_is_looked_up_by_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    find = knee_finder(SPEC)
    assert find(config()) is None
    keep_profile(replace(profile(), about=about_config(SPEC, config())))
    knee = find(config(blocks=7, budget=9))
    assert knee is not None
    assert knee.tokens == 4
    assert find(EngineConfig("cpu", "float32", 1, 1, 1, threads=2)) is None


def test_a_processor_says_its_name_and_model(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor: 0\nmodel name\t: A Chip\ncpu family\t: 6\nmodel\t: 143\n\nprocessor: 1\nmodel: 7\n")
    assert processor_name(path) == "A Chip (cpu family 6 model 143)"
    assert processor_name(tmp_path / "none")
