"""The geometric variants of the autoencoder, each with what it changes in the plain one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from riemae.autoencoders.batches import Neighbors, derived_seed
from riemae.autoencoders.estimators import AE, check_is_fitted
from riemae.autoencoders.inputs import like_input
from riemae.autoencoders.neighborhood import Neighborhood, as_neighborhood
from riemae.autoencoders.networks import fit_codes
from riemae.autoencoders.objective import Objective
from riemae.autoencoders.optimization import Factor
from riemae.autoencoders.terms import RIDGE, Term, Variation
from riemae.exceptions import OptionError
from riemae.numerics.checks import expect_choice, expect_range, expect_shape
from riemae.numerics.random import as_generator


@dataclass(kw_only=True, repr=False, eq=False)
class VAE(AE):
    """A variational autoencoder; ``transform`` gives the means of the codes.

    Args:
        beta: Weight of the Kullback-Leibler divergence; 1 is the evidence lower bound.
        beta_schedule: How ``beta`` changes in training: ``"linear"``, ``"cosine"``, ``"cyclical"``,
            or a function of the progress from 0 to 1; see :class:`~riemae.autoencoders.Term`.
        prior: ``"normal"``, which in other latent spaces than R^m is the space's own;
            ``"mixture"``, of normal distributions, which are learned; or ``"vamp"``, the mixture of
            what the encoder says of learned pseudo-inputs (Tomczak & Welling 2018).
        components: Of the prior's mixture.
        noise: For the squared error: standard deviation of the Gaussian likelihood, in units of the
            data's.

    All others as in :class:`AE`. An encoder of your own returns the means followed by the log
    variances, ``(k, 2m)``.
    """

    beta: float = 1.0
    beta_schedule: str | Factor | None = None
    prior: Literal["normal", "mixture", "vamp"] = "normal"
    components: int = 10
    noise: float = 0.1

    def variation(self) -> Variation:
        """See :meth:`AE.variation`."""
        return Variation(
            beta=self.beta,
            beta_schedule=self.beta_schedule,
            prior=self.prior,
            components=self.components,
            noise=self.noise,
        )

    def posterior(self, X: Any) -> tuple[Any, Any]:
        """Means and standard deviations of the codes, both ``(n, latent_dim)``.

        The deviations on a sphere are ``(n, 1)``, the same for all axes.

        Args:
            X: As in :meth:`AE.transform`.
        """
        check_is_fitted(self, "objective_")
        both = self.apply(lambda x: torch.cat(self.objective_.posterior(x), 1), X)
        mean = both[:, : self.objective_.latent_dim]
        deviation = both[:, self.objective_.latent_dim :]
        return like_input(X, mean), like_input(X, deviation)

    @torch.no_grad()
    def sample(
        self,
        n: int = 1,
        generator: torch.Generator | int | None = None,
        noise: bool = False,
        condition: Any = None,
    ) -> Tensor:  # -> (n, *shape)
        """New data, as a tensor: codes from the prior, decoded.

        Args:
            n: Number of samples.
            generator: Source of the randomness; an integer is the seed of a new one.
            noise: Whether to draw from the likelihood; otherwise expected data are returned.
            condition: As in :meth:`AE.condition`, for a decoder with conditions.

        Raises:
            OptionError: For fewer than one sample, or noise of a likelihood without a density.
        """
        check_is_fitted(self, "objective_")
        expect_range("sample", "n", n, 1, integer=True, hint="Try n=10.")
        source = as_generator("sample", generator)
        z = self.objective_.draw(n, source)
        given = self.condition(condition, n)
        if noise:
            return self.objective_.noisy(z, source, given)
        return self.objective_.decode(z, given)


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
        weight: Of :func:`~riemae.autoencoders.losses.contraction`, which is at least 1 for a linear
            encoder.

    All others as in :class:`AE`.
    """

    weight: float = 1e-2

    def variation(self) -> Variation:
        """See :meth:`AE.variation`."""
        return Variation(contraction=self.weight)


