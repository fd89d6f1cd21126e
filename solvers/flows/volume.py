"""How the exponential map stretches volume: a determinant of Jacobi fields."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.exceptions import OptionError
from riemae.numerics.precision import in_full_precision
from riemae.numerics.transforms import refuse_transforms
from riemae.solvers.flows.jacobi import Moment, Variation, paired
from riemae.solvers.space import HasSpace, Space, space_of


@dataclass(frozen=True)
class ExponentialVolume:
    """Volume under the exponential map, along geodesics ``exp(z, t v)``, at k times.

    Attributes:
        points: ``(*b, k, m)``, where the geodesics are.
        density: ``(*b, k)``, the determinant of the map's derivative at ``t v`` in orthonormal
            frames: 1 at time 0, 0 at a conjugate point, negative behind it.
        slope: ``(*b, k)``, the density's derivative in t.

    Geodesics are followed to the first time that is at or behind a conjugate point. All values are
    NaN from there on, or from where a geodesic cannot be followed.
    """

    points: Tensor
    density: Tensor
    slope: Tensor


@in_full_precision
def exponential_volume(
    space: Space | HasSpace,
    z: Tensor,
    v: Tensor,
    t: Tensor,
    *,
    rtol: float | None = None,
    max_steps: int = 2000,
) -> ExponentialVolume:  # (*b, m), (*b, m), (k,)
    """The volume density of the exponential map, in normal coordinates; not differentiable.

    Its columns are Jacobi fields: ``d exp(t v) w = J(t) / t`` with ``J(0) = 0`` and
    ``DJ/dt(0) = w``. All m of them are integrated along each geodesic. In polar coordinates the
    volume element is ``density r^(m-1) dr du``.

    Args:
        space: As in :func:`jacobi`.
        z: Start points.
        v: Velocities.
        t: Increasing times above 0, of which the last is the reach.
        rtol: As in :func:`~riemae.solvers.exp`.
        max_steps: As in :func:`~riemae.solvers.exp`.

    Raises:
        OptionError: When the times are not in order.
        ShapeError: When ``z`` and ``v`` do not pair up.

    References:
        A. Gray, Tubes, 2004, chapter 3; M. P. do Carmo, Riemannian Geometry, chapter 5.
    """
    refuse_transforms(
        "exponential_volume", "It is not differentiable; batch axes take the place of vmap."
    )
    space = space_of(space, z, where="exponential_volume")
    z, v = paired("exponential_volume", z, v)
    times = [float(x) for x in t.reshape(-1)]
    ordered = all(a < b for a, b in zip(times, times[1:], strict=False))
    if not times or not times[0] > 0 or not ordered or not times[-1] < float("inf"):
        wanted = "increasing times above 0"
        raise OptionError("exponential_volume", wanted, str(times)[:80], "Try t.sort().values.")
    m = z.shape[-1]
    batch = z.shape[:-1]
    flat_z, flat_v = (x.detach().reshape(-1, m) for x in (z, v))
    with torch.no_grad():
        flow = Variation(
            space=space,
            z=flat_z,
            v=flat_v,
            fields=flat_z.new_zeros(len(flat_z), m, m),
            derivatives=torch.eye(m).to(flat_z).expand(len(flat_z), m, m),
            reach=times[-1],
            rtol=rtol,
            max_steps=max_steps,
        )
        start = _root(space, flat_z)
        points, density, slope = [], [], []
        for time in times:
            moment = flow.at(time)
            stretch, change = _stretch(space, moment, start, time)
            flow.failed |= ~(stretch > 0)
            points.append(moment.z)
            density.append(stretch)
            slope.append(change)
    shape = (*batch, len(times))
    return ExponentialVolume(
        points=torch.stack(points, 1).view(*shape, m),
        density=torch.stack(density, 1).view(shape),
        slope=torch.stack(slope, 1).view(shape),
    )


def _root(space: Space, z: Tensor) -> Tensor:  # (p, m) -> (p,)
    """``√det G``; NaN where there is no metric."""
    sound = z.isfinite().all(-1)
    root = z.new_full((len(z),), torch.nan)
    if bool(sound.any()):
        root[sound] = torch.linalg.det(space.metric(z[sound])).clamp(min=0.0).sqrt()
    return root


def _stretch(
    space: Space, moment: Moment, start: Tensor, time: float
) -> tuple[Tensor, Tensor]:  # (p,), (p,)
    """Density and slope at a time.

    The fields begin as the coordinates' basis, whose volume is ``√det G(z)``. Frames are carried
    along in parallel, so that covariant derivatives of the fields are what turns the determinant:
    ``(det J)' = det J tr(J⁻¹ DJ)``.
    """
    m = moment.z.shape[-1]
    fields = moment.fields.nan_to_num() / time
    change = moment.derivatives.nan_to_num() / time
    volume = torch.linalg.det(fields)
    # tr(adj(J) DJ) holds at conjugate points as well, where J has no inverse: the sum over columns
    # of determinants in which one column is replaced by its derivative.
    turned = torch.zeros_like(volume)
    for a in range(m):
        replaced = fields.clone()
        replaced[:, a] = change[:, a]
        turned = turned + torch.linalg.det(replaced)
    scale = _root(space, moment.z) / start
    return scale * volume, scale * (turned - m / time * volume)
