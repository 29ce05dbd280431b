"""Protects the shape of the code (house rule 1): short functions, short files, plain and unique names."""

from __future__ import annotations

import ast
import statistics
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "penstock"
MAX_FUNCTION_LINES = 50
MAX_MEDIAN_FUNCTION_LINES = 10
MAX_FILE_LINES = 500
BANNED_FILES = {"utils", "common", "base", "core", "v1", "helpers", "misc"}
BANNED_ENDINGS = ("Manager", "Handler", "Helper", "Processor", "Factory", "Mixin", "Impl")

# Exceptions by name, each with its reason.
LONG_FUNCTIONS: dict[str, str] = {}
LONG_FILES: dict[str, str] = {}


def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in sorted(SOURCE.rglob("*.py"))]


def functions() -> list[tuple[str, int]]:
    found = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1
                found.append((f"{path.name}::{node.name}", lines))
    return found


def test_functions_are_short() -> None:
    long = {name: n for name, n in functions() if n > MAX_FUNCTION_LINES and name not in LONG_FUNCTIONS}
    assert not long


def test_the_median_function_is_shorter_than_ten_lines() -> None:
    assert statistics.median(n for _, n in functions()) <= MAX_MEDIAN_FUNCTION_LINES


def test_files_are_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path, _ in trees()}
    assert not {n: size for n, size in lengths.items() if size > MAX_FILE_LINES and n not in LONG_FILES}


def test_file_names_are_unique_and_say_something() -> None:
    names = Counter(path.name for path, _ in trees() if path.name != "__init__.py")
    assert not [n for n, count in names.items() if count > 1]
    assert not [n for n in names if n.removesuffix(".py") in BANNED_FILES]


def test_class_names_are_nouns_of_the_field() -> None:
    classes = [n.name for _, tree in trees() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    assert not [c for c in classes if c.endswith(BANNED_ENDINGS)]


def test_every_module_says_what_it_owns() -> None:
    for path, tree in trees():
        docstring = ast.get_docstring(tree)
        assert docstring, path
        assert len(docstring.splitlines()) <= 20 or path.name == "errors.py", path
