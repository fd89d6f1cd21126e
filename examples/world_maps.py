"""Maps of the earth as decoders: what does each projection preserve, and where do flights go?

A map is a chart: its decoder maps a point of the plane to the unit sphere. The table compares the
distortion measures of the paper (equations 14 to 16) with the textbook scale factors of each
projection (Snyder, Map Projections: A Working Manual, 1987), and shows the class that riemae
recognises. The figure shows Tissot's ellipses, which are circles of one size on the earth, and
great circles, which are computed as geodesics.

    python examples/world_maps.py            # writes out/world_maps.png
    pip install global-land-mask             # optional: land and sea in the background
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import _run
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from riemae import Manifold, scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Map = Callable[[Tensor], Tensor]
ROOT2 = 2**0.5


def from_angles(lon: Tensor, lat: Tensor) -> Tensor:
    """The point of the unit sphere at longitude and latitude."""
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], -1)


def from_pole(z: Tensor, sine_over_radius: Tensor, cosine: Tensor) -> Tensor:
    """The point at an angle c from the north pole, by sin c / |z| and cos c."""
    return torch.cat([z * sine_over_radius, cosine], -1)


def equidistant(z: Tensor) -> Tensor:
    """Azimuthal equidistant: |z| = c."""
    r = z.norm(dim=-1, keepdim=True)
    return from_pole(z, torch.sinc(r / torch.pi), r.cos())


def equal_area(z: Tensor) -> Tensor:
    """Lambert azimuthal equal-area: |z| = 2 sin(c/2)."""
    s = z.square().sum(-1, keepdim=True)
    return from_pole(z, (1 - s / 4).sqrt(), 1 - s / 2)


def stereographic(z: Tensor) -> Tensor:
    """Stereographic: |z| = 2 tan(c/2)."""
    s = z.square().sum(-1, keepdim=True) / 4
    return from_pole(z, 1 / (1 + s), (1 - s) / (1 + s))


def polar(radius: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The forward map of an azimuthal projection about the north pole."""
    return lambda lon, lat: (
        radius(torch.pi / 2 - lat)[..., None] * torch.stack([lon.cos(), lon.sin()], -1)
    )


@dataclass(frozen=True)
class Projection:
    """A map projection of the earth.

    Attributes:
        decode: From the map to the sphere.
        draw: Longitude and latitude to the map.
        scales: Latitude to the scale factors along the meridian and along the parallel.
        extent: Half width and half height of the drawing.
    """

    decode: Map
    draw: Callable[[Tensor, Tensor], Tensor]
    scales: Callable[[Tensor], tuple[Tensor, Tensor]]
    extent: tuple[float, float]


def colatitude(lat: Tensor) -> Tensor:
    """Angle from the north pole."""
    return torch.pi / 2 - lat


PROJECTIONS = {
    "Equirectangular": Projection(
        lambda z: from_angles(z[:, 0], z[:, 1]),
        lambda lon, lat: torch.stack([lon, lat], -1),
        lambda lat: (torch.ones_like(lat), 1 / lat.cos()),
        (3.15, 1.57),
    ),
    "Mercator": Projection(
        lambda z: from_angles(z[:, 0], z[:, 1].tanh().asin()),
        lambda lon, lat: torch.stack([lon, lat.sin().atanh()], -1),
        lambda lat: (1 / lat.cos(), 1 / lat.cos()),
        (3.15, 2.5),
    ),
    "Gall-Peters": Projection(
        lambda z: from_angles(z[:, 0] * ROOT2, (z[:, 1] / ROOT2).asin()),
        lambda lon, lat: torch.stack([lon / ROOT2, ROOT2 * lat.sin()], -1),
        lambda lat: (ROOT2 * lat.cos(), 1 / (ROOT2 * lat.cos())),
        (2.23, 1.41),
    ),
    "Lambert azimuthal equal-area": Projection(
        equal_area,
        polar(lambda c: 2 * (c / 2).sin()),
        lambda lat: ((colatitude(lat) / 2).cos(), 1 / (colatitude(lat) / 2).cos()),
        (2.1, 2.1),
    ),
    "Stereographic": Projection(
        stereographic,
        polar(lambda c: 2 * (c / 2).tan()),
        lambda lat: ((colatitude(lat) / 2).cos() ** -2,) * 2,
        (4.2, 4.2),
    ),
    "Azimuthal equidistant": Projection(
        equidistant,
        polar(lambda c: c),
        lambda lat: (torch.ones_like(lat), colatitude(lat) / colatitude(lat).sin()),
        (3.2, 3.2),
    ),
}

