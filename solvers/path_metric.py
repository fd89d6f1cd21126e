"""A metric of the path that is cheap to invert: the preconditioner of conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.solvers.linear import BlockTridiagonal
from riemae.solvers.space import Space

# Nodes per curve at which the metric is sketched, or taken in full; in many dimensions, where that
# costs more than steps, it is taken in full at fewer.
SAMPLES, FEW_SAMPLES = 4, 2
# How a floor under the eigenvalues is raised, and up to which share of the largest.
_RAISED = 1e4
_HIGHEST_FLOOR = 1e-2


@dataclass(frozen=True)
class PathMetric:
    """``2n T ⊗ Ĝ``, a metric of the path.

    T are the second differences along ``n − 1`` interior nodes, Ĝ is a sketch of the curve's mean
    metric. Where the metric is constant, and the sketch complete, this is the Hessian itself.

    Attributes:
        basis: ``(p, m, r)``, orthonormal columns.
        values: ``(p, r)``, eigenvalues of Ĝ on them, positive.
        rest: ``(p,)``, its value on all that is orthogonal to them, positive.
    """

    basis: Tensor
    values: Tensor
    rest: Tensor

    @classmethod
    def sketched(cls, space: Space, nodes: Tensor, rank: int) -> PathMetric:  # (p, n + 1, m)
        """Nyström's approximation of the mean of G over a few nodes.

        It takes ``rank`` products with fixed probes.
        ``Ĝ = Y (ΩᵀY)⁻¹ Yᵀ`` with ``Y = Ḡ Ω``, and its smallest eigenvalue in all other directions.

        References:
            Z. Frangella, J. A. Tropp, M. Udell, Randomized Nyström preconditioning, SIAM J. Matrix
            Anal. Appl., 2023.
        """
        m = nodes.shape[-1]
        rank = min(rank, m)
        eps = torch.finfo(nodes.dtype).eps
        probes = _probes(m, rank).to(nodes)
        product = _mean_metric(space, _sampled(nodes), probes)
        core = probes.T @ product
        core = (core + core.mT) / 2
        # Of the rounding's size: the smallest eigenvalues of Ĝ are nothing but it.
        pivots = core.diagonal(dim1=-2, dim2=-1)
        trace = pivots.sum(-1)
        shift = eps * trace * m
        root, sound = _sound_root(core, shift)
        shifted = product + shift[:, None, None] * probes
        usable = torch.where(sound[:, None, None], shifted, 0.0)
        rows = torch.linalg.solve_triangular(root, usable.mT, upper=False)
        half = rows.mT  # Ĝ = half halfᵀ
        basis, values, rest = _spectrum(half)
        rest = torch.where(sound, rest, torch.nan)
        return cls(basis, values, rest)

    @classmethod
    def exact(cls, space: Space, nodes: Tensor) -> PathMetric:  # (p, n + 1, m)
        """The mean of G over a few nodes, in full."""
        # One curve at a time: its tangents are many enough, and the memory does not grow.
        sampled = [sampled_metric(space, some, FEW_SAMPLES) for some in nodes.split(1)]
        mean = torch.cat(sampled).mean(1)
        sound = mean.isfinite().flatten(1).all(1)
        eye = torch.eye(nodes.shape[-1]).to(mean)
        values, basis = torch.linalg.eigh(torch.where(sound[:, None, None], mean, eye))
        # Nothing is orthogonal to all of the basis: the largest value cancels least.
        top = values[:, -1]
        values = torch.maximum(values, 1e2 * torch.finfo(mean.dtype).eps * top[:, None])
        return cls(basis, values, torch.where(sound, top, torch.nan))

    def select(self, rows: Tensor) -> PathMetric:
        """The metrics of the curves at ``rows``."""
        basis = self.basis[rows]
        values = self.values[rows]
        rest = self.rest[rows]
        return PathMetric(basis, values, rest)

    def softened(self, wanted: Tensor) -> tuple[PathMetric, Tensor]:  # (p,)
        """The metrics, in those that are wanted with a higher floor under all values.

        Each time it is 10⁴ times as high as the smallest value was, at most a hundredth of the
        largest. Where it has come to that, nothing changes.

        Returns:
            The metrics, and ``(p,)`` bool: which of them have changed.
        """
        least, top = self._range()
        softened = wanted & (least < _HIGHEST_FLOOR * top)
        raised = torch.minimum(_RAISED * least, _HIGHEST_FLOOR * top)
        floor = torch.where(softened, raised, 0.0)
        return self._above(floor), softened

    def raised(self, share: Tensor) -> PathMetric:  # (p,)
        """The metrics with a share of their mean value added to all values."""
        m = self.basis.shape[1]
        real = self.basis.abs().amax(1) > 0
        total = torch.where(real, self.values, 0.0).sum(1) + (m - real.sum(1)) * self.rest
        more = share * total / m
        return PathMetric(self.basis, self.values + more[:, None], self.rest + more)

    def floored(self, share: float) -> PathMetric:
        """The metrics with values of at least a share of their largest one."""
        if share <= 0:
            return self
        _, top = self._range()
        return self._above(share * top)

    def _range(self) -> tuple[Tensor, Tensor]:  # (p,), (p,)
        """The least and the largest value."""
        sizes = self.basis.abs().amax(1)
        real = sizes > 0  # not those that stand for the rest
        known = torch.where(real, self.values, self.rest[:, None])
        least = torch.minimum(known.amin(1), self.rest)
        top = torch.maximum(known.amax(1), self.rest)
        return least, top

    def _above(self, floor: Tensor) -> PathMetric:  # (p,)
        values = torch.maximum(self.values, floor[:, None])
        rest = torch.maximum(self.rest, floor)
        return PathMetric(self.basis, values, rest)

    def solve(self, r: Tensor) -> Tensor:  # (p, n - 1, m)
        """``(2n T ⊗ Ĝ)⁻¹ r``, in O(n m r)."""
        n = r.shape[1] + 1
        return self.inverse(_integrated(r) / (2 * n))

    def inverse(self, u: Tensor) -> Tensor:  # (p, k, m)
        """``Ĝ⁻¹ u``, in O(k m r)."""
        parts = u @ self.basis
        rest = self.rest[:, None]
        weights = 1 / self.values - 1 / rest
        along = parts * weights[:, None]
        across = u / rest[:, None]
        return across + along @ self.basis.mT


def sampled_metric(
    space: Space, nodes: Tensor, count: int = SAMPLES
) -> Tensor:  # (p, n + 1, m) -> (p, s, m, m)
    """G in the middle of ``count`` equally long parts of curves; NaN for one that has no metric.

    What is taken is a fourth of the Gauss-Newton blocks of the energy of a curve with these nodes
    alone, which may average over neighbours.

    Eigenvalues within rounding of 0, relative to the largest at any place, are raised.
    """
    places = (torch.arange(count) + 0.5) * ((nodes.shape[1] - 1) / count)
    inner = nodes[:, places.round().long()]
    coarse = torch.cat([nodes[:, :1], inner, nodes[:, -1:]], 1)
    # By an expansion, in which a curve's bits do not depend on the other curves.
    blocks = space.expand(coarse, second_order=False).gauss_newton.diagonal
    g = blocks / (4 * (count + 1))
    sound = g.isfinite().flatten(1).all(1)
    g = torch.where(sound[:, None, None, None], g, 0.0)
    top = g.diagonal(dim1=2, dim2=3).sum(-1).amax(1)
    floor = 1e2 * torch.finfo(g.dtype).eps * top
    eye = torch.eye(nodes.shape[-1]).to(g)
    raised = g + floor[:, None, None, None] * eye
    return torch.where((sound & (top > 0))[:, None, None, None], raised, torch.nan)


def laplacian(samples: Tensor, n: int) -> BlockTridiagonal:  # (p, s, m, m)
    """The Hessian of ``n Σ |z_{i+1} − z_i|²_G``, with G interpolated between samples, in G fixed.

    Positive definite, as every sample is.
    """
    s = samples.shape[1]
    middle = (torch.arange(n, dtype=samples.dtype, device=samples.device) + 0.5) / n
    place = (middle * s - 0.5).clamp(0, s - 1)
    first = place.floor().long().clamp(max=s - 2)
    share = (place - first)[:, None, None]
    links = 2 * n * torch.lerp(samples[:, first], samples[:, first + 1], share)
    return BlockTridiagonal(links[:, :-1] + links[:, 1:], -links[:, 1:-1])


def _sampled(nodes: Tensor) -> Tensor:  # (p, n + 1, m) -> (p, s, m)
    """A few nodes of every curve, evenly spaced and without the ends."""
    count = nodes.shape[1]
    looks = min(SAMPLES, count) + 2
    evenly = torch.linspace(0, count - 1, looks)
    inner = evenly[1:-1]
    where = inner.round().long()
    return nodes[:, where]


def _spectrum(half: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # -> (p, m, r), (p, r), (p,)
    """Eigenvectors and eigenvalues of ``half halfᵀ``, and its smallest eigenvalue.

    Directions within rounding of zero are not orthogonal to the others: they are left to the rest,
    with 0 for a vector and 1 for a value.
    """
    number = torch.finfo(half.dtype)
    gram = half.mT @ half
    squares, turn = torch.linalg.eigh(gram)
    values = squares.clamp(min=0)
    top = values[:, -1:]
    rounding = 1e2 * number.eps * top
    values = torch.maximum(values, rounding)
    positive = squares.clamp(min=number.tiny)
    roots = positive.sqrt()
    basis = half @ turn / roots[:, None]
    clear = squares > 1e3 * number.eps * top
    basis = torch.where(clear[:, None], basis, 0.0)
    clear_values = torch.where(clear, values, torch.inf)
    rest = clear_values.amin(-1)
    values = torch.where(clear, values, 1.0)
    return basis, values, rest


def _sound_root(core: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The Cholesky factor of ``core + shift``, and where it is sound.

    The identity elsewhere.
    """
    eye = torch.eye(core.shape[-1]).to(core)
    shifted = core + shift[:, None, None] * eye
    root, info = torch.linalg.cholesky_ex(shifted)
    finite = root.isfinite().all((1, 2))
    sound = (info == 0) & finite & (shift > 0)
    factor = torch.where(sound[:, None, None], root, eye)
    return factor, sound


