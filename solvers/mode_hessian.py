"""The Hessian of whole curves' energy in their modes, before any secant.

By default in a metric that is known at a few places of the start curve; with second derivatives to
follow, the Gauss-Newton matrix of tangents at a few places; and where those were looked at, the
Hessian of the present curve, from tangents and second derivatives at a few places.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from riemae.numerics.constants import constant
from riemae.solvers.mode_metric import ONE_PLACE_BEYOND, change_along, probed
from riemae.solvers.path_metric import PathMetric, sampled_metric
from riemae.solvers.polynomials import (
    gauss_newton,
    mode_energies,
    slope_at_places,
    spline_of,
    stiffness,
)
from riemae.solvers.space import Space
from riemae.solvers.state import at_hand, on_host, placed, read

# Latent dimensions beyond which the metric is sketched, the sketch's rank, and how large a Hessian
# is factorised.
_SKETCHED_BEYOND, _SKETCH, _DENSE = 64, 32, 256
# At so many places of the start curve the metric is looked at, and beyond so many dimensions; at
# one beyond some more.
_SAMPLES, _MANY, _SAMPLES_OF_MANY = 4, 12, 2
# With second derivatives to follow tangents are, at so many places; they follow at so many places
# of the present curve.
_PLACES, _PLACES_ANEW = 3, 4
# Known at one place, the metric is too small elsewhere in directions in which it nearly vanishes
# there, by nearly the same number in all of them. Probes tell it; so many times as much is added,
# at most this share of its mean eigenvalue: with 64 dimensions, steps then go as far after the
# second as they did after the fourth, and hardly one is too long. A change is that much larger than
# what probes tell, in mean eigenvalues.
_FLOOR, _HIGHEST_FLOOR, _AMPLIFIED = 8.0, 0.3, 20.0
# Matrices of so many bytes at a time are factorised where they stay near the processor.
_NEAR = 2 * 2**20
_WHOLE = 8


class ModeHessian:
    """The inverse Hessian before any secant, for the curves of a state.

    Args:
        space: The space.
        nodes: ``(p, n + 1, m)``, of the start curves.
        second_order: Whether second derivatives may follow.

    Attributes:
        mean: ``(p, m, m)``, the mean metric; none where it is sketched.
        regular: ``(p,)``, 0 where there is no metric.
        change: ``(p,)``, the largest factor by which lengths of tangents change along the curve, as
            far as that is known.
        one_place: Whether the metric is known at one place only.
    """

    def __init__(self, space: Space, nodes: Tensor, second_order: bool) -> None:
        p, _, m = nodes.shape
        self.sketch: PathMetric | None = None
        self.second_order = second_order
        self.slope: Tensor | None = None
        self.speeds: Tensor | None = None
        self.one_place = False
        if m > _SKETCHED_BEYOND:
            sketch = PathMetric.sketched(space, nodes, _SKETCH)
            self.regular = (sketch.rest > 0).to(nodes)
            self.sketch = PathMetric(sketch.basis, sketch.values, sketch.rest.nan_to_num(0.0))
            self.mean = nodes.new_zeros(p, 0, 0)
            self.change = nodes.new_ones(p)
            return
        if second_order:
            places = _evenly(nodes)
            seen = _Seen.of(space, places, second_order=False)
            self.blocks, self.regular = seen.blocks, seen.regular
            self.slope, self.energy = seen.slope, seen.energy
            metrics = self.blocks[:, :_PLACES]
            v = places[:, 2:] - places[:, :-2]
            squares = ((metrics * v[..., None]).sum(2) * v).sum(2)
            self.speeds = (_PLACES + 1) / 2 * squares.sqrt()
        else:
            few = _SAMPLES_OF_MANY if m <= ONE_PLACE_BEYOND else 1
            samples = sampled_metric(space, nodes, _SAMPLES if m <= _MANY else few)
            sound = samples.isfinite().flatten(1).all(1)
            eye = torch.eye(m).to(samples)
            metrics = torch.where(sound[:, None, None, None], samples, eye)
            self.blocks, self.regular = metrics, sound.to(nodes)
        self.anew = nodes.new_zeros(p, 3 * _PLACES_ANEW - 1 if second_order else 0, m, m)
        self.newer = np.zeros(p, dtype=bool)
        self.mean = metrics.mean(1)
        self.stiff = self.mean
        self.one_place = metrics.shape[1] == 1
        if not self.one_place:
            self.change = change_along(space, nodes, metrics)
            return
        _, more = probed(space, nodes, self.mean)
        size = self.mean.diagonal(dim1=1, dim2=2).mean(1)
        floor = torch.fmin(_FLOOR * more, _HIGHEST_FLOOR * size)
        self.stiff = self.mean + floor[:, None, None] * torch.eye(m).to(floor)
        self.change = 1 + _AMPLIFIED * more / size

    def extended(self, modes: int) -> None:
        """For curves of so many modes."""
        like = self.mean
        small = modes * like.shape[1] <= _DENSE
        self.dense = self.second_order or (small and not self.one_place)
        if self.sketch is not None or not self.dense:
            self.scale = 0.5 / mode_energies(modes, like)[:, None]
        if self.sketch is not None:
            return
        if not self.dense:
            self.root = torch.linalg.cholesky(self.stiff).mT
            return
        n = modes * like.shape[1]
        size = n + -n % _WHOLE
        self.root = like.new_empty(len(like), size, size)
        if not self.newer.any():
            assemble = gauss_newton if self.second_order else stiffness
            for some in self._portions(len(like)):
                root = self.root[some]
                if size == n:
                    assemble(self.blocks[some], modes, out=root)
                else:
                    root.copy_(_whole(assemble(self.blocks[some], modes)))
                _root_in_place(root)
            return
        for those, blocks, forms in (
            (~self.newer, self.blocks, False),
            (self.newer, self.anew, True),
        ):
            rows = those.nonzero()[0]
            if len(rows):
                self._root_at(rows, blocks[placed(rows, like)], modes, forms)

    def _root_at(self, rows: np.ndarray, blocks: Tensor, modes: int, forms: bool) -> Tensor:
        """Factors of the curves at ``rows`` anew, and ``(q,)``: 1 where the energy is convex."""
        convex = []
        for some in self._portions(len(rows)):
            root, found = _rooted(blocks[some], modes, forms)
            self.root[placed(rows[some], root)] = root
            convex.append(found)
        return torch.cat(convex)

    def _portions(self, count: int) -> list[slice]:
        """So many curves, in portions whose matrices stay near the processor."""
        size = max(1, count)
        if at_hand(self.root):
            n = self.root.shape[1]
            size = max(1, _NEAR // (n * n * self.root.element_size()))
        return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]

    def renewed(
        self, space: Space, rows: np.ndarray, z0: Tensor, z1: Tensor, modes: Tensor
    ) -> Tensor:  # (q,), (q, m) twice, (q, k, m) -> (q,)
        """Look at second derivatives of the curves at ``rows``: 1 where the energy is convex."""
        those = placed(rows, modes)
        nodes = spline_of(z0, z1, modes, _PLACES_ANEW + 1).nodes
        seen = _Seen.of(space, nodes, second_order=True)
        self.anew[those] = seen.blocks
        self.newer[rows] = True
        convex = self._root_at(rows, seen.blocks, modes.shape[1], forms=True)
        return convex * seen.regular

    def select(self, rows: np.ndarray) -> ModeHessian:
        """Of the curves at ``rows``."""
        found = copy(self)
        those = placed(rows, self.mean)
        if self.sketch is not None:
            found.sketch = self.sketch.select(those)
            return found
        found.newer = self.newer[rows]
        for name in ("blocks", "anew", "mean", "stiff", "root"):
            setattr(found, name, getattr(self, name).index_select(0, those))
        return found

    def taken_slope(self, modes: int) -> tuple[Tensor, Tensor]:  # -> (p, k, m), (p,)
        """The start curves' gradient in the modes, and energy, as chords between places see them.

        They are for one use.
        """
        assert self.slope is not None
        slope = slope_at_places(self.slope, modes)
        self.slope = None
        return slope, self.energy

    def of(self, rows: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The inverse for the curves at ``rows``, or for all."""
        if self.sketch is not None:
            sketch = self.sketch if rows is None else self.sketch.select(rows)
            return lambda g: self.scale * sketch.inverse(g)
        # Twice as fast as indexing.
        root = self.root if rows is None else self.root.index_select(0, rows)
        if self.dense:
            return lambda g: _inverse(root, g)
        return lambda g: self.scale * _solved(root, g.mT).mT


