"""What the Newton solver knows of its curves, and how that is taken to a finer level."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

RUNNING = -1  # in addition to the codes of Status

N = TypeVar("N", Tensor, np.ndarray)

# Devices whose memory is the host's: a number there is read without waiting.
_ON_HOST = frozenset({"cpu"})

# What a curve's steps are decided by, on the host, where decisions are made: they are many and
# small, and would take longer to launch on a device, or through torch's dispatcher, than to carry
# out.
ENTRY = np.dtype(
    [
        ("status", np.int64),  # RUNNING, CONVERGED for this resolution, or a failure
        ("index", np.int64),  # Morse index of the last Hessian; −1 before it is known
        ("steps", np.int64),  # taken at this resolution and at coarser ones
        # The relative reduction of the length that the local model still promises.
        ("decrement", np.float64),
        ("damping", np.float64),  # in units of the Gauss-Newton block diagonal
        ("noise", np.float64),  # rounding error of the energy
        ("kept", bool),  # converging to a saddle on purpose
        ("known", bool),  # the state's matrices exist
        ("stale", bool),  # and must be computed anew
        ("scalable", bool),  # they serve a finer level
        ("separate", bool),  # and second derivatives do not couple neighbouring nodes
        ("first", bool),  # this is the curve's first level, which a second always follows
        ("near", bool),  # without second derivatives it would have ended
        ("rough", bool),  # second derivatives have not served: there are none until it is near
        ("sure", bool),  # the Hessian of a coarser level, or one nearby, was positive definite
        ("seen", np.float64),  # the energy when headway was last looked at, NaN before
        ("then", np.int64),  # and the steps taken until then
    ],
    align=True,
)


@dataclass
class PathState:
    """Progress on ``p`` curves.

    Attributes:
        book: ``(p,)`` entries of ``ENTRY``.
        nodes: ``(p, n + 1, m)``.
        tangents: ``(p, n − 1, m, m)``, diagonal blocks of the Gauss-Newton matrix as last computed.
        crossings: ``(p, n − 2, m, m)``, its blocks next to the diagonal.
        diagonal: ``(p, n − 1, m, m)``, second-derivative part of the Hessian as last computed.
        upper: ``(p, n − 2, m, m)``, the same next to the diagonal.
    """

    book: np.ndarray
    nodes: Tensor
    tangents: Tensor
    crossings: Tensor
    diagonal: Tensor
    upper: Tensor

    @classmethod
    def start(cls, nodes: Tensor) -> PathState:
        """A state about discrete curves ``(p, n + 1, m)`` of which nothing is known."""
        p, count, m = nodes.shape
        book = np.zeros(p, dtype=ENTRY)
        book["status"] = RUNNING
        book["index"] = -1
        book["decrement"] = np.inf
        book["seen"] = np.nan
        book["first"] = True
        inner = count - 2
        sizes = (inner, inner - 1, inner, inner - 1)
        blocks = [nodes.new_zeros(p, rows, m, m) for rows in sizes]
        return cls(book, nodes.clone(), *blocks)

    @property
    def status(self) -> Tensor:
        """``(p,)``; RUNNING, CONVERGED for this resolution, or a failure."""
        return self._column("status")

    @property
    def decrement(self) -> Tensor:
        """``(p,)``, the relative reduction of the length that the local model still promises."""
        return self._column("decrement").to(self.nodes.dtype)

    @property
    def index(self) -> Tensor:
        """``(p,)``, Morse index of the last Hessian; −1 before it is known."""
        return self._column("index")

    @property
    def steps(self) -> Tensor:
        """``(p,)``, steps taken at this resolution and at coarser ones."""
        return self._column("steps")

    def entries(self, *names: str) -> tuple[np.ndarray, ...]:
        """Columns of the book, decrements as rounded as those of a tensor."""
        columns = {name: self.book[name].copy() for name in names}
        if "decrement" in columns:
            columns["decrement"] = columns["decrement"].astype(_numpy_dtype(self.nodes.dtype))
        return tuple(columns.values())

    def _column(self, name: str) -> Tensor:
        return placed(self.book[name].copy(), self.nodes)

    def refined(self, nodes: Tensor, moved: np.ndarray) -> PathState:
        """A state about the same curves on twice as many segments.

        Args:
            nodes: ``(p, 2 n + 1, m)``.
            moved: ``(p,)`` bool: curves whose nodes were placed anew.
        """
        fine = PathState.start(nodes)
        old = self.book
        new = fine.book
        if old["known"].any():
            fine.tangents, fine.crossings = _halved(self.tangents, self.crossings)
            fine.diagonal = _interpolated(self.diagonal)
            if not old["separate"].all():
                fine.upper = _links_interpolated(self.upper)
            new["noise"] = 2 * old["noise"]
        new["kept"] = old["kept"]
        new["scalable"] = old["scalable"]
        new["separate"] = old["separate"]
        new["first"] = False
        new["rough"] = old["rough"]
        new["sure"] = old["index"] == 0
        usable = old["scalable"] & ~old["stale"] & ~old["kept"]
        new["known"] = old["known"] & usable & ~moved
        return fine

    @classmethod
    def cat(cls, parts: list[PathState]) -> PathState:
        """One batch from several at the same resolution."""
        tensors = [
            torch.cat(column) for column in zip(*(part._tensors() for part in parts), strict=True)
        ]
        book = np.concatenate([part.book for part in parts])
        return cls(book, *tensors)

    def select(self, rows: np.ndarray) -> PathState:
        """The curves at ``rows``."""
        where = placed(rows, self.nodes)
        return PathState(self.book[rows], *(x[where] for x in self._tensors()))

    def update(self, rows: np.ndarray, other: PathState) -> None:
        """Write ``other`` back to the curves at ``rows``."""
        where = placed(rows, self.nodes)
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        for mine, theirs in pairs:
            mine[where] = theirs
        self.book[rows] = other.book

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.nodes, self.tangents, self.crossings, self.diagonal, self.upper


def numbers(state: Any, *names: str) -> tuple[np.ndarray, ...]:
    """Fields of any solver's state with one entry per curve, as arrays.

    In one read, or in none where the state keeps them on the host.
    """
    if isinstance(state, PathState):
        return state.entries(*names)
    return read(*(getattr(state, name) for name in names))


def select(state: Any, rows: np.ndarray) -> Any:
    """The curves of any solver's state at ``rows``."""
    if isinstance(state, PathState):
        return state.select(rows)
    return state.select(placed(rows, state.nodes))


