"""How an immersion bends: first and second derivatives, and inner products of their normal part.

Everything rests on derivatives at single points; no D × D matrix is formed. The Euclidean second
fundamental form is ``II(u, v) = (I − T̂) ∂²f(u, v)`` with ``T̂ = J g⁻¹ Jᵀ`` and ``g = JᵀJ``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from riemae.differential.derivatives import Differential
from riemae.differential.tape import Pairs
from riemae.geometry.frames import inverted, orthonormal, ridged, without_tangents
from riemae.numerics.deferral import noted_as_true

# Squared Cholesky pivots of J with columns of length 1 above which the Gram matrix loses nothing
# worth a second factorisation: inner products of II are divided by it twice, 1/pivot⁴ roundings at
# most.
_HARMLESS_PIVOT = 0.03


class Bending(NamedTuple):
    """First and second derivatives of an immersion at ``k`` points.

    They give the metric, and how the normal part bends.

    Attributes:
        triangle: ``(k, m, m)``, upper triangular R of ``J = Q R``, ``RᵀR = JᵀJ``: no Gram matrix,
            which would square the condition. The columns of ``R⁻¹`` are an orthonormal basis of the
            tangent space.
        normal: ``(k, p, D)``, the second fundamental form ``II(e_i, e_j)`` of the pairs i <= j.
        pairs: These pairs.
    """

    triangle: Tensor
    normal: Tensor
    pairs: Pairs

    @classmethod
    def at(cls, j: Tensor, second: Tensor, ridge: float = 0.0) -> Bending:
        """From derivatives; what is singular is found out later, where all points are seen."""
        q, r = orthonormal(j, ridge)
        normal = without_tangents(q, second.mT)
        return cls(r, normal, Pairs.all(j.shape[-1]))

    def whitened(self) -> Bending:
        """The same in the orthonormal basis ``R⁻¹``, where inner products need no inverse."""
        k, p, d = self.normal.shape
        m = self.triangle.shape[-1]
        inverse = inverted(self.triangle).mT
        i = torch.tensor(self.pairs.i)
        j = torch.tensor(self.pairs.j)
        index = torch.empty(m, m, dtype=torch.int64)
        numbers = torch.arange(p)
        index[i, j] = numbers
        index[j, i] = numbers
        places = index.flatten().to(self.normal.device)
        whole = self.normal[:, places].view(k, m, m * d)
        half = (inverse @ whole).view(k, m, m, d)
        turned = half.transpose(1, 2).reshape(k, m, m * d)
        both = (inverse @ turned).view(k, m, m, d)
        return self._replace(normal=both[:, i, j])

    @classmethod
    def packed(
        cls,
        immersion: Differential,
        flat: Tensor,
        ridge: float = 0.0,
        decoded: bool = False,
        whiten: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Triangles ``(k, m, m)``, inner products of ``II`` of all pairs ``(k, p, p)``, and values.

        The triangles contain the ridge.

        Evaluated and reduced chunk by chunk, so that memory does not grow with D, unless the values
        ``(k, D)`` are wanted too; ``(k, 0)`` else.
        """

        def reduced(x: Tensor, j: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            r, products = _inner_products(j, second, ridge, whiten)
            values = x if decoded else x[:, :0]
            return r, products, values

        return immersion.jets(flat, None, Pairs.all(flat.shape[-1]), reduced)

    @classmethod
    def grams(
        cls,
        immersion: Differential,
        flat: Tensor,
        ridge: float = 0.0,
        decoded: bool = False,
        whiten: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`packed`, with ``⟨II(e_i, e_j), II(e_k, e_l)⟩`` as ``(k, m, m, m, m)``."""
        pairs = Pairs.all(flat.shape[-1])
        r, packed, x = cls.packed(immersion, flat, ridge, decoded, whiten)
        half = pairs.full(packed).movedim(1, -1)
        gram = pairs.full(half).movedim((-2, -1), (1, 2))
        return r, gram, x


def _inner_products(
    j: Tensor, second: Tensor, ridge: float, whiten: bool
) -> tuple[Tensor, Tensor]:  # (k, D, m), (k, D, p) -> (k, m, m), (k, p, p)
    """Triangles and inner products, through the Gram matrix of J where that is harmless.

    Each point is judged by itself, so that its bits do not depend on the others.
    """
    metric = ridged(j.mT @ j, ridge)
    factor, info = torch.linalg.cholesky_ex(metric, upper=True)
    diagonal = factor.detach().diagonal(dim1=-2, dim2=-1)
    squared_lengths = metric.detach().diagonal(dim1=-2, dim2=-1)
    pivots = diagonal.square() / squared_lengths
    easy = (info == 0) & (pivots > _HARMLESS_PIVOT).all(-1)
    if noted_as_true(easy):
        return _through_gram(j, factor, second, whiten)
    try:
        if bool(easy.all()):
            return _through_gram(j, factor, second, whiten)
        careful = not bool(easy.any())
    except RuntimeError:  # nobody can look: meta device, inside vmap
        careful = True
    if careful:
        return _carefully(j, second, ridge, whiten)
    some = easy.nonzero().flatten()
    rest = (~easy).nonzero().flatten()
    quick = _through_gram(j[some], factor[some], second[some], whiten)
    slow = _carefully(j[rest], second[rest], ridge, whiten)
    order = torch.cat([some, rest]).argsort()
    r, products = (torch.cat(both)[order] for both in zip(quick, slow, strict=True))
    return r, products


def _carefully(
    j: Tensor, second: Tensor, ridge: float, whiten: bool
) -> tuple[Tensor, Tensor]:  # (k, D, m), (k, D, p) -> (k, m, m), (k, p, p)
    """The same from an orthonormal basis of the tangent space."""
    bending = Bending.at(j, second, ridge)
    normal = bending.whitened().normal if whiten else bending.normal
    return bending.triangle, normal @ normal.mT


def _through_gram(
    j: Tensor, factor: Tensor, second: Tensor, whiten: bool
) -> tuple[Tensor, Tensor]:  # (k, D, m), (k, m, m), (k, D, p) -> (k, m, m), (k, p, p)
    """The same from ``RᵀR = JᵀJ``, with the basis changed afterwards.

    It takes one product with D numbers per pair.
    """
    rows = second.mT
    coefficients = torch.cholesky_solve(j.mT @ second, factor, upper=True)
    normal = torch.baddbmm(rows, coefficients.mT, j.mT, alpha=-1)
    products = normal @ normal.mT
    if whiten:
        change = _of_pairs(inverted(factor))
        products = change.mT @ products @ change
    return factor, products


def _of_pairs(w: Tensor) -> Tensor:  # (k, m, m) -> (k, p, p)
    """What a change of basis ``e'_j = Σ_i w_ij e_i`` does to the pairs i <= j of a symmetric form.

    The form's numbers in the new basis are those in the old one times this matrix.
    """
    pairs = Pairs.all(w.shape[-1])
    i = torch.tensor(pairs.i, device=w.device)
    j = torch.tensor(pairs.j, device=w.device)
    rows = w[:, i]
    others = w[:, j]
    once = rows[:, :, i] * others[:, :, j]
    crossed = rows[:, :, j] * others[:, :, i]
    on_diagonal = (i == j)[:, None]
    return torch.where(on_diagonal, once, once + crossed)
