"""The progress bar of a training run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from riemae.numerics.bars import bars


class EpochProgress(ProgressBar):
    """One bar for the whole training, with the latest value of every part of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        """Show nothing; lightning calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Open the bar."""
        if not self._enabled:
            return
        columns = (
            TextColumn("epoch"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = bars(*columns)
        self._bar.start()
        self._bar.add_task("", total=trainer.max_epochs, completed=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Advance the bar; the parts are those of the previous epoch.

        Lightning calls the module, which records the parts of this epoch, after its callbacks.
        """
        if self._bar is None:
            return
        task = self._bar.task_ids[0]
        done = trainer.current_epoch + 1
        self._bar.update(task, completed=done, description=_latest(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Close the bar, with the final parts."""
        self._close(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Close the bar."""
        self._close(pl_module)

    def _close(self, pl_module: Any) -> None:
        if self._bar is None:
            return
        self._bar.update(self._bar.task_ids[0], description=_latest(pl_module))
        self._bar.stop()
        self._bar = None


def _latest(pl_module: Any) -> str:
    """The latest value of every part of the loss, by name."""
    parts = [f"{name} {values[-1]:.4g}" for name, values in pl_module.history.items()]
    return "  ".join(parts)
