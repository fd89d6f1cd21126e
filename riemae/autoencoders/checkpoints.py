"""Checkpoints of a training run: written whole or not at all, and known to belong to the run."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from riemae.exceptions import TrainingError
from riemae.storage.lock import alive

CHECKPOINT = "last.ckpt"
# The entries of a checkpoint that say which run it belongs to, and whether training stopped early.
_RUN = "riemae_run"
_STOPPED = "riemae_stopped"
# Files that are being written. Their names hold machine and process, so that those of processes
# which have ended can be recognised.
_PART = re.compile(r".+\.(?P<host>[0-9a-f]+)-(?P<pid>\d+)\.part")


def checkpoint_of(folder: Path, fingerprint: str) -> tuple[str | None, int, bool]:
    """The checkpoint in a directory from which a run goes on, or None when there is none.

    Also the number of its epochs, and whether training stopped early there.

    Args:
        folder: Where the run keeps its checkpoints.
        fingerprint: Identifies the run.

    Raises:
        TrainingError: When the checkpoint cannot be read, or belongs to another run.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None, 0, False
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content[_RUN]
        epochs = content["epoch"] + 1
    except Exception as reason:
        raise TrainingError(
            "training",
            f"a checkpoint in {path}",
            f"one that cannot be read: {reason}",
            "Remove it to start anew.",
        ) from reason
    if found != fingerprint:
        raise TrainingError(
            "training",
            f"a checkpoint of this run in {path}",
            "one of other settings or other data",
            "Use another directory, or remove it to start anew.",
        )
    return str(path), epochs, bool(content.get(_STOPPED, False))


class EveryAndLast(ModelCheckpoint):
    """Writes a checkpoint every few epochs, and one after the last epoch.

    Args:
        folder: Where it is written.
        every: Epochs between checkpoints.
    """

    def __init__(self, folder: Any, every: int) -> None:
        super().__init__(
            dirpath=folder,
            filename=CHECKPOINT.removesuffix(".ckpt"),
            every_n_epochs=every,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.every = every

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write it, if it is time."""
        super().on_train_epoch_end(trainer, pl_module)
        done = trainer.current_epoch + 1
        ends = trainer.should_stop or done == trainer.max_epochs
        if ends and done % self.every and self.dirpath is not None:
            trainer.save_checkpoint(Path(self.dirpath) / CHECKPOINT)


class Fingerprint(Callback):
    """Writes into every checkpoint which run it belongs to.

    Args:
        fingerprint: Identifies the run.
    """

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Add the fingerprint."""
        checkpoint[_RUN] = self.fingerprint
        stopped = [callback.stopped_epoch for callback in trainer.early_stopping_callbacks]
        checkpoint[_STOPPED] = trainer.should_stop and any(stopped)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint completely before it replaces the earlier one in a single step.

    The new file is written in the directory of the old one. Lightning writes to the temporary
    folder instead, and copies from there when that is another file system. A process that is killed
    while it copies leaves neither the old checkpoint nor the new one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; addresses of other machines (``s3://…``) are left to lightning.

        Args:
            checkpoint: Content.
            path: Of the file.
            storage_options: For addresses.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{machine()}-{os.getpid()}.part")
        try:
            with part.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if os.name == "posix":
            _flush_names(target.parent)


def _flush_names(folder: Path) -> None:
    """Put the names of a directory's files on the disk, so that a renaming outlives a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the unfinished checkpoints of processes of this machine that were killed."""
    if not folder.is_dir():
        return
    for entry in folder.glob("*.part"):
        found = _PART.fullmatch(entry.name)
        if found and found["host"] == machine() and not alive(int(found["pid"])):
            with contextlib.suppress(OSError):
                entry.unlink()


def machine() -> str:
    """The name of this machine in characters that every file system allows."""
    return socket.gethostname().encode().hex()
