"""Autoencoders with scikit-learn's interface, trained by lightning."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from riemae.autoencoders import saved
from riemae.autoencoders.balance import Balance
from riemae.autoencoders.batches import derived_seed
from riemae.autoencoders.covariates import Covariates, OneCondition
from riemae.autoencoders.history import History
from riemae.autoencoders.inputs import all_samples, chunks, dense, like_input
from riemae.autoencoders.likelihood import Likelihood
from riemae.autoencoders.report import Report, report
from riemae.autoencoders.settings import (
    Settings,
    check_settings,
    check_split,
    device_of,
    steps_of,
)
from riemae.exceptions import (
    DTypeError,
    MissingExtraError,
    NonFiniteError,
    OptionError,
)
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_shape
from riemae.numerics.reach import copied

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as reason:
    raise MissingExtraError(
        "riemae.autoencoders",
        "scikit-learn 1.6 or later",
        str(reason),
        "Try: pip install 'riemae[train]'",
    ) from reason

_CHUNK = 8192  # samples encoded or decoded at once
_NEIGHBORHOOD = 10  # neighbours in a report
_CODES = "Give one row of latent_dim numbers per sample, as transform does."


class AE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Settings, BaseEstimator):
    """A plain autoencoder, and the base class of its geometric variants.

    ``fit`` takes numpy arrays, torch tensors, Datasets, DataLoaders, scipy's sparse matrices (made
    dense) and AnnData (its ``X``). Images and point clouds keep their shape. Training and results
    have the dtype of the data: float32 is faster, float64 is more accurate.

    The networks work in units of the data's spread, which is one number for all features. The
    weights of all terms are relative to the fraction of deviance left unexplained (1 − R² for the
    squared error). Neither depends on the units or the dimension of the data.

    The arguments are those of :class:`~riemae.autoencoders.settings.Settings`. The most used ones:

    Args:
        latent_dim: m, the dimension of the latent space.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse order.
        likelihood: What the decoder's outputs mean, such as ``"squared_error"`` or ``"poisson"``.
        ambient: Metric of the data space, as in :class:`~riemae.Manifold`, or ``"fisher"``.
        terms: Geometric losses with their weights, by name.
        epochs: Passes over the data.
        seed: Decides everything random.

    Attributes:
        encoder_: Trained encoder.
        decoder_: Trained decoder.
        manifold_: The :class:`~riemae.Manifold` of the decoder.
        likelihood_: The likelihood with what it has taken from the data, such as a dispersion.
        history_: Mean of every part of the loss over each epoch, by name.
        n_epochs_: Number of epochs trained.
        objective_: Networks and loss together.
        report_: A :class:`~riemae.autoencoders.report.Report`: what the geometry is like, and what
            to try.
        data_shape_: Shape of one sample.
        n_features_in_: Its first axis.
        conditions_: How conditions become numbers, or None for a decoder of codes alone.

    Raises:
        OptionError: In ``fit``, for settings out of range.
        DataError: In ``fit``, for data that do not vary, or that the likelihood does not allow.
        DTypeError: For data of an unknown kind.
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

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        validation: Any = None,
        weights: Any = None,
        condition: Any = None,
    ) -> AE:
        """Train.

        Args:
            X: ``(n, *shape)`` as an array or a tensor; a Dataset or a DataLoader of tensors, of
                sequences that begin with one, or of ``{"x": …}``; a sparse matrix; or an AnnData,
                whose ``X`` is taken. See :mod:`riemae.autoencoders.inputs`.
            y: Ignored.
            validation: Data of the same kinds on which the loss is measured after every epoch;
                ``validation_fraction`` takes a share of the training data instead.
            weights: One number of at least 0 for each sample, by which it counts in the loss. They
                are not called ``sample_weight`` because scikit-learn asks of those that a weight
                of 2 is the same as having the sample twice, which no training by random batches
                keeps. The batches of a DataLoader hold them, as ``{"x": …, "weights": …}``, with a
                mean of 1.
            condition: What the decoder gets besides the codes, such as the batch of a cell: labels
                ``(n,)``, or covariates as numbers ``(n, c)``. The encoder sees the data alone.
                ``manifold_`` then takes ``condition=``, and :meth:`manifold` has one for all.

        Raises:
            FileError: When another fit is writing to ``directory``; the model is then unchanged.
            KeyboardInterrupt: When the user interrupts; the model keeps the training so far.
        """
        fresh = not (self.warm_start and hasattr(self, "objective_"))
        return self._train(X, self.epochs, fresh, None, validation, weights, condition)

    def partial_fit(self, X: Any, y: Any = None, *, condition: Any = None) -> AE:
        """One more epoch on these data; units, likelihood and networks are those of the first call.

        Args:
            X: As in :meth:`fit`.
            y: Ignored.
            condition: As in :meth:`fit`.
        """
        fresh = not hasattr(self, "objective_")
        state = getattr(self, "_optimizer_state", None)
        return self._train(X, 1, fresh, state, condition=condition)

    def transform(self, X: Any) -> Any:
        """Codes ``(n, latent_dim)``.

        A tensor for tensors, Datasets and DataLoaders; an array for everything else.
        """
        check_is_fitted(self, "objective_")
        return like_input(X, self.apply(self.objective_.encode, X))

    def inverse_transform(self, Z: Any, condition: Any = None) -> Any:
        """Expected data ``(n, *shape)`` of codes.

        Args:
            Z: Codes, as an array, a tensor or a list.
            condition: As in :meth:`condition`, for a decoder with conditions.

        Raises:
            OptionError: Without a condition that the decoder needs.
            ShapeError: When the codes are not ``(n, latent_dim)``.
            DTypeError: When they are not numbers.
            NonFiniteError: For NaN or infinity in the codes.
        """
        check_is_fitted(self, "objective_")
        where = "inverse_transform"
        z = self._codes(where, Z)
        expect_shape(where, "codes", z, ("n", self.objective_.latent_dim), _CODES)
        if not bool(z.isfinite().all()):
            hint = "Remove these rows; transform makes finite codes of finite data."
            raise NonFiniteError(where, "finite codes", "NaN or infinity", hint)
        with torch.no_grad():
            decoded = self._in_parts(self.objective_.decode, z, self.condition(condition, len(z)))
        return like_input(Z, decoded)

    def _in_parts(
        self, f: Callable[..., Tensor], z: Tensor, condition: Tensor | None
    ) -> Tensor:  # (n, …), (n, c) -> (n, …)
        """A function of rows and their conditions, part by part."""
        found = []
        for rows in torch.arange(len(z)).split(_CHUNK):
            places = rows.to(z.device)
            own = None if condition is None else condition[places]
            found.append(f(z[places], own))
        return torch.cat(found)

    def condition(self, condition: Any, count: int = 1) -> Tensor | None:  # -> (n, c)
        """Conditions as the decoder gets them, which ``manifold_`` takes; None without any.

        Args:
            condition: Labels or covariates as in :meth:`fit`, or one for all.
            count: Number of samples.

        Raises:
            OptionError: For a condition where the decoder has none, none where it has, or an
                unknown label.
            ShapeError: When there is not one for each sample.
        """
        check_is_fitted(self, "objective_")
        where = type(self).__name__
        if self.conditions_ is not None:
            return self.conditions_.encode(where, condition, count, self.objective_.null)
        if condition is not None:
            hint = "Fit with condition= first."
            raise OptionError(where, "no condition: the decoder has none", "condition=", hint)
        return None

    def manifold(self, condition: Any) -> Manifold:
        """The manifold of the decoder under one condition, as a function of codes alone.

        Args:
            condition: One label, or one row of covariates.
        """
        row = self.condition(condition)
        if row is None:
            return self.manifold_
        own = self.manifold_
        decoder = OneCondition(copied(own.decoder), row)
        latent = self.objective_.space.space(self.objective_.latent_dim)
        m = self.objective_.latent_dim
        metric = self.objective_.ambient
        return Manifold(decoder, metric, m, latent=latent, compile=self.compile)

    def _codes(self, where: str, Z: Any) -> Tensor:
        if isinstance(Z, Tensor):
            return dense(where, Z).to(self.objective_.null)
        try:
            # Lists and tables are read as numbers; an array keeps its dtype.
            dtype = None if isinstance(Z, np.ndarray) else float
            numbers = np.array(dense(where, Z), dtype=dtype)
            return torch.as_tensor(numbers).to(self.objective_.null)
        except DTypeError:
            raise
        except (TypeError, ValueError) as reason:
            expected = "codes as numbers (n, latent_dim)"
            raise DTypeError(where, expected, str(reason), _CODES) from reason

    def score(self, X: Any, y: Any = None, condition: Any = None) -> float:
        """Fraction of the deviance that the reconstruction explains; R² for squared errors.

        The deviance is relative to that of the training data.

        Args:
            X: As in :meth:`fit`; not a DataLoader where the decoder has conditions.
            y: Ignored.
            condition: As in :meth:`condition`, for a decoder with conditions.
        """
        check_is_fitted(self, "objective_")
        if self.conditions_ is None and condition is None:
            return 1.0 - float(self.apply(self.objective_.unexplained, X).mean())
        x = all_samples(self, X, reset=False).to(self.objective_.null)
        given = self.condition(condition, len(x))
        with torch.no_grad():
            left = self._in_parts(self.objective_.unexplained, x, given)
        return 1.0 - float(left.mean())

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the trained model; an earlier one in the same directory is replaced.

        The files are safetensors and JSON, never a pickle, and are replaced atomically. They hold
        networks, settings, units, history and report, which :func:`riemae.load` reads. They do not
        hold the optimizer's state (``partial_fit`` begins with a new one), loggers, callbacks and
        graphs of neighbours. A page for people, ``README.md``, says what the model is, how it did
        on the training data, and how to load and to cite it; nothing reads it, and a file of that
        name that riemae has not written stays.

        Args:
            directory: Where to write; it is made when it does not exist.

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
            device: On which the model is put.
            given: As in :func:`riemae.load`.

        Raises:
            CheckpointError: As in :func:`riemae.load`, and for a model of another class.
        """
        return saved.read(directory, device, given, {cls.__name__: cls})

    @property
    def report_(self) -> Report:
        """Diagnostics on the training data, or 2,000 of them, computed when first asked for.

        Raises:
            OptionError: When there were fewer than 4 samples.
        """
        check_is_fitted(self, "objective_")
        found: Report | None = self._report
        if found is None:
            if self._sample is None or len(self._sample) < 4:
                got = "none" if self._sample is None else f"n_samples = {len(self._sample)}"
                hint = "Fit on more samples, or call riemae.autoencoders.report.report on others."
                expected = "at least 4 samples of the training data"
                raise OptionError(f"{type(self).__name__}.report_", expected, got, hint)
            k = min(_NEIGHBORHOOD, len(self._sample) // 2 - 1)
            found = report(
                self.manifold_,
                self.objective_.encode,
                self._sample,
                k=k,
                condition=self._sample_condition,
            )
            found = replace(found, sentences=self._balance().sentences(found))
            self._report: Report | None = found
        return found

    def _balance(self) -> Balance:
        objective = self.objective_
        weights = {name: term.weight for name, term in objective.terms.items()}
        if objective.variation.contraction:
            weights["contraction"] = objective.variation.contraction
        limit = steps_of(self).limit(objective.geometric)
        return Balance.of(weights, self.history_, limit, self.warmup)

    def costs(self, X: Any, condition: Any = None) -> dict[str, dict[str, float]]:
        """Value, weight, share of the loss and seconds per training step of every part.

        Args:
            X: Data as in :meth:`fit`; one batch of them is used.
            condition: One for all of them, for a decoder with conditions.
        """
        check_is_fitted(self, "objective_")
        objective = copied(self.objective_).requires_grad_().train()
        x = next(chunks(self, X, self.batch_size, self.objective_.null))
        # Any sample can serve as the neighbour, because the cost does not depend on it.
        neighbor = None if objective.variation.order is None else x.roll(1, 0)
        return objective.costs(x, neighbor, condition=self.condition(condition, len(x)))

    @property
    def manifold_(self) -> Manifold:
        """The decoder's manifold under the ambient metric."""
        check_is_fitted(self, "objective_")
        return self.objective_.manifold

    @property
    def likelihood_(self) -> Likelihood:
        """The likelihood with what it has taken from the data, such as ``dispersion``."""
        check_is_fitted(self, "objective_")
        found: Likelihood = self.objective_.likelihood
        return found

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

    @torch.no_grad()
    def apply(self, f: Callable[[Tensor], Tensor], X: Any) -> Tensor:  # -> (n, …)
        """A function of tensors at data of any kind, part by part, without a gradient.

        Args:
            f: ``(k, *shape) -> (k, …)``, such as ``model.objective_.unexplained``.
            X: Data as in :meth:`fit`.
        """
        check_is_fitted(self, "objective_")
        parts = chunks(self, X, _CHUNK, self.objective_.null)
        return torch.cat([f(part) for part in parts])

    # Training.

    def _train(
        self,
        X: Any,
        epochs: int,
        fresh: bool,
        optimizer_state: dict[str, Any] | None,
        validation: Any = None,
        weights: Any = None,
        condition: Any = None,
    ) -> AE:
        from riemae.autoencoders.fitting import run_of
        from riemae.autoencoders.training import claimed

        check_settings(self, epochs)
        run = run_of(self, self.get_params(deep=False), epochs, (), fresh)
        with claimed(run):  # before anything of the model is changed
            return self._trained(X, epochs, fresh, optimizer_state, validation, weights, condition)

    def _trained(
        self,
        X: Any,
        epochs: int,
        fresh: bool,
        optimizer_state: dict[str, Any] | None,
        validation: Any,
        weights: Any,
        condition: Any,
    ) -> AE:
        from riemae.autoencoders import fitting
        from riemae.autoencoders.module import GeometricModule
        from riemae.autoencoders.training import train

        loader = X if isinstance(X, DataLoader) else None
        device = device_of(self)
        if loader is not None:
            _refuse_for_loaders(self, weights, condition)
        data = all_samples(self, X, reset=fresh).to(device)
        own_weights = fitting.sample_weights(type(self).__name__, weights, data)
        if loader is None:
            check_split(self, len(data))
        if fresh:
            self.conditions_: Covariates | None = None
            own_condition = None
            if condition is not None:
                where = type(self).__name__
                self.conditions_ = Covariates.of(where, condition)
                own_condition = self.conditions_.encode(where, condition, len(data), data)
            self.objective_ = fitting.new_objective(self, data, own_condition)
            if loader is None:
                self.initialise(self.objective_, data)
            self.history_ = History()
        else:
            own_condition = self.condition(condition, len(data))
            self.objective_.prepare(data)
        objective = self.objective_.requires_grad_().train()
        objective.compile_steps(self.compile)
        module = GeometricModule.of(
            objective.to(device),
            # Terms need no time to come in where the networks are trained already.
            steps_of(self) if fresh else replace(steps_of(self), warmup=0),
            seed=derived_seed(self.seed, len(self.history_.get("loss", []))),
            history=self.history_,
            optimizer_state=optimizer_state,
        )
        batches: Any = loader
        held: Any = None
        decisive = []  # data on which the weights depend
        if loader is None:
            batches, held = fitting.split(self, objective, data, own_weights, own_condition)
            columns = (data, own_weights, own_condition)
            decisive += [column for column in columns if column is not None]
        if validation is not None:
            held = fitting.validation_of(self, objective, validation)
            decisive += [batch["x"] for batch in held] if held is not validation else []
        try:
            run = fitting.run_of(self, self.get_params(deep=False), epochs, decisive, fresh)
            train(module, batches, run, held)
        finally:
            self.history_ = module.history
            self.n_epochs_: int = len(module.history.get("loss", []))
            self._optimizer_state: dict[str, Any] | None = module.optimizer_state
            drawn = fitting.sample_of(data, self.seed, own_condition)
            self._sample: Tensor | None = drawn[0]
            self._sample_condition = drawn[1]
            self._report = None
            objective.to(device).eval().requires_grad_(False)
            objective.zero_grad()
        return self


def _refuse_for_loaders(model: AE, weights: Any, condition: Any) -> None:
    """Refuse what cannot be done with batches that come from elsewhere.

    Raises:
        OptionError: For a share of the data to be kept out, for weights, and for conditions.
    """
    where = type(model).__name__
    if condition is not None:
        hint = "Give arrays or tensors, or train a GeometricModule, whose batches hold conditions."
        raise OptionError(where, "condition=None with a DataLoader", "condition=", hint)
    if model.validation_fraction:
        expected = "validation_fraction=0 with a DataLoader"
        hint = "Split its Dataset, and give the other part as fit(…, validation=…)."
        raise OptionError(where, expected, str(model.validation_fraction), hint)
    if weights is not None:
        hint = "Let its batches hold them: {'x': …, 'weights': …}."
        raise OptionError(where, "weights=None with a DataLoader", type(weights).__name__, hint)
