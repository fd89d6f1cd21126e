"""Curvature of the decoded manifold: its bending in the data space, and its own curvature.

Everything rests on first and second derivatives of the decoder at single points; no D × D matrix is
formed.

- **Extrinsic** (the paper's section 2.2): with the Euclidean second fundamental form
  ``II(u, v) = (I − T̂) ∂²f(u, v)``, ``T̂ = J g⁻¹ Jᵀ``, ``g = JᵀJ``, the curvature form (9) is
  ``C_ij = 2 Σ_kl (g⁻¹)_kl ⟨II(e_i, e_k), II(e_j, e_l)⟩``, and the local extrinsic curvature (10) is
  ``Tr(G⁻¹ C)``, where ``G`` is the pull-back of the ambient metric.
- **Intrinsic**: by the Gauss equation ``R_ijkl = ⟨II_jk, II_il⟩ − ⟨II_ik, II_jl⟩`` of ``φ∘f`` where
  the ambient metric has a feature map φ; by differentiating the connection elsewhere. Signs: the
  unit sphere has sectional curvature +1; ``riemann[i, j, k, l] = ⟨R(e_i, e_j) e_k, e_l⟩``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from riemae.differential.conditions import Condition
from riemae.differential.derivatives import Differential, everywhere
from riemae.differential.tape import Pairs
from riemae.exceptions import OptionError, ShapeError
from riemae.geometry.factors import check_triangle
from riemae.geometry.pullback import PullbackMetric
from riemae.geometry.smoothness import warn_if_flat
from riemae.numerics.checks import expect_choice, expect_range
from riemae.numerics.metric import safe_sqrt, solve_metric
from riemae.numerics.random import gaussian, signs
from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import concrete

Estimator = Literal["exact", "hutchinson", "paper"]


# Squared Cholesky pivots, in units of rounding, above which two factorisations give an orthonormal
# basis.
_SAFE_PIVOT = 1e3
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
        return cls(r, _without_tangents(q, second.mT), Pairs.all(j.shape[-1]))

    def whitened(self) -> Bending:
        """The same in the orthonormal basis ``R⁻¹``, where inner products need no inverse."""
        k, p, d = self.normal.shape
        m = self.triangle.shape[-1]
        inverse = inverted(self.triangle).mT
        index = torch.empty(m, m, dtype=torch.int64)
        i, j = (torch.tensor(x) for x in (self.pairs.i, self.pairs.j))
        index[i, j] = index[j, i] = torch.arange(p)
        whole = self.normal[:, index.flatten().to(self.normal.device)].view(k, m, m * d)
        half = (inverse @ whole).view(k, m, m, d).transpose(1, 2).reshape(k, m, m * d)
        both = (inverse @ half).view(k, m, m, d)
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
            r, products = cls._inner_products(j, second, ridge, whiten)
            return r, products, x if decoded else x[:, :0]

        return immersion.jets(flat, None, Pairs.all(flat.shape[-1]), reduced)

    @classmethod
    def _inner_products(
        cls, j: Tensor, second: Tensor, ridge: float, whiten: bool
    ) -> tuple[Tensor, Tensor]:
        """Triangles and inner products, through the Gram matrix of J where that is harmless.

        Each point is judged by itself, so that its bits do not depend on the others.
        """
        metric = ridged(j.mT @ j, ridge)
        factor, info = torch.linalg.cholesky_ex(metric, upper=True)
        pivots = factor.detach().diagonal(dim1=-2, dim2=-1).square() / metric.detach().diagonal(
            dim1=-2, dim2=-1
        )
        easy = concrete((info == 0) & (pivots > _HARMLESS_PIVOT).all(-1))
        if easy is None or not bool(easy.any()):
            return cls._carefully(j, second, ridge, whiten)
        if bool(easy.all()):
            return cls._through_gram(j, factor, second, whiten)
        some, rest = easy.nonzero().flatten(), (~easy).nonzero().flatten()
        quick = cls._through_gram(j[some], factor[some], second[some], whiten)
        slow = cls._carefully(j[rest], second[rest], ridge, whiten)
        order = torch.cat([some, rest]).argsort()
        r, products = (torch.cat(both)[order] for both in zip(quick, slow, strict=True))
        return r, products

    @classmethod
    def _carefully(
        cls, j: Tensor, second: Tensor, ridge: float, whiten: bool
    ) -> tuple[Tensor, Tensor]:
        bending = cls.at(j, second, ridge)
        normal = (bending.whitened() if whiten else bending).normal
        return bending.triangle, normal @ normal.mT

    @staticmethod
    def _through_gram(
        j: Tensor, factor: Tensor, second: Tensor, whiten: bool
    ) -> tuple[Tensor, Tensor]:
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
        return r, pairs.full(pairs.full(packed).movedim(1, -1)).movedim((-2, -1), (1, 2)), x


# Each function takes a PullbackMetric and flat points (k, m); Manifold's methods of the same names
# carry the documentation.


def second_fundamental_form(
    core: PullbackMetric, flat: Tensor, u: Tensor, v: Tensor
) -> Tensor:  # -> (k, D)
    """``II(u, v) = (I − T̂) ∂²f(u, v)``."""
    warn_if_flat(core, flat)
    m = flat.shape[-1]
    directions = torch.cat([everywhere(flat), u[:, None], v[:, None]], 1)
    _, tangents, second = core.immersion.jets(flat, directions, Pairs([m], [m + 1]))
    q, r = orthonormal(tangents[..., :m])
    check_triangle("Manifold.second_fundamental_form", r, flat.dtype)
    return _without_tangents(q, second.mT)[:, 0]


def curvature_form(core: PullbackMetric, flat: Tensor) -> Tensor:  # -> (k, m, m)
    """``C_ij = 2 Σ_kl (g⁻¹)_kl ⟨II(e_i, e_k), II(e_j, e_l)⟩``."""
    warn_if_flat(core, flat)
    r, gram, _ = Bending.grams(core.immersion, flat, whiten=True)
    check_triangle("Manifold.curvature_form", r, flat.dtype)
    return r.mT @ (2 * torch.einsum("bikjk->bij", gram)) @ r


def extrinsic_curvature(
    core: PullbackMetric,
    flat: Tensor,
    estimator: Estimator,
    samples: int,
    generator: torch.Generator | None,
    ridge: float = 0.0,
    decoded: bool = False,
) -> tuple[Tensor, Tensor]:  # -> (k,), (k, D)
    """``Tr(G⁻¹ C)``, and the values of the same pass where they are wanted: ``(k, 0)`` else.

    Raises:
        OptionError: For an unknown estimator, fewer than one sample, or a negative ridge.
    """
    where = "Manifold.extrinsic_curvature"
    _check_estimator(where, estimator, ("exact", "hutchinson", "paper"), samples)
    _check_ridge(where, ridge)
    warn_if_flat(core, flat)
    own = core.embedding is core.immersion
    if estimator == "exact":
        r, packed, x = Bending.packed(core.immersion, flat, ridge, decoded, whiten=True)
        check_triangle(where, r, flat.dtype)
        outer = inverse = torch.eye(r.shape[-1]).to(r).expand_as(r)
        if not own:
            other = core.triangle("extrinsic_curvature", flat)
            other = orthonormal(other, ridge)[1] if ridge else other
            check_triangle(where, other, flat.dtype)
            # Of the ambient metric in the immersion's orthonormal basis: (K Kᵀ) with K = R R_G⁻¹.
            relative = (r.to(other) @ inverted(other)).to(r)
            outer = relative @ relative.mT
        return _traced(packed, outer, inverse, Pairs.all(flat.shape[-1])), x
    if estimator == "hutchinson":
        euclidean, forms, x = _along_normals(core, flat, samples, generator, ridge, decoded)
        metric = euclidean if own else ridged(core.metric(flat), ridge)
        # Tr(G⁻¹ B g⁻¹ B) as a sum of squares, |L⁻¹ B l⁻ᵀ|² with G = L Lᵀ and g = l lᵀ.
        half = torch.linalg.solve_triangular(_factor(where, metric)[:, None], forms, upper=False)
        whole = torch.linalg.solve_triangular(
            _factor(where, euclidean)[:, None], half.mT, upper=False
        )
        return 2 * whole.square().sum((-1, -2)).mean(-1), x
    x, j = core.immersion.value_and_jacobian(flat)
    euclidean = ridged(j.mT @ j, ridge)
    metric = euclidean if own else ridged(core.metric(flat), ridge)
    total = torch.zeros_like(flat[:, 0])
    for _ in range(samples):
        total = total + _one_of_the_paper(
            where, core.immersion, flat, j, euclidean, metric, generator
        )
    return total / samples, x


def mean_curvature(core: PullbackMetric, flat: Tensor) -> Tensor:  # -> (k, D)
    """``(1/m) Σ (g⁻¹)_ij II(e_i, e_j)``."""
    where = "Manifold.mean_curvature"
    warn_if_flat(core, flat)

    def reduced(x: Tensor, j: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        r, normal, pairs = Bending.at(j, second).whitened()
        diagonal = [p for p, (a, b) in enumerate(zip(pairs.i, pairs.j, strict=True)) if a == b]
        return r, normal[:, diagonal].mean(1)

    r, vector = core.immersion.jets(flat, None, Pairs.all(flat.shape[-1]), reduced)
    check_triangle(where, r, flat.dtype)
    return vector


def principal_curvatures(
    core: PullbackMetric, flat: Tensor, normal: Tensor
) -> Tensor:  # (k, m), (k, D) -> (k, m)
    """Eigenvalues of ``g⁻¹ ⟨II, n⟩``, ascending.

    Raises:
        OptionError: When ``normal`` is tangent to the manifold, so that no direction is left.
    """
    where = "Manifold.principal_curvatures"
    warn_if_flat(core, flat)
    pairs = Pairs.all(flat.shape[-1])
    _, j, second = core.immersion.jets(flat, None, pairs)
    q, r = orthonormal(j)
    check_triangle(where, r, flat.dtype)
    n = _without_tangents(q, normal[:, None])[:, 0]
    size = n.norm(dim=-1)
    bad = concrete(~(size > tolerance(flat.dtype).probe * normal.norm(dim=-1)))
    if bad is not None and bool(bad.any()):
        raise OptionError(
            where,
            "a normal direction",
            "a vector tangent to the manifold",
            "Choose one that leaves it.",
        )
    form = pairs.full(
        (second.mT @ (n / size[:, None])[..., None])[..., 0]
    )  # n is normal: it sees II alone
    inverse = inverted(r)
    shape = inverse.mT @ form @ inverse
    return torch.linalg.eigvalsh((shape + shape.mT) / 2)


def riemann(
    core: PullbackMetric, where: str, flat: Tensor, ridge: float = 0.0
) -> tuple[Tensor, Tensor]:  # -> (k, m, m), (k, m, m, m, m)
    """Metric and Riemann tensor, all indices down.

    Raises:
        OptionError: For a negative ridge, or one without a feature map.
    """
    _check_ridge(where, ridge)
    if ridge and core.embedding is None:
        raise OptionError(
            where,
            "ridge=0 without a feature map",
            str(ridge),
            "The connection is differentiated as is.",
        )
    warn_if_flat(core, flat)
    if core.embedding is not None:
        r, gram, _ = Bending.grams(core.embedding, flat, ridge)
        check_triangle(where, r, flat.dtype)
        return r.mT @ r, _gauss(gram)
    return _riemann_of_connection(core, where, flat)


def _orthonormal_riemann(core: PullbackMetric, where: str, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Triangles ``(k, m, m)`` with ``RᵀR = G``, and the Riemann tensor in the bases ``R⁻¹``.

    These bases are orthonormal.
    """
    if core.embedding is not None:
        warn_if_flat(core, flat)
        r, gram, _ = Bending.grams(core.embedding, flat, whiten=True)
        check_triangle(where, r, flat.dtype)
        return r, _gauss(gram)
    tensor = riemann(core, where, flat)[1]
    r = core.triangle(where.removeprefix("Manifold."), flat).to(flat)
    w = inverted(r)
    return r, torch.einsum("bijkl,bip,bjq,bkr,bls->bpqrs", tensor, w, w, w, w)


