"""The metric along curves as far as it is known before their energy is, and what that is good for.

The energy of a polynomial curve in a fixed metric is a quadratic form in its modes
(:mod:`riemae.solvers.polynomials`). Its inverse is the first inverse Hessian of those who seek the
modes, and the measure of what their gradient promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.path_metric import PathMetric
from riemae.solvers.polynomials import points_on, spline_of, stiffness, strayed, velocities
from riemae.solvers.state import placed, read

_DENSE = 256  # up to so many modes times dimensions the form is factorised as a whole
# A spline in place of the polynomial may add this share of what is asked for to the length.
_SPLINE = 0.05
_SEGMENTS = (8, 16, 32, 64, 128)
_LOOKS = 33  # points at which a curve's latent velocity is looked at


class ModeMetric:
    """The inverse of the energy's Hessian in the modes of curves, in a metric that is fixed.

    Args:
        samples: ``(p, s, m, m)``, the metric in the middles of s equally long parts; none where it
            is sketched.
        sketch: Of its mean; None where there are samples.
        modes: k, of the curves.
    """

    def __init__(self, samples: Tensor, sketch: PathMetric | None, modes: int) -> None:
        m = samples.shape[-1]
        k = torch.arange(1, modes + 1, device=samples.device).to(samples)
        self.scale = (2 * k + 1)[:, None] / 2
        self.sketch = sketch
        self.dense = modes * m <= _DENSE
        if sketch is None:
            form = stiffness(samples, modes) if self.dense else samples.mean(1)
            self.root = torch.linalg.cholesky(form)

    def select(self, rows: Tensor) -> ModeMetric:
        """Of the curves at ``rows``."""
        found = copy(self)
        if self.sketch is not None:
            found.sketch = self.sketch.select(rows)
        else:
            found.root = self.root[rows]
        return found

    def inverse(self, g: Tensor) -> Tensor:  # (p, k, m) -> (p, k, m)
        """Steps that gradients of all curves promise."""
        if self.sketch is not None:
            return self.scale * self.sketch.inverse(g)
        if self.dense:
            return torch.cholesky_solve(g.flatten(1)[..., None], self.root).view(g.shape)
        return self.scale * torch.cholesky_solve(g.mT, self.root).mT

    def of(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """:meth:`inverse` for the curves at ``rows``."""
        return self.select(rows).inverse


def sound_samples(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Metrics ``(p, s, m, m)``, the identity where one is NaN, and ``(p,)``: where none is."""
    sound = samples.isfinite().flatten(1).all(1)
    eye = torch.eye(samples.shape[-1]).to(samples)
    return torch.where(sound[:, None, None, None], samples, eye), sound


def largest_change(samples: Tensor) -> Tensor:  # (p, s, m, m) -> (p,)
    """The largest factor by which a tangent's length changes from one sample to the next."""
    if samples.shape[1] < 2:
        return samples.new_ones(len(samples))
    root = torch.linalg.cholesky(samples[:, :-1])
    half = torch.linalg.solve_triangular(root, samples[:, 1:], upper=False)
    between = torch.linalg.solve_triangular(root, half.mT, upper=False)
    values = torch.linalg.eigvalsh((between + between.mT) / 2)
    return torch.maximum(values[..., -1], 1 / values[..., 0]).amax(1).sqrt()


def as_splines(
    z0: Tensor, z1: Tensor, modes: Tensor, samples: Tensor, rtol: float
) -> Iterator[tuple[np.ndarray, Curve]]:
    """Polynomials as splines in groups: on as few segments as follow them closely enough.

    Args:
        z0: ``(p, m)``.
        z1: ``(p, m)``.
        modes: ``(p, k, m)``.
        samples: ``(p, s, m, m)``, the metric along the curves, where it is known.
        rtol: The relative accuracy of the lengths.
    """
    mean = samples.mean(1) if samples.shape[1] else None

    def squared(v: Tensor, rows: Tensor) -> Tensor:  # (q, j, m), (q,) -> (q,)
        lowered = v if mean is None else v @ mean[rows]
        return (lowered * v).sum(2).mean(1)

    rest = np.arange(len(modes))
    whole = squared(velocities(points_on(z0, z1, modes, _LOOKS)), placed(rest, modes))
    for segments in _SEGMENTS:
        those = placed(rest, modes)
        part = modes[those]
        share = squared(strayed(part, segments), those) / whole[those] / 2
        (close,) = read(share <= _SPLINE * rtol)
        close = close | (segments == _SEGMENTS[-1])
        if close.any():
            found = placed(rest[close], modes)
            yield rest[close], spline_of(z0[found], z1[found], modes[found], segments)
        rest = rest[~close]
        if not len(rest):
            return
