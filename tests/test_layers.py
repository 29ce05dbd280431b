"""Protects the layers of docs/design.md: imports point down only, and each heavy library has one home."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "penstock"

WORDS = {"__init__", "errors", "request", "step", "config", "fields", "memory", "protocol", "models.spec"}
DECISIONS = {
    "blocks",
    "cost",
    "differences",
    "outlines",
    "planner",
    "prefix",
    "profile",
    "scheduler",
    "sequence",
    "stops",
}
# and models.*, kernels.*
TENSORS = {"kv", "device", "executor", "pages", "sampling", "tiling", "weights", "tokenizer", "checkpoint"}
ENGINE = {"disturbance", "engine", "forecast", "intake", "measuring", "profile_store", "simulation"}
SURFACES = {
    *("cli", "cli_bench", "cli_doctor", "cli_jobs", "cli_output", "cli_plan", "cli_run", "llm", "__main__"),
    *("doctor", "plan_report", "profile_report", "profiling"),
}

# Which layers a layer may import, itself included.
MAY_IMPORT = {
    "words": {"words"},
    "decisions": {"words", "decisions"},
    "tensors": {"words", "tensors"},
    "engine": {"words", "decisions", "tensors", "engine"},
    "work": {"words", "decisions", "tensors", "engine", "work"},
    "surfaces": {"words", "decisions", "tensors", "engine", "work", "surfaces"},
    "peers": set(),  # scripts that another Python runs, with nothing of ours
}

# A heavy library: the modules or layers that may import it.
HOMES = {
    "torch": {"tensors", "bench.ceilings", "bench.peers.transformers_peer"},
    "safetensors": {"models.load", "checkpoint"},
    "tokenizers": {"tokenizer"},
    "jinja2": {"tokenizer"},
    "huggingface_hub": {"checkpoint"},
    "rich": {"jobs.progress"},
    "sqlite3": {"jobs.database"},
    "zstandard": {"jobs.formats"},
}


def layer(module: str) -> str:
    named = {"words": WORDS, "decisions": DECISIONS, "tensors": TENSORS, "engine": ENGINE, "surfaces": SURFACES}
    for name, members in named.items():
        if module in members:
            return name
    if module.split(".")[0] in {"models", "kernels"}:
        return "tensors"
    if module.split(".")[0] == "jobs":
        return "work"
    if module.startswith("bench.peers."):
        return "peers"
    if module.split(".")[0] == "bench":
        return "surfaces"
    raise AssertionError(f"{module} has no layer: give it one in tests/test_layers.py and in docs/design.md")


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found.append((name if name == "__init__" else name.removesuffix(".__init__"), path))
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" if module == "penstock" else module for alias in node.names}
    return names


def own(name: str) -> str | None:
    """The module of ours that an import names, or None."""
    if name != "penstock" and not name.startswith("penstock."):
        return None
    inner = name.removeprefix("penstock").removeprefix(".")
    known = {module for module, _ in modules()}
    return inner if inner in known else "__init__"


@pytest.mark.parametrize(("module", "path"), modules(), ids=[m for m, _ in modules()])
def test_imports_point_down(module: str, path: Path) -> None:
    if module == "__init__":
        return  # the public names, loaded on first use
    allowed = MAY_IMPORT[layer(module)]
    for name in imports(path):
        target = own(name)
        if target is not None:
            assert layer(target) in allowed, f"{module} ({layer(module)}) imports {target} ({layer(target)})"


@pytest.mark.parametrize(("module", "path"), modules(), ids=[m for m, _ in modules()])
def test_a_heavy_library_has_one_home(module: str, path: Path) -> None:
    for name in imports(path):
        homes = HOMES.get(name.split(".")[0])
        if homes is not None:
            assert module in homes or layer(module) in homes, f"{module} imports {name}; its home is {sorted(homes)}"


def test_only_config_reads_the_environment() -> None:
    for module, path in modules():
        if module == "config" or layer(module) == "peers":
            continue  # a peer's script sets variables for that peer, in a process of its own
        tree = ast.parse(path.read_text())
        used = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in {"environ", "getenv"}]
        assert not used, f"{module} reads the environment; config.py alone does"
