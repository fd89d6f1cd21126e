"""The metric along curves as far as it is known before their energy is, and its uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.path_metric import sampled_metric
from riemae.solvers.polynomials import spline_of, strayed_squares
from riemae.solvers.solver import Attempt, Columns
from riemae.solvers.space import Space
from riemae.solvers.state import curves_at, read

# A spline in place of the polynomial may add this share of what is asked for to the length.
_SPLINE = 0.05
_SEGMENTS = 8, 16, 32, 64, 128
# Latent dimensions beyond which the metric is taken at one place: m tangents at each are most of
# what a curve costs.
ONE_PLACE_BEYOND = 32
# There so many tangents at each end say how much it changes. They are random ones, and the largest
# change is that much larger: on random networks with 64 dimensions and gains of 1.3 to 6, 3 to 15
# times as far from 1.
_PROBES, _RARE = 2, 6.0
_PROBED = 1 / 6, 5 / 6


@dataclass
class ModeMetric(Columns):
    """The mean metric of ``p`` curves, in which their modes do not know of each other.

    Attributes:
        mean: ``(p, m, m)``, over a few places; the identity where there is none.
        root: ``(p, m, m)``, its Cholesky factor.
        regular: ``(p,)`` bool: there is one at all places.
        change: ``(p,)``, the largest factor by which lengths of tangents change between places.
    """

    mean: Tensor
    root: Tensor
    regular: Tensor
    change: Tensor

    @classmethod
    def along(cls, space: Space, nodes: Tensor, places: int) -> ModeMetric:  # (p, n + 1, m)
        """In the middles of so many equally long parts of curves."""
        samples = sampled_metric(space, nodes, places)
        regular = samples.isfinite().flatten(1).all(1)
        eye = torch.eye(nodes.shape[2]).to(samples)
        samples = torch.where(regular[:, None, None, None], samples, eye)
        mean = samples.mean(1)
        change = change_along(space, nodes, samples)
        return cls(mean, torch.linalg.cholesky(mean), regular, change)

    def energies(self, modes: Tensor) -> Tensor:  # (p, k, m) -> (p, k)
        """Of every mode alone: ``∫ |c P|² dt``, where the metric does not change."""
        return self.squares(modes) / (2 * self._orders(modes) + 1)

    def squares(self, v: Tensor) -> Tensor:  # (p, j, m) -> (p, j)
        """Squared lengths of velocities."""
        return ((v @ self.mean) * v).sum(2)

    def inverse(self, gradient: Tensor) -> Tensor:  # (p, k, m) -> (p, k, m)
        """The energy's inverse Hessian in the modes, where the metric does not change."""
        scale = (2 * self._orders(gradient) + 1)[:, None] / 2
        return scale * torch.cholesky_solve(gradient.mT, self.root).mT

    @staticmethod
    def _orders(modes: Tensor) -> Tensor:  # (p, k, m) -> (k,)
        return torch.arange(1, modes.shape[1] + 1, device=modes.device).to(modes)


def change_along(
    space: Space, nodes: Tensor, samples: Tensor
) -> Tensor:  # (p, n + 1, m), (p, s, m, m) -> (p,)
    """The largest factor by which a tangent's length changes from one place to the next.

    With one place only, that in its middle, lengths of a few tangents elsewhere stand for it.

    Args:
        space: The space.
        nodes: Curves.
        samples: Their metric in the middles of s equally long parts.
    """
    if samples.shape[1] == 1:
        change, _ = probed(space, nodes, samples[:, 0])
        return change
    root = torch.linalg.cholesky(samples[:, :-1])
    half = torch.linalg.solve_triangular(root, samples[:, 1:], upper=False)
    between = torch.linalg.solve_triangular(root, half.mT, upper=False)
    values = torch.linalg.eigvalsh(between)
    return torch.maximum(values[..., -1], 1 / values[..., 0]).amax(1).sqrt()


