"""`AnswerCache`: answers that outlive their job, in a folder that several processes may use at once.

Owns what an answer depends on (the key), how it is stored and checked, and what is given up when room is short. Off
unless it was asked for. A cache is never the truth: an entry counts only while its digest fits, and whatever happens to
the folder (damage, a full disk, a process killed anywhere) the answers of a job are the same, only computed again.
One idea: what is worth most stays. The worth of an entry is age + uses x cost / size, where age is the worth of
the last one that was given up (Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency", 1998).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from penstock.errors import JobMismatch, StorageFailed
from penstock.jobs.database import Database, Kind, is_damage
from penstock.request import Answer, Completion, FinishReason, Request, TokenLogprob

FILE = "answers.sqlite"
DEFAULT_BYTES, SMALLEST_BYTES = 2**30, 2**20
PENDING = 64  # changes kept in memory until they are written together: no process holds the file for long
MIGRATIONS = (
    """
    CREATE TABLE entries (  -- `sha256`: of key and answer; `cost`: tokens computed
        key BLOB PRIMARY KEY, answer BLOB NOT NULL, sha256 BLOB NOT NULL,
        cost INTEGER NOT NULL, uses INTEGER NOT NULL, worth REAL NOT NULL
    );
    CREATE INDEX entries_worth ON entries (worth);
    CREATE TABLE age (one INTEGER PRIMARY KEY CHECK (one = 1), worth REAL NOT NULL);
    INSERT INTO age VALUES (1, 0.0);
    """,
)
CACHE = Kind("cache", 0x50454E43, MIGRATIONS)  # "PENC"
PUT = """
    INSERT INTO entries VALUES (?1, ?2, ?3, ?4, 1, (SELECT worth FROM age) + 1.0 * ?4 / length(?2))
    ON CONFLICT (key) DO UPDATE SET answer = excluded.answer, sha256 = excluded.sha256, cost = excluded.cost,
    uses = uses + 1, worth = (SELECT worth FROM age) + 1.0 * (uses + 1) * excluded.cost / length(excluded.answer)
"""
USE = """
    UPDATE entries SET uses = uses + ?2, worth = (SELECT worth FROM age) + 1.0 * (uses + ?2) * cost / length(answer)
    WHERE key = ?1
"""


class Scope(NamedTuple):
    """What an answer depends on beside its request: the model, the numerics, the versions of defaults and output."""

    model: str
    numerics: Mapping[str, str]
    versions: tuple[int, ...]


class CacheStats(NamedTuple):
    """Counts since it was opened. `damaged` entries were dropped; `entries` and `used_bytes` are those of the file."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    evicted: int = 0
    entries: int = 0
    used_bytes: int = 0


class _Put(NamedTuple):
    """An answer that is not written yet."""

    answer: bytes
    cost: int


