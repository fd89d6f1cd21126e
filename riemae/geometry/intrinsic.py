"""The manifold's own curvature: Riemann tensor and what is contracted from it.

By the Gauss equation ``R_ijkl = ⟨II_jk, II_il⟩ − ⟨II_ik, II_jl⟩`` of ``φ∘f`` where the ambient
metric has a feature map φ; by differentiating the connection elsewhere. Signs: the unit sphere has
sectional curvature +1; ``riemann[i, j, k, l] = ⟨R(e_i, e_j) e_k, e_l⟩``.

Each function takes a :class:`~riemae.geometry.pullback.PullbackMetric` and flat points ``(k, m)``;
the methods of :class:`~riemae.Manifold` of the same names carry the documentation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from riemae.differential.conditions import Condition
from riemae.differential.derivatives import Differential
from riemae.differential.tape import Pairs
from riemae.exceptions import OptionError, ShapeError
from riemae.geometry.bending import Bending
from riemae.geometry.extrinsic import Estimator, check_estimator
from riemae.geometry.factors import check_triangle
from riemae.geometry.frames import (
    check_ridge,
    inverted,
    lower_factor,
    orthonormal,
    planes,
    ridged,
    whitened,
    without_tangents,
    without_tangents_by_metric,
)
from riemae.geometry.pullback import PullbackMetric
from riemae.geometry.smoothness import warn_if_flat
from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import concrete


def riemann(
    core: PullbackMetric, where: str, flat: Tensor, ridge: float = 0.0
) -> tuple[Tensor, Tensor]:  # -> (k, m, m), (k, m, m, m, m)
    """Metric and Riemann tensor, all indices down.

    Raises:
        OptionError: For a negative ridge, or one without a feature map.
    """
    check_ridge(where, ridge)
    if ridge and core.embedding is None:
        raise OptionError(
            where,
            "ridge=0 without a feature map",
            str(ridge),
            "The connection is differentiated as is.",
        )
    warn_if_flat(core, flat)
    if core.embedding is None:
        return _riemann_of_connection(core, where, flat)
    r, gram, _ = Bending.grams(core.embedding, flat, ridge)
    check_triangle(where, r, flat.dtype)
    return r.mT @ r, _gauss(gram)


def ricci(core: PullbackMetric, where: str, flat: Tensor) -> Tensor:  # -> (k, m, m)
    """Ricci tensor ``Ric_jk = Σ g^il R_ijkl``."""
    r, tensor = _orthonormal_riemann(core, where, flat)
    contracted = torch.einsum("bijki->bjk", tensor)
    return r.mT @ contracted @ r


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
    check_estimator(where, estimator, ("exact", "hutchinson"), samples)
    if estimator == "exact":
        _, tensor = _orthonormal_riemann(core, where, flat)
        return torch.einsum("bijji->b", tensor)
    embedding = core.embedding
    if embedding is None:
        raise OptionError(
            where,
            "an ambient metric with a feature map",
            str(core.ambient),
            "Use estimator='exact' with this one.",
        )
    warn_if_flat(core, flat)
    q, r = orthonormal(embedding.jacobian(flat))
    check_triangle(where, r, flat.dtype)
    total = torch.zeros_like(flat[:, 0])
    for _ in range(samples):
        traces, squares = _one_scalar(embedding, flat, q, r, generator)
        total = total + traces - squares
    return total / samples


def kretschmann(
    core: PullbackMetric,
    flat: Tensor,
    estimator: Literal["exact", "planes"],
    samples: int,
    generator: torch.Generator | None,
    ridge: float,
) -> Tensor:  # -> (k,)
    """``‖R‖² = R_ijkl R^ijkl``.

    Raises:
        OptionError: For an unknown estimator, fewer than one sample, a negative ridge, or a ridge
            or ``"planes"`` without a feature map.
    """
    where = "Manifold.kretschmann"
    check_estimator(where, estimator, ("exact", "planes"), samples)
    check_ridge(where, ridge)
    if (ridge or estimator == "planes") and core.embedding is None:
        got = f"{core.ambient} with ridge={ridge} and estimator={estimator!r}"
        hint = "Use ridge=0 and estimator='exact' with this one."
        raise OptionError(where, "an ambient metric with a feature map", got, hint)
    if estimator == "exact" or flat.shape[-1] < 3:  # a surface has one plane
        _, tensor = _orthonormal_riemann(core, where, flat, ridge)
        return tensor.square().sum((1, 2, 3, 4))
    embedding = core.embedding
    assert embedding is not None
    warn_if_flat(core, flat)
    return _by_planes(embedding, where, flat, samples, generator, ridge)


def sectional_curvature(
    core: PullbackMetric, flat: Tensor, u: Tensor, v: Tensor
) -> Tensor:  # -> (k,)
    """``R(u, v, v, u) / (|u|²|v|² − ⟨u, v⟩²)``.

    Raises:
        OptionError: Where u and v are linearly dependent, with the places.
    """
    where = "Manifold.sectional_curvature"
    r, tensor = _orthonormal_riemann(core, where, flat)
    u = (r @ u[..., None])[..., 0]
    v = (r @ v[..., None])[..., 0]
    numerator = torch.einsum("bijkl,bi,bj,bk,bl->b", tensor, u, v, v, u)
    uu = (u * u).sum(-1)
    vv = (v * v).sum(-1)
    uv = (u * v).sum(-1)
    area = uu * vv - uv.square()
    smallest = 100 * tolerance(flat.dtype).eps * uu * vv
    bad = concrete(~(area > smallest))
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
    m = flat.shape[-1]
    if m != 2:
        hint = "Use sectional_curvature(z, u, v) or scalar_curvature(z)."
        raise ShapeError(where, "a latent space of dimension 2", f"dimension {m}", hint)
    _, tensor = _orthonormal_riemann(core, where, flat)
    return tensor[:, 0, 1, 1, 0]


def _orthonormal_riemann(
    core: PullbackMetric, where: str, flat: Tensor, ridge: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Triangles ``(k, m, m)`` with ``RᵀR = G``, and the Riemann tensor in the bases ``R⁻¹``.

    These bases are orthonormal. The triangles contain the ridge.
    """
    if core.embedding is not None:
        warn_if_flat(core, flat)
        r, gram, _ = Bending.grams(core.embedding, flat, ridge, whiten=True)
        check_triangle(where, r, flat.dtype)
        return r, _gauss(gram)
    _, tensor = riemann(core, where, flat)
    r = core.triangle(where.removeprefix("Manifold."), flat).to(flat)
    w = inverted(r)
    return r, torch.einsum("bijkl,bip,bjq,bkr,bls->bpqrs", tensor, w, w, w, w)


