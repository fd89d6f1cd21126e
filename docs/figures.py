"""Draw the pictures of ``docs/figures.md`` and of the README.

    python docs/figures.py

It trains the demonstration's autoencoder on digits, which takes a minute.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from riemae import Manifold, plotting
from riemae.cli import demo
from riemae.solvers import Curve

DOCS = Path(__file__).parent


def maps(M: Manifold, z: Tensor, labels: Tensor) -> Figure:
    """What is drawn on a plane of codes."""
    figure = Figure(figsize=(16, 9), layout="constrained")
    panels = figure.subplots(2, 3).flat
    low, high = z.quantile(0.01, 0), z.quantile(0.99, 0)
    inside = ((z > low) & (z < high)).all(1)
    z, labels = z[inside], labels[inside]
    graph = M.graph(z)
    r = M.geodesic(z[[0, 12, 30]], z[[400, 900, 1200]], graph=graph, throw=False)

    named(plotting.latent(M, z, labels, ax=next(panels), geodesics=r), "latent")
    ax = plotting.magnification(M, low, high, ax=next(panels), alpha=0.6)
    plotting.indicatrices(M, plotting.spread_points(z, 60), ax=ax)
    named(ax, "magnification, indicatrices")
    named(plotting.curvature(M, low, high, resolution=120, ax=next(panels)), "curvature")
    named(plotting.distortion(M, low, high, ax=next(panels)), "distortion")
    named(plotting.distance_field(M, z[0], low, high, ax=next(panels)), "distance_field")
    ax = plotting.codes(z, names=False, ax=next(panels), alpha=0.3, color="0.5")
    plotting.balls(M, plotting.spread_points(z, 9), [0.4, 0.8], ax=ax)
    ax.legend(loc="lower left", framealpha=0.8, fontsize=9)
    named(ax, "balls")
    return figure


def data(M: Manifold, z: Tensor, labels: Tensor, history: dict[str, list[float]]) -> Figure:
    """What is drawn of images and numbers."""
    figure = Figure(figsize=(16, 7.6), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=[1, 2.2], width_ratios=[1.4, 1, 1, 1])
    r = M.geodesic(z[:1], z[300:301], graph=M.graph(z))
    curves = {"geodesic": r.curve[0], "straight": Curve.line(z[0], z[300])}
    ax = plotting.strips(M, curves, 16, ax=figure.add_subplot(grid[0, :]), shape=(8, 8))
    named(ax, "strips")
    panels = (figure.add_subplot(grid[1, column]) for column in range(4))
    few = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:120]
    distances = M.distance_matrix(z[few], method="graph")
    named(plotting.matrix(distances, labels[few], ax=next(panels)), "matrix")
    named(plotting.distance_spectrum(distances, ax=next(panels)), "distance_spectrum")
    named(plotting.history(history, ax=next(panels)), "history")
    runs = {  # from benchmarks/results/geodesics.md: 32 pairs, m = 8
        "riemae": ([0.099, 0.14, 0.22, 0.32], [8e-5, 4e-6, 4e-7, 1.4e-8]),
        "stochman, Adam": ([0.8, 2.8, 11], [6e-3, 1.5e-3, 4e-4]),
        "chord energy, L-BFGS": ([0.07, 0.22, 0.6, 2.4, 8.9], [6e-3, 2e-3, 1.1e-4, 1e-4, 2.6e-6]),
    }
    named(plotting.error_against_time(runs, ax=next(panels)), "error_against_time")
    return figure


def named(ax: Axes, name: str) -> None:
    """The functions that drew it, as its title."""
    ax.set_title(name, family="monospace", fontsize=12)


def save(figure: Figure, name: str) -> None:
    """As a PNG of 256 colours."""
    figure.savefig(DOCS / name, dpi=80, metadata={"Software": None})
    smaller(DOCS / name, DOCS / name)


def smaller(source: Path, target: Path) -> None:
    """The same picture in 256 colours, a third of the size."""
    with Image.open(source) as picture:
        colours = picture.convert("RGB")
    few = colours.quantize(256, Image.Quantize.MEDIANCUT, kmeans=8, dither=Image.Dither.NONE)
    few.save(target, optimize=True)


def main() -> None:
    """Train, and draw everything."""
    found = demo.run()
    with TemporaryDirectory() as folder:
        smaller(demo.write(found, Path(folder))[0], DOCS / "latent.png")
    M, z, labels = found.manifold, found.codes, found.labels
    save(maps(M, z, labels), "figures_maps.png")
    from riemae.autoencoders import IRAE

    images, _ = demo.load_digits()
    model = IRAE(latent_dim=2, hidden=(64, 64), epochs=40, weight=0.01, seed=0).fit(images)
    save(data(M, z, labels, model.history_), "figures_data.png")


if __name__ == "__main__":
    main()
