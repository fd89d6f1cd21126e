"""Curves and surfaces, each with what a model should have found."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from riemae.datasets.base import Dataset, Map, Source, as_dtype, euclidean, noisy
from riemae.exceptions import OptionError
from riemae.numerics.random import as_generator

# Curves.


def noisy_sine(
    n: int = 50, noise: float = 0.3, generator: Source = 0, dtype: torch.dtype | None = None
) -> Dataset:
    """``(t, sin t)`` at n equal steps of ``t`` over [−π, π], with noise."""

    def curve(t: Tensor) -> Tensor:
        return torch.cat([t, t.sin()], -1)

    grid = torch.linspace(-math.pi, math.pi, n, dtype=torch.float64)[:, None]
    return _curve(curve, grid, (-math.pi, math.pi), noise, generator, dtype)


def sparse_spiral(
    n: int = 30, noise: float = 0.01, generator: Source = 0, dtype: torch.dtype | None = None
) -> Dataset:
    """One turn of an elliptic spiral by few points.

    An encoder into one number easily puts them in a wrong order.
    ``r = 0.1 + 2.9 t``, ``θ = 2π t (n − 1)/n``, ``(r cos θ, 0.6 r sin θ)`` at n equal steps of
    ``t`` over [0, 1].
    """
    turn = 2 * math.pi * (n - 1) / max(n, 1)

    def curve(t: Tensor) -> Tensor:
        r = 0.1 + 2.9 * t
        across = r * (turn * t).cos()
        along = 0.6 * r * (turn * t).sin()
        return torch.cat([across, along], -1)

    grid = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    return _curve(curve, grid, (0.0, 1.0), noise, generator, dtype)


# Surfaces.


def cylinder(
    n: int = 60,
    radius: float = 1.0,
    height: float = 2.0,
    noise: float = 0.15,
    angle: float = math.pi,
    generator: Source = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Part of a cylinder: angles up to ``angle`` radians, points uniform on the surface.

    Its coordinates ``(radius · angle, height)`` are isometric; ``Tr(G⁻¹C)`` is ``2/radius²``
    everywhere. An angle of 2π closes the cylinder, and distances then go the short way round.
    """

    def surface(z: Tensor) -> Tensor:
        u, h = z.unbind(-1)
        across = radius * (u / radius).cos()
        along = radius * (u / radius).sin()
        return torch.stack([across, along, h], -1)

    circumference = 2 * math.pi * radius

    def distance(a: Tensor, b: Tensor) -> Tensor:
        around, up = (a - b).abs().unbind(-1)
        if angle > 2 * math.pi - 1e-9:
            around = torch.minimum(around, circumference - around)
        return torch.hypot(around, up)

    box = [[0.0, -height / 2], [radius * angle, height / 2]]
    return _surface(surface, n, box, noise, generator, dtype, distance)


def patch_with_hole(
    n: int = 2000,
    bend: float = 1.5,
    hole: float = 0.45,
    noise: float = 0.0,
    generator: Source = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """A bent square with a square hole: flat in itself, so that an isometric chart exists.

    ``(sin(au)/a, v, (1 − cos(au))/a)`` with a = ``bend``, u and v uniform in [−1, 1] without the
    points where both are below ``hole`` in size. ``distance`` is that of the sheet of paper:
    straight across the hole.
    """

    def surface(z: Tensor) -> Tensor:
        u, v = z.unbind(-1)
        across = (bend * u).sin() / bend
        height = (1 - (bend * u).cos()) / bend
        return torch.stack([across, v, height], -1)

    return _surface(
        surface,
        n,
        [[-1.0, -1.0], [1.0, 1.0]],
        noise,
        generator,
        dtype,
        euclidean,
        keep=lambda z: z.abs().amax(-1) >= hole,
    )


def paraboloid(
    n: int = 2000,
    bend: float = 1.0,
    noise: float = 0.0,
    generator: Source = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """``(u, v, bend (u² + v²)/2)`` over [−1, 1]²: curved in itself, so that no chart is isometric.

    Gaussian curvature ``bend²/(1 + bend² ρ²)²`` at ``ρ² = u² + v²``. The coordinates are uniform in
    the square.
    """

    def surface(z: Tensor) -> Tensor:
        squared = z.square().sum(-1, keepdim=True)
        return torch.cat([z, bend * squared / 2], -1)

    return _surface(surface, n, [[-1.0, -1.0], [1.0, 1.0]], noise, generator, dtype)


def swiss_roll(
    n: int = 1000,
    turns: float = 1.5,
    noise: float = 0.0,
    generator: Source = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """A rolled sheet, ``(s cos s, h, s sin s)``, with points uniform on it.

    Its coordinates (arc length, height) are isometric. ``s`` runs over ``turns`` turns from 3π/2,
    the height over [0, 21]. Arc length is
    ``(s √(1 + s²) + arsinh s)/2``, inverted by Newton's method.
    """
    start = 1.5 * math.pi
    stop = 1.5 * math.pi + 2 * math.pi * turns

    def arc(s: Tensor) -> Tensor:
        return (s * (1 + s * s).sqrt() + s.asinh()) / 2

    origin = float(arc(torch.tensor(start, dtype=torch.float64)))
    extent = float(arc(torch.tensor(stop, dtype=torch.float64))) - origin

    def surface(z: Tensor) -> Tensor:
        length, h = z.unbind(-1)
        # The arc length is about s²/2, from above; Newton's method is monotone from there.
        s = (2 * (length + origin)).sqrt()
        for _ in range(5):
            speed = (1 + s * s).sqrt()
            s = s - (arc(s) - length - origin) / speed
        return torch.stack([s * s.cos(), h, s * s.sin()], -1)

    return _surface(surface, n, [[0.0, 0.0], [extent, 21.0]], noise, generator, dtype, euclidean)


def _curve(
    curve: Map,
    grid: Tensor,
    ends: tuple[float, float],
    noise: float,
    generator: Source,
    dtype: torch.dtype | None,
) -> Dataset:
    if len(grid) < 2:
        raise OptionError(
            "datasets", "at least two points on a curve", f"n={len(grid)}", "Try n=50."
        )
    clean = curve(grid)
    test_z = torch.linspace(*ends, 1000, dtype=torch.float64)[:, None]
    bounds = torch.tensor(ends, dtype=torch.float64)[:, None]
    return as_dtype(
        dtype, noisy(clean, noise, generator), clean, grid, curve(test_z), test_z, curve, bounds
    )


def _surface(
    surface: Map,
    n: int,
    box: list[list[float]],
    noise: float,
    generator: Source,
    dtype: torch.dtype | None,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    keep: Callable[[Tensor], Tensor] | None = None,
) -> Dataset:
    if n < 1:
        raise OptionError("datasets", "at least one sample", f"n={n}", "Try n=100.")
    source = as_generator("datasets", generator)
    bounds = torch.tensor(box, dtype=torch.float64)

    def draw(count: int) -> Tensor:
        z = bounds.new_empty(0, bounds.shape[1])
        while len(z) < count:
            size = (2 * count, bounds.shape[1])
            fractions = torch.rand(size, generator=source, dtype=torch.float64)
            more = bounds[0] + (bounds[1] - bounds[0]) * fractions
            z = torch.cat([z, more if keep is None else more[keep(more)]])
        return z[:count]

    z = draw(n)
    test_z = draw(2000)
    clean = surface(z)
    return as_dtype(
        dtype,
        noisy(clean, noise, source),
        clean,
        z,
        surface(test_z),
        test_z,
        surface,
        bounds,
        distance,
    )