class AnswerCache:
    """Answers by key. States: open; read only (a write failed); off (it cannot be read, or was not asked for)."""

    def __init__(
        self, database: Database | None, *, limit_bytes: int, scope: Scope | None, tell: Callable[[str], None]
    ) -> None:
        self._database = database
        self._limit_bytes = limit_bytes
        self._scope = b"" if scope is None else json.dumps(scope, sort_keys=True).encode()
        self._tell = tell
        self._can_write = True
        self._puts: dict[bytes, _Put] = {}
        self._uses: dict[bytes, int] = {}
        self._counts = CacheStats()

    @classmethod
    def open(cls, folder: Path, *, limit_bytes: int, scope: Scope, tell: Callable[[str], None]) -> AnswerCache:
        """Open the cache in a folder, or make it. Never fails: `tell` is called with what goes wrong, and it is off."""
        database: Database | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                database = _opened(folder / FILE, tell)
        except (OSError, StorageFailed, JobMismatch) as error:
            tell(f"the cache {folder} cannot be used, so every row is computed: {error}")
        cache = cls(database, limit_bytes=limit_bytes, scope=scope, tell=tell)
        cache._shrink()
        return cache

    @classmethod
    def off(cls) -> AnswerCache:
        """No cache: knows nothing and keeps nothing."""
        return cls(None, limit_bytes=0, scope=None, tell=lambda _: None)

    @property
    def is_on(self) -> bool:
        """Whether anything can be found in it."""
        return self._database is not None

    def key(self, request: Request) -> bytes | None:
        """What a request's answer is kept under; None: it is not kept."""
        if self._database is None or not request.is_repeatable:
            return None
        return hashlib.sha256(self._scope + request.fingerprint().encode()).digest()

    def get(self, key: bytes | None) -> Answer | None:
        """The answer kept under a key, whole; it counts as one more use of it."""
        if key is None or self._database is None:
            return None
        blob = self._puts[key].answer if key in self._puts else self._read(key)
        answer = None if blob is None else _decoded(blob)
        if answer is None:
            self._count(misses=1)
            return None
        self._count(hits=1)
        self._uses[key] = self._uses.get(key, 0) + 1
        self._save_some()
        return answer

    def put(self, key: bytes | None, answer: Answer) -> None:
        """Keep an answer; on disk some time later. It cost the tokens that were computed for it."""
        if key is not None and self._database is not None and self._can_write:
            cost_tokens = answer.prompt_tokens - answer.cached_tokens + answer.output_tokens
            self._puts[key] = _Put(_encoded(answer), max(1, cost_tokens))
            self._save_some()

    def stats(self) -> CacheStats:
        """What it did and what it holds (what is not written yet left out)."""
        if self._database is None:
            return self._counts
        try:
            [(entries,)] = self._database.query("SELECT count(*) FROM entries")
            return self._counts._replace(entries=entries, used_bytes=self._used_bytes(self._database))
        except StorageFailed:
            return self._counts

    def close(self) -> None:
        """Write what is not written yet, and close the file."""
        self.save()
        if self._counts.damaged > 1:
            self._tell(f"{self._counts.damaged} damaged entries were dropped from the cache")
        if self._database is not None:
            self._database.close()
            self._database = None

    # --- reading ------------------------------------------------------------------------------------------------

    def _read(self, key: bytes) -> bytes | None:
        assert self._database is not None
        try:
            found = self._database.query("SELECT answer, sha256 FROM entries WHERE key = ?", key)
        except StorageFailed as error:
            self._give_up("it cannot be read any more, so the rest is computed", error)
            return None
        if not found:
            return None
        blob, digest = found[0]
        if isinstance(blob, bytes) and digest == _digest(key, blob):
            return blob
        if not self._counts.damaged:
            self._tell(f"the cache {self._database.path} has damaged entries; their rows are computed again")
        self._count(damaged=1)
        self._write("a damaged entry cannot be dropped", lambda database: _drop(database, key))
        return None

    def _count(self, **more: int) -> None:
        self._counts = self._counts._replace(**{name: getattr(self._counts, name) + n for name, n in more.items()})

    def _give_up(self, what: str, error: StorageFailed) -> None:
        """Go on without the cache; a damaged file is removed, so that the next process starts one anew."""
        database, self._database = self._database, None
        assert database is not None
        self._tell(f"the cache {database.path}: {what}: {error.__cause__ or error}")
        self._puts.clear()
        database.close()
        if is_damage(error):
            with suppress(OSError), _alone(database.path.parent):
                _remove(database.path)

    # --- writing ------------------------------------------------------------------------------------------------

    def _save_some(self) -> None:
        if len(self._puts) + len(self._uses) >= PENDING:
            self.save()

    def save(self) -> None:
        """Write what is not written yet, in one short transaction, and give up what there is no room for."""
        if not self._puts and not self._uses:
            return
        puts, uses = self._puts, self._uses
        self._puts, self._uses = {}, {}
        self._write("answers cannot be kept any more", lambda database: self._save(database, puts, uses))

    def _save(self, database: Database, puts: Mapping[bytes, _Put], uses: Mapping[bytes, int]) -> None:
        entries = ((key, put.answer, _digest(key, put.answer), put.cost) for key, put in puts.items())
        database.write_all(PUT, entries)
        database.write_all(USE, uses.items())
        self._evict(database)

    def _evict(self, database: Database) -> None:
        """Give up what is worth least until the rest has room."""
        while (over := self._used_bytes(database) - self._limit_bytes) > 0:
            least = "SELECT key, length(answer) + 64, worth FROM entries ORDER BY worth LIMIT 256"
            victims: list[tuple[bytes, int, float]] = []
            for entry in database.query(least):
                victims.append(entry)
                over -= entry[1]
                if over <= 0:
                    break
            if not victims:
                return
            database.write_all("DELETE FROM entries WHERE key = ?", [(key,) for key, _, _ in victims])
            database.write("UPDATE age SET worth = max(worth, ?)", victims[-1][2])
            self._count(evicted=len(victims))

    def _shrink(self) -> None:
        """Bring a file that was allowed to be larger down to the limit."""
        database = self._database
        if database is None or database.path.stat().st_size <= self._limit_bytes:
            return
        self._write("it cannot be made smaller", self._evict)
        if self._database is not None and self._can_write:
            self._attempt("it cannot be made smaller", lambda: database.query("VACUUM"))

    def _used_bytes(self, database: Database) -> int:
        [(pages,)] = database.query("PRAGMA page_count")
        [(free,)] = database.query("PRAGMA freelist_count")
        [(size,)] = database.query("PRAGMA page_size")
        return int((pages - free) * size)

    def _write(self, failure: str, change: Callable[[Database], None]) -> None:
        """Make a change in a transaction of its own; where that fails, no more is written."""
        database = self._database
        if database is None or not self._can_write:
            return

        def whole() -> None:
            change(database)
            database.commit()

        self._attempt(failure, whole)

    def _attempt(self, failure: str, action: Callable[[], object]) -> None:
        assert self._database is not None
        try:
            action()
        except StorageFailed as error:
            self._can_write = False
            if is_damage(error):
                self._give_up(failure, error)
                return
            self._tell(f"the cache {self._database.path}: {failure}: {error.__cause__ or error}")
            self._database.rollback()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process opens or removes the file meanwhile; those that have it open may work on."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _opened(path: Path, tell: Callable[[str], None]) -> Database:
    """The cache's file; one that is damaged is made anew."""
    try:
        return _checked(path)
    except (StorageFailed, JobMismatch) as error:
        if not is_damage(error):
            raise
    tell(f"the cache {path} was damaged; it starts anew")
    _remove(path)
    return _checked(path)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)


