"""How far data may spread for their mean to be the only one: by the largest sectional curvature.

Points within a distance r of some point have one Fréchet mean, if r is less than half the
injectivity radius and less than ``π / (2 √K)`` with the largest sectional curvature K of the ball;
for a median half of the latter (B. Afsari, Riemannian Lᵖ center of mass: existence, uniqueness, and
convexity, Proc. Amer. Math. Soc. 139, 2011, theorem 2.1).

At each place the sectional curvatures are the values of the curvature operator, which acts on
planes ``u ∧ v``. Its largest eigenvalue is no less than any of them; in up to three dimensions, and
for hypersurfaces, it is the largest of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from riemae.exceptions import SingularMetricError
from riemae.manifold import Manifold
from riemae.solvers import Curve, MetricSpace
from riemae.solvers.space import space_of
from riemae.statistics.tangents import Somewhere

# Numbers that the Riemann tensors of all places together may have.
_NUMBERS = 2**26
_AT_ONCE = 2**22
# Curvature that turns nothing beyond rounding within the data, in roundings of 1.
_FLAT = 1e4
# Segments of a loop whose length is measured.
_SEGMENTS = 64


def uniqueness_radius(curvature: Tensor, farthest: Tensor, power: int) -> Tensor:  # -> ()
    """The radius of a ball whose points have one mean (2) or median (1), by curvature alone.

    Infinite without positive curvature: less than rounding within the ``farthest`` distance.
    """
    bent = curvature * farthest.square() > _FLAT * torch.finfo(curvature.dtype).eps
    root = torch.where(bent, curvature, 1.0).sqrt()
    radius = torch.where(bent, power * math.pi / 4 / root, torch.inf)
    return torch.where(curvature.isnan() | farthest.isnan(), torch.nan, radius)


def shortest_loop(geometry: Somewhere, point: Tensor) -> Tensor:  # (m,) -> ()
    """The least length of a coordinate line that comes round; infinite where none does."""
    periods = getattr(getattr(geometry, "latent", None), "periods", ())
    known = [(i, p) for i, p in enumerate(periods) if p is not None]
    if not known:
        return point.new_full((), torch.inf)
    start = point.expand(len(known), -1)
    end = start.clone()
    for row, (i, period) in enumerate(known):
        end[row, i] += period
    chords = space_of(geometry, start).squared_chords(Curve.line(start, end, _SEGMENTS).nodes)
    return chords.clamp(min=0).sqrt().sum(1).amin()


def largest_curvature(geometry: Somewhere, curves: Curve) -> Tensor:  # curves (n,) -> ()
    """The largest sectional curvature that is found along curves.

    NaN where some place has none: where the metric is singular, and for decoders with kinks.
    """
    z = _places(curves.nodes)
    if z.shape[1] < 2:
        return z.new_zeros(())
    manifold = _manifold(geometry, z)
    with torch.no_grad():
        if not bool(z.isfinite().all()) or manifold.kinks(z) is not None:
            return z.new_full((), torch.nan)
        size = max(1, _AT_ONCE // z.shape[1] ** 4)
        return torch.stack([_largest(manifold, part) for part in z.split(size)]).amax()


def _places(nodes: Tensor) -> Tensor:  # (n, s + 1, m) -> (k, m)
    """The common start, ends, middles, quarters and so on, as many as there may be."""
    last = nodes.shape[1] - 1
    order = [last]
    step = last
    while step > 1:
        step //= 2
        order += list(range(step, last, 2 * step))
    places = torch.cat([nodes[:1, 0], *(nodes[:, i] for i in order)])
    most = max(1, _NUMBERS // nodes.shape[2] ** 4)
    return places[:most]


def _manifold(geometry: Somewhere, z: Tensor) -> Manifold:
    """Who knows about curvature."""
    if isinstance(geometry, Manifold):
        return geometry
    if isinstance(geometry, MetricSpace):
        return Manifold(geometry)
    return Manifold(MetricSpace(space_of(geometry, z).metric))


def _largest(manifold: Manifold, z: Tensor) -> Tensor:  # (k, m) -> ()
    """The largest eigenvalue of the curvature operator at some places; NaN where it has none."""
    try:
        tensor, metric = manifold.riemann(z, with_metric=True)
    except SingularMetricError:
        return z.new_full((), torch.nan)
    lower, problem = torch.linalg.cholesky_ex(metric)
    if bool(problem.any()) or not bool(tensor.isfinite().all()):
        return z.new_full((), torch.nan)
    m = z.shape[1]
    basis = torch.linalg.solve_triangular(lower.mT, torch.eye(m).to(z), upper=True)
    for _ in range(4):
        # Each index in turn goes to an orthonormal frame, and to the end.
        tensor = torch.einsum("bi...,bia->b...a", tensor, basis)
    first, second = torch.triu_indices(m, m, 1, device=z.device)
    operator = -tensor[:, first, second][:, :, first, second]
    return torch.linalg.eigvalsh((operator + operator.mT) / 2).amax()
