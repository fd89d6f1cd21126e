"""Random walks: Brownian motion, and Langevin dynamics towards a density."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from riemae.exceptions import DTypeError, OptionError
from riemae.geometry import operators
from riemae.numerics.checks import expect_finite, expect_range, expect_shape, expect_values
from riemae.numerics.random import as_generator
from riemae.solvers.space import Space, space_of
from riemae.statistics.arguments import takes_and_gives_codes
from riemae.statistics.tangents import Somewhere, expect_steps, factor, frame, stepped

# By default a step is so short that its geodesic bends by at most this share of it in coordinates,
# and there are so many at least.
_BEND = 0.05
_FEWEST = 50


@takes_and_gives_codes
def brownian_motion(
    geometry: Somewhere,
    z: Tensor,
    time: float,
    steps: int | None = None,
    *,
    path: bool = False,
    generator: torch.Generator | int | None = 0,
) -> Tensor:  # (*b, m) -> (*b, m) or (*b, steps + 1, m)
    """Brownian motion, whose generator is half the Laplace–Beltrami operator.

    A random walk of normal tangents with variance ``time / steps`` in every direction, along
    geodesics to second order: expectations of functions are wrong by ``O(time / steps)``.

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        z: Start points ``(*b, m)``, one walk for each.
        time: How long, more than 0.
        steps: By default so many that no step's geodesic bends by more than 5 % at the start
            points, and 50 at least.
        path: Return all points of the walk.
        generator: A generator, or the seed of a new one; None draws from torch's own.

    Returns:
        Where the walks end; with ``path`` all their points, ``(*b, steps + 1, m)``. NaN where one
        has left the domain.

    Raises:
        OptionError: When ``time`` or ``steps`` is not positive.
        ShapeError: When ``z`` is not points.
        NonFiniteError: When a start point is NaN or infinite.
    """
    return _walk("brownian_motion", geometry, z, None, time, steps, path, generator)


@takes_and_gives_codes
def langevin(
    geometry: Somewhere,
    z: Tensor,
    log_density: Callable[[Tensor], Tensor],
    time: float,
    steps: int | None = None,
    *,
    path: bool = False,
    generator: torch.Generator | int | None = 0,
) -> Tensor:  # (*b, m) -> (*b, m) or (*b, steps + 1, m)
    """Langevin dynamics ``dz = ½ ∇ log p dt + dB``, whose walks end up distributed like p.

    The density is one with respect to the Riemannian volume. Steps are not rejected, so that the
    distribution is off by ``O(time / steps)``.

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        z: Start points ``(*b, m)``.
        log_density: ``log p`` up to a constant, ``(k, m) -> (k,)``, differentiable by torch.
        time: As in :func:`brownian_motion`.
        steps: As in :func:`brownian_motion`.
        path: As in :func:`brownian_motion`.
        generator: As in :func:`brownian_motion`.

    Returns:
        As :func:`brownian_motion`.

    Raises:
        OptionError: When ``time`` or ``steps`` is not positive.
        ShapeError: When ``log_density`` gives anything but one value for each point.
        DifferentiationError: When it changes and autograd does not know.
        DTypeError: When it is not a function.
    """
    if not callable(log_density):
        got = type(log_density).__name__
        raise DTypeError("langevin", "log_density as a function", got, "(k, m) -> (k,)")
    return _walk("langevin", geometry, z, log_density, time, steps, path, generator)


def _walk(
    where: str,
    geometry: Somewhere,
    z: Tensor,
    log_density: Callable[[Tensor], Tensor] | None,
    time: float,
    steps: int | None,
    path: bool,
    generator: torch.Generator | int | None,
) -> Tensor:
    expect_values(where, "z", z)
    expect_shape(where, "z", z, ("*b", "m"), "Batch axes come first.")
    expect_finite(where, "z", z, "Leave these points out.")
    expect_range(where, "time", time, 0.0, above=True, hint="It is how long the walks take.")
    space = space_of(geometry, z, where=where)
    source = as_generator(where, generator)
    m = z.shape[-1]
    flat = z.detach().reshape(-1, m)
    with torch.no_grad():
        if steps is None:
            steps = _enough(geometry, space, flat, float(time))
        expect_steps(where, "steps", steps)
        dt = float(time) / steps
        walk = [flat]
        for _ in range(steps):
            here = walk[-1]
            tangent = math.sqrt(dt) * _noise(geometry, here, source)
            if log_density is not None:
                drift = operators.gradient(_Factor(geometry), where, log_density, here)
                tangent = tangent + dt / 2 * drift
            walk.append(stepped(space, here, tangent))
            if not path:
                walk = walk[-1:]
    if path:
        return torch.stack(walk, 1).view(*z.shape[:-1], steps + 1, m)
    return walk[-1].view(z.shape)


class _Factor:
    """What a gradient asks of a space."""

    def __init__(self, geometry: Somewhere) -> None:
        self._geometry = geometry

    def metric_factor(self, z: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
        return factor(self._geometry, z)

    def acceleration(self, z: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k, m)
        return space_of(self._geometry, z).acceleration(z, v)


def _noise(geometry: Somewhere, z: Tensor, source: torch.Generator | None) -> Tensor:
    """Normal tangents ``(k, m)``, of variance 1 in every direction."""
    device = "cpu" if source is None else source.device
    drawn = torch.randn(z.shape, generator=source, dtype=torch.float64, device=device)
    return torch.einsum("kij,kj->ki", frame(geometry, z), drawn.to(z))


def _enough(geometry: Somewhere, space: Space, z: Tensor, time: float) -> int:
    """Steps after which none bends much, by what the start points say.

    Raises:
        OptionError: When there is no such number.
    """
    if not len(z):
        return _FEWEST
    m = z.shape[-1]
    unit = frame(geometry, z)
    bend = z.new_zeros(len(z))
    for a in range(m):
        e = unit[:, :, a]
        bend = torch.fmax(bend, space.norm(z, space.acceleration(z, e)) / 2)
    # Bends grow with the square of a step, whose size is that of m normal numbers.
    step = _BEND / float(bend.amax()) if bool(bend.amax() > 0) else math.inf
    count = time * m / step**2
    if not math.isfinite(count):
        wanted = "start points at which geodesics have an acceleration"
        hint = "Are all of them in the domain? Or give steps=."
        raise OptionError("brownian_motion", wanted, "one that is not finite", hint)
    return max(_FEWEST, math.ceil(count))