CITIES = {
    "London": (51.5, -0.1),
    "Tokyo": (35.7, 139.7),
    "New York": (40.7, -74.0),
    "Delhi": (28.6, 77.2),
}
FLIGHTS = [("London", "Tokyo"), ("New York", "Delhi"), ("New York", "London")]
EARTH_KM = 6371.0


def place(city: str) -> tuple[Tensor, Tensor]:
    """Longitude and latitude of a city in radians."""
    lat, lon = torch.deg2rad(torch.tensor(CITIES[city], dtype=torch.float64))
    return lon, lat


def sample(n: int = 600) -> tuple[Tensor, Tensor]:
    """Longitudes and latitudes spread evenly between 55° south and 75° north (Fibonacci)."""
    i = torch.arange(n, dtype=torch.float64)
    low, high = torch.deg2rad(torch.tensor([-55.0, 75.0], dtype=torch.float64)).sin()
    lat = (low + (high - low) * (i + 0.5) / n).asin()
    return (i * torch.pi * (3 - 5**0.5)) % (2 * torch.pi) - torch.pi, lat


def table(count: int) -> float:
    """Print measured and textbook distortion; returns their largest relative difference."""
    lon, lat = sample(count)
    worst = 0.0
    print(
        f"{'projection':29} {'isometry':>10} {'scaled':>10} {'conformal':>10} {'area':>10}  "
        "class (textbook differs by)"
    )
    for name, projection in PROJECTIONS.items():
        M = Manifold(projection.decode)
        z = projection.draw(lon, lat)
        values = torch.stack(
            [
                M.distortion(z, kind=kind)
                for kind in ("isometry", "scaled_isometry", "conformal", "area")
            ]
        )
        # A scale factor says how much the map stretches: the metric's eigenvalues are its inverse
        # squares.
        h, k = projection.scales(lat)
        lam = torch.stack([h, k], -1) ** -2
        log_area = lam.log().sum(-1) / 2
        truth = torch.stack(
            [
                (1 - lam).square().sum(-1).mean(),
                (1 - lam / lam.mean()).square().sum(-1).mean(),
                (1 - lam / lam.mean(-1, keepdim=True)).square().sum(-1).mean(),
                (log_area - log_area.mean()).square().mean(),
            ]
        )
        gap = float((values - truth).abs().max())
        worst = max(worst, gap)
        found = scores.hierarchy(M, z).value
        print(
            f"{name:29} "
            + " ".join(f"{v:10.6f}" for v in values.tolist())
            + f"  {found} ({gap:.0e})"
        )
    return worst


def flights(rtol: float) -> float:
    """Print flight lengths on every map.

    Returns the largest relative difference to the great circle.
    """
    worst = 0.0
    print(f"\n{'flight':20} {'great circle':>13}  " + "geodesic, and straight line, on the map")
    for a, b in FLIGHTS:
        ends = [place(c) for c in (a, b)]
        p, q = (from_angles(lon[None], lat[None])[0] for lon, lat in ends)
        true = EARTH_KM * 2 * torch.atan2((p - q).norm(), (p + q).norm())
        print(f"{a + ' - ' + b:20} {true:10.1f} km")
        for name, projection in PROJECTIONS.items():
            M = Manifold(projection.decode)
            z0, z1 = (projection.draw(lon, lat) for lon, lat in ends)
            r = M.geodesic(z0, z1, rtol=rtol)
            line = EARTH_KM * M.length(torch.stack([z0, z1]))
            worst = max(worst, abs(float(EARTH_KM * r.length / true) - 1))
            print(f"    {name:29} {EARTH_KM * r.length:10.1f} km {line:10.1f} km")
    return worst


