"""What limited-memory BFGS knows of a function: secants, and the steps that they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from riemae.solvers.solver import Columns

# How far the scale that a secant shows may be from that of the first inverse Hessian.
_SCALES = 0.1, 10.0
# What is left to gain is taken for so many times what H or the last steps promise, and no slower
# convergence than this is extrapolated.
_DOUBT = 3
_SLOWEST = 0.97
_SLOWEST_HALF = 0.9  # the same for many steps at once
_FEW = 5  # of them: steps that are fast at first may creep later
# Of the line search: the share of the promised decrease that is enough, and the range in which the
# next stride is looked for.
_SUFFICIENT = 1e-4
_SHORTEST, _LONGEST = 0.1, 0.5
# No first trial promises more than this share of the energy.
BOLDEST = 0.5
S = TypeVar("S", bound="Search")


@dataclass
class Search(Columns):
    """Progress of limited-memory BFGS on ``p`` functions of ``(k, m)`` numbers.

    Attributes:
        x: ``(p, k, m)``, the best place so far.
        trial: ``(p, k, m)``, to be looked at next.
        energy: ``(p,)``, at ``x``; infinite before the first look.
        gradient: ``(p, k, m)``, there.
        slope: ``(p,)``, of the energy along the direction to ``trial``; negative.
        stride: ``(p,)``, the share of the direction that ``trial`` goes.
        misses: ``(p,)``, trials in a row that were too long.
        gains: ``(p, 3)``, by how much the last steps have lowered the energy, newest first; NaN
            before there are so many.
        moves: ``(p, h, k, m)``, differences of places, newest first; zeros for none.
        changes: ``(p, h, k, m)``, of their gradients.
    """

    x: Tensor
    trial: Tensor
    energy: Tensor
    gradient: Tensor
    slope: Tensor
    stride: Tensor
    misses: Tensor
    gains: Tensor
    moves: Tensor
    changes: Tensor

    @classmethod
    def begin(cls: type[S], x: Tensor, history: int, **more: Tensor) -> S:  # (p, k, m)
        """At places of which nothing is known; ``more`` fields are kept as they are."""
        p, k, m = x.shape
        # Each with memory of its own: curves are written to in place.
        slope, misses = x.new_zeros(2, p).unbind()
        moves, changes = x.new_zeros(2, p, history, k, m).unbind()
        return cls(
            x=x.clone(),
            trial=x.clone(),
            energy=x.new_full((p,), torch.inf),
            gradient=torch.zeros_like(x),
            slope=slope,
            stride=x.new_ones(p),
            misses=misses,
            gains=x.new_full((p, 3), torch.nan),
            moves=moves,
            changes=changes,
            **more,
        )

    def extended(self: S, modes: int) -> S:
        """With so many rows in place of k, the further ones 0, and nothing known of the energy."""
        more = modes - self.x.shape[1]

        def wide(x: Tensor) -> Tensor:
            return pad(x, (0, 0, 0, more))

        x = wide(self.x)
        return self.replaced(
            x=x,
            trial=x,
            energy=torch.full_like(self.energy, torch.inf),
            gradient=wide(self.gradient),
            moves=wide(self.moves),
            changes=wide(self.changes),
            misses=torch.zeros_like(self.misses),
        )

    def set_out(self: S, energy: Tensor, gradient: Tensor) -> S:
        """After the first look at places of which nothing was known: they are taken."""
        return self.replaced(x=self.trial, energy=energy, gradient=gradient)

    def seen(self: S, energy: Tensor, gradient: Tensor, eps: float) -> tuple[S, Tensor]:
        """After a further look at the trial places, and ``(p,)`` bool: where they are taken.

        Energies are rounded by ``eps``, relatively.
        """
        found, good = looked(self, self.trial - self.x, energy, gradient, eps)
        x = torch.where(good[:, None, None], self.trial, self.x)
        return self.replaced(x=x, **found), good

    def aimed(
        self: S, first: Callable[[Tensor], Tensor], good: Tensor | None, secants: int
    ) -> tuple[S, Tensor]:
        """With the next trials, and ``(p,)``: by how much the energies may still fall.

        Args:
            first: The inverse Hessian before any secant.
            good: ``(p,)`` bool: where the last trial was taken; None for all.
            secants: No curve remembers more of them.
        """
        moves, changes = self.moves[:, :secants], self.changes[:, :secants]
        direction = descent(self.gradient, moves, changes, first)
        slope = (self.gradient * direction).sum((1, 2))
        left = remaining(slope, self.gains)
        stride = boldest(self.energy, left)
        if good is not None:
            stride = torch.where(good, stride, self.stride)
        trial = torch.addcmul(self.x, stride[:, None, None], direction)
        return self.replaced(trial=trial, slope=slope, stride=stride), left


class Descending(Protocol):
    """What :func:`looked` asks of a state: fields as in :class:`Search`."""

    energy: Tensor
    gradient: Tensor
    slope: Tensor
    stride: Tensor
    misses: Tensor
    gains: Tensor
    moves: Tensor
    changes: Tensor


def looked(
    state: Descending, move: Tensor, energy: Tensor, gradient: Tensor, eps: float
) -> tuple[dict[str, Any], Tensor]:
    """Fields of a state after a look at trial places, and ``(p,)`` bool: where they are taken.

    The first look at a curve is always taken. The stride is that of a trial which was not.

    Args:
        state: Before it.
        move: ``(p, k, m)``, from the best places to the trials.
        energy: ``(p,)``, at the trials, rounded by ``eps``, relatively.
        gradient: ``(p, k, m)``, there.
        eps: Rounding.
    """
    fresh = state.energy.isinf()
    promised = state.stride * state.slope  # the old gradient along the move
    change = gradient - state.gradient
    curvature, useful = curved(move, change)
    # A gradient that is not finite leaves no finite product, not even with 0.
    finite = (curvature + energy).abs() < torch.inf
    limit = torch.add((1 + eps) * state.energy, promised, alpha=_SUFFICIENT)
    good = fresh | (finite & (energy <= limit))
    moves, changes = remembered(state.moves, state.changes, move, change, useful & finite & ~fresh)
    # Where the parabola through both energies and the slope is lowest.
    told = state.energy - energy
    excess = told + promised
    lowest = (promised / (2 * excess)).nan_to_num(_SHORTEST).clamp(_SHORTEST, _LONGEST)
    # Within the rounding of energies, the slopes at both ends tell the difference better.
    shown = torch.add(-promised, curvature, alpha=-0.5)
    gain = torch.where(told.abs() <= eps * state.energy, shown, told)
    gains = torch.cat([gain[:, None], state.gains[:, :-1]], 1)
    found = {
        "energy": torch.where(good, energy, state.energy),
        "gradient": torch.where(good[:, None, None], gradient, state.gradient),
        "stride": state.stride * lowest,
        "misses": torch.where(good, 0.0, state.misses + 1),
        "gains": torch.where((good & ~fresh)[:, None], gains, state.gains),
        "moves": moves,
        "changes": changes,
    }
    return found, good


def curved(move: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:  # (p, k, m) twice
    """``(p,)``: how much the gradient changes along a move, and whether that is of use.

    A secant is where the function curves upwards.
    """
    eps = torch.finfo(move.dtype).eps
    curvature = (move * change).sum((1, 2))
    norms = [torch.linalg.vector_norm(x.flatten(1), dim=1) for x in (move, change)]
    return curvature, curvature > eps * norms[0] * norms[1]


def remembered(
    moves: Tensor, changes: Tensor, move: Tensor, change: Tensor, useful: Tensor
) -> tuple[Tensor, Tensor]:  # (p, h, k, m) twice, (p, k, m) twice, (p,)
    """Moves and changes with new secants before them, where they are useful."""
    taken = useful[:, None, None, None]
    newer = torch.cat([move[:, None], moves[:, :-1]], 1)
    turned = torch.cat([change[:, None], changes[:, :-1]], 1)
    return torch.where(taken, newer, moves), torch.where(taken, turned, changes)


def descent(g: Tensor, moves: Tensor, changes: Tensor, first: Callable[[Tensor], Tensor]) -> Tensor:
    """``−H g`` ``(p, k, m)`` by the two-loop recursion, from the ``first`` inverse Hessian."""
    if not moves.shape[1]:
        return -first(g)
    curvature = (moves * changes).sum((2, 3), keepdim=True)
    known = curvature > 0
    # Numbers stay of shape (p, 1, 1), and few operations are used: for few curves, these take
    # longer than what they compute.
    rho = torch.where(known, 1 / curvature, 0.0).unbind(1)
    pairs = list(zip(rho, moves.unbind(1), changes.unbind(1), strict=True))
    q = g
    alphas = []
    for inverse, move, change in pairs:
        alpha = inverse * (move * q).sum((1, 2), keepdim=True)
        q = torch.addcmul(q, alpha, change, value=-1)
        alphas.append(alpha)
    newest = pairs[0][2]
    stiff = (newest * first(newest)).sum((1, 2), keepdim=True)
    scale = (curvature[:, 0] / stiff).clamp(*_SCALES)
    r = torch.where(known[:, 0], scale, 1.0) * first(q)
    for alpha, (inverse, move, change) in zip(reversed(alphas), reversed(pairs), strict=True):
        beta = inverse * (change * r).sum((1, 2), keepdim=True)
        r = torch.addcmul(r, alpha - beta, move)
    return -r


def boldest(energy: Tensor, left: Tensor) -> Tensor:  # (p,), (p,) -> (p,)
    """The longest stride of a first trial, where so much energy is left to gain."""
    return (BOLDEST * 2 * energy / left).sqrt().clamp(max=1)


def hoped(gain: np.ndarray) -> np.ndarray:  # (p,) -> (p,)
    """How much lower the energy may come where the last inverse Hessian promises ``gain``."""
    lower: np.ndarray = _DOUBT * gain
    return lower


def remaining(slope: Tensor, gains: Tensor) -> Tensor:  # (p,), (p, w)
    """How much lower the energy may come.

    Half of ``gᵀHg``, if H is right. Where it is not, steps converge linearly: what follows is a
    geometric series, of the slower ratio that the last steps have shown: one by one and, where
    enough are known, five by five and by halves of all.
    """
    gains = gains.clamp(min=0)
    last, before, first = gains[:, :3].unbind(1)
    ratio = torch.fmax(last / before, (last / first).sqrt()).clamp(max=_SLOWEST)
    most = torch.fmax(-slope / 2, last * ratio / (1 - ratio))
    half = gains.shape[1] // 2
    for count in (_FEW, half):
        if count > half or count == 1:  # one by one has been looked at
            continue
        # NaN where so many are not known.
        late = gains[:, :count].sum(1)
        early = gains[:, count : 2 * count].sum(1)
        ratio = (late / early).clamp(max=_SLOWEST_HALF)
        most = torch.fmax(most, late * ratio / (1 - ratio))
    return _DOUBT * most
