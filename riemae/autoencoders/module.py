"""Geometric autoencoders as a ``LightningModule``, for those who bring their own ``Trainer``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riemae.autoencoders.batches import derived_seed
from riemae.autoencoders.history import History
from riemae.autoencoders.likelihoods import Likelihood
from riemae.autoencoders.objective import Objective
from riemae.autoencoders.optimization import MakeOptimizer, MakeSchedule, Steps
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
_ENTRIES = ("x", "neighbor", "index", "weights", "condition")  # of a batch
_RATES = ("lr", "weight_decay")
_GEOMETRIC_PRECISIONS = ("32-true", "32", 32, "64-true", "64", 64, "bf16-mixed", "16-mixed", None)


class GeometricModule(LightningModule):
    """An autoencoder with geometric terms, trained by ``lightning``.

    Batches are tensors ``(k, *shape)``; sequences that begin with one, as from a ``TensorDataset``;
    or mappings ``{"x": …}``, which may also hold ``"neighbor"``, ``"index"``, ``"weights"`` and
    ``"condition"``.

    Args:
        encoder: As in :class:`~riemae.autoencoders.objective.Objective`.
        decoder: As in :class:`~riemae.autoencoders.objective.Objective`.
        data: A representative sample ``(n, *shape)``, which sets the units of the weights.
        likelihood: Name or instance.
        ambient: Metric of the data space.
        terms: Weights of geometric terms by name.
        variation: What differs from a plain autoencoder.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        optimizer: As in :class:`~riemae.autoencoders.settings.Settings`.
        schedule: As in :class:`~riemae.autoencoders.settings.Settings`.
        clip: As in :class:`~riemae.autoencoders.settings.Settings`; a trainer's own
            ``gradient_clip_val`` comes first.
        warmup: As in :class:`~riemae.autoencoders.settings.Settings`.
        seed: Of noise and probes. They depend on seed, step and process alone, so that a resumed
            run repeats them.

    Attributes:
        history: Mean of every part over each epoch, by name; ``loss`` is the sum with the whole
            weights, also while they rise, so that epochs can be compared.
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
        optimizer: str | MakeOptimizer = "adam",
        schedule: str | MakeSchedule = "constant",
        clip: float | str | None = "auto",
        warmup: int = 0,
        seed: int = 0,
    ) -> None:
        objective = Objective(encoder, decoder, data, likelihood, ambient, terms, variation)
        self._begin(objective, Steps(lr, weight_decay, optimizer, schedule, clip, warmup), seed)

    @classmethod
    def of(
        cls,
        objective: Objective,
        steps: Steps | None = None,
        *,
        seed: int = 0,
        history: Mapping[str, list[float]] | None = None,
        optimizer_state: dict[str, Any] | None = None,
    ) -> GeometricModule:
        """A module around an existing objective, to go on with its weights.

        Args:
            objective: Networks and losses.
            steps: How the steps are made.
            seed: As in the constructor.
            history: Earlier values, to which the new ones are appended.
            optimizer_state: The ``optimizer_state`` of the module that trained before.
        """
        module = cls.__new__(cls)
        module._begin(objective, steps or Steps(), seed)
        module.history = History((name, list(part)) for name, part in (history or {}).items())
        module.optimizer_state = optimizer_state
        return module

    def _begin(self, objective: Objective, steps: Steps, seed: int) -> None:
        super().__init__()
        steps.check("GeometricModule")
        self.objective = objective
        self.steps = steps
        self.seed = seed
        self.history = History()
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
        # The lowest loss of the validation data, and the weights that had it.
        self.best_loss = float("inf")
        self.best: dict[str, Tensor] = {}
        self._plateau: Any = None
        self._plateau_state: dict[str, Any] = {}

    @property
    def manifold(self) -> Manifold:
        """The decoder's manifold."""
        return self.objective.manifold

    def forward(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, *shape)
        """Reconstruction."""
        return self.objective.decode(self.objective.encode(x))

    # Lightning's hooks.

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule of its learning rate.

        Raises:
            OptionError: When the schedule ends with the training, and the trainer has no last
                epoch.
        """
        # Lightning cannot clip the gradients of a fused step in mixed precision.
        fused = not str(getattr(self.trainer, "precision", "")).endswith("-mixed")
        optimizer = self.steps.optimizer_of(self.parameters(), fused)
        if self.optimizer_state is not None:
            rates = [
                {key: group[key] for key in _RATES if key in group} for group in _groups(optimizer)
            ]
            optimizer.load_state_dict(self.optimizer_state)
            # The moments go on. The rates are the present settings, not the end of a schedule.
            for group, rate in zip(_groups(optimizer), rates, strict=True):
                group.pop("initial_lr", None)
                group.update(rate)
        self._plateau = self.steps.plateau_of(optimizer)
        if self._plateau is not None and self._plateau_state:
            self._plateau.load_state_dict(self._plateau_state)
        schedule = self.steps.schedule_of(
            optimizer, self.trainer.max_epochs, self._all_steps(), self._monitor
        )
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}

    def _all_steps(self) -> float:
        if self.steps.schedule != "warmup_cosine":
            return math.inf
        return float(self.trainer.estimated_stepping_batches)

    @property
    def _monitor(self) -> str:
        """The loss by which progress is judged."""
        return "val_loss" if self.trainer.enable_validation else "loss"

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Limit the norm of the gradient, to the trainer's limit if it has one.

        Gradients of curvature are up to 1e5 times those of the reconstruction at the start, when
        the image of a new decoder is tiny. Adam would remember their squares for a thousand steps,
        in which the reconstruction would learn nothing.

        Args:
            optimizer: Whose parameters have the gradients.
            gradient_clip_val: The trainer's.
            gradient_clip_algorithm: The trainer's.
        """
        own = self.steps.limit(self.objective.geometric)
        if gradient_clip_val is None and own is not None:
            gradient_clip_val = own
            gradient_clip_algorithm = "norm"
        if gradient_clip_val is None:
            return
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_fit_start(self) -> None:
        """Refuse networks and settings that would fail or mislead later.

        Raises:
            DTypeError: For half precision throughout with geometric terms.
        """
        self.objective.check_training("GeometricModule")
        precision = getattr(self.trainer, "precision", None)
        derives = bool(self.objective.terms) or self.objective.variation.order is not None
        if derives and precision not in _GEOMETRIC_PRECISIONS:
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
        found = unpacked(batch)
        probes = torch.Generator().manual_seed(
            derived_seed(self.seed, 1, self.global_step, self.global_rank)
        )
        factors = self._factors(index)
        try:
            loss, parts = self.objective(**found, generator=probes, factors=factors)
        except (NonFiniteError, SingularMetricError) as reason:
            raise self._explosion(str(reason)) from reason
        value = loss.detach()
        if factors:
            whole = {name: part.detach() for name, part in parts.items()}
            value = self.objective.total(whole)
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
        found = unpacked(batch)
        probes = torch.Generator().manual_seed(derived_seed(self.seed, 2, index, self.global_rank))
        loss, parts = self.objective(**found, generator=probes)
        values = {"val_loss": loss, **{f"val_{name}": part for name, part in parts.items()}}
        size = len(found["x"])
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)

    def _factors(self, index: int) -> dict[str, float]:
        """What the weights are multiplied by in this step.

        Raises:
            OptionError: For schedules without a last epoch.
        """
        objective = self.objective
        rise = 1.0
        if self.steps.warmup:
            rise = min(1.0, (self.global_step + 1) / self.steps.warmup)
        if not objective.scheduled:
            return objective.factors(1.0, rise) if rise < 1 else {}
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            hint = "Give Trainer(max_epochs=…), or terms without a schedule."
            raise OptionError("GeometricModule", "max_epochs for schedules", str(epochs), hint)
        batches = self.trainer.num_training_batches
        within = index / batches if math.isfinite(batches) else 0.0
        return objective.factors((self.current_epoch + within) / epochs, rise)

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
        self._remember(values.get("val_loss"))
        if self._plateau is not None:
            self._plateau.step(values[self._monitor])
        if values["loss"] < self._kept_loss:
            self._kept_loss = values["loss"]
            self._kept, self._pending, self._good = self._pending, self._kept, True
        watched = self.trainer.loggers or self.trainer.early_stopping_callbacks
        if watched or self.trainer.lr_scheduler_configs:
            own = {name: value for name, value in values.items() if not name.startswith("val_")}
            self.log_dict(own, on_step=False, on_epoch=True, batch_size=1)

    def on_train_end(self) -> None:
        """Keep the optimizer's state, and drop what only the training needs."""
        self._plateau = None
        self._kept, self._pending, self._weights = [], [], []
        self.optimizer_state = self.trainer.optimizers[0].state_dict()

    def _remember(self, loss: float | None) -> None:
        """Keep the weights, if no earlier ones had such a low loss of the validation data."""
        if loss is None or not loss < self.best_loss:
            return
        self.best_loss = loss
        state = self.objective.state_dict()
        self.best = {name: value.detach().clone() for name, value in state.items()}

    def restore_best(self) -> None:
        """Take back the weights with the lowest loss of the validation data, if there are any."""
        if self.best:
            self.objective.load_state_dict(self.best)
            self.best = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the best weights and the state of the schedule, so that a run can be resumed."""
        checkpoint["riemae_best"] = {"loss": self.best_loss, "state": self.best}
        if self._plateau is not None:
            checkpoint["riemae_plateau"] = self._plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the best weights and the schedule of the earlier run."""
        found = checkpoint.get("riemae_best", {"loss": float("inf"), "state": {}})
        self.best_loss = found["loss"]
        self.best = found["state"]
        self._plateau_state = checkpoint.get("riemae_plateau", {})

    def get_extra_state(self) -> dict[str, Any]:
        """The history, so that it is saved in checkpoints and sent between processes."""
        # A plain dict: checkpoints are read without classes of riemae.
        return {"history": dict(self.history)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Continue an earlier history."""
        self.history = History((name, list(part)) for name, part in state["history"].items())
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
        remedy = (
            f"Try a smaller lr than {self.steps.lr:g}, gradient clipping, or smaller term weights."
        )
        kept = "There are no earlier weights worth keeping."
        if self._good:
            torch._foreach_copy_(self._weights, self._kept)
            kept = f"The best weights so far are back in place (loss {self._kept_loss:.4g})."
        got = f"{got} in epoch {epoch + 1}"
        error = TrainingError("GeometricModule", "a finite loss", got, f"{remedy} {kept}")
        error.kept = self._good
        return error


def unpacked(batch: Any) -> dict[str, Any]:
    """Data, neighbours, numbers and weights of the samples of a batch, as far as it has them.

    Raises:
        DTypeError: For a batch of an unknown kind.
    """
    if isinstance(batch, Tensor):
        return {"x": batch}
    if isinstance(batch, Mapping) and isinstance(batch.get("x"), Tensor):
        return {name: batch[name] for name in _ENTRIES if name in batch}
    if isinstance(batch, Sequence) and batch and isinstance(batch[0], Tensor):
        return {"x": batch[0]}
    raise DTypeError(
        "GeometricModule",
        "batches as tensors, sequences that begin with one, or mappings with 'x'",
        type(batch).__name__,
        "Let the loader return tensors, tuples (x, …) or dicts with 'x'.",
    )


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = optimizer.param_groups
    return groups