@dataclass(frozen=True)
class _Seen:
    """What tangents at the inner nodes of curves tell.

    Attributes:
        blocks: ``(p, 2 s − 1 or 3 s − 1, m, m)``, what :func:`gauss_newton` is made of.
        regular: ``(p,)``, 0 where there is no metric.
        slope: ``(p, s, m)``, the gradient of the chords' energy in the nodes.
        energy: ``(p,)``.
    """

    blocks: Tensor
    regular: Tensor
    slope: Tensor
    energy: Tensor

    @classmethod
    def of(cls, space: Space, nodes: Tensor, second_order: bool) -> _Seen:  # (p, s + 2, m)
        """Of evenly spaced nodes.

        Eigenvalues of the metric within rounding of 0, relative to the largest at any place, are
        raised.
        """
        n = nodes.shape[1] - 1
        found = space.expand(nodes, second_order)
        g, links = found.gauss_newton.diagonal, found.gauss_newton.upper
        if not found.separate:  # they may average over neighbours
            links = (g[:, :-1] + g[:, 1:]) / -4
        parts = [g, links]
        if second_order:
            assert found.correction is not None
            parts.append(found.correction.diagonal)
        blocks = torch.cat(parts, 1) * constant(_scales, (n, second_order), g)
        own = blocks[:, : n - 1].diagonal(dim1=2, dim2=3)
        top = own.sum(-1).amax(1)
        largest = torch.linalg.vector_norm(blocks, torch.inf, (1, 2, 3))
        sound = (largest < torch.inf) & (top > 0)
        floor = 1e2 * torch.finfo(g.dtype).eps * top
        own.add_(floor.view(-1, 1, 1))
        eye = constant(np.eye, (nodes.shape[-1],), g)
        blocks = torch.where(sound.view(-1, 1, 1, 1), blocks, eye)
        return cls(blocks, sound.to(g), found.gradient, found.energy)


