"""How the decoded manifold bends in the data space (section 2.2 of the paper).

With the Euclidean second fundamental form ``II(u, v) = (I − T̂) ∂²f(u, v)``, ``T̂ = J g⁻¹ Jᵀ``,
``g = JᵀJ``, the curvature form (9) is ``C_ij = 2 Σ_kl (g⁻¹)_kl ⟨II(e_i, e_k), II(e_j, e_l)⟩``, and
the local extrinsic curvature (10) is ``Tr(G⁻¹ C)``, where ``G`` is the pull-back of the ambient
metric.

Each function takes a :class:`~riemae.geometry.pullback.PullbackMetric` and flat points ``(k, m)``;
the methods of :class:`~riemae.Manifold` of the same names carry the documentation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from riemae.differential.derivatives import Differential, everywhere
from riemae.differential.tape import Pairs
from riemae.exceptions import OptionError
from riemae.geometry.bending import Bending
from riemae.geometry.factors import check_triangle
from riemae.geometry.frames import (
    check_ridge,
    inverted,
    lower_factor,
    orthonormal,
    ridged,
    without_tangents,
    without_tangents_by_metric,
)
from riemae.geometry.pullback import PullbackMetric
from riemae.geometry.smoothness import warn_if_flat
from riemae.numerics.checks import expect_choice, expect_range
from riemae.numerics.metric import solve_metric
from riemae.numerics.random import gaussian, signs
from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import concrete

Estimator = Literal["exact", "hutchinson", "paper"]


def second_fundamental_form(
    core: PullbackMetric, flat: Tensor, u: Tensor, v: Tensor
) -> Tensor:  # -> (k, D)
    """``II(u, v) = (I − T̂) ∂²f(u, v)``."""
    warn_if_flat(core, flat)
    m = flat.shape[-1]
    directions = torch.cat([everywhere(flat), u[:, None], v[:, None]], 1)
    one_pair = Pairs([m], [m + 1])
    _, tangents, second = core.immersion.jets(flat, directions, one_pair)
    q, r = orthonormal(tangents[..., :m])
    check_triangle("Manifold.second_fundamental_form", r, flat.dtype)
    return without_tangents(q, second.mT)[:, 0]


def curvature_form(core: PullbackMetric, flat: Tensor) -> Tensor:  # -> (k, m, m)
    """``C_ij = 2 Σ_kl (g⁻¹)_kl ⟨II(e_i, e_k), II(e_j, e_l)⟩``."""
    warn_if_flat(core, flat)
    r, gram, _ = Bending.grams(core.immersion, flat, whiten=True)
    check_triangle("Manifold.curvature_form", r, flat.dtype)
    whitened = 2 * torch.einsum("bikjk->bij", gram)
    return r.mT @ whitened @ r


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
    check_estimator(where, estimator, ("exact", "hutchinson", "paper"), samples)
    check_ridge(where, ridge)
    warn_if_flat(core, flat)
    if estimator == "exact":
        return _exact(core, where, flat, ridge, decoded)
    if estimator == "hutchinson":
        return _by_hutchinson(core, where, flat, samples, generator, ridge, decoded)
    return _as_in_the_paper(core, where, flat, samples, generator, ridge)


def mean_curvature(core: PullbackMetric, flat: Tensor) -> Tensor:  # -> (k, D)
    """``(1/m) Σ (g⁻¹)_ij II(e_i, e_j)``."""
    where = "Manifold.mean_curvature"
    warn_if_flat(core, flat)

    def reduced(x: Tensor, j: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        r, normal, pairs = Bending.at(j, second).whitened()
        both = enumerate(zip(pairs.i, pairs.j, strict=True))
        diagonal = [p for p, (a, b) in both if a == b]
        return r, normal[:, diagonal].mean(1)

    pairs = Pairs.all(flat.shape[-1])
    r, vector = core.immersion.jets(flat, None, pairs, reduced)
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
    n = without_tangents(q, normal[:, None])[:, 0]
    size = n.norm(dim=-1)
    smallest = tolerance(flat.dtype).probe * normal.norm(dim=-1)
    bad = concrete(~(size > smallest))
    if bad is not None and bool(bad.any()):
        raise OptionError(
            where,
            "a normal direction",
            "a vector tangent to the manifold",
            "Choose one that leaves it.",
        )
    unit = n / size[:, None]
    # It is normal: it sees II alone.
    packed = (second.mT @ unit[..., None])[..., 0]
    form = pairs.full(packed)
    inverse = inverted(r)
    shape = inverse.mT @ form @ inverse
    return torch.linalg.eigvalsh((shape + shape.mT) / 2)


def check_estimator(where: str, estimator: str, known: tuple[str, ...], samples: int) -> None:
    """Refuse an estimator that is not known, and fewer than one sample."""
    expect_choice(where, "estimator", estimator, known)
    expect_range(where, "samples", samples, 1, integer=True)


# The estimators of the extrinsic curvature.


def _exact(
    core: PullbackMetric, where: str, flat: Tensor, ridge: float, decoded: bool
) -> tuple[Tensor, Tensor]:  # -> (k,), (k, D)
    r, packed, x = Bending.packed(core.immersion, flat, ridge, decoded, whiten=True)
    check_triangle(where, r, flat.dtype)
    identity = torch.eye(r.shape[-1]).to(r).expand_as(r)
    outer = identity
    if core.embedding is not core.immersion:
        other = core.triangle("extrinsic_curvature", flat)
        if ridge:
            _, other = orthonormal(other, ridge)
        check_triangle(where, other, flat.dtype)
        # Of the ambient metric in the immersion's orthonormal basis: (K Kᵀ) with K = R R_G⁻¹.
        relative = (r.to(other) @ inverted(other)).to(r)
        outer = relative @ relative.mT
    return _traced(packed, outer, identity, Pairs.all(flat.shape[-1])), x


def _traced(
    packed: Tensor, outer: Tensor, inverse: Tensor, pairs: Pairs
) -> Tensor:  # (k, p, p) -> (k,)
    """``2 G^ij g^kl ⟨II_ik, II_jl⟩`` from the pairs i <= k and j <= l alone.

    No m⁴ numbers per point are formed.
    """
    i = torch.tensor(pairs.i, device=packed.device)
    k = torch.tensor(pairs.j, device=packed.device)
    times = torch.where(i == k, 1.0, 2.0).to(packed)

    def both(a: Tensor, b: Tensor) -> Tensor:  # a^ij b^kl + a^il b^kj
        straight = a[:, i][..., i] * b[:, k][..., k]
        crossed = a[:, i][..., k] * b[:, k][..., i]
        return straight + crossed

    weights = both(outer, inverse)
    if outer is not inverse:
        weights = (weights + both(inverse, outer)) / 2
    return torch.einsum("bpq,bpq,p,q->b", packed, weights, times, times)


def _by_hutchinson(
    core: PullbackMetric,
    where: str,
    flat: Tensor,
    samples: int,
    generator: torch.Generator | None,
    ridge: float,
    decoded: bool,
) -> tuple[Tensor, Tensor]:  # -> (k,), (k, D)
    euclidean, forms, x = _along_normals(core, flat, samples, generator, ridge, decoded)
    metric = euclidean
    if core.embedding is not core.immersion:
        metric = ridged(core.metric(flat), ridge)
    # Tr(G⁻¹ B g⁻¹ B) as a sum of squares, |L⁻¹ B l⁻ᵀ|² with G = L Lᵀ and g = l lᵀ.
    outer = lower_factor(where, metric)[:, None]
    half = torch.linalg.solve_triangular(outer, forms, upper=False)
    inner = lower_factor(where, euclidean)[:, None]
    whole = torch.linalg.solve_triangular(inner, half.mT, upper=False)
    squares = whole.square().sum((-1, -2))
    return 2 * squares.mean(-1), x


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
    dimension = core.output_shape(z).numel()
    probes = signs(z.new_empty(len(z), samples, dimension), generator)

    def normals(x: Tensor, j: Tensor, a: Tensor) -> Tensor:  # -> (k, s, D)
        metric = ridged(j.mT @ j, ridge)
        return without_tangents_by_metric(j, metric, a)

    x, j, forms = core.immersion.contractions(z, probes, normals)
    metric = ridged(j.mT @ j, ridge)
    values = x if decoded else x[:, :0]
    return metric, forms, values


def _as_in_the_paper(
    core: PullbackMetric,
    where: str,
    flat: Tensor,
    samples: int,
    generator: torch.Generator | None,
    ridge: float,
) -> tuple[Tensor, Tensor]:  # -> (k,), (k, D)
    x, j = core.immersion.value_and_jacobian(flat)
    euclidean = ridged(j.mT @ j, ridge)
    metric = euclidean
    if core.embedding is not core.immersion:
        metric = ridged(core.metric(flat), ridge)
    total = torch.zeros_like(flat[:, 0])
    for _ in range(samples):
        draw = _one_of_the_paper(where, core.immersion, flat, j, euclidean, metric, generator)
        total = total + draw
    return total / samples, x


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
    v = gaussian(z, generator)
    w = gaussian(j[..., 0], generator)
    a = solve_metric(where, euclidean, j.mT @ w[..., None])
    n = w - (j @ a)[..., 0]
    shape = f.contraction(z, n)
    raised = solve_metric(where, metric, v[..., None])[..., 0]
    sides = []
    for d in (v, raised):
        second = f.second_derivative(z, d, a[..., 0])
        bend = _normal(where, j, euclidean, second[..., None])
        turn = j @ solve_metric(where, euclidean, shape @ d[..., None])
        sides.append((bend + turn)[..., 0])
    return (sides[0] * sides[1]).sum(-1)


def _normal(
    where: str, j: Tensor, metric: Tensor, vectors: Tensor
) -> Tensor:  # (k, D, c) -> (k, D, c)
    """``(I − T̂)`` times columns."""
    return vectors - j @ solve_metric(where, metric, j.mT @ vectors)
