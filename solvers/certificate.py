"""What certifies a geodesic beside its length: how well the curve solves the geodesic equation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from riemae.exceptions import NonFiniteError, SingularMetricError
from riemae.solvers.curve import Curve
from riemae.solvers.space import Space


def geodesic_residual(
    space: Space, curve: Curve, pieces: Tensor | None = None
) -> Tensor:  # -> (*b,)
    """Residual of the geodesic equation: ``rms |z̈ + Γ(ż, ż)| / L``, the rate at which the curve
    still turns.

    ``z̈ + Γ(ż, ż)`` is the covariant acceleration ``∇_ż ż`` of the spline, measured by the metric
    at the middle of every piece; over unit time and divided by the length it has no unit and does
    not depend on the chart: radians that the curve turns beside a geodesic, and relative change of
    its speed. An exact geodesic has 0. A spline's second derivative is of second order only: expect
    a quarter at twice the segments, while the length gains by 16 or more.

    Args:
        space: Anything with an ``acceleration`` and a ``norm``.
        curve: A batch ``(*b,)`` of curves.
        pieces: ``(*b,)`` int64, over how many pieces each curve is averaged; its own segments
            unless given.

    Returns:
        One number a curve; 0 where it never leaves its point, NaN where the metric is singular on
        it.
    """
    batch = curve.batch_shape
    m = curve.nodes.shape[-1]
    flat = Curve(
        curve.nodes.reshape(-1, curve.segments + 1, m),
        curve.slopes.reshape(-1, curve.segments + 1, m),
    )
    wanted = (
        torch.full(batch, curve.segments, device=curve.nodes.device) if pieces is None else pieces
    )
    wanted = wanted.reshape(-1).clamp(min=1)
    out = flat.nodes.new_full(wanted.shape, torch.nan)
    finite = flat.nodes.isfinite().flatten(1).all(1) & flat.slopes.isfinite().flatten(1).all(1)
    for count in wanted[finite].unique().tolist():
        rows = (finite & (wanted == count)).nonzero().flatten()
        part = flat[rows]
        t = (torch.arange(count).to(part.nodes) + 0.5) / count
        z, v, a = (x.flatten(0, 1) for x in (part(t), part.velocity(t), part.acceleration(t)))
        turn_vector = a - sound_acceleration(space, z, v)
        known = turn_vector.isfinite().all(-1)
        deviation = space.norm(z, torch.where(known[:, None], turn_vector, 0.0))
        deviation = torch.where(known, deviation, torch.nan).view(len(rows), count)
        speed = space.norm(z, v).view(len(rows), count)
        length = speed.mean(-1)
        turn = deviation.square().mean(-1).sqrt() / length
        out[rows] = torch.where((part.nodes == part.nodes[:, :1]).flatten(1).all(1), 0.0, turn)
    return out.view(batch)


def sound_acceleration(space: Space, z: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k, m)
    """The space's acceleration, NaN where the metric is singular or there is no value: only that
    point fails.
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
        parts = [x[:half] for x in arguments], [x[half:] for x in arguments]
        return torch.cat([sound(call, shape, *part) for part in parts])


def unevenness(speed: Tensor, weights: Tensor) -> Tensor:  # (p, q), (q,) -> (p,)
    """Largest relative deviation of the speed from its mean: a geodesic has constant speed, hence
    0.
    """
    mean = (speed * weights).sum(-1, keepdim=True)
    return torch.where(mean[:, 0] > 0, (speed / mean - 1).abs().amax(-1), mean[:, 0] * 0)
