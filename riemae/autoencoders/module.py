"""Geometric autoencoders as a ``LightningModule``, for those who bring their own ``Trainer``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from riemae.autoencoders.batches import derived_seed
from riemae.autoencoders.likelihoods import Likelihood
from riemae.autoencoders.objective import Objective
from riemae.autoencoders.terms import Term, Variation
from riemae.exceptions import (
    DTypeError,
    NonFiniteError,
    OptionError,
    SingularMetricError,
    TrainingError,
)
from riemae.manifold import Manifold

try:
    from lightning.pytorch import LightningModule
except ImportError as reason:
    from riemae.exceptions import MissingExtraError

    raise MissingExtraError(
        "riemae.autoencoders",
        "lightning, on which training runs",
        "no such package",
        "pip install 'riemae[train]'",
    ) from reason

# A loss in units of the data's deviance is about 1 before training. Training stops when the loss
# exceeds this times its first value, or this if that was below 1.
_EXPLODED = 1e6
_GEOMETRIC_PRECISIONS = ("32-true", "32", 32, "64-true", "64", 64, "bf16-mixed", "16-mixed", None)


class GeometricModule(LightningModule):
    """An autoencoder with geometric terms, trained by ``lightning``.

    Batches are tensors ``(k, *shape)``; sequences that begin with one, as from a ``TensorDataset``;
    or mappings ``{"x": …, "neighbor": …}``.

    Args:
        encoder: As in :class:`~riemae.autoencoders.objective.Objective`.
        decoder: As in :class:`~riemae.autoencoders.objective.Objective`.
        data: A representative sample ``(n, *shape)``, which sets the units of the weights.
        likelihood: Name or instance.
        ambient: Metric of the data space.
        terms: Weights of geometric terms by name.
        variation: What differs from a plain autoencoder.
        lr: Learning rate of Adam.
        weight_decay: Decoupled weight decay (AdamW).
        schedule: ``"constant"`` or ``"cosine"`` down to 0 over the trainer's epochs.
        seed: Of noise and probes. They depend on seed, step and process alone, so that a resumed
            run repeats them.

    Attributes:
        history: Mean of every part over each epoch, by name; ``loss`` is the weighted sum.
        optimizer_state: State of the optimizer at the end of training.

    Example:
        >>> import lightning, torch
        >>> from riemae.autoencoders import GeometricModule
        >>> x = torch.randn(64, 3)
        >>> module = GeometricModule(
        ...     torch.nn.Linear(3, 2),
        ...     torch.nn.Linear(2, 3),
        ...     data=x,
        ...     terms={"relaxed_distortion": 0.1},
        ... )
        >>> sorted(module.objective.terms)
        ['relaxed_distortion']
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        data: Tensor,
        *,
        likelihood: str | Likelihood = "squared_error",
        ambient: Any = None,
        terms: Mapping[str, float | Term] | None = None,
        variation: Variation | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "cosine"] = "constant",
        seed: int = 0,
    ) -> None:
        objective = Objective(encoder, decoder, data, likelihood, ambient, terms, variation)
        self._begin(objective, lr, weight_decay, schedule, seed)

    @classmethod
    def of(
        cls,
        objective: Objective,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "cosine"] = "constant",
        seed: int = 0,
        history: Mapping[str, list[float]] | None = None,
        optimizer_state: dict[str, Any] | None = None,
    ) -> GeometricModule:
        """A module around an existing objective, to go on with its weights.

        Args:
            objective: Networks and losses.
            lr: As in the constructor.
            weight_decay: As in the constructor.
            schedule: As in the constructor.
            seed: As in the constructor.
            history: Earlier values, to which the new ones are appended.
            optimizer_state: The ``optimizer_state`` of the module that trained before.
        """
        module = cls.__new__(cls)
        module._begin(objective, lr, weight_decay, schedule, seed)
        module.history = {name: list(values) for name, values in (history or {}).items()}
        module.optimizer_state = optimizer_state
        return module

    def _begin(
        self, objective: Objective, lr: float, weight_decay: float, schedule: str, seed: int
    ) -> None:
        super().__init__()
        if not lr > 0 or not weight_decay >= 0:
            raise OptionError(
                "GeometricModule",
                "a positive lr and no negative weight_decay",
                f"{lr} and {weight_decay}",
                "Try lr=1e-3 and weight_decay=0.",
            )
        if schedule not in ("constant", "cosine"):
            raise OptionError(
                "GeometricModule",
                "schedule 'constant' or 'cosine'",
                repr(schedule),
                "Try schedule='constant'.",
            )
        self.objective = objective
        self.lr = lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.seed = seed
        self.history: dict[str, list[float]] = {}
        self._parts: list[Tensor] = []
        self._names: list[str] = []
        self.optimizer_state: dict[str, Any] | None = None
        # The weights as plain tensors, two copies of them that are exchanged, and the lowest loss.
        self._weights: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._pending: list[Tensor] = []
        self._good = False
        self._kept_loss = float("inf")
        self._start = 1.0

    @property
    def manifold(self) -> Manifold:
        """The decoder's manifold."""
        return self.objective.manifold

    def forward(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, *shape)
        """Reconstruction."""
        return self.objective.decode(self.objective.encode(x))

    # Lightning's hooks.

    def configure_optimizers(self) -> Any:
        """Adam, fused where lightning can clip its gradients.

        Raises:
            OptionError: When the schedule is cosine and the trainer has no last epoch.
        """
        fused = str(getattr(self.trainer, "precision", "")) != "16-mixed"
        # Small networks train 1.5 times faster with a fused step.
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=fused or None
        )
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
            # The moments go on. The rates are the present settings, not the end of a schedule.
            for group in optimizer.param_groups:
                group.update(lr=self.lr, initial_lr=self.lr, weight_decay=self.weight_decay)
        if self.schedule == "constant":
            return optimizer
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise OptionError(
                "GeometricModule",
                "max_epochs for schedule='cosine'",
                repr(epochs),
                "Give Trainer(max_epochs=…), or take schedule='constant'.",
            )
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        }

    def on_fit_start(self) -> None:
        """Refuse networks and settings that would fail or mislead later.

        Raises:
            DTypeError: For half precision throughout with geometric terms.
        """
        self.objective.check_training("GeometricModule")
        precision = getattr(self.trainer, "precision", None)
        geometric = bool(self.objective.terms) or self.objective.variation.order is not None
        if geometric and precision not in _GEOMETRIC_PRECISIONS:
            raise DTypeError(
                "GeometricModule",
                "precision '32-true', '64-true', 'bf16-mixed' or '16-mixed' with geometric terms",
                repr(precision),
                "Derivatives of the decoder in half precision are noise; in mixed precision they "
                "are taken in float32.",
            )

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Loss of a batch.

        Raises:
            TrainingError: When the loss explodes; the best weights so far are back in place.
        """
        x, neighbor = unpacked(batch)
        probes = torch.Generator().manual_seed(
            derived_seed(self.seed, 1, self.global_step, self.global_rank)
        )
        try:
            loss, parts = self.objective(x, neighbor, probes)
        except (NonFiniteError, SingularMetricError) as reason:
            raise self._explosion(str(reason)) from reason
        value = loss.detach()
        if not self._parts:
            self._names = ["loss", *parts]
            if not self.history.get("loss"):
                self._start = float(value)
        self._parts.append(
            torch.stack([value, *(p.detach().to(value.dtype) for p in parts.values())])
        )
        # Reading the value costs nothing on a processor. On an accelerator, every step would wait
        # for it.
        if value.device.type == "cpu":
            size = float(value)
            if not size <= self._limit():  # NaN as well
                raise self._explosion(f"a loss of {size:.3g}")
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        """Logs ``val_loss`` and the parts as ``val_…``."""
        x, neighbor = unpacked(batch)
        probes = torch.Generator().manual_seed(derived_seed(self.seed, 2, index, self.global_rank))
        loss, parts = self.objective(x, neighbor, probes)
        values = {"val_loss": loss, **{f"val_{name}": part for name, part in parts.items()}}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(x), sync_dist=True)

    def on_train_start(self) -> None:
        """Make room for two copies of the weights.

        The weights of a checkpoint count as the best ones until the loss is lower.
        """
        self._weights = [p.detach() for p in self.parameters()]
        self._pending, self._kept = ([p.clone() for p in self._weights] for _ in range(2))
        self._good = bool(self.history.get("loss"))

    def on_train_epoch_start(self) -> None:
        """Copy the weights from which the epoch starts."""
        torch._foreach_copy_(self._pending, self._weights)

    def on_train_epoch_end(self) -> None:
        """Means over the epoch go into the history, and to the loggers.

        Raises:
            TrainingError: When the loss has exploded.
        """
        if not self._parts:
            return
        means = torch.stack(self._parts).mean(0)
        if self.trainer.world_size > 1:
            means = self.trainer.strategy.reduce(means, reduce_op="mean")
        values = dict(zip(self._names, means.tolist(), strict=True))
        self._parts.clear()
        if not (math.isfinite(values["loss"]) and values["loss"] <= self._limit()):
            raise self._explosion(f"a loss of {values['loss']:.3g}")
        values |= {
            name: float(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("val_")
        }
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)
        if values["loss"] < self._kept_loss:
            self._kept_loss = values["loss"]
            self._kept, self._pending, self._good = self._pending, self._kept, True
        if self.trainer.loggers or self.trainer.early_stopping_callbacks:
            own = {name: value for name, value in values.items() if not name.startswith("val_")}
            self.log_dict(own, on_step=False, on_epoch=True, batch_size=1)

    def on_train_end(self) -> None:
        """Keep the optimizer's state, and drop the spare copies of the weights."""
        self._kept, self._pending, self._weights = [], [], []
        self.optimizer_state = self.trainer.optimizers[0].state_dict()

    def get_extra_state(self) -> dict[str, Any]:
        """The history, so that it is saved in checkpoints and sent between processes."""
        return {"history": self.history}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Continue an earlier history."""
        self.history = {name: list(values) for name, values in state["history"].items()}
        self._kept_loss = min(self.history.get("loss", []), default=float("inf"))

    def _limit(self) -> float:
        # The curvature of new networks may be huge and then fall at once, so later losses are
        # compared with the first one.
        start = self.history["loss"][0] if self.history.get("loss") else self._start
        return _EXPLODED * max(1.0, start)

    def _explosion(self, got: str) -> TrainingError:
        """Put back the best weights, and describe the explosion.

        The best weights are those from which the epoch with the lowest mean loss started.
        """
        epoch = len(self.history.get("loss", []))
        self._parts.clear()
        remedy = f"Try a smaller lr than {self.lr:g}, gradient clipping, or smaller term weights."
        kept = "There are no earlier weights worth keeping."
        if self._good:
            torch._foreach_copy_(self._weights, self._kept)
            kept = f"The best weights so far are back in place (loss {self._kept_loss:.4g})."
        got = f"{got} in epoch {epoch + 1}"
        error = TrainingError("GeometricModule", "a finite loss", got, f"{remedy} {kept}")
        error.kept = self._good
        return error


def unpacked(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Data and neighbours of a batch.

    Raises:
        DTypeError: For a batch of an unknown kind.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping) and isinstance(batch.get("x"), Tensor):
        return batch["x"], batch.get("neighbor")
    if isinstance(batch, Sequence) and batch and isinstance(batch[0], Tensor):
        return batch[0], None
    raise DTypeError(
        "GeometricModule",
        "batches as tensors, sequences that begin with one, or mappings with 'x'",
        type(batch).__name__,
        "Let the loader return tensors, tuples (x, …) or dicts with 'x'.",
    )