def update(state: Any, rows: np.ndarray, other: Any) -> None:
    """Write ``other`` back to the curves of any solver's state at ``rows``."""
    if isinstance(state, PathState):
        state.update(rows, other)
    else:
        state.update(placed(rows, state.nodes), other)


def hand_on(state: Any, steps: np.ndarray) -> None:
    """Tell any solver's state how many steps its curves have taken at coarser levels."""
    if isinstance(state, PathState):
        state.book["steps"] = steps
    else:
        state.steps = placed(steps, state.nodes)


def at_hand(x: Tensor) -> bool:
    """Whether the host reads a tensor's numbers without waiting for a device."""
    return x.device.type in _ON_HOST


def on_host(x: Tensor) -> np.ndarray:
    """A tensor as an array, not to be written to."""
    if x.requires_grad:
        x = x.detach()
    if not at_hand(x):
        x = x.cpu()
    return x.numpy()


def read(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Several tensors of one device as arrays, not to be written to.

    Elsewhere than on a CPU the host waits for a number until the device has done all that was
    asked for: they come in one transfer, as bytes, and so with the same bits.
    """
    if at_hand(tensors[0]):
        return tuple(map(on_host, tensors))
    raw = [_bytes(x) for x in tensors]
    ends = np.cumsum([len(x) for x in raw])
    parts = np.split(on_host(torch.cat(raw)), ends[:-1])
    found = zip(tensors, parts, strict=True)
    return tuple(part.view(_numpy_dtype(x.dtype)).reshape(x.shape) for x, part in found)


def _bytes(x: Tensor) -> Tensor:
    flat = x.detach().reshape(-1)
    if flat.stride(0) != 1:  # such as one number out of a row
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)


@lru_cache
def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype


def placed(x: np.ndarray, like: Tensor) -> Tensor:
    """An array where a tensor is."""
    found = torch.from_numpy(x)
    if like.is_cpu:
        return found
    # Memory that is not pinned has been taken in when the call returns.
    return found.to(like.device, non_blocking=like.is_cuda)


def curves_at(rows: np.ndarray, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The curves at increasing ``rows``: the tensors as they are where that is all of them."""
    if len(rows) == len(tensors[0]):
        return tensors
    where = placed(rows, tensors[0])
    return tuple(x[where] for x in tensors)


def put(whole: Tensor, rows: np.ndarray, part: Tensor) -> Tensor:
    """``whole`` with other curves at increasing ``rows``; what was given is not written to."""
    if len(rows) == len(whole):
        return part
    whole = whole.clone()
    whole[placed(rows, whole)] = part
    return whole


def moved(nodes: Tensor, step: Tensor) -> Tensor:  # (p, n + 1, m), (p, n - 1, m)
    """Nodes after a step of the interior ones."""
    nodes = nodes.clone()
    nodes[:, 1:-1].add_(step)
    return nodes


def masked(rows: np.ndarray, step: Tensor) -> Tensor:
    """Steps of the curves that take one, and 0 for the others."""
    if rows.all():
        return step
    return torch.where(flags(rows, step), step, 0.0)


def flags(x: np.ndarray, like: Tensor) -> Tensor:  # (p,) -> (p, 1, 1)
    """An array with one entry per curve, to be combined with nodes or steps."""
    return placed(x, like)[:, None, None]


def relative_length(predicted: N, energy: N) -> N:
    """Relative reduction of the length: the energy falls by predicted/2, and length² = energy."""
    return predicted / (4 * energy)


def _halved(tangents: Tensor, crossings: Tensor) -> tuple[Tensor, Tensor]:
    """The Gauss-Newton blocks ``4n J_iᵀJ_i`` and ``−2n J_iᵀJ_{i+1}`` on twice as many segments.

    From the blocks alone, as if ``J`` were linear between the nodes (and, before the first and
    behind the last of them, as between the two next): positive semi-definite again, and close
    enough for a matrix that only decides how fast a curve converges.
    """
    block = tangents / 2  # in units of 2n, as all that follows
    link = -crossings
    p, count, m, _ = block.shape
    fine = block.new_empty(p, 2 * count + 1, m, m)
    upper = block.new_empty(p, 2 * count, m, m)
    if count == 1:
        diagonal = (4 * block).expand_as(fine)
        beside = (-2 * block).expand_as(upper)
        return diagonal.clone(), beside.clone()
    block, link = _extended(block, link)
    inner = block[:, 1:-1]
    before = link[:, :-1]
    after = link[:, 1:]
    # The old nodes, and between each two of them a new one.
    ends = block[:, :-1] + block[:, 1:]
    links = link + link.mT
    fine[:, 1::2] = 4 * inner
    fine[:, 0::2] = ends + links
    upper[:, 0::2] = -(before + inner)
    upper[:, 1::2] = -(inner + after)
    return fine, upper


def _extended(block: Tensor, link: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks with one node more at either end, where ``J`` is extrapolated."""
    ends = [block[:, 0], block[:, -1]]
    last = torch.stack(ends, 1)
    end_links = [link[:, 0], link[:, -1]]
    outer = torch.stack(end_links, 1)
    next_to_last = [block[:, 1], block[:, -2]]
    before = torch.stack(next_to_last, 1)
    turns = outer + outer.mT
    beyond = 4 * last - 2 * turns + before
    outer = 2 * last - outer.mT
    blocks = [beyond[:, :1], block, beyond[:, 1:]]
    links = [outer[:, :1], link, outer[:, 1:]]
    return torch.cat(blocks, 1), torch.cat(links, 1)


def _interpolated(correction: Tensor) -> Tensor:
    """The diagonal blocks ``2n a·∂²f`` on twice as many segments.

    They are 1/n times a function that is smooth along the curve: interpolated, with its ends
    extrapolated.
    """
    coarse = correction / 2
    first = 2 * coarse[:, :1] - coarse[:, 1:2]
    final = 2 * coarse[:, -1:] - coarse[:, -2:-1]
    ends = [first, coarse, final]
    if coarse.shape[1] > 1:
        padded = torch.cat(ends, 1)
    else:
        padded = coarse.repeat(1, 3, 1, 1)
    p, count, m, _ = coarse.shape
    fine = coarse.new_empty(p, 2 * count + 1, m, m)
    neighbours = padded[:, :-1] + padded[:, 1:]
    fine[:, 0::2] = neighbours / 2
    fine[:, 1::2] = coarse
    return fine


def _links_interpolated(links: Tensor) -> Tensor:  # (p, n - 2, m, m) -> (p, 2 n - 2, m, m)
    """The correction's blocks next to the diagonal on twice as many segments.

    The antisymmetric part is a smooth function along the curve, the symmetric part 1/n times one:
    both interpolated to the new segments' middles, with their ends extrapolated.
    """
    p, count, m, _ = links.shape
    if not count:
        return links.new_zeros(p, 2, m, m)
    # Half of the symmetric part is left, and all of the rest.
    coarse = 0.75 * links - 0.25 * links.mT
    if count > 1:
        first = 2 * coarse[:, :1] - coarse[:, 1:2]
        final = 2 * coarse[:, -1:] - coarse[:, -2:-1]
    else:
        first = final = coarse
    padded = torch.cat([first, coarse, final], 1)
    before = padded[:, :-1]
    after = padded[:, 1:]
    fine = links.new_empty(p, 2 * count + 2, m, m)
    fine[:, 0::2] = 0.75 * before + 0.25 * after
    fine[:, 1::2] = 0.25 * before + 0.75 * after
    return fine
