"""The pictures of ``docs/concepts.md`` and ``docs/uncertainty.md``.

    python docs/pictures/draw.py          # writes docs/pictures/*.png; half a minute

All but the last show one decoder, a plane with two hills, so that the data space can be seen.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import torch
from torch import Tensor, nn

from riemae import Ensemble, Manifold, ambient

matplotlib.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
RED, BLUE, ORANGE = "#c8102e", "#1f5fa8", "#d98200"  # told apart by most colour-blind people
EXTENT = 2.2
START, END = torch.tensor([-1.9, -0.35]).double(), torch.tensor([1.9, 0.15]).double()


def hills(z: Tensor) -> Tensor:  # (k, 2) -> (k, 3)
    """A plane with a high hill in its middle and a low one next to it."""
    high = 1.6 * (-z.square().sum(-1) / 0.5).exp()
    low = 0.7 * (-(z - torch.tensor([1.1, 1.3]).to(z)).square().sum(-1) / 0.4).exp()
    return torch.cat([z, (high + low)[..., None]], -1)


def lattice(count: int, extent: float = EXTENT) -> Tensor:  # -> (count, count, 2)
    """Points of the latent square, rows along the second coordinate."""
    line = torch.linspace(-extent, extent, count).double()
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)


def straight(count: int = 200) -> Tensor:  # -> (count, 2)
    """The straight latent line between the two points."""
    return START + torch.linspace(0, 1, count).double()[:, None] * (END - START)


def square(axes: Axes, title: str) -> None:
    """Equal units along both coordinates."""
    axes.set_aspect("equal")
    axes.set_xlim(-EXTENT, EXTENT)
    axes.set_ylim(-EXTENT, EXTENT)
    axes.set_xlabel("z₁")
    axes.set_ylabel("z₂")
    axes.set_title(title)


def background(axes: Axes, values: Tensor, label: str, **options: Any) -> None:
    """Values ``(n, n)`` on the lattice, with a scale."""
    image = axes.imshow(
        values,
        extent=(-EXTENT, EXTENT, -EXTENT, EXTENT),
        origin="lower",
        **{"cmap": "Greys", **options},
    )
    axes.figure.colorbar(image, ax=axes, label=label, shrink=0.75)


def ends(axes: Axes) -> None:
    """The two points."""
    for z, name in ((START, "z₀"), (END, "z₁")):
        axes.plot(*z, "o", color="white", markeredgecolor="black", zorder=5)
        axes.annotate(name, z.tolist(), xytext=(-4, 9), textcoords="offset points")


def surface(axes: Any, paths: dict[str, tuple[Tensor, str]]) -> None:
    """The decoded latent square, and decoded paths on it."""
    grid = lattice(60)
    x = hills(grid.view(-1, 2)).view(60, 60, 3)
    axes.computed_zorder = False  # paths are drawn last, also where a hill is in front of them
    axes.plot_surface(
        *x.unbind(-1), color="#e4e4e4", linewidth=0.4, edgecolor="#a8a8a8", rcount=30, ccount=30
    )
    for name, (z, colour) in paths.items():
        x = hills(z) + torch.tensor([0, 0, 0.03]).double()
        axes.plot(*x.T, color=colour, linewidth=2.5, label=name)
    axes.set_box_aspect((4, 4, 1.5), zoom=1.25)
    axes.view_init(elev=48, azim=-75)
    axes.set_axis_off()


def map_picture() -> Figure:
    """Latent plane and data space with the same grid, line and geodesic."""
    M = Manifold(hills)
    curve = M.geodesic(START, END, rtol=1e-6).curve(torch.linspace(0, 1, 200).double())
    paths = {"straight latent line": (straight(), BLUE), "geodesic": (curve, RED)}
    figure = plt.figure(figsize=(11, 4.6), layout="constrained")
    left = figure.add_subplot(1, 2, 1)
    for offset in torch.linspace(-EXTENT, EXTENT, 12).tolist():
        left.axhline(offset, color="#bbbbbb", linewidth=0.6)
        left.axvline(offset, color="#bbbbbb", linewidth=0.6)
    for name, (z, colour) in paths.items():
        length = float(M.length(z))
        left.plot(*z.T, color=colour, linewidth=2.5, label=f"{name}: length {length:.2f}")
    ends(left)
    square(left, "latent space")
    left.legend(loc="lower center")
    right = figure.add_subplot(1, 2, 2, projection="3d")
    surface(right, paths)
    right.set_title("data space: what the decoder makes of it")
    return figure


def metric_picture() -> Figure:
    """Circles of the metric, and the magnification factor."""
    M = Manifold(hills)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    turn = torch.linspace(0, 2 * math.pi, 60).double()
    circle = torch.stack([turn.cos(), turn.sin()])
    centres = lattice(9, 1.9).view(-1, 2)
    factor = torch.linalg.cholesky(M.metric(centres))
    for z, root in zip(centres, factor, strict=True):
        # G = L Lᵀ, so L⁻ᵀ takes the unit circle to the ellipse of vectors of length 1.
        ring = z[:, None] + 0.2 * torch.linalg.solve_triangular(root.mT, circle, upper=True)
        left.fill(*ring, color=ORANGE, alpha=0.5, linewidth=0.8)
        left.plot(*ring, color="black", linewidth=0.6)
    square(left, "steps of one length in the data")
    values = M.volume_density(lattice(160).view(-1, 2)).view(160, 160)
    background(right, values, "magnification √det G")
    square(right, "area in the data per latent area")
    return figure


def geodesic_picture() -> Figure:
    """Two geodesics around the hill, and the straight line over it."""
    M = Manifold(hills)
    r = M.geodesic(START, END, rtol=1e-6, n_starts=12, throw=False)
    found = r.alternatives
    t = torch.linspace(0, 1, 200).double()
    figure = plt.figure(figsize=(11, 4.6), layout="constrained")
    left = figure.add_subplot(1, 2, 1)
    values = M.volume_density(lattice(160).view(-1, 2)).view(160, 160)
    background(left, values, "magnification √det G")
    paths = {}
    for i, colour in zip(range(len(found.length)), (RED, ORANGE, BLUE), strict=False):
        if not bool(found.converged[i]):
            continue
        name = f"length {float(found.length[i]):.3f}, Morse index {int(found.index[i])}"
        paths[name] = (found.curve(t)[i], colour)
        left.plot(*paths[name][0].T, color=colour, linewidth=2.5, label=name)
    over = straight()
    name = f"straight line: length {float(M.length(over)):.3f}"
    left.plot(*over.T, "--", color="black", linewidth=1.2, label=name)
    ends(left)
    square(left, "geodesics between two points")
    left.legend(loc="lower center", fontsize=8)
    right = figure.add_subplot(1, 2, 2, projection="3d")
    surface(right, {**paths, name: (over, "black")})
    right.set_title("the same in the data space")
    return figure


def curvature_picture() -> Figure:
    """Gaussian curvature, which the surface has in itself, and extrinsic curvature."""
    M = Manifold(hills)
    z = lattice(140).view(-1, 2)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    gauss = M.gaussian_curvature(z).view(140, 140)
    limit = float(gauss.abs().quantile(0.995))
    background(left, gauss, "K", cmap="PuOr_r", vmin=-limit, vmax=limit)
    square(left, "Gaussian curvature")
    extrinsic = M.extrinsic_curvature(z).view(140, 140)
    limit = float(extrinsic.quantile(0.995))
    background(right, extrinsic, "Tr(G⁻¹C)", vmax=limit)
    square(right, "extrinsic curvature")
    return figure


class Repelling(ambient.DiagonalMetric):
    """A place of the data space whose neighbourhood is expensive."""

    centre: Tensor

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre)

    def diagonal(self, x: Tensor) -> Tensor:
        """``(1 + 20 exp(−4|x − c|²))`` for every coordinate."""
        cost = 1 + 20 * (-4 * (x - self.centre).square().sum(-1, keepdim=True)).exp()
        return cost.expand_as(x)


def ambient_picture() -> Figure:
    """One decoder under three metrics of the data space."""
    weights = torch.tensor([1.0, 1.0, 0.02]).double()
    place = torch.tensor([0.1, -1.0, 0.1]).double()
    metrics = {
        "Euclidean": ambient.Euclidean(),
        "height weighs 0.02": ambient.Diagonal(weights),
        "expensive at ×": Repelling(place),
    }
    figure, row = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    for axes, (name, metric) in zip(row, metrics.items(), strict=True):
        M = Manifold(hills, ambient=metric)
        values = M.log_volume(lattice(120).view(-1, 2)).view(120, 120) / math.log(10)
        background(axes, values, "log₁₀ √det G")
        r = M.geodesic(START, END, rtol=1e-5, n_starts=6)
        curve = r.curve(torch.linspace(0, 1, 200).double())
        axes.plot(*straight().T, "--", color=BLUE, linewidth=1.2)
        axes.plot(*curve.T, color=RED, linewidth=2.5)
        ends(axes)
        square(axes, f"{name}: distance {float(r.length):.2f}")
        axes.title.set_fontsize(11)
    row[2].plot(0.1, -1.0, "x", color="black", markersize=9, markeredgewidth=2)
    return figure


def uncertainty_picture() -> Figure:
    """A decoder that knows where it is unsure, and several that disagree."""
    generator = torch.Generator().manual_seed(0)
    angle = math.pi * torch.rand(80, generator=generator, dtype=torch.float64)
    noise = 0.08 * torch.randn(80, 2, generator=generator, dtype=torch.float64)
    codes = 1.6 * torch.stack([angle.cos(), angle.sin() - 0.4], -1) + noise
    a, b = torch.tensor([[-1.6, -0.6]]).double(), torch.tensor([[1.6, -0.6]]).double()
    t = torch.linspace(0, 1, 200).double()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")

    def deviation(z: Tensor) -> Tensor:  # (k, 2) -> (k, 1)
        """Small near codes of data, 1 far from them."""
        near = (-torch.cdist(z, codes).square() / 0.08).exp().sum(1, keepdim=True)
        return 1 / (1 + 20 * near)

    def gaussian(z: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(hills(z), deviation(z))

    M = Manifold(gaussian, ambient=ambient.Expected())
    background(left, deviation(lattice(160).view(-1, 2)).view(160, 160), "standard deviation σ(z)")
    left.plot(*codes.T, ".", color=BLUE, markersize=4, label="codes of the data")
    r = M.geodesic(a, b, rtol=1e-4, graph=M.graph(codes, k=6))
    left.plot(*r.curve(t)[0].T, color=RED, linewidth=2.5, label="geodesic under Expected()")
    mean = Manifold(hills).geodesic(a, b, rtol=1e-4)
    left.plot(*mean.curve(t)[0].T, color=ORANGE, linewidth=2, label="geodesic of the mean alone")
    square(left, f"length {float(r.length):.2f}; of the mean alone {float(mean.length):.2f}")
    left.legend(loc="lower center", fontsize=8)

    M = Manifold(Ensemble([fitted(codes, hills(codes), seed) for seed in range(6)]))
    with torch.no_grad():
        spread = M.decode(lattice(120).view(-1, 2)).std(1).norm(dim=-1).view(120, 120)
        each = M.distance(a, b, per_member=True)
    background(right, spread.clamp(min=1e-3).log10(), "log₁₀ spread of six decoders")
    right.plot(*codes.T, ".", color=BLUE, markersize=4)
    for member in M.members:
        curve = member.geodesic(a, b, rtol=1e-3).curve(t)[0]
        right.plot(*curve.T, color="white", linewidth=2.4)
        right.plot(*curve.T, color=RED, linewidth=1.2)
    square(right, f"six distances: {float(each.mean()):.2f} ± {float(each.std()):.2f}")
    for axes in (left, right):
        axes.plot(*torch.cat([a, b]).T, "o", color="white", markeredgecolor="black", zorder=5)
    return figure


def fitted(codes: Tensor, data: Tensor, seed: int) -> nn.Module:
    """A small decoder trained on points and their codes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 3)).double()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(600):
        loss = (net(codes) - data).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


PICTURES = {
    "map": map_picture,
    "metric": metric_picture,
    "geodesics": geodesic_picture,
    "curvature": curvature_picture,
    "ambient": ambient_picture,
    "uncertainty": uncertainty_picture,
}


def main() -> None:
    """Draw them all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="all by default")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.names or PICTURES:
        figure = PICTURES[name]()
        path = given.out / f"{name}.png"
        figure.savefig(path, dpi=100, metadata={"Software": None})
        plt.close(figure)
        print(path)


if __name__ == "__main__":
    main()
