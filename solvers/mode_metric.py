"""The metric along curves as far as it is known before their energy is, and its uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.path_metric import sampled_metric
from riemae.solvers.polynomials import points_on, spline_of, strayed, velocities
from riemae.solvers.solver import Columns
from riemae.solvers.space import Space
from riemae.solvers.state import placed, read

# A spline in place of the polynomial may add this share of what is asked for to the length.
_SPLINE = 0.05
_SEGMENTS = (8, 16, 32, 64, 128)
_LOOKS = 33  # points at which a curve's latent velocity is looked at


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
        return cls(mean, torch.linalg.cholesky(mean), regular, _largest_change(samples))

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


def _largest_change(samples: Tensor) -> Tensor:  # (p, s, m, m) -> (p,)
    """The largest factor by which a tangent's length changes from one sample to the next."""
    if samples.shape[1] < 2:
        return samples.new_ones(len(samples))
    root = torch.linalg.cholesky(samples[:, :-1])
    half = torch.linalg.solve_triangular(root, samples[:, 1:], upper=False)
    between = torch.linalg.solve_triangular(root, half.mT, upper=False)
    values = torch.linalg.eigvalsh((between + between.mT) / 2)
    return torch.maximum(values[..., -1], 1 / values[..., 0]).amax(1).sqrt()


def as_splines(
    z0: Tensor, z1: Tensor, modes: Tensor, metric: ModeMetric, rtol: float
) -> Iterator[tuple[np.ndarray, Curve]]:
    """Polynomials as splines in groups: on as few segments as follow them closely enough.

    Args:
        z0: ``(p, m)``.
        z1: ``(p, m)``.
        modes: ``(p, k, m)``.
        metric: Along the curves.
        rtol: The relative accuracy of the lengths.
    """
    rest = np.arange(len(modes))
    whole = metric.squares(velocities(points_on(z0, z1, modes, _LOOKS))).mean(1)
    for segments in _SEGMENTS:
        those = placed(rest, modes)
        part = strayed(modes[those], segments)
        share = metric.select(those).squares(part).mean(1) / whole[those] / 2
        (close,) = read(share <= _SPLINE * rtol)
        close = close | (segments == _SEGMENTS[-1])
        if close.any():
            found = placed(rest[close], modes)
            yield rest[close], spline_of(z0[found], z1[found], modes[found], segments)
        rest = rest[~close]
        if not len(rest):
            return