def probed(
    space: Space, nodes: Tensor, metric: Tensor
) -> tuple[Tensor, Tensor]:  # (p, n + 1, m), (p, m, m) -> (p,), (p,)
    """What a few tangents elsewhere say of a metric that is known in the middle of curves alone.

    Returns:
        The largest factor by which a tangent's length changes, and by which multiple of the
        identity metrics differ.
    """
    p, count, m = nodes.shape
    fixed = torch.Generator().manual_seed(0)
    unit = torch.randn(_PROBES, m, generator=fixed, dtype=torch.float64).to(nodes)
    unit = unit / unit.norm(dim=1, keepdim=True)
    # Of length 1 in the metric. Curve by curve the same bits as alone.
    root = torch.linalg.cholesky(metric)
    tangents = torch.linalg.solve_triangular(root.mT, unit.mT.expand(p, m, _PROBES), upper=True).mT
    places = [round(share * (count - 1)) for share in _PROBED]
    points = nodes[:, places][:, :, None].expand(p, len(places), _PROBES, m)
    every = tangents[:, None].expand(points.shape)
    lengths = space.norm(points.flatten(0, 2), every.flatten(0, 2)).view(p, -1)
    change = torch.maximum(lengths, 1 / lengths).amax(1)
    more = (lengths.square() - 1).abs().sum(1) / every.square().sum((1, 2, 3))
    return 1 + _RARE * (change - 1), more


@dataclass(frozen=True)
class Settled:
    """Curves that are good enough as they are; arrays ``(q,)`` unless said otherwise.

    Attributes:
        rows: Which of those that were looked at.
        z0: ``(q, m)``.
        z1: ``(q, m)``.
        modes: ``(q, k, m)``.
        metric: ``(q, m, m)``, along them; ``(q, 0, 0)`` where it is not known.
        length: Their lengths.
        energy: Their energies.
        error: Of the lengths.
        least: Lower bounds of the lengths, NaN where unknown.
        noise: What rounding makes of the lengths.
        left: The relative length that is left to gain.
        steps: Gradients that were taken.
        index: Morse index; −1 where it is unknown.
    """

    rows: np.ndarray
    z0: Tensor
    z1: Tensor
    modes: Tensor
    metric: Tensor
    length: np.ndarray
    energy: np.ndarray
    error: np.ndarray
    least: np.ndarray
    noise: np.ndarray
    left: np.ndarray
    steps: np.ndarray
    index: np.ndarray

    def told(self) -> tuple[np.ndarray, ...]:
        """The columns of an :class:`Attempt`, but for the curves."""
        # Nothing is shorter than the bound, where there is one.
        above = np.maximum(self.length - self.least, 0.0) + self.noise
        error = np.fmin(self.error, above)
        uneven = np.sqrt(np.maximum(self.energy / self.length**2 - 1, 0.0))
        return self.rows, self.length, error, self.left, uneven, self.steps, self.index


def joined(groups: list[Settled], rtol: float) -> Attempt:
    """Groups of curves as splines."""
    columns = [np.concatenate(column) for column in zip(*(x.told() for x in groups), strict=True)]
    rows, length, error, left, uneven, steps, index = columns or [np.zeros(0)] * 7
    curves = []
    count = 0
    for group in groups:
        for places, curve in as_splines(group.z0, group.z1, group.modes, group.metric, rtol):
            curves.append((count + places, curve))
        count += len(group.rows)
    return Attempt(rows.astype(np.int64), length, error, left, uneven, steps, index, curves)


def as_splines(
    z0: Tensor, z1: Tensor, modes: Tensor, metric: Tensor, rtol: float
) -> Iterator[tuple[np.ndarray, Curve]]:
    """Polynomials as splines in groups: on as few segments as follow them closely enough.

    Args:
        z0: ``(p, m)``.
        z1: ``(p, m)``.
        modes: ``(p, k, m)``.
        metric: ``(p, m, m)``, along the curves; ``(p, 0, 0)`` where it is not known.
        rtol: The relative accuracy of the lengths.
    """
    (squares,) = read(strayed_squares(z0, z1, modes, metric, _SEGMENTS[:-1]))
    close = squares[:, 1:] <= 2 * _SPLINE * rtol * squares[:, :1]
    fewest = np.where(close.any(1), close.argmax(1), len(_SEGMENTS) - 1)
    for number in np.unique(fewest):
        rows = (fewest == number).nonzero()[0]
        a, b, c = curves_at(rows, z0, z1, modes)
        yield rows, spline_of(a, b, c, _SEGMENTS[number])
