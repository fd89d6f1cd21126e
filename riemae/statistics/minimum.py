"""Newton's method for means of groups and all their curves, on one number of segments.

Each group is in one of these states:

=========  =======================================================================================
open       its last step was not small
settled    it was small: how small the next would be is known
failed     no part of its step lowers the energy, or its numbers are not finite: see ``status``
=========  =======================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.solvers import Status
from riemae.solvers.energy import discrete_energy
from riemae.solvers.fans import Fan, tapered
from riemae.solvers.space import Space
from riemae.statistics.groups import Group

# A step is halved so often before its group counts as stalled.
_HALVINGS = 20
# A curve whose energy rises by more than this factor tries these parts of its own step.
_RISE = 1.1
_PARTS = (0.5, 0.2, 0.0)
# What may be left after the last step, relative to the accuracy of a level: the relative
# decrement, which is the square of the last step. With second derivatives from an earlier look
# it is the last step times the ratio of the last two, and may be so many times as much.
SETTLED = 0.02
_MEASURED = 10
# Second derivatives are kept from steps of at most this size on, relative to the spread, while each
# is at most so much of the one before. A finer level's first step counts as much.
_NEAR = 0.2
_CONTRACTION = 0.3
# Parts of a step that are tried before kept second derivatives are taken anew.
_TRIED = 3
# Where decoders are piecewise linear: what may be left, relative to the spread, and looks that are
# enough.
_KINKED = 3e-3
_KINKED_LOOKS = 12
# Eigenvalues of the Hessian, relative to flat space, that are negative, and the least that is
# divided by.
_NEGATIVE = 1e-6
_LEAST = 1e-3
# A relative decrement from which on the Hessian is not believed where it is less than flat.
_FAR = 0.05
# How far a saddle is left, relative to the spread.
_KICK = 3e-2


@dataclass(frozen=True)
class Minimum:
    """Means of ``c`` groups at one level, where all curves are geodesics.

    Attributes:
        nodes: ``(n, s + 1, m)``; the first ones are the means.
        centers: ``(c, m)``.
        squares: ``(n,)``, least energies: squared distances.
        slopes: ``(n, m)``, their derivatives in the mean.
        hessian: ``(c, m, m)``, of the mean squared distance.
        index: ``(c,)`` int64, its negative eigenvalues.
        rest: ``(c,)``, the relative decrement of the last step.
        steps: ``(c,)`` int64, looks at the curves.
        status: ``(c,)`` int64 codes.
        sure: ``(c,)`` bool: every curve is a minimum among its neighbours.
        kinked: ``(c,)`` bool: second derivatives vanish on all curves.
        fan: The second derivatives of the last looks, of all curves; None where some are missing.
    """

    nodes: Tensor
    centers: Tensor
    squares: Tensor
    slopes: Tensor
    hessian: Tensor
    index: Tensor
    rest: Tensor
    steps: Tensor
    status: Tensor
    sure: Tensor
    kinked: Tensor
    fan: Fan | None


def minimised(
    space: Space,
    nodes: Tensor,
    groups: Group,
    tol: float,
    max_steps: Tensor,
    leave_saddles: bool = True,
    fixed: bool = False,
    fan: Fan | None = None,
    straight: bool = False,
    roots: bool = False,
) -> Minimum:
    """Means of groups on the segments that their curves have.

    Args:
        space: Where.
        nodes: ``(n, s + 1, m)``.
        groups: Who belongs together.
        tol: Relative decrement of the last step.
        max_steps: ``(c,)``, looks at the curves of each group.
        leave_saddles: Whether a mean with a direction of descent goes on along it.
        fixed: Whether the starts stay where they are.
        fan: About the curves, with second derivatives that are good enough to begin with.
        straight: Whether the first step is Gauss and Newton's.
        roots: Whether distances are summed up, not their squares.
    """
    run = _Newton(space, nodes, groups, tol, max_steps, leave_saddles, fixed, fan, straight, roots)
    while bool(run.open.any()):
        run.step()
    return run.minimum()


class _Newton:
    """One level."""

    def __init__(
        self,
        space: Space,
        nodes: Tensor,
        groups: Group,
        tol: float,
        max_steps: Tensor,
        leave_saddles: bool,
        fixed: bool,
        fan: Fan | None,
        straight: bool,
        roots: bool,
    ) -> None:
        n, count, m = nodes.shape
        c = groups.count
        self.space = space
        self.groups = groups
        self.tol = tol
        self.max_steps = max_steps
        self.leave_saddles = leave_saddles
        self.fixed = fixed
        self.nodes = nodes.clone()
        self.open = torch.ones(c, dtype=torch.bool, device=nodes.device)
        self.status = torch.full((c,), int(Status.MAX_STEPS), device=nodes.device)
        self.steps = torch.zeros(c, dtype=torch.int64, device=nodes.device)
        self.index = torch.zeros_like(self.steps)
        self.rest = nodes.new_full((c,), torch.inf)
        self.hessian = nodes.new_zeros(c, m, m)
        self.squares = nodes.new_full((n,), torch.nan)
        self.slopes = nodes.new_full((n, m), torch.nan)
        self.kicked = torch.zeros_like(self.open)
        self.sure = torch.zeros_like(self.open)
        self.size = torch.full_like(self.rest, torch.inf)
        self.kinked = torch.zeros_like(self.open)
        # The last fans, of all curves that were open then; whether they serve for the next look,
        # and those of groups that are settled.
        self.fan = fan
        self.rows = torch.arange(n, device=nodes.device)
        self.kept = torch.full_like(self.open, fan is not None)
        self.old = self.kept.clone()
        self.first = fan is not None
        self.past: list[tuple[Tensor, Fan]] = []
        # Whether this look is one without second derivatives.
        self.rough = False
        self.straight = straight
        self.roots = roots

    def step(self) -> None:
        """One look at the curves of all open groups, and the next step of each."""
        groups, rows = self.groups.part(self.open)
        names = self.open.nonzero().flatten()
        fan = self._look(groups, rows, self.kept[names])
        self.steps[names] += 1
        finite = groups.all(fan.energy.isfinite() & fan.slide.isfinite().all(1))
        regular = groups.all(fan.regular)
        self._end(names[~finite], int(Status.NON_FINITE))
        self._end(names[finite & ~regular], int(Status.SINGULAR))
        good = finite & regular
        if bool(good.any()):
            some, members = groups.part(good)
            self._advance(some, rows[members], names[good], some_of(fan, members))
        tired = self.open & self.kinked & (self.steps >= _KINKED_LOOKS)
        self._stall(names[tired[names]])
        spent = self.open & (self.steps >= self.max_steps)
        self._end(names[spent[names]], int(Status.MAX_STEPS))

    def _look(self, groups: Group, rows: Tensor, kept: Tensor) -> Fan:
        """About the curves of open groups, with second derivatives of earlier looks for some."""
        old = kept[groups.of]
        self.rough = self.straight
        self.straight = False
        parts = []
        if bool(old.any()):
            assert self.fan is not None
            last = some_of(self.fan, torch.searchsorted(self.rows, rows[old]))
            # A finer level's first look has been taken already.
            parts.append(last if self.first else last.again(self.space, self.nodes[rows[old]]))
        if not bool(old.all()):
            parts.append(Fan.of(self.space, self.nodes[rows[~old]], not self.rough))
        fan = parts[0]
        if len(parts) > 1:
            order = torch.cat([old.nonzero().flatten(), (~old).nonzero().flatten()])
            fan = Fan.cat(parts).select(order.argsort())
        self.first = False
        self.fan = fan
        self.rows = rows
        return fan

    def _flat(self, groups: Group, fan: Fan) -> Tensor:  # -> (c,) bool
        """Whether second derivatives vanish on all curves of groups, though these are bent."""
        known = fan.expansion
        if known is None or known.correction is None or not known.separate:
            return torch.zeros(groups.count, dtype=torch.bool, device=fan.energy.device)
        return groups.all((known.correction.diagonal == 0).flatten(1).all(1))

    def _end(self, names: Tensor, status: int) -> None:
        self.open[names] = False
        self.status[names] = status

    def _advance(self, groups: Group, rows: Tensor, names: Tensor, fan: Fan) -> None:
        """Newton steps of groups, as far as they lower their energies."""
        value, first, second = summed(fan.energy, self.roots)
        energy = groups.mean(value)
        grain = groups.mean(first * fan.noise)
        metric = 2 * self.space.metric(self.nodes[rows[groups.first()], 0])
        # A curve that could be shorter in another way tells nothing of its least energy: it goes
        # along with the mean for now.
        sure = fan.definite[:, None]
        slopes = torch.where(sure, fan.gradient, fan.slide)
        bends = torch.where(sure[..., None], fan.hessian, metric[groups.of])
        hessian = groups.mean(chained(first, second, slopes, bends))
        flat = groups.mean(first)[:, None, None] * metric
        pull = groups.mean(first[:, None] * slopes)
        start, drop, index = _descended(pull, hessian, flat, energy)
        if self.fixed:
            start, drop, index = torch.zeros_like(start), torch.zeros_like(drop), 0 * index
        decrement = drop + 2 * groups.mean(first * fan.gain)
        rest = torch.where(energy > 0, decrement / energy, 0.0)
        if self.roots:
            # Where all points lie nearly on a line, a long step gains little.
            squared = torch.einsum("ci,cij,cj->c", start, metric, start)
            spread = groups.mean(fan.energy)
            rest = torch.maximum(rest, torch.where(spread > 0, squared / spread, 0.0))
        kept = self.kept[names]
        size = rest.clamp(min=0).sqrt()
        ratio = size / self.size[names]
        # Nothing is known of the first step with second derivatives of a coarser level.
        ratio = torch.where(self.size[names].isinf(), _CONTRACTION, ratio)
        rest = torch.where(kept, size * ratio, rest)
        self.size[names] = size
        kinked = self._flat(groups, fan)
        # At kinks a step is followed by others of its size.
        rest = torch.where(kinked & ~kept, size, rest)
        sure = groups.all(fan.definite)
        self.sure[names] = sure
        self.old[names] = kept
        self.kinked[names] = kinked
        silent = decrement <= 2 * grain
        # Old second derivatives find neither maxima nor saddles, and come to an end by their steps
        # alone: the energy is less accurate than its gradient.
        measured = kept & sure & (index == 0) & (rest <= _MEASURED * self.tol)
        small = measured | (~kept & (silent | (rest <= self.tol)))
        small |= kinked & sure & (rest <= _KINKED)
        if self.rough:
            small = torch.zeros_like(small)
        blind = silent & kept & ~small
        keeps = (not self.rough) & sure & torch.where(kept, ratio <= _CONTRACTION, size <= _NEAR)
        self.kept[names] = keeps & ~blind
        saddle = small & (index > 0) & self.leave_saddles & ~self.kicked[names]
        start = torch.where(saddle[:, None], self._kick(hessian, energy), start)
        # Points that all but coincide stay together, to the last bit.
        still = energy <= 2 * grain
        start = torch.where(still[:, None], 0.0, start)
        self.kicked[names[saddle]] = True
        settled = small & ~saddle
        self.hessian[names] = hessian
        self.index[names] = index
        self.rest[names] = rest
        # Where the last step leads, by the model itself.
        along = start[groups.of]
        bent = (bends @ along[..., None])[..., 0]
        change = ((slopes + bent / 2) * along).sum(-1)
        nothing = (fan.energy <= 2 * fan.noise) & still[groups.of]
        self.squares[rows] = torch.where(nothing, 0.0, fan.energy - fan.gain + change)
        self.slopes[rows] = slopes + bent
        moves = torch.where(still[groups.of][:, None, None], 0.0, fan.steps(along))
        self._end(names[settled], int(Status.CONVERGED))
        done = settled[groups.of]
        self.nodes[rows[done]] += moves[done]
        followed = blind[groups.of]
        self.nodes[rows[followed]] += moves[followed]
        if bool(done.any()):
            self.past.append((rows[done], some_of(fan, done.nonzero().flatten())))
        searched = ~settled & ~blind
        others, members = groups.part(searched)
        if others.count:
            self._search(
                others,
                rows[members],
                names[searched],
                along[members],
                moves[members],
                fan.energy[members],
            )

    def _search(
        self,
        groups: Group,
        rows: Tensor,
        names: Tensor,
        along: Tensor,
        moves: Tensor,
        energy: Tensor,
    ) -> None:
        """Place the nodes where a share of the steps leads that lowers the energy of each group.

        Every curve chooses on its own how much of its Newton step it takes, beyond going along.
        """
        base = self.nodes[rows]
        n = base.shape[1] - 1
        slide = tapered(n, base)[:, None] * along[:, None]
        slide = torch.nn.functional.pad(slide, (0, 0, 0, 1))
        before = groups.mean(summed(energy, self.roots)[0])
        # Whether the step was made with second derivatives of an earlier look.
        kept = self.old[names]
        share = base.new_ones(groups.count)
        pending = torch.ones_like(share, dtype=torch.bool)
        for tries in range(_HALVINGS):
            if tries == _TRIED:
                # Those look again, with second derivatives.
                self.kept[names[pending & kept]] = False
                pending &= ~kept
                if not bool(pending.any()):
                    return
            some, members = groups.part(pending)
            part = share[pending][some.of][:, None, None]
            nodes, found = self._best(
                base[members], part * slide[members], part * moves[members], energy[members]
            )
            lower = some.mean(summed(found, self.roots)[0]) < before[pending]  # False for NaN
            taken = lower[some.of]
            self.nodes[rows[members[taken]]] = nodes[taken]
            pending = pending.masked_scatter(pending, ~lower)
            if not bool(pending.any()):
                return
            share = torch.where(pending, share / 2, share)
        self._stall(names[pending])

    def _stall(self, names: Tensor) -> None:
        """Groups whose energy no part of the step lowers, as at kinks: as good as their steps."""
        # Half of the relative decrement is the square of the step, relative to the spread.
        left = (self.rest[names] / 2).sqrt()
        near = left <= self.tol / SETTLED
        self.rest[names] = left
        near |= self.kinked[names]
        self._end(names[near], int(Status.CONVERGED))
        self._end(names[~near], int(Status.STALLED))

    def _best(
        self, base: Tensor, slide: Tensor, moves: Tensor, energy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The lowest curves of some that go along, with more or less of their own steps."""
        best = base + moves
        lowest = self._energy(best)
        # Most get lower: only the others are tried again.
        rows = (~(lowest <= _RISE * energy)).nonzero().flatten()
        for part in _PARTS:
            if not len(rows):
                break
            trial = base[rows] + (1 - part) * slide[rows] + part * moves[rows]
            found = self._energy(trial)
            better = ~(lowest[rows] <= found)
            best[rows[better]] = trial[better]
            lowest[rows[better]] = found[better]
        return best, lowest

    def _energy(self, nodes: Tensor) -> Tensor:  # (k, s + 1, m) -> (k,)
        return discrete_energy(self.space.squared_chords(nodes))

    def _kick(self, hessian: Tensor, energy: Tensor) -> Tensor:  # -> (c, m)
        """Off a saddle, along the direction of the most negative curvature."""
        values, vectors = torch.linalg.eigh(hessian)
        size = _KICK * (energy / values.abs().amax(1)).sqrt()
        return size[:, None] * vectors[:, :, 0]

    def minimum(self) -> Minimum:
        """What is known of all groups."""
        return Minimum(
            nodes=self.nodes,
            centers=self.nodes[self.groups.first(), 0],
            squares=self.squares,
            slopes=self.slopes,
            hessian=self.hessian,
            index=self.index,
            rest=self.rest,
            steps=self.steps,
            status=self.status,
            sure=self.sure,
            kinked=self.kinked,
            fan=self._fans(),
        )

    def _fans(self) -> Fan | None:
        """The last ones of all groups."""
        rows = torch.cat([rows for rows, _ in self.past]) if self.past else self.rows[:0]
        if len(rows) < len(self.nodes):
            return None
        if len(self.past) == 1:
            return self.past[0][1]
        return Fan.cat([fan for _, fan in self.past]).select(rows.argsort())


