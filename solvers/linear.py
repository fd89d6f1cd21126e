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
        diagonal = torch.cat([part.diagonal for part in parts])
        upper = torch.cat([part.upper for part in parts])
        return cls(diagonal, upper)

    def select(self, index: Tensor) -> BlockTridiagonal:
        """The matrices of the batch at ``index``."""
        diagonal = self.diagonal[index]
        upper = self.upper[index]
        return BlockTridiagonal(diagonal, upper)

    def __add__(self, other: BlockTridiagonal) -> BlockTridiagonal:
        """The sum of two matrices, pair by pair."""
        diagonal = self.diagonal + other.diagonal
        upper = self.upper + other.upper
        return BlockTridiagonal(diagonal, upper)

    def scaled(self, factor: float) -> BlockTridiagonal:
        """A multiple of every matrix."""
        diagonal = factor * self.diagonal
        upper = factor * self.upper
        return BlockTridiagonal(diagonal, upper)

    def add_block_diagonal(self, blocks: Tensor) -> BlockTridiagonal:
        """The sum with a block-diagonal matrix ``(p, n, m, m)``."""
        return BlockTridiagonal(self.diagonal + blocks, self.upper)

    def where(self, condition: Tensor, other: BlockTridiagonal) -> BlockTridiagonal:
        """This matrix where ``condition`` ``(p,)`` holds, ``other`` elsewhere."""
        c = condition[:, None, None, None]
        diagonal = torch.where(c, self.diagonal, other.diagonal)
        upper = torch.where(c, self.upper, other.upper)
        return BlockTridiagonal(diagonal, upper)

    def product(self, x: Tensor) -> Tensor:
        """Matrix times vectors ``(p, n, m) -> (p, n, m)``."""
        before = x[:, :-1]
        after = x[:, 1:]
        y = _times(self.diagonal, x)
        y[:, :-1].add_(_times(self.upper, after))
        y[:, 1:].add_(_times(self.upper.mT, before))
        return y

    def dense(self) -> Tensor:
        """The full matrices, ``(p, n m, n m)``."""
        p, n, m, _ = self.diagonal.shape
        full = self.diagonal.new_zeros(p, n, m, n, m)
        bands = ((0, self.diagonal), (1, self.upper), (-1, self.upper.mT))
        for offset, blocks in bands:
            band = full.diagonal(offset, 1, 3)
            band.copy_(blocks.permute(0, 2, 3, 1))
        size = n * m
        return full.view(p, size, size)

    def cholesky(self) -> Factorization:
        """Factorise for solving.

        Matrices that are not positive definite are marked, never rescued.
        """
        p, n, m, _ = self.diagonal.shape
        if n**2 * m**3 <= _DENSE_WORK:
            return self._dense_cholesky()
        return self._block_cholesky()

    def _dense_cholesky(self) -> Factorization:
        full = self.dense()
        size = full.shape[-1]
        # Kernels look at where a matrix starts in memory: give all of them the same alignment, with
        # 1 on the diagonal.
        spare = -size % _ALIGNED
        if spare:
            full = torch.nn.functional.pad(full, (0, spare, 0, spare))
            pivots = full.diagonal(dim1=1, dim2=2)
            pivots[:, size:] = 1.0
        factor, info = torch.linalg.cholesky_ex(full)

        def solve(b: Tensor) -> Tensor:
            rhs = b.flatten(1)[..., None]
            if not spare:
                return torch.cholesky_solve(rhs, factor).view(b.shape)
            rhs = torch.nn.functional.pad(rhs, (0, 0, 0, spare))
            x = torch.cholesky_solve(rhs, factor)[:, :size, 0]
            return x.reshape(b.shape).contiguous()

        return Factorization(solve, info == 0)

    def _block_cholesky(self) -> Factorization:
        """Eliminates from both ends at once, as one batch, towards the block in the middle.

        That takes half as many steps. The middle is solved twice, once for either end: batches of
        one system alone would go to other kernels, with other last bits, than several.
        """
        p, count, m, _ = self.diagonal.shape
        if count < 2:
            return self._dense_cholesky()
        identity = torch.eye(m, dtype=self.diagonal.dtype, device=self.diagonal.device)
        diagonal, upper, middle = self._from_both_ends(identity)
        factors, links, failures = _eliminated(diagonal, upper)
        met = links[-1].mT @ links[-1]
        centre = middle - met[:p] - met[p:]
        root, failure = torch.linalg.cholesky_ex(centre.repeat(2, 1, 1))
        factors.append(root)
        failures.append(failure)
        failed = torch.stack(failures).sum(0)
        solve = _TwoEnded.of(
            factors=factors,
            link=torch.stack(links),
            identity=identity,
            count=count,
        )
        ok = failed[:p] + failed[p:] == 0
        return Factorization(solve, ok)

    def _from_both_ends(
        self, identity: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """Blocks of both ends, each read inwards, as one batch ``(2 p, m, m)`` per block.

        Returns:
            The diagonal blocks, those that couple each to the next one, and the middle block.
        """
        p, count, m, _ = self.diagonal.shape
        half = count // 2
        diagonal = self.diagonal
        upper = self.upper
        if count % 2 == 0:
            # As many blocks on either side: the identity, coupled to nothing, comes last.
            last = identity.expand(p, 1, m, m)
            diagonal = torch.cat([diagonal, last], 1)
            upper = torch.cat([upper, 0 * last], 1)
        middle = diagonal[:, half]
        behind = diagonal[:, half + 1 :].flip(1)
        coupled = upper[:, half:].flip(1).mT
        outer = torch.cat([diagonal[:, :half], behind])
        beside = torch.cat([upper[:, :half], coupled])
        return outer.unbind(1), beside.unbind(1), middle

    def negative_eigenvalues(self) -> Tensor:
        """How many eigenvalues are negative, ``(p,)`` int64.

        For the Hessian of an energy that is the Morse index. By Sylvester's law of inertia it is
        the number of negative pivots of the block LDL^T factorisation, counted block by block;
        eigenvalues within rounding of zero do not count.
        """
        n = self.diagonal.shape[1]
        diagonal = self.diagonal
        count = torch.zeros(len(diagonal), dtype=torch.int64, device=diagonal.device)
        pivot = diagonal[:, 0]
        number = torch.finfo(pivot.dtype)
        eps = number.eps
        scale = diagonal.abs().amax((1, 2, 3))
        if n > 1:
            beside = self.upper.abs().amax((1, 2, 3))
            scale = torch.maximum(scale, beside)
        floor = (8 * n * eps * scale).clamp(min=number.tiny)
        small = floor[:, None]
        doubtful = torch.zeros_like(count, dtype=torch.bool)
        for i in range(n):
            values, vectors = torch.linalg.eigh(pivot)
            count += (values < -small).sum(-1)
            if i + 1 < n:
                sizes = values.abs()
                doubtful |= (sizes < eps**0.5 * scale[:, None]).any(-1)
                # A pivot within rounding of zero would divide by nothing; give it the rounding's
                # own size.
                safe = torch.where(sizes < small, small, values)
                half = vectors.mT @ self.upper[:, i]
                eliminated = half.mT @ (half / safe[..., None])
                pivot = diagonal[:, i + 1] - eliminated
        if bool(doubtful.any()):
            # Dividing by a nearly singular pivot drowns the rest in rounding: count these densely.
            dense = self.select(doubtful).dense()
            values = torch.linalg.eigvalsh(dense)
            below = values < -floor[doubtful, None]
            count[doubtful] = below.sum(-1)
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
        inverse, middle = inverses.split([half, 1])
        centre = middle[0]
        down = inverse[1:] @ link[:-1].mT
        up = inverse.mT @ link
        return cls(
            count=count,
            inverse=inverse,
            centre=centre,
            down=down.unbind(),
            up=up.unbind(),
            inwards=centre @ link[-1].mT,
        )

    def __call__(self, b: Tensor) -> Tensor:  # (p, count, m)
        """Solutions for right-hand sides."""
        p = len(b)
        half = len(self.up)
        if self.count % 2 == 0:
            b = torch.nn.functional.pad(b, (0, 0, 0, 1))
        # Inwards from both ends,
        behind = b[:, half + 1 :].flip(1)
        ends = torch.cat([b[:, :half], behind])
        columns = ends.transpose(0, 1)[..., None]
        x = list((self.inverse @ columns).unbind())
        for i in range(1, half):
            x[i] = torch.baddbmm(x[i], self.down[i - 1], x[i - 1], alpha=-1)
        # through the middle,
        met = self.inwards @ x[-1]
        opposite = torch.cat([met[p:], met[:p]])
        share = self.centre @ b[:, half, :, None].repeat(2, 1, 1)
        middle = self.centre.mT @ (share - met - opposite)
        # and back.
        x = list((self.inverse.mT @ torch.stack(x)).unbind())
        after = middle
        for i in reversed(range(half)):
            after = torch.baddbmm(x[i], self.up[i], after, alpha=-1)
            x[i] = after
        outer = torch.stack(x, 1)[..., 0]
        before = outer[:p]
        behind = outer[p:].flip(1)
        whole = torch.cat([before, middle[:p].mT, behind], 1)
        return whole[:, : self.count]


def _eliminated(
    diagonal: tuple[Tensor, ...], upper: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Block Cholesky, block after block.

    Returns:
        The factors of the pivots, the blocks next to them, and where a factorisation failed.
    """
    factors: list[Tensor] = []
    links: list[Tensor] = []
    failures: list[Tensor] = []
    for pivot, beside in zip(diagonal, upper, strict=True):
        rest = pivot
        if links:
            link = links[-1]
            rest = torch.baddbmm(pivot, link.mT, link, alpha=-1)
        factor, failure = torch.linalg.cholesky_ex(rest)
        link = torch.linalg.solve_triangular(factor, beside, upper=False)
        factors.append(factor)
        links.append(link)
        failures.append(failure)
    return factors, links, failures


def _times(a: Tensor, x: Tensor) -> Tensor:
    column = x[..., None]
    return (a @ column)[..., 0]
