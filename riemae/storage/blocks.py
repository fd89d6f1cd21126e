"""A large result on disk, written block by block: a killed run loses no finished block.

While a run lasts, ``PATH.blocks/`` holds one safetensors file per block and ``run.json``, which
says which run they belong to. A complete result is ``PATH`` in numpy's format with its description
in ``PATH.json``. Every file is written under another name and renamed when it is whole and on the
disk; nothing is ever pickled. The process that writes holds ``PATH.lock``. The processes of a
``torch.distributed`` group share the folder: each computes some blocks, and the first that is
through holds ``PATH.lock`` while it writes the result. A full disk raises an error; what is
finished stays.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import CheckpointError, FileError
from riemae.storage.atomic import allocate, sync_folder, write_atomically
from riemae.storage.claims import Claims, several
from riemae.storage.digests import digest, file_digest
from riemae.storage.lock import Lock
from riemae.storage.runs import agreed, as_json, check_array, check_failures, refuse

Result = TypeVar("Result")
Folder = TypeVar("Folder", bound="BlockFolder")
# Of the numbers of missing blocks: numbers and tensors of the blocks, as they finish.
Compute = Callable[[Iterator[int]], Iterable[tuple[int, Mapping[str, Tensor]]]]

# Seconds until a process looks again what the others have finished.
_PAUSE = 0.05

# What file managers and network file systems leave in folders.
_STRAYS = ("Thumbs.db", "desktop.ini", "Icon\r")
# What the label of a block says, and what another value would mean.
_LABEL = {"run": "a block of this run", "block": "this block", "sha256": "unchanged contents"}


@dataclass
class BlockFolder:
    """The finished blocks of one run, found or begun.

    As a context, it gives the right to write back at the end.

    Attributes:
        path: Of the result, next to which the blocks lie.
        description: What the result is of: plain JSON; ``dtype`` is that of its numbers.
        probe: Numbers that the same space reproduces up to rounding.
        where: The call, for errors.
        shared: Whether several processes work on it together.
    """

    path: Path
    description: dict[str, Any]
    probe: list[float]
    where: str = "distance_matrix"
    shared: bool = field(default_factory=several, kw_only=True)
    _lock: Lock | None = field(default=None, kw_only=True)

    def begin(self) -> None:
        """Take the right to write, and find what an earlier call left, or make a folder.

        Raises:
            FileError: When another process writes, or what lies there is of another run, or
                damaged.
        """
        if not self.shared:
            self._acquire()
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self: Folder) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """The right to write the result, which one of several processes has at a time.

        Raises:
            FileError: When the disk refuses.
        """
        if not self.shared:
            yield
            return
        while self._lock is None:
            try:
                self._acquire()
            except FileError as reason:
                if reason.__cause__ is not None:  # the disk refuses; else another has the lock
                    raise
                time.sleep(_PAUSE)
        try:
            yield
        finally:
            self.__exit__()

    def _acquire(self) -> None:
        with self._on_disk():
            beside = self.path.with_name(self.path.name + ".lock")
            lock = Lock(beside, self.where, f"out={str(self.path)!r}")
            lock.acquire()
        self._lock = lock

    def _begin(self) -> None:
        """Find the blocks of an unfinished run, or make a folder for them.

        Raises:
            FileError: When they are of another run.
        """
        if self._blocks.is_dir() and any(not _is_stray(entry) for entry in self._blocks.iterdir()):
            self._agreed(self._run, "the description of an unfinished run")
            return
        about = {**self.description, "probe": self.probe}
        with self._on_disk():
            self._blocks.mkdir(exist_ok=True)
            write_atomically(self._run, as_json(about))

    def _agreed(self, path: Path, what: str) -> dict[str, Any]:
        return agreed(self.where, path, what, self.description, self.probe)

    # A result that is a folder of its own.

    def result(self, load: Callable[[Path], Result]) -> Result | None:
        """The result that :meth:`keep` left; None where there is none.

        Raises:
            FileError: When something else lies at ``path``.
        """
        if not self.path.exists() and not self._about.exists():
            return None
        if self.path.is_dir() and not self._about.exists() and self._run.exists():
            # Killed between the two: the blocks are still there, and of this run.
            self._agreed(self._run, "the description of an unfinished run")
            return None
        if not self.path.exists() or not self._about.exists():
            got = "one without the other"
            refuse(self.where, self.path, f"a result described by {self._about.name}", got)
        self._agreed(self._about, "the description of a result")
        try:
            found = load(self.path)
        except CheckpointError as reason:
            refuse(self.where, self.path, "a whole result", str(reason), reason)
        self.drop()
        return found

    def keep(self, save: Callable[[Path], object]) -> None:
        """Write the result, with its description last, and drop the blocks.

        Of several processes the first does it, and the others wait for it.
        """
        about = {**self.description, "probe": self.probe}
        with self.finishing(), self._on_disk():
            if not (self.shared and self._about.exists()):
                save(self.path)
                write_atomically(self._about, as_json(about))
            self.drop()

    # Blocks.

    def finished(self, count: int | None = None) -> set[int]:
        """Numbers of the blocks that are on disk, of ``count`` where that is known.

        Raises:
            FileError: When the folder holds a file that is none of them.
        """
        numbers = set()
        with self._on_disk():
            entries = list(self._blocks.iterdir())
        for entry in entries:
            if _is_stray(entry) or entry == self._run:
                continue
            numbered = entry.suffix == ".safetensors" and entry.stem.isdecimal()
            if not numbered or (count is not None and int(entry.stem) >= count):
                wanted = "blocks of a run"
                if count is not None:
                    wanted = f"blocks 0 to {count - 1} of a run"
                refuse(self.where, entry, wanted, f"a file named {entry.name!r}")
            numbers.add(int(entry.stem))
        return numbers

    def write(self, block: int, tensors: Mapping[str, Tensor]) -> None:
        """Store a block, in one file."""
        from safetensors.torch import save

        parts = {name: x.contiguous() for name, x in tensors.items()}
        label = self._label(block, parts)
        with self._on_disk():
            write_atomically(self._block(block), save(parts, label))

    def read(
        self, block: int, expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    ) -> dict[str, Tensor]:
        """A stored block.

        Args:
            block: Its number.
            expected: Shape and dtype of each tensor; −1 stands for any length.

        Raises:
            FileError: When the file is cut short, changed, or of another run.
        """
        from safetensors import SafetensorError, safe_open

        path = self._block(block)
        try:
            with safe_open(path, "pt") as stored:
                label = stored.metadata() or {}
                parts = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, ValueError) as reason:
            refuse(self.where, path, "a whole safetensors file", str(reason), reason)
        wanted = {name: [*shape, dtype] for name, (shape, dtype) in expected.items()}
        got = {name: [*x.shape, x.dtype] for name, x in parts.items()}
        if not _fit(got, wanted):
            refuse(self.where, path, f"tensors {wanted}", str(got))
        correct = self._label(block, parts)
        for key, what in _LABEL.items():
            if label.get(key) != correct[key]:
                refuse(self.where, path, f"{what} ({key} {correct[key]})", str(label.get(key)))
        return parts

    def once(
        self,
        block: int,
        make: Callable[[], Mapping[str, Tensor]],
        expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    ) -> dict[str, Tensor]:
        """A block that is made where it is not there yet, and then read.

        Args:
            block: Its number.
            make: Gives its tensors.
            expected: As in :meth:`read`.
        """
        for _ in self.all([block], lambda missing: ((number, make()) for number in missing)):
            pass
        return self.read(block, expected)

    def all(self, blocks: list[int], compute: Compute) -> Iterator[int]:
        """Numbers of blocks, once they are on the disk: found there, computed, or another's.

        Where several processes share the folder, each computes what no other has in hand, or what
        one that died had.

        Args:
            blocks: Their numbers.
            compute: Gives numbers and tensors of missing blocks, whose numbers it takes one by one.
        """
        while True:
            if self.shared and self._over():
                refuse(self.where, self._blocks, "blocks of a run", "those of one that is over")
            finished = self.finished()
            yield from (block for block in blocks if block in finished)
            missing = [block for block in blocks if block not in finished]
            computed = set()
            with Claims(self._blocks, self.where) as claims:
                mine = iter(missing)
                if self.shared:
                    files = ((block, self._block(block)) for block in missing)
                    mine = claims.of(files, self._over)
                for block, tensors in compute(mine):
                    self.write(block, tensors)
                    if self.shared:
                        claims.release(block)
                    computed.add(block)
                    yield block
            blocks = [block for block in missing if block not in computed]
            if not blocks:
                return
            time.sleep(_PAUSE)

    def _over(self) -> bool:
        """Whether the result is there."""
        return self.path.exists() and self._about.exists()

    def drop(self) -> None:
        """Remove the blocks: the result is there."""
        shutil.rmtree(self._blocks, ignore_errors=True)

    # Names and labels.

    @property
    def _about(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    @property
    def _blocks(self) -> Path:
        return self.path.with_name(self.path.name + ".blocks")

    @property
    def _run(self) -> Path:
        return self._blocks / "run.json"

    def _block(self, block: int) -> Path:
        return self._blocks / f"{block:08d}.safetensors"

    def _label(self, block: int, parts: Mapping[str, Tensor]) -> dict[str, str]:
        run = hashlib.sha256(as_json(self.description))
        digests = [f"{name} {digest(parts[name])} " for name in sorted(parts)]
        contents = hashlib.sha256("".join(digests).encode())
        return {"run": run.hexdigest(), "block": str(block), "sha256": contents.hexdigest()}

    @contextmanager
    def _on_disk(self, drop: Path | None = None) -> Iterator[None]:
        """Say what to do where the disk refuses.

        Raises:
            FileError: Then; what ``drop`` had taken is free again.
        """
        try:
            yield
        except OSError as reason:
            if drop is not None:
                drop.unlink(missing_ok=True)
            raise FileError(
                self.where,
                f"a disk that takes out={str(self.path)!r}",
                str(reason),
                "Finished blocks are kept: make room, or mend what is wrong, and repeat the same "
                "call.",
            ) from reason


@dataclass
class BlockFile(BlockFolder):
    """The file of one run's matrix, found or begun.

    Attributes, besides those of the blocks, of whose description ``shape`` and ``dtype`` are the
    array's:
        statuses: Codes that a pair that failed may have.
        complete: Whether ``path`` holds the result.
    """

    statuses: frozenset[int] = field(kw_only=True)
    complete: bool = field(default=False, kw_only=True)
    _found: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        description: dict[str, Any],
        probe: list[float],
        statuses: frozenset[int],
    ) -> BlockFile:
        """Find what an earlier call left at ``path``, or begin.

        Raises:
            FileError: When the folder of ``path`` does not exist, or what lies there is of another
                run, or damaged.
        """
        known = path_of_a_result("distance_matrix", path, "distances.npy")
        if known.is_dir():
            raise FileError(
                "distance_matrix",
                "out as the path of a file",
                f"the folder {path}",
                "Add the name of a file.",
            )
        file = cls(known, description, probe, statuses=statuses)
        if file.found():
            return file
        if not file.shared:
            file._acquire()
        try:
            if file.found():  # the one before has finished it in this moment
                file.__exit__()
            else:
                file._begin()
        except BaseException:
            file.__exit__()
            raise
        return file

    def found(self) -> bool:
        """Whether the result is there, and of this run.

        Raises:
            FileError: When it is of another run, or damaged.
        """
        if not self.path.exists():
            return False
        self._found = self._agreed(self._about, "the description of a result")
        n, q = self.description["shape"]
        check_array(self.where, self.path, self._found)
        check_failures(self.where, self._about, self._found.get("failed"), (n, q), self.statuses)
        self.complete = True
        # Blocks are left when a run was killed in its last moment.
        self.drop()
        return True

    # The whole.

    @contextmanager
    def assembling(self, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
        """The array of the result, mapped to a file that becomes ``path`` at :meth:`finish`.

        Zeros at first.

        The space on the disk is taken before anything is written to the map: a disk that is full
        would kill the process there, by SIGBUS.
        """
        kind = torch.empty(0, dtype=dtype).numpy().dtype
        head = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        with self._on_disk(drop=self._part):
            with self._part.open("w+b") as stream:
                np.lib.format.write_array_header_1_0(stream, head)
                allocate(stream, math.prod(shape) * kind.itemsize)
            array = np.load(self._part, mmap_mode="r+", allow_pickle=False)
        yield torch.from_numpy(array)
        with self._on_disk():
            array.flush()

    def finish(self, failures: list[tuple[int, int, int]]) -> None:
        """Make the assembled array the result, with its description, and drop the blocks."""
        with self._on_disk():
            with self._part.open("rb+") as stream:
                os.fsync(stream.fileno())
            about = {"sha256": file_digest(self._part), "failed": failures}
            self._found = {**self.description, "probe": self.probe, **about}
            write_atomically(self._about, as_json(self._found))
            os.replace(self._part, self.path)
            sync_folder(self.path.parent)
        self.complete = True
        self.drop()

    def matrix(self) -> Tensor:
        """The result, mapped from the file; what is written to the tensor stays out of the file."""
        array = np.load(self.path, mmap_mode="c", allow_pickle=False)
        return torch.from_numpy(array)

    def failures(self) -> list[tuple[int, int, int]]:
        """Rows, columns and statuses that :meth:`finish` stored."""
        stored = self._found["failed"]
        return [(int(i), int(j), int(code)) for i, j, code in stored]

    # Names.

    @property
    def _part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")


def path_of_a_result(where: str, path: object, example: str) -> Path:
    """A path in a folder that exists.

    Raises:
        FileError: For anything else.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or not Path(text).name:
        raise FileError(where, "out as the path of a file", repr(path), f"Try out={example!r}.")
    found = Path(text)
    folder = found.parent
    if not folder.is_dir():
        raise FileError(
            where,
            f"an existing folder for out={str(path)!r}",
            str(folder),
            "Make the folder first.",
        )
    return found


def _fit(got: Mapping[str, list[Any]], wanted: Mapping[str, list[Any]]) -> bool:
    """Whether shapes and dtypes are those that are wanted; −1 stands for any length."""
    if got.keys() != wanted.keys():
        return False
    for name, sizes in wanted.items():
        if len(sizes) != len(got[name]):
            return False
        if any(w not in (-1, g) for w, g in zip(sizes, got[name], strict=True)):
            return False
    return True


def _is_stray(entry: Path) -> bool:
    """Whether a file in the folder of blocks is not a block: hidden, or half written."""
    return entry.suffix == ".part" or entry.name.startswith(".") or entry.name in _STRAYS