def summed(energy: Tensor, roots: bool) -> tuple[Tensor, Tensor, Tensor]:  # (n,) -> (n,) thrice
    """What is summed up of squared distances, and its first two derivatives; 0 at distance 0."""
    if not roots:
        return energy, torch.ones_like(energy), torch.zeros_like(energy)
    distance = energy.clamp(min=0).sqrt()
    apart = distance > 0
    inverse = torch.where(apart, 1 / torch.where(apart, distance, 1.0), 0.0)
    return distance, inverse / 2, -(inverse**3) / 4


def chained(first: Tensor, second: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """Second derivatives ``(n, m, m)`` of a function of what has this slope and this Hessian."""
    outer = slope[:, :, None] * slope[:, None, :]
    return first[:, None, None] * bend + second[:, None, None] * outer


def some_of(fan: Fan, rows: Tensor) -> Fan:
    """Some of the curves, in order, or all of them as they are."""
    return fan if len(rows) == len(fan.energy) else fan.select(rows)


def _descended(
    slope: Tensor, hessian: Tensor, metric: Tensor, energy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton steps ``(c, m)`` that descend, their decrements, and negative eigenvalues ``(c,)``.

    In flat space the Hessian is ``metric``, twice the metric tensor. Far from the minimum less
    curvature than that is not believed: the step is then the mean of the logarithms.
    """
    eye = torch.eye(hessian.shape[-1]).to(hessian)
    factor, info = torch.linalg.cholesky_ex(metric)
    known = (info == 0) & hessian.isfinite().all(-1).all(-1) & slope.isfinite().all(-1)
    factor = torch.where(known[:, None, None], factor, eye)
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    relative = torch.where(known[:, None, None], inverse @ hessian @ inverse.mT, eye)
    values, vectors = torch.linalg.eigh(relative)
    index = (values < -_NEGATIVE).sum(1)
    along = (vectors.mT @ (inverse @ slope[..., None]))[..., 0]
    sizes = values.abs().clamp(min=_LEAST)
    # The decrement by the flat Hessian: twice the squared length of the mean logarithm.
    far = (along.square().sum(1) > _FAR * energy) | (index > 0)
    sizes = torch.where(far[:, None], sizes.clamp(min=1.0), sizes)
    step = -(inverse.mT @ (vectors @ (along / sizes)[..., None]))[..., 0]
    return step, (along.square() / sizes).sum(1), index
