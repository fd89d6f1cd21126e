"""What NRAE minimises: the error of the decoder's expansions at the neighbours (figures 9 and 10).

At every sample the linear expansion is a tangent line and the quadratic one a parabola. Those of a
plain autoencoder miss the neighbours, because nothing restricts its curve between samples. The
second table shows the errors of both expansions at the neighbours. NRAE-L makes the first one
small, and NRAE-Q the second.

The two upper rows have no networks: three curves pass all samples at the same distance, so that the
reconstruction cannot tell them apart. The linear expansion sees the second, whose direction is
wrong at the samples; only the quadratic one sees the third, whose curvature is.

    python examples/fig9_10_neighborhood_reconstruction.py

The figure goes to out/fig9_10_neighborhood_reconstruction.png.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import _run
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from riemae import Manifold, datasets
from riemae.autoencoders import AE, NRAE, Neighborhood

NEIGHBORS = 4
SETTINGS = {
    "latent_dim": 1,
    "hidden": (256, 256, 256),
    "activation": "elu",
    "epochs": 1500,
    "batch_size": 30,
}
MODELS = {
    "AE": AE(**SETTINGS),
    "NRAE-L": NRAE(**SETTINGS, order=1, neighbors=NEIGHBORS),
    "NRAE-Q": NRAE(**SETTINGS, order=2, neighbors=NEIGHBORS),
}
CENTRES = (4, 11, 18, 25)


def errors(model: AE, x: Tensor, graph: Neighborhood) -> list[float]:
    """Mean squared distances of the neighbours from the expansions of order 1 and 2."""
    M, z = model.manifold_, model.transform(x)
    centre = torch.arange(len(x)).repeat_interleave(graph.degree)
    away = z[graph.neighbors] - z[centre]
    with torch.no_grad():
        expansions = [sum(M.taylor(z[centre], away, order=order)) for order in (1, 2)]
    return [float((e - x[graph.neighbors]).square().sum(1).mean()) for e in expansions]


# Samples of a sine, moved up and down in turn, and three curves (t, y(t)). The additions vanish at
# the samples, and the third with its derivative.
TIMES = torch.linspace(-2.8, 2.8, 15)[:, None]
STEP = float(TIMES[1] - TIMES[0])
OFFSET = 0.12


def curve(addition: Callable[[Tensor], Tensor]) -> Manifold:
    """The curve ``(t, sin t + addition)``."""
    return Manifold(lambda t: torch.cat([t, t.sin() + addition((t - TIMES[0]) / STEP)], -1))


CURVES = {
    "smooth": curve(torch.zeros_like),
    "wrong direction": curve(lambda s: 0.25 * (2 * torch.pi * s).sin()),
    "wrong curvature": curve(lambda s: 0.25 * (torch.pi * s).sin().square()),
}


def samples() -> Tensor:  # -> (15, 2)
    """Points at the same distance above and below the sine."""
    signs = 1 - 2 * (torch.arange(len(TIMES)) % 2)[:, None]
    return torch.cat([TIMES, TIMES.sin() + OFFSET * signs], 1)


def equal_point_losses() -> None:
    """Print the losses of the three curves."""
    x = samples()
    graph = Neighborhood.nearest(TIMES, 2)
    centre = torch.arange(len(x)).repeat_interleave(graph.degree)
    away = TIMES[graph.neighbors] - TIMES[centre]
    print(f"{'curve':16} {'point loss':>11} {'linear':>9} {'quadratic':>10}   (no networks)")
    for name, M in CURVES.items():
        point = float((M.decode(TIMES) - x).square().sum(1).mean())
        row = f"{name:16} {point:11.4f}"
        for order, width in ((1, 9), (2, 10)):
            expansion = sum(M.taylor(TIMES[centre], away, order=order))
            error = float((expansion - x[graph.neighbors]).square().sum(1).mean())
            row += f" {error:{width}.4f}"
        print(row)
    print()


def main() -> None:
    """Train, print, draw."""
    options = _run.options(__doc__, seeds=1)

    equal_point_losses()
    models = _run.models_for(options, MODELS)
    shown: dict[str, AE] = {}
    first = datasets.noisy_sine(n=30, noise=0.2, generator=0, dtype=torch.float32)
    print("Mean squared error of the neighbours' reconstruction; clean error of reconstruction")
    print(f"{'seed':>4} {'model':8} {'linear':>9} {'quadratic':>10} {'clean error':>12}")
    for seed in range(options.seeds):
        data = datasets.noisy_sine(n=30, noise=0.2, generator=seed, dtype=torch.float32)
        graph = Neighborhood.nearest(data.x, NEIGHBORS)
        for name, fitted in _run.trained(models, data.x, seed):
            linear, quadratic = errors(fitted, data.x, graph)
            clean = datasets.clean_error(data, _run.reconstruction(fitted))
            print(f"{seed:4} {name:8} {linear:9.4f} {quadratic:10.4f} {clean:12.4f}", flush=True)
            if not seed:
                shown[name] = fitted
    draw(shown, first, options)


def draw(shown: dict[str, AE], data: datasets.Dataset, options: Namespace) -> None:
    """Curves without networks, and the models' linear and quadratic expansions."""
    figure, axes = plt.subplots(
        4, 3, figsize=(13, 12.5), sharex=True, sharey=True, layout="constrained"
    )
    x = samples()
    two = Neighborhood.nearest(TIMES, 2)
    orders = {1: "linear", 2: "quadratic"}
    times = torch.linspace(-2.9, 2.9, 600)[:, None]
    for column, (name, M) in enumerate(CURVES.items()):
        for order, word in orders.items():
            axis = axes[order - 1, column]
            axis.plot(*M.decode(times).T, color="black", lw=0.8, label="curve")
            expansions(axis, M, TIMES, x, two, order, (3, 7, 11))
            axis.set(title=f"{name}, equal point loss: {word}")
    graph = Neighborhood.nearest(data.x, NEIGHBORS)
    for column, (name, model) in enumerate(shown.items()):
        z = model.transform(data.x)
        line = _run.decoded_curve(model, data)
        for order, word in orders.items():
            axis = axes[1 + order, column]
            axis.plot(*line.T, color="black", lw=0.8, label="curve")
            expansions(axis, model.manifold_, z, data.x, graph, order, CENTRES)
            axis.set(title=f"{name}: {word}")
    for axis in axes.flat:
        axis.set(ylim=(-2.2, 2.2))
    for axis in axes[-1]:
        axis.set(xlabel="$x_1$")
    for axis in axes[:, 0]:
        axis.set(ylabel="$x_2$")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    figure.suptitle("Local expansions of curves at some samples")
    _run.save(figure, options, "fig9_10_neighborhood_reconstruction.png", dpi=130)


