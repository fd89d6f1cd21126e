"""Autoencoders in scikit-learn's manner, trained by lightning."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from riemae.autoencoders import saved
from riemae.autoencoders.batches import Batches, Fixed, Neighbors, derived_seed
from riemae.autoencoders.inputs import dense
from riemae.autoencoders.likelihoods import Chamfer, Likelihood, as_likelihood
from riemae.autoencoders.neighborhood import Neighborhood, as_neighborhood
from riemae.autoencoders.networks import build_decoder, build_encoder, fit_codes
from riemae.autoencoders.objective import RIDGE, Objective, Term, Variation
from riemae.autoencoders.report import Report, report
from riemae.exceptions import (
    DataError,
    DTypeError,
    MissingExtraError,
    NonFiniteError,
    OptionError,
    ShapeError,
)
from riemae.manifold import Manifold
from riemae.numerics.random import restored
from riemae.numerics.reach import copied

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as reason:
    raise MissingExtraError(
        "riemae.autoencoders",
        "scikit-learn 1.6 or later",
        str(reason),
        "pip install 'riemae[train]'",
    ) from reason

_CHUNK = 8192  # samples encoded or decoded at once
_REFERENCE = 10_000  # samples of a DataLoader that set the units
_LOOKED_AT = 2000  # samples that a report is about
_NEIGHBORHOOD = 10  # neighbours in it
# What may change between an interrupted run and the one that goes on with it.
_FREE = (
    "epochs",
    "progress",
    "logger",
    "directory",
    "checkpoint_every",
    "trainer",
    "device",
    "warm_start",
)


@dataclass(kw_only=True, repr=False, eq=False)
class AE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A plain autoencoder, and everything that its geometric relatives have in common.

    ``fit`` takes numpy arrays, torch tensors, Datasets, DataLoaders, scipy's sparse matrices (made
    dense) and AnnData (its ``X``); images and point clouds keep their shape. Training and results
    have the dtype of the data: float32 is faster, float64 is what fine geometry wants. The networks
    work in units of the data's spread, one for all features, and the weights of all terms are
    relative to the fraction of deviance left unexplained (1 − R² for the squared error): neither
    depends on the units or the dimension of the data.

    Args:
        latent_dim: m.
        hidden: Widths of the encoder's layers, or one width of one layer; the decoder has them in
            reverse.
        activation: ``"silu"``, ``"gelu"``, ``"elu"``, ``"softplus"``, ``"tanh"``, or ``"relu"`` (no
            curvature).
        likelihood: ``"squared_error"``, ``"bernoulli"``, ``"poisson"``, ``"negative_binomial"``,
            ``"categorical"``, ``"chamfer"`` for point clouds ``(n, points, d)``, or an instance.
        ambient: Metric of the data space for all geometric terms and for ``manifold_``: as in
            :class:`~riemae.Manifold`, or ``"fisher"``, the likelihood's Fisher-Rao metric.
        terms: Geometric losses by name,
            ``{"extrinsic_curvature": 1e-3, "relaxed_distortion": 0.1}``, with weights or
            :class:`~riemae.autoencoders.Term`; beside those that the class brings.
        encoder: A module of your own, ``(k, *shape) -> (k, latent_dim)``; a copy is trained.
        decoder: Likewise, ``(k, latent_dim) -> (k, *shape)``, the likelihood's parameters: logits
            for Bernoulli and categorical, log means for Poisson and negative binomial.
        epochs: Passes over the data.
        batch_size: Samples a step, over all processes.
        lr: Learning rate of Adam.
        weight_decay: Decoupled weight decay.
        schedule: Learning rate ``"constant"`` or ``"cosine"`` down to 0.
        clip: Largest norm of the gradient, or None.
        early_stopping: Epochs without a lower loss, of validation data if there are any, after
            which it stops.
        validation_fraction: Of the samples, kept out of training.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``.
        precision: Lightning's ``"bf16-mixed"`` or ``"16-mixed"``, or None for the data's own;
            geometric terms are computed in float32 all the same.
        progress: Show a bar with the parts of the loss.
        logger: ``"csv"``, ``"tensorboard"`` (both write to ``directory``), or a lightning logger.
        directory: Where checkpoints and logs go. A fit that finds a checkpoint of the same settings
            and data there goes on from it, to the same weights as without the interruption. Warm
            starts and ``partial_fit`` start from weights that no checkpoint knows, and leave them
            alone. A second fit into it at the same time raises a ``FileError`` at once.
        checkpoint_every: Epochs between checkpoints.
        trainer: Further arguments of lightning's ``Trainer``, such as
            ``{"devices": 2, "strategy": "ddp"}``.
        warm_start: Whether ``fit`` goes on from the weights of the last one.
        seed: Of everything random.

    Attributes:
        encoder_: Trained encoder.
        decoder_: Trained decoder.
        manifold_: The :class:`~riemae.Manifold` of the decoder.
        history_: Mean of every part of the loss over each epoch, by name.
        n_epochs_: Epochs trained.
        objective_: Networks and loss together.
        report_: A :class:`~riemae.autoencoders.report.Report`: what the geometry is like, and what
            to try.
        data_shape_: Shape of one sample.
        n_features_in_: Its first axis.

    Raises:
        OptionError: In ``fit``, for settings out of range.
        DataError: In ``fit``, for data that do not vary, or that the likelihood does not allow.
        DTypeError: For data that are neither an array nor any other of these.
        NonFiniteError: For NaN or infinity in the data.
        ShapeError: When data or networks do not fit.
        AmbientError: When the metric does not fit the data.
        TrainingError: When the loss explodes at once.

    Warns:
        DivergenceWarning: When the loss explodes later; the best weights are kept.
        SmoothnessWarning: When curvature is asked of a piecewise linear decoder.

    Example:
        >>> import numpy as np
        >>> from riemae.autoencoders import AE
        >>> x = np.random.default_rng(0).normal(size=(40, 3))
        >>> AE(latent_dim=2, hidden=(8,), epochs=2).fit_transform(x).shape
        (40, 2)
    """

    latent_dim: int = 2
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
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float | None = None
    early_stopping: int | None = None
    validation_fraction: float = 0.0
    device: str = "cpu"
    precision: str | None = None
    progress: bool = False
    logger: Any = None
    directory: Any = None
    checkpoint_every: int = 50
    trainer: Mapping[str, Any] | None = None
    warm_start: bool = False
    seed: int = 0

    def fit(self, X: Any, y: Any = None) -> AE:
        """Train.

        Args:
            X: ``(n, *shape)`` as an array or a tensor; a Dataset or a DataLoader of tensors, of
                sequences that begin with one, or of ``{"x": …}``; a sparse matrix; or an AnnData,
                whose ``X`` is taken. See :mod:`riemae.autoencoders.inputs`.
            y: Ignored.

        Raises:
            FileError: When another fit is writing into ``directory``; the model is as it was
                before.
            KeyboardInterrupt: When it is interrupted; the model is as trained as it was by then.
        """
        fresh = not (self.warm_start and hasattr(self, "objective_"))
        return self._train(X, self.epochs, fresh, optimizer_state=None)

    def partial_fit(self, X: Any, y: Any = None) -> AE:
        """One more epoch on these data; units, likelihood and networks are those of the first call.

        Args:
            X: As in :meth:`fit`.
            y: Ignored.
        """
        return self._train(
            X, 1, not hasattr(self, "objective_"), getattr(self, "_optimizer_state", None)
        )

    def transform(self, X: Any) -> Any:
        """Codes ``(n, latent_dim)``.

        A tensor for tensors, Datasets and DataLoaders, numpy for all else.
        """
        check_is_fitted(self, "objective_")
        return self._like(X, self._apply(self.objective_.encode, X))

    def inverse_transform(self, Z: Any) -> Any:
        """Expected data ``(n, *shape)`` of codes.

        Raises:
            ShapeError: When the codes are not ``(n, latent_dim)``.
            DTypeError: When they are not numbers.
            NonFiniteError: For NaN or infinity in the codes.
        """
        check_is_fitted(self, "objective_")
        z = self._codes(Z)
        if z.ndim != 2 or z.shape[1] != self.objective_.latent_dim:
            got = str(tuple(z.shape))
            raise ShapeError(
                "inverse_transform", f"codes (n, {self.objective_.latent_dim})", got, ""
            )
        if not bool(z.isfinite().all()):
            raise NonFiniteError("inverse_transform", "finite codes", "NaN or infinity", "")
        with torch.no_grad():
            return self._like(
                Z, torch.cat([self.objective_.decode(part) for part in z.split(_CHUNK)])
            )

    def _codes(self, Z: Any) -> Tensor:
        where = "inverse_transform"
        if not isinstance(Z, Tensor):
            try:
                Z = np.array(dense(where, Z), dtype=None if isinstance(Z, np.ndarray) else float)
                return torch.as_tensor(Z).to(self.objective_.null)
            except (TypeError, ValueError) as reason:
                if isinstance(reason, DTypeError):
                    raise
                raise DTypeError(
                    where, "codes as numbers (n, latent_dim)", str(reason), ""
                ) from reason
        return dense(where, Z).to(self.objective_.null)

    def score(self, X: Any, y: Any = None) -> float:
        """Fraction of the deviance explained by the reconstruction, relative to the training
        data's; R² for squares.

        Args:
            X: As in :meth:`fit`.
            y: Ignored.
        """
        check_is_fitted(self, "objective_")
        return 1.0 - float(self._apply(self.objective_.unexplained, X).mean())

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the trained model, in place of one that may be there: safetensors and JSON, never a
        pickle, atomically.

        Networks, settings, units, history and report are kept; :func:`riemae.load` brings them
        back. Not kept: the optimizer's state (``partial_fit`` begins with a new one), and loggers,
        callbacks and graphs of neighbours.

        Args:
            directory: Made when missing.

        Returns:
            The directory.

        Raises:
            CheckpointError: When the directory is a file.
        """
        check_is_fitted(self, "objective_")
        return saved.save(self, directory)

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str], device: torch.device | str = "cpu", **given: Any
    ) -> AE:
        """As :func:`riemae.load`, for a checkpoint of this class, which may be one of your own.

        Args:
            directory: Where :meth:`save` wrote.
            device: Where the model goes.
            given: As in :func:`riemae.load`.

        Raises:
            CheckpointError: As in :func:`riemae.load`, and for a model of another class.
        """
        return saved.read(directory, device, given, {cls.__name__: cls})

    @property
    def report_(self) -> Report:
        """Diagnostics on (a part of) the training data, computed when they are first asked for.

        Raises:
            OptionError: When there were fewer than 4 samples.
        """
        check_is_fitted(self, "objective_")
        found: Report | None = self._report
        if found is None:
            if self._sample is None or len(self._sample) < 4:
                got = "none" if self._sample is None else f"n_samples = {len(self._sample)}"
                raise OptionError(
                    f"{type(self).__name__}.report_",
                    "at least 4 samples of the training data",
                    got,
                    "",
                )
            k = min(_NEIGHBORHOOD, len(self._sample) // 2 - 1)
            found = report(self.manifold_, self.objective_.encode, self._sample, k=k)
            self._report: Report | None = found
        return found

    def costs(self, X: Any) -> dict[str, dict[str, float]]:
        """Value, weight, share of the loss and seconds a training step of every part, on a batch of
        X.
        """
        check_is_fitted(self, "objective_")
        objective = copied(self.objective_).requires_grad_().train()
        x = next(self._chunks(X, reset=False, size=self.batch_size))
        # The cost of a neighbour does not depend on which one it is.
        return objective.costs(x, x.roll(1, 0) if objective.variation.order is not None else None)

    @property
    def manifold_(self) -> Manifold:
        """The decoder's manifold under the ambient metric."""
        check_is_fitted(self, "objective_")
        return self.objective_.manifold

    @property
    def encoder_(self) -> nn.Module:
        """The trained encoder."""
        check_is_fitted(self, "objective_")
        return self.objective_.encoder

    @property
    def decoder_(self) -> nn.Module:
        """The trained decoder."""
        check_is_fitted(self, "objective_")
        return self.objective_.decoder

    @property
    def _n_features_out(self) -> int:
        return self.objective_.latent_dim

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.sparse = True  # made dense
        return tags

    # What the relatives change.

    def variation(self) -> Variation:
        """How this kind of autoencoder changes the data, the codes or the reconstruction in
        training.
        """
        return Variation()

    def own_terms(self) -> dict[str, float | Term]:
        """Terms that this kind of autoencoder adds to the reconstruction, by name."""
        return {}

    def _neighbors(self, x: Tensor) -> Neighbors | None:
        return None

    def _initialise(self, objective: Objective, data: Tensor) -> None:
        """Weights to start from, other than random ones."""

    # Training.

    def _train(
        self, X: Any, epochs: int, fresh: bool, optimizer_state: dict[str, Any] | None
    ) -> AE:
        from riemae.autoencoders.training import claimed

        self._check_options(epochs)
        with claimed(self._run(epochs, None, fresh)):  # before anything of the model is changed
            return self._trained(X, epochs, fresh, optimizer_state)

    def _trained(
        self, X: Any, epochs: int, fresh: bool, optimizer_state: dict[str, Any] | None
    ) -> AE:
        from riemae.autoencoders.module import GeometricModule
        from riemae.autoencoders.training import train

        loader = X if isinstance(X, DataLoader) else None
        device = self._device()
        data = self._data(X, reset=fresh).to(device)
        self._check_split(len(data), loader)
        if fresh:
            self.objective_ = self._objective(data)
            if loader is None:
                self._initialise(self.objective_, data)
            self.history_: dict[str, list[float]] = {}
        objective = self.objective_.requires_grad_().train()
        module = GeometricModule.of(
            objective.to(device),
            lr=self.lr,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            seed=derived_seed(self.seed, len(self.history_.get("loss", []))),
            history=self.history_,
            optimizer_state=optimizer_state,
        )
        batches, validation = (loader, None) if loader is not None else self._batches(data)
        try:
            train(
                module,
                batches,
                self._run(epochs, data if loader is None else None, fresh),
                validation,
            )
        finally:
            self.history_ = module.history
            self.n_epochs_: int = len(module.history.get("loss", []))
            self._optimizer_state: dict[str, Any] | None = module.optimizer_state
            self._sample: Tensor | None = _part(data, self.seed)
            self._report = None
            objective.to(device).eval().requires_grad_(False)
            objective.zero_grad()
        return self

    def _objective(self, data: Tensor) -> Objective:
        size = math.prod(data.shape[1:])
        if len(data) < 2:
            raise DataError(
                type(self).__name__, "at least 2 samples", f"n_samples = {len(data)}", ""
            )
        if self.latent_dim > size:
            raise OptionError(
                type(self).__name__,
                "latent_dim of at most the number of features",
                f"latent_dim = {self.latent_dim} with n_features = {size}",
                "A decoder cannot be an immersion into a smaller space.",
            )
        likelihood = as_likelihood(self.likelihood).fitted(data)
        variation = self.variation()
        outputs = self.latent_dim * (1 if variation.beta is None else 2)
        center, spread = data.mean(0), data.flatten(1).var(0, correction=0).mean().sqrt()
        if isinstance(likelihood, Chamfer):
            center = likelihood.null(data)
        with restored():
            torch.manual_seed(derived_seed(self.seed, 3))
            encoder, decoder = copied(self.encoder), copied(self.decoder)
            if encoder is None:
                sets = isinstance(likelihood, Chamfer)
                encoder = build_encoder(
                    center, spread, outputs, self._widths, self.activation, sets=sets
                ).to(data)
            if decoder is None:
                scale = spread if likelihood.linear else torch.ones_like(spread)
                null = likelihood.null(data)
                decoder = build_decoder(
                    null, scale, self.latent_dim, self._widths[::-1], self.activation
                ).to(data)
        terms = {**self.own_terms(), **(self.terms or {})}
        objective = Objective(
            encoder, decoder, data, likelihood, self.ambient, terms, variation, self.latent_dim
        )
        return objective.to(data.device)

    @property
    def _widths(self) -> tuple[int, ...]:
        """Widths of the encoder's layers.

        Raises:
            OptionError: When ``hidden`` is neither a width nor a sequence of them.
        """
        if isinstance(self.hidden, (int, np.integer)) and not isinstance(self.hidden, bool):
            return (int(self.hidden),)
        if isinstance(self.hidden, (tuple, list)):
            return tuple(self.hidden)
        raise OptionError(
            "hidden", "a width, or a tuple of widths", repr(self.hidden), "For instance (128, 128)."
        )

    def _batches(self, data: Tensor) -> tuple[Batches, Fixed | None]:
        seed = derived_seed(self.seed, 4)
        held = round(self.validation_fraction * len(data))
        if not held:
            return Batches(data, self.batch_size, seed, self._neighbors(data)), None
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(
            data.device
        )
        rest, kept = data[order[held:]], data[order[:held]]
        # Neighbours of unseen samples among themselves: the same kind of graph.
        validation = Fixed(list(Batches(kept, held, seed, self._neighbors(kept))))
        return Batches(rest, self.batch_size, seed, self._neighbors(rest)), validation

    def _run(self, epochs: int, data: Tensor | None, fresh: bool) -> Any:
        from riemae.autoencoders.training import Run

        device = self._device()
        own = self.precision if self.precision not in (None, "32-true", "64-true") else "32-true"
        return Run(
            epochs=epochs,
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=1 if device.index is None else [device.index],
            # Lightning's own "32-true" leaves the networks' dtype alone: they already have the
            # data's.
            precision=own,
            clip=self.clip,
            patience=self.early_stopping,
            progress=self.progress,
            logger=self.logger,
            directory=self.directory,
            checkpoints=fresh,
            checkpoint_every=self.checkpoint_every,
            fingerprint="" if self.directory is None else self._fingerprint(data),
            trainer=self.trainer or {},
        )

    def _fingerprint(self, data: Tensor | None) -> str:
        settings = {
            k: v
            for k, v in self.get_params(deep=False).items()
            if k not in _FREE or (k == "epochs" and self.schedule == "cosine")
        }
        digest = hashlib.sha256(repr((type(self).__name__, sorted(settings.items()))).encode())
        if data is not None:
            digest.update(np.ascontiguousarray(data.cpu().numpy()).tobytes())
        return digest.hexdigest()

    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def _check_options(self, epochs: int) -> None:
        where = type(self).__name__
        for name in ("latent_dim", "batch_size", "checkpoint_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise OptionError(where, f"{name} as an integer of at least 1", repr(value), "")
        if not isinstance(epochs, int | np.integer) or epochs < 1:
            raise OptionError(where, "epochs of at least 1", repr(epochs), "")
        if not _is_number(self.validation_fraction) or not 0 <= self.validation_fraction < 1:
            raise OptionError(
                where, "validation_fraction in [0, 1)", repr(self.validation_fraction), ""
            )
        if self.clip is not None and not (_is_number(self.clip) and 0 < self.clip < math.inf):
            raise OptionError(
                where, "clip as a positive norm, or None", repr(self.clip), "None clips nothing."
            )
        weight = getattr(self, "weight", 0.0)
        if not (_is_number(weight) and math.isfinite(weight)):
            raise OptionError(
                where, "weight as a finite number", repr(weight), "0 leaves the term out."
            )
        if self.early_stopping is not None and self.early_stopping < 1:
            raise OptionError(
                where, "early_stopping of at least 1 epoch, or None", str(self.early_stopping), ""
            )
        if not isinstance(self.seed, int | np.integer):
            raise OptionError(where, "seed as an integer", repr(self.seed), "")

    def _check_split(self, n: int, loader: Any) -> None:
        held = round(self.validation_fraction * n)
        if loader is None and held and n - held < 2:
            raise OptionError(
                type(self).__name__,
                "a validation_fraction that leaves 2 samples to train on",
                f"{self.validation_fraction} of n_samples = {n}, which leaves {n - held}",
                "Lower it.",
            )

    # Data in and out.

    def _data(self, X: Any, reset: bool) -> Tensor:
        """All data as one tensor; of a DataLoader, a sample that sets the units.

        Raises:
            DataError: For a DataLoader without batches.
        """
        if not isinstance(X, DataLoader):
            return self._tensor(X, reset)
        from riemae.autoencoders.module import unpacked

        parts: list[Tensor] = []
        for batch in X:
            parts.append(unpacked(batch)[0])
            if sum(map(len, parts)) >= _REFERENCE:
                break
        if not parts:
            raise DataError(type(self).__name__, "a DataLoader with batches", "an empty one", "")
        return self._tensor(torch.cat(parts), reset)

    def _tensor(self, X: Any, reset: bool) -> Tensor:
        where = type(self).__name__
        X = dense(where, X)
        if isinstance(X, Tensor):
            x = self._checked_tensor(X, reset)
        else:
            kinds = [np.float64, np.float32]
            array = validate_data(
                self, X, reset=reset, dtype=kinds, allow_nd=True, ensure_all_finite=False
            )
            # A copy where the memory is not writable, or in another order: torch knows no negative
            # strides, and the same data are to give the same bits.
            plain = array.flags.writeable and array.flags.c_contiguous
            x = torch.as_tensor(array if plain else array.copy(order="C"))
        bad = (~x.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            got = f"NaN or infinity (inf) at {len(bad)} of {len(x)} rows (first: {bad[:5]})"
            raise NonFiniteError(where, "finite data", got, "Remove or impute them.")
        if reset:
            self.data_shape_ = tuple(x.shape[1:])
        elif tuple(x.shape[1:]) != self.data_shape_:
            raise ShapeError(
                where, f"data (n, {', '.join(map(str, self.data_shape_))})", str(tuple(x.shape)), ""
            )
        return x

    def _checked_tensor(self, X: Tensor, reset: bool) -> Tensor:
        where = type(self).__name__
        if X.ndim < 2 or not len(X):
            hint = "One row a sample: X.reshape(-1, 1) for a single feature."
            raise ShapeError(where, "data (n, *shape)", str(tuple(X.shape)), hint)
        if X.is_complex() or X.dtype in (torch.float16, torch.bfloat16):
            raise DTypeError(
                where, "real data, float32 or float64", str(X.dtype), "Convert with .float()."
            )
        if reset:
            self.n_features_in_ = X.shape[1]
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        return X.detach() if X.is_floating_point() else X.to(torch.get_default_dtype())

    def _chunks(self, X: Any, reset: bool, size: int) -> Iterator[Tensor]:
        if not isinstance(X, DataLoader):
            for part in self._tensor(X, reset).split(size):
                yield part.to(self.objective_.null)
            return
        from riemae.autoencoders.module import unpacked

        for batch in X:
            yield self._tensor(unpacked(batch)[0], reset).to(self.objective_.null)

    @torch.no_grad()
    def _apply(self, f: Any, X: Any) -> Tensor:
        return torch.cat([f(part) for part in self._chunks(X, reset=False, size=_CHUNK)])

    @staticmethod
    def _like(X: Any, out: Tensor) -> Any:
        if isinstance(X, (DataLoader, Dataset)):
            return out.cpu()
        return out.to(X.device) if isinstance(X, Tensor) else out.cpu().numpy()


@dataclass(kw_only=True, repr=False, eq=False)
class VAE(AE):
    """A variational autoencoder; ``transform`` gives the means of the codes.

    Args:
        beta: Weight of the Kullback-Leibler divergence; 1 is the evidence lower bound.
        noise: For the squared error: standard deviation of the Gaussian likelihood, in units of the
            data's.

    All others as in :class:`AE`. An encoder of your own returns means and log variances side by
    side, ``(k, 2m)``.
    """

    beta: float = 1.0
    noise: float = 0.1

    def variation(self) -> Variation:
        """See :meth:`AE.variation`."""
        return Variation(beta=self.beta, noise=self.noise)


@dataclass(kw_only=True, repr=False, eq=False)
class DenoisingAE(AE):
    """Reconstructs data from a version with noise (Vincent et al. 2008).

    Args:
        corruption: Standard deviation of the Gaussian noise, in units of the data's.

    All others as in :class:`AE`.
    """

    corruption: float = 0.1

    def variation(self) -> Variation:
        """See :meth:`AE.variation`."""
        return Variation(corruption=self.corruption)


@dataclass(kw_only=True, repr=False, eq=False)
class ContractiveAE(AE):
    """Penalises the sensitivity of the codes to the data (Rifai et al. 2011).

    Args:
        weight: Of :func:`~riemae.autoencoders.losses.contraction`, which is 1 at best for a linear
            encoder.

    All others as in :class:`AE`.
    """

    weight: float = 1e-2

    def variation(self) -> Variation:
        """See :meth:`AE.variation`."""
        return Variation(contraction=self.weight)


@dataclass(kw_only=True, repr=False, eq=False)
class NRAE(AE):
    """Neighbourhood reconstructing autoencoder (Lee et al. 2021): each sample's neighbours lie
    where it expects them.

    Every step takes the samples of its batch and one random neighbour of each; the graph is built
    once.

    Args:
        order: Of the decoder's local expansion: 1 (NRAE-L) or 2 (NRAE-Q).
        neighbors: k of the directed graph of nearest neighbours.
        weight: λ, of the neighbours beside the reconstruction.
        neighborhood: A graph of your own: a
            :class:`~riemae.autoencoders.neighborhood.Neighborhood`, an adjacency matrix, a networkx
            graph, a table of neighbours ``(n, k)``, anything with
            ``sample(index, generator) -> index of a neighbour``, or a function of the data that
            makes one of these, such as
            ``functools.partial(Neighborhood.nearest, k=10, kind="mutual")``.
        init: Codes that the encoder is fitted to before training, ``(n, latent_dim)``, or
            ``"isomap"`` or ``"laplacian"``: the graph's embedding of that name. Training alone
            rarely undoes a fold.
        restarts: Trainings from different seeds, of which the one of the lowest loss is kept.

    All others as in :class:`AE`. A DataLoader has to bring the neighbours:
    ``{"x": …, "neighbor": …}``.

    Attributes:
        neighborhood_: The graph that it was trained on.
        restart_losses_: Final loss of every restart.
    """

    order: Literal[1, 2] = 2
    neighbors: int = 5
    weight: float = 1.0
    neighborhood: Any = None
    init: Any = None
    restarts: int = 1

    def fit(self, X: Any, y: Any = None) -> NRAE:
        """Train, as often as ``restarts`` says.

        Args:
            X: As in :meth:`AE.fit`.
            y: Ignored.

        Raises:
            OptionError: For fewer than one restart.
        """
        if self.restarts < 1:
            raise OptionError("NRAE", "restarts of at least 1", str(self.restarts), "")
        if self.restarts == 1:
            super().fit(X, y)
            self.restart_losses_ = [_final_loss(self)]
            return self
        from riemae.autoencoders.training import claimed

        with claimed(self._run(self.epochs, None, fresh=True)):
            return self._restarted(X)

    def _restarted(self, X: Any) -> NRAE:
        best: NRAE | None = None
        losses = []
        for i in range(self.restarts):
            folder = None if self.directory is None else Path(self.directory) / f"restart-{i}"
            seed = self.seed if i == 0 else derived_seed(self.seed, 5, i)
            candidate = clone(self).set_params(restarts=1, seed=seed, directory=folder).fit(X)
            losses.append(_final_loss(candidate))
            if best is None or losses[-1] < _final_loss(best):
                best = candidate
        # Everything learned, and none of the settings.
        assert best is not None
        self.__dict__.update(
            {k: v for k, v in vars(best).items() if k not in self.get_params(deep=False)}
        )
        self.restart_losses_ = losses
        return self

    def variation(self) -> Variation:
        """See :meth:`AE.variation`."""
        return Variation(order=self.order, neighbor_weight=self.weight)

    def _train(
        self, X: Any, epochs: int, fresh: bool, optimizer_state: dict[str, Any] | None
    ) -> AE:
        self._graph_of: Tensor | None = None
        try:
            return super()._train(X, epochs, fresh, optimizer_state)
        finally:
            del self._graph_of

    def _neighbors(self, x: Tensor) -> Neighbors | None:
        # The graph that the encoder starts from is the one to train on.
        if self._graph_of is not x:
            self.neighborhood_ = self._graph(x)
            self._graph_of = x
        return self.neighborhood_

    def _graph(self, x: Tensor) -> Neighbors:
        if self.neighborhood is None:
            n, k = len(x), self.neighbors
            if not 1 <= k < n:
                got = f"neighbors = {k} with n_samples = {n}"
                raise OptionError("NRAE", "fewer neighbors than samples, and at least 1", got, "")
            return Neighborhood.nearest(x.cpu(), k)
        graph = as_neighborhood(self.neighborhood, x)
        if hasattr(graph, "__len__") and len(graph) != len(x):
            hint = (
                "With validation_fraction, leave neighborhood out, or give a function of the data."
            )
            raise OptionError(
                "NRAE", f"a neighborhood of {len(x)} samples", f"one of {len(graph)}", hint
            )
        return graph

    def _initialise(self, objective: Objective, data: Tensor) -> None:
        if self.init is None:
            return
        if isinstance(self.init, str):
            graph: Any = self._neighbors(data)
            if not hasattr(graph, "embedding"):
                hint = (
                    "Give a riemae.autoencoders.neighborhood.Neighborhood, or the codes themselves."
                )
                raise OptionError(
                    "NRAE", "a neighborhood with an embedding", type(graph).__name__, hint
                )
            codes = graph.embedding(self.latent_dim, self.init, dtype=data.dtype)
        else:
            codes = torch.as_tensor(self.init)
        if codes.shape != (len(data), self.latent_dim):
            got = str(tuple(codes.shape))
            raise ShapeError(
                "NRAE", f"init of shape ({len(data)}, {self.latent_dim})", got, "One code a sample."
            )
        if not bool((codes.isfinite().all(0) & (codes.amax(0) > codes.amin(0))).all()):
            raise OptionError(
                "NRAE",
                "finite codes that vary in every dimension",
                "others",
                "What does init hold?",
            )
        fit_codes(objective.encoder, data, codes.to(data))


@dataclass(kw_only=True, repr=False, eq=False)
class MCAE(AE):
    """Minimum curvature autoencoder (Lee & Park 2023).

    The curvature does not see the latent coordinates, which may become anything:
    ``terms={"relaxed_distortion": 0.1}`` makes it an IRAE, too.

    Args:
        kind: ``"extrinsic"`` (MECAE): how fast tangent spaces turn; ``"intrinsic"`` (MICAE): the
            Riemann tensor, for two latent dimensions or more.
        weight: Of the curvature, in units of the data's extent: 2m for a sphere S^m of data.
        probes: Of the extrinsic curvature, a point and step; None for all latent directions,
            exactly, at m (m + 1)/2 second derivatives.

    All others as in :class:`AE`.
    """

    kind: Literal["extrinsic", "intrinsic"] = "extrinsic"
    weight: float = 1e-3
    probes: int | None = 1

    def own_terms(self) -> dict[str, float | Term]:
        """See :meth:`AE.own_terms`.

        Raises:
            OptionError: For an unknown kind of curvature.
        """
        if self.kind not in ("extrinsic", "intrinsic"):
            raise OptionError("MCAE", "kind 'extrinsic' or 'intrinsic'", repr(self.kind), "")
        if self.kind == "intrinsic":
            if self.latent_dim < 2:
                raise OptionError(
                    "MCAE",
                    "latent_dim of at least 2 for kind='intrinsic'",
                    str(self.latent_dim),
                    "Every curve is flat in itself.",
                )
            return {"intrinsic_curvature": self.weight}
        how = {"estimator": "exact"} if self.probes is None else {"probes": self.probes}
        return {"extrinsic_curvature": Term(self.weight, options={**how, "ridge": RIDGE})}


@dataclass(kw_only=True, repr=False, eq=False)
class IRAE(AE):
    """Isometrically regularised autoencoder (Lee et al. 2022): distances in the latent space are
    those of the data.

    Args:
        weight: Of the relaxed distortion.
        mixup: η: distortion is measured also between the codes, and beyond them by this share.
        probes: A point and step.

    All others as in :class:`AE`.
    """

    weight: float = 0.1
    mixup: float | None = 0.2
    probes: int = 1

    def own_terms(self) -> dict[str, float | Term]:
        """See :meth:`AE.own_terms`."""
        return _distortion(self.weight, self.mixup, self.probes)


@dataclass(kw_only=True, repr=False, eq=False)
class IRVAE(VAE):
    """The variational form of :class:`IRAE`: the same term at the sampled codes.

    Args:
        weight: Of the relaxed distortion.
        mixup: As in :class:`IRAE`.
        probes: As in :class:`IRAE`.

    All others as in :class:`VAE`.
    """

    weight: float = 0.1
    mixup: float | None = 0.2
    probes: int = 1

    def own_terms(self) -> dict[str, float | Term]:
        """See :meth:`AE.own_terms`."""
        return _distortion(self.weight, self.mixup, self.probes)


# What riemae.load brings back by the name in a checkpoint.
KINDS: dict[str, type[AE]] = {
    kind.__name__: kind for kind in (AE, VAE, DenoisingAE, ContractiveAE, NRAE, MCAE, IRAE, IRVAE)
}


def _distortion(weight: float, mixup: float | None, probes: int) -> dict[str, float | Term]:
    return {"relaxed_distortion": Term(weight, options={"mixup": mixup, "probes": probes})}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _part(data: Tensor, seed: int) -> Tensor:
    """What a report looks at; a copy, for the data are not ours to hold."""
    if len(data) <= _LOOKED_AT:
        return data.clone()
    generator = torch.Generator().manual_seed(derived_seed(seed, 6))
    return data[torch.randperm(len(data), generator=generator)[:_LOOKED_AT].to(data.device)]


def _final_loss(model: NRAE) -> float:
    """Mean loss of the last twentieth of the epochs: one epoch's depends on the neighbours that it
    drew.
    """
    losses = model.history_["loss"]
    return float(np.mean(losses[-max(1, len(losses) // 20) :]))
