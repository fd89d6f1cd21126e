"""Point clouds on surfaces of known shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from riemae.datasets.base import Dataset, Source, as_dtype
from riemae.exceptions import OptionError
from riemae.numerics.checks import expect_choice
from riemae.numerics.random import as_generator


def superquadrics(
    n: int = 100,
    points: int = 256,
    kind: Literal["box", "cone", "ellipsoid"] = "ellipsoid",
    noise: float = 0.0,
    generator: Source = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Point clouds ``(n, points, 3)``, uniform on boxes, cones or ellipsoids of random size.

    Coordinates are the three half-axes (of a cone: two of its elliptic base, and half its height),
    uniform in [0.5, 1.5]. Every cloud has its own random points; ``surface`` puts one fixed set of
    parameters onto the shape, and is what ``clean`` and ``test`` are made with, so that these
    depend on the coordinates alone.

    Raises:
        OptionError: For an unknown kind, or fewer than one cloud or point.
    """
    expect_choice("superquadrics", "kind", kind, _SHAPES)
    if n < 1 or points < 1:
        got = f"n={n}, points={points}"
        hint = "Try superquadrics(n=100, points=256)."
        raise OptionError("superquadrics", "at least one cloud of one point", got, hint)
    generator = as_generator("superquadrics", generator)
    low = [0.5] * 3
    high = [1.5] * 3
    bounds = torch.tensor([low, high], dtype=torch.float64)
    z = 0.5 + _uniform(n, 3, generator=generator)
    test_z = 0.5 + _uniform(n, 3, generator=generator)
    fixed = int(torch.randint(2**62, (), generator=generator))

    def surface(axes: Tensor) -> Tensor:
        same = torch.Generator()
        clouds = []
        for one in axes.double().cpu():
            same.manual_seed(fixed)
            clouds.append(_on_surface(kind, one, points, same))
        return torch.stack(clouds).to(axes)

    clouds = [_on_surface(kind, axes, points, generator) for axes in z]
    x = torch.stack(clouds)
    x = x + noise * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    clean = surface(z)
    test = surface(test_z)
    return as_dtype(dtype, x, clean, z, test, test_z, surface, bounds)


def _on_surface(
    kind: str, axes: Tensor, n: int, generator: torch.Generator | None
) -> Tensor:  # (3,) -> (n, 3)
    """Points uniform by area on one shape with half-axes ``axes``, all in float64."""
    draw = _SHAPES[kind]
    return draw(axes, n, generator)


def _uniform(n: int, *size: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(n, *size, generator=generator, dtype=torch.float64)


def _on_box(axes: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    inside = 2 * _uniform(n, 3, generator=generator) - 1
    x = inside * axes
    areas = axes.prod() / axes  # of the faces across each axis
    face = torch.multinomial(areas, n, replacement=True, generator=generator)
    coin = _uniform(n, generator=generator)
    side = torch.where(coin < 0.5, -1.0, 1.0).double()
    across = torch.arange(3) == face[:, None]
    return torch.where(across, side[:, None] * axes, x)


def _on_ellipsoid(axes: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Points of the sphere stretched by the axes, kept in proportion to the area element.

    The area element is ``a b c |u/axes|``.
    """

    def draw(count: int) -> tuple[Tensor, Tensor]:
        u = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        u = torch.nn.functional.normalize(u, dim=1)
        element = (u / axes).norm(dim=1)
        return u * axes, element * axes.min()  # at most 1

    return _accepted(draw, n, generator)


def _on_cone(axes: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """An elliptic cone with its base at z = −c and its apex at z = c.

    Side and base get points in proportion to their areas.
    """
    a, b, c = axes.tolist()

    def slant(angle: Tensor) -> Tensor:
        # |∂_r × ∂_θ|/r of (r a cos θ, r b sin θ, c − 2 c r): the area element of the side.
        across = (2 * c * b * angle.cos()) ** 2
        along = (2 * c * a * angle.sin()) ** 2
        return (across + along + (a * b) ** 2).sqrt()

    extremes = torch.tensor([0.0, math.pi / 2], dtype=torch.float64)
    top = float(slant(extremes).max())

    def draw(count: int) -> tuple[Tensor, Tensor]:
        angle = 2 * math.pi * _uniform(count, generator=generator)
        r = _uniform(count, generator=generator).sqrt()
        # Half of the proposals on the base, whose area element a b never exceeds the side's.
        base = _uniform(count, generator=generator) < 0.5
        bottom = -torch.full_like(r, c)
        height = c - 2 * c * r
        x = a * r * angle.cos()
        y = b * r * angle.sin()
        z = torch.where(base, bottom, height)
        element = torch.where(base, torch.full_like(r, a * b), slant(angle))
        return torch.stack([x, y, z], 1), element / top

    return _accepted(draw, n, generator)


def _accepted(
    draw: Callable[[int], tuple[Tensor, Tensor]], n: int, generator: torch.Generator | None
) -> Tensor:
    """Rejection sampling: points of ``draw``, kept with the probability that it returns."""
    kept: list[Tensor] = []
    while sum(map(len, kept)) < n:
        x, probability = draw(2 * n)
        coin = _uniform(2 * n, generator=generator)
        kept.append(x[coin < probability])
    return torch.cat(kept)[:n]


_SHAPES = {"box": _on_box, "cone": _on_cone, "ellipsoid": _on_ellipsoid}
