"""Uncertain decoders: the expected metric of Gaussian decoders and of ensembles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riemae.ambient.base import AmbientMetric, FeatureMetric, ProductMetric
from riemae.distributions.layout import AnyLayout, EnsembleLayout, Layout
from riemae.exceptions import AmbientError

# Variance of the noise ε in a sample μ + σ ε.
_NOISE = {"normal": 1.0, "laplace": 2.0, "multivariate_normal": 1.0}


class Expected(FeatureMetric):
    """The metric that a sample ``x = μ(z) + σ(z) ε`` of a Gaussian decoder pulls back on average.

    ``E[JᵀJ] = J_μᵀJ_μ + J_σᵀJ_σ``: that of the map [μ; σ], so that geodesics keep away from where
    the decoder becomes uncertain. For Laplace noise σ counts √2 times, its standard deviation; for
    a multivariate normal σ is the Cholesky factor, as in torch's ``rsample``. Data keep their
    units, unlike under :class:`FisherRao`.

    G. Arvanitidis, L. K. Hansen, S. Hauberg, Latent space oddity, ICLR 2018.

    Example:
        >>> import torch
        >>> from riemae import Manifold, ambient
        >>> decoder = lambda z: torch.distributions.Normal(3 * z, 1 + z ** 2)
        >>> Manifold(decoder, ambient=ambient.Expected()).metric(torch.ones(1, 1))  # 3² + 2²
        tensor([[[13.]]])
    """

    def __init__(self) -> None:
        super().__init__()
        self.layout: Layout | None = None

    def bind(self, layout: AnyLayout | None, shape: torch.Size) -> Expected:
        """This metric for a decoder that returns these distributions.

        Raises:
            AmbientError: When they are not of the form μ + σ ε.
        """
        heads = layout.heads if isinstance(layout, Layout) else ()
        if not heads or any(head.family.name not in _NOISE or head.transforms for head in heads):
            got = ", ".join(head.family.name for head in heads) or "tensors"
            raise AmbientError(
                "Expected",
                f"a decoder that returns distributions among {', '.join(_NOISE)}",
                got,
                "For an ensemble of decoders use riemae.Ensemble; "
                "for other families ambient.FisherRao().",
            )
        bound = Expected()
        assert isinstance(layout, Layout)
        bound.layout = layout
        return bound

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, q)
        """[μ; σ].

        Raises:
            AmbientError: Before it is bound to a decoder.
        """
        if self.layout is None:
            hint = "Use it in a Manifold, which binds it to the decoder."
            raise AmbientError("Expected", "a decoder that returns distributions", "none", hint)
        parts = []
        split = self.layout.split(x.flatten(1))
        for head, p in zip(self.layout.heads, split, strict=True):
            spread = next(value for name, value in p.items() if name != "loc")
            factor = _NOISE[head.family.name] ** 0.5
            parts.append(p["loc"].flatten(1))
            parts.append(factor * spread.flatten(1))
        return torch.cat(parts, -1)


class Averaged(AmbientMetric):
    """The mean of the members' metrics, for an ensemble's outputs ``(k, count, *shape)``.

    Where the members' metric has features, so has the mean: ``φ = K^{-1/2} [φ₁; …; φ_K]``.
    :class:`~riemae.Manifold` puts it around its ambient metric when the decoder is an ensemble.

    Args:
        base: The metric on the data space of one member.
        count: Number of members K.
        shape: Shape of one member's data, where it is not that of ``x[:, 0]``.
    """

    def __new__(cls, base: AmbientMetric | None = None, *args: Any, **options: Any) -> Averaged:
        """With features where the members' metric has features, by products elsewhere."""
        if cls is not Averaged:
            return super().__new__(cls)
        has_features = isinstance(base, FeatureMetric)
        return super().__new__(_AveragedFeatures if has_features else _AveragedProducts)

    def __init__(self, base: AmbientMetric, count: int, shape: torch.Size | None = None) -> None:
        super().__init__()
        self.base = base
        self.count = count
        self._shape = shape

    @property
    def title(self) -> str:
        """What the metric is called in messages."""
        return "Averaged"

    @property
    def foreign(self) -> bool:
        """Whether the members' metric is a user's function."""
        return self.base.foreign

    def distance(self, x0: Tensor, x1: Tensor) -> Tensor | None:  # (k, *shape), (k, *shape) -> (k,)
        """Root mean square of the members' ambient distances; None if unknown."""
        distance = self.base.distance(self._members(x0), self._members(x1))
        if distance is None:
            return None
        return distance.view(len(x0), self.count).square().mean(-1).sqrt()

    def _members(self, x: Tensor) -> Tensor:  # -> (k * count, *shape)
        shape = x.shape[2:] if self._shape is None else self._shape
        return x.reshape(len(x) * self.count, *shape)

    def _get_name(self) -> str:
        return self.title

    def extra_repr(self) -> str:
        """The number of members."""
        return f"count={self.count}"


class _AveragedFeatures(Averaged, FeatureMetric):
    """The mean of metrics with features."""

    def features(self, x: Tensor) -> Tensor:  # (k, count, *shape) -> (k, q)
        """Features of all members over √count."""
        features = self.base.features(self._members(x))
        return features.reshape(len(x), -1) / self.count**0.5


class _AveragedProducts(Averaged, ProductMetric):
    """The mean of metrics without features."""

    @property
    def is_diagonal(self) -> bool:
        """Whether that of every member is."""
        return self.base.is_diagonal

    def diagonal(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D)
        """The members' diagonals side by side."""
        points = x.reshape(len(x) * self.count, -1)
        return self.base.diagonal(points).reshape(len(x), -1) / self.count

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``H(x) v``, one block per member."""
        rows = len(x) * self.count
        points = x.reshape(rows, -1)
        vectors = v.reshape(rows, -1)
        return self.base.product(points, vectors).reshape(len(x), -1) / self.count


def bound(ambient: AmbientMetric, layout: AnyLayout | None, shape: torch.Size) -> AmbientMetric:
    """An ambient metric for a decoder whose outputs have this layout and shape.

    Raises:
        AmbientError: When it does not fit them.
    """
    base = ambient.base if isinstance(ambient, Averaged) else ambient
    if isinstance(layout, EnsembleLayout):
        return Averaged(bound(base, layout.member, shape[1:]), layout.count, shape[1:])
    if base is not ambient:
        raise AmbientError(
            "Averaged", "an ensemble of decoders", "a single decoder", "Pass its base metric."
        )
    return base.bind(layout, shape)
