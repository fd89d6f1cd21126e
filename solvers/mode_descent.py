"""Whole curves on one level: their modes, and the way down by limited-memory BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.hooks import precision_of
from riemae.solvers.mode_hessian import ModeHessian
from riemae.solvers.mode_looks import ModeSearch, energy_and_length, energy_rounding, looked_at
from riemae.solvers.polynomials import force_and_fine, mode_energies, modes_of, velocities
from riemae.solvers.secants import Search, boldest, descent, remaining
from riemae.solvers.space import Space
from riemae.solvers.state import placed, read

# Second derivatives are looked at after so many steps, and again after as many, so often on one
# level.
_TIRED, _RENEWALS = 4, 2
# How much longer than the bound curves may be whose second derivatives need no look.
STEEP = 1.4
# A level ends where what is left falls below this share of what is asked for, with patience below
# the second, or below a share of what its own highest modes suggest that it cannot see.
_SHARE, _PATIENT_SHARE = 0.5, 0.7
_TRUNCATED = 0.3
_MISSES = 5  # trials in a row that were too long


@dataclass
class ModeState(ModeSearch):
    """Progress on ``p`` curves through the levels.

    Attributes:
        straight: ``(p,)``, their squared distance.
        size: ``(p,)``, of the larger one's image.
        begun: ``(p,)``, the length of the start curves.
        seen_as: ``(p, 2)``: the length of the present curves as this level sees them, and how much
            of their energy is in the images' highest modes.
        before: ``(p,)``, the length at which the level before ended.
        fine_before: ``(p,)``, the share of the images' highest modes in the energy there.
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

    straight: Tensor
    size: Tensor
    begun: Tensor
    seen_as: Tensor
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
    def about(
        cls, start: Curve, modes: int, history: int, first: ModeHessian, ends: Tensor
    ) -> ModeState:
        """About start curves, with the images ``(p, 2, D)`` of their end points."""
        nodes = start.nodes
        p = len(nodes)
        corners = nodes[:, :: nodes.shape[1] - 1]
        begun, before, fine_before, doubt = nodes.new_zeros(4, p).unbind()
        steps, since, renewed = torch.zeros(3, p, dtype=torch.int64, device=nodes.device).unbind()
        return cls.begin(
            modes_of(start, modes),
            history,
            corners=corners,
            straight=(corners[:, 1] - corners[:, 0]).square().sum(1),
            size=torch.linalg.vector_norm(ends, dim=2).amax(1),
            begun=begun,
            seen_as=nodes.new_full((p, 2), torch.nan),
            before=before,
            fine_before=fine_before,
            left=nodes.new_full((p,), torch.inf),
            doubt=doubt,
            steps=steps,
            since=since,
            renewed=renewed,
            convex=nodes.new_ones(p),
            regular=first.regular,
            mean=first.mean,
            change=first.change,
        )

    @property
    def length(self) -> Tensor:
        """``(p,)``, of the present curves as this level sees them."""
        return self.seen_as[:, 0]

    @property
    def fine(self) -> Tensor:
        """``(p,)``, the share of the images' highest modes in their energy."""
        return self.seen_as[:, 1] / self.energy

    def extended(self, modes: int) -> ModeState:
        """With further modes, which are 0, and nothing known of the energy."""
        wide = super().extended(modes)
        return wide.replaced(before=self.length, fine_before=self.fine)


# What a step changes.
_MOVING = (
    *(f.name for f in fields(Search)),
    *("seen_as", "left", "doubt", "steps", "since", "renewed", "convex"),
)


