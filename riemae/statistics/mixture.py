"""Mixtures of normal distributions on a manifold."""

from __future__ import annotations

import torch
from torch import Tensor

from riemae.exceptions import NotConvergedError, OptionError
from riemae.numerics.checks import expect_choice, expect_range
from riemae.numerics.random import as_generator
from riemae.solvers.space import expect_space
from riemae.statistics.arguments import takes_and_gives_codes, takes_codes
from riemae.statistics.clustering import GeodesicKMeans
from riemae.statistics.means import frechet_mean
from riemae.statistics.normal import Fit, default_directions
from riemae.statistics.tangents import Somewhere, expect_points, expect_steps


class LAND:
    """A mixture of locally adaptive normal distributions, by expectation maximisation.

    Of G. Arvanitidis, L. K. Hansen, S. Hauberg, A locally adaptive normal distribution, NeurIPS
    2016: each component is a :class:`RiemannianNormal` with a covariance of its own. Densities are
    with respect to the Riemannian volume.

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        n_components: How many.
        kind: ``"full"`` covariances, or ``"isotropic"`` ones.
        max_steps: Rounds of expectation and maximisation.
        tol: The climb ends when the mean log-likelihood of a point grows by less in a round.
        n_directions: Of the normalisers: see :class:`RiemannianNormal`.
        generator: Of seeds and directions: a generator, or the seed of a new one.

    Attributes:
        weights_: ``(c,)``, shares of the components.
        components_: The c :class:`RiemannianNormal` distributions.
        labels_: ``(n,)`` int64, the likeliest component of each point.
        log_likelihood_: The mean log-likelihood of the points, float.
        n_iter_: Rounds made.
        converged_: Whether the likelihood had settled.

    Raises:
        OptionError: For an option out of range.
    """

    def __init__(
        self,
        geometry: Somewhere,
        n_components: int = 1,
        *,
        kind: str = "full",
        max_steps: int = 30,
        tol: float = 1e-3,
        n_directions: int | None = None,
        generator: torch.Generator | int | None = 0,
    ) -> None:
        expect_space("LAND", geometry)
        expect_range(
            "LAND", "n_components", n_components, 1, integer=True, hint="It counts components."
        )
        expect_choice("LAND", "kind", kind, ("full", "isotropic"))
        expect_steps("LAND", "max_steps", max_steps)
        expect_range("LAND", "tol", tol, 0.0, above=True, hint="It is a log-likelihood.")
        self.geometry = geometry
        self.n_components = n_components
        self.kind = kind
        self.max_steps = max_steps
        self.tol = tol
        self.n_directions = n_directions
        self.generator = generator

    @takes_codes
    @torch.no_grad()
    def fit(self, points: Tensor) -> LAND:  # (n, m)
        """Find the components, from geodesic k-means on.

        Raises:
            OptionError: For fewer than two points for each component, or a component whose points
                do not spread in every direction.
            NotConvergedError: When no component can be evaluated at a point.
        """
        where = "LAND.fit"
        expect_points(where, points, 2 * self.n_components)
        points = points.detach()
        share = self._begun(points)
        count = default_directions(where, self.n_directions, points.shape[1])
        climbs = [
            Fit(self.geometry, points, self._center(points, one), self.kind, count, self.generator)
            for one in share.T
        ]
        before = -torch.inf
        self.converged_ = False
        for step in range(1, self.max_steps + 1):
            self.weights_ = share.mean(0)
            for climb, one in zip(climbs, share.T, strict=True):
                climb.round(one)
            joint = self.weights_.log() + torch.stack([c.log_prob() for c in climbs], 1)
            likelihood, share = self._expected(points, joint)
            self.n_iter_ = step
            if abs(likelihood - before) < self.tol:
                self.converged_ = True
                break
            before = likelihood
        self.components_ = [climb.normal() for climb in climbs]
        joint = self._joint(points)
        self.log_likelihood_, share = self._expected(points, joint)
        self.labels_ = share.argmax(1)
        return self

    @takes_codes
    def log_prob(self, z: Tensor) -> Tensor:  # (k, m) -> (k,)
        """Log density with respect to the Riemannian volume; not differentiable.

        Raises:
            OptionError: Before ``fit``.
            NotConvergedError: When no geodesic to a point is found; its result holds the values.
        """
        joint = self._joint(z)
        values = _total(joint)
        bad = values.isnan().nonzero().flatten()
        if len(bad):
            wanted = f"{len(z)} points that geodesics reach"
            got = f"{len(bad)} that none does (first: {bad[:5].tolist()})"
            raise NotConvergedError("LAND.log_prob", wanted, got, "Leave them out.", values)
        return values

    @takes_codes
    def predict_proba(self, z: Tensor) -> Tensor:  # (k, m) -> (k, c)
        """Probabilities of the components, given the points.

        Raises:
            OptionError: Before ``fit``.
        """
        return self._joint(z).nan_to_num(-torch.inf).softmax(1)

    @takes_codes
    def predict(self, z: Tensor) -> Tensor:  # (k, m) -> (k,)
        """The likeliest component of each point, int64.

        Raises:
            OptionError: Before ``fit``.
        """
        return self.predict_proba(z).argmax(1)

    @takes_and_gives_codes
    def sample(self, n: int, *, generator: torch.Generator | int | None = 0) -> Tensor:  # -> (n, m)
        """Points of the mixture, in random order.

        Args:
            n: How many.
            generator: A generator, or the seed of a new one; None draws from torch's own.

        Raises:
            OptionError: Before ``fit``, or for a negative n.
        """
        self._expect_fitted("sample")
        expect_range("LAND.sample", "n", n, 0, integer=True, hint="It counts points.")
        source = as_generator("LAND.sample", generator)
        weights = self.weights_.cpu().double()
        drawn = torch.multinomial(weights, max(n, 1), replacement=True, generator=source)[:n]
        out = self.components_[0].mean.new_empty(n, len(self.components_[0].mean))
        for c, component in enumerate(self.components_):
            own = drawn == c
            out[own.to(out.device)] = component.sample(int(own.sum()), generator=source)
        return out

    @takes_codes
    def bic(self, points: Tensor) -> float:
        """Schwarz's criterion, of which less is better: to choose ``n_components``.

        Raises:
            OptionError: Before ``fit``.
            NotConvergedError: As :meth:`log_prob`.
        """
        m = points.shape[1]
        spread = m * (m + 1) // 2 if self.kind == "full" else 1
        free = self.n_components * (1 + m + spread) - 1
        n = len(points)
        return float(-2 * self.log_prob(points).sum() + free * torch.tensor(float(n)).log())

    def __repr__(self) -> str:
        told = ""
        if hasattr(self, "components_"):
            told = f", log-likelihood {self.log_likelihood_:.4g} per point"
        return f"LAND({self.n_components} components, {self.kind}{told})"

    def _begun(self, points: Tensor) -> Tensor:  # -> (n, c)
        """Clusters, as shares of 0 and 1."""
        if self.n_components == 1:
            return torch.ones_like(points[:, :1])
        means = GeodesicKMeans(
            self.geometry, self.n_components, rtol=1e-2, generator=self.generator
        )
        labels = means.fit_predict(points)
        return torch.nn.functional.one_hot(labels, self.n_components).to(points)

    def _center(self, points: Tensor, share: Tensor) -> Tensor:  # (n,) -> (m,)
        return frechet_mean(self.geometry, points, share, rtol=1e-2, throw=False).point

    @torch.no_grad()
    def _joint(self, z: Tensor) -> Tensor:  # (k, m) -> (k, c)
        """Log densities with the shares of their components; NaN where a geodesic failed."""
        self._expect_fitted("log_prob")
        parts = [component.log_prob(z, throw=False) for component in self.components_]
        return self.weights_.log() + torch.stack(parts, 1)

    def _expected(self, points: Tensor, joint: Tensor) -> tuple[float, Tensor]:
        """The mean log-likelihood, and the shares of the components in each point.

        Raises:
            NotConvergedError: When no component reaches a point.
            OptionError: When a component has lost its points.
        """
        total = _total(joint)
        bad = total.isnan().nonzero().flatten()
        if len(bad):
            wanted = "a geodesic from a component to each point"
            got = f"{len(bad)} points without (first: {bad[:5].tolist()})"
            raise NotConvergedError("LAND.fit", wanted, got, "Leave them out.", joint)
        share = joint.nan_to_num(-torch.inf).softmax(1)
        least = float(share.sum(0).amin())
        if not least > 1:
            wanted = "components of at least one point"
            got = f"one of {least:.1e}"
            raise OptionError("LAND.fit", wanted, got, "Ask for fewer components.")
        return float(total.mean()), share

    def _expect_fitted(self, method: str) -> None:
        """Raise before ``fit``.

        Raises:
            OptionError: When there are no components.
        """
        if not hasattr(self, "components_"):
            raise OptionError(f"LAND.{method}", "a fitted mixture", "none", "Call fit first.")


def _total(joint: Tensor) -> Tensor:  # (k, c) -> (k,)
    """Log densities of the mixture: components that failed are left out, where others did not."""
    none = joint.isnan().all(1)
    total = joint.nan_to_num(-torch.inf).logsumexp(1)
    return torch.where(none, torch.nan, total)
