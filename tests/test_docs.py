"""Protects the documentation: the tree in the README is the tree in the repository, and its examples are true.

Run as a program (`python -m tests.test_docs`), it writes the tree anew.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FOLDERS = [
    "src/penstock",
    *(f"src/penstock/{part}" for part in ("models", "kernels", "jobs", "bench", "bench/peers")),
    "demo",
]
TREE = re.compile(r"(<!-- tree:.*?-->\n)(.*)(<!-- end of tree -->)", re.DOTALL)


def first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, path
    return docstring.splitlines()[0]


def tree() -> str:
    """A line a file: of the package by layers' folders, then of the demo."""
    lines = []
    for folder in FOLDERS:
        lines.append(f"\n**{folder}/**\n")
        paths = sorted((ROOT / folder).glob("*.py"))
        lines += [f"- `{p.name}`: {first_line(p)}" for p in paths if p.name != "__init__.py"]
    return "\n".join(lines) + "\n\n"


def test_the_readme_has_a_line_for_every_file() -> None:
    found = TREE.search(README.read_text())
    assert found is not None
    assert found.group(2) == tree(), "run `python -m tests.test_docs`"


def test_the_design_names_every_module() -> None:
    design = (ROOT / "docs" / "design.md").read_text()
    names = {p.name for p in (ROOT / "src" / "penstock").rglob("*.py")} - {"__init__.py"}
    assert not sorted(name for name in names if not re.search(rf"[`/]{name}`", design))


def test_every_dependency_is_justified() -> None:
    design = (ROOT / "docs" / "design.md").read_text()
    block = (ROOT / "pyproject.toml").read_text().split("\ndependencies = [")[1].split("]")[0]
    names = re.findall(r'"([A-Za-z0-9_-]+)', block)
    assert len(names) >= 7
    assert not [name for name in names if f"- `{name}`:" not in design]


def test_the_commands_of_the_readme_exist() -> None:
    text = README.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
    penstock = Path(sys.executable).with_name("penstock")
    shown = subprocess.run([penstock, "run", "--help"], capture_output=True, text=True, check=True).stdout
    for flag in re.findall(r"penstock run .*?(--[a-z-]+)", text):
        assert flag in shown


if __name__ == "__main__":
    README.write_text(TREE.sub(lambda m: m.group(1) + tree() + m.group(3), README.read_text()))
