"""What a report measures: geodesics between sampled pairs, and local measures at the codes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from riemae import scores
from riemae.exceptions import (
    ApproximationWarning,
    DifferentiationError,
    FallbackWarning,
    SingularMetricError,
    SmoothnessWarning,
)
from riemae.manifold import Manifold
from riemae.reporting.lattice import Lattice, outputs_defined, routes, tabulated, where_defined
from riemae.reporting.periods import periods_of, short_way
from riemae.solvers import Curve, GeodesicResult

_LOCAL = 2000  # codes at which local measures are taken
_CURVED = 32  # dimensions up to which curvature is computed
_SECOND = 1200  # second derivatives for it, over all codes
_DATA = 2000  # samples whose neighbourhoods are compared
_NODES = 128  # a side of the lattice that gives start curves: gaps between classes are narrow
_MARGIN = 0.15  # of that lattice around the codes
_SEGMENTS = 32  # of a start curve
_DETOUR = 1.15  # straight lines that are no longer than this times the geodesic are starts too
_SAME = 5.0  # times the accuracy: geodesics whose lengths are closer are one and the same


@dataclass(frozen=True, eq=False)
class Pairs:
    """Geodesics between pairs of the codes, and what else joins them.

    Attributes:
        index: Which codes, ``(p, 2)``.
        result: Their geodesics.
        straight: Lengths of the straight latent lines, ``(p,)``; NaN where one leaves the domain.
            In a periodic coordinate they take the shorter way round.
        euclidean: Distances of the codes in the latent space, ``(p,)``, by the same ways.
        gap: How much longer a second geodesic is, relatively, ``(p,)``; NaN where none was found.
    """

    index: Tensor
    result: GeodesicResult
    straight: Tensor
    euclidean: Tensor
    gap: Tensor

    @property
    def usable(self) -> Tensor:
        """``(p,)`` bool: pairs whose lengths say something."""
        length = self.result.length
        return self.result.converged & length.isfinite() & (length > 0) & (self.euclidean > 0)

    @property
    def stretch(self) -> Tensor:
        """``(p,)``, data-space length per unit of the plot, in units of its median; NaN for none.

        1 everywhere is a plot of which one can read off distances.
        """
        ratio = self.result.length / self.euclidean
        ratio = torch.where(self.usable, ratio, torch.nan)
        return ratio / ratio.nanmedian()

    def worst(self, count: int) -> list[int]:
        """Pairs whose distances the plot shows too long or too short by most, the worst first."""
        stretch = self.stretch.log().abs().nan_to_num(-1.0)
        order = stretch.argsort(descending=True).tolist()
        return [k for k in order if stretch[k] >= 0][:count]


def sampled_pairs(n: int, count: int, seed: int) -> Tensor:  # -> (p, 2)
    """Different pairs of different codes, all of them if there are no more than ``count``."""
    every = n * (n - 1) // 2
    generator = torch.Generator().manual_seed(seed)
    if every <= max(count, 4096):
        i, j = torch.triu_indices(n, n, 1)
        chosen = torch.randperm(every, generator=generator)[:count].sort().values
        return torch.stack([i[chosen], j[chosen]], 1)
    draws = torch.randint(n, (4 * count, 2), generator=generator)
    draws = draws[draws[:, 0] != draws[:, 1]].sort(1).values
    seen: dict[tuple[int, int], None] = dict.fromkeys((a, b) for a, b in draws.tolist())
    return torch.tensor(list(seen)[:count])


@contextmanager
def in_the_report() -> Iterator[None]:
    """Without warnings of what a report says itself.

    What is approximate about a length is in its error bar; kinks and singular metrics have entries.
    """
    with warnings.catch_warnings():
        for kind in (ApproximationWarning, FallbackWarning, SmoothnessWarning):
            warnings.simplefilter("ignore", kind)
        yield


def solve_pairs(
    M: Manifold,
    z: Tensor,
    index: Tensor,
    rtol: float | None,
    told: Callable[[int, int], object],
) -> Pairs:
    """Geodesics and straight lines between pairs of codes; pairs that fail say so.

    In two dimensions the start curves are shortest paths on a lattice, and straight lines as well
    where these are not much longer: without them, many geodesics of a rough decoder are local ones.
    """
    a, b = z[index[:, 0]], z[index[:, 1]]
    way = short_way(M, b - a)
    straight = straight_lengths(M, a, b)
    with in_the_report():
        if z.shape[1] == 2 and M.latent is None:
            result, gap = _solve_in_the_plane(M, z, a, b, straight, rtol, told)
        else:
            result = M.geodesic(a, b, rtol=rtol, throw=False, progress=told)
            gap = result.gap
    return Pairs(index, result, straight, way.norm(dim=1), gap)


def _solve_in_the_plane(
    M: Manifold,
    z: Tensor,
    a: Tensor,
    b: Tensor,
    straight: Tensor,
    rtol: float | None,
    told: Callable[[int, int], object],
) -> tuple[GeodesicResult, Tensor]:
    """The shorter geodesics from two starts, and how much longer the others are."""
    total = 2 * len(a)
    table = tabulated(M, Lattice.around(z, (_NODES, _NODES), _MARGIN), z)
    start = Curve.through(routes(table, a, b), _SEGMENTS)

    def first(done: int, _: int) -> None:
        told(done, total)

    found = M.geodesic(a, b, rtol=rtol, init=start, throw=False, progress=first)
    gap = torch.full_like(found.length, torch.nan)
    rows = ((straight < _DETOUR * found.length) | ~found.converged).nonzero()[:, 0]
    if not len(rows):
        return found, gap
    before = total - len(rows)

    def second(done: int, _: int) -> None:
        told(before + done, total)

    other = M.geodesic(a[rows], b[rows], rtol=rtol, n_starts=1, throw=False, progress=second)
    own = found[rows]
    better = other.converged & ((other.length < own.length) | ~own.converged)
    longer = (own.length - other.length).abs() / torch.minimum(own.length, other.length)
    two = own.converged & other.converged & (longer > _SAME * found.rtol)
    gap[rows] = torch.where(two, longer, torch.nan)
    choice = torch.arange(len(a), device=a.device)
    choice[rows[better]] = len(a) + better.nonzero()[:, 0]
    both = GeodesicResult.cat([found, other], torch.Size([len(a) + len(rows)]))
    return both[choice], gap


def straight_lengths(M: Manifold, a: Tensor, b: Tensor) -> Tensor:  # (p, m), (p, m) -> (p,)
    """Lengths of straight latent lines, the short way round; NaN where one leaves the domain."""
    m = a.shape[1]
    b = a + short_way(M, b - a)

    def measure(rows: Tensor) -> Tensor:
        line = Curve.line(rows[:, :m], rows[:, m:], 32)
        return M.length(line, rtol=1e-3, throw=False)

    return where_defined(measure, torch.cat([a, b], 1))


def ranks_agree(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; NaN where one does not vary."""
    if len(a) < 3:
        return float("nan")
    first, second = _ranks(a.double()), _ranks(b.double())
    first, second = first - first.mean(), second - second.mean()
    size = first.norm() * second.norm()
    return float(first @ second / size) if size > 0 else float("nan")


