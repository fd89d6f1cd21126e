"""Discrete curves that share their start: the energy as a function of the start alone.

A fan is a bundle of curves from one point to many. Of each curve only its start matters to the
others, so the interior nodes are eliminated, from the far end inwards. What is left are gradient
and Hessian of the least energy in the start: of ``d²`` but for the discretisation. A step of the
start then tells how the interior nodes follow.

Solvers keep both ends of a curve fixed. Here the start is made an interior node, by one more
segment of no length before it.

Second derivatives cost as much as ten gradients, and change little near the minimum: a fan can be
asked again about curves that have moved, by a gradient alone, and handed on to a finer level.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riemae.solvers.energy import Expansion
from riemae.solvers.hooks import energy_and_gradient
from riemae.solvers.linear import BlockTridiagonal
from riemae.solvers.space import Space

# Bytes that the matrices of curves handled at once may take.
_BYTES = 2**28
# Blocks per node that are held at once.
_BLOCKS = 8


@dataclass(frozen=True)
class Fan:
    """The least energies of ``p`` curves, to second order in their starts.

    Attributes:
        energy: ``(p,)``, of the curves as they are.
        slide: ``(p, m)``, the derivative of ``energy`` when all nodes go along with the start, less
            and less towards the far end.
        gain: ``(p,)``, how much lower it would come by a Newton step of the interior nodes alone.
        gradient: ``(p, m)``, of the least energy in the start.
        hessian: ``(p, m, m)``.
        noise: ``(p,)``, rounding of the energy.
        definite: ``(p,)`` bool: the Hessian in the interior nodes is positive definite. Elsewhere
            Gauss-Newton's has taken its place.
        regular: ``(p,)`` bool: one of both is.
        factors: ``(p, n − 1, m, m)``, of the pivots; of the first interior node first.
        links: ``(p, n − 1, m, m)``, what couples each to the node before.
        rests: ``(p, n − 1, m)``, reduced gradients in the coordinates of the factors.
        expansion: What all of it was made of; None for batches that take much memory.
    """

    energy: Tensor
    slide: Tensor
    gain: Tensor
    gradient: Tensor
    hessian: Tensor
    noise: Tensor
    definite: Tensor
    regular: Tensor
    factors: Tensor
    links: Tensor
    rests: Tensor
    expansion: Expansion | None = None

    @classmethod
    def of(cls, space: Space, nodes: Tensor, second_order: bool = True) -> Fan:  # (p, n + 1, m)
        """About curves whose energy is to be least; by Gauss and Newton without second order."""
        p, count, m = nodes.shape
        each = _BLOCKS * count * m**2 * nodes.element_size()
        most = max(1, _BYTES // each)
        if p <= most:
            return cls._about(_with_start(space, nodes, second_order))
        parts = [cls._about(_with_start(space, part, second_order)) for part in nodes.split(most)]
        return cls.cat([replace(part, expansion=None) for part in parts])

    @classmethod
    def cat(cls, parts: list[Fan]) -> Fan:
        """One batch from several at the same resolution."""
        known = [part.expansion for part in parts if part.expansion is not None]
        expansion = Expansion.cat(known) if len(known) == len(parts) else None
        columns = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in cls._columns()
        }
        return cls(**columns, expansion=expansion)

    @classmethod
    def _columns(cls) -> list[str]:
        """What has a row per curve."""
        return [name for name in cls.__dataclass_fields__ if name != "expansion"]

    @classmethod
    def _about(cls, expansion: Expansion) -> Fan:
        full = expansion.hessian
        if full is None:
            return cls._eliminated(expansion, expansion.gauss_newton)
        fan = cls._eliminated(expansion, full)
        rows = (~fan.definite).nonzero().flatten()
        if not len(rows):
            return fan
        some = expansion.select(rows)
        rough = cls._eliminated(some, some.gauss_newton)
        # A start may be a saddle of one curve; the sum over all is looked at as a whole.
        rough = replace(rough, regular=rough.definite, definite=torch.zeros_like(rough.definite))
        every = {}
        for name in cls._columns():
            column = getattr(fan, name).clone()
            column[rows] = getattr(rough, name)
            every[name] = column
        return cls(**every, expansion=expansion)

    @classmethod
    def _eliminated(cls, expansion: Expansion, matrix: BlockTridiagonal) -> Fan:
        """Block Cholesky from the last interior node to the start."""
        g = expansion.gradient[..., None].unbind(1)
        diagonal = matrix.diagonal.unbind(1)
        upper = matrix.upper.unbind(1)
        pivot = diagonal[-1]
        rest = g[-1]
        factors, links, rests = [], [], []
        failures = torch.zeros(len(pivot), dtype=torch.int32, device=pivot.device)
        gain = torch.zeros_like(expansion.energy)
        for k in reversed(range(len(upper))):
            factor, info = torch.linalg.cholesky_ex(pivot)
            both = torch.linalg.solve_triangular(
                factor, torch.cat([upper[k].mT, rest], -1), upper=False
            )
            link, own = both[..., :-1], both[..., -1:]
            failures = failures + info.abs()
            gain = gain + own.square().sum((1, 2)) / 2
            pivot = diagonal[k] - link.mT @ link
            rest = g[k] - link.mT @ own
            factors.append(factor)
            links.append(link)
            rests.append(own[..., 0])
        definite = (failures == 0) & gain.isfinite()
        return cls(
            energy=expansion.energy,
            slide=_slid(expansion.gradient),
            gain=gain,
            gradient=rest[..., 0],
            hessian=(pivot + pivot.mT) / 2,
            noise=expansion.noise,
            definite=definite,
            regular=definite,
            factors=torch.stack(factors[::-1], 1),
            links=torch.stack(links[::-1], 1),
            rests=torch.stack(rests[::-1], 1),
            expansion=expansion,
        )

    def select(self, rows: Tensor) -> Fan:
        """Some of the curves."""
        expansion = None if self.expansion is None else self.expansion.select(rows)
        columns = {name: getattr(self, name)[rows] for name in self._columns()}
        return Fan(**columns, expansion=expansion)

    def again(self, space: Space, nodes: Tensor) -> Fan:  # (p, n + 1, m)
        """About the curves where they are now, with second derivatives from where they were."""
        energy, gradient = _gradient(space, nodes)
        rest = gradient[:, -1, :, None]
        rests = []
        for k in reversed(range(self.rests.shape[1])):
            own = torch.linalg.solve_triangular(self.factors[:, k], rest, upper=False)
            rest = gradient[:, k, :, None] - self.links[:, k].mT @ own
            rests.append(own[..., 0])
        reduced = torch.stack(rests[::-1], 1)
        return replace(
            self,
            energy=energy,
            slide=_slid(gradient),
            gain=reduced.square().sum((1, 2)) / 2,
            gradient=rest[..., 0],
            rests=reduced,
        )

    def finer(self, space: Space, nodes: Tensor) -> Fan | None:  # (p, 2 n + 1, m)
        """About curves on twice as many segments, with second derivatives from these.

        None where they do not tell those.
        """
        known = self.expansion
        if known is None or known.correction is None or not known.separate:
            return None
        energy, gradient = _gradient(space, nodes)
        return self._about(_interpolated(known, energy, gradient))

    def steps(self, start: Tensor) -> Tensor:  # (p, m) -> (p, n + 1, m)
        """Newton steps of all nodes for these steps of the starts; the far ends stand still."""
        return self._followed(start[..., None], self.rests[..., None])[..., 0]

    def responses(self) -> Tensor:  # -> (p, n + 1, m, m)
        """How all nodes of curves of least energy move with the start: identities there."""
        p, _, m = self.rests.shape
        eye = torch.eye(m).to(self.rests).expand(p, m, m)
        return self._followed(eye, torch.zeros_like(self.links))

    def _followed(self, start: Tensor, rests: Tensor) -> Tensor:  # (p, m, r), (p, n - 1, m, r)
        found = [start]
        for k in range(self.rests.shape[1]):
            right = rests[:, k] + self.links[:, k] @ found[-1]
            step = torch.linalg.solve_triangular(self.factors[:, k].mT, right, upper=True)
            found.append(-step)
        found.append(torch.zeros_like(start))
        return torch.stack(found, 1)


def tapered(count: int, like: Tensor) -> Tensor:  # -> (count,)
    """How far nodes 0, 1, … of a curve of ``count`` segments go along with its start."""
    return 1 - torch.arange(count).to(like) / count


def _slid(gradient: Tensor) -> Tensor:  # (p, n, m) -> (p, m)
    """The derivative where all nodes go along with the start."""
    return torch.einsum("k,pkm->pm", tapered(gradient.shape[1], gradient), gradient)


def _gradient(space: Space, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The discrete energy, and its derivative in all nodes but the last."""
    n = nodes.shape[1] - 1
    energy, gradient = energy_and_gradient(space, torch.cat([nodes[:, :1], nodes], 1))
    share = n / (n + 1)
    return share * energy, share * gradient


