"""True lengths on steep networks, where a pair has geodesics in several valleys.

The error of a curve is measured against the geodesic of its own valley, and whether another valley
has a shorter one is counted apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemae import Manifold
from riemae.solvers import Curve, GeodesicResult, Newton

_SEGMENTS = 128  # of the first refinement: none may be coarser, so that no ridge is jumped over
_FINE = 256
# The refined curve is in the same valley where no point of it is further away than this share of
# the length.
_NEAR = 0.03
_LOOKS = 128
# Steps of the descent, each by this share of Gauss and Newton's, and by this share of the length at
# most.
_STEPS = 100
_SHARE = 0.25
_STRIDE = 0.02
_SAMPLES = 1024


def own_valley(M: Manifold, curve: Curve) -> Tensor:  # (p,) -> (p,)
    """Lengths of the geodesics in whose valleys these curves lie; NaN where not found.

    Newton's method on many nodes finds them from there. Where it has gone elsewhere, a descent in
    small steps leads to the bottom of the valley first.

    Args:
        M: In float64.
        curve: ``(p,)``, in float64.
    """
    fine = _refined(M, curve.resample(max(_SEGMENTS, curve.segments)))
    length = _known(fine)
    lost = ~(_gap(M, curve, fine.curve) < _NEAR * length)  # True for NaN
    rows = lost.nonzero().flatten()
    if len(rows):
        nodes = _at_equal_distances(curve[rows], M, max(_FINE, curve.segments))
        length[rows] = _known(_refined(M, Curve.from_nodes(_descended(M, nodes))))
    return length


def _refined(M: Manifold, curve: Curve) -> GeodesicResult:
    solver = Newton(segments=curve.segments, max_segments=4 * curve.segments)
    ends = curve.nodes[:, 0], curve.nodes[:, -1]
    return M.geodesic(*ends, rtol=1e-8, init=curve, solver=solver, throw=False, n_starts=1)


def _known(r: GeodesicResult) -> Tensor:
    sure = r.converged | (r.error < 1e-6 * r.length)
    return torch.where(sure, r.length, torch.nan)


def _samples(M: Manifold, curve: Curve) -> tuple[Tensor, Tensor]:
    """Images ``(p, k, D)`` of a curve's points, and the share of the length up to each."""
    times = torch.linspace(0, 1, _SAMPLES + 1, dtype=curve.nodes.dtype)
    x = M.decode(curve(times))
    travelled = x.diff(dim=1).norm(dim=-1).cumsum(1)
    return x, torch.nn.functional.pad(travelled / travelled[:, -1:], (1, 0))


def _between(x: Tensor, share: Tensor, wanted: Tensor) -> Tensor:  # (p, k, D), (p, k) -> (p, w, D)
    """Values at wanted shares of the length, linear in between."""
    every = wanted.expand(len(x), -1).contiguous()
    right = torch.searchsorted(share.contiguous(), every).clamp(1, share.shape[1] - 1)
    left = right - 1
    before, after = share.gather(1, left), share.gather(1, right)
    part = ((every - before) / (after - before).clamp(min=1e-300))[..., None]
    index = left[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(1, index) * (1 - part) + x.gather(1, index + 1) * part


def _gap(M: Manifold, one: Curve, other: Curve) -> Tensor:  # -> (p,)
    """The largest distance of images at the same share of the length."""
    wanted = torch.linspace(0, 1, _LOOKS + 1, dtype=one.nodes.dtype)
    images = [_between(*_samples(M, curve), wanted) for curve in (one, other)]
    return (images[0] - images[1]).norm(dim=-1).amax(1)


def _at_equal_distances(curve: Curve, M: Manifold, segments: int) -> Tensor:  # -> (p, n + 1, m)
    _, share = _samples(M, curve)
    times = torch.linspace(0, 1, _SAMPLES + 1, dtype=curve.nodes.dtype)
    wanted = torch.linspace(0, 1, segments + 1, dtype=curve.nodes.dtype)
    at = _between(times.expand_as(share)[..., None], share, wanted)[..., 0]
    nodes = torch.stack([curve[i](at[i]) for i in range(len(at))])
    nodes[:, 0], nodes[:, -1] = curve.nodes[:, 0], curve.nodes[:, -1]
    return nodes


def _descended(M: Manifold, nodes: Tensor) -> Tensor:  # (p, n + 1, m)
    """Nodes after many short steps of Gauss and Newton's method: a descent within the valley."""
    space = M.as_space()
    nodes = nodes.clone()
    for _ in range(_STEPS):
        expansion = space.expand(nodes, False)
        step = expansion.gauss_newton.cholesky().solve(-expansion.gradient)
        size = space.norm(nodes[:, 1:-1].flatten(0, 1), step.flatten(0, 1))
        furthest = size.view(len(nodes), -1).amax(1)
        length = expansion.energy.sqrt()
        share = (_STRIDE * length / furthest.clamp(min=1e-300)).clamp(max=_SHARE)
        nodes[:, 1:-1] += share[:, None, None] * step
    return nodes


def elsewhere(M: Manifold, z0: Tensor, z1: Tensor, rtol: float) -> dict[str, int]:
    """Of how many pairs a geodesic is known that is shorter by more than ``rtol`` than that found.

    By one start, by a bare call, and by eight starts. The shortest known one is that of either, or
    of the solver begun anew at the curve of one start: its coarse levels may change the valley.
    """
    one = M.geodesic(z0, z1, rtol=rtol, throw=False, n_starts=1)
    bare = M.geodesic(z0, z1, rtol=rtol, throw=False)
    again = M.geodesic(z0, z1, rtol=rtol, init=one.curve, throw=False, n_starts=1)
    many = M.geodesic(z0, z1, rtol=rtol, throw=False, n_starts=8)
    lengths = torch.stack([r.length for r in (one, bare, again, many)])
    shortest = lengths.nan_to_num(torch.inf).amin(0)
    longer = (lengths > (1 + rtol) * shortest).sum(1).tolist()
    return {
        "pairs": len(z0),
        "one_start": longer[0],
        "bare": longer[1],
        "eight_starts": longer[3],
    }
