"""What is computed from distances alone: their values, a test, a picture, heat on a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import DeviceError, DTypeError, GraphError, OptionError, ShapeError
from riemae.numerics.checks import expect_dense, expect_finite, expect_range
from riemae.numerics.random import as_generator
from riemae.solvers import DistanceMatrix, Neighbors
from riemae.statistics.arguments import takes_codes
from riemae.statistics.tangents import expect_steps

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Distances = Tensor | np.ndarray | DistanceMatrix
# A fall of the stress that ends a multidimensional scaling, relatively.
_STRESS = 1e-12
# Terms of an exponential beyond this many powers of e are nothing, and its longest time in units of
# the fastest exchange.
_DIGITS = 40
_LONGEST = 1e9


def distance_values(where: str, distances: Any, least: int) -> np.ndarray:  # -> (n, n)
    """A square matrix of distances in double precision.

    Raises:
        ShapeError: When it is not square.
        DTypeError: When it is no dense matrix of real numbers.
        DeviceError: When it has no values.
        OptionError: For too few points, or entries that are no distances.
    """
    from scipy.sparse import issparse

    if isinstance(distances, DistanceMatrix):
        distances = distances.distances
    if isinstance(distances, Tensor):
        expect_dense(where, "distances", distances)
        if distances.is_meta:
            hint = "Compute them on a device with memory."
            raise DeviceError(where, "distances with values", "a tensor on the meta device", hint)
        distances = distances.detach().cpu()
    if issparse(distances):
        hint = "What it leaves out is not a distance of 0: give M.distance_matrix(points)."
        raise DTypeError(where, "a dense matrix of distances", type(distances).__name__, hint)
    if np.iscomplexobj(distances):
        raise DTypeError(where, "real distances", "complex ones", "Take their absolute value.")
    try:
        d = np.asarray(distances, dtype=np.float64)
    except (ValueError, TypeError) as reason:
        wanted = "a matrix of numbers"
        raise DTypeError(where, wanted, str(reason), "Give M.distance_matrix(points).") from reason
    if d.ndim != 2 or d.shape[0] != d.shape[1]:
        hint = "Give M.distance_matrix(points)."
        raise ShapeError(where, "distances of shape (n, n)", str(d.shape), hint)
    if len(d) < least:
        wanted = f"at least {least} points"
        raise OptionError(where, wanted, str(len(d)), "Give more points, or ask for less.")
    bad = np.argwhere(~(np.isfinite(d) & (d >= 0)))
    if len(bad):
        i, j = bad[0].tolist()
        got = f"{d[i, j]:g} at ({i}, {j}), and {len(bad) - 1} more"
        hint = "Geodesics that failed have the length NaN: see DistanceMatrix.failed."
        raise OptionError(where, "finite distances of at least 0", got, hint)
    return d


@dataclass(frozen=True)
class EnergyTest:
    """Whether two samples have the same distribution.

    Attributes:
        statistic: The energy distance ``2 E d(x, y) − E d(x, x') − E d(y, y')`` of the samples.
        p_value: The share of random splits with a statistic as large, the samples' own counted.
        permutations: How many splits were drawn.
    """

    statistic: float
    p_value: float
    permutations: int


def energy_test(
    distances: Distances,
    second: Tensor | np.ndarray,
    *,
    permutations: int = 999,
    generator: torch.Generator | int | None = 0,
) -> EnergyTest:
    """Permutation test for equal distributions, by the energy distance of two samples.

    G. J. Székely, M. L. Rizzo, Testing for equal distributions in high dimension, InterStat 5,
    2004. It sees every difference of distributions where distances are of negative type, such as
    those of hyperbolic and Euclidean spaces and spheres; on others it sees fewer, but its level is
    right on all.

    Args:
        distances: ``(n, n)`` between all points of both samples, such as ``M.distance_matrix``
            gives.
        second: ``(n,)`` bool: which points belong to the second sample.
        permutations: Random splits.
        generator: Of the splits: a generator, or the seed of a new one.

    Raises:
        ShapeError: When the matrix is not square, or ``second`` does not fit.
        OptionError: When a sample has fewer than two points, or a distance is none.
    """
    where = "energy_test"
    d = distance_values(where, distances, 4)
    expect_range(where, "permutations", permutations, 1, integer=True, hint="It counts splits.")
    other = np.asarray(second.cpu() if isinstance(second, Tensor) else second)
    if other.shape != (len(d),) or other.dtype != bool:
        got = f"{other.dtype} {other.shape}"
        raise ShapeError(where, f"second of shape ({len(d)},), dtype bool", got, "One a point.")
    counts = int((~other).sum()), int(other.sum())
    if min(counts) < 2:
        got = f"{counts[0]} and {counts[1]}"
        raise OptionError(where, "two points in each sample at least", got, "Give more.")
    source = as_generator(where, generator)
    even = torch.as_tensor((d + d.T) / 2)
    sides = [torch.as_tensor(other).double()]
    device = "cpu" if source is None else source.device
    for _ in range(permutations):
        order = torch.randperm(len(d), generator=source, device=device).cpu()
        sides.append(sides[0][order])
    values = _energy(even, torch.stack(sides))
    # Equal splits may differ in rounding.
    slack = 1e-12 * float(even.mean())
    as_large = int((values[1:] >= values[0] - slack).sum())
    return EnergyTest(float(values[0]), (1 + as_large) / (1 + permutations), permutations)


def _energy(d: Tensor, second: Tensor) -> Tensor:  # (n, n), (s, n) -> (s,)
    """Energy distances of splits, by means over all pairs, a point with itself included."""
    first = 1 - second
    one, two = first.sum(1), second.sum(1)
    across = ((first @ d) * second).sum(1) / (one * two)
    within = ((first @ d) * first).sum(1) / one.square()
    within = within + ((second @ d) * second).sum(1) / two.square()
    return 2 * across - within


class GeodesicMDS:
    """Points of the plane, or of d dimensions, whose distances are nearest to given ones.

    It lowers the stress ``Σ w_ij (|y_i − y_j| − d_ij)²`` by majorisation (J. de Leeuw, 1977), over
    all pairs of a matrix, or over those of a neighbour graph. It begins with classical scaling of
    the matrix, or of shortest paths in the graph, as Isomap does.

    Args:
        n_components: d.
        max_steps: Rounds of majorisation.

    Attributes:
        embedding_: ``(n, d)``.
        stress_: The root of the stress over that of placing all points in one.
        n_iter_: Rounds made.
        converged_: Whether the stress had settled.

    Raises:
        OptionError: For an option out of range.
    """

    def __init__(self, n_components: int = 2, *, max_steps: int = 300) -> None:
        where = "GeodesicMDS"
        expect_range(where, "n_components", n_components, 1, integer=True, hint="Axes.")
        expect_steps(where, "max_steps", max_steps)
        self.n_components = n_components
        self.max_steps = max_steps

    def fit(self, distances: Distances | Neighbors) -> GeodesicMDS:  # (n, n)
        """Place the points.

        Raises:
            ShapeError: When a matrix is not square.
            OptionError: For fewer points than axes and one, or distances that are none.
            GraphError: When a neighbour graph is not connected.
        """
        where = "GeodesicMDS.fit"
        if isinstance(distances, Neighbors):
            i, j, d, whole = _edges(where, distances)
        else:
            whole = distance_values(where, distances, self.n_components + 1)
            whole = (whole + whole.T) / 2
            i, j = np.triu_indices(len(whole), 1)
            d = whole[i, j]
        y = _classical(whole, self.n_components)
        scale = float((d**2).sum())
        before = np.inf
        self.converged_ = False
        solve = _majoriser(i, j, len(whole))
        for step in range(self.max_steps + 1):
            self.n_iter_ = step
            now = np.linalg.norm(y[i] - y[j], axis=1)
            stress = float(((now - d) ** 2).sum())
            if before - stress <= _STRESS * scale:
                self.converged_ = True
                break
            if step == self.max_steps:
                break
            before = stress
            y = solve(_pulled(i, j, np.divide(d, now, where=now > 0, out=np.zeros_like(d)), y))
        self.embedding_ = torch.as_tensor(y)
        self.stress_ = (stress / scale) ** 0.5 if scale else 0.0
        return self

    @takes_codes
    def fit_transform(self, distances: Distances | Neighbors) -> Tensor:  # -> (n, d)
        """``fit``, and its embedding."""
        return self.fit(distances).embedding_

    def __repr__(self) -> str:
        told = f", stress {self.stress_:.3g}" if hasattr(self, "stress_") else ""
        return f"GeodesicMDS({self.n_components} axes{told})"


def _edges(where: str, found: Neighbors) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a neighbour graph with their distances, and shortest paths in it.

    Raises:
        GraphError: When it is not connected.
    """
    from scipy.sparse import triu
    from scipy.sparse.csgraph import shortest_path

    matrix = _symmetric(found)
    whole = shortest_path(matrix, directed=False)
    if not np.isfinite(whole).all():
        pieces = len(np.unique(np.isfinite(whole), axis=0))
        hint = "Raise k, or give M.distance_matrix(points)."
        raise GraphError(where, "a connected neighbour graph", f"{pieces} parts", hint)
    upper = triu(matrix, 1).tocoo()
    return upper.row, upper.col, upper.data, whole