def _gauss(gram: Tensor) -> Tensor:
    """``R_ijkl = ⟨II_jk, II_il⟩ − ⟨II_ik, II_jl⟩``."""
    return gram.permute(0, 3, 1, 2, 4) - gram.permute(0, 1, 3, 2, 4)


def ricci(core: PullbackMetric, where: str, flat: Tensor) -> Tensor:  # -> (k, m, m)
    """Ricci tensor ``Ric_jk = Σ g^il R_ijkl``."""
    r, tensor = _orthonormal_riemann(core, where, flat)
    return r.mT @ torch.einsum("bijki->bjk", tensor) @ r


def scalar_curvature(
    core: PullbackMetric,
    flat: Tensor,
    estimator: Estimator,
    samples: int,
    generator: torch.Generator | None,
) -> Tensor:  # -> (k,)
    """``Σ g^jk Ric_jk``.

    Raises:
        OptionError: For an unknown estimator, fewer than one sample, or a stochastic estimate
            without a feature map.
    """
    where = "Manifold.scalar_curvature"
    _check_estimator(where, estimator, ("exact", "hutchinson"), samples)
    if estimator == "exact":
        return torch.einsum("bijji->b", _orthonormal_riemann(core, where, flat)[1])
    if core.embedding is None:
        raise OptionError(
            where,
            "an ambient metric with a feature map",
            str(core.ambient),
            "Use estimator='exact' with this one.",
        )
    warn_if_flat(core, flat)
    q, r = orthonormal(core.embedding.jacobian(flat))
    check_triangle(where, r, flat.dtype)
    total = torch.zeros_like(flat[:, 0])
    for _ in range(samples):
        # E⟨II(u,u), II(w,w)⟩ = |tr II|² and E|II(u,w)|² = |II|² for independent whitened u and w.
        u, w = (_whitened(r, generator) for _ in range(2))
        _, _, second = core.embedding.jets(flat, torch.stack([u, w], 1), Pairs.all(2))
        uu, uw, ww = _without_tangents(q, second.mT).unbind(1)
        total = total + (uu * ww).sum(-1) - uw.square().sum(-1)
    return total / samples


