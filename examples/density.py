"""A metric that depends on the data's density: geodesics stay close to them and avoid empty space.

The data are noisy points on a three-quarter circle in the plane. The decoder is the identity, so
that the picture shows the data space. Under the Euclidean metric a geodesic is a straight line
through empty space. Under the inverse local variance of the data (Arvanitidis et al., 2016, 2020)
it follows the data. The table compares three kinds of this metric.

    python examples/density.py               # writes out/density.png
"""

from __future__ import annotations

from argparse import Namespace

import _run
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from riemae import Manifold, ambient, solvers

KINDS = ("diagonal", "conformal", "density")


def arc(count: int, noise: float, seed: int) -> Tensor:
    """Points on three quarters of the unit circle, with noise."""
    generator = torch.Generator().manual_seed(seed)
    angle = 1.5 * torch.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    return circle + noise * torch.randn(count, 2, generator=generator, dtype=torch.float64)


def identity(z: Tensor) -> Tensor:
    """The latent space is the data space."""
    return z


def on_circle(angles: list[float]) -> Tensor:
    """Points of the unit circle at these angles in degrees."""
    radians = torch.tensor(angles, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], -1)


def main() -> None:
    """Print the table and draw the figure."""
    parser = _run.parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    options = _run.started(parser.parse_args())

    data = arc(100 if options.quick else 300, 0.06, options.seed)
    z0, z1 = on_circle([10, 10, 100]), on_circle([150, 255, 255])
    metrics = {"Euclidean": ambient.Euclidean()} | {
        kind: ambient.Density(data, bandwidth=0.15, kind=kind) for kind in KINDS
    }
    # From a straight line through empty space, the solver may end in a local minimum there.
    # Geodesics therefore start from paths through the data.
    graph = Manifold(identity).graph(torch.cat([data, z0, z1]), k=8)
    paths = [
        graph.points[graph.path(len(data) + i, len(data) + len(z0) + i)] for i in range(len(z0))
    ]
    starts = torch.stack([solvers.Curve.through(path, 32).nodes for path in paths])
    curves = {}
    print(f"{'metric':12} {'distance':>28} {'mean gap to the data':>24}")
    for name, metric in metrics.items():
        M = Manifold(identity, ambient=metric)
        result = M.geodesic(z0, z1, rtol=1e-3, init=starts, solver=solvers.Newton())
        curves[name] = result.curve(torch.linspace(0, 1, 200, dtype=torch.float64))
        gaps = torch.cdist(curves[name], data).amin(-1).mean(-1)
        distances = "  ".join(f"{d:8.3f}" for d in result.length)
        listed = "  ".join(f"{gap:6.3f}" for gap in gaps)
        print(f"{name:12} {distances:>28} {listed:>24}")
    draw(data, curves, z0, z1, options)


def draw(
    data: Tensor, curves: dict[str, Tensor], z0: Tensor, z1: Tensor, options: Namespace
) -> None:
    """One panel per kind of metric, with its length per unit as shade, data and geodesics."""
    axis = torch.linspace(-1.5, 1.5, 150, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    figure, axes = plt.subplots(1, len(KINDS), figsize=(11, 4.2), sharey=True, layout="constrained")
    for panel, kind in zip(axes, KINDS, strict=True):
        M = Manifold(identity, ambient=ambient.Density(data, bandwidth=0.15, kind=kind))
        # The logarithm to base 10 of the geometric mean of the two stretch factors.
        cost = M.log_volume(grid).view(150, 150).T / 2 / torch.log(torch.tensor(10.0))
        shown = (axis.numpy(), axis.numpy(), cost.numpy())
        shade = panel.pcolormesh(*shown, cmap="Greys", shading="gouraud", rasterized=True)
        panel.scatter(*data.T, s=4, color="tab:blue", alpha=0.6, linewidths=0, label="data")
        for i in range(len(z0)):
            straight, bent = curves["Euclidean"][i], curves[kind][i]
            panel.plot(
                *straight.T,
                "--",
                color="tab:green",
                lw=1.2,
                label="Euclidean geodesic" if not i else None,
            )
            panel.plot(
                *bent.T, color="tab:red", lw=1.8, label="density geodesic" if not i else None
            )
        ends = torch.cat([z0, z1])
        panel.scatter(*ends.T, s=22, color="black", zorder=3)
        panel.set(title=kind, aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), xlabel="$x_1$")
        figure.colorbar(
            shade,
            ax=panel,
            shrink=0.75,
            label=r"$\log_{10}$ of length per unit" if kind == KINDS[-1] else None,
        )
    axes[0].set_ylabel("$x_2$")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    _run.save(figure, options, "density.png", dpi=150)


if __name__ == "__main__":
    main()
