"""The geometry of a decoder while it is trained, by whatever module of lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from riemae import scores
from riemae.exceptions import (
    DifferentiationError,
    DTypeError,
    MissingExtraError,
    NonFiniteError,
    SingularMetricError,
)
from riemae.manifold import Manifold
from riemae.numerics import reach
from riemae.numerics.checks import expect_finite, expect_range, expect_shape, expect_tensor
from riemae.numerics.random import restored

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
except ImportError as reason:
    raise MissingExtraError(
        "riemae.interop.lightning", "lightning", str(reason), "Try: pip install 'riemae[train]'"
    ) from reason

__all__ = ["GeometryLogger"]

_WHERE = "GeometryLogger"


class GeometryLogger(Callback):
    """Logs the geometry of a decoder at fixed codes during a training.

    ``Trainer(callbacks=[GeometryLogger(codes)])`` needs no change of the module. Nothing about the
    training changes: layers go back to the modes they were in, torch's random numbers are those of
    a training without, and no gradients are left behind.

    =============================== ===============================================================
    name                            what it is, over the codes
    =============================== ===============================================================
    ``geometry/condition_number``   median of ``λ_max/λ_min``: 1 where no direction is stretched
    ``geometry/volume_variation``   standard deviation of ``log √det G``: 0 where the same area of
                                    the latent space means as much data everywhere
    ``geometry/distortion``         ``Σ (1 − λ_i)²`` after the best common scale: 0 for an isometry
    ``geometry/curvature``          median of ``|S|/2``, of surfaces the size of the Gaussian
                                    curvature; for m of at least 2 and decoders without kinks
    =============================== ===============================================================

    A number is NaN in an epoch in which the metric is singular, or undefined, at one of the codes.

    Args:
        codes: Where the decoder is looked at, ``(n, m)``. Codes of the data of an earlier training
            or draws of the prior; some hundred are enough.
        decoder: A function ``(k, m) -> (k, *shape)``; by default the module's ``decoder``.
        every: Epochs from one entry to the next.
        ambient: Metric of the data, as in :class:`~riemae.Manifold`.
        curvature: Whether curvature, which takes second derivatives, is among them.
        prefix: What names begin with.

    Attributes:
        history: All numbers so far, by name, besides the epochs (``"epoch"``).

    Raises:
        DTypeError: When the codes are not a tensor, or there is no decoder to call.
        ShapeError: When the codes are not ``(n, m)``.
        NonFiniteError: For NaN or infinity in the codes.
        OptionError: For ``every`` less than 1.
    """

    def __init__(
        self,
        codes: Tensor,
        decoder: Callable[[Tensor], Any] | None = None,
        *,
        every: int = 1,
        ambient: Any = None,
        curvature: bool = True,
        prefix: str = "geometry/",
    ) -> None:
        super().__init__()
        expect_tensor(_WHERE, "codes", codes)
        expect_shape(_WHERE, "codes", codes, ("n", "m"), "One row per code.")
        expect_finite(_WHERE, "codes", codes, "Drop these rows.")
        expect_range(_WHERE, "every", every, 1, integer=True)
        if decoder is not None and not callable(decoder):
            hint = "Try decoder=module.decode."
            raise DTypeError(_WHERE, "a decoder to call", type(decoder).__name__, hint)
        self.codes = codes.detach().clone()
        self.decoder = decoder
        self.every = every
        self.ambient = ambient
        self.curvature = curvature
        self.prefix = prefix
        self.history: dict[str, list[float]] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log, in every so many epochs.

        Args:
            trainer: Counts the epochs.
            pl_module: Is trained.
        """
        if (trainer.current_epoch + 1) % self.every or not trainer.is_global_zero:
            return
        decoder = self._decoder(pl_module)
        numbers = {self.prefix + name: x for name, x in self.measured(decoder).items()}
        for name, value in {"epoch": float(trainer.current_epoch), **numbers}.items():
            self.history.setdefault(name, []).append(value)
        pl_module.log_dict(numbers, batch_size=len(self.codes), rank_zero_only=True)

    def measured(self, decoder: Callable[[Tensor], Any]) -> dict[str, float]:
        """The numbers by name, without the prefix, of a decoder as it is now.

        Args:
            decoder: ``(k, m) -> (k, *shape)``.
        """
        modules = reach.modules(decoder)
        like = next((p for part in modules for p in part.parameters()), self.codes)
        z = self.codes.to(like.device, like.dtype)
        with restored(z.device), _in_evaluation(modules), torch.no_grad():
            return _numbers(Manifold(decoder, self.ambient), z, self.curvature)

    def _decoder(self, pl_module: LightningModule) -> Callable[[Tensor], Any]:
        """What decodes.

        Raises:
            DTypeError: When the module has no decoder, and none was given.
        """
        found: Any = self.decoder or getattr(pl_module, "decoder", None)
        if not callable(found):
            expected = "a module with a decoder"
            hint = "Name it: GeometryLogger(codes, decoder=module.decode)."
            raise DTypeError(_WHERE, expected, type(pl_module).__name__, hint)
        return found

    def state_dict(self) -> dict[str, Any]:
        """The history, for checkpoints."""
        return {"history": {name: list(values) for name, values in self.history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with an earlier history.

        Args:
            state_dict: What :meth:`state_dict` has returned.
        """
        history = state_dict["history"].items()
        self.history = {name: list(values) for name, values in history}


def _numbers(M: Manifold, z: Tensor, curvature: bool) -> dict[str, float]:
    measures: dict[str, Callable[[], Tensor]] = {
        "condition_number": lambda: scores.condition_number(M, z).median(),
        "volume_variation": lambda: M.log_volume(z).std(),
        "distortion": lambda: M.distortion(z, "scaled_isometry"),
    }
    if curvature and z.shape[1] > 1 and M.kinks(z) is None:
        measures["curvature"] = lambda: M.scalar_curvature(z).abs().median() / 2
    return {name: _value(measure) for name, measure in measures.items()}


def _value(measure: Callable[[], Tensor]) -> float:
    """A number, NaN where the metric has none: a training goes on after such an epoch."""
    try:
        return float(measure())
    except (SingularMetricError, NonFiniteError, DifferentiationError):
        return float("nan")


@contextmanager
def _in_evaluation(modules: list[nn.Module]) -> Iterator[None]:
    """Layers in evaluation mode, and afterwards each in the mode that it was in."""
    before = [(layer, layer.training) for part in modules for layer in part.modules()]
    try:
        for part in modules:
            part.eval()
        yield
    finally:
        for layer, training in before:
            layer.training = training
