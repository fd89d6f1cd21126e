"""What certifies a geodesic besides its length: how well the curve solves the geodesic equation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from riemae.exceptions import NonFiniteError, SingularMetricError
from riemae.numerics.precision import in_full_precision
from riemae.solvers.curve import Curve
from riemae.solvers.space import HasSpace, Space, space_of


@in_full_precision
def geodesic_residual(
    space: Space | HasSpace, curve: Curve, pieces: Tensor | None = None
) -> Tensor:  # -> (*b,)
    """Residual of the geodesic equation: ``rms |z̈ + Γ(ż, ż)| / L``.

    It is the rate at which the curve still turns. ``z̈ + Γ(ż, ż)`` is the covariant acceleration
    ``∇_ż ż`` of the spline, measured by the metric at the middle of every piece; over unit time and
    divided by the length it has no unit and does not depend on the chart: radians that the curve
    turns away from a geodesic, and relative change of its speed. An exact geodesic has 0. A
    spline's second derivative is of second order only: expect a quarter at twice the segments,
    while the length gains by 16 or more.

    Args:
        space: Anything with an ``acceleration`` and a ``norm``.
        curve: A batch ``(*b,)`` of curves.
        pieces: ``(*b,)`` int64, over how many pieces each curve is averaged; by default over its
            own segments.

    Returns:
        One number per curve; 0 where it never leaves its point, NaN where the metric is singular on
        it.
    """
    space = space_of(space, curve.nodes, where="geodesic_residual")
    batch = curve.batch_shape
    shape = (-1, curve.segments + 1, curve.nodes.shape[-1])
    nodes = curve.nodes.reshape(shape)
    slopes = curve.slopes.reshape(shape)
    flat = Curve(nodes, slopes)
    if pieces is None:
        pieces = torch.full(batch, curve.segments, device=curve.nodes.device)
    wanted = pieces.reshape(-1).clamp(min=1)
    out = flat.nodes.new_full(wanted.shape, torch.nan)
    nodes_finite = flat.nodes.isfinite().flatten(1).all(1)
    slopes_finite = flat.slopes.isfinite().flatten(1).all(1)
    finite = nodes_finite & slopes_finite
    for count in wanted[finite].unique().tolist():
        rows = (finite & (wanted == count)).nonzero().flatten()
        part = flat[rows]
        same = part.nodes == part.nodes[:, :1]
        at_rest = same.flatten(1).all(1)
        turning = _turning(space, part, count)
        out[rows] = torch.where(at_rest, 0.0, turning)
    return out.view(batch)


def _turning(space: Space, curve: Curve, count: int) -> Tensor:  # -> (p,)
    """``rms |z̈ + Γ(ż, ż)| / L`` at the middles of ``count`` pieces."""
    number = torch.arange(count).to(curve.nodes)
    t = (number + 0.5) / count
    z = curve(t).flatten(0, 1)
    v = curve.velocity(t).flatten(0, 1)
    bend = curve.acceleration(t).flatten(0, 1)
    turn = bend - sound_acceleration(space, z, v)
    known = turn.isfinite().all(-1)
    sure = torch.where(known[:, None], turn, 0.0)
    deviation = space.norm(z, sure)
    deviation = torch.where(known, deviation, torch.nan).view(-1, count)
    speed = space.norm(z, v).view(-1, count)
    length = speed.mean(-1)
    rms = deviation.square().mean(-1).sqrt()
    return rms / length


def sound_acceleration(space: Space, z: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k, m)
    """The space's acceleration, NaN where the metric is singular or there is no value.

    Only that point fails.
    """
    return sound(space.acceleration, z.shape[1:], z, v)


def sound(
    call: Callable[..., Tensor], shape: torch.Size, *arguments: Tensor
) -> Tensor:  # -> (k, *shape)
    """``call`` on a batch of points, NaN for those without a metric that can be inverted.

    Errors that concern the space as a whole, such as a derivative that cannot be trusted, are
    raised.
    """
    try:
        return call(*arguments)
    except (SingularMetricError, NonFiniteError):
        first = arguments[0]
        if len(first) == 1:
            return first.new_full((1, *shape), torch.nan)
        half = len(first) // 2
        first_half = [x[:half] for x in arguments]
        second_half = [x[half:] for x in arguments]
        parts = first_half, second_half
        return torch.cat([sound(call, shape, *part) for part in parts])


def unevenness(speed: Tensor, weights: Tensor) -> Tensor:  # (p, q), (q,) -> (p,)
    """Largest relative deviation of the speed from its mean.

    It is 0 for a geodesic, which has constant speed.
    """
    mean = (speed * weights).sum(-1, keepdim=True)
    largest = (speed / mean - 1).abs().amax(-1)
    level = mean[:, 0]
    return torch.where(level > 0, largest, level * 0)