def _interpolated(coarse: Expansion, energy: Tensor, gradient: Tensor) -> Expansion:
    """Second derivatives on twice as many segments, where Jacobians are linear in between.

    Nodes 0, 1, …, n − 1 have the blocks ``D_i = J_iᵀJ_i`` and ``U_i = J_iᵀJ_{i+1}`` (times 4n, at
    the start 2n, and −2n). Then ``J = (J_i + J_{i+1}) / 2`` in the middle, and the last middle is
    extrapolated: ``J = (3 J_{n−1} − J_{n−2}) / 2``. The force on a node, and with it what curvature
    adds, falls like 1/n, but for the start's, which does not change.
    """
    flat = coarse.gauss_newton
    assert coarse.correction is not None
    n = flat.diagonal.shape[1]
    squares = flat.diagonal / (4 * n)
    squares[:, 0] *= 2
    beside = flat.upper / (-2 * n)
    both = beside + beside.mT
    inner = (squares[:, :-1] + squares[:, 1:] + both) / 4
    last = (9 * squares[:, -1:] + squares[:, -2:-1] - 3 * both[:, -1:]) / 4
    middles = torch.cat([inner, last], 1)
    ahead = torch.cat([squares[:, :-1] + beside, 3 * squares[:, -1:] - beside[:, -1:].mT], 1) / 2
    after = (beside + squares[:, 1:]) / 2
    diagonal = 8 * n * torch.stack([squares, middles], 2).flatten(1, 2)
    diagonal[:, 0] /= 2
    # Every second link ends at a node of the coarse level; the very last one at the fixed end.
    upper = -4 * n * torch.cat([_alternating(ahead[:, :-1], after), ahead[:, -1:]], 1)
    bends = coarse.correction.diagonal / 2
    between = (bends[:, :-1] + bends[:, 1:]) / 2
    between[:, 0] = bends[:, 1]
    between = torch.cat([between, bends[:, -1:]], 1)
    bends = torch.stack([bends, between], 2).flatten(1, 2)
    bends[:, 0] *= 2
    return Expansion(
        energy=energy,
        gradient=gradient,
        gauss_newton=BlockTridiagonal(diagonal, upper),
        correction=BlockTridiagonal(bends, torch.zeros_like(upper)),
        noise=2 * coarse.noise,
        scalable=True,
        separate=True,
    )


def _alternating(first: Tensor, second: Tensor) -> Tensor:  # (p, k, m, m) twice -> (p, 2 k, m, m)
    return torch.stack([first, second], 2).flatten(1, 2)


def _with_start(space: Space, nodes: Tensor, second_order: bool) -> Expansion:
    """Derivatives of the discrete energy in all nodes but the last."""
    n = nodes.shape[1] - 1
    start = nodes[:, :1]
    expansion = space.expand(torch.cat([start, nodes], 1), second_order)
    # One segment more stands before all sums, and its own part has to go: chords between the start
    # and a fixed point.
    share = n / (n + 1)
    flat = expansion.gauss_newton
    diagonal = flat.diagonal.clone()
    if expansion.separate:
        diagonal[:, 0] /= 2  # both parts are equal
    else:
        diagonal[:, 0] -= 2 * (n + 1) * space.metric(nodes[:, 0])
    correction = expansion.correction
    return Expansion(
        energy=share * expansion.energy,
        gradient=share * expansion.gradient,
        gauss_newton=BlockTridiagonal(diagonal, flat.upper).scaled(share),
        correction=None if correction is None else correction.scaled(share),
        noise=expansion.noise,
        scalable=expansion.scalable,
        separate=expansion.separate,
    )