def expansions(
    axis: Axes,
    M: Manifold,
    z: Tensor,
    x: Tensor,
    graph: Neighborhood,
    order: int,
    centres: tuple[int, ...],
) -> None:
    """The samples, and the expansions at some of them, up to the codes of their neighbours."""
    axis.plot(*x.T, ".", color="0.6", ms=5, label="samples")
    for number, centre in enumerate(centres):
        named = number == 0
        near, colour = graph.of(centre), f"C{number}"
        away = z[near] - z[centre]
        low, high = float(away.min().clamp(max=0)), float(away.max().clamp(min=0))
        steps = torch.linspace(low, high, 50)[:, None]
        with torch.no_grad():
            line = sum(M.taylor(z[centre].expand(50, 1), steps, order=order))
            predicted = sum(M.taylor(z[centre].expand(len(near), 1), away, order=order))
        axis.plot(*line.T, color=colour, lw=2, label="expansion" if named else None)
        axis.plot(
            *x[centre], "*", color=colour, ms=13, mec="black", label="centre" if named else None
        )
        axis.plot(*x[near].T, ".", color=colour, ms=9, label="its neighbours" if named else None)
        for number_near, (a, b) in enumerate(zip(predicted, x[near], strict=True)):
            label = "error at a neighbour" if named and not number_near else None
            axis.plot([a[0], b[0]], [a[1], b[1]], color=colour, lw=0.9, ls=":", label=label)


if __name__ == "__main__":
    main()
