"""The Info-Riemannian metric of point clouds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from riemae.ambient.base import FactorMetric
from riemae.ambient.shaped import ShapedMetric
from riemae.exceptions import AmbientError, OptionError
from riemae.numerics.checks import expect_choice, expect_range, shape_in_words

if TYPE_CHECKING:
    from riemae.distributions.layout import AnyLayout

Evaluate = Literal["kde", "cloud"]

# Weights held at once: evaluation points × points × clouds, as many as fit a processor's cache.
_WEIGHTS = 2**20


class InfoRiemannian(ShapedMetric, FactorMetric):
    """The Fisher information of the density that a point cloud stands for (Lee et al., 2022a).

    A cloud ``X`` of n points in R^d, ``(n, d)``, is seen as the density
    ``p(q; X) = 1/n Σ_i N(q; x_i, σ²I)``; the order of its points means nothing. With
    ``w_i(q) = softmax_i(−|q − x_i|²/2σ²)`` the score along a velocity ``V`` of the points is
    ``(S V)_q = Σ_i w_i(q) ⟨q − x_i, V_i⟩/σ²``, and ``H = SᵀS`` averaged over evaluation points q.
    Two matrix products with the ``n_q × n`` weights give ``H V``; they are made in chunks, and
    ``H`` itself is never formed.

    ``H`` has rank at most n_q and ignores velocities that leave the density alone, such as two
    points that turn about their centre: it is semi-definite on clouds. Its pull-back is definite
    where the decoder really moves the density; a latent direction that only relabels or slides
    points along the shape has almost no length.

    Evaluation points move with the cloud, ``q = x_i + σ ε``, the same fixed ε for every point i. So
    ``H(x)`` is one smooth function of x with exact derivatives (those of the expectation, by
    reparametrisation), it does not change at all under translations and permutations of the cloud,
    and a seed fixes it.

    Args:
        bandwidth: σ, in units of the data; see :meth:`from_clouds`.
        evaluate: ``"kde"``: q is drawn from the density. ``"cloud"``: q are the points themselves
            and one 1/σ² is dropped, as the authors do; there the score vanishes at isolated points,
            and turning a sphere can weigh 100 times more than scaling it.
        draws: For ``"kde"``, each adds 2d evaluation points per cloud point: ± d orthogonal
            directions, with lengths that give ε mean 0 and covariance I exactly.
        neighbors: How many points, those nearest to x_i, have weight at evaluation points around
            x_i; by default all. This takes n_q · neighbors numbers instead of n_q · n, for
            bandwidths that are small compared to the cloud.
        seed: Seed of the directions.

    Raises:
        AmbientError: Unless the bandwidth is positive and finite.
        OptionError: For an unknown ``evaluate``, or numbers below 1.

    Example:
        >>> import torch
        >>> from riemae import Manifold, ambient
        >>> ring = torch.linspace(0, 6, 20).double()
        >>> circle = torch.stack([ring.cos(), ring.sin()], -1)
        >>> H = ambient.InfoRiemannian(bandwidth=0.5)
        >>> M = Manifold(lambda z: z[:, :1, None] * circle, ambient=H)
        >>> M.metric(torch.tensor([[1.]]).double()).shape
        torch.Size([1, 1, 1])
    """

    def __init__(
        self,
        bandwidth: float,
        evaluate: Evaluate = "kde",
        draws: int = 1,
        neighbors: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < bandwidth < float("inf"):
            raise AmbientError(
                "InfoRiemannian",
                "a positive bandwidth",
                str(bandwidth),
                "Try InfoRiemannian.from_clouds(clouds).",
            )
        expect_choice("InfoRiemannian", "evaluate", evaluate, get_args(Evaluate))
        for name, value in (("draws", draws), ("neighbors", neighbors)):
            if value is not None:
                expect_range("InfoRiemannian", name, value, 1)
        self.bandwidth = float(bandwidth)
        self.evaluate = evaluate
        self.draws = draws
        self.neighbors = neighbors
        self.seed = seed

    @classmethod
    def from_clouds(
        cls,
        clouds: Tensor,
        factor: float = 2.0,
        evaluate: Evaluate = "kde",
        draws: int = 1,
        neighbors: int | None = None,
        seed: int = 0,
    ) -> InfoRiemannian:
        """With a bandwidth from the data.

        It is ``factor`` times the mean over clouds of the median distance to the nearest neighbour.

        Args:
            clouds: ``(N, n, d)``.
            factor: 2 for ``evaluate="kde"``; the authors use 0.5 or 0.8 with ``"cloud"``.
            evaluate: As in the class.
            draws: As in the class.
            neighbors: As in the class.
            seed: As in the class.

        Raises:
            AmbientError: When ``clouds`` is not such a tensor, is not finite, or half of the points
                of every cloud are repeated.
            OptionError: When ``factor`` is not positive and finite.
        """
        if (
            not isinstance(clouds, Tensor)
            or clouds.ndim != 3
            or clouds.shape[1] < 2
            or not len(clouds)
        ):
            got = shape_in_words(clouds)
            expected = "clouds of shape (N, n, d) with n of at least 2"
            hint = "Put clouds on the first axis, points on the second."
            raise AmbientError("InfoRiemannian", expected, got, hint)
        if not 0 < factor < float("inf"):
            raise OptionError(
                "InfoRiemannian.from_clouds", "a positive factor", str(factor), "Try 2.0."
            )
        if not bool(clouds.isfinite().all()):
            where = "InfoRiemannian.from_clouds"
            raise AmbientError(
                where, "finite clouds", "NaN or infinity", "Remove clouds that miss points."
            )
        medians = []
        for cloud in clouds.detach():
            parts = cloud.split(max(1, _WEIGHTS // len(cloud)))
            nearest = [_to_nearest(part, cloud) for part in parts]
            medians.append(torch.cat(nearest).median())
        bandwidth = factor * float(torch.stack(medians).mean())
        if not bandwidth > 0:
            raise AmbientError(
                "InfoRiemannian.from_clouds",
                "clouds most of whose points differ from all others",
                "repeated points: the median distance to the nearest other point is 0 in every "
                "cloud",
                "Remove repeated points (torch.unique(cloud, dim=0)), or give a bandwidth in units "
                "of the data: InfoRiemannian(bandwidth=0.1).",
            )
        return cls(bandwidth, evaluate, draws, neighbors, seed)

    def bind(self, layout: AnyLayout | None, shape: torch.Size) -> ShapedMetric:
        """A copy that knows the shape ``(n, d)`` of one cloud.

        Raises:
            AmbientError: When the shape is not that of a cloud.
        """
        if len(shape) != 2:
            raise AmbientError(
                "InfoRiemannian",
                "a decoder of clouds (n, d)",
                str(tuple(shape)),
                "Try x.view(len(x), -1, 3).",
            )
        return super().bind(layout, shape)

    def factor_product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, n d), (k, n d) -> (k, n_q)
        """``S(x) v``, with ``1/√n_q`` in it: the scores at the evaluation points."""
        clouds = self.shaped(x)
        column = self.shaped(v)[..., None]
        scores = [part.scores(column) for part in self._parts(clouds)]
        return torch.cat(scores, 1)[..., 0]

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, n d), (k, n d) -> (k, n d)
        """``H(x) v``."""
        columns = self.apply_to(x, v[..., None])
        return columns[..., 0]

    def apply_to(
        self, x: Tensor, columns: Tensor
    ) -> Tensor:  # (k, n d), (k, n d, c) -> (k, n d, c)
        """``H(x)`` times several vectors, which share the weights."""
        x = self.shaped(x)
        v = columns.unflatten(1, x.shape[1:])
        out = torch.zeros_like(v)
        for part in self._parts(x):
            scores = part.scores(v)
            out = out + part.pulled(scores)
        return out.flatten(1, 2)

    def products(self, x: Tensor, columns: Tensor) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
        """As :meth:`apply_to`, whose columns share the weights."""
        return self.apply_to(x, columns)

    def extra_repr(self) -> str:
        """The settings that differ from their defaults."""
        rest = {
            "draws": (self.draws, 1),
            "neighbors": (self.neighbors, None),
            "seed": (self.seed, 0),
        }
        shown = [f"bandwidth={self.bandwidth:.4g}", f"evaluate={self.evaluate!r}"]
        for name, (value, usual) in rest.items():
            if value != usual:
                shown.append(f"{name}={value}")
        return ", ".join(shown)

    def _parts(self, x: Tensor) -> Iterator[_Part]:  # (k, n, d)
        """Chunks of evaluation points, with their weights."""
        k, n, d = x.shape
        noise = x.new_zeros(1, d)
        if self.evaluate == "kde":
            directions = torch.as_tensor(_noise(d, self.draws, self.seed))
            noise = self.bandwidth * directions.to(x)
        r = len(noise)
        near = min(self.neighbors or n, n)
        power = 2 if self.evaluate == "kde" else 1
        scale = self.bandwidth**-power * (n * r) ** -0.5
        # Only differences matter; without the mean, rounding does not grow with the distance from
        # the origin.
        x = x - x.mean(1, keepdim=True)
        per_centre = k * max(r * near, n)
        at_once = max(1, _WEIGHTS // max(1, per_centre))
        for centres in torch.arange(n, device=x.device).split(at_once):
            origin = x[:, centres]
            if near < n:
                index = _nearest(origin, x, near)
                around = _take(x, index)  # (k, c, near, d)
            else:
                index = None
                around = x[:, None]
            points = origin[:, :, None] + noise
            yield _Part.at(points, around, index, self.bandwidth, scale, n)


@dataclass(frozen=True)
class _Part:
    """Evaluation points in groups, and the points of the cloud that have weight there.

    With few neighbours each group has points of its own; otherwise there is one group, with the
    whole cloud.

    Attributes:
        q: ``(k, g, r, d)``: one group with dense weights, one group per cloud point with sparse
            ones.
        x: ``(k, g, p, d)``, the points that have weight.
        weights: ``(k, g, r, p)``.
        index: ``(k, g, p)``, which points of the cloud these are; None for all.
        scale: Factor of the scores.
        count: Points n in the cloud.
    """

    q: Tensor
    x: Tensor
    weights: Tensor
    index: Tensor | None
    scale: float
    count: int

    @classmethod
    def at(
        cls, q: Tensor, x: Tensor, index: Tensor | None, bandwidth: float, scale: float, count: int
    ) -> _Part:
        if index is None:
            q = q.flatten(1, 2)[:, None]
        products = q @ x.mT
        half_squares = x.square().sum(-1)[:, :, None] / 2
        logits = (products - half_squares) / bandwidth**2
        weights = logits.softmax(-1)
        return cls(q, x, weights, index, scale, count)

    def scores(self, v: Tensor) -> Tensor:  # (k, n, d, c) -> (k, q, c)
        """``Σ_i w_i ⟨q − x_i, V_i⟩``, scaled."""
        if self.index is None:
            v = v[:, None]
        else:
            near = _take(v.flatten(2), self.index)
            v = near.unflatten(-1, v.shape[2:])
        mean = (self.weights @ v.flatten(3)).unflatten(-1, v.shape[3:])
        from_q = (self.q[..., None] * mean).sum(3)  # Σ_i w_i ⟨q, V_i⟩
        along_x = (self.x[..., None] * v).sum(3)
        from_x = self.weights @ along_x  # Σ_i w_i ⟨x_i, V_i⟩
        return self.scale * (from_q - from_x).flatten(1, 2)

    def pulled(self, s: Tensor) -> Tensor:  # (k, q, c) -> (k, n, d, c)
        """The transpose of :meth:`scores`."""
        s = s.unflatten(1, self.q.shape[1:3])
        columns = s.shape[-1]
        scored = (self.q[..., None] * s[:, :, :, None]).flatten(3)
        from_q = (self.weights.mT @ scored).unflatten(-1, (-1, columns))
        summed = self.weights.mT @ s
        from_x = self.x[..., None] * summed[:, :, :, None]
        out = self.scale * (from_q - from_x)
        if self.index is None:
            return out[:, 0]
        flat = out.flatten(1, 2)
        target = self.index.flatten(1)[:, :, None, None].expand_as(flat)
        whole = flat.new_zeros(len(flat), self.count, *flat.shape[2:])
        return whole.scatter_add(1, target, flat)


def _to_nearest(x: Tensor, cloud: Tensor) -> Tensor:  # (k, d), (n, d) -> (k,)
    """Distance of points of a cloud to the nearest other one."""
    distances = torch.cdist(x, cloud, compute_mode="donot_use_mm_for_euclid_dist")
    # The nearest of all is the point itself.
    return distances.topk(2, largest=False).values[:, 1]


def _nearest(
    origin: Tensor, x: Tensor, count: int
) -> Tensor:  # (k, g, d), (k, n, d) -> (k, g, count)
    sizes = x.square().sum(-1)[:, None]
    squared = sizes - 2 * origin @ x.mT
    return squared.detach().topk(count, largest=False).indices


def _take(x: Tensor, index: Tensor) -> Tensor:  # (k, n, d), (k, g, p) -> (k, g, p, d)
    rows = index.flatten(1)[..., None]
    flat = rows.expand(-1, -1, x.shape[-1])
    return x.gather(1, flat).unflatten(1, index.shape[1:])


@lru_cache(maxsize=16)
def _noise(d: int, draws: int, seed: int) -> np.ndarray:  # -> (2 d draws, d)
    """Directions ± a random orthogonal basis, with lengths that follow the χ distribution.

    The lengths come from strata of equal probability; on each stratum |ε|² is its conditional mean.
    Mean, covariance and third moments are those of N(0, I).
    """
    from scipy.special import gammainc, gammaincinv

    rng = np.random.default_rng(seed)
    ends = 2 * gammaincinv(d / 2, np.linspace(0, 1, draws + 1))  # quantiles of χ²
    # E[χ²_d; χ²_d ≤ b] = d · P(χ²_{d+2} ≤ b)
    chances = np.diff(gammainc(d / 2 + 1, ends / 2))
    radii = np.sqrt(draws * d * chances)
    parts = []
    for radius in radii:
        q, _ = np.linalg.qr(rng.normal(size=(d, d)))
        basis = radius * q
        parts.append(basis)
        parts.append(-basis)
    return np.concatenate(parts)
