"""One training run on ``lightning``: silent unless asked, resumable, with the best weights kept."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from riemae.autoencoders.module import GeometricModule
from riemae.exceptions import (
    DivergenceWarning,
    FileError,
    MissingExtraError,
    OptionError,
    TrainingError,
    stack_level,
)
from riemae.storage.lock import Lock, alive

CHECKPOINT = "last.ckpt"
LOCK = "fit.lock"  # in the directory of a run, while it is trained
# Checkpoints that are being written: of which machine and process, so that those of dead ones can
# be told.
_PART = re.compile(r".+\.(?P<host>[0-9a-f]+)-(?P<pid>\d+)\.part")


@dataclass(frozen=True)
class Run:
    """Settings of one run.

    Attributes:
        epochs: At most.
        accelerator: As in lightning's trainer.
        devices: Likewise.
        precision: Likewise; by default the data's own.
        clip: Largest norm of the gradient, or None.
        patience: Epochs without progress before it stops early, or None.
        progress: Whether a bar is shown.
        logger: ``"csv"``, ``"tensorboard"``, a lightning logger, or None.
        directory: For checkpoints and logs, or None.
        checkpoints: Whether there are any in the directory, to be read and written.
        checkpoint_every: Epochs between checkpoints.
        fingerprint: Identifies settings and data; a checkpoint of another run is refused.
        trainer: Further arguments of lightning's trainer.
    """

    epochs: int
    accelerator: str = "cpu"
    devices: Any = 1
    precision: str | None = None
    clip: float | None = None
    patience: int | None = None
    progress: bool = False
    logger: Any = None
    directory: str | Path | None = None
    checkpoints: bool = True
    checkpoint_every: int = 50
    fingerprint: str = ""
    trainer: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Hold the right to write into the directory of a run.

    Two fits at once would undo each other's checkpoints. Of several processes that lightning starts
    for one run, the one of rank 0 holds it. It is not needed where nothing is written, and
    addresses (``s3://…``) know no locks.

    Raises:
        FileError: When another fit has it, or the directory cannot be made.
    """
    writes = run.checkpoints or isinstance(run.logger, str)
    if run.directory is None or not writes or "://" in str(run.directory) or _rank(run):
        yield
        return
    folder = Path(run.directory)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = Lock(folder / LOCK, "fit", f"directory={str(folder)!r}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as reason:
        expected = "a directory that files can be written to"
        hint = "Choose another directory=."
        raise FileError("fit", expected, f"directory={str(folder)!r}: {reason}", hint) from reason
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # what was made for the lock alone goes with it
            for path in missing:
                path.rmdir()


def _rank(run: Run) -> int:
    """Which of the processes of a run this is, as lightning counts them."""
    deciding = ("accelerator", "devices", "strategy", "num_nodes", "plugins")
    given = {name: run.trainer[name] for name in deciding if name in run.trainer}
    with _silenced():
        bare = replace(run, directory=None, logger=None, progress=False, trainer=given)
        return _trainer(bare, validated=False).global_rank


def train(
    module: GeometricModule,
    batches: Iterable[Any],
    run: Run,
    validation: Iterable[Any] | None = None,
) -> None:
    """Train in place. A run with a directory goes on from the checkpoint that it finds there.

    Raises:
        TrainingError: When the loss explodes before any weights were worth keeping, or a checkpoint
            is of another run.
        KeyboardInterrupt: When the user interrupts.

    Warns:
        DivergenceWarning: When the loss explodes later: training ends with the best weights.
    """
    if run.directory is not None and run.checkpoints:
        _sweep(Path(run.directory))
    resume = _checkpoint_of(run)
    with _silenced(), _interruptible():
        trainer = _trainer(run, validated=validation is not None)
        try:
            trainer.fit(
                module,
                batches,
                None if validation is None else validation,
                ckpt_path=resume,
                weights_only=None if resume is None else True,
            )
        except TrainingError as reason:
            if not reason.kept:
                raise
            stopped = str(reason)
        else:
            stopped = ""
        finally:
            # A trained model is no part of the trainer that made it: it can be pickled, and trained
            # again.
            module.trainer = None
    if stopped:
        warnings.warn(f"Training stopped. {stopped}", DivergenceWarning, stacklevel=stack_level())


def _checkpoint_of(run: Run) -> str | None:
    if (
        run.directory is None
        or not run.checkpoints
        or not (path := Path(run.directory) / CHECKPOINT).exists()
    ):
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)["riemae_run"]
    except Exception as reason:
        raise TrainingError(
            "training",
            f"a checkpoint in {path}",
            f"one that cannot be read: {reason}",
            "Remove it to start anew.",
        ) from reason
    if found != run.fingerprint:
        raise TrainingError(
            "training",
            f"a checkpoint of this run in {path}",
            "one of other settings or other data",
            "Use another directory, or remove it to start anew.",
        )
    return str(path)


