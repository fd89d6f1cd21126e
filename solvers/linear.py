"""Symmetric block-tridiagonal systems, one per curve: the Hessians of discrete curve energies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# One dense batched Cholesky beats a loop over n blocks of m as long as its work, (n m)³, is at most
# so many times n. Measured on two cores, 15 blocks of 8: for 1,000 curves 119 ms by the dense way
# and 15 ms by blocks, for one curve 0.1 and 0.2 ms; a solve with the factor takes 37 and 1.7 ms,
# 0.02 and 0.1 ms. With 7 blocks both take 0.3 ms for 32.
_DENSE_WORK = 30_000
_ALIGNED = 8


@dataclass(frozen=True)
class Factorization:
    """A factorised batch of systems.

    Attributes:
        solve: Maps right-hand sides ``(p, n, m)`` to solutions ``(p, n, m)``.
        ok: ``(p,)`` bool; False where the matrix is not positive definite, and the solution means
            nothing.
    """

    solve: Callable[[Tensor], Tensor]
    ok: Tensor


@dataclass(frozen=True)
class BlockTridiagonal:
    """A batch of symmetric block-tridiagonal matrices with ``n`` by ``n`` blocks of size ``m``.

    Attributes:
        diagonal: ``(p, n, m, m)`` symmetric blocks.
        upper: ``(p, n - 1, m, m)``; block ``i`` stands in row ``i``, column ``i + 1``.
    """

    diagonal: Tensor
    upper: Tensor

    @classmethod
    def cat(cls, parts: list[BlockTridiagonal]) -> BlockTridiagonal:
        """One batch from several."""
        return cls(
            torch.cat([part.diagonal for part in parts]), torch.cat([part.upper for part in parts])
        )

    def select(self, index: Tensor) -> BlockTridiagonal:
        """The matrices of the batch at ``index``."""
        return BlockTridiagonal(self.diagonal[index], self.upper[index])

    def __add__(self, other: BlockTridiagonal) -> BlockTridiagonal:
        """The sum of two matrices, pair by pair."""
        return BlockTridiagonal(self.diagonal + other.diagonal, self.upper + other.upper)

    def scaled(self, factor: float) -> BlockTridiagonal:
        """A multiple of every matrix."""
        return BlockTridiagonal(factor * self.diagonal, factor * self.upper)

    def add_block_diagonal(self, blocks: Tensor) -> BlockTridiagonal:
        """The sum with a block-diagonal matrix ``(p, n, m, m)``."""
        return BlockTridiagonal(self.diagonal + blocks, self.upper)

    def where(self, condition: Tensor, other: BlockTridiagonal) -> BlockTridiagonal:
        """This matrix where ``condition`` ``(p,)`` holds, ``other`` elsewhere."""
        c = condition[:, None, None, None]
        return BlockTridiagonal(
            torch.where(c, self.diagonal, other.diagonal), torch.where(c, self.upper, other.upper)
        )

    def product(self, x: Tensor) -> Tensor:
        """Matrix times vectors ``(p, n, m) -> (p, n, m)``."""
        y = _times(self.diagonal, x)
        y[:, :-1] += _times(self.upper, x[:, 1:])
        y[:, 1:] += _times(self.upper.mT, x[:, :-1])
        return y

    def dense(self) -> Tensor:
        """The full matrices, ``(p, n m, n m)``."""
        p, n, m, _ = self.diagonal.shape
        full = self.diagonal.new_zeros(p, n, m, n, m)
        for offset, blocks in ((0, self.diagonal), (1, self.upper), (-1, self.upper.mT)):
            full.diagonal(offset, 1, 3).copy_(blocks.permute(0, 2, 3, 1))
        return full.view(p, n * m, n * m)

    def cholesky(self) -> Factorization:
        """Factorise for solving.

        Matrices that are not positive definite are marked, never rescued.
        """
        p, n, m, _ = self.diagonal.shape
        return self._dense_cholesky() if n**2 * m**3 <= _DENSE_WORK else self._block_cholesky()

    def _dense_cholesky(self) -> Factorization:
        full = self.dense()
        size = full.shape[-1]
        # Kernels look at where a matrix starts in memory: give all of them the same alignment, with
        # 1 on the diagonal.
        spare = -size % _ALIGNED
        if spare:
            full = torch.nn.functional.pad(full, (0, spare, 0, spare))
            full.diagonal(dim1=1, dim2=2)[:, size:] = 1.0
        factor, info = torch.linalg.cholesky_ex(full)

        def solve(b: Tensor) -> Tensor:
            rhs = b.flatten(1)[..., None]
            if not spare:
                return torch.cholesky_solve(rhs, factor).view(b.shape)
            rhs = torch.nn.functional.pad(rhs, (0, 0, 0, spare))
            return torch.cholesky_solve(rhs, factor)[:, :size, 0].reshape(b.shape).contiguous()

        return Factorization(solve, info == 0)

    def _block_cholesky(self) -> Factorization:
        """Eliminates from both ends at once, as one batch, towards the block in the middle.

        That takes half as many steps. The middle is solved twice, once for either end: batches of
        one system alone would go to other kernels, with other last bits, than several.
        """
        p, count, m, _ = self.diagonal.shape
        half = count // 2
        if not half:
            return self._dense_cholesky()
        identity = torch.eye(m, dtype=self.diagonal.dtype, device=self.diagonal.device)
        diagonal, upper = self.diagonal, self.upper
        if count % 2 == 0:
            # As many blocks on either side: the identity, coupled to nothing, comes last.
            last = identity.expand(p, 1, m, m)
            diagonal = torch.cat([diagonal, last], 1)
            upper = torch.cat([upper, 0 * last], 1)
        # Both ends, each read inwards.
        middle = diagonal[:, half]
        diagonal = torch.cat([diagonal[:, :half], diagonal[:, half + 1 :].flip(1)])
        upper = torch.cat([upper[:, :half], upper[:, half:].flip(1).mT])
        factors: list[Tensor] = []
        links: list[Tensor] = []
        failures: list[Tensor] = []
        for pivot, beside in zip(diagonal.unbind(1), upper.unbind(1), strict=True):
            rest = torch.baddbmm(pivot, links[-1].mT, links[-1], alpha=-1) if links else pivot
            factor, info = torch.linalg.cholesky_ex(rest)
            factors.append(factor)
            links.append(torch.linalg.solve_triangular(factor, beside, upper=False))
            failures.append(info)
        met = links[-1].mT @ links[-1]
        root, failure = torch.linalg.cholesky_ex((middle - met[:p] - met[p:]).repeat(2, 1, 1))
        failed = torch.stack([*failures, failure]).sum(0)
        solve = _TwoEnded.of([*factors, root], torch.stack(links), identity, count)
        return Factorization(solve, failed[:p] + failed[p:] == 0)

    def negative_eigenvalues(self) -> Tensor:
        """How many eigenvalues are negative, ``(p,)`` int64.

        For the Hessian of an energy that is the Morse index. By Sylvester's law of inertia it is
        the number of negative pivots of the block LDL^T factorisation, counted block by block;
        eigenvalues within rounding of zero do not count.
        """
        n = self.diagonal.shape[1]
        count = torch.zeros(len(self.diagonal), dtype=torch.int64, device=self.diagonal.device)
        pivot = self.diagonal[:, 0]
        eps = torch.finfo(pivot.dtype).eps
        scale = self.diagonal.abs().amax((1, 2, 3))
        if n > 1:
            scale = torch.maximum(scale, self.upper.abs().amax((1, 2, 3)))
        floor = (8 * n * eps * scale).clamp(min=torch.finfo(pivot.dtype).tiny)
        doubtful = torch.zeros_like(count, dtype=torch.bool)
        for i in range(n):
            values, vectors = torch.linalg.eigh(pivot)
            count += (values < -floor[:, None]).sum(-1)
            if i + 1 < n:
                doubtful |= (values.abs() < eps**0.5 * scale[:, None]).any(-1)
                # A pivot within rounding of zero would divide by nothing; give it the rounding's
                # own size.
                safe = torch.where(values.abs() < floor[:, None], floor[:, None], values)
                half = vectors.mT @ self.upper[:, i]
                pivot = self.diagonal[:, i + 1] - half.mT @ (half / safe[..., None])
        if bool(doubtful.any()):
            # Dividing by a nearly singular pivot drowns the rest in rounding: count these densely.
            values = torch.linalg.eigvalsh(self.select(doubtful).dense())
            count[doubtful] = (values < -floor[doubtful, None]).sum(-1)
        return count


@dataclass(frozen=True)
class _TwoEnded:
    """Solves a block-tridiagonal system that has been eliminated from both ends.

    Blocks of both ends stand in one batch ``(2 p, m, m)``, read inwards. All that does not wait for
    the block before it has been computed for all blocks at once: what remains in the loops is one
    product per block.

    Attributes:
        count: Blocks of the system.
        inverse: Inverse factors of the outer blocks.
        centre: Inverse factor of the middle block.
        down: From each outer block to the next, on the way inwards.
        up: From each outer block to the one before, on the way back.
        inwards: From the last outer block to the middle.
    """

    count: int
    inverse: Tensor
    centre: Tensor
    down: tuple[Tensor, ...]
    up: tuple[Tensor, ...]
    inwards: Tensor

    @classmethod
    def of(cls, factors: list[Tensor], link: Tensor, identity: Tensor, count: int) -> _TwoEnded:
        """From the factors of the outer blocks and of the middle, and the blocks that link them."""
        half = len(factors) - 1
        inverses = torch.linalg.solve_triangular(torch.stack(factors), identity, upper=False)
        inverse, centre = inverses.split([half, 1])
        return cls(
            count=count,
            inverse=inverse,
            centre=centre[0],
            down=(inverse[1:] @ link[:-1].mT).unbind(),
            up=(inverse.mT @ link).unbind(),
            inwards=centre[0] @ link[-1].mT,
        )

    def __call__(self, b: Tensor) -> Tensor:  # (p, count, m)
        """Solutions for right-hand sides."""
        p, half = len(b), len(self.up)
        if self.count % 2 == 0:
            b = torch.nn.functional.pad(b, (0, 0, 0, 1))
        ends = torch.cat([b[:, :half], b[:, half + 1 :].flip(1)])
        x = list((self.inverse @ ends.transpose(0, 1)[..., None]).unbind())
        for i in range(1, half):
            x[i] = torch.baddbmm(x[i], self.down[i - 1], x[i - 1], alpha=-1)
        met = self.inwards @ x[-1]
        share = self.centre @ b[:, half, :, None].repeat(2, 1, 1)
        middle = self.centre.mT @ (share - met - torch.cat([met[p:], met[:p]]))
        x = list((self.inverse.mT @ torch.stack(x)).unbind())
        after = middle
        for i in reversed(range(half)):
            x[i] = torch.baddbmm(x[i], self.up[i], after, alpha=-1)
            after = x[i]
        outer = torch.stack(x, 1)[..., 0]
        whole = torch.cat([outer[:p], middle[:p].mT, outer[p:].flip(1)], 1)
        return whole[:, : self.count]


def _times(a: Tensor, x: Tensor) -> Tensor:
    return (a @ x[..., None])[..., 0]