def sectional_curvature(
    core: PullbackMetric, flat: Tensor, u: Tensor, v: Tensor
) -> Tensor:  # -> (k,)
    """``R(u, v, v, u) / (|u|²|v|² − ⟨u, v⟩²)``.

    Raises:
        OptionError: Where u and v are linearly dependent, with the places.
    """
    where = "Manifold.sectional_curvature"
    r, tensor = _orthonormal_riemann(core, where, flat)
    u, v = ((r @ x[..., None])[..., 0] for x in (u, v))
    numerator = torch.einsum("bijkl,bi,bj,bk,bl->b", tensor, u, v, v, u)
    uu, vv, uv = ((a * b).sum(-1) for a, b in ((u, u), (v, v), (u, v)))
    area = uu * vv - uv.square()
    bad = concrete(~(area > 100 * tolerance(flat.dtype).eps * uu * vv))
    if bad is not None and bool(bad.any()):
        places = bad.nonzero().flatten().tolist()
        raise OptionError(
            where,
            "linearly independent u and v",
            f"dependent ones at {len(places)} of {len(bad)} points (first: {places[:5]})",
            "They must span a plane.",
        )
    return numerator / area


def gaussian_curvature(core: PullbackMetric, flat: Tensor) -> Tensor:  # (k, 2) -> (k,)
    """``R_0110 / det G``.

    Raises:
        ShapeError: Unless m = 2.
    """
    where = "Manifold.gaussian_curvature"
    if flat.shape[-1] != 2:
        hint = "Use sectional_curvature(z, u, v) or scalar_curvature(z)."
        raise ShapeError(
            where, "a latent space of dimension 2", f"dimension {flat.shape[-1]}", hint
        )
    return _orthonormal_riemann(core, where, flat)[1][:, 0, 1, 1, 0]