@dataclass(kw_only=True, repr=False, eq=False)
class NRAE(AE):
    """Neighbourhood reconstructing autoencoder (Lee et al. 2021).

    The loss compares the decoder's local expansion at each sample with the sample's neighbours.
    Every step takes the samples of its batch and one random neighbour of each. The graph is built
    once.

    Args:
        order: Of the decoder's local expansion: 1 (NRAE-L) or 2 (NRAE-Q).
        neighbors: Number of nearest neighbours in the directed graph.
        weight: λ, of the neighbours relative to the reconstruction.
        kernel: ``K(x', x) -> (k,)`` of neighbours and centres, by which λ is multiplied (equation
            19); a number is the bandwidth of a Gaussian of their distance, in units of the data's
            extent, the square root of their mean squared distance from the mean; None is 1.
        neighborhood: A graph of your own: a
            :class:`~riemae.autoencoders.neighborhood.Neighborhood`, an adjacency matrix, a networkx
            graph, a table of neighbours ``(n, k)``, any object with
            ``sample(index, generator) -> index of a neighbour``, or a function of the data that
            returns one of these, such as
            ``functools.partial(Neighborhood.nearest, k=10, kind="mutual")``.
        init: Codes to which the encoder is fitted before training: a tensor ``(n, latent_dim)``, or
            ``"isomap"`` or ``"laplacian"`` for the graph's embedding of that name. Without it, a
            fold of the first encoder rarely disappears in training.
        restarts: Number of trainings from different seeds; the one with the lowest loss is kept.

    All others as in :class:`AE`. The batches of a DataLoader must hold the neighbours:
    ``{"x": …, "neighbor": …}``.

    Attributes:
        neighborhood_: The graph of the training data.
        restart_losses_: Final loss of every restart.
    """

    order: Literal[1, 2] = 2
    neighbors: int = 5
    weight: float = 1.0
    kernel: float | Callable[[Tensor, Tensor], Tensor] | None = None
    neighborhood: Any = None
    init: Any = None
    restarts: int = 1

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        validation: Any = None,
        weights: Any = None,
        condition: Any = None,
    ) -> NRAE:
        """Train, as often as ``restarts`` says.

        Args:
            X: As in :meth:`AE.fit`.
            y: Ignored.
            validation: As in :meth:`AE.fit`.
            weights: As in :meth:`AE.fit`.
            condition: Must be None: a neighbour may have another one than its centre.

        Raises:
            OptionError: For fewer than one restart, or a condition.
        """
        if condition is not None:
            hint = "A neighbour may have another condition than its centre: use another trainer."
            raise OptionError("NRAE", "condition=None", "condition=", hint)
        expect_range("NRAE", "restarts", self.restarts, 1, integer=True, hint="Try restarts=1.")
        if self.restarts == 1:
            super().fit(X, y, validation=validation, weights=weights)
            self.restart_losses_ = [_final_loss(self)]
            return self
        from riemae.autoencoders.fitting import run_of
        from riemae.autoencoders.training import claimed

        with claimed(run_of(self, self.get_params(deep=False), self.epochs, (), fresh=True)):
            return self._restarted(X, validation, weights)

    def _restarted(self, X: Any, validation: Any, weights: Any) -> NRAE:
        from sklearn.base import clone

        best: NRAE | None = None
        losses = []
        for i in range(self.restarts):
            folder = None
            if self.directory is not None:
                folder = Path(self.directory) / f"restart-{i}"
            seed = self.seed if i == 0 else derived_seed(self.seed, 5, i)
            candidate = clone(self).set_params(restarts=1, seed=seed, directory=folder)
            candidate.fit(X, validation=validation, weights=weights)
            losses.append(_final_loss(candidate))
            if best is None or losses[-1] < _final_loss(best):
                best = candidate
        assert best is not None
        # Take over all that was learned, and none of the settings.
        settings = self.get_params(deep=False)
        learned = {name: value for name, value in vars(best).items() if name not in settings}
        self.__dict__.update(learned)
        self.restart_losses_ = losses
        return self

    def variation(self) -> Variation:
        """See :meth:`AE.variation`."""
        return Variation(order=self.order, neighbor_weight=self.weight, kernel=self.kernel)

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
        self._graph_of: Tensor | None = None
        try:
            return super()._train(X, epochs, fresh, optimizer_state, validation, weights, condition)
        finally:
            del self._graph_of

    def neighbors_of(self, x: Tensor) -> Neighbors:
        """The neighbourhood graph of the samples, made once per fit."""
        # Training uses the same graph as the embedding from which the encoder starts.
        if self._graph_of is not x:
            self.neighborhood_ = self._graph(x)
            self._graph_of = x
        return self.neighborhood_

    def _graph(self, x: Tensor) -> Any:
        if self.neighborhood is None:
            n, k = len(x), self.neighbors
            if not 1 <= k < n:
                got = f"neighbors = {k} with n_samples = {n}"
                expected = "fewer neighbors than samples, and at least 1"
                raise OptionError("NRAE", expected, got, "Lower neighbors, or add samples.")
            return Neighborhood.nearest(x.cpu(), k)
        graph = as_neighborhood(self.neighborhood, x)
        if hasattr(graph, "__len__") and len(graph) != len(x):
            expected, got = f"a neighborhood of {len(x)} samples", f"one of {len(graph)}"
            hint = (
                "With validation_fraction, leave neighborhood out, or give a function of the data."
            )
            raise OptionError("NRAE", expected, got, hint)
        return graph

    def initialise(self, objective: Objective, data: Tensor) -> None:
        """Fit the encoder to the codes of ``init``, if any.

        Args:
            objective: Holds the encoder.
            data: The samples ``(n, *shape)``.

        Raises:
            OptionError: For a neighborhood without an embedding, codes that do not vary, or another
                latent space than R^m.
            ShapeError: For codes of another shape.
        """
        if self.init is None:
            return
        if self.latent is not None:
            hint = "Codes of a graph's embedding lie in R^m: leave init out."
            raise OptionError("NRAE", "latent=None with init", repr(self.latent), hint)
        if isinstance(self.init, str):
            codes = self._embedding(data)
        else:
            codes = torch.as_tensor(self.init)
        shape = (len(data), self.latent_dim)
        expect_shape("NRAE", "init", codes, shape, "Give one code per sample.")
        varied = codes.isfinite().all(0) & (codes.amax(0) > codes.amin(0))
        if not bool(varied.all()):
            expected = "finite codes that vary in every dimension"
            hint = "Is a column of init constant, or not finite?"
            raise OptionError("NRAE", expected, "others", hint)
        fit_codes(objective.encoder, data, codes.to(data))

    def _embedding(self, data: Tensor) -> Tensor:
        graph: Any = self.neighbors_of(data)
        if not hasattr(graph, "embedding"):
            hint = "Give a riemae.autoencoders.neighborhood.Neighborhood, or the codes themselves."
            expected = "a neighborhood with an embedding"
            raise OptionError("NRAE", expected, type(graph).__name__, hint)
        found: Tensor = graph.embedding(self.latent_dim, self.init, dtype=data.dtype)
        return found


