"""Files that appear whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import IO

from riemae.storage.digests import PIECE


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step.

    Readers, also after a crash, see the old or the new file. A link at ``path`` is replaced, not
    followed. After return the content is on disk, as far as the system tells.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        handle = os.open(
            part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
        )
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets directories be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def allocate(stream: IO[bytes], size: int) -> None:
    """Append ``size`` zeros that really have room on the disk.

    Raises:
        OSError: When there is none.
    """
    stream.flush()
    start = stream.tell()
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(stream.fileno(), start, size)
        except OSError as reason:
            if reason.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        else:
            return
    zeros = bytes(min(size, PIECE))
    while (left := start + size - stream.tell()) > 0:
        stream.write(zeros[:left])
    stream.flush()
    os.fsync(stream.fileno())
