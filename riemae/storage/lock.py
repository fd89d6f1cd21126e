"""One writer at a time: a lock file that names its owner, and that no dead process keeps.

Where the system has POSIX record locks, the lock is one: the kernel drops it when its process ends
in any way, and a forked worker does not inherit it. Elsewhere (Windows, some network file systems)
the file itself is the lock, made with ``O_EXCL``; one whose process no longer runs on this machine
is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from riemae.exceptions import FileError

try:
    import fcntl
except ImportError:  # Windows
    posix: ModuleType | None = None
else:
    posix = fcntl

_TAKEN = (errno.EACCES, errno.EAGAIN)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Record locks belong to processes: threads of one exclude each other here. By whom each is held,
# for errors: a process that reads its own lock file, and so closes it once more, loses the lock.
_HELD: dict[tuple[int, str], str] = {}
_GUARD = threading.Lock()


class Lock:
    """An exclusive lock on the right to write something.

    Args:
        path: Of the lock file; it is there as long as the lock is held.
        where: The call, for errors.
        what: What it guards, for errors.
    """

    def __init__(self, path: Path, where: str, what: str) -> None:
        self.path = path
        self.where = where
        self.what = what
        self._key = (os.getpid(), str(path.absolute()))
        self._handle: int | None = None
        self._held = False

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            FileError: When another process or thread holds it: with process, machine and time.
        """
        with _GUARD:
            # What a parent process holds is not this one's, even if it was forked from it.
            for (_, path), holder in _HELD.items():
                if path == self._key[1]:
                    raise self._taken(holder)
            _HELD[self._key] = _described(json.loads(_signature()))
        try:
            if posix is None or not self._locked_by_kernel(posix):
                self._locked_by_file()
        except BaseException:
            _HELD.pop(self._key, None)
            raise
        self._held = True

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        if not self._held:
            return
        self._held = False
        with contextlib.suppress(OSError):
            self.path.unlink()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        _HELD.pop(self._key, None)

    def _locked_by_kernel(self, system: Any) -> bool:
        """Whether the kernel has granted the lock; False where it has no such locks.

        Raises:
            FileError: When another process holds it.
            OSError: When the file cannot be made.
        """
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            try:
                system.lockf(handle, system.LOCK_EX | system.LOCK_NB)
            except OSError as reason:
                os.close(handle)
                if reason.errno in _TAKEN:
                    raise self._taken() from None
                if reason.errno in _UNSUPPORTED:
                    return False
                raise
            try:
                same = os.path.samestat(os.fstat(handle), os.stat(self.path))
            except FileNotFoundError:
                same = False
            if same:  # else the one before has removed it in this moment
                os.ftruncate(handle, 0)
                os.write(handle, _signature())
                self._handle = handle
                return True
            os.close(handle)

    def _locked_by_file(self) -> None:
        """Make the file, or take that of a process that is gone.

        Raises:
            FileError: When its owner may still be running.
        """
        for _ in range(3):
            try:
                handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                owner = _owner(self.path)
                if owner and (owner["host"] != socket.gethostname() or alive(owner["pid"])):
                    break
                if not owner and self._young():
                    break
                with contextlib.suppress(FileNotFoundError):
                    self.path.unlink()
                continue
            with os.fdopen(handle, "wb") as stream:
                stream.write(_signature())
            return
        raise self._taken()

    def _young(self) -> bool:
        """Whether a file without a signature may belong to a process that is just writing it."""
        try:
            return time.time() - self.path.stat().st_mtime < 10
        except OSError:
            return True

    def _taken(self, holder: str | None = None) -> FileError:
        if holder is None:
            owner = _owner(self.path)
            holder = _described(owner) if owner else "another process"
        return FileError(
            self.where,
            f"{self.what} that nobody else is writing",
            f"one that is being written by {holder}",
            "Wait for it, or choose another name. "
            f"If nobody writes it any more, remove {self.path}.",
        )


def alive(pid: int) -> bool:
    """Whether a process of this machine runs; True where that cannot be known."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _signature() -> bytes:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}).encode()


def _described(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"


def _owner(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes()[:1000])
    except (OSError, ValueError, RecursionError):
        return None
    known = (
        isinstance(found, dict)
        and type(found.get("pid")) is int
        and isinstance(found.get("host"), str)
    )
    return found if known else None
