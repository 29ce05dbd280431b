"""`Database`: one SQLite file of ours, whatever is in it.

Owns how such a file is opened, brought up to date by numbered migrations and written, and turns SQLite's failures into
ours; the only module that imports SQLite. What the tables mean is known to the modules that name them.
One idea: writes gather in one transaction until `commit`, which returns when they are as safe as the file was asked to
be: with `FULL` they are on the disk; with `NORMAL` the last of them may be lost with the power, but nothing is damaged.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from penstock.errors import JobMismatch, StorageFailed


class Kind(NamedTuple):
    """What a file is: its name for people, the mark in its header, and the scripts that lead to its newest schema."""

    name: str
    application_id: int
    migrations: tuple[str, ...]


class Database:
    """An open file. Every failure of SQLite leaves it as `StorageFailed`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, kind: Kind) -> None:
        self.path = path
        self._connection = connection
        self._kind = kind

    @classmethod
    def open(cls, path: Path, kind: Kind, *, safety: Literal["FULL", "NORMAL"] = "FULL") -> Database:
        """Open a file for writing, or make it, and bring its schema up to date.

        Raises:
            JobMismatch: the file is something else, or of a later version.
        """
        database = cls(path, _connected(kind, path, str(path.absolute()), timeout_s=30), kind)
        try:
            database._check_kind()
            database.query("PRAGMA journal_mode=WAL")
            database.query(f"PRAGMA synchronous={safety}")
            database._migrate()
        except BaseException:
            database.close()
            raise
        return database

    @classmethod
    def look(cls, path: Path, kind: Kind) -> Database:
        """Open a file to read it, whether a process writes to it or not.

        Raises:
            JobMismatch: there is none, or it is something else, or of a later version.
        """
        if not path.is_file():
            raise JobMismatch(f"there is no {kind.name} {path}")
        uri = f"{path.absolute().as_uri()}?mode=ro"
        database = cls(path, _connected(kind, path, uri, timeout_s=5), kind)
        try:
            database._check_kind()
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Close the file; what was not committed is lost."""
        self._connection.close()

    def query(self, sql: str, *values: object) -> list[Any]:
        """All that a statement gives."""
        with self._our_errors():
            return self._connection.execute(sql, values).fetchall()

    def stream(self, sql: str, *values: object) -> Generator[Any, None, None]:
        """What a statement gives, one by one; close the iterator where it is left early."""
        with self._our_errors():
            cursor = self._connection.execute(sql, values)
            try:
                yield from cursor
            finally:
                cursor.close()  # an open read would keep the log from being folded into the file

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All that is read inside is of one moment."""
        with self._our_errors():
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self.rollback()

    def write(self, sql: str, *values: object) -> int:
        """Run a statement in the transaction; the number of entries that it changed."""
        with self.writing():
            return self._connection.execute(sql, values).rowcount

    def write_all(self, sql: str, entries: Iterable[Sequence[object]]) -> None:
        """Run a statement for each entry in the transaction."""
        with self.writing():
            self._connection.executemany(sql, entries)

    def commit(self) -> None:
        """Put everything written so far on the disk; returns when it is there."""
        with self.writing():
            self._connection.execute("COMMIT")

    def rollback(self) -> None:
        """Forget what was written since the last commit."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside a transaction (which starts here if none is open), with SQLite's failures as ours."""
        with self._our_errors():
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
            yield

    def schema(self) -> int:
        """How many migrations the file has seen; 0: it was only just made."""
        [(version,)] = self.query("PRAGMA user_version")
        return int(version)

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise _storage_failed(self._kind, self.path, error) from error

    def _check_kind(self) -> None:
        """Refuse a file that is not of a version we know; an empty file is one to be."""
        name = self._kind.name
        try:
            # In this order: another process may be making the file, which gets its objects and its mark at once.
            [(objects,)] = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
            [(mark,)] = self._connection.execute("PRAGMA application_id").fetchall()
        except sqlite3.DatabaseError as error:
            raise JobMismatch(f"{self.path} is no {name} of Penstock, or is damaged: {error}") from error
        if mark != self._kind.application_id and objects:
            raise JobMismatch(f"{self.path} is a database, but no {name} of Penstock; choose another --{name}")
        if self.schema() > len(self._kind.migrations):
            raise JobMismatch(
                f"the {name} {self.path} has schema {self.schema()} and this Penstock knows "
                f"{len(self._kind.migrations)}; use a newer Penstock"
            )

    def _migrate(self) -> None:
        for version, script in enumerate(self._kind.migrations, 1):
            if self.schema() < version:
                self._apply(version, script)

    def _apply(self, version: int, script: str) -> None:
        with self.writing():
            if self.schema() < version:  # else another process was first
                for statement in _statements(script):
                    self.write(statement)
                self.write(f"PRAGMA user_version={version}")
                self.write(f"PRAGMA application_id={self._kind.application_id}")
        self.commit()


def is_damage(error: BaseException) -> bool:
    """Whether what failed is a file whose bytes are no database (any more)."""
    name = getattr(error.__cause__, "sqlite_errorname", "")
    return name == "SQLITE_NOTADB" or name.startswith("SQLITE_CORRUPT")


def _connected(kind: Kind, path: Path, name: str, *, timeout_s: int) -> sqlite3.Connection:
    try:
        return sqlite3.connect(name, uri=name.startswith("file:"), isolation_level=None, timeout=timeout_s)
    except sqlite3.DatabaseError as error:
        raise _storage_failed(kind, path, error) from error


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one, since `executescript` would commit before it starts."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _storage_failed(kind: Kind, path: Path, error: sqlite3.DatabaseError) -> StorageFailed:
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StorageFailed(
        f"writing or reading the {kind.name} {path} failed: {error} ({name}); what was committed is kept: "
        "make room or mend the disk, then run the same command again"
    )
