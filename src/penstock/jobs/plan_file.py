"""`PlanFile`: what was worked out of a job's input before it runs, in a file of its own beside the job.

Owns the schema: every row's prompt in tokens, and the order in which rows run. It holds nothing that cannot be made
anew from the input, so it may be removed at any time, and is when its job is finished; a file that is damaged or was
made from something else is simply made again. What the order should be is decided in `planner.py`.
One idea: the sort runs on disk, so neither the rows nor their tokens are ever all in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple

from penstock.errors import PenstockError
from penstock.jobs.database import Database, Kind
from penstock.jobs.formats import LineReader
from penstock.jobs.prefix_picture import OwnRows
from penstock.planner import TOKEN_BYTES, Forest, Ranks, bucket, guess_tokens, is_surprise

PLAN_VERSION = 3  # of what is in the file and how the order comes from it
CACHE_KIB = 65536  # of pages in memory; SQLite sorts in pieces of about this size
ROWS_A_PAGE = 512
SAMPLE_ROWS = 1000  # about, to see whether another order is worth it
MOVED = 0.1  # the share of rows taken to be longer or shorter than in the order as it is, for it to be worth it

Expect = Callable[[int, int, int], int]  # from node, prompt tokens and first guess: the expected length of an answer

SCHEMA = """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE counts (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE prompts (  -- one a row of the input. `at`: where its line starts; NULL: the line itself is in `data`
        row INTEGER PRIMARY KEY, line INTEGER NOT NULL, size_bytes INTEGER NOT NULL, at INTEGER, data BLOB,
        custom_id BLOB,      -- hashed; NULL: the line is no row
        first_line INTEGER,  -- of the earlier row that has the same custom id; NULL: there is none
        tokens BLOB,         -- big-endian words; NULL: the row cannot be answered, or was not tokenized
        max_tokens INTEGER, room_tokens INTEGER, samples INTEGER, priority REAL NOT NULL DEFAULT 0,
        fingerprint BLOB     -- rows with equal ones have equal answers; NULL: no other row has this one's answer
    );
    CREATE TABLE places (  -- one a row with tokens, sorted; `leader`: the first row with the same answer
        place INTEGER PRIMARY KEY, row INTEGER NOT NULL, node INTEGER NOT NULL, shared_tokens INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL, guess_tokens INTEGER NOT NULL, samples INTEGER NOT NULL, leader INTEGER NOT NULL
    );
    CREATE INDEX followers ON places (leader) WHERE leader <> row;
    CREATE TABLE nodes (
        node INTEGER PRIMARY KEY, parent INTEGER NOT NULL, depth INTEGER NOT NULL, rows INTEGER NOT NULL
    );
    CREATE TABLE ordered (  -- `place` NULL: a row that cannot be answered, or was not tokenized
        position INTEGER PRIMARY KEY, row INTEGER NOT NULL, place INTEGER, expected_tokens INTEGER NOT NULL
    );
"""
PLAN = Kind("plan", 0x504C414E, (SCHEMA,))  # "PLAN"


class Prepared(NamedTuple):
    """What is known of a row once it was read and tokenized; the fields of the table `prompts`."""

    row: int
    line: int
    size_bytes: int
    at: int | None
    data: bytes | None
    custom_id: bytes | None
    tokens: bytes | None = None
    max_tokens: int | None = None
    room_tokens: int | None = None
    samples: int | None = None
    priority: float = 0.0
    fingerprint: bytes | None = None


class PlannedRow(NamedTuple):
    """A row in the order in which rows run.

    Attributes:
        at: where its line of `size_bytes` starts in the input; None: the line itself is in `data`.
        first_line: of the row that has its custom id already.
        tokens: of its prompt, packed; None: it cannot be answered, or was not tokenized.
        node: the prefix that it shares; guess_tokens, expected_tokens: of its answer, before and after learning.
        leader: the row whose answer it gets; its own number where it is computed.
        shared_tokens: with how many of its first tokens another row begins; None: that is not known.
    """

    position: int
    row: int
    line: int
    size_bytes: int
    at: int | None
    data: bytes | None
    first_line: int | None
    tokens: bytes | None
    node: int
    guess_tokens: int
    samples: int
    expected_tokens: int
    leader: int
    shared_tokens: int | None

    @property
    def prompt_tokens(self) -> int:
        """The length of its prompt; 0 where it was not tokenized."""
        return len(self.tokens or b"") // TOKEN_BYTES

    def text(self, lines: LineReader) -> bytes:
        """Its line, which `lines` finds in the input where the plan does not hold it."""
        if self.data is not None:
            return self.data
        assert self.at is not None
        return lines.read(self.at, self.size_bytes)


class PlacedRow(NamedTuple):
    """A row in the order of its tokens, and what its prompt has in common with that of the row before it there."""

    row: int
    leader: int
    prompt_tokens: int
    shared_tokens: int
    samples: int


class OwnLengths(NamedTuple):
    """A row that is computed: the lengths of its prompt and of its answer, as guessed at first, below its prefix."""

    row: int
    node: int
    prompt_tokens: int
    guess_tokens: int
    samples: int


class InOrder(NamedTuple):
    """Where a row is in the order in which rows run, and by its tokens; the expected length of its answer."""

    position: int
    place: int
    expected_tokens: int


class PrefixNode(NamedTuple):
    """A prefix of the job: its number, that of the one above (-1: none), its tokens in all, the rows right below it."""

    node: int
    parent: int
    depth: int
    rows: int


class PlanTotals(NamedTuple):
    """The numbers of a plan.

    Attributes:
        rows, size_bytes: of the input; bad_rows: those that cannot be answered.
        equal_rows: rows that get the answer of an earlier, equal one; the numbers below do not count them.
        prompt_tokens: of all prompts; distinct_tokens: of their prefix tree, so of what must be computed at least.
        expected_tokens: of all answers; longest_tokens: the longest prompt with its expected answer.
    """

    rows: int
    size_bytes: int
    bad_rows: int
    equal_rows: int
    prompt_tokens: int
    distinct_tokens: int
    expected_tokens: int
    longest_tokens: int


# The columns of a `PlannedRow` that are in the tables `prompts` and `places`.
_PLANNED = (
    "prompts.row, line, size_bytes, at, data, first_line, tokens, coalesce(places.node, 0),"
    " coalesce(places.guess_tokens, 0), coalesce(prompts.samples, 1)"
)

# With what the computed rows beside it in the tree begin as well; of other priorities' trees nothing is known.
_BEHIND = "FROM places AS next WHERE next.place > places.place AND next.leader <> places.leader ORDER BY next.place"
_SHARED = f"max(places.shared_tokens, coalesce((SELECT next.shared_tokens {_BEHIND} LIMIT 1), 0))"
_LENGTHS = "SELECT place, row, node, prompt_tokens, guess_tokens FROM places"


class PlanFile:
    """A plan. States: being read (`next_row` rows are in it), then complete (`is_complete`), and in order."""

    def __init__(self, database: Database) -> None:
        self.path = database.path
        self._db = database

    @classmethod
    def open(cls, path: Path, *, key: str) -> PlanFile:
        """Open the plan made from what `key` names, or begin a new one over whatever is there."""
        try:
            plan = cls(Database.open(path, PLAN, safety="NORMAL"))
            if plan._noted("key") == key:
                return plan
            plan.close()
        except PenstockError:
            pass  # damaged, or something else: nothing in it is worth keeping
        remove_plan(path)
        plan = cls(Database.open(path, PLAN, safety="NORMAL"))
        plan._note("key", key)
        plan._db.commit()
        return plan

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # --- reading the input --------------------------------------------------------------------------------------

    @property
    def next_row(self) -> int:
        """The first row that is not in the file."""
        [(last,)] = self._db.query("SELECT max(row) FROM prompts")
        return 0 if last is None else last + 1

    def add(self, prepared: Iterable[Prepared], counts: Mapping[str, int]) -> None:
        """Add rows, in order, and to what is counted of them. Committed at once."""
        columns = ", ".join(Prepared._fields)
        marks = ", ".join("?" * len(Prepared._fields))
        self._db.write_all(f"INSERT INTO prompts ({columns}) VALUES ({marks})", prepared)
        more = "INSERT INTO counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET number = number + excluded.number"
        self._db.write_all(more, counts.items())
        self._db.commit()

    @property
    def is_complete(self) -> bool:
        """Whether every row of the input is in the file, in order."""
        return self._noted("complete") is not None

    # --- putting it in order ------------------------------------------------------------------------------------

    def arrange(self, *, min_tokens: int, in_order: bool = False) -> None:
        """Find taken ids, equal rows and shared prefixes, and put the rows in order.

        Prefixes shorter than `min_tokens` are not worth an order of their own. `in_order`: keep the order of the input,
        for good, and let no row take another's answer. Committed.
        """
        self._db.query(f"PRAGMA cache_size=-{CACHE_KIB}")
        for table in ("places", "nodes", "ordered"):
            self._db.write(f"DELETE FROM {table}")
        self._mark_taken_ids()
        forest = Forest(min_tokens=min_tokens)
        if self._db.query("SELECT 1 FROM prompts WHERE priority <> 0 LIMIT 1"):
            self._db.write("CREATE INDEX IF NOT EXISTS by_priority ON prompts (priority)")
        placed = "tokens IS NOT NULL AND first_line IS NULL"
        classes = self._db.query(f"SELECT DISTINCT priority FROM prompts WHERE {placed} ORDER BY priority DESC")
        for (priority,) in classes:
            self._place(forest, priority)
        if len(classes) > 1:
            self._join_classes()
            self._note("classes", len(classes))
        rows = dict(self._db.query("SELECT node, count(*) FROM places GROUP BY node"))
        nodes = ((i, forest.parents[i], forest.depths[i], rows.get(i, 0)) for i in range(len(forest.depths)))
        self._db.write_all("INSERT INTO nodes VALUES (?, ?, ?, ?)", nodes)
        if in_order:
            self._note("in order", value=True)
            self._db.write("UPDATE places SET leader = row")
        self._order(forest, None)
        self._note("totals", self._count())
        self._note("complete", value=True)
        self._db.commit()

    def reorder(self, expect: Expect) -> None:
        """Put the rows in the order that better guesses of their answers' lengths ask for, if it is another. Committed.

        Nothing changes where the order rests on nearly these guesses already, by a sample spread over the rows.
        """
        [(rows,)] = self._db.query("SELECT count(*) FROM ordered")
        sample = self._db.query(
            "SELECT expected_tokens, node, prompt_tokens, guess_tokens FROM ordered JOIN places USING (place)"
            " WHERE position % ? = 0",
            max(1, rows // SAMPLE_ROWS),
        )
        moved = sum(is_surprise(expect(*row), expected) for expected, *row in sample)
        if moved >= MOVED * len(sample):
            self._order(self.forest(), expect)
        self._note("reordered", value=True)
        self._db.commit()

    @property
    def is_reordered(self) -> bool:
        """Whether `reorder` was called since the plan was made."""
        return self._noted("reordered") is not None

    def _mark_taken_ids(self) -> None:
        """Only the first row with a custom id counts; sorted on disk, so any number of ids."""
        self._db.write("CREATE TEMP TABLE taken (row INTEGER PRIMARY KEY, first_line INTEGER)")
        ids = "SELECT custom_id, row, line FROM prompts WHERE custom_id IS NOT NULL ORDER BY custom_id, row"
        self._db.write_all("INSERT INTO taken VALUES (?, ?)", _repeated(self._db.stream(ids)))
        self._db.write(
            "UPDATE prompts SET first_line = (SELECT first_line FROM taken WHERE taken.row = prompts.row)"
            " WHERE row IN (SELECT row FROM taken)"
        )
        self._db.write("DROP TABLE taken")

    def _place(self, forest: Forest, priority: float) -> None:
        """Sort the prompts of one priority and write down where each is in their prefix tree."""
        found = self._db.stream(
            "SELECT tokens, fingerprint, row, max_tokens, room_tokens, samples FROM prompts WHERE tokens IS NOT NULL"
            " AND first_line IS NULL AND priority = ? ORDER BY tokens, fingerprint, row",
            priority,
        )
        columns = "row, node, shared_tokens, prompt_tokens, guess_tokens, samples, leader"
        self._db.write_all(f"INSERT INTO places ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", _placed(forest, found))

    def _join_classes(self) -> None:
        """Rows that ask what a row of a higher priority asks get its answer; each class has a tree of its own."""
        self._db.write("CREATE TEMP TABLE joined (leader INTEGER PRIMARY KEY, higher INTEGER)")
        leaders = (
            "SELECT fingerprint, tokens, row FROM places JOIN prompts USING (row)"
            " WHERE leader = row AND fingerprint IS NOT NULL ORDER BY fingerprint, tokens, place"
        )
        self._db.write_all("INSERT INTO joined VALUES (?, ?)", _joined(self._db.stream(leaders)))
        self._db.write(
            "UPDATE places SET leader = (SELECT higher FROM joined WHERE joined.leader = places.leader)"
            " WHERE leader IN (SELECT leader FROM joined)"
        )
        self._db.write("DROP TABLE joined")

    def _order(self, forest: Forest, expect: Expect | None) -> None:
        """Write down the order: what cannot be answered first, since it takes no time, then by rank."""
        self._db.write("DELETE FROM ordered")
        self._db.write(
            "INSERT INTO ordered (row, expected_tokens) SELECT row, 0 FROM prompts"
            " WHERE tokens IS NULL OR first_line IS NOT NULL ORDER BY row"
        )
        into = "INSERT INTO ordered (row, place, expected_tokens)"
        if self._noted("in order"):
            self._db.write(f"{into} SELECT row, place, guess_tokens FROM places ORDER BY row")
            return
        self._rank(forest, expect)
        self._db.write(f"{into} SELECT row, place, expected FROM ranked ORDER BY rank, place")
        self._db.write("DROP TABLE ranked")

    def _rank(self, forest: Forest, expect: Expect | None) -> None:
        """Rank every row by where it is and how long its answer is taken to be (None: as it was guessed at first)."""
        rank = lru_cache(2**16)(Ranks(forest, self._peaks(forest, expect)).rank)  # most rows are like others
        self._db.write("CREATE TEMP TABLE ranked (rank INTEGER, place INTEGER, row INTEGER, expected INTEGER)")
        ranked = (
            (rank(node, bucket(expected)), place, row, expected)
            for place, row, node, prompt_tokens, guess in self._db.stream(_LENGTHS)
            for expected in (expect(node, prompt_tokens, guess) if expect else guess,)
        )
        self._db.write_all("INSERT INTO ranked VALUES (?, ?, ?, ?)", ranked)

    def _peaks(self, forest: Forest, expect: Expect | None) -> list[int]:
        """The bucket of the longest answer among the rows of each node itself."""
        peaks = [0] * len(forest.depths)
        if expect is None:
            for node, longest in self._db.query("SELECT node, max(guess_tokens) FROM places GROUP BY node"):
                peaks[node] = bucket(longest)
            return peaks
        for _, _, node, prompt_tokens, guess in self._db.stream(_LENGTHS):
            peaks[node] = max(peaks[node], bucket(expect(node, prompt_tokens, guess)))
        return peaks

    def _count(self) -> PlanTotals:
        [(rows, size_bytes, bad)] = self._db.query(
            "SELECT count(*), coalesce(sum(size_bytes), 0), coalesce(sum(tokens IS NULL OR first_line IS NOT NULL), 0)"
            " FROM prompts"
        )
        [(equal,)] = self._db.query("SELECT count(*) FROM places WHERE leader <> row")
        [found] = self._db.query(
            "SELECT coalesce(sum(prompt_tokens), 0), coalesce(sum(prompt_tokens - shared_tokens), 0),"
            " coalesce(sum(guess_tokens * samples), 0), coalesce(max(prompt_tokens + guess_tokens), 0)"
            " FROM places WHERE leader = row"
        )
        return PlanTotals(rows, size_bytes, bad, equal, *found)

    # --- what was planned ---------------------------------------------------------------------------------------

    def totals(self) -> PlanTotals:
        """The numbers of a complete plan."""
        return PlanTotals(*self._noted("totals"))

    def counts(self) -> dict[str, int]:
        """What was counted while the input was read (see `add`)."""
        return dict(self._db.query("SELECT name, number FROM counts ORDER BY name"))

    def page(self, position: int, limit: int = ROWS_A_PAGE) -> list[PlannedRow]:
        """The next rows in order, behind `position` (0: from the start)."""
        return self._select("position > ? ORDER BY position LIMIT ?", position, limit)

    def find(self, row: int) -> PlannedRow:
        """One row."""
        return self._select("row = ?", row)[0]

    def _select(self, which: str, *values: int) -> list[PlannedRow]:
        shared = "NULL" if self._noted("classes") else _SHARED
        found = self._db.query(
            f"SELECT position, {_PLANNED}, expected_tokens, coalesce(places.leader, o.row), {shared}"
            f" FROM (SELECT * FROM ordered WHERE {which}) AS o"
            " JOIN prompts USING (row) LEFT JOIN places ON places.place = o.place ORDER BY position",
            *values,
        )
        return [PlannedRow(*fields) for fields in found]

    def rows(self) -> Iterator[PlannedRow]:
        """All rows in order."""
        position = 0
        while page := self.page(position):
            yield from page
            position = page[-1].position

    def placed_rows(self) -> Iterator[PlacedRow]:
        """The rows that have tokens, by their tokens: place 1, 2, .."""
        found = self._db.stream("SELECT row, leader, prompt_tokens, shared_tokens, samples FROM places ORDER BY place")
        return map(PlacedRow._make, found)

    def own_lengths(self) -> Generator[OwnLengths, None, None]:
        """The rows that are computed, in the order of the input; close the iterator where it is left early."""
        columns = ", ".join(OwnLengths._fields)
        with closing(self._db.stream(f"SELECT {columns} FROM places WHERE leader = row ORDER BY row")) as found:
            yield from map(OwnLengths._make, found)

    def run_order(self) -> Iterator[InOrder]:
        """The rows that have tokens, as they run."""
        order = "SELECT position, place, expected_tokens FROM ordered WHERE place IS NOT NULL ORDER BY position"
        return map(InOrder._make, self._db.stream(order))

    def followers(self, leader: int) -> Generator[PlannedRow, None, None]:
        """The rows that get the answer of this one, by their places; close the iterator where it is left early."""
        found = self._db.stream(
            f"SELECT 0, {_PLANNED}, guess_tokens, leader, NULL FROM places JOIN prompts USING (row)"
            " WHERE leader = ? AND leader <> row ORDER BY place",
            leader,
        )
        with closing(found):
            yield from map(PlannedRow._make, found)

    def forest(self) -> Forest:
        """The nodes of the prefix trees."""
        forest = Forest(min_tokens=1)
        for parent, depth in self._db.stream("SELECT parent, depth FROM nodes ORDER BY node"):
            forest.parents.append(parent)
            forest.depths.append(depth)
        return forest

    def own_rows(self) -> Iterator[OwnRows]:
        """The rows that are computed, by the deepest prefix above them."""
        found = "SELECT node, count(*), sum(prompt_tokens) FROM places WHERE leader = row GROUP BY node"
        return (OwnRows(*fields) for fields in self._db.stream(found))

    def nodes(self) -> list[PrefixNode]:
        """The prefixes, in the order in which they were found."""
        return [PrefixNode(*found) for found in self._db.query("SELECT node, parent, depth, rows FROM nodes")]

    # --- notes --------------------------------------------------------------------------------------------------

    def _note(self, name: str, value: object) -> None:
        self._db.write("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, json.dumps(value))

    def _noted(self, name: str) -> Any:
        found = self._db.query("SELECT value FROM meta WHERE key = ?", name)
        return json.loads(found[0][0]) if found else None


def remove_plan(path: Path) -> None:
    """Remove a plan, if there is one."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _repeated(ids: Iterator[tuple[bytes, int, int]]) -> Iterator[tuple[int, int]]:
    """From (id, row, line) sorted: each row whose id an earlier row has, and the line of the first one."""
    first_id, first_line = None, 0
    for custom_id, row, line in ids:
        if custom_id == first_id:
            yield row, first_line
        else:
            first_id, first_line = custom_id, line


def _joined(leaders: Iterator[tuple[bytes, bytes, int]]) -> Iterator[tuple[int, int]]:
    """From (fingerprint, tokens, row) sorted: each row behind the first of its equals, and that first row."""
    before, first = (b"", b""), 0
    for fingerprint, tokens, row in leaders:
        if (fingerprint, tokens) == before:
            yield row, first
        else:
            before, first = (fingerprint, tokens), row


def _placed(
    forest: Forest, found: Iterator[tuple[bytes, bytes | None, int, int | None, int, int]]
) -> Iterator[Sequence[int]]:
    """Grow a tree of sorted prompts; for each its row, its place, its first guess and the row that has its answer."""
    rows, prompts = tee(found)
    leader = 0
    before: tuple[bytes, bytes | None] = (b"", None)
    places = forest.grow(tokens for tokens, *_ in prompts)
    for (tokens, fingerprint, row, max_tokens, room, samples), place in zip(rows, places, strict=True):
        if fingerprint is None or (tokens, fingerprint) != before:
            leader, before = row, (tokens, fingerprint)
        yield row, *place, len(tokens) // TOKEN_BYTES, guess_tokens(max_tokens, room), samples, leader
