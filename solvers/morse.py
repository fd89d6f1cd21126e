"""The Morse index of curves that were found without second derivatives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from riemae.solvers.hooks import products
from riemae.solvers.path_metric import PathMetric
from riemae.solvers.products import Product
from riemae.solvers.result import GeodesicResult
from riemae.solvers.space import Space

# Segments on which an index is counted: curvature shows on few.
_FEWEST, _MOST = 8, 32
# Latent dimensions from which on products with the Hessian cost less than the Hessian.
_MATRIX_FREE_FROM = 64
# Of Lanczos' method: products from one start, at least and at most; up to how many dimensions it
# works in the whole mean metric, and the rank of its sketch beyond; eigenvalues that count as 0;
# and how sure the lowest one must be.
_ENOUGH, _PRODUCTS = 12, 120
_FULL, _SKETCH = 768, 32
_ZERO = 1e-6
_SURE = 0.7


def certified(space: Space, result: GeodesicResult) -> GeodesicResult:  # a flat batch (p,)
    """The result with the Morse index of pairs that have converged without one.

    It is the number of directions in which the energy of the discrete curve falls: 0 for a minimum.
    Below 64 dimensions it is the inertia of the Hessian; from there on Lanczos' method counts
    negative eigenvalues by products with the Hessian, one after the other. Where it cannot tell,
    the index stays −1.

    Args:
        space: The space.
        result: Of ``p`` pairs.

    References:
        B. N. Parlett, The Symmetric Eigenvalue Problem, 1998, chapter 13.
    """
    rows = (result.converged & (result.index < 0)).nonzero().flatten()
    if not len(rows):
        return result
    segments = min(max(result.curve.segments, _FEWEST), _MOST)
    nodes = result.curve[rows].knots(segments)
    if nodes.shape[-1] < _MATRIX_FREE_FROM:
        hessian = space.expand(nodes, True).hessian
        assert hessian is not None
        found = hessian.negative_eigenvalues()
    else:
        # One curve at a time: the graph of its points is kept for all products.
        found = torch.cat([_counted(space, one) for one in nodes.split(1)])
    index = result.index.clone()
    index[rows] = found.to(index)
    return replace(result, index=index)


def _counted(space: Space, nodes: Tensor) -> Tensor:  # (1, n + 1, m) -> (1,)
    """The number of negative eigenvalues of the Hessian, −1 where it is unknown."""
    hessian = products(space, nodes).hessian
    _, count, m = nodes.shape
    if m <= _FULL:
        metric = PathMetric.exact(space, nodes)
    else:
        metric = PathMetric.sketched(space, nodes, _SKETCH)
    unknown = torch.tensor([-1])
    if not bool((metric.rest > 0).all()):
        return unknown
    generator = torch.Generator().manual_seed(0)
    known: list[tuple[Tensor, Tensor]] = []
    while len(known) < (count - 2) * m:
        start = torch.randn(1, count - 2, m, generator=generator, dtype=torch.float64)
        found = _lowest(hessian, metric, start.to(nodes), known)
        if found is None:
            return unknown
        value, vector, image = found
        if value >= -_ZERO:
            break
        known.append((vector, image))
    return torch.tensor([len(known)])


def _lowest(
    hessian: Product, metric: PathMetric, covector: Tensor, known: list[tuple[Tensor, Tensor]]
) -> tuple[float, Tensor, Tensor] | None:
    """The lowest eigenvalue of the Hessian relative to a metric P, but for known ones.

    Lanczos' method in the inner product of P, of which only ``P⁻¹`` is needed: with every vector v
    goes its image ``P v``.

    Args:
        hessian: Its products.
        metric: P.
        covector: Any, to begin with.
        known: Eigenvectors and their images, which are left out.

    Returns:
        The value, its vector and that one's image; None where it is not known whether it is
        negative.
    """
    basis: list[tuple[Tensor, Tensor]] = []
    rows: list[Tensor] = []
    values = shares = torch.zeros(0, dtype=torch.float64)
    sure = False
    while not sure and len(basis) < _PRODUCTS:
        for _ in range(2):  # once more, for what rounding has left
            for v, image in (*known, *basis):
                covector = covector - (covector * v).sum() * image
        direction = metric.solve(covector)
        size = (covector * direction).sum().clamp(min=0).sqrt()
        if basis:
            # What the last product has outside of the space so far.
            doubt = float(size * shares[-1, 0].abs())
            sure = len(basis) >= _ENOUGH and doubt <= max(_SURE * abs(float(values[0])), _ZERO)
            if float(size) <= _ZERO:
                sure = True
                break
        basis.append((direction / size, covector / size))
        covector = hessian(basis[-1][0])
        rows.append(torch.stack([(covector * v).sum() for v, _ in basis]))
        values, shares = _spectrum(rows)
    if not sure:
        return None
    part = shares[: len(basis), 0].to(covector)
    vector, image = (torch.stack(x, -1) @ part for x in zip(*basis, strict=True))
    return float(values[0]), vector, image


def _spectrum(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the Hessian in the basis, from the rows of its triangle."""
    k = len(rows)
    matrix = torch.zeros(k, k, dtype=torch.float64)
    for i, row in enumerate(rows):
        matrix[i, : i + 1] = row.double().cpu()
    return torch.linalg.eigh(matrix)  # which reads the lower triangle
