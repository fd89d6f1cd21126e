"""Whole curves on one level: their modes, and the way down by limited-memory BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from riemae.solvers.curve import Curve
from riemae.solvers.hooks import precision_of, pulled_of
from riemae.solvers.mode_hessian import ModeHessian
from riemae.solvers.polynomials import (
    energy_force,
    fine_share,
    lobatto_weights,
    mode_energies,
    modes_of,
    points_on,
    slope_in_modes,
    velocities,
)
from riemae.solvers.secants import Search, boldest, remaining
from riemae.solvers.space import Space
from riemae.solvers.state import placed, read

# Second derivatives are looked at after so many steps, and again after as many, so often on one
# level.
_TIRED, _RENEWALS = 4, 2
# How much longer than the bound curves may be whose second derivatives need no look.
STEEP = 1.4
# A level ends where what is left falls below this share of what is asked for, or of what its own
# highest modes suggest that it cannot see.
_SHARE = 0.5
_TRUNCATED = 0.3
_MISSES = 5  # trials in a row that were too long
# Rounding of an energy, relative to it, so many units per point; and of a length, in units of the
# size of an image.
_ROUNDING = 16
_GRAIN = 4


@dataclass
class ModeState(Search):
    """Progress on ``p`` curves, whose modes are sought.

    Attributes:
        z0: ``(p, m)``.
        z1: ``(p, m)``.
        begun: ``(p,)``, the length of the start curves.
        length: ``(p,)``, of the present curves as this level sees them.
        fine: ``(p,)``, the share of the images' highest modes in their energy.
        noise: ``(p,)``, what rounding makes of the length.
        before: ``(p,)``, the length at which the level before ended.
        fine_before: ``(p,)``, the share there.
        left: ``(p,)``, the relative length that is left to gain.
        doubt: ``(p,)``, no less of that is believed before second derivatives are looked at.
        steps: ``(p,)``, gradients taken.
        since: ``(p,)``, of them since second derivatives were looked at.
        renewed: ``(p,)``, how often that was.
        convex: ``(p,)``, 0 where the last ones had directions in which the energy falls.
        regular: ``(p,)``, 0 where there is no metric.
        mean: ``(p, m, m)``, the mean metric along the start; none where it is sketched.
        change: ``(p,)``, the largest factor by which lengths of tangents change between places
            where the metric is known.
    """

    z0: Tensor
    z1: Tensor
    begun: Tensor
    length: Tensor
    fine: Tensor
    noise: Tensor
    before: Tensor
    fine_before: Tensor
    left: Tensor
    doubt: Tensor
    steps: Tensor
    since: Tensor
    renewed: Tensor
    convex: Tensor
    regular: Tensor
    mean: Tensor
    change: Tensor

    @classmethod
    def about(cls, start: Curve, modes: int, history: int, first: ModeHessian) -> ModeState:
        """About start curves."""
        nodes = start.nodes
        p = len(nodes)
        none = nodes.new_zeros(p)
        one = torch.ones_like(none)
        count = torch.zeros(p, dtype=torch.int64, device=nodes.device)
        return cls.begin(
            modes_of(start, modes),
            history,
            z0=nodes[:, 0],
            z1=nodes[:, -1],
            begun=none,
            length=torch.full_like(none, torch.nan),
            fine=torch.full_like(none, torch.nan),
            noise=none,
            before=none,
            fine_before=none,
            left=torch.full_like(none, torch.inf),
            doubt=none,
            steps=count,
            since=count,
            renewed=count,
            convex=one,
            regular=first.regular,
            mean=first.mean,
            change=first.change,
        )

    def extended(self, modes: int) -> ModeState:
        """With further modes, which are 0, and nothing known of the energy."""
        more = modes - self.x.shape[1]

        def wide(x: Tensor) -> Tensor:
            return pad(x, (0, 0, 0, more))

        x = wide(self.x)
        return replace(
            self,
            x=x,
            trial=x,
            energy=torch.full_like(self.energy, torch.inf),
            gradient=wide(self.gradient),
            moves=wide(self.moves),
            changes=wide(self.changes),
            misses=torch.zeros_like(self.misses),
            before=self.length,
            fine_before=self.fine,
        )


@dataclass(frozen=True)
class Level:
    """Curves of one degree, seen at so many points.

    Attributes:
        space: The space.
        ends: ``(p, 2, D)``, images of the curves' end points, which are the same on every level.
        degree: Of the curves.
        count: Points.
        rtol: The relative accuracy that is asked for.
        max_gradients: That a curve may take in all.
        secants: That curves remember from the levels before, at most.
        renews: Whether second derivatives are looked at where a few steps were not enough; after as
            many more the next level goes on. None for as many steps as it takes.
    """

    space: Space
    ends: Tensor
    degree: int
    count: int
    rtol: float
    max_gradients: int
    secants: int = 0
    renews: bool | None = None

    def taken_up(self, state: ModeState, first: ModeHessian) -> ModeState:
        """The curves as this level sees them, and their next trials."""
        state = state.extended(self.degree - 1)
        first.extended(self.degree - 1)
        if first.slope is not None:
            state = self._set_out(state, first)
        return self._stepped(state, self.ends, first.of(), self.secants)

    @staticmethod
    def _set_out(state: ModeState, first: ModeHessian) -> ModeState:
        """The first trials, from what tangents at a few places of the start curves have shown."""
        slope, energy = first.taken_slope(state.x.shape[1])
        direction = -first.of()(slope)
        left = remaining((slope * direction).sum((1, 2)), state.gains)
        stride = boldest(energy, left)
        return replace(state, trial=state.x + stride[:, None, None] * direction)

    def descended(
        self, state: ModeState, first: ModeHessian, least: np.ndarray
    ) -> tuple[ModeState, int]:  # (p,)
        """The curves after as many steps as this level is good for, and the most secants of one.

        Nothing shorter than ``least`` joins their ends.
        """
        secants = self.secants
        renewals = np.full(len(state.x), _RENEWALS if self.renews else 0)
        while True:
            going = (state.left > self._goal(state)) & self.alive(state)
            running, since, renewed, length, misses, convex = read(
                going, state.since, state.renewed, state.length, state.misses, state.convex > 0
            )
            tired = running & (since > _TIRED) & (misses == 0)
            renewable = renewals > 0
            if self.renews is not None:
                # Where the manifold bends much, tangents alone do not tell what is left.
                unsure = np.where(renewed > 0, ~convex & (since > 0), ~(length <= STEEP * least))
                tired |= unsure & ~running & renewable
                running = (running & ~tired) | (tired & renewable)
            active = running.nonzero()[0]
            if not len(active):
                return state, secants
            anew = (tired & renewable).nonzero()[0]
            if len(anew):
                renewals[anew] -= 1
                self._renew(state, first, anew)
                continue
            secants += 1
            # From a look at second derivatives on, the first step is a secant already.
            known = min(secants, int(since[active].max()) + 1)
            if len(active) == len(running):
                state = self._stepped(state, self.ends, first.of(), known)
                continue
            those = placed(active, state.x)
            part = self._stepped(state.select(those), self.ends[those], first.of(those), known)
            state.update(those, part)

    def _renew(self, state: ModeState, first: ModeHessian, rows: np.ndarray) -> None:
        """Curves at ``rows`` with second derivatives, in place of secants."""
        those = placed(rows, state.x)
        part = state.select(those)
        convex = first.renewed(self.space, rows, part.z0, part.z1, part.x)
        zero = torch.zeros_like(part.since)
        part = replace(
            part,
            moves=torch.zeros_like(part.moves),
            changes=torch.zeros_like(part.changes),
            gains=torch.full_like(part.gains, torch.nan),
            misses=torch.zeros_like(part.misses),
            since=zero,
            doubt=torch.zeros_like(part.left),
            renewed=part.renewed + 1,
            convex=convex,
        )
        every = torch.ones_like(part.left, dtype=torch.bool)
        part, left = part.aimed(first.of(those), every, 0)
        state.update(those, replace(part, left=left / (2 * part.energy)))

    def alive(self, state: ModeState) -> Tensor:  # -> (p,)
        """Whether curves may take another gradient."""
        return (state.misses < _MISSES) & (state.steps < self.max_gradients)

    def _goal(self, state: ModeState) -> Tensor:  # -> (p,)
        """What may be left to gain on this level, relatively."""
        shares = state.x.square().sum(2) * mode_energies(self.degree - 1, state.x)
        total = (state.z1 - state.z0).square().sum(1) + shares.sum(1)
        unseen = shares[:, -2:].sum(1) / total / 2
        return (_TRUNCATED * unseen).clamp(min=_SHARE * self.rtol)

    def _stepped(
        self, state: ModeState, ends: Tensor, first: Callable[[Tensor], Tensor], secants: int
    ) -> ModeState:
        """After a look at the trials, with the next ones."""
        eps = precision_of(self.space, state.x.dtype).eps
        points = points_on(state.z0, state.z1, state.trial, self.count)
        found = pulled_of(self.space, points[:, 1:-1], self._force, ends)
        assert found is not None
        inner, told = found
        along = pad(inner, (0, 0, 1, 1))
        energy, length, fine, size = told.unbind(1)
        gradient = slope_in_modes(along, self.degree - 1)
        state, good = state.seen(energy, gradient, _ROUNDING * eps * self.count)
        # Rounding of images: what does not cancel along the curve, and what uneven speeds add.
        rough = eps * self.count**2 * size
        noise = _GRAIN * eps * (size + length) + rough.square() / length
        before = state.left
        state, left = state.aimed(first, good, secants)
        left = left / (2 * state.energy)
        since = state.since + 1
        doubt = state.doubt
        if self.renews is not None:
            # Secants across a trial that was too long do not tell what is left here.
            doubt = torch.where(good, doubt, torch.maximum(doubt, before))
        return replace(
            state,
            doubt=doubt,
            length=torch.where(good, length, state.length),
            fine=torch.where(good, fine / energy, state.fine),
            noise=torch.where(good, noise, state.noise),
            left=torch.maximum(left, doubt),
            steps=state.steps + 1,
            since=since,
        )

    def _force(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (p, q, D) -> (p, q, D), (p, 4)
        """The energy's gradient in the images, and energy, length, fine share and size."""
        v = velocities(x)
        squares = v.square().sum(-1)
        weights = lobatto_weights(self.count, squares)
        energy = (squares * weights).sum(-1)
        length = (squares.sqrt() * weights).sum(-1)
        size = x[:, :: self.count - 1].norm(dim=-1).amax(1)
        return energy_force(v), torch.stack([energy, length, fine_share(v), size], 1)