def _gauss(gram: Tensor) -> Tensor:
    """``R_ijkl = ⟨II_jk, II_il⟩ − ⟨II_ik, II_jl⟩``."""
    return gram.permute(0, 3, 1, 2, 4) - gram.permute(0, 1, 3, 2, 4)


def _riemann_of_connection(core: PullbackMetric, where: str, flat: Tensor) -> tuple[Tensor, Tensor]:
    """``R^l_ijk = ∂_i Γ^l_jk − ∂_j Γ^l_ik + Γ^l_is Γ^s_jk − Γ^l_js Γ^s_ik``, lowered.

    It holds for any ambient metric.
    """
    g = core.metric(flat)
    name = where.removeprefix("Manifold.")

    def connected(z: Tensor, condition: Condition | None = None) -> Tensor:
        return core.at(condition).christoffel(z, name)

    connection = core.connection.called(connected).conditioned(core.condition)
    gamma, slope = connection.value_and_jacobian(flat)
    m = g.shape[-1]
    gamma = gamma.view(*g.shape, m)  # [b, l, j, k]
    slope = slope.view(*gamma.shape, m)  # [b, l, j, k, i] = ∂_i Γ^l_jk
    products = torch.einsum("blis,bsjk->bijkl", gamma, gamma)
    half = slope.permute(0, 4, 2, 3, 1) + products
    raised = half - half.transpose(1, 2)
    return g, torch.einsum("bijkl,blq->bijkq", raised, g)


def _one_scalar(
    embedding: Differential,
    flat: Tensor,
    q: Tensor,
    r: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:  # (k, m), (k, D, m), (k, m, m) -> (k,), (k,)
    """Two numbers whose difference estimates the scalar curvature, by two random directions.

    ``E⟨II(u, u), II(w, w)⟩ = |tr II|²`` and ``E|II(u, w)|² = |II|²`` for independent whitened u and
    w.
    """
    u = whitened(r, generator)
    w = whitened(r, generator)
    directions = torch.stack([u, w], 1)
    _, _, second = embedding.jets(flat, directions, Pairs.all(2))
    uu, uw, ww = without_tangents(q, second.mT).unbind(1)
    return (uu * ww).sum(-1), uw.square().sum(-1)


def _by_planes(
    embedding: Differential,
    where: str,
    flat: Tensor,
    samples: int,
    generator: torch.Generator | None,
    ridge: float,
) -> Tensor:  # (k, m) -> (k,)
    """``(m (m − 1))² E R(u, v, w, x)²`` for two independent uniform planes ``u ∧ v`` and ``w ∧ x``.

    On the N = m (m − 1)/2 dimensions of the bivectors, R is a symmetric form whose squared entries
    are summed four times in ``‖R‖²``. A uniform plane P has ``E P Pᵀ = 1/N``, because no subspace
    of the bivectors is mapped into itself by all rotations and reflections. So the estimate is
    unbiased, and it is never negative.
    """
    j = embedding.jacobian(flat)
    metric = ridged(j.mT @ j, ridge)
    factor = lower_factor(where, metric)
    both = [plane for _ in range(2 * samples) for plane in planes(flat, generator)]
    frames = torch.stack(both, -1)  # (k, m, 4 samples): u, v, w, x of each sample
    directions = torch.linalg.solve_triangular(factor.mT, frames, upper=True).mT
    starts = range(0, 4 * samples, 4)
    pairs = Pairs(
        [start + i for start in starts for i in (0, 0, 1, 1)],
        [start + i for start in starts for i in (2, 3, 2, 3)],
    )
    _, _, second = embedding.jets(flat, directions, pairs)
    normal = without_tangents_by_metric(j, metric, second.mT)
    uw, ux, vw, vx = normal.unflatten(1, (samples, 4)).unbind(2)
    sectional = (vw * ux).sum(-1) - (uw * vx).sum(-1)  # (k, samples)
    m = flat.shape[-1]
    return (m * (m - 1)) ** 2 * sectional.square().mean(-1)
