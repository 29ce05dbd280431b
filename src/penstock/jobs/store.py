"""The durable truth of a job: one SQLite file with its items, attempts, results and runs.

Owns the schema, its migrations and every statement on it (`database.py` knows SQLite). Knows nothing of engines or
formats: a row is a number, a line of the input, and in the end the bytes of an output line.
When `commit` returns, what was written is on the disk. The writer holds a `JobLock`; any number of readers may look
meanwhile.
Items and results carry logical ids (row, run), never paths or device state, so that a job can move between machines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from penstock.errors import StorageFailed
from penstock.jobs.database import Database, Kind

CRASHES_TO_SUSPECT = 3  # rows that were in flight at so many crashes run last, alone

MIGRATIONS = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE runs (  -- one a process that got as far as computing; `outcome` NULL: it runs, or it died
        run INTEGER PRIMARY KEY, started TEXT NOT NULL, numerics TEXT NOT NULL, row_exact INTEGER NOT NULL, outcome TEXT
    );
    CREATE TABLE items (  -- `owner`: the run that computes the row now, or did when it died
        row INTEGER PRIMARY KEY, line INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
        custom_id TEXT UNIQUE,  -- of the first row that carries it; NULL where unreadable or taken
        attempts INTEGER NOT NULL, crashes INTEGER NOT NULL DEFAULT 0, owner INTEGER REFERENCES runs
    );
    CREATE INDEX items_in_flight ON items (row) WHERE owner IS NOT NULL;
    CREATE INDEX items_crashed ON items (row) WHERE crashes > 0;
    CREATE TABLE results (  -- `output`: the line of the output file; `code`: of an error row, else NULL
        row INTEGER PRIMARY KEY REFERENCES items, output BLOB NOT NULL, code TEXT,
        prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
        run INTEGER REFERENCES runs, sha256 BLOB NOT NULL
    );
    CREATE INDEX results_failed ON results (row) WHERE code IS NOT NULL;
    CREATE TABLE counts (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
    """,
    """
    ALTER TABLE runs ADD COLUMN load_s REAL;
    ALTER TABLE runs ADD COLUMN plan_s REAL;
    CREATE TABLE samples (  -- of `jobs/timeline.py`: counts since the run's engine was ready, and its state at `at_s`
        run INTEGER NOT NULL REFERENCES runs, at_s REAL NOT NULL, rows INTEGER NOT NULL, steps INTEGER NOT NULL,
        prefill_tokens INTEGER NOT NULL, decode_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL, preemptions INTEGER NOT NULL,
        kv_used_tokens INTEGER NOT NULL, kv_total_tokens INTEGER NOT NULL,
        running INTEGER NOT NULL, waiting INTEGER NOT NULL,
        read_s REAL NOT NULL, queue_s REAL NOT NULL, step_s REAL NOT NULL, record_s REAL NOT NULL,
        commit_s REAL NOT NULL, export_s REAL NOT NULL,
        PRIMARY KEY (run, at_s)
    ) WITHOUT ROWID;
    CREATE TABLE predictions (run INTEGER PRIMARY KEY REFERENCES runs, prediction TEXT NOT NULL);
    CREATE TABLE prefix_tree (tree TEXT NOT NULL);  -- of the plan, which is gone when the job is finished
    """,
    """
    ALTER TABLE samples ADD COLUMN kv_kept_tokens INTEGER;
    """,
)
JOB = Kind("job", 0x50454E53, MIGRATIONS)  # "PENS"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a job is made from; two jobs with equal identities have equal outputs."""

    input_sha256: str
    model_sha256: str
    seed: int
    defaults_version: int
    output_version: int

    def fingerprint(self) -> str:
        """Hex digest of all parts."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Identity) -> list[str]:
        """One sentence for each part that differs: what is here, what is there."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{key} is {mine[key]} in the job and {theirs[key]} now" for key in mine if mine[key] != theirs[key]]


@dataclass(frozen=True, slots=True)
class About:
    """What else is known of a job from its start. Paths are relative to the job's folder.

    `rows` and `input_bytes` count the rows of the input and their bytes, uncompressed.
    """

    model: str
    rows: int
    input_bytes: int
    created: str
    version: str
    input: str
    output: str
    errors: str


class Item(NamedTuple):
    """A row of the input as the store knows it; no custom id: unreadable, or an earlier row has it."""

    row: int
    line: int
    size_bytes: int
    custom_id: str | None


