"""What the Newton solver knows of its curves, and how that is taken to a finer level."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

RUNNING = -1  # beside the codes of Status


@dataclass
class PathState:
    """Progress on ``p`` curves; every field has one entry a curve.

    Attributes:
        nodes: ``(p, n + 1, m)``.
        status: ``(p,)``; RUNNING, CONVERGED for this resolution, or a failure.
        decrement: ``(p,)``, the relative reduction of the length that the local model still promises.
        index: ``(p,)``, Morse index of the last Hessian; −1 before it is known.
        steps: ``(p,)``, steps taken at this resolution and at coarser ones.
        damping: ``(p,)``, in units of the Gauss-Newton block diagonal.
        kept: ``(p,)`` bool: converging to a saddle on purpose.
        tangents: ``(p, n − 1, m, m)``, diagonal blocks of the Gauss-Newton matrix as last computed.
        crossings: ``(p, n − 2, m, m)``, its blocks beside the diagonal.
        diagonal: ``(p, n − 1, m, m)``, second-derivative part of the Hessian as last computed.
        upper: ``(p, n − 2, m, m)``, the same beside the diagonal.
        noise: ``(p,)``, rounding error of the energy.
        known: ``(p,)`` bool: whether all of these exist.
        stale: ``(p,)`` bool: whether they must be computed anew.
        scalable: ``(p,)`` bool: whether they serve a finer level.
        first: ``(p,)`` bool: whether this is the curve's first level, which a second always follows.
    """

    nodes: Tensor
    status: Tensor
    decrement: Tensor
    index: Tensor
    steps: Tensor
    damping: Tensor
    kept: Tensor
    tangents: Tensor
    crossings: Tensor
    diagonal: Tensor
    upper: Tensor
    noise: Tensor
    known: Tensor
    stale: Tensor
    scalable: Tensor
    first: Tensor

    @classmethod
    def start(cls, nodes: Tensor) -> PathState:
        """A state about discrete curves ``(p, n + 1, m)`` of which nothing is known."""
        p, count, m = nodes.shape
        zero = torch.zeros(p, dtype=torch.int64, device=nodes.device)
        no = [torch.zeros_like(zero, dtype=torch.bool) for _ in range(4)]
        blocks = [nodes.new_zeros(p, rows, m, m) for rows in (count - 2, count - 3, count - 2, count - 3)]
        return cls(
            nodes=nodes.clone(),
            status=zero + RUNNING,
            decrement=nodes.new_full((p,), torch.inf),
            index=zero - 1,
            steps=zero,
            damping=nodes.new_zeros(p),
            kept=no[0],
            tangents=blocks[0],
            crossings=blocks[1],
            diagonal=blocks[2],
            upper=blocks[3],
            noise=nodes.new_zeros(p),
            known=no[1],
            stale=no[2],
            scalable=no[3],
            first=~no[3],
        )

    def refined(self, nodes: Tensor, moved: Tensor) -> PathState:
        """A state about the same curves on twice as many segments.

        Args:
            nodes: ``(p, 2 n + 1, m)``.
            moved: ``(p,)`` bool: curves whose nodes were placed anew.
        """
        fine = PathState.start(nodes)
        if bool(self.known.any()):
            fine.tangents, fine.crossings = _halved(self.tangents, self.crossings)
            fine.diagonal = _interpolated(self.diagonal)
            fine.noise = 2 * self.noise
        fine.kept = self.kept.clone()
        fine.known = self.known & self.scalable & ~self.stale & ~moved & ~self.kept
        fine.scalable = self.scalable.clone()
        fine.first = torch.zeros_like(self.first)
        return fine

    @classmethod
    def cat(cls, parts: list[PathState]) -> PathState:
        """One batch from several at the same resolution."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def select(self, index: Tensor) -> PathState:
        """The curves at ``index``."""
        return PathState(*(getattr(self, f.name)[index] for f in fields(self)))

    def update(self, index: Tensor, other: PathState) -> None:
        """Write ``other`` back to the curves at ``index``."""
        for f in fields(self):
            getattr(self, f.name)[index] = getattr(other, f.name)


def _halved(tangents: Tensor, crossings: Tensor) -> tuple[Tensor, Tensor]:
    """The Gauss-Newton blocks ``4n J_iᵀJ_i`` and ``−2n J_iᵀJ_{i+1}`` on twice as many segments.

    From the blocks alone, as if ``J`` were linear between the nodes (and, before the first and behind the last of
    them, as between the two next): positive semi-definite again, and close enough for a matrix that only decides how
    fast a curve converges.
    """
    g, k = tangents / 2, -crossings  # both in units of 2n
    p, count, m, _ = g.shape
    fine, upper = g.new_empty(p, 2 * count + 1, m, m), g.new_empty(p, 2 * count, m, m)
    fine[:, 1::2] = g
    if count == 1:
        fine[:, 0::2] = upper[:, :] = g
    else:
        fine[:, 2:-1:2] = (g[:, :-1] + g[:, 1:] + k + k.mT) / 4
        for end, this, link, next_ in ((0, g[:, 0], k[:, 0], g[:, 1]), (-1, g[:, -1], k[:, -1], g[:, -2])):
            fine[:, end] = (9 * this - 3 * (link + link.mT) + next_) / 4
        upper[:, 2::2], upper[:, 1:-1:2] = (k + g[:, 1:]) / 2, (g[:, :-1] + k) / 2
        upper[:, 0], upper[:, -1] = (3 * g[:, 0] - k[:, 0].mT) / 2, (3 * g[:, -1] - k[:, -1].mT) / 2
    return 4 * fine, -2 * upper


def _interpolated(correction: Tensor) -> Tensor:
    """The diagonal blocks ``2n a·∂²f`` on twice as many segments.

    They are 1/n times a function that is smooth along the curve: interpolated, with its ends extrapolated.
    """
    coarse = correction / 2
    ends = [2 * coarse[:, :1] - coarse[:, 1:2], coarse, 2 * coarse[:, -1:] - coarse[:, -2:-1]]
    padded = torch.cat(ends, 1) if coarse.shape[1] > 1 else coarse.repeat(1, 3, 1, 1)
    p, count, m, _ = coarse.shape
    fine = coarse.new_empty(p, 2 * count + 1, m, m)
    fine[:, 0::2] = (padded[:, :-1] + padded[:, 1:]) / 2
    fine[:, 1::2] = coarse
    return fine
