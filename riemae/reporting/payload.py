"""What the page draws: points, metric, backgrounds, curves and decoded data, as plain values.

Three kinds of pages: a ``"line"`` for one latent dimension, a ``"plane"`` for two, in which the
page solves geodesics itself, and a ``"section"`` of more dimensions with geodesics among landmarks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from riemae.exceptions import (
    NonFiniteError,
    NotConvergedError,
    ShapeError,
    SingularMetricError,
)
from riemae.manifold import Manifold
from riemae.plotting import spread_points
from riemae.reporting.arguments import Images, Labels
from riemae.reporting.lattice import Lattice, MetricTable, refined, tabulated, where_defined
from riemae.reporting.measures import (
    Pairs,
    curvature_at,
    decoded,
    in_the_report,
    plotted_distances,
    straight_lengths,
)
from riemae.reporting.periods import periods_of, short_way
from riemae.reporting.pictures import (
    Sheet,
    as_base64,
    grey_levels,
    tiles_within_budget,
)
from riemae.solvers import GeodesicResult

_NODES = 64  # a side, of the first table of the metric
_MOST_NODES = 160
_MARGIN = 0.06  # of the larger side of the box around codes and geodesics
_TABLE_ERROR = 2e-3  # relative error of lengths that a table may have
_BACKGROUND = 64  # nodes a side of a background
_SAMPLES = 32  # points of a curve at which its table is compared
_ATLAS = 28  # decoded images a side at most
_FEATURES = 8  # lines in the chart of decoded features
_FEATURE_NODES = 32
_LINE_NODES = 513
_THUMB = 32  # pixels a side of the image of a point
_TILE = 64  # pixels a side of a decoded image
_THUMBS = 2**22  # numbers in the images of all points
_WORST = 8  # pairs whose curves a section shows, as many as the page lists
_AXES = 24  # parallel coordinates
_FOR_PCA = 100  # codes from which a section is chosen
_ROWS = 512

Told = Callable[[int, int], object]


@dataclass
class Scene:
    """Everything that is known when a page is put together.

    Attributes:
        M: The manifold.
        z: Codes ``(n, m)``.
        shown: Which of them are drawn, ``(k,)``.
        labels: What they are called.
        images: How outputs are shown as images, or None.
        data: The data of the codes ``(n, D)``, or None.
        names: Of the decoded features; empty for numbers.
        pairs: Sampled geodesics.
        numbers: What is learned on the way, for the result.
    """

    M: Manifold
    z: Tensor
    shown: Tensor
    labels: Labels
    images: Images | None
    data: Tensor | None
    names: tuple[str, ...]
    pairs: Pairs
    numbers: dict[str, float] = field(default_factory=dict)


def payload(scene: Scene, resolution: int | None, landmarks: int, told: Told) -> dict[str, Any]:
    """The data of the page."""
    m = scene.z.shape[1]
    if m == 1:
        special = _line(scene)
    elif m == 2:
        special = _plane(scene, resolution, told)
    else:
        special = _section(scene, landmarks, told)
    return {
        "m": m,
        "points": _points(scene),
        "pairs": _pairs(scene.pairs, scene.z, with_ends=m <= 2),
        "thumbs": _thumbs(scene),
        **special,
    }


def _points(scene: Scene) -> dict[str, Any]:
    labels = scene.labels
    shown = scene.shown.tolist()
    return {
        "count": len(shown),
        "all": len(scene.z),
        "index": as_base64(scene.shown.cpu().numpy(), "<i4"),
        "names": list(labels.names),
        "codes": [labels.codes[i] for i in shown] if labels.codes else [],
        "values": [labels.values[i] for i in shown] if labels.values else [],
        "texts": [labels.texts[i] for i in shown] if labels.texts else [],
    }


def _pairs(pairs: Pairs, z: Tensor, with_ends: bool) -> dict[str, Any]:
    result = pairs.result
    ends = z[pairs.index].flatten(1) if with_ends else z.new_empty(0)
    return {
        "index": pairs.index.tolist(),
        "length": _numbers(result.length),
        "error": _numbers(result.error),
        "converged": result.converged.tolist(),
        "straight": _numbers(pairs.straight),
        "stretch": _numbers(pairs.stretch),
        # As the codes are: a float32 end would be another point.
        "ends": as_base64(ends.double().cpu().numpy(), "<f8"),
        "rtol": result.rtol,
    }


def _numbers(x: Tensor) -> list[float | None]:
    """Numbers with seven digits; JSON has neither NaN nor infinity."""
    return [float(f"{v:.7g}") if np.isfinite(v) else None for v in x.double().tolist()]


def _flat(values: Tensor) -> str:
    return as_base64(values.double().cpu().numpy(), "<f4")


def _rectangle(lattice: Lattice) -> dict[str, Any]:
    return {
        "low": list(lattice.low),
        "high": list(lattice.high),
        "counts": list(lattice.counts),
        "periods": list(lattice.periods),
    }


def _table(table: MetricTable) -> dict[str, Any]:
    packed = table.coefficients
    center = packed.mean((0, 1))  # four bytes per number hold the differences well
    return {
        **_rectangle(table.lattice),
        "center": center.tolist(),
        "coefficients": as_base64(packed - center, "<f4"),
        "defined": as_base64(table.defined, "u1"),
    }


# Two dimensions.


def _plane(scene: Scene, resolution: int | None, told: Told) -> dict[str, Any]:
    z = scene.z
    curves = scene.pairs.result.curve.nodes[scene.pairs.result.converged]
    periods = periods_of(scene.M, 2)
    # A curve that goes round leaves the box of the codes and comes back on its other side.
    comes_round = torch.tensor([period is not None for period in periods], device=z.device)
    curves = torch.where(comes_round, z[0], curves.reshape(-1, 2))
    side = resolution or _NODES
    lattice = Lattice.around(torch.cat([z, curves]), (side, side), _MARGIN, periods)
    table, error = _accurate_table(scene, lattice, resolution is None, told)
    scene.numbers["table_error"] = error
    scene.numbers["table_nodes"] = float(table.lattice.counts[0])
    backgrounds = []
    grid = lattice.resized((_BACKGROUND, _BACKGROUND))
    nodes = grid.nodes(z)
    known = table.knows(nodes)  # looking for what is unknown takes longer than computing
    inner = curvature_at(scene.M, nodes[known])
    if len(inner):
        curvature = inner.new_full((len(nodes),), torch.nan)
        curvature[known] = inner
        backgrounds.append(_background("curvature", "Gaussian curvature", grid, curvature))
    away = _distance_to_codes(scene.M, table, nodes, z)
    backgrounds.append(_background("distance", "Distance to the data", grid, away))
    return {
        "kind": "plane",
        "coordinates": _flat(z[scene.shown]),
        "axes": ["z₁", "z₂"],
        "table": _table(table),
        "tableError": error if np.isfinite(error) else None,
        "backgrounds": backgrounds,
        **_decoded(scene, lattice, lambda points: points),
    }


def _background(key: str, name: str, grid: Lattice, values: Tensor) -> dict[str, Any]:
    return {"key": key, "name": name, **_rectangle(grid), "values": _flat(values)}


def _accurate_table(
    scene: Scene, lattice: Lattice, may_refine: bool, told: Told
) -> tuple[MetricTable, float]:
    """A table whose lengths of the sampled geodesics are right, and its largest relative error."""
    points, velocity = _along(scene.pairs.result)
    rows = torch.cat([points, velocity], -1).flatten(0, 1)
    true = where_defined(lambda both: scene.M.norm(both[:, :2], both[:, 2:]), rows)
    while True:
        table = tabulated(scene.M, lattice, scene.z, told)
        error = _table_error(table, points, velocity, true)
        finer = refined(lattice.counts, _MOST_NODES)
        if not may_refine or finer is None or not error > _TABLE_ERROR:
            return table, error
        lattice = lattice.resized(finer)


def _along(result: GeodesicResult) -> tuple[Tensor, Tensor]:  # -> (p, k, m), (p, k, m)
    """Points and velocities along the geodesics that were found."""
    curve = result.curve[result.converged]
    nodes = curve.nodes
    t = (torch.arange(_SAMPLES, dtype=nodes.dtype, device=nodes.device) + 0.5) / _SAMPLES
    return curve(t), curve.velocity(t)


def _table_error(table: MetricTable, points: Tensor, velocity: Tensor, true: Tensor) -> float:
    if not points.numel():
        return float("nan")
    g = table.metric(points.flatten(0, 1))
    v = velocity.flatten(0, 1)
    speed = torch.einsum("ki,kij,kj->k", v, g, v).sqrt()
    lengths = [x.view(points.shape[:2]).mean(1) for x in (speed, true)]
    relative = ((lengths[0] - lengths[1]) / lengths[1]).abs()
    relative = relative[relative.isfinite()]
    return float(relative.max()) if len(relative) else float("nan")


def _distance_to_codes(
    M: Manifold, table: MetricTable, nodes: Tensor, z: Tensor
) -> Tensor:  # -> (k,)
    """To first order, the length to the nearest code; NaN where the metric is undefined."""
    parts = nodes.split(_ROWS)
    nearest = torch.cat([plotted_distances(M, rows, z).argmin(1) for rows in parts])
    way = short_way(M, z[nearest] - nodes)
    g = table.metric(nodes)
    length = torch.einsum("ki,kij,kj->k", way, g, way).clamp(min=0).sqrt()
    return torch.where(table.knows(nodes), length, torch.nan)


# Decoded data on a lattice.


def _decoded(
    scene: Scene, lattice: Lattice, embed: Callable[[Tensor], Tensor], line: bool = False
) -> dict[str, Any]:
    """An atlas of decoded images, or decoded features, at the nodes of a lattice.

    Args:
        scene: What is drawn.
        lattice: The rectangle.
        embed: From points of the rectangle to codes.
        line: Whether only the first coordinate counts.
    """
    if scene.images is not None:
        side = int(tiles_within_budget(_reduced_pixels(scene.images), _ATLAS**2) ** 0.5)
        grid = lattice.resized((side * side // 2, 2) if line else (side, side))
    else:
        grid = lattice.resized((128, 2) if line else (_FEATURE_NODES, _FEATURE_NODES))
    nodes = grid.nodes(scene.z)
    if line:
        nodes = nodes[::2]
    values = decoded(scene.M, embed(nodes), 256)
    rectangle = _rectangle(grid)
    if line:
        rectangle["counts"] = [grid.counts[0], 1]
    if scene.images is not None:
        tiles = as_tiles(values, scene.images, _TILE)
        sheet = Sheet.of(tiles, *levels(scene), columns=1 if line else grid.counts[1])
        return {"atlas": {**rectangle, **sheet.to_dict()}, "features": None}
    chosen = _most_variable(scene)
    names = [scene.names[j] if scene.names else f"x{j + 1}" for j in chosen]
    return {
        "atlas": None,
        "features": {**rectangle, "names": names, "values": _flat(values[:, chosen])},
    }


def as_tiles(values: Tensor, images: Images, most: int) -> Tensor:  # (k, D) -> (k, c, h, w)
    """Outputs as images, reduced to ``most`` pixels a side.

    Raises:
        ShapeError: When outputs have another number of pixels.
    """
    if values[0].numel() != images.pixels:
        raise ShapeError(
            "report",
            f"outputs of {images.pixels} numbers for images "
            f"{(images.channels, images.height, images.width)}",
            f"{values[0].numel()}",
            "Give the shape of one decoded image.",
        )
    tiles = values.reshape(-1, images.channels, images.height, images.width)
    height, width = _reduced(images, most)
    if (height, width) != tiles.shape[-2:]:
        tiles = functional.interpolate(tiles, size=(height, width), mode="area")
    return tiles


def _reduced(images: Images, most: int) -> tuple[int, int]:
    scale = min(1.0, most / max(images.height, images.width))
    return max(1, round(scale * images.height)), max(1, round(scale * images.width))


def _reduced_pixels(images: Images) -> int:
    height, width = _reduced(images, _TILE)
    return images.channels * height * width


def levels(scene: Scene) -> tuple[float, float]:
    """Black and white of decoded images."""
    some = scene.z[torch.linspace(0, len(scene.z) - 1, min(64, len(scene.z))).long()]
    return grey_levels(decoded(scene.M, some))


def _most_variable(scene: Scene) -> list[int]:
    """The decoded features that vary most over the codes, in their own order."""
    some = scene.z[torch.linspace(0, len(scene.z) - 1, min(512, len(scene.z))).long()]
    values = decoded(scene.M, some)
    values = values[values.isfinite().all(-1)]
    spread = values.var(0, unbiased=False)
    count = min(_FEATURES, len(spread))
    chosen: list[int] = spread.topk(count).indices.sort().values.tolist()
    return chosen


def _thumbs(scene: Scene) -> dict[str, object] | None:
    """Images of the points: given ones, the data, or what the codes decode to."""
    images = scene.images
    if images is None:
        return None
    height, width = _reduced(images, _THUMB)
    if len(scene.shown) * images.channels * height * width > _THUMBS:
        return None
    rows = scene.shown
    if images.given is not None:
        values = images.given[rows.to(images.given.device)].double().flatten(1)
        limits = grey_levels(values)
    elif scene.data is not None and scene.data.shape[1] == images.pixels:
        values = scene.data[rows].double()
        limits = grey_levels(values)
    else:
        values = decoded(scene.M, scene.z[rows])
        limits = levels(scene)
    return Sheet.of(as_tiles(values, images, _THUMB), *limits).to_dict()


# One dimension.


def _line(scene: Scene) -> dict[str, Any]:
    z = scene.z
    flat = torch.cat([z, torch.zeros_like(z)], 1)
    periods = (*periods_of(scene.M, 1), None)
    lattice = Lattice.around(flat, (_LINE_NODES, 2), _MARGIN, periods)
    t = torch.linspace(lattice.low[0], lattice.high[0], _LINE_NODES, dtype=torch.float64)
    speed = where_defined(scene.M.volume_density, t[:, None].to(z))
    return {
        "kind": "line",
        "coordinates": _flat(flat[scene.shown]),
        "axes": ["z", ""],
        "speed": {**_rectangle(lattice), "values": _flat(speed)},
        "backgrounds": [],
        **_decoded(scene, lattice, lambda points: points[:, :1], line=True),
    }


# More than two dimensions.


@dataclass(frozen=True, eq=False)
class Section:
    """A plane through the codes.

    Attributes:
        origin: ``(m,)``.
        directions: ``(2, m)``, latent vectors.
        reading: ``(m, 2)``; ``(z − origin) @ reading`` are coordinates in the plane.
        by: How it was chosen.
    """

    origin: Tensor
    directions: Tensor
    reading: Tensor
    by: str

    def coordinates(self, z: Tensor) -> Tensor:  # (*b, m) -> (*b, 2)
        """Where codes are seen in the plane."""
        return (z - self.origin) @ self.reading

    def points(self, y: Tensor) -> Tensor:  # (k, 2) -> (k, m)
        """Codes in the plane."""
        return self.origin + y @ self.directions


def choose_section(M: Manifold, z: Tensor, seed: int = 0) -> Section:
    """The plane of the first two principal directions at the mean of the codes.

    By tangent PCA, in units of the data; by PCA of the codes where its geodesics fail.
    """
    from riemae.statistics import tangent_pca

    generator = torch.Generator().manual_seed(seed)
    few = z
    if len(z) > _FOR_PCA:
        few = z[torch.randperm(len(z), generator=generator)[:_FOR_PCA].sort().values.to(z.device)]
    try:
        # At the mean of the codes: the Fréchet mean takes many more geodesics than are worth it.
        found = tangent_pca(M, few, 2, mean=z.mean(0), rtol=1e-2)
        g = M.metric(found.mean).detach()
        reading = g @ found.components.mT
        return Section(found.mean, found.components, reading, "tangent PCA")
    except (NotConvergedError, SingularMetricError, NonFiniteError):
        origin = z.mean(0)
        _, vectors = torch.linalg.eigh((z - origin).mT @ (z - origin))
        directions = vectors[:, -2:].flip(1).mT
        return Section(origin, directions, directions.mT, "PCA of the codes")


def choose_landmarks(z: Tensor, labels: Labels, count: int) -> Tensor:  # -> (L,)
    """Codes that stand for all: the most central of each class, then others far from each other."""
    chosen: list[int] = []
    if 1 < len(labels.names) <= count:
        codes = torch.tensor(labels.codes, device=z.device)
        for k in range(len(labels.names)):
            members = (codes == k).nonzero()[:, 0]
            if len(members):
                own = z[members]
                chosen.append(int(members[(own - own.median(0).values).norm(dim=1).argmin()]))
    if len(chosen) < count:
        radius = (z - z.mean(0)).norm(dim=1)
        inner = (radius <= radius.quantile(0.8)).nonzero()[:, 0]
        spread = spread_points(z[inner], min(count - len(chosen), len(inner)))
        nearest = torch.cdist(spread, z[inner]).argmin(1)
        chosen = list(dict.fromkeys([*chosen, *inner[nearest].tolist()]))
    if len(chosen) < 2:  # codes that coincide
        chosen = [0, len(z) - 1]
    return torch.tensor(chosen, device=z.device)


def _section(scene: Scene, landmarks: int, told: Told) -> dict[str, Any]:
    M, z = scene.M, scene.z
    section = choose_section(M, z)
    y = section.coordinates(z)
    marks = choose_landmarks(z, scene.labels, landmarks)
    i, j = torch.triu_indices(len(marks), len(marks), 1, device=z.device)
    with in_the_report():
        rtol = scene.pairs.result.rtol
        result = M.geodesic(z[marks[i]], z[marks[j]], rtol=rtol, throw=False, progress=told)
    m = z.shape[1]
    t = torch.linspace(0, 1, 33 if m <= 32 else 17, dtype=z.dtype, device=z.device)
    along = result.curve(t)
    worst = [k for k in scene.pairs.worst(_WORST) if bool(scene.pairs.result.converged[k])]
    misleading = scene.pairs.result[torch.tensor(worst, device=z.device).long()].curve(t)
    curves = torch.cat([along, misleading]).flatten(0, 1)
    seen = torch.cat([y, section.coordinates(curves)])
    lattice = Lattice.around(seen, (48, 48), _MARGIN)

    def induced(points: Tensor) -> Tensor:
        return section.directions @ M.metric(section.points(points)) @ section.directions.mT

    table = MetricTable.of(lattice, where_defined(induced, lattice.nodes(z), rows=256))
    spread = z.std(0)
    axes = spread.topk(min(_AXES, m)).indices.sort().values
    few = torch.linspace(0, len(z) - 1, min(200, len(z))).long().to(z.device)
    frames = _frames(scene, along)
    line = straight_lengths(M, z[marks[i]], z[marks[j]])
    return {
        "kind": "section",
        "coordinates": _flat(y[scene.shown]),
        "axes": ["1st principal direction", "2nd principal direction"],
        "chosenBy": section.by,
        "table": _table(table),
        "backgrounds": [],
        "worst": {
            "pairs": worst,
            "seen": _flat(section.coordinates(misleading)),
            "curves": _flat(misleading[..., axes]),
        },
        "landmarks": {
            "index": marks.tolist(),
            "coordinates": _flat(y[marks]),
            "pairs": torch.stack([i, j], 1).tolist(),
            "length": _numbers(result.length),
            "error": _numbers(result.error),
            "converged": result.converged.tolist(),
            "straight": _numbers(line),
            "times": len(t),
            "seen": _flat(section.coordinates(along)),
            "parallel": {
                "axes": (axes + 1).tolist(),
                "low": _numbers(z[:, axes].amin(0)),
                "high": _numbers(z[:, axes].amax(0)),
                "curves": _flat(along[..., axes]),
                "background": _flat(z[few][:, axes]),
                "backgroundCount": len(few),
            },
        },
        **frames,
    }


def _frames(scene: Scene, along: Tensor) -> dict[str, Any]:  # (p, k, m)
    """Decoded data along the geodesics among landmarks: images, or the features that vary most."""
    p, k, _ = along.shape
    if scene.images is not None:
        room = tiles_within_budget(_reduced_pixels(scene.images), p * 9)
        count = max(3, room // max(p, 1))
        at = torch.linspace(0, k - 1, count).round().long().to(along.device)
        values = decoded(scene.M, along[:, at].flatten(0, 1), 256)
        tiles = as_tiles(values, scene.images, _TILE)
        sheet = Sheet.of(tiles, *levels(scene), columns=count)
        return {"atlas": None, "features": None, "frames": {**sheet.to_dict(), "per": count}}
    chosen = _most_variable(scene)
    values = decoded(scene.M, along.flatten(0, 1))[:, chosen]
    names = [scene.names[j] if scene.names else f"x{j + 1}" for j in chosen]
    return {
        "atlas": None,
        "features": None,
        "featureCurves": {"names": names, "values": _flat(values)},
    }
