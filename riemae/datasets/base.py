"""Samples with the truth behind them, and what a model is measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.exceptions import OptionError, ShapeError
from riemae.numerics.checks import expect_range
from riemae.numerics.random import as_generator
from riemae.numerics.threads import forward_mode

Source = torch.Generator | int | None  # of randomness: see as_generator
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
        surface: The true map from coordinates to data, ``(k, m) -> (k, *shape)``; differentiable
            for curves and surfaces.
        distance: True geodesic distance between coordinates, ``(k, m), (k, m) -> (k,)``; None where
            no closed form exists.
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
        samples = f"{len(self.x)} samples in R^{shape}"
        coordinates = f"{self.z.shape[1]} coordinate(s)"
        tests = f"{len(self.test)} test points"
        return f"Dataset({samples}, {coordinates}, {tests})"

    def nearest_distance(self, x: Tensor) -> Tensor:  # (k, D) -> (k,)
        """Distance of points to the true curve or surface.

        By the Gauss–Newton method from the nearest test point. The surface is the image of the
        whole box of coordinates: a hole is filled.

        Raises:
            ShapeError: When the points are not ``(k, D)`` with the D of a curve or surface.
        """
        from scipy.spatial import KDTree

        if self.test.ndim != 2 or x.ndim != 2 or x.shape[1] != self.test.shape[1]:
            raise ShapeError(
                "Dataset.nearest_distance",
                "points (k, D) of a curve or surface",
                f"{tuple(x.shape)} with data of shape {tuple(self.test.shape[1:])}",
                "Give points of the data's dimension; images and clouds have no nearest distance.",
            )
        points = x.detach().double()
        tree = KDTree(self.test.double().cpu().numpy())
        _, nearest = tree.query(points.cpu().numpy())
        start = torch.as_tensor(nearest, device=self.test_z.device)
        z = self.test_z.double()[start].to(points)
        low, high = self.bounds.to(points)

        def at_one(z: Tensor) -> Tensor:  # (m,) -> (D,)
            return self.surface(z[None])[0]

        jacobian = torch.func.vmap(torch.func.jacfwd(at_one))
        best = (self.surface(z) - points).norm(dim=1)
        for _ in range(_NEWTON_STEPS):
            with forward_mode():
                j = jacobian(z)
            gap = points - self.surface(z)
            step = torch.linalg.lstsq(j, gap[..., None]).solution[..., 0]
            z = (z + step).clamp(low, high)
            distance = (self.surface(z) - points).norm(dim=1)
            best = torch.minimum(best, distance)
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
        raise ShapeError(
            "clean_error",
            f"a reconstruction {tuple(dataset.test.shape)}",
            str(tuple(found.shape)),
            "Give a function that returns its argument's shape, such as decoder after encoder.",
        )
    gap = (found - dataset.test).flatten(1)
    squared = gap.square().sum(1)
    return float(squared.mean())


def length_ratio(dataset: Dataset, curve: Tensor) -> float:  # (k, D)
    """Length of the polygon through ``curve``'s rows, relative to the true curve.

    1 is right; more than 1 means that the polygon oscillates.

    Raises:
        ShapeError: When the data are not a curve, or ``curve`` lies in another space.
    """
    if dataset.z.shape[1] != 1 or curve.ndim != 2 or curve.shape[1:] != dataset.test.shape[1:]:
        raise ShapeError(
            "length_ratio",
            f"a curve (k, {dataset.test[0].numel()}) and data with one coordinate",
            f"{tuple(curve.shape)}, {dataset.z.shape[1]} coordinate(s)",
            "Decode codes in order, and compare with a curve such as noisy_sine().",
        )
    length = polygon_length(curve.detach())
    true_length = polygon_length(dataset.test)
    return float(length / true_length)


def in_order(z: Tensor, truth: Tensor) -> bool:  # (n, 1) or (n,) twice
    """Whether one-dimensional codes put the samples in their true order.

    In either direction, without ties.

    Raises:
        ShapeError: When there are several coordinates, or the numbers of samples differ.
    """
    if z.numel() != len(z) or truth.numel() != len(truth) or len(z) != len(truth):
        got = f"{tuple(z.shape)} and {tuple(truth.shape)}"
        hint = "Give one code per sample, (n,) or (n, 1)."
        raise ShapeError("in_order", "two lists of n numbers", got, hint)
    codes = z.detach().reshape(-1)
    order = truth.reshape(-1).argsort()
    steps = codes[order].diff()
    rising = bool((steps > 0).all())
    falling = bool((steps < 0).all())
    return rising or falling


def rank_correlation(dataset: Dataset, z: Tensor) -> float:  # (n, m)
    """Spearman's correlation of Euclidean latent distances with the true ones.

    Over all pairs of samples.

    Raises:
        ShapeError: When ``z`` has another number of rows than the data.
        OptionError: When the data have no true distance.
    """
    from scipy.stats import spearmanr

    if z.ndim != 2 or len(z) != len(dataset.z):
        hint = "Give the codes of dataset.x, one row per sample."
        raise ShapeError(
            "rank_correlation", f"codes ({len(dataset.z)}, m)", str(tuple(z.shape)), hint
        )
    if dataset.distance is None:
        raise OptionError(
            "rank_correlation",
            "data with a true distance",
            "none",
            "cylinder, patch_with_hole and swiss_roll have one.",
        )
    i, j = torch.triu_indices(len(z), len(z), 1, device=z.device)
    latent = (z[i] - z[j]).detach().norm(dim=1)
    true = dataset.distance(dataset.z[i], dataset.z[j])
    found = spearmanr(latent.cpu().numpy(), true.cpu().numpy())
    return float(found.statistic)


# What the functions above share.


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Distances of rows in the plane metric of their coordinates."""
    return (a - b).norm(dim=-1)


def polygon_length(curve: Tensor) -> Tensor:
    """The length of a polygon through rows."""
    steps = curve.flatten(1).double().diff(dim=0)
    return steps.norm(dim=1).sum()


def as_dtype(
    dtype: torch.dtype | None, *parts: Tensor | Map | Callable[[Tensor, Tensor], Tensor] | None
) -> Dataset:
    """The parts of a :class:`Dataset`, tensors in this dtype."""
    kind = torch.get_default_dtype() if dtype is None else dtype
    # The parts come in the order of the fields, which no type of a generator can say.
    return Dataset(*(p.to(kind) if isinstance(p, Tensor) else p for p in parts))  # type: ignore[arg-type]


def noisy(clean: Tensor, noise: float, generator: Source) -> Tensor:
    """``clean`` with isotropic Gaussian noise of this standard deviation.

    Raises:
        OptionError: When it is negative.
    """
    expect_range("datasets", "noise", noise, 0, hint="It is a standard deviation, such as 0.1.")
    if not noise:
        return clean.clone()
    source = as_generator("datasets", generator)
    drawn = torch.randn(clean.shape, generator=source, dtype=torch.float64)
    return clean + noise * drawn
