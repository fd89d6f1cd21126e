"""Discrete curves that share their start: the energy as a function of the start alone.

A fan is a bundle of curves from one point to many. Of each curve only its start matters to the
others, so the interior nodes are eliminated, from the far end inwards. What is left are gradient
and Hessian of the least energy in the start: of ``d²`` but for the discretisation. A step of the
start then tells how the interior nodes follow.

Solvers keep both ends of a curve fixed. Here the start is made an interior node, by one more
segment of no length before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riemae.solvers.energy import Expansion
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

    @classmethod
    def of(cls, space: Space, nodes: Tensor) -> Fan:  # (p, n + 1, m)
        """About curves whose energy is to be least."""
        p, count, m = nodes.shape
        each = _BLOCKS * count * m**2 * nodes.element_size()
        most = max(1, _BYTES // each)
        if p <= most:
            return cls._about(space, nodes)
        return cls.cat([cls._about(space, part) for part in nodes.split(most)])

    @classmethod
    def cat(cls, parts: list[Fan]) -> Fan:
        """One batch from several at the same resolution."""
        names = cls.__dataclass_fields__
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    @classmethod
    def _about(cls, space: Space, nodes: Tensor) -> Fan:
        expansion = _with_start(space, nodes)
        full = expansion.hessian
        assert full is not None
        fan = cls._eliminated(expansion, full)
        rows = (~fan.definite).nonzero().flatten()
        if not len(rows):
            return fan
        some = expansion.select(rows)
        rough = cls._eliminated(some, some.gauss_newton)
        # A start may be a saddle of one curve; the sum over all is looked at as a whole.
        rough = replace(rough, regular=rough.definite, definite=torch.zeros_like(rough.definite))
        every = {}
        for name in cls.__dataclass_fields__:
            column = getattr(fan, name).clone()
            column[rows] = getattr(rough, name)
            every[name] = column
        return cls(**every)

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
            slide=torch.einsum(
                "k,pkm->pm", tapered(len(g), expansion.gradient), expansion.gradient
            ),
            gain=gain,
            gradient=rest[..., 0],
            hessian=(pivot + pivot.mT) / 2,
            noise=expansion.noise,
            definite=definite,
            regular=definite,
            factors=torch.stack(factors[::-1], 1),
            links=torch.stack(links[::-1], 1),
            rests=torch.stack(rests[::-1], 1),
        )

    def select(self, rows: Tensor) -> Fan:
        """Some of the curves."""
        return Fan(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

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


def _with_start(space: Space, nodes: Tensor) -> Expansion:
    """Derivatives of the discrete energy in all nodes but the last."""
    n = nodes.shape[1] - 1
    start = nodes[:, :1]
    expansion = space.expand(torch.cat([start, nodes], 1), True)
    # One segment more stands before all sums, and its own part has to go: chords between the start
    # and a fixed point.
    share = n / (n + 1)
    extra = 2 * (n + 1) * space.metric(nodes[:, 0])
    flat = expansion.gauss_newton
    diagonal = flat.diagonal.clone()
    diagonal[:, 0] -= extra
    assert expansion.correction is not None
    return Expansion(
        energy=share * expansion.energy,
        gradient=share * expansion.gradient,
        gauss_newton=BlockTridiagonal(diagonal, flat.upper).scaled(share),
        correction=expansion.correction.scaled(share),
        noise=expansion.noise,
    )
