"""Geometric losses: functions of a manifold and latent points, for any training loop.

Each returns one number, the mean over the points. It is differentiable in the decoder's parameters
and in the points, and through the points in the encoder that made them. Any ambient metric can be
used. Only products with derivatives are formed, never a D × D matrix.

=========================== ===================================== ========= =======================
loss                        what it is                            units     0 exactly for
=========================== ===================================== ========= =======================
relaxed_distortion          ``m² E Tr G²/(E Tr G)² − m`` (16, 21) none      scaled isometries
conformal_distortion        ``E[m² Tr G²/(Tr G)²] − m``           none      conformal maps
extrinsic_curvature         ``E Tr(G⁻¹ C)`` (10, 20)              1/length² affine images
intrinsic_curvature         ``E ‖R‖²``, ``E S²`` or ``E ‖Ric‖²``  1/length⁴ flat manifolds
neighborhood_reconstruction ``E ‖x' − f̃(z'; z)‖²`` (18, 19)       length²   neighbours in the
                                                                            tangent space
contraction                 ``E ‖∂g/∂x‖² Var x/Var z``            none      nothing: at least 1 for
                                                                            linear encoders
=========================== ===================================== ========= =======================

Lengths are those of the ambient metric. Without random probes no loss is negative; each docstring
says when an estimate can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from riemae.autoencoders.expansion import neighborhood_errors
from riemae.autoencoders.weighting import weighted_mean
from riemae.exceptions import OptionError
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_choice, expect_range
from riemae.numerics.random import gaussian, signs

Probe = Literal["signs", "gaussian"]
Estimator = Literal["auto", "exact", "hutchinson", "paper"]
# Up to this latent dimension, the exact value is the default. The distortion then costs no more
# than a probe. The curvature costs 5 decoder passes in addition to the reconstruction for m = 2. An
# estimate costs 3, and scatters by about its own size. For m = 3 the numbers would be 9 and 4.
_EXACT = 2
# From this latent dimension on, planes are the default for the Riemann tensor: at a point they cost
# 10 + m passes, and the exact value 1 + m + m(m + 1)/2.
_PLANES = 5


def relaxed_distortion(
    M: Manifold,
    z: Tensor,
    *,
    probes: int | Literal["auto"] | None = "auto",
    probe: Probe = "signs",
    independent: bool = False,
    mixup: float | None = None,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # (k, m) -> ()
    """How far the decoder is from a scaled isometry: ``m² E Tr G² / (E Tr G)² − m``.

    Equation 16, and 21 for IRAE. With one probe v per point the estimate is
    ``m² E‖Gv‖² / (E vᵀGv)² − m``, at the cost of one forward and one reverse product. The means in
    numerator and denominator are unbiased; the bias of the quotient is of the order of
    1/(points × probes). With random signs it is never negative, and it is 0 in every draw for a
    scaled isometry. With the Gaussian probes of the paper it can be negative.

    Args:
        M: The manifold.
        z: Latent points.
        probes: Probes per point; None is exact, by m forward products. ``"auto"`` is exact for
            random signs and m ≤ 2, where it costs no more than a probe, and one probe otherwise. In
            a curved latent space, relative to whose metric distortion is, it is always exact.
        probe: ``"signs"`` or ``"gaussian"``.
        independent: Whether to take two independent probes v and w:
            ``m² E (vᵀGw)² / (E vᵀGv · E wᵀGw) − m``. The denominator is then unbiased, which the
            square of one mean is not. The estimate can be negative.
        mixup: η, to measure between the points, at ``α z_i + (1 − α) z_π(i)`` with
            ``α ~ U(−η, 1 + η)``; None to measure at the points. 0.2 in the paper. In other latent
            spaces than R^m these points lie on the space's own geodesics.
        weights: Of the points ``(k,)``, such as importance weights; with ``mixup`` a pair has the
            product of the weights of its points.
        generator: Source of all randomness.

    Raises:
        OptionError: For fewer than one probe, an unknown kind of probe, or a negative mixup.
    """
    m = z.shape[-1]
    if probes == "auto":
        probes = None if m <= _EXACT and probe == "signs" and not independent else 1
    _check_probes("relaxed_distortion", probes, probe)
    z = z.reshape(-1, m)
    if mixup is not None:
        z, weights = _mixed(z, mixup, weights, generator, M)
    if probes is None or _is_curved(M):
        return M.distortion(z, kind="scaled_isometry", weights=weights)
    draw = signs if probe == "signs" else gaussian
    squares: list[Tensor] = []
    traces: list[Tensor] = []
    others: list[Tensor] = []
    for _ in range(probes):
        v = draw(z, generator)
        gv = M.metric_product(z, v)
        traces.append(weighted_mean((v * gv).sum(-1), weights))
        if independent:
            w = draw(z, generator)
            squares.append(weighted_mean((w * gv).sum(-1).square(), weights))
            others.append(weighted_mean(M.norm(z, w).square(), weights))
        else:
            squares.append(weighted_mean(gv.square().sum(-1), weights))
    trace = torch.stack(traces).mean()
    other = torch.stack(others).mean() if independent else trace
    square = torch.stack(squares).mean()
    return m * m * square / (trace * other) - m


def conformal_distortion(
    M: Manifold,
    z: Tensor,
    *,
    probes: int | None = None,
    mixup: float | None = None,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # (k, m) -> ()
    """How far the decoder is from preserving angles: ``E[m² Tr G²/(Tr G)²] − m``.

    The scale at each point does not matter.

    Args:
        M: The manifold.
        z: Latent points.
        probes: Pairs of probes per point; None is exact, by m forward products. The quotient is
            taken at each point, so the bias of the estimate is of the order of 1/probes, and it can
            be negative. For small m the exact value is better, and costs no more.
        mixup: As in :func:`relaxed_distortion`.
        weights: As in :func:`relaxed_distortion`.
        generator: Source of all randomness.

    Raises:
        OptionError: For fewer than one probe, or a negative mixup.
    """
    _check_probes("conformal_distortion", probes, "signs")
    z = z.reshape(-1, z.shape[-1])
    if mixup is not None:
        z, weights = _mixed(z, mixup, weights, generator, M)
    if probes is None:
        return M.distortion(z, kind="conformal", weights=weights)
    return M.distortion(
        z,
        kind="conformal",
        estimator="hutchinson",
        samples=probes,
        generator=generator,
        weights=weights,
    )


@overload
def extrinsic_curvature(
    M: Manifold,
    z: Tensor,
    *,
    estimator: Estimator = "auto",
    probes: int = 1,
    ridge: float = 0.0,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
    decoded: Literal[False] = False,
) -> Tensor: ...


@overload
def extrinsic_curvature(
    M: Manifold,
    z: Tensor,
    *,
    estimator: Estimator = "auto",
    probes: int = 1,
    ridge: float = 0.0,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
    decoded: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def extrinsic_curvature(
    M: Manifold,
    z: Tensor,
    *,
    estimator: Estimator = "auto",
    probes: int = 1,
    ridge: float = 0.0,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
    decoded: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # (k, m) -> (), or with (k, *shape)
    """How fast tangent spaces turn, ``E Tr(G⁻¹ C)`` (equation 10; MECAE, 20).

    The value for a sphere of radius r is 2m/r².

    Args:
        M: The manifold.
        z: Latent points.
        estimator: As in ``Manifold.extrinsic_curvature``; ``"hutchinson"`` is unbiased and never
            negative. ``"auto"`` is exact for m ≤ 2, where an estimate saves little, and
            ``"hutchinson"`` for larger m.
        probes: Draws per point.
        ridge: Relative regularisation of the metrics that are inverted: ``ridge × mean eigenvalue``
            is added to their diagonal.
        weights: Of the points ``(k,)``.
        generator: Source of the randomness.
        decoded: Whether to return ``f(z)`` as well, from the same pass of the decoder.

    Raises:
        OptionError: For an unknown estimator, fewer than one draw, or a negative ridge.
        SingularMetricError: Where the metric is not positive definite.

    Warns:
        SmoothnessWarning: When the decoder is piecewise linear, so that its second derivatives
            are 0.
    """
    if estimator == "auto":
        estimator = "exact" if z.shape[-1] <= _EXACT else "hutchinson"
    if not decoded:
        values = M.extrinsic_curvature(
            z, estimator=estimator, samples=probes, generator=generator, ridge=ridge
        )
        return weighted_mean(values, weights)
    values, x = M.extrinsic_curvature(z, estimator, probes, generator, ridge, decoded=True)
    return weighted_mean(values, weights), x


def intrinsic_curvature(
    M: Manifold,
    z: Tensor,
    *,
    kind: Literal["riemann", "scalar", "ricci"] = "riemann",
    estimator: Literal["auto", "exact", "planes"] = "auto",
    probes: int = 1,
    share: float | Literal["auto"] = "auto",
    ridge: float = 0.0,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # (k, m) -> ()
    """The curvature that a flat sheet cannot have without stretching (MICAE).

    Args:
        M: The manifold, of dimension 2 or more: a curve has none.
        z: Latent points.
        kind: ``"riemann"``: ``‖R‖² = R_ijkl R^ijkl`` (4K² on a surface); ``"ricci"``: ``‖Ric‖²``
            (2K²); ``"scalar"``: ``S²`` (4K²). For m ≥ 3, positive and negative curvature may cancel
            in S.
        estimator: As in ``Manifold.kretschmann``; ``"planes"`` is unbiased, never negative, and for
            ``kind="riemann"`` alone. ``"auto"`` is ``"planes"`` for m ≥ 5, where the m(m + 1)/2
            second derivatives of the exact value cost more, if the ambient metric has a feature
            map.
        probes: Pairs of planes per point.
        share: Of the points, drawn anew in every call; the mean over a random subset is unbiased as
            well. ``"auto"`` is 1/2 where ``estimator="auto"`` takes planes, and 1 elsewhere.
        ridge: As in :func:`extrinsic_curvature`; for ambient metrics with a feature map.
        weights: Of the points ``(k,)``.
        generator: Source of the randomness.

    Raises:
        OptionError: For an unknown kind or estimator, a share that is not in (0, 1], m = 1, or
            ``"planes"`` with another kind or without a feature map.
        SingularMetricError: Where the metric is not positive definite.

    Warns:
        SmoothnessWarning: When the decoder is piecewise linear, so that its second derivatives
            are 0.
    """
    where = "intrinsic_curvature"
    expect_choice(where, "kind", kind, ("riemann", "scalar", "ricci"))
    expect_choice(where, "estimator", estimator, ("auto", "exact", "planes"))
    m = z.shape[-1]
    if m < 2:
        raise OptionError(
            where,
            "a latent space of dimension 2 or more",
            f"dimension {m}",
            "Every curve is flat in itself: use extrinsic_curvature.",
        )
    if estimator == "planes" and kind != "riemann":
        got = f"kind={kind!r}"
        raise OptionError(where, "kind='riemann' with planes", got, "Use estimator='exact'.")
    drawn = estimator == "auto" and kind == "riemann" and m >= _PLANES and _has_features(M, z)
    if share == "auto":
        share = 0.5 if drawn else 1.0
    z, weights = _some(where, z, weights, share, generator)
    if kind == "riemann":
        how: Literal["exact", "planes"] = "planes" if drawn or estimator == "planes" else "exact"
        values = M.kretschmann(z, how, probes, generator, ridge)
        return weighted_mean(values, weights)
    tensor, metric = M.riemann(z, ridge, with_metric=True)
    # In an orthonormal frame, norms are sums of squares. The vectors of the frame are the columns
    # of L⁻ᵀ, where G = L Lᵀ.
    factor = torch.linalg.cholesky_ex(metric).L  # which the tensor's check has found to exist
    eye = torch.eye(m).to(z).expand_as(factor)
    frame = torch.linalg.solve_triangular(factor, eye, upper=False).mT
    tensor = torch.einsum(
        "...ijkl,...ia,...jb,...kc,...ld->...abcd", tensor, frame, frame, frame, frame
    )
    ricci = torch.einsum("...ijki->...jk", tensor)
    if kind == "ricci":
        return weighted_mean(ricci.square().sum((-1, -2)), weights)
    return weighted_mean(ricci.diagonal(dim1=-2, dim2=-1).sum(-1).square(), weights)


def neighborhood_reconstruction(
    M: Manifold,
    z: Tensor,
    z_neighbor: Tensor,
    x_neighbor: Tensor,
    *,
    order: Literal[1, 2] = 1,
    x: Tensor | None = None,
    weight: float = 1.0,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:  # (k, m), (k, m), (k, *shape) -> ()
    """How well local expansions predict neighbours: ``E ‖x' − f̃(z'; z)‖²`` (NRAE, 19).

    The expansion at ``z`` contains the decoder's value there. With ``x``, the reconstruction of the
    centres is therefore added without a further pass. This is the loss of the paper, whose kernel
    is 1 at the centre and ``weight`` elsewhere.

    Args:
        M: The manifold.
        z: Codes of the centres, with their gradient.
        z_neighbor: Codes of one neighbour of each centre, with their gradient.
        x_neighbor: These neighbours.
        order: 1: tangent plane (NRAE-L); 2: with second derivatives (NRAE-Q).
        x: The centres, or None to leave their reconstruction out.
        weight: λ, of the neighbours relative to the centres.
        distance: ``(f̃, x') -> (k,)``, how far a prediction ``(k, D)`` is from the data
            ``(k, *shape)``; by default the squared norm under the ambient metric at the data.

    Raises:
        OptionError: For another order.
        ShapeError: When the numbers of centres, neighbours and codes differ.

    Warns:
        SmoothnessWarning: For order 2, when the decoder is piecewise linear, so that its second
            derivatives are 0.
    """
    center, neighbor = neighborhood_errors(
        M, z, z_neighbor, x_neighbor, order=order, x=x, distance=distance
    )
    if center is None:
        return weight * neighbor.mean()
    return center.mean() + weight * neighbor.mean()


def contraction(
    encoder: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # (k, *shape) -> ()
    """Sensitivity of the code to the data, ``E ‖∂g/∂x‖²_F · E|x − x̄|² / E|z − z̄|²``.

    The quotient makes it independent of the scales of data and codes. Without it, the encoder could
    lower the loss by shrinking the latent space, which the decoder expands again. For a linear
    encoder the value is at least 1.

    Args:
        encoder: ``(k, *shape) -> (k, m)``.
        x: Data.
        probes: Draws of random signs per point; None is exact, by m reverse products.
        generator: Source of the probes.

    Raises:
        OptionError: For fewer than one probe.
    """
    _check_probes("contraction", probes, "signs")
    grad = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        z = encoder(point)
        m = z.shape[-1]
        if probes is None:
            covectors = [e.expand_as(z) for e in torch.eye(m).to(z)]
        else:
            covectors = [signs(z, generator) for _ in range(probes)]
        total = z.new_zeros(())
        for w in covectors:
            (pulled,) = torch.autograd.grad(z, point, w, create_graph=grad, retain_graph=True)
            total = total + pulled.square().sum()
    if probes is None:
        mean = total / len(x)
    else:
        mean = total / (probes * len(x))
    data_spread = _squared_spread(x.flatten(1))
    code_spread = _squared_spread(z)
    ratio = mean * data_spread / code_spread
    return ratio if grad else ratio.detach()


def latent_mixup(
    z: Tensor, eta: float, generator: torch.Generator | None = None
) -> Tensor:  # (k, m) -> (k, m)
    """Points on the lines between pairs of codes, and a little beyond their ends.

    They are ``α z_i + (1 − α) z_π(i)`` with ``α ~ U(−η, 1 + η)`` and a random permutation π.

    Args:
        z: Codes.
        eta: η, not negative.
        generator: Source of the randomness.

    Raises:
        OptionError: For a negative η.
    """
    return _mixed(z, eta, None, generator, None)[0]


def _is_curved(M: Manifold) -> bool:
    """Whether distortion is relative to a metric of the latent space."""
    return M.latent is not None and M.latent.metric is not None


def _has_features(M: Manifold, z: Tensor) -> bool:
    """Whether the ambient metric has a feature map, also that of a decoder not yet looked at."""
    if M.data_shape is None:
        M.decode(z[:1].detach())
    return M.ambient.has_features


def _some(
    where: str,
    z: Tensor,
    weights: Tensor | None,
    share: float,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor | None]:
    """A random share of the points, with their weights.

    Raises:
        OptionError: For a share that is not in (0, 1].
    """
    expect_range(where, "share", share, 0, 1, above=True, hint="Try share=0.5.")
    z = z.reshape(-1, z.shape[-1])
    if share == 1:
        return z, weights
    device = z.device if generator is None else generator.device
    order = torch.randperm(len(z), generator=generator, device=device).to(z.device)
    kept = order[: math.ceil(share * len(z))]
    return z[kept], None if weights is None else weights[kept]


def _mixed(
    z: Tensor,
    eta: float,
    weights: Tensor | None,
    generator: torch.Generator | None,
    M: Manifold | None,
) -> tuple[Tensor, Tensor | None]:
    """Mixed codes, and the weights of the pairs.

    Raises:
        OptionError: For a negative η.
    """
    if not eta >= 0:
        raise OptionError("latent_mixup", "eta of at least 0", str(eta), "0.2 is usual.")
    device = z.device if generator is None else generator.device
    uniform = torch.rand(len(z), 1, generator=generator, dtype=z.dtype, device=device)
    alpha = uniform.to(z.device) * (1 + 2 * eta) - eta
    other = torch.randperm(len(z), generator=generator, device=device).to(z.device)
    if weights is not None:
        pairs = weights * weights[other]
        # Where no pair has two points of weight, pairs count by their first points.
        weights = torch.where((pairs > 0).any(), pairs, weights)
    if M is not None and M.latent is not None:
        return M.latent.between(z, z[other], 1 - alpha), weights
    return alpha * z + (1 - alpha) * z[other], weights


def _squared_spread(y: Tensor) -> Tensor:  # (n, d) -> ()
    """Sum of the squared distances from the mean."""
    return (y - y.mean(0)).square().sum()


def _check_probes(where: str, probes: int | None, probe: str) -> None:
    if probes is not None:
        hint = "Try probes=1, or None for the exact value."
        expect_range(where, "probes", probes, 1, integer=True, hint=hint)
    if probe not in ("signs", "gaussian"):
        raise OptionError(where, "probe 'signs' or 'gaussian'", repr(probe), "Try probe='signs'.")
