"""The audit log: what was decided and done in a hospital, an entry a line, each sealed with the hash of the one before.

Whoever changes, removes, reorders or inserts an entry breaks the chain from there on. Entries removed at the end would
leave a whole chain; the anchor (`audit.head`, next to the log) and heads that others have noted tell of them. Somebody
who may write both files can make all of them anew: then only the noted heads tell.

A line is canonical JSON, so that one entry has one text only: {"number", "time_utc", "event", ..., "previous", "hash"}.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from fl_utils.files import write_atomically

#: The head of an empty log.
START = (0, "0" * 64)
#: Entries of the log about itself: after a process was ended in the middle of a line; where entries were missing or changed.
REPAIRED, DAMAGED = "log repaired", "log damaged"
_OWN = {"number", "time_utc", "event", "previous", "hash"}


class AuditLog:
    """Writes entries, in as many processes at once as there are.

    Args:
      path: of the log; its folder is there.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._anchor = self.path.with_suffix(".head")

    def write(self, event: str, **facts) -> dict:
        """Adds an entry, on disk before it returns.

        What an ended process left of a line is cut, which is an entry of its own. So is that entries are missing or were
        changed, and this stays a problem for good.

        Args:
          event: what happened.
          facts: JSON types.
        Returns:
          The entry.
        Raises:
          ValueError: a fact bears the name of an own field, or is no JSON.
          OSError: the disk is full, or the file cannot be written; then what it is about must not be done.
        """
        if wrong := _OWN & set(facts):
            raise ValueError(f"Facts are named {', '.join(sorted(wrong))}; expected other names than {', '.join(sorted(_OWN))}.")
        try:
            canonical(facts)
        except TypeError as error:
            raise ValueError(f"The facts of {event!r} are no JSON ({error}).") from None
        with _locked(self.path, fcntl.LOCK_EX) as file:
            head = self._mended_head(file)
            return self._append(file, head, event, facts)

    def head(self) -> tuple[int, str]:
        """Number and hash of the last entry; `START` for an empty log. Worth noting elsewhere."""
        try:
            with _locked(self.path, fcntl.LOCK_SH) as file:
                return _seal(_tail(file)[0]) or START
        except FileNotFoundError:
            return START

    def _mended_head(self, file: BinaryIO) -> tuple[int, str]:
        """The head that the next entry follows; mends the end of the file, and tells of it."""
        line, rest, end = _tail(file)
        anchor, told = read_anchor(self._anchor), {}
        if not end and anchor is None:
            self._write_anchor(START)  # from now on a log without an anchor is one whose anchor was removed
            _sync_folder(self.path.parent)
            return START
        head = _seal(line) if end > len(rest) else START
        if rest and head and _follows(rest, head):  # only the line's end is missing
            _write_all(file, b"\n")
            line, head = rest, _seal(rest)
            told = {"completed": head[0]}
        elif rest:
            file.truncate(end - len(rest))
            told = {"cut_bytes": len(rest), "cut": rest[:500].decode("utf-8", "replace")}
        if head is None or anchor is None or (anchor != head and not _follows(line, anchor)):
            entries = {_seal(one) for one in _lines(file)} - {None} | {START}
            if head is None or anchor not in entries:
                # The next entry follows the anchor, whose entry is gone: the gap cannot be closed any more.
                facts = {"last_entry": head and head[0], "last_hash": head and head[1], "anchor": anchor and list(anchor)}
                after = (max(one[0] for one in entries | {anchor or START}), (anchor or head or START)[1])
                head = _head_of(self._append(file, after, DAMAGED, facts))
                anchor = head
        if anchor != head:
            told |= {"written_after_anchor": head[0] - anchor[0]}  # by a process that was ended then, or by somebody else
        if told:
            head = _head_of(self._append(file, head, REPAIRED, told))
        return head

    def _append(self, file: BinaryIO, head: tuple[int, str], event: str, facts: dict) -> dict:
        body = {"time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **facts}
        body = json.loads(canonical(body | {"number": head[0] + 1, "previous": head[1]}))  # as who reads it will have it
        entry = body | {"hash": _hash(body)}
        before = file.seek(0, os.SEEK_END)
        try:
            _write_all(file, canonical(entry) + b"\n")
            self._write_anchor(_head_of(entry))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise
        return entry

    def _write_anchor(self, head: tuple[int, str]) -> None:
        def write(file):
            file.write(f"{head[0]}:{head[1]}\n".encode())
            file.flush()
            os.fsync(file.fileno())

        write_atomically(self._anchor, write)


def read_log(path: Path) -> list[dict]:
    """The entries that can be read, in order; `verify_log` names the lines that cannot. None where there is no log."""
    try:
        with _locked(Path(path), fcntl.LOCK_SH) as file:
            return [json.loads(line) for line in _lines(file) if _seal(line)]
    except FileNotFoundError:
        return []


def verify_log(path: Path, known: Sequence[tuple[int, str]] = ()) -> list[str]:
    """What is wrong with a log.

    Args:
      path: of the log; its anchor is looked for next to it.
      known: heads (number, hash) that others noted earlier.
    Returns:
      A sentence a problem; none if entries are as they were written, and none is missing.
    """
    path = Path(path)
    try:
        with _locked(path, fcntl.LOCK_SH) as file:
            lines, rest, anchor = _lines(file), _tail(file)[1], read_anchor(path.with_suffix(".head"))
    except FileNotFoundError:
        return [f"There is no log {path.name}."]
    problems, before, heads = [], START, {START}
    for place, line in enumerate(lines, 1):
        head = _seal(line)
        if head is None:
            problems.append(f"Line {place}: this is no entry, or it was changed: its hash does not fit.")
            before = None
            continue
        entry = json.loads(line)
        if before is not None and head[0] != before[0] + 1:
            problems.append(f"Line {place}: entry {head[0]} follows entry {before[0]}; entries were removed, inserted or moved.")
        elif before is not None and entry["previous"] != before[1]:
            problems.append(f"Line {place}: entry {head[0]} was not written after the entry that stands before it.")
        elif before is None and head[0] != place:
            problems.append(f"Line {place}: here stands entry {head[0]}.")
        if entry["event"] == DAMAGED:
            problems.append(f"Line {place}: entry {head[0]} tells that entries were missing or changed when it was written.")
        before = head
        heads.add(head)
    if rest:
        problems.append(f"At the end {len(rest)} bytes are no whole line: a process was ended while it wrote; the next entry mends it.")
    if anchor is None:
        problems.append(f"{path.with_suffix('.head').name}, which holds the head, is missing or cannot be read.")
    elif anchor in heads and before is not None and before[0] > anchor[0]:
        problems.append(f"Behind entry {anchor[0]}, the anchor's, stand {before[0] - anchor[0]} more: a process was ended while it wrote, "
                        "or they were added; the next entry tells.")
    for owner, one in [("the anchor", anchor)] * (anchor is not None) + [("somebody", tuple(head)) for head in known]:
        if one not in heads:
            problems.append(f"Entry {one[0]} is missing or was changed: {owner} has noted the hash {one[1]}.")
    return problems


def read_anchor(path: Path) -> tuple[int, str] | None:
    """The head that a file `audit.head` holds; None if it is missing or holds none."""
    try:
        number, _, seal = Path(path).read_text().strip().partition(":")
        return (int(number), seal) if len(seal) == 64 else None
    except (OSError, ValueError):
        return None


def canonical(content: dict) -> bytes:
    """JSON with one text for equal contents."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _hash(body: dict) -> str:
    return hashlib.sha256(canonical(body)).hexdigest()


def _head_of(entry: dict) -> tuple[int, str]:
    return entry["number"], entry["hash"]


def _seal(line: bytes) -> tuple[int, str] | None:
    """Number and hash of a line that is an entry as it was written; None for any other."""
    try:
        entry = json.loads(line)
        if entry.keys() >= _OWN and type(entry["number"]) is int and canonical(entry) == line:
            return _head_of(entry) if _hash({k: v for k, v in entry.items() if k != "hash"}) == entry["hash"] else None
    except (ValueError, AttributeError, TypeError, RecursionError):
        pass
    return None


def _follows(line: bytes, head: tuple[int, str]) -> bool:
    """Whether an entry's line was written right after that head."""
    entry = json.loads(line) if _seal(line) else {}
    return (entry.get("number"), entry.get("previous")) == (head[0] + 1, head[1])


def _lines(file: BinaryIO) -> list[bytes]:
    file.seek(0)
    return file.read().split(b"\n")[:-1]


def _tail(file: BinaryIO) -> tuple[bytes, bytes, int]:
    """The last whole line, what stands behind it, and the length of the file."""
    end, size = file.seek(0, os.SEEK_END), 1 << 16
    while True:
        start = file.seek(max(0, end - size))
        whole, newline, rest = file.read(end - start).rpartition(b"\n")
        if not start or (newline and b"\n" in whole):
            return whole.rpartition(b"\n")[2], rest, end
        size *= 8


def _write_all(file: BinaryIO, content: bytes) -> None:
    file.seek(0, os.SEEK_END)
    while content:
        content = content[file.write(content) :]
    os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[BinaryIO]:
    """The file, unbuffered, with its lock; made if it is to be written."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT if kind == fcntl.LOCK_EX else os.O_RDONLY
    with os.fdopen(os.open(path, flags, 0o600), "r+b" if kind == fcntl.LOCK_EX else "rb", buffering=0) as file:
        fcntl.flock(file, kind)
        yield file


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
