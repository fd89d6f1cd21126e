"""Geometric losses: plain functions of a manifold and latent points, for anybody's training loop.

Each returns one number, the mean over the points, and is differentiable in the decoder's parameters
and in the points, so also in the encoder that made them. Only products with derivatives are formed,
never a D × D matrix; any ambient metric serves.

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

Lengths are those of the ambient metric. None of them is ever negative (``conformal_distortion``
when exact).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from riemae.ambient import Euclidean
from riemae.exceptions import OptionError, ShapeError
from riemae.manifold import Manifold
from riemae.numerics.random import gaussian, signs

Probe = Literal["signs", "gaussian"]
Estimator = Literal["auto", "exact", "hutchinson", "paper"]
# Up to this latent dimension, the exact value is the default. The distortion then costs no more
# than a probe. The curvature costs 5 passes besides the reconstruction for m = 2, where an estimate
# that scatters by about its own size takes 3; for m = 3 it would be 9 against 4.
_EXACT = 2


def relaxed_distortion(
    M: Manifold,
    z: Tensor,
    *,
    probes: int | Literal["auto"] | None = "auto",
    probe: Probe = "signs",
    independent: bool = False,
    mixup: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # (k, m) -> ()
    """How far the decoder is from a scaled isometry: ``m² E Tr G² / (E Tr G)² − m``.

    Equation 16, and 21 for IRAE. With one probe v: one forward and one reverse product, ``m² E‖Gv‖²
    / (E vᵀGv)² − m``. Numerator and denominator are unbiased; their quotient is biased like
    1/(points × probes). With random signs it is never negative, and 0 in every draw for a scaled
    isometry; with the Gaussian probes of the paper it scatters below 0.

    Args:
        M: The manifold.
        z: Latent points.
        probes: Probes a point; None is exact, by m forward products. ``"auto"`` is exact for random
            signs and m ≤ 2, where it costs no more than a probe, and one probe elsewhere.
        probe: ``"signs"`` or ``"gaussian"``.
        independent: Two independent probes v and w instead:
            ``m² E (vᵀGw)² / (E vᵀGv · E wᵀGw) − m``, whose denominator is unbiased too, where the
            square of one mean is not; it can be negative.
        mixup: η: measure between the points, at ``α z_i + (1 − α) z_π(i)``, ``α ~ U(−η, 1 + η)``;
            0.2 in the paper.
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
        z = latent_mixup(z, mixup, generator)
    if probes is None:
        return M.distortion(z, kind="scaled_isometry")
    draw = signs if probe == "signs" else gaussian
    squares, traces, others = [], [], []
    for _ in range(probes):
        v = draw(z, generator)
        gv = M.metric_product(z, v)
        traces.append((v * gv).sum(-1).mean())
        if independent:
            w = draw(z, generator)
            squares.append((w * gv).sum(-1).square().mean())
            others.append(M.norm(z, w).square().mean())
        else:
            squares.append(gv.square().sum(-1).mean())
    trace = torch.stack(traces).mean()
    other = torch.stack(others).mean() if independent else trace
    return m * m * torch.stack(squares).mean() / (trace * other) - m