def _trainer(run: Run, validated: bool) -> Trainer:
    callbacks: list[Callback] = []
    if run.patience is not None:
        monitor = "val_loss" if validated else "loss"
        callbacks.append(
            EarlyStopping(
                monitor,
                patience=run.patience,
                check_on_train_epoch_end=not validated,
                check_finite=False,
            )
        )
    if run.directory is not None and run.checkpoints:
        callbacks += [
            _Fingerprint(run.fingerprint),
            ModelCheckpoint(
                dirpath=run.directory,
                filename=CHECKPOINT.removesuffix(".ckpt"),
                every_n_epochs=run.checkpoint_every,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
        ]
    if run.progress:
        callbacks.append(EpochProgress())
    settings = {
        "max_epochs": run.epochs,
        "accelerator": run.accelerator,
        "devices": run.devices,
        "precision": run.precision,
        "gradient_clip_val": run.clip,
        "logger": _logger(run),
        "callbacks": callbacks,
        "enable_checkpointing": run.directory is not None and run.checkpoints,
        "enable_progress_bar": run.progress,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "inference_mode": False,  # geometric terms need derivatives in validation, too
        **run.trainer,
    }
    if run.directory is not None and run.checkpoints:
        given = run.trainer.get("plugins") or []
        plugins = [*given] if isinstance(given, list | tuple) else [given]
        own = (
            []
            if any(isinstance(plugin, CheckpointIO) for plugin in plugins)
            else [AtomicCheckpoints()]
        )
        settings["plugins"] = [*plugins, *own]
    more = run.trainer.get("callbacks")
    if more is not None:
        settings["callbacks"] = [*callbacks, *(more if isinstance(more, list | tuple) else [more])]
        settings["enable_checkpointing"] |= any(
            isinstance(c, ModelCheckpoint) for c in settings["callbacks"]
        )
    return Trainer(**settings)


def _logger(run: Run) -> Any:
    if run.logger is None or run.logger is False:
        return False
    if not isinstance(run.logger, str):
        return run.logger
    if run.directory is None:
        raise OptionError(
            "logger", "a directory to write to", "directory=None", "Set directory='…'."
        )
    if run.logger == "csv":
        return CSVLogger(run.directory, name="log")
    if run.logger == "tensorboard":
        try:
            return TensorBoardLogger(run.directory, name="log")
        except ModuleNotFoundError as reason:
            raise MissingExtraError(
                "logger='tensorboard'",
                "the package tensorboard",
                "no such package",
                "pip install tensorboard",
            ) from reason
    raise OptionError(
        "logger",
        "'csv', 'tensorboard', a lightning logger or None",
        repr(run.logger),
        "Try logger='csv'.",
    )


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that replace the one before in one step, when they are whole and on the disk.

    They are written in the directory they are meant for: lightning writes to the temporary folder,
    and copies from there where that is another file system; killed while it copies, it leaves
    neither the old nor the new one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; addresses of other machines (``s3://…``) go lightning's way.

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
        part = target.with_name(f"{target.name}.{_machine()}-{os.getpid()}.part")
        try:
            with part.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # make the renaming last
            handle = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what fits of this machine were writing when they were killed."""
    for entry in folder.glob("*.part") if folder.is_dir() else ():
        found = _PART.fullmatch(entry.name)
        if found and found["host"] == _machine() and not alive(int(found["pid"])):
            with contextlib.suppress(OSError):
                entry.unlink()


def _machine() -> str:
    return socket.gethostname().encode().hex()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is a ``KeyboardInterrupt`` here as well.

    Lightning would exit, and ignore the key from then on.

    Raises:
        KeyboardInterrupt: When the user interrupts.
        SystemExit: When something else ends the program.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as reason:
        if isinstance(reason.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from reason
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


class _Fingerprint(Callback):
    """Writes into every checkpoint which run it belongs to."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["riemae_run"] = self.fingerprint


class EpochProgress(ProgressBar):
    """One bar for the whole training, with the parts of the loss as they stand."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        """Show nothing: on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Open the bar."""
        if self._enabled:
            columns = (
                TextColumn("epoch"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns)
            self._bar.start()
            self._bar.add_task("", total=trainer.max_epochs, completed=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Advance it, with the parts of the epoch before: the module's own hook comes later."""
        if self._bar is not None:
            parts = "  ".join(
                f"{name} {values[-1]:.4g}" for name, values in pl_module.history.items()
            )
            self._bar.update(
                self._bar.task_ids[0], completed=trainer.current_epoch + 1, description=parts
            )

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Close it, with the final parts."""
        self._close(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Close it."""
        self._close(pl_module)

    def _close(self, pl_module: Any) -> None:
        if self._bar is not None:
            parts = "  ".join(
                f"{name} {values[-1]:.4g}" for name, values in pl_module.history.items()
            )
            self._bar.update(self._bar.task_ids[0], description=parts)
            self._bar.stop()
            self._bar = None


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep lightning from logging hardware, advertisements, and advice on workers and loggers."""
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # By origin, not by kind: warnings about the model, ours or torch's, go through.
            warnings.filterwarnings("ignore", module=r"lightning(\.|$)")
            warnings.filterwarnings(
                "ignore", message=r".*(num_workers|tensorboardX|LeafSpec|Checkpoint directory).*"
            )
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
