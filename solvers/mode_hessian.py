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

from riemae.solvers.mode_metric import ONE_PLACE_BEYOND, change_along, probed
from riemae.solvers.path_metric import PathMetric, sampled_metric
from riemae.solvers.polynomials import gauss_newton, slope_at_places, spline_of, stiffness
from riemae.solvers.space import Space
from riemae.solvers.state import placed, read

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
            evenly = torch.linspace(0, nodes.shape[1] - 1, _PLACES + 2).round().long()
            places = nodes[:, evenly]
            seen = _Seen.of(space, places, second_order=False)
            self.blocks, self.regular = seen.blocks, seen.regular
            self.slope, self.energy = seen.slope, seen.energy
            metrics = self.blocks[:, :_PLACES]
            v = places[:, 2:] - places[:, :-2]
            squares = ((v[:, :, None] @ metrics) @ v[..., None])[..., 0, 0]
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
        k = torch.arange(1, modes + 1, device=like.device).to(like)
        self.scale = (2 * k + 1)[:, None] / 2
        if self.sketch is not None:
            return
        small = modes * like.shape[1] <= _DENSE
        self.dense = self.second_order or (small and not self.one_place)
        if not self.dense:
            self.root = torch.linalg.cholesky(self.stiff)
            return
        old, new = (~self.newer).nonzero()[0], self.newer.nonzero()[0]
        if not len(new):
            matrix = gauss_newton if self.second_order else stiffness
            self.root = _sound_root(matrix(self.blocks, modes))
            return
        n = modes * like.shape[1]
        self.root = like.new_empty(len(like), n, n)
        for rows, blocks, forms in ((old, self.blocks, False), (new, self.anew, True)):
            if len(rows):
                those = placed(rows, like)
                self.root[those], _ = _rooted(blocks[those], modes, forms)

    def renewed(
        self, space: Space, rows: np.ndarray, z0: Tensor, z1: Tensor, modes: Tensor
    ) -> Tensor:  # (q,), (q, m) twice, (q, k, m) -> (q,)
        """Look at second derivatives of the curves at ``rows``: 1 where the energy is convex."""
        those = placed(rows, modes)
        nodes = spline_of(z0, z1, modes, _PLACES_ANEW + 1).nodes
        seen = _Seen.of(space, nodes, second_order=True)
        root, convex = _rooted(seen.blocks, modes.shape[1], forms=True)
        self.anew[those] = seen.blocks
        self.newer[rows] = True
        self.root[those] = root
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
            setattr(found, name, getattr(self, name)[those])
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
        root = self.root if rows is None else self.root[rows]
        if self.dense:
            return lambda g: torch.cholesky_solve(g.flatten(1)[..., None], root).view(g.shape)
        return lambda g: self.scale * torch.cholesky_solve(g.mT, root).mT


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
        g = found.gauss_newton.diagonal / (4 * n)
        links = found.gauss_newton.upper / (-2 * n)
        if not found.separate:  # they may average over neighbours
            links = (g[:, :-1] + g[:, 1:]) / 2
        parts = [g, links]
        if second_order:
            assert found.correction is not None
            parts.append(n * found.correction.diagonal)
        top = g.diagonal(dim1=2, dim2=3).sum(-1).amax(1)
        finite = torch.stack([x.isfinite().flatten(1).all(1) for x in parts]).all(0)
        sound = finite & (top > 0)
        eye = torch.eye(nodes.shape[-1]).to(g)
        floor = 1e2 * torch.finfo(g.dtype).eps * top
        parts[0] = g + floor[:, None, None, None] * eye
        parts = [torch.where(sound[:, None, None, None], x, eye) for x in parts]
        return cls(torch.cat(parts, 1), sound.to(g), found.gradient, found.energy)


def _rooted(blocks: Tensor, modes: int, forms: bool) -> tuple[Tensor, Tensor]:
    """Cholesky factors of the Hessians in the modes, and ``(p,)``: 1 where they are convex.

    Elsewhere the forms count half, or not at all.
    """
    if not forms:
        return _sound_root(gauss_newton(blocks, modes)), blocks.new_ones(len(blocks))
    whole = gauss_newton(blocks, modes, forms=True)
    root, info = torch.linalg.cholesky_ex(whole)
    (failed,) = read(info != 0)
    rows = failed.nonzero()[0]
    convex = (info == 0).to(blocks)
    if len(rows):
        those = placed(rows, blocks)
        few = (blocks.shape[1] + 1) // 3 * 2 - 1
        flat = gauss_newton(blocks[those, :few], modes)
        half, still = torch.linalg.cholesky_ex((whole[those] + flat) / 2)
        sound = (still == 0)[:, None, None]
        root[those] = torch.where(sound, half, _sound_root(flat))
    return root, convex


def _sound_root(matrix: Tensor) -> Tensor:  # (p, n, n) -> (p, n, n)
    """The Cholesky factor; where rounding has made it indefinite, of the diagonal."""
    root, info = torch.linalg.cholesky_ex(matrix)
    own = matrix.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(matrix.dtype).tiny)
    return torch.where((info == 0)[:, None, None], root, torch.diag_embed(own.sqrt()))