def _normal(
    where: str, j: Tensor, metric: Tensor, vectors: Tensor
) -> Tensor:  # (k, D, c) -> (k, D, c)
    """``(I − T̂)`` times columns."""
    return vectors - j @ solve_metric(where, metric, j.mT @ vectors)


def orthonormal(
    j: Tensor, ridge: float = 0.0
) -> tuple[Tensor, Tensor]:  # (k, D, m) -> (k, D, m), (k, m, m)
    """``J = Q R``.

    With a ridge ``RᵀR = JᵀJ + ridge · (Tr JᵀJ/m) I``, and ``QQᵀ`` is what the projection becomes.

    What is singular is not noticed here.
    """
    d, m = j.shape[1:]
    if ridge:
        size = (ridge * j.square().sum((1, 2)) / m).sqrt()
        j = torch.cat([j, size[:, None, None] * torch.eye(m).to(j)], 1)
    elif d < m:
        j = nn.functional.pad(j, (0, 0, 0, m - d))
    # Two Cholesky factorisations, of columns of length 1, are as good as Householder's reflections
    # up to a condition of 1/√eps, and several times faster in a batch (Yamamoto, Nakatsukasa,
    # Yanagisawa, Fukaya, CholeskyQR2, 2015).
    length = safe_sqrt(j.square().sum(1, keepdim=True))
    unit = j / torch.where(length > 0, length, 1.0)
    first, info = torch.linalg.cholesky_ex(unit.mT @ unit, upper=True)
    pivots = first.detach().diagonal(dim1=-2, dim2=-1).square().amin(-1)
    good = concrete((info == 0) & (pivots > _SAFE_PIVOT * tolerance(j.dtype).eps))
    if good is None or not bool(good.any()):
        q, r = torch.linalg.qr(j)
        return q[:, :d], r
    whole = bool(good.all())
    # Where they fail, something harmless stands in, so that it has derivatives.
    first = first if whole else torch.where(good[:, None, None], first, torch.eye(m).to(j))
    nearly = torch.linalg.solve_triangular(first, unit, upper=True, left=False)
    gram = nearly.mT @ nearly
    second = torch.linalg.cholesky_ex(
        gram if whole else torch.where(good[:, None, None], gram, torch.eye(m).to(j)), upper=True
    ).L
    q, r = (
        torch.linalg.solve_triangular(second, nearly, upper=True, left=False),
        second @ first * length,
    )
    if not whole:
        slow = torch.linalg.qr(j)
        q, r = (torch.where(good[:, None, None], x, y) for x, y in zip((q, r), slow, strict=True))
    return q[:, :d], r


