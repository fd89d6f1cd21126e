"""How a matrix of distances is cut into blocks.

The layout depends on the problem alone, and so does every bit of the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Geodesics per block: enough for the solver to work at full speed, few enough that a killed run
# loses seconds.
_FEWEST_PAIRS = 64
_MOST_PAIRS = 1024
_WANTED_BLOCKS = 256
# Whole rows per block where a distance costs next to nothing: bounded by memory.
_ROW_BYTES = 64 * 2**20
_ROW_BLOCKS = 64


@dataclass(frozen=True)
class Layout:
    """How the matrix is cut: into pairs, or into bands of whole rows.

    The pairs are those of its upper triangle, or all of them.

    Attributes:
        shape: Of the matrix.
        symmetric: Whether the lower triangle mirrors the upper one; the diagonal is then 0.
        rows: Bands of rows instead of pairs.
        size: Pairs, or rows, per block.
    """

    shape: tuple[int, int]
    symmetric: bool
    rows: bool
    size: int

    @classmethod
    def of(
        cls, n: int, q: int, symmetric: bool, rows: bool, block_size: int | None, itemsize: int
    ) -> Layout:
        """The layout of an ``(n, q)`` matrix of numbers of ``itemsize`` bytes.

        Args:
            n: Rows.
            q: Columns.
            symmetric: Whether the lower triangle mirrors the upper one.
            rows: Whether to cut into bands of rows.
            block_size: Distances per block; by default chosen by work and memory.
            itemsize: Bytes per distance.
        """
        if not rows:
            if symmetric:
                pairs = n * (n - 1) // 2
            else:
                pairs = n * q
            usual = min(max(math.ceil(pairs / _WANTED_BLOCKS), _FEWEST_PAIRS), _MOST_PAIRS)
            return cls((n, q), symmetric, rows, block_size or usual)
        columns = max(q, 1)
        if block_size is None:
            fitting = max(1, _ROW_BYTES // (columns * itemsize))
            size = min(fitting, math.ceil(n / _ROW_BLOCKS))
        else:
            size = block_size // columns
        return cls((n, q), symmetric, rows, max(1, size))

    @property
    def total(self) -> int:
        """Distances to compute."""
        n, q = self.shape
        if self.symmetric and not self.rows:
            return n * (n - 1) // 2
        return n * q

    def __len__(self) -> int:
        if self.rows and self.total:
            pieces = self.shape[0]
        else:
            pieces = self.total
        return math.ceil(pieces / self.size)

    def band(self, block: int) -> tuple[int, int, int]:
        """First row, row behind the last, and first column of a block of rows."""
        first = block * self.size
        return first, min(first + self.size, self.shape[0]), first if self.symmetric else 0

    def pairs(self, block: int) -> tuple[Tensor, Tensor]:
        """Rows and columns of a block of pairs, without listing all pairs."""
        n, q = self.shape
        number = torch.arange(block * self.size, min((block + 1) * self.size, self.total))
        if not self.symmetric:
            return number // q, number % q
        row = torch.arange(n)
        first = row * (2 * n - row - 1) // 2  # pairs in the rows above
        i = torch.searchsorted(first, number, right=True) - 1
        return i, number - first[i] + i + 1

    def count(self, block: int) -> int:
        """Distances that a block settles."""
        if not self.rows:
            return min(self.size, self.total - block * self.size)
        first, last, _ = self.band(block)
        return (last - first) * self.shape[1]

    def block_shape(self, block: int) -> tuple[int, ...]:
        """Shape of the values of a block."""
        if not self.rows:
            return (self.count(block),)
        first, last, column = self.band(block)
        return last - first, self.shape[1] - column

    def place(self, matrix: Tensor, block: int, values: Tensor) -> None:
        """Write a block's values where they belong, and their mirror image."""
        values = values.to(matrix)
        if not self.rows:
            i, j = (x.to(matrix.device) for x in self.pairs(block))
            matrix[i, j] = values
            if self.symmetric:
                matrix[j, i] = values
            return
        first, last, column = self.band(block)
        if self.symmetric:
            square = values[:, : last - first].triu(1)
            values = torch.cat([square + square.T, values[:, last - first :]], 1)
            matrix[last:, first:last] = values[:, last - first :].T
        matrix[first:last, column:] = values