def _integrated(f: Tensor) -> Tensor:  # (p, n - 1, m)
    """``T⁻¹ f``, the discrete solution of ``−u″ = f`` with zero ends.

    The tridiagonal system is solved by two running sums.
    """
    n = f.shape[1] + 1
    fall = f.cumsum(1)
    # Σ_{j<i} (i − j) f_j, i = 1 … n
    zero = torch.zeros_like(f[:, :1])
    from_zero = torch.cat([zero, fall], 1)
    bent = from_zero.cumsum(1)
    node = torch.arange(1, n, device=f.device, dtype=f.dtype)
    ramp = node[:, None] / n
    last = bent[:, -1:]
    return ramp * last - bent[:, :-1]


def _mean_metric(
    space: Space, points: Tensor, probes: Tensor
) -> Tensor:  # (p, s, m), (m, r) -> (p, m, r)
    """``Ḡ Ω``, as the gradient of ``½ |v|²_G`` in v."""
    p, s, m = points.shape
    r = probes.shape[1]
    with torch.enable_grad():
        every = points.detach()[:, :, None]
        z = every.expand(p, s, r, m).reshape(-1, m)
        directions = probes.T.expand(p, s, r, m)
        flat = directions.reshape(-1, m).clone()
        v = flat.requires_grad_()
        lengths = space.norm(z, v)
        squares = lengths.square()
        half = squares.sum() / 2
        (product,) = torch.autograd.grad(half, v, materialize_grads=True)
    products = product.view(p, s, r, m)
    return products.mean(1).mT


def _probes(m: int, rank: int) -> Tensor:
    """Orthonormal columns, always the same.

    A curve's bits must not depend on its neighbours, nor on the clock.
    """
    fixed = torch.Generator().manual_seed(0)
    gaussian = torch.randn(m, rank, generator=fixed, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q
