"""Brownian motion and Fréchet means on a surface that an autoencoder has learned.

Data are noisy points of a paraboloid in three dimensions, which an autoencoder learns with two.
Brownian motion of its decoder's metric walks on the surface, and steps are equally long everywhere
in the data space, however the latent space is stretched. Two things are checked and printed.

First, the expectation of the height after a short time t rises like t times half the Laplacian of
the height at the start, which ``M.laplacian`` computes without any random walk.

Second, of groups of data the Fréchet mean has a smaller mean squared geodesic distance from the
data than the mean of the codes.

    python examples/brownian_motion.py             # writes out/brownian_motion.png
"""

from __future__ import annotations

import math
from argparse import Namespace

import _run
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from riemae import Manifold, plotting
from riemae.autoencoders import AE
from riemae.datasets import paraboloid
from riemae.statistics import brownian_motion, frechet_mean

TIMES = (0.01, 0.03, 0.1)
STEPS = 50
GROUPS = 4
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")


def main() -> None:
    """Train, walk, print, draw."""
    options = _run.options(__doc__)
    walkers, members = (200, 6) if options.quick else (5_000, 40)
    data = paraboloid(500, generator=0)
    model = AE(latent_dim=2, hidden=(64, 64), epochs=10 if options.quick else 100, lr=2e-3, seed=0)
    model.fit(data.x)
    M = model.manifold_.to(dtype=torch.float64)
    codes = model.transform(data.x).double()
    start = plotting.spread_points(codes, 1)[0]
    walk(M, start, walkers)
    groups = nearest(codes, plotting.spread_points(codes, GROUPS), members)
    means = compare(M, groups)
    draw(options, M, codes, start, groups, means)


def height(M: Manifold, z: Tensor) -> Tensor:  # (k, 2) -> (k,)
    """The third coordinate of the data."""
    return M.decode(z)[:, 2]


def walk(M: Manifold, start: Tensor, walkers: int) -> None:
    """The mean rise of the height, and what the Laplacian says."""
    rate = float(M.laplacian(lambda z: height(M, z), start)) / 2
    now = float(height(M, start[None]))
    print(f"{walkers} walkers; half the Laplacian of the height at the start: {rate:.4f}")
    print(f"{'time':>6} {'mean rise':>10} {'standard error':>15} {'rise / time':>12}")
    for time in TIMES:
        ends = brownian_motion(M, start.expand(walkers, 2), time, STEPS, generator=0)
        rise = height(M, ends[ends.isfinite().all(1)]) - now
        error = float(rise.std()) / math.sqrt(len(rise))
        mean = float(rise.mean())
        print(f"{time:6.2f} {mean:10.5f} {error:15.5f} {mean / time:12.4f}", flush=True)


def nearest(codes: Tensor, centres: Tensor, count: int) -> list[Tensor]:
    """Of each centre the codes around it; they overlap in the middle."""
    order = torch.cdist(centres, codes).argsort(1)
    return [codes[row[: 4 * count : 4]] for row in order]


def compare(M: Manifold, groups: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Both means of each group, with mean squared geodesic distances from them."""
    print(f"{'group':>6} {'Fréchet mean':>14} {'mean of codes':>14} {'apart':>8} {'status':>10}")
    means = []
    for number, points in enumerate(groups):
        found = frechet_mean(M, points, rtol=1e-4)
        plain = points.mean(0)
        spread = M.distance(plain.expand_as(points), points, rtol=1e-5).square().mean()
        apart = float(M.distance(found.point, plain, rtol=1e-4))
        status = "converged" if found.converged else "not converged"
        print(
            f"{number:6} {float(found.variance):14.5f} {float(spread):14.5f} "
            f"{apart:8.4f} {status:>10}",
            flush=True,
        )
        means.append((found.point, plain))
    return means


def draw(
    options: Namespace,
    M: Manifold,
    codes: Tensor,
    start: Tensor,
    groups: list[Tensor],
    means: list[tuple[Tensor, Tensor]],
) -> None:
    """Walks in the latent space and on the surface, and the means."""
    paths = brownian_motion(M, start.expand(5, 2), 0.3, 150, path=True, generator=1)
    figure = plt.figure(figsize=(16, 4.8), layout="constrained")
    left, middle, right = figure.subfigures(1, 3)
    axes = plotting.latent(M, codes, ax=left.subplots(), ellipses=40, resolution=80)
    surface = middle.subplots(subplot_kw={"projection": "3d"})
    surface.scatter(*M.decode(codes).T, s=2, color="0.7")
    for number, path in enumerate(paths):
        style = {"color": COLOURS[number], "linewidth": 0.9}
        axes.plot(*path.T, **style)
        surface.plot(*M.decode(path).T, **style)
    for panel in (axes, surface):
        panel.set_title("five Brownian motions for a time of 0.3")
    surface.set(xlabel="$x_1$", ylabel="$x_2$", zlabel="$x_3$", box_aspect=(1, 1, 0.7))

    last = right.subplots()
    numbers = [str(number) for number, points in enumerate(groups) for _ in points]
    plotting.latent(
        M,
        torch.cat(groups),
        numbers,
        ax=last,
        colorbar=False,
        resolution=80,
        names=False,
        legend=False,
    )
    for number, (mean, plain) in enumerate(means):
        first = number == 0
        label = "Fréchet mean" if first else None
        last.plot(*mean, "*", ms=15, mfc="white", mec="black", label=label, zorder=5)
        label = "mean of codes" if first else None
        last.plot(*plain, "P", ms=9, mfc="#D55E00", mec="white", label=label, zorder=5)
    last.set_title("means of four groups")
    last.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    _run.save(figure, options, "brownian_motion.png", dpi=110)


if __name__ == "__main__":
    main()