def _of_pairs(w: Tensor) -> Tensor:  # (k, m, m) -> (k, p, p)
    """What a change of basis ``e'_j = Σ_i w_ij e_i`` does to the pairs i <= j of a symmetric form.

    The form's numbers in the new basis are those in the old one times this matrix.
    """
    pairs = Pairs.all(w.shape[-1])
    i, j = (torch.tensor(x, device=w.device) for x in (pairs.i, pairs.j))
    rows, others = w[:, i], w[:, j]
    once = rows[:, :, i] * others[:, :, j]
    return torch.where((i == j)[:, None], once, once + rows[:, :, j] * others[:, :, i])


def inverted(r: Tensor) -> Tensor:  # (k, m, m) -> (k, m, m)
    """``R⁻¹`` of upper triangles; infinite where there is none."""
    return torch.linalg.solve_triangular(r, torch.eye(r.shape[-1]).to(r).expand_as(r), upper=True)


def _without_tangents(q: Tensor, rows: Tensor) -> Tensor:  # (k, D, m), (k, c, D) -> (k, c, D)
    """``(I − QQᵀ)`` times rows.

    On processors, batches of small products are ten times faster with D last.
    """
    return torch.baddbmm(rows, rows @ q, q.mT, alpha=-1)


def _riemann_of_connection(core: PullbackMetric, where: str, flat: Tensor) -> tuple[Tensor, Tensor]:
    """``R^l_ijk = ∂_i Γ^l_jk − ∂_j Γ^l_ik + Γ^l_is Γ^s_jk − Γ^l_js Γ^s_ik``, lowered.

    It holds for any ambient metric.
    """
    g = core.metric(flat)

    def connected(z: Tensor, condition: Condition | None = None) -> Tensor:
        return core.at(condition).christoffel(z, where.removeprefix("Manifold."))

    connection = core.connection.called(connected).conditioned(core.condition)
    gamma, d = connection.value_and_jacobian(flat)
    gamma = gamma.view(*g.shape, g.shape[-1])  # [b, l, j, k]
    d = d.view(*gamma.shape, g.shape[-1])  # [b, l, j, k, i] = ∂_i Γ^l_jk
    half = d.permute(0, 4, 2, 3, 1) + torch.einsum("blis,bsjk->bijkl", gamma, gamma)
    return g, torch.einsum("bijkl,blq->bijkq", half - half.transpose(1, 2), g)


def _check_estimator(where: str, estimator: str, known: tuple[str, ...], samples: int) -> None:
    expect_choice(where, "estimator", estimator, known)
    expect_range(where, "samples", samples, 1, integer=True)


def ridged(metric: Tensor, ridge: float) -> Tensor:  # (k, m, m) -> (k, m, m)
    """``G + ridge · (Tr G/m) I``: a bounded condition number, whatever the units."""
    if not ridge:
        return metric
    mean = metric.diagonal(dim1=-2, dim2=-1).mean(-1)
    return metric + ridge * mean[..., None, None] * torch.eye(metric.shape[-1]).to(metric)


def _check_ridge(where: str, ridge: float) -> None:
    if not ridge >= 0:
        raise OptionError(
            where, "a ridge of at least 0", str(ridge), "It is relative: 1e-4 bounds the condition."
        )


def _whitened(r: Tensor, generator: torch.Generator | None) -> Tensor:  # (k, m, m) -> (k, m)
    """``R⁻¹ ξ`` with random signs ξ, for ``RᵀR = G``.

    Signs have the moments that unbiasedness needs, and vary less than Gaussian probes: on the
    sphere S² the standard deviation of one draw is 4 instead of 8.9.
    """
    xi = signs(r[..., 0], generator)
    return torch.linalg.solve_triangular(r, xi[..., None], upper=True)[..., 0]


