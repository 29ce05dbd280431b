"""Builds the committed test set, demo/requests.jsonl and demo/expected.jsonl, from demo/access.log.

The log requests take recorded lines as they are and ask random fields of each. The table requests fill
tables from vocabulary.py, each table asked twice, in two sizes: up to 500 tokens, spread over lengths,
and about 2,000 tokens. The requests are OpenAI Batch lines; the expected answers name the kind of each.
Building it again from the same log gives the same files.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

import vocabulary as words
from tables import question, table_answer, table_prompt
from tasks import Record, log_answer, log_prompt, pick_fields

LINE = re.compile(
    r'(?P<ip>\S+) - (?P<user>\S+) \[(?P<time>[^\]]+)\] "(?P<method>\S+) (?P<path>\S+) (?P<protocol>\S+)" '
    r'(?P<status>\d+) (?P<bytes>\d+) "(?P<referer>[^"]*)" "(?P<agent>[^"]*)"'
)
TABLES = {"table-500": (130, 90, 500), "table-2000": (20, 1900, 2050)}
QUESTIONS_A_TABLE = 2
WINDOW = 80
CHAT_TOKENS = 15


@dataclass(frozen=True)
class Task:
    """One request and its right answer."""

    kind: str
    prompt: str
    answer: str


def log_tasks(rng: random.Random, file: Path, count: int) -> Iterator[Task]:
    """Tasks on the first lines of the log."""
    lines = file.read_text(encoding="utf-8").splitlines()
    for line in lines[:count]:
        match = LINE.fullmatch(line)
        if match is None:
            raise SystemExit(f"not a line in combined format: {line}")
        fields = pick_fields(rng)
        yield Task("log", log_prompt(rng, line, fields), log_answer(match.groupdict(), fields))


def column_values(rng: random.Random, count: int) -> list[tuple[str, list[str]]]:
    """One to three columns besides the key, with a value for each record."""
    columns: list[tuple[str, list[str]]] = []
    for name, values in rng.sample(words.VALUE_COLUMNS, rng.choice((1, 1, 2))):
        columns.append((name, rng.choices(values, k=count)))
    for name in rng.sample(words.NUMBER_COLUMNS, rng.choice((1, 1, 2)) if len(columns) == 1 else 1):
        columns.append((name, [str(rng.randint(1, 999)) for _ in range(count)]))
    rng.shuffle(columns)
    return columns


def keys(rng: random.Random) -> tuple[str, list[str]]:
    """The name of a key column and all its possible values, in random order."""
    if rng.random() < 0.3:
        name, values = rng.choice(words.PLANT_COLUMNS), list(words.PLANTS)
    else:
        name = rng.choice(words.PERSON_COLUMNS)
        values = [f"{first} {last}" for first in words.FIRST_NAMES for last in words.LAST_NAMES]
    return name, rng.sample(values, len(values))


def build_table(rng: random.Random, count: int) -> list[Record] | None:
    """A table of that many records, or none where the drawn key column has fewer values."""
    name, values = keys(rng)
    columns = column_values(rng, count)
    if len(values) < count:
        return None
    return [{name: values[row], **{column: cells[row] for column, cells in columns}} for row in range(count)]


def fitting_table(rng: random.Random, tokenizer: Tokenizer, least: int, most: int) -> tuple[str, list[Record]]:
    """A table whose whole prompt has between `least` and `most` tokens."""
    while True:
        rows = build_table(rng, rng.randint(2, most // 25))
        name = rng.choice(words.TABLES)
        if rows is None:
            continue
        longest = max((question(rng, row, field) for row in rows for field in list(row)[1:]), key=len)
        if least <= len(tokenizer.encode(table_prompt(name, rows, longest)).ids) <= most - CHAT_TOKENS:
            return name, rows


def table_tasks(rng: random.Random, tokenizer: Tokenizer, kind: str) -> Iterator[Task]:
    """The table tasks of one kind; the token counts wanted are spread evenly."""
    tables, least, most = TABLES[kind]
    for index in range(tables):
        wanted = least + (most - WINDOW - least) * index // tables
        name, rows = fitting_table(rng, tokenizer, wanted, wanted + WINDOW)
        cells = [(row, field) for row in rows for field in list(row)[1:]]
        for row, field in rng.sample(cells, QUESTIONS_A_TABLE):
            yield Task(kind, table_prompt(name, rows, question(rng, row, field)), table_answer(row, field))


def request_line(custom_id: str, task: Task, limit: int) -> str:
    """One OpenAI Batch line."""
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": task.prompt}],
        "max_tokens": limit,
        "temperature": 0,
    }
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line, ensure_ascii=False)


def write(tasks: list[Task], folder: Path) -> None:
    """Writes the requests and the expected answers."""
    requests, expected, seen = [], [], dict.fromkeys(("log", *TABLES), 0)
    for task in tasks:
        seen[task.kind] += 1
        custom_id = f"{task.kind}-{seen[task.kind]:04}"
        requests.append(request_line(custom_id, task, 320 if task.kind == "log" else 64))
        expected.append(json.dumps({"custom_id": custom_id, "kind": task.kind, "answer": task.answer}))
    (folder / "requests.jsonl").write_text("\n".join(requests) + "\n", encoding="utf-8")
    (folder / "expected.jsonl").write_text("\n".join(expected) + "\n", encoding="utf-8")


def main() -> None:
    """Builds the test set."""
    here = Path(__file__).resolve().parent
    model = here.parent / "src" / "penstock" / "demo_model"
    parser = argparse.ArgumentParser(description="Build the demo's requests and expected answers.")
    parser.add_argument("--log", type=Path, default=here / "access.log")
    parser.add_argument("--tokenizer", type=Path, default=model / "tokenizer.json")
    parser.add_argument("--out", type=Path, default=here)
    parser.add_argument("--logs", type=int, default=900, help="number of log requests")
    options = parser.parse_args()
    rng, tokenizer = random.Random(77), Tokenizer.from_file(str(options.tokenizer))
    tasks = list(log_tasks(rng, options.log, options.logs))
    for kind in TABLES:
        tasks += table_tasks(rng, tokenizer, kind)
    write(tasks, options.out)


if __name__ == "__main__":
    main()
