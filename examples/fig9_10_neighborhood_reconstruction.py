"""What NRAE minimises: the error of the decoder's expansions at the neighbours (figures 9 and 10).

At every sample the linear expansion is a tangent line and the quadratic one a parabola. Those of a
plain autoencoder miss the neighbours, because nothing restricts its curve between samples. The
table shows the errors of both expansions at the neighbours. NRAE-L makes the first one small, and
NRAE-Q the second.

    python examples/fig9_10_neighborhood_reconstruction.py

The figure goes to out/fig9_10_neighborhood_reconstruction.png.
"""

from __future__ import annotations

from argparse import Namespace

import _run
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from riemae import datasets
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


def main() -> None:
    """Train, print, draw."""
    options = _run.options(__doc__, seeds=1)

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
    """Linear and quadratic expansions (rows) at some samples, up to the codes of neighbours."""
    graph = Neighborhood.nearest(data.x, NEIGHBORS)
    figure, axes = plt.subplots(
        2, 3, figsize=(13, 6), sharex=True, sharey=True, layout="constrained"
    )
    for column, (name, model) in enumerate(shown.items()):
        z = model.transform(data.x)
        line = _run.decoded_curve(model, data)
        for row, order in enumerate((1, 2)):
            axis = axes[row, column]
            axis.plot(*data.x.T, ".", color="0.6", ms=5)
            axis.plot(*line.T, color="black", lw=0.8)
            for number, centre in enumerate(CENTRES):
                near, colour = graph.of(centre), f"C{number}"
                away = z[near] - z[centre]
                steps = torch.linspace(
                    float(away.min().clamp(max=0)), float(away.max().clamp(min=0)), 50
                )[:, None]
                with torch.no_grad():
                    expansion = sum(
                        model.manifold_.taylor(z[centre].expand(50, 1), steps, order=order)
                    )
                    predicted = sum(
                        model.manifold_.taylor(z[centre].expand(len(near), 1), away, order=order)
                    )
                axis.plot(*expansion.T, color=colour, lw=2)
                axis.plot(*data.x[near].T, ".", color=colour, ms=9)
                for a, b in zip(predicted, data.x[near], strict=True):
                    axis.plot([a[0], b[0]], [a[1], b[1]], color=colour, lw=0.8, ls=":")
            axis.set(title=f"{name}, {'linear' if order == 1 else 'quadratic'}", ylim=(-2.2, 2.2))
    figure.suptitle(
        "Local expansions of the decoder (thick), neighbours (dots), and lines to where the "
        "expansions predict them (dotted)"
    )
    _run.save(figure, options, "fig9_10_neighborhood_reconstruction.png", dpi=130)


if __name__ == "__main__":
    main()
