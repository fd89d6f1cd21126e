"""Thirty points of a spiral: which models find their order (figure 11 of Lee 2023, lower row).

An encoder into one number easily joins pieces of the spiral in a wrong order, and training does not
correct that. The table shows for how many seeds the codes have all samples in their true order.
What decides is the start, an encoder fitted to Isomap's coordinates of the neighbourhood graph.
From this start a plain autoencoder keeps the order as well.

    python examples/fig11_sparse_curve.py                      # two seeds
    python examples/fig11_sparse_curve.py --seeds 10 --full    # also NRAE without that start

The figure goes to out/fig11_sparse_curve.png.
"""

from __future__ import annotations

from argparse import Namespace

import _run
import torch
from matplotlib import pyplot as plt

from riemae import datasets
from riemae.autoencoders import AE, NRAE, Neighborhood

NETWORK = {"latent_dim": 1, "hidden": (128, 128, 128), "batch_size": 30}
SETTINGS = {**NETWORK, "epochs": 1000, "lr": 1e-3, "schedule": "cosine", "clip": 1.0}
LINEAR = {"order": 1, "neighbors": 2, "weight": 2.0}
QUADRATIC = {"order": 2, "neighbors": 3, "weight": 100.0}
MODELS = {
    "AE": AE(**SETTINGS),
    # With weight 0 for the neighbours, NRAE is a plain autoencoder.
    "AE, Isomap": NRAE(**SETTINGS, order=1, neighbors=2, weight=0.0, init="isomap"),
    "NRAE-L, Isomap": NRAE(**SETTINGS, **LINEAR, init="isomap"),
    "NRAE-Q, Isomap": NRAE(**SETTINGS, **QUADRATIC, init="isomap"),
}
FULL = {"NRAE-L": NRAE(**SETTINGS, **LINEAR), "NRAE-Q": NRAE(**SETTINGS, **QUADRATIC)}


def sample(seed: int) -> datasets.Dataset:
    """The samples of a seed."""
    return datasets.sparse_spiral(generator=seed, dtype=torch.float32)


def measured(model: AE, data: datasets.Dataset) -> dict[str, float]:
    """Order of the codes, error on clean test points, and the length of the learned curve."""
    return {
        "right order": float(datasets.in_order(model.transform(data.x), data.z)),
        "Kendall": _run.kendall(model, data),
        "clean error": datasets.clean_error(data, _run.reconstruction(model)),
        "length / true length": datasets.length_ratio(data, _run.decoded_curve(model, data)),
    }


def main() -> None:
    """Train, print, draw."""
    parser = _run.parser(__doc__, seeds=2)
    parser.add_argument("--full", action="store_true", help="also NRAE without initialisation")
    options = _run.started(parser.parse_args())

    shown: dict[str, AE] = {}
    first = sample(0)
    print(
        f"{'model':16} {'right order':>12} {'Kendall':>8} {'clean error':>12} "
        f"{'length / true length':>21}   (means)"
    )
    models = _run.models_for(options, MODELS | (FULL if options.full else {}))
    for name, model in models.items():
        found = []
        for seed in range(options.seeds):
            data = sample(seed)
            ((_, fitted),) = _run.trained({name: model}, data.x, seed)
            found.append(measured(fitted, data))
            if not seed:
                shown[name] = fitted
        n = options.seeds
        total = {key: sum(s[key] for s in found) for key in found[0]}
        print(
            f"{name:16} {total['right order']:6.0f} of {n:2} {total['Kendall'] / n:8.3f} "
            f"{total['clean error'] / n:12.2e} {total['length / true length'] / n:21.3f}",
            flush=True,
        )
    graph = Neighborhood.nearest(first.x, 2)
    draw(shown, first, graph, options)


def draw(
    shown: dict[str, AE], data: datasets.Dataset, graph: Neighborhood, options: Namespace
) -> None:
    """The samples coloured by the order of their codes, and the learned curve of each model.

    Grey lines are the graph.
    """
    figure, axes = plt.subplots(
        len(shown) // 2,
        2,
        figsize=(9, 3 * (len(shown) // 2)),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axis, (name, model) in zip(axes.flat, shown.items(), strict=True):
        for i in range(len(data.x)):
            for j in graph.of(i).tolist():
                axis.plot(*data.x[[i, j]].T, color="0.8", lw=3, zorder=0)
        axis.plot(*_run.decoded_curve(model, data).T, color="tab:red", lw=1.3)
        z = model.transform(data.x)[:, 0]
        axis.scatter(*data.x.T, c=z.argsort().argsort(), cmap="viridis", s=22, zorder=3)
        order = "right" if datasets.in_order(z, data.z) else "wrong"
        tau = _run.kendall(model, data)
        axis.set(title=f"{name}: {order} order, τ = {tau:.2f}", aspect="equal")
        axis.set(xlim=(-2.2, 3.4), ylim=(-2.2, 1.6), xlabel="$x_1$", ylabel="$x_2$")
    figure.suptitle("Colour: rank of the code; red: decoded curve; grey: two nearest neighbours")
    _run.save(figure, options, "fig11_sparse_curve.png", dpi=130)


if __name__ == "__main__":
    main()