def _along_normals(
    core: PullbackMetric,
    z: Tensor,
    samples: int,
    generator: torch.Generator | None,
    ridge: float,
    decoded: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # -> (k, m, m), (k, s, m, m), (k, D)
    """Euclidean metric, ``B = n·∂²f``, and values.

    n are the normal parts of random signs in the data space.

    ``E[B_ik B_jl] = ⟨II_ik, II_jl⟩``, so that ``2 Tr(G⁻¹ B g⁻¹ B)`` is unbiased and never negative.
    It costs one forward pass and one reverse pass a sample, whatever m. With r independent bent
    directions its relative variance is about 2/r, where signs ξ, ζ in
    ``2 |II(G^{-1/2} ξ, g^{-1/2} ζ)|²`` have up to 4/m and need a second-order pass more.
    """
    probes = signs(z.new_empty(len(z), samples, core.output_shape(z).numel()), generator)

    def normals(x: Tensor, j: Tensor, a: Tensor) -> Tensor:  # -> (k, s, D)
        return _projected(j, ridged(j.mT @ j, ridge), a)

    x, j, forms = core.immersion.contractions(z, probes, normals)
    return ridged(j.mT @ j, ridge), forms, x if decoded else x[:, :0]


def _traced(
    packed: Tensor, outer: Tensor, inverse: Tensor, pairs: Pairs
) -> Tensor:  # (k, p, p) -> (k,)
    """``2 G^ij g^kl ⟨II_ik, II_jl⟩`` from the pairs i <= k and j <= l alone.

    No m⁴ numbers per point are formed.
    """
    i, k = (torch.tensor(x, device=packed.device) for x in (pairs.i, pairs.j))
    times = torch.where(i == k, 1.0, 2.0).to(packed)

    def both(a: Tensor, b: Tensor) -> Tensor:  # a^ij b^kl + a^il b^kj
        return a[:, i][..., i] * b[:, k][..., k] + a[:, i][..., k] * b[:, k][..., i]

    weights = both(outer, inverse)
    if outer is not inverse:
        weights = (weights + both(inverse, outer)) / 2
    return torch.einsum("bpq,bpq,p,q->b", packed, weights, times, times)


def _projected(
    j: Tensor, metric: Tensor, rows: Tensor
) -> Tensor:  # (k, D, m), (k, m, m), (k, c, D) -> (k, c, D)
    """``(I − T̂)`` times rows.

    On processors, batches of small products are ten times faster with D last.

    What is singular is not noticed here.
    """
    coefficients = torch.cholesky_solve(j.mT @ rows.mT, torch.linalg.cholesky_ex(metric).L)
    return torch.baddbmm(rows, coefficients.mT, j.mT, alpha=-1)


def _factor(where: str, metric: Tensor) -> Tensor:  # (k, m, m) -> (k, m, m)
    """Lower Cholesky factor; raises, with the places, where there is none."""
    factor, info = torch.linalg.cholesky_ex(metric)
    bad = concrete(info != 0)
    if bad is not None and bool(bad.any()):
        solve_metric(where, metric, metric[..., :1])  # raises, with the places
    return factor


def _one_of_the_paper(
    where: str,
    f: Differential,
    z: Tensor,
    j: Tensor,
    euclidean: Tensor,
    metric: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """``vᵀ G⁻¹ (∂T̂w)ᵀ (∂T̂w) v`` with v, w ~ N(0, I), as in section 3.2 of the paper.

    It is unbiased, but can be negative.

    The derivative of the projection needs none of a matrix inverse:
    ``(∂_d T̂) w = II(d, a) + J g⁻¹ (n·∂²f) d`` with ``a = g⁻¹ Jᵀ w`` and ``n = (I − T̂) w``.
    """
    v, w = gaussian(z, generator), gaussian(j[..., 0], generator)
    a = solve_metric(where, euclidean, j.mT @ w[..., None])
    shape = f.contraction(z, w - (j @ a)[..., 0])
    sides = []
    for d in (v, solve_metric(where, metric, v[..., None])[..., 0]):
        bend = _normal(where, j, euclidean, f.second_derivative(z, d, a[..., 0])[..., None])
        turn = j @ solve_metric(where, euclidean, shape @ d[..., None])
        sides.append((bend + turn)[..., 0])
    return (sides[0] * sides[1]).sum(-1)