@dataclass(kw_only=True, repr=False, eq=False)
class MCAE(AE):
    """Minimum curvature autoencoder (Lee & Park 2023).

    The curvature does not depend on the latent coordinates, so this loss leaves their distortion
    open. With ``terms={"relaxed_distortion": 0.1}`` it is an IRAE as well.

    Args:
        kind: ``"extrinsic"`` (MECAE): how fast tangent spaces turn; ``"intrinsic"`` (MICAE): the
            Riemann tensor, for two latent dimensions or more.
        weight: Of the curvature in units of the data's extent, in which that of data on a sphere
            S^m is 2m.
        probes: Random directions per point and step for the extrinsic curvature, and pairs of
            random planes for the intrinsic one; None computes it exactly, by m (m + 1)/2 second
            derivatives per point; ``"auto"`` is None up to m = 2, for the intrinsic one up to
            m = 4, where the exact value hardly costs more, and 1 for larger m (for the intrinsic
            one at half of the points of each batch).

    All others as in :class:`AE`.
    """

    kind: Literal["extrinsic", "intrinsic"] = "extrinsic"
    weight: float = 1e-3
    probes: int | Literal["auto"] | None = "auto"

    def own_terms(self) -> dict[str, float | Term]:
        """See :meth:`AE.own_terms`.

        Raises:
            OptionError: For an unknown kind of curvature.
        """
        expect_choice("MCAE", "kind", self.kind, ("extrinsic", "intrinsic"))
        if self.kind == "intrinsic":
            hint = "A curve has no curvature of its own: use kind='extrinsic'."
            expect_range("MCAE", "latent_dim", self.latent_dim, 2, integer=True, hint=hint)
        how: dict[str, Any] = {}
        if self.probes is None:
            how["estimator"] = "exact"
        elif self.probes != "auto":
            drawn = "planes" if self.kind == "intrinsic" else "hutchinson"
            how |= {"estimator": drawn, "probes": self.probes}
        if self.kind == "intrinsic":
            return {"intrinsic_curvature": Term(self.weight, options={**how, "ridge": RIDGE})}
        return {"extrinsic_curvature": Term(self.weight, options={**how, "ridge": RIDGE})}


@dataclass(kw_only=True, repr=False, eq=False)
class IRAE(AE):
    """Isometrically regularised autoencoder (Lee et al. 2022).

    Latent distances become those of the data, up to one common factor.

    Args:
        weight: Of the relaxed distortion.
        mixup: η: distortion is measured between the codes, and beyond them by this fraction of
            their distance; None measures it at the codes.
        probes: Random directions per point and step; None computes the distortion exactly, by m
            forward products; ``"auto"`` is None up to m = 2, where that costs no more, and 1 for
            larger m.

    All others as in :class:`AE`.
    """

    weight: float = 0.1
    mixup: float | None = 0.2
    probes: int | Literal["auto"] | None = "auto"

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
    probes: int | Literal["auto"] | None = "auto"

    def own_terms(self) -> dict[str, float | Term]:
        """See :meth:`AE.own_terms`."""
        return _distortion(self.weight, self.mixup, self.probes)


# The classes that riemae.load knows by the name in a checkpoint.
KINDS: dict[str, type[AE]] = {
    kind.__name__: kind for kind in (AE, VAE, DenoisingAE, ContractiveAE, NRAE, MCAE, IRAE, IRVAE)
}


def _distortion(
    weight: float, mixup: float | None, probes: int | Literal["auto"] | None
) -> dict[str, float | Term]:
    return {"relaxed_distortion": Term(weight, options={"mixup": mixup, "probes": probes})}


def _final_loss(model: NRAE) -> float:
    """Mean loss of the last twentieth of the epochs, because one epoch's depends on the draws."""
    losses = model.history_["loss"]
    return float(np.mean(losses[-max(1, len(losses) // 20) :]))