def _ranks(x: Tensor) -> Tensor:
    _, group, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    mean = last - (counts - 1) / 2
    return mean[group]


@dataclass(frozen=True, eq=False)
class Local:
    """Measures of the metric at some of the codes.

    Attributes:
        condition: ``λ_max/λ_min``, ``(k,)``; infinite where the metric is singular.
        volume: ``√det G``, ``(k,)``.
        curvature: Scalar curvature halved, which is the Gaussian one of a surface, ``(k,)``; empty
            for curves and where it cannot be computed.
        vor: The score VoR; infinite where the mean metric is singular.
        isometry: ``Σ (1 − λ_i)²`` after the best common scale, on average.
        kinks: What makes the decoder piecewise linear, or None.
        singular: Share of the codes where the metric is singular or undefined.
    """

    condition: Tensor
    volume: Tensor
    curvature: Tensor
    vor: float
    isometry: float
    kinks: str | None
    singular: float


def measure_locally(M: Manifold, z: Tensor, seed: int) -> Local:
    """Local measures at the codes, or at some of them."""
    if len(z) > _LOCAL:
        generator = torch.Generator().manual_seed(seed)
        z = z[torch.randperm(len(z), generator=generator)[:_LOCAL].sort().values]
    m = z.shape[1]
    condition = where_defined(lambda rows: scores.condition_number(M, rows), z)
    volume = where_defined(M.volume_density, z)
    good = condition.isfinite() & volume.isfinite() & (volume > 0)
    kept = z[good]
    vor = isometry = float("nan")
    kinks = None
    if len(kept) > 1:
        kinks = M.kinks(kept[:64])
        try:
            isometry = float(M.distortion(kept, kind="scaled_isometry"))
            vor = float(scores.vor(M, kept))
        except SingularMetricError:
            vor = float("inf")
    curvature = z.new_empty(0)
    if 1 < m <= _CURVED and kinks is None and len(kept) > 1:
        curvature = curvature_at(M, kept[: _SECOND // (m * (m + 1) // 2)])
    return Local(condition, volume, curvature, vor, isometry, kinks, float((~good).double().mean()))


def curvature_at(M: Manifold, z: Tensor) -> Tensor:  # (k, m) -> (k,)
    """Half of the scalar curvature; empty where the decoder or metric does not allow it."""
    try:
        return where_defined(M.scalar_curvature, z, rows=256) / 2
    except DifferentiationError:
        return z.new_empty(0)


def decoded(M: Manifold, z: Tensor, rows: int = 1024) -> Tensor:  # (k, m) -> (k, D)
    """Decoded values, or means of decoded distributions; NaN outside the domain."""
    from riemae.autoencoders.diagnostics import expected_data

    known = outputs_defined(M, z)
    return where_defined(lambda part: expected_data(M, part, None), z, rows, known=known)


@dataclass(frozen=True)
class Fidelity:
    """What the codes say about given data.

    Attributes:
        overlap: Share of the codes whose nearest other code is not among the nearest tenth of the
            others in the data.
        explained: Share of the variance of the data that the decoded codes reproduce.
    """

    overlap: float
    explained: float


def compare_with_data(M: Manifold, z: Tensor, x: Tensor, seed: int) -> Fidelity:
    """Overlap and explained variance of data ``(n, D)``."""
    from riemae.autoencoders.diagnostics import overlap_share

    if len(z) > _DATA:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(z), generator=generator)[:_DATA].sort().values.to(z.device)
        z, x = z[chosen], x[chosen]
    y = decoded(M, z)
    good = y.isfinite().all(-1)
    kept = x[good].to(y)
    total = float((kept - kept.mean(0)).square().sum())
    left = float((kept - y[good]).square().sum())
    explained = 1 - left / total if total else float("nan")
    return Fidelity(overlap_share(z, x, partial(plotted_distances, M)), explained)


def plotted_distances(M: Manifold, a: Tensor, b: Tensor) -> Tensor:  # (k, m), (n, m) -> (k, n)
    """Distances in the plot; in a periodic coordinate by the shorter way round."""
    if all(period is None for period in periods_of(M, a.shape[1])):
        return torch.cdist(a, b)
    return short_way(M, b - a[:, None]).norm(dim=-1)
