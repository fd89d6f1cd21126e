"""One training run on ``lightning``: silent by default, resumable, ending with the best weights."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO

from riemae.autoencoders.batches import Batches
from riemae.autoencoders.checkpoints import (
    AtomicCheckpoints,
    EveryAndLast,
    Fingerprint,
    checkpoint_of,
    sweep,
)
from riemae.autoencoders.loop import Steps
from riemae.autoencoders.module import GeometricModule
from riemae.autoencoders.progress import EpochProgress
from riemae.exceptions import (
    DivergenceWarning,
    FileError,
    MissingExtraError,
    OptionError,
    TrainingError,
    stack_level,
)
from riemae.numerics.threads import Shared
from riemae.storage.lock import Lock

LOCK = "fit.lock"  # in the directory of a run, while it is trained


@dataclass(frozen=True)
class Run:
    """Settings of one run.

    Attributes:
        epochs: How many there are at most.
        accelerator: As in lightning's trainer.
        devices: As in lightning's trainer.
        precision: As in lightning's trainer; by default the data's own.
        patience: Epochs without a lower loss after which training stops, or None for all epochs.
        progress: Whether a bar is shown.
        logger: ``"csv"``, ``"tensorboard"``, a lightning logger, or None.
        directory: For checkpoints and logs, or None.
        checkpoints: Whether checkpoints are read from the directory and written to it.
        checkpoint_every: Epochs between checkpoints.
        restore_best: Whether the weights with the lowest loss of the validation data are kept.
        fingerprint: Identifies settings and data; a checkpoint of another run is refused.
        trainer: Further arguments of lightning's trainer.
    """

    epochs: int
    accelerator: str = "cpu"
    devices: Any = 1
    precision: str | None = None
    patience: int | None = None
    progress: bool = False
    logger: Any = None
    directory: str | Path | None = None
    checkpoints: bool = True
    checkpoint_every: int = 50
    restore_best: bool = True
    fingerprint: str = ""
    trainer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoint_folder(self) -> Path | None:
        """Where checkpoints are read and written, or None when there are none."""
        if self.directory is None or not self.checkpoints:
            return None
        return Path(self.directory)


@contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Hold the lock on the directory of a run, so that no other fit writes to it.

    Two fits at once would overwrite each other's checkpoints. When lightning starts several
    processes for one run, the process of rank 0 holds the lock. There is no lock where nothing is
    written, nor for addresses (``s3://…``), where files cannot be locked.

    Args:
        run: Settings of the run.

    Raises:
        FileError: When another fit holds the lock, or the directory cannot be made.
    """
    writes = run.checkpoints or isinstance(run.logger, str)
    is_address = "://" in str(run.directory)
    if run.directory is None or not writes or is_address or _rank(run):
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
        # Directories made above that are still empty served the lock alone.
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()


def _rank(run: Run) -> int:
    """The number of this process among those of the run, as lightning counts them."""
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

    Args:
        module: Networks and loss.
        batches: To train on.
        run: Settings of the run.
        validation: Batches on which the loss is only measured, or None.

    Raises:
        TrainingError: When the loss explodes before an epoch has ended, or a checkpoint belongs to
            another run.
        OptionError: When the checkpoint has more epochs than the run.
        KeyboardInterrupt: When the user interrupts.

    Warns:
        DivergenceWarning: When the loss explodes later; training ends with the best weights.
    """
    folder = run.checkpoint_folder
    resume = None
    if folder is not None:
        sweep(folder)
        resume, done, stopped_early = checkpoint_of(folder, run.fingerprint)
        if done > run.epochs:
            raise OptionError(
                "fit",
                f"epochs of at least {done}, which the checkpoint in {folder} has",
                f"epochs = {run.epochs}",
                "Raise epochs, or use another directory.",
            )
        if stopped_early:
            run = replace(run, epochs=done)
    with _silenced(), _interruptible():
        trainer = _trainer(run, validated=validation is not None)
        if _plain(run, batches):
            Steps.install(trainer)
        try:
            trainer.fit(
                module,
                batches,
                validation,
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
            # Without its trainer the module can be pickled, and trained again.
            module.trainer = None
    if run.restore_best and not stopped:
        module.restore_best()
    module.best = {}
    if stopped:
        warnings.warn(f"Training stopped. {stopped}", DivergenceWarning, stacklevel=stack_level())


def _plain(run: Run, batches: Iterable[Any]) -> bool:
    """Whether nobody but this package looks at the steps."""
    full = run.precision in (None, "32-true", "64-true")
    return full and isinstance(batches, Batches) and not run.trainer and not run.logger


def _trainer(run: Run, validated: bool) -> Trainer:
    saves = run.checkpoint_folder is not None
    callbacks = _callbacks(run, validated)
    settings = {
        "max_epochs": run.epochs,
        "accelerator": run.accelerator,
        "devices": run.devices,
        "precision": run.precision,
        "logger": _logger(run),
        "callbacks": callbacks,
        "enable_checkpointing": saves,
        "enable_progress_bar": run.progress,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "inference_mode": False,  # geometric terms need derivatives in validation as well
        **run.trainer,
    }
    if saves:
        plugins = _as_list(run.trainer.get("plugins") or [])
        has_own_writer = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
        if not has_own_writer:
            plugins.append(AtomicCheckpoints())
        settings["plugins"] = plugins
    more = run.trainer.get("callbacks")
    if more is not None:
        everyone = [*callbacks, *_as_list(more)]
        settings["callbacks"] = everyone
        settings["enable_checkpointing"] |= any(isinstance(c, ModelCheckpoint) for c in everyone)
    return Trainer(**settings)


def _callbacks(run: Run, validated: bool) -> list[Callback]:
    callbacks: list[Callback] = []
    if run.patience is not None:
        stopping = EarlyStopping(
            "val_loss" if validated else "loss",
            patience=run.patience,
            check_on_train_epoch_end=not validated,
            check_finite=False,
        )
        callbacks.append(stopping)
    if run.checkpoint_folder is not None:
        saving = EveryAndLast(run.directory, run.checkpoint_every)
        callbacks += [Fingerprint(run.fingerprint), saving]
    if run.progress:
        callbacks.append(EpochProgress())
    return callbacks


def _as_list(given: Any) -> list[Any]:
    return [*given] if isinstance(given, list | tuple) else [given]


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


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise a ``KeyboardInterrupt``, as it does elsewhere.

    Lightning would end the program, and ignore the key afterwards.

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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lightning from logging hardware, advertisements, and advice on workers and loggers."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Selected by the module they come from: warnings about the model are shown.
            warnings.filterwarnings("ignore", module=r"lightning(\.|$)")
            warnings.filterwarnings(
                "ignore", message=r".*(num_workers|tensorboardX|LeafSpec|Checkpoint directory).*"
            )
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# Filters and levels are the process's: with one context each, a thread that ends would take the
# others' away.
_silenced = Shared(_quiet)
