"""Several processes that share one folder of blocks: each takes what no other has in hand.

A claim is a lock file next to the blocks. The system drops it when its process ends in any way, so
that what a dead process had in hand is taken by another. Nobody waits for a process that does not
come: one alone does everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from riemae.exceptions import FileError
from riemae.storage.lock import Lock


def several() -> bool:
    """Whether this is one of several processes of ``torch.distributed``, as under torchrun."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return there and torch.distributed.get_world_size() > 1


class Claims:
    """What this process has in hand.

    Args:
        folder: Of the blocks.
        where: The call, for errors.
    """

    def __init__(self, folder: Path, where: str) -> None:
        self.folder = folder
        self.where = where
        self._held: dict[int, Lock] = {}

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        for block in list(self._held):
            self.release(block)

    def of(self, blocks: Iterable[tuple[int, Path]], over: Callable[[], bool]) -> Iterator[int]:
        """Blocks that are neither finished nor in another's hand, claimed as they are taken.

        Args:
            blocks: Their numbers and files.
            over: Whether the result is there, and the blocks are being removed.
        """
        for block, path in blocks:
            beside = self.folder / f".{block:08d}.lock"
            lock = Lock(beside, self.where, f"block {block}")
            try:
                lock.acquire()
            except FileError:
                continue
            except FileNotFoundError:  # another has finished everything, and removed the folder
                return
            self._held[block] = lock
            if path.exists() or over():  # finished a moment ago
                self.release(block)
            else:
                yield block

    def release(self, block: int) -> None:
        """A block that is finished, or given up."""
        self._held.pop(block).release()