class Result(NamedTuple):
    """What became of a row: the line of the output file, and what it took. `code` is that of an error row."""

    row: int
    output: bytes
    code: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class State(NamedTuple):
    """How far a row that was seen before has come."""

    attempts: int
    crashes: int
    is_done: bool


class Totals(NamedTuple):
    """Sums over the results; `size_bytes` is of the input lines that they answer."""

    done: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    size_bytes: int


class Run(NamedTuple):
    """A process that worked on the job, and how many rows it finished; no outcome: it runs, or it died."""

    run: int
    started: str
    numerics: dict[str, str]
    row_exact: bool
    outcome: str | None
    done: int


class Store:
    """A job file. Invariant: a row with a result has no owner, and a row with an owner has no result."""

    def __init__(self, database: Database) -> None:
        self.path = database.path
        self._db = database
        self._run: int | None = None

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open a job for writing, bringing its schema up to date; the caller holds its `JobLock`.

        Raises:
            JobMismatch: the file is no job, or one of a later version.
        """
        return cls(Database.open(path, JOB))

    @classmethod
    def look(cls, path: Path) -> Store:
        """Open a job to read it, whether a process works on it or not.

        Raises:
            JobMismatch: the file is no job, or one of a later version.
        """
        return cls(Database.look(path, JOB))

    def close(self) -> None:
        """Close the file; what was not committed is lost."""
        self._db.close()

    @property
    def database(self) -> Database:
        """The file itself, for the module that has tables of its own in it (`timeline.py`)."""
        return self._db

    @property
    def run(self) -> int | None:
        """The run that `begin_run` began; None: none yet."""
        return self._run

    # --- what the job is ----------------------------------------------------------------------------------------

    def create(self, identity: Identity, about: About, counts: Mapping[str, int] | None = None) -> None:
        """Write down what the job is, and what was counted in its input. Committed at once."""
        known = {**asdict(identity), **asdict(about), "fingerprint": identity.fingerprint()}
        self._db.write_all("INSERT INTO meta VALUES (?, ?)", ((key, json.dumps(value)) for key, value in known.items()))
        self._db.write_all("INSERT INTO counts VALUES (?, ?)", (counts or {}).items())
        self.commit()

    def meta(self) -> dict[str, Any]:
        """Everything that `create` wrote; empty in a job that was not created yet."""
        if self._db.schema() == 0:
            return {}
        return {key: json.loads(value) for key, value in self._db.query("SELECT key, value FROM meta")}

    def move(self, **paths: str) -> None:
        """Remember new places of the input, the output or the errors. Committed at once."""
        entries = ((json.dumps(path), key) for key, path in paths.items())
        self._db.write_all("UPDATE meta SET value = ? WHERE key = ?", entries)
        self.commit()

    def identity(self) -> Identity | None:
        """What the job is made from; None: it was not created yet."""
        meta = self.meta()
        return Identity(**{key: meta[key] for key in Identity.__dataclass_fields__}) if meta else None

    def about(self) -> About:
        """The rest of what is known from the job's start."""
        meta = self.meta()
        return About(**{key: meta[key] for key in About.__dataclass_fields__})

    # --- runs ---------------------------------------------------------------------------------------------------

    def begin_run(self, started: str, numerics: Mapping[str, str], *, row_exact: bool) -> None:
        """Start to compute: rows claimed from now on belong to this run. Committed at once."""
        values = (started, json.dumps(dict(numerics), sort_keys=True), row_exact)
        self._db.write("INSERT INTO runs (started, numerics, row_exact) VALUES (?, ?, ?)", *values)
        [(self._run,)] = self._db.query("SELECT last_insert_rowid()")
        self.commit()

    def end_run(self, outcome: str) -> None:
        """Let go of the rows that are not finished, which is no crash, and say how the run ended. Committed at once."""
        self._db.write("UPDATE items SET owner = NULL WHERE owner IS NOT NULL")
        self._db.write("UPDATE runs SET outcome = ? WHERE run = ?", outcome, self._run)
        self.commit()

    def runs(self) -> list[Run]:
        """Every run so far, oldest first."""
        found = self._db.query(
            "SELECT run, started, numerics, row_exact, outcome,"
            " (SELECT count(*) FROM results WHERE results.run = runs.run) FROM runs ORDER BY run"
        )
        return [
            Run(run, started, json.loads(signature), bool(ok), end, n) for run, started, signature, ok, end, n in found
        ]

    def answer_numerics(self) -> list[dict[str, str]]:
        """The different numerics under which rows were answered, the latest last."""
        found = self._db.query(
            "SELECT numerics FROM runs WHERE run IN (SELECT run FROM results WHERE code IS NULL)"
            " GROUP BY numerics ORDER BY max(run)"
        )
        return [json.loads(signature) for (signature,) in found]

    def is_row_exact(self) -> bool:
        """Whether every answer so far was computed with the same numerics, and by a run that is row-exact."""
        [(inexact,)] = self._db.query(
            "SELECT count(*) FROM runs WHERE NOT row_exact AND run IN (SELECT run FROM results WHERE code IS NULL)"
        )
        return inexact == 0 and len(self.answer_numerics()) <= 1

    # --- items --------------------------------------------------------------------------------------------------

    def count_crashes(self) -> list[tuple[int, int]]:
        """Count a crash for each row that a dead process had in flight: (row, its crashes now). Committed at once."""
        self._db.write("UPDATE items SET crashes = crashes + 1 WHERE owner IS NOT NULL")
        found = self._db.query("SELECT row, crashes FROM items WHERE owner IS NOT NULL ORDER BY row")
        self._db.write("UPDATE items SET owner = NULL WHERE owner IS NOT NULL")
        self.commit()
        return found

    def states(self, rows: Sequence[int]) -> dict[int, State]:
        """How far rows have come; those that were never seen are left out."""
        marks = ", ".join("?" * len(rows))
        found = self._db.query(
            "SELECT row, attempts, crashes, EXISTS (SELECT 1 FROM results WHERE results.row = items.row) FROM items"
            f" WHERE row IN ({marks})",
            *rows,
        )
        return {row: State(attempts, crashes, bool(is_done)) for row, attempts, crashes, is_done in found}

    def done_rows(self) -> bytearray:
        """A byte for each row up to the last that has a result: 1 where it has one."""
        [(last,)] = self._db.query("SELECT coalesce(max(row), -1) FROM results")
        done = bytearray(last + 1)
        for (row,) in self._db.stream("SELECT row FROM results"):
            done[row] = 1
        return done

    def item(self, row: int) -> Item:
        """A row that was seen."""
        [found] = self._db.query("SELECT row, line, size_bytes, custom_id FROM items WHERE row = ?", row)
        return Item(*found)

    def claim(self, item: Item) -> int | None:
        """Mark a row as in flight: one more attempt, owned by this run.

        Returns:
            None; or the line of the earlier row that has the same custom id, and then nothing is written.
        """
        known = "UPDATE items SET attempts = attempts + 1, owner = ? WHERE row = ?"
        new = (
            "INSERT INTO items (row, line, size_bytes, custom_id, attempts, owner) VALUES (?, ?, ?, ?, 1, ?)"
            " ON CONFLICT (custom_id) DO NOTHING"
        )
        if self._db.write(known, self._run, item.row) or self._db.write(new, *item, self._run):
            return None
        [(line,)] = self._db.query("SELECT line FROM items WHERE custom_id = ?", item.custom_id)
        return int(line)

    def add_refused(self, item: Item) -> None:
        """Note a row that will never run, without a claim on its custom id; its result comes in the same commit."""
        new = "INSERT INTO items (row, line, size_bytes, attempts) VALUES (?, ?, ?, 0) ON CONFLICT (row) DO NOTHING"
        self._db.write(new, *item[:3])

    def finish(self, result: Result) -> None:
        """Record what became of a row, and that it is in flight no more."""
        new = "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        self._db.write(new, *result, self._run, result_hash(result))
        self._db.write("UPDATE items SET owner = NULL WHERE row = ?", result.row)

    def suspects(self) -> list[int]:
        """The rows without a result that were in flight at too many crashes; they run last, alone."""
        found = self._db.query(
            "SELECT row FROM items WHERE crashes > 0 AND crashes >= ? AND row NOT IN (SELECT row FROM results)"
            " ORDER BY row",
            CRASHES_TO_SUSPECT,
        )
        return [row for (row,) in found]

    def in_flight(self) -> list[int]:
        """The rows that a run computes now, or did when it died."""
        return [row for (row,) in self._db.query("SELECT row FROM items WHERE owner IS NOT NULL ORDER BY row")]

    def attempts(self) -> list[tuple[int, int]]:
        """How often rows were started: (attempts, number of rows)."""
        return self._db.query("SELECT attempts, count(*) FROM items GROUP BY attempts ORDER BY attempts")

    def count(self, name: str) -> None:
        """Add one to a named count."""
        self._db.write("INSERT INTO counts VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET number = number + 1", name)

    def counts(self) -> dict[str, int]:
        """All named counts."""
        return dict(self._db.query("SELECT name, number FROM counts ORDER BY name"))

    # --- results ------------------------------------------------------------------------------------------------

    def results(self, start: int = 0) -> Iterator[Result]:
        """The results of rows start, start + 1, ... up to the first that is missing."""
        columns = ", ".join(Result._fields)
        with closing(self._db.stream(f"SELECT {columns} FROM results WHERE row >= ? ORDER BY row", start)) as rows:
            for expected, found in enumerate(rows, start):
                if found[0] != expected:
                    return
                yield Result(*found)

    def totals(self) -> Totals:
        """Sums over all results."""
        [found] = self._db.query(
            "SELECT count(*), count(code), coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0),"
            " coalesce(sum(output_tokens), 0), coalesce(sum(size_bytes), 0) FROM results JOIN items USING (row)"
        )
        return Totals(*found)

    def failures(self) -> dict[str, int]:
        """The number of error rows by code."""
        return dict(
            self._db.query("SELECT code, count(*) FROM results WHERE code IS NOT NULL GROUP BY code ORDER BY code")
        )

    def first_failures(self) -> list[Result]:
        """The first error row of each code."""
        columns = ", ".join(Result._fields)
        first = "SELECT min(row) FROM results WHERE code IS NOT NULL GROUP BY code"
        return [Result(*found) for found in self._db.query(f"SELECT {columns} FROM results WHERE row IN ({first})")]

    def answer_lengths(self) -> list[tuple[int, int]]:
        """How long the answers are: (output tokens, number of rows), the shortest first."""
        return self._db.query(
            "SELECT output_tokens, count(*) FROM results WHERE code IS NULL"
            " GROUP BY output_tokens ORDER BY output_tokens"
        )

    def answers(self) -> Generator[tuple[int, int], None, None]:
        """The rows that were answered, in order, as (row, output tokens); close the iterator where it is left early."""
        return self._db.stream("SELECT row, output_tokens FROM results WHERE code IS NULL ORDER BY row")

    def verify(self) -> Iterator[str]:
        """Re-derive every hash and check every invariant; yields a sentence for each thing that is wrong."""
        try:
            yield from (problem for (problem,) in self._db.query("PRAGMA integrity_check") if problem != "ok")
            if self._db.schema() == 0:
                return  # made, and nothing written yet
            yield from self._verify_identity()
            yield from self._verify_links()
            yield from self._verify_results()
        except StorageFailed as error:
            yield f"the file cannot be read: {error}"

    def _verify_identity(self) -> Iterator[str]:
        identity = self.identity()
        if identity is not None and identity.fingerprint() != self.meta()["fingerprint"]:
            yield f"the fingerprint is {self.meta()['fingerprint']}, but its parts give {identity.fingerprint()}"

    def _verify_links(self) -> Iterator[str]:
        for table, row, target, _ in self._db.query("PRAGMA foreign_key_check"):
            yield f"entry {row} of {table} names an entry of {target} that is not there"
        for (row,) in self._db.query("SELECT row FROM items JOIN results USING (row) WHERE owner IS NOT NULL"):
            yield f"row {row} has a result and is in flight"

    def _verify_results(self) -> Iterator[str]:
        columns = ", ".join(Result._fields)
        for *fields, stored in self._db.stream(f"SELECT {columns}, sha256 FROM results ORDER BY row"):
            result = Result(*fields)
            if result_hash(result) != stored:
                yield f"row {result.row}: the hash of its result is not the one that was stored with it"

    # --- transactions -------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Put everything written so far on the disk; returns when it is there."""
        self._db.commit()

    def rollback(self) -> None:
        """Forget what was written since the last commit."""
        self._db.rollback()


def result_hash(result: Result) -> bytes:
    """SHA-256 over every field of a result."""
    numbers = (result.row, result.code, result.prompt_tokens, result.cached_tokens, result.output_tokens)
    return hashlib.sha256(json.dumps(numbers).encode() + result.output).digest()
