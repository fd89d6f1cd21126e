"""Minibatches of data that fit into memory, which a resumed run gets again in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, distributed

Batch = dict[str, Tensor]
_MASK = 2**64 - 1


class Neighbors(Protocol):
    """What the neighbourhood reconstruction needs of a graph."""

    def sample(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:  # (b,) -> (b,)
        """One neighbour of each sample."""
        ...


class Batches:
    """All data as one tensor, in batches whose order depends on seed and epoch alone.

    A run can therefore go on after an interruption without a stored order. Batches are slices of
    the tensor, so no time is spent on workers or collation. In a distributed run every process
    takes its share of each batch, so that the whole batches are the same.

    Args:
        x: ``(n, *shape)``.
        batch_size: Samples per batch, over all processes.
        seed: Of the order.
        neighbors: A graph on the samples, or None. With a graph, batches also hold one neighbour of
            each sample.
        index: ``(n,)``, the numbers of the samples, or None to leave them out of the batches.
        weights: ``(n,)``, the weights of the samples, or None.
        condition: ``(n, c)``, what the decoder gets besides the codes, or None.
    """

    def __init__(
        self,
        x: Tensor,
        batch_size: int,
        seed: int,
        neighbors: Neighbors | None = None,
        index: Tensor | None = None,
        weights: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> None:
        self.x = x
        self.batch_size = min(batch_size, len(x))
        self.seed = seed
        self.neighbors = neighbors
        self.columns = {
            name: column
            for name, column in (
                ("index", index),
                ("weights", weights),
                ("condition", condition),
            )
            if column is not None
        }
        self._epoch = 0

    @property
    def sampler(self) -> Batches:
        """These batches themselves, because lightning tells a loader's sampler the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, 0, self._epoch))
        order = torch.randperm(len(self.x), generator=generator)
        other = None
        if self.neighbors is not None:
            other = self.neighbors.sample(order, generator).to(self.x.device)
        order = order.to(self.x.device)  # at once, not batch by batch
        rank = 0
        world = 1
        if _distributed():
            rank = distributed.get_rank()
            world = distributed.get_world_size()
        whole = len(order) == self.batch_size and other is None and world == 1
        for start in range(0, len(order), self.batch_size):
            stop = min(start + self.batch_size, len(order))
            mine: slice | Tensor = slice(start, stop)
            if world > 1:
                # Every process gets at least one sample, even if the batch has fewer samples than
                # there are processes.
                first = start + rank
                mine = torch.arange(first, max(stop, first + 1), world) % len(order)
            index = order[mine]
            # The order within the only batch of an epoch does not matter, so nothing is copied.
            batch = {"x": self.x if whole else self.x.index_select(0, index)}
            for name, column in self.columns.items():
                batch[name] = column if whole else column.index_select(0, index)
            if other is not None:
                batch["neighbor"] = self.x.index_select(0, other[mine])
            yield batch


class Fixed:
    """The same batches every time, for validation.

    A class is needed because lightning takes a plain list for several loaders.
    """

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def derived_seed(*numbers: int) -> int:
    """A seed of 32 bits, as many as torch's generator uses, from several numbers.

    The finaliser of splitmix64 (Steele et al. 2014) is applied to one number after the other.
    Numbers that are close to each other therefore give unrelated seeds.
    """
    state = 0
    for n in numbers:
        state = (state + n + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 32


def _distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