def _symmetric(found: Neighbors) -> csr_matrix:
    """Distances of points of which one is a neighbour of the other; those of copies are 0."""
    from scipy.sparse import csr_matrix

    n = found.points
    rows, columns, distances, _ = (x.cpu().numpy() for x in found.edges())
    key = np.concatenate([rows * n + columns, columns * n + rows])
    # scipy's own union would drop entries of 0. Both directions are one geodesic.
    key, place = np.unique(key, return_index=True)
    both = np.concatenate([distances, distances])[place]
    return csr_matrix((both, (key // n, key % n)), shape=(n, n))


def _classical(d: np.ndarray, axes: int) -> np.ndarray:  # (n, n) -> (n, axes)
    """Classical scaling: the leading eigenvectors of the doubly centred squares."""
    from scipy.linalg import eigh

    squares = d**2
    centred = squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()
    n = len(d)
    values, vectors = eigh(-centred / 2, subset_by_index=[n - axes, n - 1])
    order = np.argsort(values)[::-1]
    vectors = vectors[:, order]
    # Of each axis, the entry of largest size is positive: signs are nobody's choice.
    largest = np.abs(vectors).argmax(0)
    vectors = vectors * np.sign(vectors[largest, np.arange(axes)])
    return vectors * np.sqrt(np.maximum(values[order], 0.0))


def _pulled(i: np.ndarray, j: np.ndarray, ratio: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``B(y) y`` of the majorisation: pairs pull towards their distances."""
    out = np.zeros_like(y)
    step = ratio[:, None] * (y[i] - y[j])
    np.add.at(out, i, step)
    np.add.at(out, j, -step)
    return out


def _majoriser(i: np.ndarray, j: np.ndarray, n: int) -> Any:
    """``b ↦ V⁺ b`` for the Laplacian V of the pairs: the mean of b is 0."""
    if len(i) == n * (n - 1) // 2:
        return lambda b: b / n
    from scipy.sparse import coo_matrix, identity
    from scipy.sparse.csgraph import laplacian
    from scipy.sparse.linalg import splu

    ones = np.ones(2 * len(i))
    graph = coo_matrix((ones, (np.concatenate([i, j]), np.concatenate([j, i]))), shape=(n, n))
    # One point is held, and the mean is taken off afterwards.
    matrix = laplacian(graph.tocsr()).tocsc()[1:, 1:] + 0 * identity(n - 1, format="csc")
    factors = splu(matrix)

    def solve(b: np.ndarray) -> np.ndarray:
        y = np.concatenate([np.zeros((1, b.shape[1])), factors.solve(b[1:])])
        return y - y.mean(0)

    return solve


@takes_codes
def heat_kernel(
    neighbors: Neighbors,
    time: float,
    dimension: int,
    values: Tensor | None = None,
    *,
    bandwidth: float | None = None,
) -> Tensor:  # (n,) or (n, c) -> the same; or (n, n)
    """Heat that spreads over the data for some time: ``exp(t Δ)`` on the neighbour graph.

    The Laplacian is that of diffusion maps with α = 1, which tends to the Laplace–Beltrami operator
    however the points are distributed (R. R. Coifman, S. Lafon, Diffusion maps, Appl. Comput.
    Harmon. Anal. 21, 2006): weights ``exp(−d² / 4 ε)``, divided by the degrees of both ends, rows
    normalised. A row's steps have the mean square ``2 m ε`` for a kernel that reaches on and on;
    with k neighbours they have less, and the row is scaled by what they have. Heat that is even
    stays so. At the data's boundary none is lost.

    Args:
        neighbors: Of the points among themselves, as ``M.neighbors`` gives them.
        time: At least 0, in squared units of length.
        dimension: ``m``, of the manifold: latent dimensions.
        values: Heat at the beginning, ``(n,)`` or ``(n, c)``; by default a unit at each point in
            turn, which gives the matrix.
        bandwidth: ``√ε``, in units of length; by default such that the k-th neighbour weighs
            ``e⁻²`` where distances are as in the median row.

    Returns:
        Heat after the time; of the matrix, column j is what a unit at point j has become.

    Raises:
        DTypeError: When ``neighbors`` are none, or ``values`` no tensor.
        NonFiniteError: When a value is NaN or infinite.
        OptionError: For neighbours of other queries, or an option out of range.
        GraphError: When a point has no neighbour.
        ShapeError: When ``values`` does not fit.
    """
    where = "heat_kernel"
    if not isinstance(neighbors, Neighbors):
        got = type(neighbors).__name__
        raise DTypeError(where, "the result of M.neighbors", got, "M.neighbors(points, k=15)")
    expect_range(where, "time", time, 0.0, hint="It is how long heat spreads.")
    expect_range(where, "dimension", dimension, 1, integer=True, hint="Of the manifold.")
    n = neighbors.points
    if not neighbors.among_themselves:
        hint = "Leave queries out."
        raise OptionError(where, "neighbours of the points among themselves", "others", hint)
    if bool((neighbors.indices[:, 0] < 0).any()):
        lonely = int((neighbors.indices[:, 0] < 0).sum())
        raise GraphError(where, "a neighbour for each point", f"{lonely} without", "See .failed.")
    if values is not None:
        expect_dense(where, "values", values)
        if values.ndim not in (1, 2) or len(values) != n:
            got = str(tuple(values.shape))
            hint = "One for each point."
            raise ShapeError(where, f"values of shape ({n},) or ({n}, c)", got, hint)
        expect_finite(where, "values", values)
    if bandwidth is None:
        farthest = neighbors.distances.nan_to_num(-1.0).amax(1)
        bandwidth = float(farthest.median()) / math.sqrt(8)
        if not bandwidth > 0:
            wanted, got = "neighbours at a distance", "copies of one another in the median row"
            raise OptionError(where, wanted, got, "Leave copies out, or give a bandwidth.")
    expect_range(where, "bandwidth", bandwidth, 0.0, above=True, hint="It is a length.")
    laplacian = _diffusion(_symmetric(neighbors), float(bandwidth) ** 2, int(dimension))
    start = np.eye(n) if values is None else values.detach().cpu().double().numpy()
    spread = torch.as_tensor(_exponential(laplacian, float(time), start))
    if values is not None and values.is_floating_point():
        return spread.to(values)
    return spread.to(neighbors.distances)


def _exponential(laplacian: csr_matrix, time: float, values: np.ndarray) -> np.ndarray:
    """``exp(t L) v`` by Chebyshev's polynomials.

    A row of L sums to 0, and its entries off the diagonal to the rate of its point, so that with
    the largest rate ρ the spectrum of ``1 + L / ρ`` is in [−1, 1], where ``exp(τ (x − 1))`` is
    ``e^−τ (I_0(τ) + 2 Σ I_k(τ) T_k(x))`` with Bessel's functions (H. Tal-Ezer, R. Kosloff, J. Chem.
    Phys. 81, 1984). For long times that takes about ``6 √τ`` products.

    Raises:
        OptionError: When the time is too long for that.
    """
    from scipy.sparse import identity
    from scipy.special import ive

    rate = -float(laplacian.diagonal().min(initial=0.0))
    tau = time * rate
    if not tau > 0:
        return values
    if tau > _LONGEST:
        hint = "By then heat is even, in each connected part of all but the largest graphs."
        wanted = f"a time of at most {_LONGEST / rate:.3g}"
        raise OptionError("heat_kernel", wanted, f"{time:.3g}", hint)
    inner = (laplacian / rate + identity(laplacian.shape[0], format="csr")).tocsr()
    count = int(math.sqrt(2 * _DIGITS * tau)) + _DIGITS
    weights = 2 * ive(np.arange(count), tau)
    weights[0] /= 2
    before, now = values, inner @ values
    total = weights[0] * before + weights[1] * now
    for weight in weights[2:]:
        before, now = now, 2 * (inner @ now) - before
        total += weight * now
    return np.asarray(total / weights.sum())


def _diffusion(distances: csr_matrix, scale: float, m: int) -> csr_matrix:
    """The Laplacian of a graph of distances, as in :func:`heat_kernel`; ``scale`` is ε."""
    from scipy.sparse import diags, identity

    n = distances.shape[0]
    squares = distances.astype(np.float64)
    squares.data = squares.data**2
    weights = squares.copy()
    weights.data = np.exp(-squares.data / (4 * scale))
    weights = (weights + identity(n, format="csr")).tocsr()
    density = diags(1 / np.asarray(weights.sum(1))[:, 0])
    weights = density @ weights @ density
    walk = (diags(1 / np.asarray(weights.sum(1))[:, 0]) @ weights).tocsr()
    step = np.asarray(walk.multiply(squares).sum(1))[:, 0]
    # Points of which all neighbours are copies stay where they are.
    rate = np.divide(2 * m, step, where=step > 0, out=np.zeros(n))
    found: csr_matrix = (diags(rate) @ (walk - identity(n, format="csr"))).tocsr()
    return found
