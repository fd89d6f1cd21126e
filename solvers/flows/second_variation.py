"""Second derivatives of squared distances: the second variation of a geodesic's energy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from riemae.exceptions import NotConvergedError
from riemae.numerics.precision import in_full_precision
from riemae.solvers.certificate import sound_acceleration
from riemae.solvers.flows.jacobi import Moment, Variation, paired
from riemae.solvers.flows.parallel import connection_matrix
from riemae.solvers.hooks import labels_of
from riemae.solvers.space import HasSpace, Space, space_of


@dataclass(frozen=True)
class SecondVariation:
    """Derivatives of ``½ d²(p, q)`` in the coordinates of both ends of geodesics.

    Of the distance along the given geodesic, whether or not another one is shorter.

    Attributes:
        stop: The point q, ``(*b, m)``.
        start_gradient: ``∂/∂p``, ``(*b, m)``: the covector ``−G(p) log_p q``.
        stop_gradient: ``∂/∂q``, ``(*b, m)``.
        start_hessian: ``∂²/∂p∂p``, ``(*b, m, m)``.
        mixed: ``∂²/∂p∂q``, ``(*b, m, m)``.
        stop_hessian: ``∂²/∂q∂q``, ``(*b, m, m)``.
    """

    stop: Tensor
    start_gradient: Tensor
    stop_gradient: Tensor
    start_hessian: Tensor
    mixed: Tensor
    stop_hessian: Tensor


@in_full_precision
def second_variation(
    space: Space | HasSpace,
    z: Tensor,
    v: Tensor,
    *,
    rtol: float | None = None,
    max_steps: int = 2000,
    throw: bool = True,
) -> SecondVariation:
    """First and second derivatives of ``½ d²(p, q)`` for ``p = z`` and ``q = exp(z, v)``.

    When the ends move, the geodesic changes by the Jacobi field J with ``J(0) = u`` and
    ``J(1) = w``, and the energy has the covariant second derivative
    ``⟨DJ/dt(1), w⟩ − ⟨DJ/dt(0), u⟩``. In coordinates, a gradient ``g`` adds ``g_k Γ^k_ij`` at each
    end. Not differentiable.

    Args:
        space: As in :func:`jacobi`.
        z: Start points ``(*b, m)``.
        v: Velocities ``(*b, m)``, such as those of :func:`log`.
        rtol: Of the integration; see :func:`~riemae.solvers.exp`.
        max_steps: Of the integration.
        throw: Raise where there are no such derivatives; False returns NaN for them.

    Raises:
        ShapeError: When points and velocities do not pair up.
        NotConvergedError: When ``throw``, and a geodesic cannot be followed or its ends are
            conjugate; its ``result`` holds the derivatives of all others.

    References:
        M. P. do Carmo, Riemannian Geometry, chapters 5 and 9. X. Pennec, Barycentric subspace
        analysis on manifolds, Annals of Statistics 46, 2018, appendix A (the Hessian of d²).
    """
    space = space_of(space, z, where="second_variation")
    z, v = paired("second_variation", z.detach(), v.detach())
    batch = z.shape[:-1]
    wide = z.shape[-1]
    m = wide - labels_of(space)
    start, velocity = z.reshape(-1, wide), v.reshape(-1, wide)
    p = len(start)
    eye = torch.eye(m, wide).to(z).expand(p, m, wide)
    none = torch.zeros_like(eye)
    with torch.no_grad():
        flow = Variation(
            space=space,
            z=start,
            v=velocity,
            fields=torch.cat([eye, none], 1),  # rows of A(0), and of B(0)
            derivatives=torch.cat([none, eye], 1),
            reach=1.0,
            rtol=rtol,
            max_steps=max_steps,
        )
        end = flow.at(1.0)
        begin = Moment(start, velocity, none, none)
        found = _derivatives(space, begin, end, m)
    parts = [end.z[:, :m], *found]
    sound = torch.stack([x.isfinite().flatten(1).all(1) for x in parts]).all(0) & ~flow.failed
    parts = [torch.where(sound.view(-1, *(1,) * (x.ndim - 1)), x, torch.nan) for x in parts]
    result = SecondVariation(*(x.view(*batch, *x.shape[1:]) for x in parts))
    if throw and not bool(sound.all()):
        failed = (~sound).nonzero().flatten().tolist()
        raise NotConvergedError(
            "second_variation",
            f"{p} geodesics whose ends determine them",
            f"{len(failed)} that cannot be followed, or end at a conjugate point "
            f"(first: {failed[:5]})",
            "Leave these pairs out: throw=False marks them with NaN.",
            result,
        )
    return result


def _derivatives(space: Space, begin: Moment, end: Moment, m: int) -> tuple[Tensor, ...]:
    """Gradients and Hessians, from the fields that begin as unit vectors and with unit slopes."""
    a, b = end.fields[..., :m].mT.chunk(2, -1)  # J(1) = A J(0) + B DJ(0)
    da, db = end.derivatives[..., :m].mT.chunk(2, -1)
    # DJ(0) = B⁻¹ (J(1) − A J(0)). Singular at conjugate points, where NaN comes of it.
    inverse, info = torch.linalg.inv_ex(b)
    inverse = torch.where((info == 0)[:, None, None], inverse, torch.nan)
    metrics = [space.metric(x.z)[..., :m, :m] for x in (begin, end)]
    first, last = metrics
    start_gradient = -_applied(first, begin.v[:, :m])
    stop_gradient = _applied(last, end.v[:, :m])
    start_hessian = first @ inverse @ a + _bent(space, begin.z, start_gradient)
    mixed = -first @ inverse
    stop_hessian = last @ db @ inverse + _bent(space, end.z, stop_gradient)
    symmetric = [(x + x.mT) / 2 for x in (start_hessian, stop_hessian)]
    return start_gradient, stop_gradient, symmetric[0], mixed, symmetric[1]


def _applied(matrix: Tensor, vector: Tensor) -> Tensor:  # (p, m, m), (p, m) -> (p, m)
    return (matrix @ vector[..., None])[..., 0]


def _bent(space: Space, z: Tensor, gradient: Tensor) -> Tensor:  # (p, m'), (p, m) -> (p, m, m)
    """``g_k Γ^k_ij``."""
    m = gradient.shape[-1]
    sound = z.isfinite().all(-1)
    out = gradient.new_full((*gradient.shape, m), torch.nan)
    points = z[sound]
    if not len(points):
        return out
    eye = torch.eye(m, z.shape[-1]).to(z)
    every = points[:, None].expand(-1, m, -1)
    acceleration = partial(sound_acceleration, space)
    # (p, i, k, j): of every basis vector i the matrix of v ↦ −Γ(e_i, v).
    turns = connection_matrix(acceleration, every, eye.expand_as(every))[..., :m, :m]
    out[sound] = -torch.einsum("pk,pikj->pij", gradient[sound], turns)
    return out
