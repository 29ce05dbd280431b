"""The demo's test set and its scorer: complete, right, never seen in training, and strict."""

from __future__ import annotations

import copy
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import score
import vocabulary
from tables import table_task
from tasks import FIELDS, agent, log_record, path
from words import LEXICON

DEMO = Path(score.__file__).parent
Row = dict[str, Any]
QUOTED = re.compile(r'"([^"]*)"')
RECORD = re.compile(r"^(\w+): (.+?) \| (.+)$")


def rows(name: str) -> list[Row]:
    """The lines of one of the demo's files."""
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


REQUESTS, EXPECTED = rows("requests.jsonl"), rows("expected.jsonl")


def prompt(request: Row) -> str:
    return str(request["body"]["messages"][-1]["content"])


def answers() -> list[Row]:
    """Batch output in which every answer is right."""

    def body(row: Row) -> Row:
        return {"choices": [{"message": {"role": "assistant", "content": row["answer"]}}]}

    return [
        {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body(row)}, "error": None}
        for row in EXPECTED
    ]


def pairs(kind: str) -> list[tuple[str, str]]:
    """Prompt and expected answer of every request of the kind."""
    prompts = {request["custom_id"]: prompt(request) for request in REQUESTS}
    return [(prompts[row["custom_id"]], row["answer"]) for row in EXPECTED if row["kind"].startswith(kind)]


def scored(tmp_path: Path, given: list[Row], monkeypatch: pytest.MonkeyPatch) -> int:
    """The scorer's exit status on these answers."""
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["score.py", str(file)])
    return score.main()


def test_requests_and_expected_answers_match() -> None:
    ids = [request["custom_id"] for request in REQUESTS]
    assert len(set(ids)) == len(ids) >= 1000
    assert ids == [row["custom_id"] for row in EXPECTED]
    assert sum(row["kind"] == "log" for row in EXPECTED) > len(EXPECTED) / 2
    assert {row["kind"] for row in EXPECTED} == {"log", "table-500", "table-2000"}
    for request in REQUESTS:
        assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
        assert request["body"]["temperature"] == 0


def parsed(line: str) -> dict[str, str | int]:
    """The fields of a log line, by other means than the builder's."""
    request, referer, agent_text = QUOTED.findall(line)
    head, _, middle, *_ = line.split('"')
    address, _, user, moment = head.split(" ", 3)
    method, target, protocol = request.split(" ")
    status, size = middle.split()
    values = (address, user, moment.strip("[] "), method, target, protocol, int(status), int(size), referer, agent_text)
    return dict(zip(FIELDS, values, strict=True))


def test_expected_log_answers_agree_with_an_independent_parser() -> None:
    recorded = set((DEMO / "access.log").read_text(encoding="utf-8").splitlines())
    for text, answer in pairs("log"):
        wording, line = text.split("\n")
        assert line in recorded
        asked = [word for word in re.findall(r"\w+", wording) if word in FIELDS]
        right = {name: parsed(line)[name] for name in asked}
        assert answer == json.dumps(right, separators=(",", ":"))


def test_expected_table_answers_agree_with_the_table() -> None:
    for text, answer in pairs("table"):
        *lines, asked = text.split("\n")
        match = re.fullmatch(r"(?:What is|Give) the (\w+) of (.+)[.?]", asked)
        assert match is not None
        found = [line for line in lines[1:] if line.split(" | ")[0].endswith(f": {match[2]}")]
        assert len(found) == 1
        key, *cells = found[0].split(" | ")
        assert [f"{key} | {cell}" for cell in cells if cell.startswith(f"{match[1]}: ")] == [answer]


def test_a_right_answer_everywhere_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scored(tmp_path, answers(), monkeypatch) == 0


@pytest.mark.parametrize("change", [" ", "x", "\n"])
def test_one_wrong_character_is_a_wrong_answer(change: str) -> None:
    given = answers()
    given[0]["response"]["body"]["choices"][0]["message"]["content"] += change
    right, total = score.shares(EXPECTED, given)["log"]
    assert right == total - 1


@pytest.mark.parametrize("kind", list(score.FLOORS))
@pytest.mark.parametrize("fault", ["wrong", "missing", "error", "no answer"])
def test_the_scorer_fails_below_the_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fault: str
) -> None:
    bad = {row["custom_id"] for row in EXPECTED if row["kind"] == kind}
    given = []
    for row in answers():
        spoiled = spoil(row, fault) if row["custom_id"] in bad else row
        given += [] if spoiled is None else [spoiled]
    assert scored(tmp_path, given, monkeypatch) == 1
    assert score.shares(EXPECTED, given)[kind][0] == 0


def spoil(row: Row, fault: str) -> Row | None:
    """The row with one fault; none where it is to be missing."""
    row = copy.deepcopy(row)
    if fault == "wrong":
        row["response"]["body"]["choices"][0]["message"]["content"] = "{}"
    elif fault == "error":
        row["error"] = {"code": "too_long", "message": "the prompt is too long"}
    elif fault == "no answer":
        row["response"] = None
    return None if fault == "missing" else row


def test_just_below_the_floor_fails_and_the_floor_itself_passes() -> None:
    counts = {"log": (950, 1000), "table-500": (90, 100)}
    assert score.failed(counts) == []
    assert score.failed({**counts, "log": (949, 1000)}) == ["log"]
    assert score.failed({**counts, "table-500": (89, 100)}) == ["table-500"]
    assert score.failed({"table-500": (90, 100)}) == ["log"]


def table_cells(text: str) -> tuple[str, set[str], set[str], set[str]]:
    """A table's name, column names, keys, and values that are not numbers."""
    name, *lines = text.split("\n")[:-1]
    cells = [[cell.split(": ", 1) for cell in line.split(" | ")] for line in lines]
    columns = {column for line in cells for column, _ in line}
    values = {value for line in cells for _, value in line[1:] if not value.isdecimal()}
    return name.removeprefix("Table "), columns, {line[0][1] for line in cells}, values


def test_words_of_the_test_set_are_not_in_the_training_lexicon() -> None:
    text = " ".join(prompt(request).split("\n", 1)[1] for request in REQUESTS if request["custom_id"].startswith("log"))
    log_words = {word.lower() for word in re.findall(r"[A-Za-z]{5,}", text)}
    held = [value for value in vars(vocabulary).values() if isinstance(value, list | tuple)]
    table_words = {word.lower() for group in held for item in group for word in re.findall(r"[A-Za-z]{3,}", str(item))}
    assert not (log_words | table_words) & set(LEXICON)


def test_paths_and_agents_are_not_drawn_in_training() -> None:
    lines = [parsed(text.split("\n")[1]) for text, _ in pairs("log")]
    rng = random.Random(5)
    drawn = [log_record(rng, 90) for _ in range(5000)]
    assert not {line["path"] for line in lines} - {"/"} & {record["path"] for record in drawn}
    assert not {line["agent"] for line in lines} - {"-"} & {record["agent"] for record in drawn}
    assert not {line["path"] for line in lines} & {path(rng) for _ in range(5000)} - {"/"}
    assert not {line["agent"] for line in lines} & {agent(rng) for _ in range(5000)} - {"-"}


def test_tables_are_not_drawn_in_training() -> None:
    rng = random.Random(6)
    drawn = [table_cells(table_task(rng, 12, 1).turns[0].user) for _ in range(1000)]
    tested = [table_cells(text) for text, _ in pairs("table")]
    assert not {name for name, *_ in drawn} & {name for name, *_ in tested}
    for place in (1, 2, 3):
        seen = {word for found in drawn for word in found[place]}
        assert not seen & {word for found in tested for word in found[place]}
