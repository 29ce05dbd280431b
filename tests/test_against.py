"""Protects `--against`: which peers there are, and a clear answer for those that there are not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from penstock.bench.against import WHY_NOT, parse_peer, peer_names
from penstock.errors import ConfigError


def test_a_peer_is_a_script_in_the_folder() -> None:
    assert peer_names() == ("llamacpp", "transformers", "vllm")
    peer = parse_peer(f"vllm={sys.executable}")
    assert (peer.name, peer.command[0], peer.why_not) == ("vllm", sys.executable, None)
    assert Path(peer.command[1]).name == "vllm_peer.py"


def test_a_peer_may_have_a_dtype_of_its_own() -> None:
    peer = parse_peer(f"vllm:float32={sys.executable}")
    assert (peer.name, peer.dtype, Path(peer.command[1]).name) == ("vllm:float32", "float32", "vllm_peer.py")
    assert parse_peer(f"vllm={sys.executable}").dtype is None


def test_a_script_of_one_s_own_is_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    assert parse_peer(f"{tmp_path}/mine.py={sys.executable}").name == "mine"


@pytest.mark.parametrize("name", WHY_NOT)
def test_a_peer_that_no_script_runs_says_why(name: str) -> None:
    assert parse_peer(f"{name}=python").why_not == WHY_NOT[name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vllm", "it must be NAME=PYTHON"),
        ("=python", "it must be NAME=PYTHON"),
        ("vllm:int3=python", "the dtype is 'int3'; it must be one of float32"),
        ("vllm=/no/such/python", "there is no program /no/such/python"),
        (f"nobody={sys.executable}", "one of llamacpp, transformers, vllm, sglang, or the path of a script"),
        (f"/no/such/peer.py={sys.executable}", "there is no peer /no/such/peer.py"),
    ],
)
def test_what_cannot_be_run_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_peer(text)
    assert message in str(caught.value)