def conformal_distortion(
    M: Manifold,
    z: Tensor,
    *,
    probes: int | None = None,
    mixup: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # (k, m) -> ()
    """How far the decoder is from preserving angles: ``E[m² Tr G²/(Tr G)²] − m``.

    The scale at each point does not matter.

    Args:
        M: The manifold.
        z: Latent points.
        probes: Pairs of probes a point; None is exact, by m forward products. The quotient is taken
            at each point, so the estimate is biased like 1/probes: for small m, exact is better and
            no dearer.
        mixup: As in :func:`relaxed_distortion`.
        generator: Source of all randomness.

    Raises:
        OptionError: For fewer than one probe, or a negative mixup.
    """
    _check_probes("conformal_distortion", probes, "signs")
    z = z.reshape(-1, z.shape[-1])
    if mixup is not None:
        z = latent_mixup(z, mixup, generator)
    if probes is None:
        return M.distortion(z, kind="conformal")
    return M.distortion(
        z, kind="conformal", estimator="hutchinson", samples=probes, generator=generator
    )


@overload
def extrinsic_curvature(
    M: Manifold,
    z: Tensor,
    *,
    estimator: Estimator = "auto",
    probes: int = 1,
    ridge: float = 0.0,
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
    generator: torch.Generator | None = None,
    decoded: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # (k, m) -> (), or with (k, *shape)
    """How fast tangent spaces turn, ``E Tr(G⁻¹ C)`` (equation 10; MECAE, 20).

    It is 2m/r² on a sphere of radius r.

    Args:
        M: The manifold.
        z: Latent points.
        estimator: As in ``Manifold.extrinsic_curvature``; ``"hutchinson"`` is unbiased and never
            negative. ``"auto"`` is exact for m ≤ 2, where an estimate saves little, and
            ``"hutchinson"`` beyond.
        probes: Draws a point.
        ridge: Relative regularisation of the metrics that are inverted: ``ridge × mean eigenvalue``
            is added.
        generator: Source of the randomness.
        decoded: Return ``f(z)`` too, from the same pass: the reconstruction needs none of its own.

    Raises:
        OptionError: For an unknown estimator, fewer than one draw, or a negative ridge.
        SingularMetricError: Where the metric is not positive definite.

    Warns:
        SmoothnessWarning: When the decoder is piecewise linear, and this loss is blind.
    """
    if estimator == "auto":
        estimator = "exact" if z.shape[-1] <= _EXACT else "hutchinson"
    if not decoded:
        return M.extrinsic_curvature(
            z, estimator=estimator, samples=probes, generator=generator, ridge=ridge
        ).mean()
    values, x = M.extrinsic_curvature(z, estimator, probes, generator, ridge, decoded=True)
    return values.mean(), x


def intrinsic_curvature(
    M: Manifold,
    z: Tensor,
    *,
    kind: Literal["riemann", "scalar", "ricci"] = "riemann",
    ridge: float = 0.0,
) -> Tensor:  # (k, m) -> ()
    """Curvature that a flat sheet cannot have without stretching (MICAE); exact, for small m.

    Args:
        M: The manifold, of dimension 2 or more: a curve has none.
        z: Latent points.
        kind: ``"riemann"``: ``‖R‖² = R_ijkl R^ijkl`` (4K² on a surface); ``"ricci"``: ``‖Ric‖²``
            (2K²); ``"scalar"``: ``S²`` (4K²), which positive and negative curvature may cancel in
            from m = 3 on.
        ridge: As in :func:`extrinsic_curvature`; for ambient metrics with a feature map.

    Raises:
        OptionError: For an unknown kind, or m = 1.
        SingularMetricError: Where the metric is not positive definite.

    Warns:
        SmoothnessWarning: When the decoder is piecewise linear, and this loss is blind.
    """
    where = "intrinsic_curvature"
    if kind not in ("riemann", "scalar", "ricci"):
        raise OptionError(
            where, "kind 'riemann', 'scalar' or 'ricci'", repr(kind), "Try kind='riemann'."
        )
    if z.shape[-1] < 2:
        raise OptionError(
            where,
            "a latent space of dimension 2 or more",
            f"dimension {z.shape[-1]}",
            "Every curve is flat in itself: use extrinsic_curvature.",
        )
    tensor, metric = M.riemann(z, ridge, with_metric=True)
    # In an orthonormal frame, norms are sums of squares. Frame vectors are the columns of L⁻ᵀ, G =
    # L Lᵀ.
    factor = torch.linalg.cholesky(metric)
    eye = torch.eye(z.shape[-1]).to(z).expand_as(factor)
    frame = torch.linalg.solve_triangular(factor, eye, upper=False).mT
    tensor = torch.einsum(
        "...ijkl,...ia,...jb,...kc,...ld->...abcd", tensor, frame, frame, frame, frame
    )
    if kind == "riemann":
        return tensor.square().sum((-1, -2, -3, -4)).mean()
    ricci = torch.einsum("...ijki->...jk", tensor)
    if kind == "ricci":
        return ricci.square().sum((-1, -2)).mean()
    return ricci.diagonal(dim1=-2, dim2=-1).sum(-1).square().mean()


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

    The expansion at ``z`` itself is the decoder's value: with ``x``, the reconstruction of the
    centre is added for free, the whole loss of the paper with its kernel 1 at the centre and
    ``weight`` elsewhere.

    Args:
        M: The manifold.
        z: Codes of the centres, with their gradient.
        z_neighbor: Codes of one neighbour each, with their gradient.
        x_neighbor: The neighbours themselves.
        order: 1: tangent plane (NRAE-L); 2: with second derivatives (NRAE-Q).
        x: The centres themselves, or None to leave their reconstruction out.
        weight: λ, of the neighbours next to the centres.
        distance: ``(f̃, x') -> (k,)``, how far a prediction ``(k, D)`` is from the data
            ``(k, *shape)``; by default the squared norm under the ambient metric at the data.

    Raises:
        OptionError: For another order.
        ShapeError: When centres, neighbours and codes do not belong together.

    Warns:
        SmoothnessWarning: For order 2, when the decoder is piecewise linear: it would silently be
            order 1.
    """
    center, neighbor = neighborhood_errors(
        M, z, z_neighbor, x_neighbor, order=order, x=x, distance=distance
    )
    return weight * neighbor.mean() if center is None else center.mean() + weight * neighbor.mean()


def neighborhood_errors(
    M: Manifold,
    z: Tensor,
    z_neighbor: Tensor,
    x_neighbor: Tensor,
    *,
    order: Literal[1, 2] = 1,
    x: Tensor | None = None,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor | None, Tensor]:  # -> (k,) or None, (k,)
    """Errors of centres and of neighbours in :func:`neighborhood_reconstruction`, per point.

    Raises:
        ShapeError: When centres, neighbours and codes do not belong together.
    """
    if (
        z.shape != z_neighbor.shape
        or z.ndim != 2
        or len(x_neighbor) != len(z)
        or (x is not None and len(x) != len(z))
    ):
        raise ShapeError(
            "neighborhood_reconstruction",
            "codes (k, m) of k centres and of one neighbour each, and k neighbours",
            f"{tuple(z.shape)}, {tuple(z_neighbor.shape)} and {len(x_neighbor)}",
            "Repeat a centre to give it several neighbours.",
        )
    terms = M.taylor(z, z_neighbor - z, order)
    measure = distance or (lambda predicted, true: _ambient_square(M, predicted, true))
    center = None if x is None else measure(terms[0], x)
    return center, measure(sum(terms[1:], terms[0]), x_neighbor)


def contraction(
    encoder: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # (k, *shape) -> ()
    """Sensitivity of the code to the data, ``E ‖∂g/∂x‖²_F · E|x − x̄|² / E|z − z̄|²``.

    The quotient makes it independent of the scales of data and codes: without it, shrinking the
    latent space while the decoder expands it again would satisfy the loss and change nothing. At
    least 1 for a linear encoder.

    Args:
        encoder: ``(k, *shape) -> (k, m)``.
        x: Data.
        probes: Random signs a point; None is exact, by m reverse products.
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
            total = (
                total
                + torch.autograd.grad(z, point, w, create_graph=grad, retain_graph=True)[0]
                .square()
                .sum()
            )
    total = total / len(x) if probes is None else total / (probes * len(x))
    spread = [(y - y.mean(0)).square().sum() for y in (x.flatten(1), z)]
    ratio = total * spread[0] / spread[1]
    return ratio if grad else ratio.detach()


def latent_mixup(
    z: Tensor, eta: float, generator: torch.Generator | None = None
) -> Tensor:  # (k, m) -> (k, m)
    """Points on and a little beyond the lines between pairs of codes.

    ``α z_i + (1 − α) z_π(i)`` with ``α ~ U(−η, 1 + η)``.

    Raises:
        OptionError: For a negative η.
    """
    if not eta >= 0:
        raise OptionError("latent_mixup", "eta of at least 0", str(eta), "0.2 is usual.")
    device = z.device if generator is None else generator.device
    alpha = (
        torch.rand(len(z), 1, generator=generator, dtype=z.dtype, device=device).to(z.device)
        * (1 + 2 * eta)
        - eta
    )
    other = torch.randperm(len(z), generator=generator, device=device).to(z.device)
    return alpha * z + (1 - alpha) * z[other]


def _ambient_square(
    M: Manifold, predicted: Tensor, true: Tensor
) -> Tensor:  # (k, D), (k, *shape) -> (k,)
    difference = true.flatten(1) - predicted
    if isinstance(M.ambient, Euclidean):
        return difference.square().sum(-1)
    return M.ambient.squared_norm(true if M.ambient.has_features else true.flatten(1), difference)


def _check_probes(where: str, probes: int | None, probe: str) -> None:
    if probes is not None and probes < 1:
        raise OptionError(
            where, "at least 1 probe, or None for the exact value", str(probes), "Try probes=1."
        )
    if probe not in ("signs", "gaussian"):
        raise OptionError(where, "probe 'signs' or 'gaussian'", repr(probe), "Try probe='signs'.")
