"""The database of a hospital's owner: every change is whole, durable, alone at its time, and told in the audit log."""

import contextlib
import fcntl
import json
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from fl_utils.deployment.nvflare.audit import AuditLog, read_log, verify_log
from fl_utils.deployment.nvflare.settings import AUDIT, DATABASE, ConsortiumError

_VERSION = 1
_PATIENCE_S = 60
_TABLES = """
CREATE TABLE accounts (name TEXT PRIMARY KEY, password TEXT NOT NULL, role TEXT NOT NULL, expires_utc TEXT NOT NULL);
CREATE TABLE tries (name TEXT PRIMARY KEY, wrong INTEGER NOT NULL, locked_until REAL NOT NULL);
CREATE TABLE revoked (name TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE newest (what TEXT PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE datasets (name TEXT PRIMARY KEY, published INTEGER NOT NULL, rules TEXT NOT NULL);
CREATE TABLE grants (dataset TEXT, role TEXT, action TEXT, PRIMARY KEY (dataset, role, action));
CREATE TABLE requests (
  hash TEXT, person TEXT, role TEXT NOT NULL, dataset TEXT NOT NULL, content BLOB NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
  decided_by TEXT NOT NULL, received_utc TEXT NOT NULL, decided_utc TEXT NOT NULL, decision INTEGER NOT NULL, PRIMARY KEY (hash, person));
CREATE TABLE runs (
  run_id TEXT PRIMARY KEY, hash TEXT NOT NULL, dataset TEXT NOT NULL, person TEXT NOT NULL, state TEXT NOT NULL,
  started_utc TEXT NOT NULL, ended_utc TEXT NOT NULL, facts TEXT NOT NULL);
CREATE TABLE charges (
  number INTEGER PRIMARY KEY AUTOINCREMENT, dataset TEXT NOT NULL, run_id TEXT NOT NULL, round_num INTEGER NOT NULL,
  noise_multiplier REAL NOT NULL, terms TEXT NOT NULL, epsilon REAL NOT NULL, delta REAL NOT NULL, time_utc TEXT NOT NULL);
CREATE TABLE untold (change INTEGER PRIMARY KEY AUTOINCREMENT, after INTEGER NOT NULL, event TEXT NOT NULL, facts TEXT NOT NULL);
"""
Tell = Callable[..., None]


class Database:
    """SQLite in a hospital's folder, and the log next to it.

    A change and what the log is to say of it are committed together; then the log is written. Where a process is ended
    in between, the next change, or the next process that opens the store, writes what is missing. Entries of a change
    bear its number, "change".

    Args:
      folder: of the hospital; made if need be.
    Attributes:
      log: for what is no change of the store.
    Raises:
      ConsortiumError: the database cannot be opened, is of another format, or is older than the log.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / DATABASE
        self.log = AuditLog(self.folder / AUDIT)
        told = self._changes_told()
        self._create()
        if problem := self._older_than(told):
            raise ConsortiumError(problem)
        self._write_untold()

    def problems(self) -> list[str]:
        """What is wrong with the log, and whether the database is older than it; none if all is well."""
        told = self._changes_told()
        older = self._older_than(told)
        return verify_log(self.log.path) + ([older] if older else [])

    def _changes_told(self) -> int:
        return max((entry["change"] for entry in read_log(self.log.path) if isinstance(entry.get("change"), int)), default=0)

    def _older_than(self, told: int) -> str:
        last = self._rows("SELECT seq FROM sqlite_sequence WHERE name = 'untold'")
        number = last[0]["seq"] if last else 0
        return "" if number >= told else (
            f"{DATABASE} knows of {number} changes, and {AUDIT} tells of {told}: the database was put back from an older copy, or made "
            "anew, and would forget what was decided and spent. Put the newest one back; if there is none, set up a new folder, and "
            "publish there with what the log says is left of each budget."
        )

    def _create(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.mknod(self._path, stat.S_IFREG | 0o600)  # the files next to it get the same mode
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # SQLite has no patience with two that change the journal's mode at once
            with self._connected() as db:
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version not in (0, _VERSION):
                    raise ConsortiumError(
                        f"{self._path} is of format {version}, expected {_VERSION}: it is of another version of this suite."
                    )
                if not version:
                    db.execute("PRAGMA journal_mode = WAL")
                    db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;")
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, so that threads and processes need not know of each other."""
        try:
            db = sqlite3.connect(self._path.as_uri() + "?mode=rw", uri=True, timeout=_PATIENCE_S, isolation_level=None)
            try:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA synchronous = FULL")
                yield db
            finally:
                db.close()
        except sqlite3.Error as error:
            raise ConsortiumError(f"{self._path} cannot be read or written ({error}); so nothing was changed.") from error

    def _rows(self, query: str, *values) -> list[sqlite3.Row]:
        with self._connected() as db:
            return db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _change(self) -> Iterator[tuple[sqlite3.Connection, Tell]]:
        """A change: nobody else changes anything meanwhile, and an error leaves all as it was.

        Yields:
          The connection, and `tell(event, **facts)` for the log.
        """
        with self._connected() as db:
            db.execute("BEGIN IMMEDIATE")

            def tell(event: str, **facts) -> None:
                row = (self.log.head()[0], event, json.dumps(facts, allow_nan=False))
                db.execute("INSERT INTO untold (after, event, facts) VALUES (?, ?, ?)", row)

            try:
                yield db, tell
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        self._write_untold()

    def _write_untold(self) -> None:
        if not self._rows("SELECT 1 FROM untold LIMIT 1"):
            return
        with self._connected() as db:
            db.execute("BEGIN IMMEDIATE")
            for row in db.execute("SELECT * FROM untold ORDER BY change").fetchall():
                # Whoever was ended after writing an entry could not say so here.
                later = read_log(self.log.path) if self.log.head()[0] > row["after"] else []
                if not any(entry.get("change") == row["change"] for entry in later):
                    try:
                        self.log.write(row["event"], change=row["change"], **json.loads(row["facts"]))
                    except OSError as error:
                        raise ConsortiumError(
                            f"{self.log.path} cannot be written ({error.strerror}). What was changed is told with the next change."
                        ) from error
            db.execute("DELETE FROM untold")
            db.execute("COMMIT")


def utc_now() -> datetime:
    return datetime.now(UTC)


def time_text(moment: datetime) -> str:
    """As times stand in the database and the log; `datetime.fromisoformat` reads it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