@dataclass(frozen=True)
class Patience:
    """How many times what is left counts: ``least · max(steps / expected, 1)³``.

    Where a curve takes more steps than expected, the metric does not fit, and most of what is left
    may lie where no secant has been.
    """

    least: float
    expected: float

    def doubt(self, state: ModeState) -> Tensor:  # -> (p,)
        """The factor after the steps that there were."""
        steps = state.since.to(state.left)
        return self.least * (steps / self.expected).clamp(min=1) ** 3


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
        patience: Where what is left counts more the more steps there were, and steps are taken
            until it is little even so; None where steps end before.
    """

    space: Space
    ends: Tensor
    degree: int
    count: int
    rtol: float
    max_gradients: int
    secants: int = 0
    renews: bool | None = None
    patience: Patience | None = None

    def taken_up(self, state: ModeState, first: ModeHessian) -> ModeState:
        """The curves as this level sees them, and their next trials."""
        state = state.extended(self.degree - 1)
        first.extended(self.degree - 1)
        if first.slope is not None:
            state = self._set_out(state, first)
        return self._stepped(state, self.ends, first.of(), self.secants, fresh=True)

    @staticmethod
    def _set_out(state: ModeState, first: ModeHessian) -> ModeState:
        """The first trials, from what tangents at a few places of the start curves have shown."""
        slope, energy = first.taken_slope(state.x.shape[1])
        direction = -first.of()(slope)
        left = remaining((slope * direction).sum((1, 2)), state.gains)
        stride = boldest(energy, left)
        return state.replaced(trial=state.x + stride[:, None, None] * direction)

    def descended(
        self, state: ModeState, first: ModeHessian, least: np.ndarray
    ) -> tuple[ModeState, int]:  # (p,)
        """The curves after as many steps as this level is good for, and the most secants of one.

        Nothing shorter than ``least`` joins their ends.
        """
        secants = self.secants
        # Those that still go, a curve that has come to its end does not begin again.
        rows = np.arange(len(state.x))
        part, ends = state, self.ends
        inverse: Callable[[Tensor], Tensor] | None = None
        renewals = np.full(len(rows), _RENEWALS if self.renews else 0)
        while True:
            feared = part.left
            if self.patience is not None:
                feared = feared * self.patience.doubt(part)
            left, goal, since, renewed, length, misses, convex, steps = read(
                feared,
                self._goal(part),
                part.since,
                part.renewed,
                part.length,
                part.misses,
                part.convex,
                part.steps,
            )
            running = (left > goal) & (misses < _MISSES) & (steps < self.max_gradients)
            tired = running & (since > _TIRED) & (misses == 0)
            renewable = renewals > 0
            if self.renews is not None:
                # Where the manifold bends much, tangents alone do not tell what is left.
                steep = ~(length <= STEEP * least[rows])
                unsure = np.where(renewed > 0, ~(convex > 0) & (since > 0), steep)
                tired |= unsure & ~running & renewable
                running = (running & ~tired) | (tired & renewable)
            on = running.nonzero()[0]
            if len(on) < len(rows):
                if part.x.shape == state.x.shape:
                    state = part
                else:
                    off = placed((~running).nonzero()[0], part.x)
                    state.update(placed(rows[~running], state.x), part.select(off), _MOVING)
                if not len(on):
                    return state, secants
                there = placed(on, part.x)
                part, ends = part.select(there), ends[there]
                rows, renewals, inverse = rows[on], renewals[on], None
                tired, since = tired[on], since[on]
            anew = (tired & (renewals > 0)).nonzero()[0]
            if len(anew):
                renewals[anew] -= 1
                self._renew(part, first, rows, anew)
                inverse = None
                continue
            if inverse is None:
                every = len(rows) == len(state.x)
                inverse = first.of(None if every else placed(rows, state.x))
            secants += 1
            # From a look at second derivatives on, the first step is a secant already.
            known = min(secants, int(since.max()) + 1)
            part = self._stepped(part, ends, inverse, known)

    def shortening(self, state: ModeState, first: Callable[[Tensor], Tensor]) -> Tensor:  # -> (p,)
        """By how much lengths may still fall, relatively, from one more look at the present curves.

        With the gradient ``g`` of the length, which an uneven speed does not matter to, and the
        energy's inverse Hessian ``H``, that is ``gᵀHg``. Across the curve the length's inverse
        Hessian is ``2 L H``; of its decrement half is left, and the share of ``L`` is told.
        """
        there = state.replaced(trial=state.x)
        gradient, _ = looked_at(self.space, there, self.count, _length_force, self.ends)
        known = state.moves[:, : self.secants], state.changes[:, : self.secants]
        return -(gradient * descent(gradient, *known, first)).sum((1, 2))

    def _renew(
        self, state: ModeState, first: ModeHessian, rows: np.ndarray, anew: np.ndarray
    ) -> None:
        """Curves at ``anew`` of those at ``rows`` with second derivatives, in place of secants."""
        those = placed(anew, state.x)
        part = state.select(those)
        convex = first.renewed(self.space, rows[anew], part.z0, part.z1, part.x)
        zero = torch.zeros_like(part.since)
        part = part.replaced(
            moves=torch.zeros_like(part.moves),
            changes=torch.zeros_like(part.changes),
            gains=torch.full_like(part.gains, torch.nan),
            misses=torch.zeros_like(part.misses),
            since=zero,
            doubt=torch.zeros_like(part.left),
            renewed=part.renewed + 1,
            convex=convex,
        )
        inverse = first.of(placed(rows[anew], state.x))
        part, left = part.aimed(inverse, None, 0)
        state.update(those, part.replaced(left=left / (2 * part.energy)), _MOVING)

    def _goal(self, state: ModeState) -> Tensor:  # -> (p,)
        """What may be left to gain on this level, relatively."""
        shares = state.x.square().sum(2) * mode_energies(self.degree - 1, state.x)
        total = state.straight + shares.sum(1)
        finest = min(2, (shares.shape[1] - 1) // 2)  # of few modes, one
        unseen = shares[:, -finest:].sum(1) / total
        share = _SHARE if self.patience is None else _PATIENT_SHARE
        return (_TRUNCATED / 2 * unseen).clamp(min=share * self.rtol)

    def _stepped(
        self,
        state: ModeState,
        ends: Tensor,
        first: Callable[[Tensor], Tensor],
        secants: int,
        fresh: bool = False,
    ) -> ModeState:
        """After a look at the trials, with the next ones.

        ``fresh``: it is the first one on this level.
        """
        gradient, told = looked_at(self.space, state, self.count, self._force, ends)
        energy, seen_as = told[:, 0], told[:, 1:]
        before, doubt = state.left, state.doubt
        good = None
        if fresh:
            state = state.set_out(energy, gradient)
        else:
            eps = precision_of(self.space, state.x.dtype).eps
            state, good = state.seen(energy, gradient, energy_rounding(eps, self.count))
            seen_as = torch.where(good[:, None], seen_as, state.seen_as)
        state, left = state.aimed(first, good, secants)
        left = left / (2 * state.energy)
        if self.renews is not None:
            if good is not None:
                # Secants across a trial that was too long do not tell what is left here.
                doubt = torch.where(good, doubt, torch.maximum(doubt, before))
            left = torch.maximum(left, doubt)
        steps, since = state.steps + 1, state.since + 1
        return state.replaced(doubt=doubt, seen_as=seen_as, left=left, steps=steps, since=since)

    def _force(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (p, q, D) -> (p, q, D), (p, 3)
        """The energy's gradient in the images, and energy, length and fine share of it."""
        v = velocities(x)
        energy, length = energy_and_length(v)
        force, fine = force_and_fine(v)
        return force, torch.stack([energy, length, fine], 1)


def _length_force(x: Tensor) -> tuple[Tensor, Tensor]:  # (p, q, D) -> (p, q, D), (p,)
    """The length's gradient in the images, and the length."""
    v = velocities(x)
    _, length = energy_and_length(v)
    speed = torch.linalg.vector_norm(v, dim=2, keepdim=True)
    force, _ = force_and_fine(v / speed.clamp(min=torch.finfo(v.dtype).tiny))
    return force / 2, length
