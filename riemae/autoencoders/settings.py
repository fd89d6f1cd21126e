"""The settings of an autoencoder: what they mean, and which values are allowed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from riemae.autoencoders.batches import Neighbors
from riemae.autoencoders.latents import latent_of
from riemae.autoencoders.likelihoods import Likelihood
from riemae.autoencoders.objective import Objective
from riemae.autoencoders.optimization import MakeOptimizer, MakeSchedule, Steps
from riemae.autoencoders.terms import Term, Variation
from riemae.exceptions import DeviceError, OptionError
from riemae.numerics.checks import expect_range
from riemae.numerics.compiling import Compiling

if TYPE_CHECKING:
    from collections.abc import Iterable

# Settings that may change between an interrupted run and the run that goes on from its checkpoint.
_FREE = (
    "epochs",
    "progress",
    "logger",
    "directory",
    "checkpoint_every",
    "trainer",
    "device",
    "warm_start",
    "compile",
)


@dataclass(kw_only=True, repr=False, eq=False)
class Settings:
    """The settings of every autoencoder in this package, and the methods that variants override.

    Args:
        latent_dim: m, the dimension of the latent space.
        latent: The latent space: None for R^m; ``"torus"``, m angles; ``"sphere"``, S^m in
            stereographic coordinates; or ``"poincare"``, the hyperbolic ball. ``manifold_`` knows
            it. Encoders and decoders of your own return and take what
            :mod:`riemae.autoencoders.latents` says.
        hidden: Widths of the encoder's hidden layers, or one width for one layer. The decoder has
            the same widths in reverse order.
        activation: ``"silu"``, ``"gelu"``, ``"elu"``, ``"softplus"``, ``"tanh"``, or ``"relu"`` (no
            curvature).
        likelihood: ``"squared_error"``, ``"bernoulli"``, ``"poisson"``, ``"negative_binomial"``,
            ``"zero_inflated_poisson"``, ``"zero_inflated_negative_binomial"``, ``"categorical"``,
            ``"chamfer"`` for point clouds ``(n, points, d)``, or an instance, such as
            ``NegativeBinomial("learned", library=True)``.
        ambient: Metric of the data space for all geometric terms and for ``manifold_``: as in
            :class:`~riemae.Manifold`, or ``"fisher"``, the likelihood's Fisher-Rao metric.
        terms: Geometric losses in addition to those of the class: by name, a weight or a
            :class:`~riemae.autoencoders.Term`, such as
            ``{"extrinsic_curvature": 1e-3, "relaxed_distortion": 0.1}``.
        encoder: A module of your own, ``(k, *shape) -> (k, latent_dim)``; a copy is trained.
        decoder: A module of your own, ``(k, latent_dim) -> (k, *shape)``; a copy is trained. It
            returns the likelihood's parameters: logits for Bernoulli and categorical, log means for
            Poisson and negative binomial; with additional zeros ``(k, 2, *shape)``, log means and
            logits of such a zero.
        epochs: Passes over the data.
        batch_size: Samples per step, over all processes.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        optimizer: ``"adam"``, ``"nadam"``, ``"radam"``, ``"rmsprop"``, ``"sgd"`` (with momentum),
            or a function of the parameters that returns an optimizer, such as
            ``functools.partial(torch.optim.Adagrad, lr=0.1)``; ``lr`` and ``weight_decay`` are then
            not used.
        schedule: Of the learning rate: ``"constant"``; ``"cosine"`` down to 0 at the last epoch;
            ``"plateau"``, halved after 10 epochs without a lower loss; ``"warmup"``, which rises
            over the first 100 steps; ``"warmup_cosine"``; or a function of the optimizer that
            returns a scheduler, which is stepped every epoch.
        clip: Largest norm of the gradient; None for no limit; ``"auto"`` is 1 where there are
            geometric terms, and no limit elsewhere.
        warmup: Steps over which the weights of all geometric terms rise from 0 in a first fit.
        early_stopping: Number of epochs without a lower loss after which training stops, or None to
            train for all epochs. It is the loss of the validation data if there are any. With
            validation data, the weights with the lowest loss are those that are kept.
        validation_fraction: Share of the samples that is kept out of training.
        restore_best: Whether the weights with the lowest loss of the validation data are kept, and
            not those of the last epoch.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``.
        precision: Lightning's ``"bf16-mixed"`` or ``"16-mixed"``, or None for the data's own;
            geometric terms are computed in float32 in any case.
        progress: Show a bar with the parts of the loss.
        logger: ``"csv"``, ``"tensorboard"`` (both write to ``directory``), or a lightning logger.
        directory: Where checkpoints and logs are written. A fit that finds a checkpoint of the same
            settings and data there goes on from it, to the same weights as without the
            interruption. Warm starts and ``partial_fit`` neither read nor write checkpoints, which
            do not hold the weights that they start from. A second fit into the same directory at
            the same time raises a ``FileError`` at once.
        checkpoint_every: Epochs between checkpoints. There is one at the end in any case.
        trainer: Further arguments of lightning's ``Trainer``, such as
            ``{"devices": 2, "strategy": "ddp"}``.
        warm_start: Whether ``fit`` goes on from the weights of the previous ``fit``.
        compile: Whether the steps of the training, and the passes of ``manifold_``, are compiled by
            ``torch.compile``: as in :class:`~riemae.Manifold`. The first step is made both ways;
            where they differ by more than rounding, training goes on without, with a warning.
        seed: Decides everything random.
    """

    latent_dim: int = 2
    latent: str | None = None
    hidden: int | tuple[int, ...] = (128, 128)
    activation: str = "silu"
    likelihood: str | Likelihood = "squared_error"
    ambient: Any = None
    terms: Mapping[str, float | Term] | None = None
    encoder: nn.Module | None = None
    decoder: nn.Module | None = None
    epochs: int = 200
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.0
    optimizer: str | MakeOptimizer = "adam"
    schedule: str | MakeSchedule = "constant"
    clip: float | str | None = "auto"
    warmup: int = 0
    early_stopping: int | None = None
    validation_fraction: float = 0.0
    restore_best: bool = True
    device: str = "cpu"
    precision: str | None = None
    progress: bool = False
    logger: Any = None
    directory: Any = None
    checkpoint_every: int = 50
    trainer: Mapping[str, Any] | None = None
    warm_start: bool = False
    compile: bool | str | Mapping[str, Any] = False
    seed: int = 0

    # What a variant changes.

    def variation(self) -> Variation:
        """How this kind of autoencoder changes data, codes or reconstruction in training."""
        return Variation()

    def own_terms(self) -> dict[str, float | Term]:
        """Terms that this kind of autoencoder adds to the reconstruction, by name."""
        return {}

    def neighbors_of(self, x: Tensor) -> Neighbors | None:
        """The graph from which training draws neighbours of the samples ``x``, or None."""
        return None

    def initialise(self, objective: Objective, data: Tensor) -> None:
        """Change the random weights from which training starts; by default nothing is changed."""


def check_settings(settings: Settings, epochs: int) -> None:
    """Refuse values that no training can use.

    Args:
        settings: To be checked.
        epochs: Passes over the data in the training that is about to begin.

    Raises:
        OptionError: For the first setting out of range.
    """
    where = type(settings).__name__
    for name in ("latent_dim", "batch_size", "checkpoint_every"):
        expect_range(where, name, getattr(settings, name), 1, integer=True)
    expect_range(where, "epochs", epochs, 1, integer=True)
    share = settings.validation_fraction
    if not _is_number(share) or not 0 <= share < 1:
        hint = "Try 0.1, or 0 to train on all samples."
        raise OptionError(where, "validation_fraction in [0, 1)", repr(share), hint)
    latent_of(settings.latent)
    Compiling.of(where, settings.compile)
    steps_of(settings).check(where)
    weight = getattr(settings, "weight", 0.0)
    hint = "Use 0 to leave the term out, and terms={…: Term(…, schedule=…)} for one that changes."
    expect_range(where, "weight", weight, hint=hint)
    if settings.early_stopping is not None:
        hint = "Use None to train for all epochs."
        expect_range(where, "early_stopping", settings.early_stopping, 1, hint=hint)
    expect_range(where, "seed", settings.seed, integer=True, hint="Try seed=0.")


def check_split(settings: Settings, count: int) -> None:
    """Refuse a split that leaves too little to train on.

    Args:
        settings: They hold the share of samples that is kept out of training.
        count: Number of all samples.

    Raises:
        OptionError: When fewer than 2 samples are left.
    """
    held = round(settings.validation_fraction * count)
    if held and count - held < 2:
        share = settings.validation_fraction
        raise OptionError(
            type(settings).__name__,
            "a validation_fraction that leaves 2 samples to train on",
            f"{share} of n_samples = {count}, which leaves {count - held}",
            "Lower it, or add samples.",
        )


def widths_of(settings: Settings) -> tuple[int, ...]:
    """Widths of the encoder's layers.

    Raises:
        OptionError: When ``hidden`` is neither a width nor a sequence of them.
    """
    hidden = settings.hidden
    if isinstance(hidden, (int, np.integer)) and not isinstance(hidden, bool):
        return (int(hidden),)
    if isinstance(hidden, (tuple, list)):
        return tuple(hidden)
    hint = "Try hidden=(128, 128)."
    raise OptionError("hidden", "a width, or a tuple of widths", repr(hidden), hint)


def device_of(settings: Settings) -> torch.device:
    """Where the networks are trained.

    Raises:
        DeviceError: When this machine has no such device.
    """
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(settings.device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as reason:
        problem = (str(reason) or type(reason).__name__).splitlines()[0]
        where = type(settings).__name__
        got = f"{settings.device!r}: {problem}"
        hint = "Try device='auto', or 'cpu'."
        raise DeviceError(where, "a device of this machine", got, hint) from reason
    return found


def steps_of(settings: Settings) -> Steps:
    """How the steps of the training are made."""
    return Steps(
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        optimizer=settings.optimizer,
        schedule=settings.schedule,
        clip=settings.clip,
        warmup=settings.warmup,
    )


def fingerprint(
    settings: Settings, parameters: Iterable[tuple[str, Any]], data: Iterable[Tensor]
) -> str:
    """A digest of settings and data, by which the checkpoint of another training is refused.

    Args:
        settings: Of the training.
        parameters: Names and values of all constructor arguments.
        data: What the networks are trained and judged on, as far as it does not come from loaders.
    """
    # The number of epochs may change, except where a rate or a weight depends on it.
    depends = steps_of(settings).depends_on_epochs or _scheduled(settings)
    decisive = {
        name: value
        for name, value in parameters
        if name not in _FREE or (name == "epochs" and depends)
    }
    described = repr((type(settings).__name__, sorted(decisive.items())))
    digest = hashlib.sha256(described.encode())
    for part in data:
        digest.update(np.ascontiguousarray(part.cpu().numpy()).tobytes())
    return digest.hexdigest()


def _scheduled(settings: Settings) -> bool:
    """Whether a weight depends on the progress of the training."""
    terms = [*settings.own_terms().values(), *(settings.terms or {}).values()]
    own = any(isinstance(term, Term) and term.schedule is not None for term in terms)
    return own or settings.variation().beta_schedule is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
