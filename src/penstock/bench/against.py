"""`--against NAME[:DTYPE]=PYTHON`: which engines Penstock can be compared with, and why not with the others.

Owns the way from a name to a peer's script. A script in `bench/peers/` is a peer by being there; one of your own can be
named by its path. A dtype of its own is for an engine that is at its best in another one than Penstock.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from penstock.config import ELEMENT_BYTES
from penstock.errors import ConfigError

FOLDER = Path(__file__).parent / "peers"
ENDING = "_peer.py"

# Peers that users ask for and that no script runs yet.
WHY_NOT = {
    "sglang": "SGLang 0.5.23 cannot be installed for CPUs: its wheel needs CUDA packages (cuda-python, flashinfer, "
    "sglang-kernel), and its kernels for CPUs are in no package index; they are built from its repository",
}


class Peer(NamedTuple):
    """An engine to compare with: the command that runs its script, or why it cannot be run.

    `dtype`: None is the dtype that Penstock computes in.
    """

    name: str
    command: tuple[str, ...] = ()
    dtype: str | None = None
    why_not: str | None = None


def peer_names() -> tuple[str, ...]:
    """The peers that have a script."""
    return tuple(sorted(path.name.removesuffix(ENDING) for path in FOLDER.glob(f"*{ENDING}")))


def parse_peer(text: str) -> Peer:
    """The peer that `NAME=PYTHON` or `NAME:DTYPE=PYTHON` names.

    Raises:
        ConfigError: no such peer, or no such program.
    """
    what, equals, python = text.partition("=")
    name, colon, dtype = what.partition(":")
    if not equals or not name or not python:
        raise ConfigError(f"--against is {text!r}; it must be NAME=PYTHON, such as vllm=/path/to/venv/bin/python")
    if colon and dtype not in ELEMENT_BYTES:
        raise ConfigError(f"--against {what}: the dtype is {dtype!r}; it must be one of {', '.join(ELEMENT_BYTES)}")
    if name in WHY_NOT:
        return Peer(what, why_not=WHY_NOT[name])
    if shutil.which(python) is None:
        raise ConfigError(f"--against {name}: there is no program {python}; name the Python that has {name} installed")
    script = Path(name) if name.endswith(".py") else FOLDER / f"{name}{ENDING}"
    if not script.is_file():
        raise ConfigError(
            f"--against: there is no peer {name}; it must be one of {', '.join((*peer_names(), *WHY_NOT))}, or the "
            "path of a script"
        )
    return Peer(f"{script.stem.removesuffix('_peer')}{colon}{dtype}", (python, str(script)), dtype or None)
