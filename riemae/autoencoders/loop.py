"""Lightning's loop over the batches of an epoch, without what a training of our own does not use.

Around every step lightning calls some forty hooks, which takes about a millisecond. A network of
usual size has steps of 2 to 10 ms. Here the steps are made directly, where nothing else could be
asked of those hooks: batches of our own on the device of the networks, and a trainer with no
settings, loggers or callbacks but ours, which look at epochs. Weights, history and checkpoints are
the same to the bit, and a run can go on with either loop.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor


class Steps(_TrainingEpochLoop):
    """The steps of an epoch, made directly."""

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Let a trainer make its steps by this loop.

        Args:
            trainer: Which has not trained yet.
        """
        usual = trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_loop = cls(trainer, usual.min_steps, usual.max_steps)

    def advance(self, data_fetcher: Any) -> None:
        """Make one step.

        Args:
            data_fetcher: Gives the batch.
        """
        if self.restarting:  # lightning knows where the checkpoint was written
            super().advance(data_fetcher)
            return
        batch, _, _ = next(data_fetcher)
        progress = self.batch_progress
        progress.is_last_batch = data_fetcher.done
        progress.increment_ready()
        progress.increment_started()
        self._step(batch)
        progress.increment_processed()
        if self.trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if progress.is_last_batch:
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        progress.increment_completed()

    def on_advance_end(self, data_fetcher: Any) -> None:
        """After the last step of an epoch comes validation.

        Args:
            data_fetcher: Gives the batches.

        Raises:
            SIGTERMException: When the process is asked to end, as from lightning's loop.
        """
        if self.batch_progress.is_last_batch:
            super().on_advance_end(data_fetcher)
            return
        if self.trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=True)
        self._batches_that_stepped += 1
        if self.trainer.received_sigterm:
            raise SIGTERMException

    def _step(self, batch: Any) -> None:
        module: Any = self.trainer.lightning_module  # a GeometricModule
        optimizer: Any = self.trainer.optimizers[0]
        index = self.batch_idx

        def closure() -> Tensor:
            loss = module.training_step(batch, index)
            optimizer.zero_grad()
            loss.backward()
            module.configure_gradient_clipping(optimizer)
            return loss

        counts = self.automatic_optimization.optim_progress.optimizer
        counts.step.increment_ready()
        counts.zero_grad.increment_ready()
        counts.zero_grad.increment_started()
        optimizer.step(closure)
        counts.zero_grad.increment_completed()
        counts.step.increment_completed()
