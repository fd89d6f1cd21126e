"""Fréchet means of groups of points, all in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import DTypeError, NotConvergedError, OptionError, ShapeError
from riemae.numerics.sums import summed
from riemae.solvers import Status
from riemae.solvers.result import remedies
from riemae.solvers.space import space_of
from riemae.statistics.arguments import takes_codes
from riemae.statistics.groups import Group
from riemae.statistics.joint import Aim
from riemae.statistics.means import central, means_of_groups
from riemae.statistics.tangents import (
    Somewhere,
    accuracy,
    expect_points,
    expect_steps,
    normalised,
)


@dataclass(frozen=True, eq=False)
class GroupMeans:
    """Fréchet means of c groups.

    Attributes:
        labels: The c different labels, in ascending order.
        points: ``(c, m)``, the means.
        variances: ``(c,)``, weighted means of squared distances within each group.
        errors: ``(c,)``, estimated distances of the means from the minimisers.
        status: ``(c,)`` codes of :class:`~riemae.solvers.Status`, as those of
            :class:`~riemae.statistics.Mean`.
        shares: ``(c,)``, of the weight of all points; they add up to 1.
        groups: ``(n,)`` int64, the group of each point: a place in ``labels``.
        distances: ``(n,)``, from each point to the mean of its group.
        logarithms: ``(n, m)``, tangents at the means that lead to the points.
    """

    labels: tuple[Any, ...]
    points: Tensor
    variances: Tensor
    errors: Tensor
    status: Tensor
    shares: Tensor
    groups: Tensor
    distances: Tensor
    logarithms: Tensor

    @property
    def converged(self) -> bool:
        """Whether every mean is as accurate as was asked for."""
        return bool((self.status == Status.CONVERGED).all())

    @property
    def within(self) -> Tensor:  # -> ()
        """The variance within groups: the mean squared distance of a point to its group's mean."""
        return (self.shares * self.variances).sum()

    def __repr__(self) -> str:
        good = int((self.status == Status.CONVERGED).sum())
        return (
            f"GroupMeans({len(self.labels)} groups of {len(self.groups)} points, "
            f"{good} converged, variance within {float(self.within):.4g})"
        )


@takes_codes
def group_means(
    geometry: Somewhere,
    points: Tensor,
    groups: Tensor | np.ndarray | Sequence[Any],
    weights: Tensor | None = None,
    *,
    rtol: float | None = None,
    max_steps: int = 100,
    throw: bool = True,
) -> GroupMeans:
    """The Fréchet mean of each group of points; not differentiable.

    Means and geodesics of all groups are solved together, as :func:`frechet_mean` solves those of
    one, which costs less than one call for each.

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        points: ``(n, m)``.
        groups: ``(n,)``, a label for each point: numbers or words.
        weights: ``(n,)``, at least 0, with a positive sum in each group; equal by default.
        rtol: Accuracy of each mean, relative to its group's spread; by default 1e-6, and 1e-3 in
            float32.
        max_steps: Looks at the curves of a group.
        throw: Raise where a mean is not accurate; False returns all with their status.

    Raises:
        NotConvergedError: When ``throw`` and a mean is not accurate; it carries the result.
        ShapeError: When ``groups`` are not one for each point.
        DTypeError: When they are neither numbers nor words.
        OptionError: When weights are negative, or those of a group are all 0.
        NonFiniteError: When a point is NaN or infinite.
    """
    where = "group_means"
    expect_points(where, points)
    expect_steps(where, "max_steps", max_steps)
    rtol = accuracy(where, rtol, points)
    labels, numbers = _labelled(where, groups, len(points))
    known = points.detach()
    of = torch.as_tensor(numbers).to(known.device)
    count = len(labels)
    with torch.no_grad():
        space = space_of(geometry, known, where=where, finite=True)
        share = normalised(where, weights, known)
        total = summed(share, of, count)
        if not bool((total > 0).all()):
            empty = [labels[i] for i in (total <= 0).nonzero().flatten().tolist()]
            hint = "Leave these groups out."
            raise OptionError(where, "weights in every group", f"none in {empty[:5]}", hint)
        own = Group(of, share / total[of], count)
        between = getattr(geometry, "latent", None) is None
        starts = [
            central(space, known[of == name], own.weights[of == name], between)
            for name in range(count)
        ]
        found = means_of_groups(
            geometry, space, torch.stack(starts), known, own, Aim(rtol, max_steps)
        )
        squares = found.joint.squares
        result = GroupMeans(
            labels=labels,
            points=found.joint.centers,
            variances=own.mean(squares),
            errors=found.joint.error,
            status=found.status,
            shares=total,
            groups=of,
            distances=found.distances,
            logarithms=found.logarithms,
        )
    if throw and not result.converged:
        bad = (result.status != Status.CONVERGED).nonzero().flatten().tolist()
        raise NotConvergedError(
            where,
            f"means accurate to rtol={rtol:g} of their groups' spread",
            f"{len(bad)} that are not, of groups {[labels[i] for i in bad[:5]]}",
            f"{remedies(result.status.cpu())} The error's .result holds all of them; throw=False "
            "returns it.",
            result,
        )
    return result


def _labelled(where: str, groups: Any, n: int) -> tuple[tuple[Any, ...], np.ndarray]:
    """The different labels, and the place of each point's among them.

    Raises:
        DTypeError: When they are neither numbers nor words.
        ShapeError: When they are not one for each point.
    """
    if isinstance(groups, Tensor):
        groups = groups.detach().cpu().numpy()
    values = np.asarray(groups)
    if values.shape != (n,):
        hint = "One label for each point."
        raise ShapeError(where, f"groups of shape ({n},)", str(values.shape), hint)
    if values.dtype.kind == "O":
        values = values.astype(str)
    missing = values.dtype.kind == "f" and bool(np.isnan(values).any())
    if values.dtype.kind not in "biufUS" or missing:
        got = "NaN" if missing else str(values.dtype)
        raise DTypeError(where, "groups as numbers or words", got, "Leave points without out.")
    known, numbers = np.unique(values, return_inverse=True)
    return tuple(known.tolist()), numbers.astype(np.int64)
