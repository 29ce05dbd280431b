"""The table half of the training generator, and the table wording the test set shares.

A table has a name, a key column and one to four more columns; every record is one line that repeats the
column names, so a table reads as `name: Ada | city: Rome | age: 41`. Questions ask one column of one
record, named by its key; the answer is that record cut down to its key and the asked column, such as
`name: Ada | city: Rome`. `table_task` aims at a number of records; keys within a table are distinct.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tasks import QUESTIONS, Conversation, Record, Turn, system_message
from words import digits, letters, lower, syllable, title


def table_text(name: str, rows: Sequence[Record]) -> str:
    """The whole table as the prompt shows it."""
    lines = (" | ".join(f"{column}: {value}" for column, value in row.items()) for row in rows)
    return "\n".join([f"Table {name}", *lines])


def question(rng: random.Random, row: Record, field: str) -> str:
    """Asks one column of the row, which its first column names."""
    return rng.choice(QUESTIONS).format(field=field, key=next(iter(row.values())))


def table_prompt(name: str, rows: Sequence[Record], asked: str) -> str:
    """The user message of a table task."""
    return f"{table_text(name, rows)}\n{asked}"


def table_answer(row: Record, field: str) -> str:
    """The right answer: the record's key and the asked column, in the table's own form."""
    key = next(iter(row))
    return f"{key}: {row[key]} | {field}: {row[field]}"


def two_words(rng: random.Random) -> str:
    """Two capitalised words, as in a person's name."""
    return f"{title(rng)} {title(rng)}"


def code(rng: random.Random) -> str:
    """Letters and digits, as in a part number."""
    return letters(rng, 1, 3).upper() + rng.choice(("-", "", "/")) + digits(rng, 1, 4)


def number(rng: random.Random) -> str:
    """An integer or a decimal number."""
    whole = str(int(10 ** rng.uniform(0, 4)))
    return whole if rng.random() < 0.75 else f"{whole}.{rng.randint(0, 99)}"


def date(rng: random.Random) -> str:
    """A date."""
    return f"{rng.randint(1900, 2039)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


Maker = Callable[[random.Random], str]
KEY_MAKERS: tuple[Maker, ...] = (title, two_words, two_words, lower, code)
VALUE_MAKERS: tuple[Maker, ...] = (title, title, lower, two_words, number, number, code, date)


def column_name(rng: random.Random) -> str:
    """A column name, a short one half of the time."""
    return syllable(rng) if rng.random() < 0.5 else lower(rng)


def distinct(rng: random.Random, make: Maker, count: int) -> list[str]:
    """That many different draws."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[make(rng)] = None
    return list(found)


def pooled_names(rng: random.Random, count: int) -> list[str]:
    """Different two-word names that share their first or last words with one another."""
    size = count // 2 + 2
    firsts, lasts = distinct(rng, title, size), distinct(rng, title, size)
    return distinct(rng, lambda rng: f"{rng.choice(firsts)} {rng.choice(lasts)}", count)


def draw_keys(rng: random.Random, count: int) -> list[str]:
    """The different keys of one table."""
    if rng.random() < 0.45:
        return pooled_names(rng, count)
    return distinct(rng, rng.choice(KEY_MAKERS), count)


def draw_values(rng: random.Random, count: int) -> list[str]:
    """One column's values: all drawn afresh, or from few, as categories are."""
    make = rng.choice(VALUE_MAKERS)
    if rng.random() < 0.4:
        return rng.choices([make(rng) for _ in range(count // 2 + 2)], k=count)
    return [make(rng) for _ in range(count)]


def table(rng: random.Random, records: int) -> list[Record]:
    """A random table; its first column is the key."""
    columns = distinct(rng, column_name, rng.choice((2, 2, 2, 3, 3, 3, 4, 4, 5)))
    cells = [draw_keys(rng, records), *(draw_values(rng, records) for _ in columns[1:])]
    return [dict(zip(columns, values, strict=True)) for values in zip(*cells, strict=True)]


def table_task(rng: random.Random, records: int, questions: int) -> Conversation:
    """A table and up to that many different questions about it."""
    rows = table(rng, records)
    cells = [(row, field) for row in rows for field in list(row)[1:]]
    turns = []
    for row, field in rng.sample(cells, min(questions, len(cells))):
        turns.append(Turn(question(rng, row, field), table_answer(row, field)))
    first = Turn(table_prompt(lower(rng), rows, turns[0].user), turns[0].assistant)
    return Conversation((first, *turns[1:]), system_message(rng))
