"""Derivatives of Fréchet means and medians, by the implicit function theorem.

At a mean p the derivative of the mean squared distance vanishes: ``Σ wᵢ ∂_p d²(p, xᵢ) = 0``. So p
moves by ``dp = −H⁻¹ Σ d(wᵢ ∂_p d²(p, xᵢ))``, with H the Hessian in p. The squared distance is the
least energy of a discrete curve; its derivative in p is that of the energy along the response of
all nodes to p, which can be held fixed while points, weights and the space change. All of this
holds exactly at every level of :mod:`riemae.statistics.joint`, and what was extrapolated from
values is extrapolated from derivatives. For medians distances take the place of their squares.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from riemae.differential.modes import PORTABLE
from riemae.geometry.envelope import once_differentiable
from riemae.numerics import sums
from riemae.solvers.energy import discrete_energy
from riemae.solvers.fans import Fan
from riemae.solvers.space import Space
from riemae.statistics.groups import Group
from riemae.statistics.joint import Joint, Level
from riemae.statistics.minimum import chained, summed
from riemae.statistics.romberg import shares

_SECOND_DERIVATIVE = (
    "frechet_mean",
    "at most one derivative",
    "a second one",
    "The implicit function theorem gives the first. Take differences of gradients with a small "
    "rtol.",
)


class Attached(NamedTuple):
    """What autograd sees.

    Attributes:
        centers: ``(c, m)``.
        objectives: ``(c,)``, mean squared distances; for medians mean distances.
    """

    centers: Tensor
    objectives: Tensor


def wanted(space: Space, points: Tensor, weights: Tensor | None) -> bool:
    """Whether anybody may ask for a derivative."""
    if not torch.is_grad_enabled():
        return False
    if points.requires_grad or (weights is not None and weights.requires_grad):
        return True
    # The parameters of a decoder, or of a metric, may.
    return space.squared_chords(points[:1].detach()[:, None].expand(1, 2, -1)).requires_grad


def attached(
    space: Space,
    joint: Joint,
    points: Tensor,
    weights: Tensor,
    groups: Group,
    roots: bool = False,
) -> Attached:
    """The means of groups and their objectives, once differentiable.

    Args:
        space: Where.
        joint: The means, with their levels.
        points: ``(n, m)``, with their graph.
        weights: ``(n,)``, which add up to 1 in every group, with theirs.
        groups: Who belongs together.
        roots: Whether they are medians.
    """
    centers = torch.zeros_like(joint.centers)
    objectives = torch.zeros_like(joint.centers[:, 0])
    for number, level in enumerate(joint.levels):
        # Groups of another depth give this level another share.
        share = torch.tensor([shares(int(d))[number] for d in joint.depth[level.groups]])
        moved, spread = _at_level(space, level, points, weights, groups, roots)
        share = share.to(moved)
        centers = centers + sums.summed(share[:, None] * moved, level.groups, len(centers))
        objectives = objectives + sums.summed(share * spread, level.groups, len(centers))
    known = groups.mean(summed(joint.squares, roots)[0])
    return Attached(
        centers=joint.centers + _change(centers),
        objectives=known + _change(objectives),
    )


def _change(value: Tensor) -> Tensor:
    """Zeros with a value's derivative."""
    return once_differentiable(value - value.detach(), _SECOND_DERIVATIVE)


def _at_level(
    space: Space, level: Level, points: Tensor, weights: Tensor, groups: Group, roots: bool
) -> tuple[Tensor, Tensor]:  # -> (a, m), (a,)
    """Values of no meaning, with the derivatives of means and objectives on so many segments."""
    nodes = level.nodes
    count = len(level.groups)
    places = torch.zeros(groups.count, dtype=torch.int64, device=nodes.device)
    places[level.groups] = torch.arange(count, device=nodes.device)
    of = places[groups.of[level.rows]]
    share = weights[level.rows]
    with torch.no_grad():
        fan = Fan.of(space, nodes)
        responses = fan.responses()[:, :-1]
        _, first, second = summed(fan.energy, roots)
        bends = chained(first, second, fan.gradient, fan.hessian)
        hessian = _sum(share[:, None, None] * bends, of, count)
    inside = nodes[:, :-1].clone().requires_grad_()
    own = points[level.rows]
    # Whole periods away, or nothing.
    ends = own + (nodes[:, -1] - own).detach()
    # Fused kernels often lack second backward passes.
    with PORTABLE.active(second_order=True):
        curves = torch.cat([inside, ends[:, None]], 1)
        energy = summed(discrete_energy(space.squared_chords(curves)), roots)[0]
        (slope,) = torch.autograd.grad(energy.sum(), inside, create_graph=True)
    reduced = torch.einsum("pkij,pki->pj", responses, slope)
    force = _sum(share[:, None] * reduced, of, count)
    spread = _sum(share * energy, of, count)
    moved = -torch.linalg.solve(hessian, force[..., None])[..., 0]
    return moved, spread


def _sum(x: Tensor, of: Tensor, count: int) -> Tensor:  # (k, *b) -> (count, *b)
    return sums.summed(x, of, count)
