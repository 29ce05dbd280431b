"""Scores the demo's answers: the share of exactly right ones of each kind, and whether it is enough.

Reads the answers as the OpenAI Batch API writes them, one JSON object a line with `custom_id`, `response`
and `error`, and compares each answer with demo/expected.jsonl as text, character by character. A missing
row, a row with an error and a response without an answer count as wrong. The exit status is 1 where a
kind falls below its floor; tables of 2,000 tokens have none and are only reported.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

FLOORS = {"log": 0.95, "table-500": 0.90}
TITLES = {"log": "access-log lines", "table-500": "tables up to 500 tokens", "table-2000": "tables of 2,000 tokens"}


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def answer_text(row: dict[str, Any]) -> str | None:
    """The answer a row holds; none for an error row or one of another shape."""
    if row.get("error") is not None:
        return None
    try:
        text = row["response"]["body"]["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) else None


def shares(expected: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Right answers and requests of every kind."""
    given = {row.get("custom_id"): answer_text(row) for row in answers}
    counts: dict[str, tuple[int, int]] = {}
    for row in expected:
        right, total = counts.get(row["kind"], (0, 0))
        counts[row["kind"]] = right + (given.get(row["custom_id"]) == row["answer"]), total + 1
    return counts


def failed(counts: dict[str, tuple[int, int]]) -> list[str]:
    """The kinds below their floor, or not there at all."""
    below = []
    for kind, floor in FLOORS.items():
        right, total = counts.get(kind, (0, 0))
        if total == 0 or right < floor * total:
            below.append(kind)
    return below


def report(counts: dict[str, tuple[int, int]]) -> str:
    """The shares as text, a kind a line."""
    lines = []
    for kind, (right, total) in counts.items():
        floor = f"at least {FLOORS[kind]:.0%} wanted" if kind in FLOORS else "reported only"
        lines.append(f"{TITLES.get(kind, kind)}: {right} of {total} exactly right, {right / total:.2%} ({floor})")
    return "\n".join(lines)


def main() -> int:
    """Prints the shares; 1 where one is below its floor."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Score the demo's answers.")
    parser.add_argument("answers", type=Path, help="the answers, as OpenAI Batch output lines")
    parser.add_argument("--expected", type=Path, default=here / "expected.jsonl")
    options = parser.parse_args()
    counts = shares(read_lines(options.expected), read_lines(options.answers))
    print(report(counts))
    below = failed(counts)
    if below:
        print(f"below the floor: {', '.join(TITLES[kind] for kind in below)}")
    return 1 if below else 0


if __name__ == "__main__":
    raise SystemExit(main())