def _evenly(nodes: Tensor) -> Tensor:  # (p, n + 1, m) -> (p, s + 2, m)
    """Some of the nodes."""
    n, count = nodes.shape[1] - 1, _PLACES + 1
    if n % count:
        return nodes[:, [round(i * n / count) for i in range(count + 1)]]
    return nodes[:, :: n // count]


def _scales(n: int, second_order: bool) -> np.ndarray:  # -> (b, 1, 1)
    """What makes Jacobians' products and forms of the blocks of n chords' energy."""
    scales = [1 / (4 * n)] * (n - 1) + [-1 / (2 * n)] * (n - 2)
    if second_order:
        scales += [n] * (n - 1)
    return np.reshape(scales, (-1, 1, 1))


def _rooted(blocks: Tensor, modes: int, forms: bool) -> tuple[Tensor, Tensor]:
    """Cholesky factors of the Hessians in the modes, and ``(p,)``: 1 where they are convex.

    Elsewhere the forms count half, or not at all.
    """
    root = _whole(gauss_newton(blocks, modes, forms))
    if not forms:
        _root_in_place(root)
        return root, blocks.new_ones(len(blocks))
    info = _factorised(root)
    (failed,) = read(info != 0)
    rows = failed.nonzero()[0]
    convex = (info == 0).to(blocks)
    if len(rows):
        those = placed(rows, blocks)
        few = (blocks.shape[1] + 1) // 3 * 2 - 1
        part = blocks[those]
        flat = _whole(gauss_newton(part[:, :few], modes))
        half = (_whole(gauss_newton(part, modes, forms=True)) + flat) / 2
        still = _factorised(half)
        _root_in_place(flat)
        root[those] = torch.where((still == 0)[:, None, None], half, flat)
    return root, convex


def _whole(matrix: Tensor) -> Tensor:  # (p, n, n) -> (p, n + r, n + r)
    """With rows and columns of the identity, up to a multiple of 8.

    Where in memory a matrix begins would matter to the last bits, and so to curves in a batch.
    """
    n = matrix.shape[1]
    spare = -n % _WHOLE
    if not spare:
        return matrix
    wide = F.pad(matrix, (0, spare, 0, spare))
    wide.diagonal(dim1=1, dim2=2)[:, n:].fill_(1.0)
    return wide


def _inverse(upper: Tensor, g: Tensor) -> Tensor:  # (p, n + r, n + r), (p, k, m) -> (p, k, m)
    p, size, _ = upper.shape
    n = g.shape[1] * g.shape[2]
    if n == size:
        return _solved(upper, g.reshape(p, n, 1)).view(g.shape)
    wide = F.pad(g.flatten(1), (0, size - n))
    return _solved(upper, wide[..., None])[:, :n, 0].unflatten(1, g.shape[1:])


def _root_in_place(matrix: Tensor) -> None:  # (p, n, n)
    """:func:`_factorised`; where rounding has made it indefinite, that of the diagonal."""
    own = matrix.diagonal(dim1=1, dim2=2).clone()
    failed = _factorised(matrix) != 0
    if at_hand(failed) and not on_host(failed).any():
        return
    root = own.clamp(min=torch.finfo(own.dtype).tiny).sqrt()
    torch.where(failed[:, None, None], torch.diag_embed(root), matrix, out=matrix)


def _factorised(matrix: Tensor) -> Tensor:  # (p, n, n) -> (p,)
    """Put ``Lᵀ`` in place of ``L Lᵀ``; where that returns not 0, there is none."""
    # Column by column, as LAPACK wants them.
    columns = matrix.mT
    info = torch.empty(len(matrix), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(columns, out=(columns, info))
    return info


def _solved(upper: Tensor, g: Tensor) -> Tensor:  # (p, n, n), (p, n, r) -> (p, n, r)
    """``(L Lᵀ)⁻¹ g`` from ``Lᵀ``."""
    # `torch.cholesky_solve` would copy the factors first.
    half = torch.linalg.solve_triangular(upper.mT, g, upper=False)
    return torch.linalg.solve_triangular(upper, half, upper=True)