def _checked(path: Path) -> Database:
    database = Database.open(path, CACHE, safety="NORMAL")
    try:
        database.query("SELECT worth FROM age")
        database.query("SELECT key, worth FROM entries ORDER BY worth LIMIT 1")
    except StorageFailed:
        database.close()
        raise
    return database


def _drop(database: Database, key: bytes) -> None:
    database.write("DELETE FROM entries WHERE key = ?", key)


# --- an answer as bytes -----------------------------------------------------------------------------------------


def _digest(key: bytes, blob: bytes) -> bytes:
    return hashlib.sha256(key + blob).digest()


def _encoded(answer: Answer) -> bytes:
    completions = [(c.index, c.token_ids, c.text, c.finish_reason, c.logprobs) for c in answer.completions]
    return json.dumps([answer.prompt_tokens, completions], separators=(",", ":")).encode()


def _decoded(blob: bytes) -> Answer:
    """The answer that was encoded, every token of its prompt counted as not computed."""
    prompt_tokens, completions = json.loads(blob)
    return Answer(tuple(_completion(*parts) for parts in completions), prompt_tokens, prompt_tokens)


def _completion(index: int, tokens: list[int], text: str, reason: str, logprobs: list[Any] | None) -> Completion:
    entries = None if logprobs is None else tuple(_logprob(*entry) for entry in logprobs)
    return Completion(index, tuple(tokens), text, FinishReason(reason), entries)


def _logprob(token: int, logprob: float, top: list[list[Any]]) -> TokenLogprob:
    return TokenLogprob(token, logprob, tuple((other, value) for other, value in top))