def draw(options: Namespace) -> None:
    """The figure: land (where installed), graticule, Tissot's ellipses and great circles."""
    figure, grid = plt.subplots(2, 3, figsize=(15, 9.6), layout="constrained")
    for axes, (name, projection) in zip(grid.flat, PROJECTIONS.items(), strict=True):
        M = Manifold(projection.decode)
        width, height = projection.extent
        axes.set_xlim(-width, width)
        axes.set_ylim(-height, height)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"{name}: {scores.hierarchy(M, projection.draw(*sample())).value}")
        _land(axes, projection)
        _graticule(axes, projection)
        _ellipses(axes, projection, M)
        for a, b in FLIGHTS:
            z0, z1 = (projection.draw(*place(c)) for c in (a, b))
            z = M.geodesic(z0, z1, rtol=1e-6).curve(torch.linspace(0, 1, 200))
            axes.plot(z[:, 0], z[:, 1], color="crimson", linewidth=2, zorder=4)
        for city in CITIES:
            z = projection.draw(*place(city))
            axes.plot(*z, marker="o", color="black", markersize=4, zorder=5)
            axes.annotate(
                city, z.tolist(), xytext=(4, 4), textcoords="offset points", fontsize=8, zorder=5
            )
    figure.suptitle(
        "Tissot's ellipses are circles of 6° on the earth; red: great circles, found as geodesics",
        fontsize=13,
    )
    _run.save(figure, options, "world_maps.png", dpi=110)


def _land(axes: Axes, projection: Projection) -> None:
    try:
        from global_land_mask import globe
    except ImportError:
        return
    width, height = projection.extent
    x, y = (
        torch.linspace(-width, width, 700).double(),
        torch.linspace(-height, height, 500).double(),
    )
    z = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    p = projection.decode(z.view(-1, 2))
    lat, lon = (
        torch.rad2deg(p[:, 2].clamp(-1, 1).asin()),
        torch.rad2deg(torch.atan2(p[:, 1], p[:, 0])),
    )
    inside = p.isfinite().all(-1) & (z.view(-1, 2)[:, 0].abs() <= width)
    land = torch.zeros(len(p))
    land[inside] = torch.as_tensor(
        globe.is_land(lat[inside].numpy(), lon[inside].clamp(-180, 179.99).numpy())
    ).float()
    options = {
        "extent": (-width, width, -height, height),
        "origin": "lower",
        "cmap": "Greys",
        "vmin": 0,
        "vmax": 4,
    }
    axes.imshow(land.view(500, 700), **options)


def _graticule(axes: Axes, projection: Projection) -> None:
    style = {"color": "steelblue", "linewidth": 0.5, "alpha": 0.7}
    limit = torch.deg2rad(torch.tensor(80.0)).double()
    for lon in torch.deg2rad(torch.arange(-180, 181, 30)).double():
        lat = torch.linspace(-float(limit), float(limit), 90).double()
        axes.plot(*projection.draw(lon.expand(90), lat).T, **style)
    for lat in torch.deg2rad(torch.arange(-60, 61, 30)).double():
        lon = torch.linspace(-torch.pi, torch.pi, 180).double()
        axes.plot(*projection.draw(lon, lat.expand(180)).T, **style)


def _ellipses(axes: Axes, projection: Projection, M: Manifold) -> None:
    """``{v : vᵀ G v = ρ²}``: the shape on the map of a small circle of radius ρ on the sphere."""
    lon, lat = torch.meshgrid(
        torch.deg2rad(torch.arange(-150, 180, 60)).double(),
        torch.deg2rad(torch.arange(-60, 76, 30)).double(),
        indexing="ij",
    )
    z = projection.draw(lon.flatten(), lat.flatten())
    z = z[(z.abs() < torch.tensor(projection.extent)).all(-1)]
    turn = torch.linspace(0, 2 * torch.pi, 60).double()
    circle = torch.stack([turn.cos(), turn.sin()])
    # G = L Lᵀ, so L⁻ᵀ takes the unit circle to the ellipse.
    shape = torch.linalg.solve_triangular(
        torch.linalg.cholesky(M.metric(z)).mT, circle.expand(len(z), 2, 60), upper=True
    )
    for centre, ring in zip(z, torch.pi / 30 * shape, strict=True):
        axes.fill(
            centre[0] + ring[0], centre[1] + ring[1], color="darkorange", alpha=0.55, zorder=3
        )


def main() -> None:
    """Print the tables and write the figure."""
    options = _run.options(__doc__)
    count = 60 if options.quick else 600
    rtol = 1e-5 if options.quick else 1e-8
    print(f"\nLargest difference to the textbook: {table(count):.1e}")
    print(f"\nLargest relative difference to the great circle: {flights(rtol):.1e}")
    draw(options)


if __name__ == "__main__":
    main()
