"""An isometric chart of a bent square with a hole, by IRAE (figure 13 of Lee 2023).

The surface ``(sin(au)/a, v, (1 − cos(au))/a)`` is a bent sheet of paper, so there are coordinates
in which all lengths are true. A plain autoencoder uses any coordinates. Isometric regularisation
finds those: the mean condition number of the metric (MCN) goes to 1, the variance of the metric
over the surface (VoR) goes to 0, and Euclidean distances of codes have the same ranks as the true
distances. A paraboloid has no such chart. The second table shows there how the reconstruction gets
worse as the weight of isometry grows. The figure shows the seed whose plain autoencoder is most
distorted.

    python examples/fig13_isometric_square.py              # seed 1
    python examples/fig13_isometric_square.py --seeds 4    # writes out/fig13_isometric_square.png
"""

from __future__ import annotations

from argparse import Namespace

import _run
import torch
from matplotlib import pyplot as plt

from riemae import datasets, plotting, scores
from riemae.autoencoders import AE, IRAE

SETTINGS = {
    "hidden": (128, 128),
    "epochs": 150,
    "batch_size": 100,
    "lr": 5e-3,
    "schedule": "cosine",
}
MODELS = {"AE": AE(**SETTINGS), "IRAE": IRAE(**SETTINGS, weight=0.006, mixup=0.2)}
WEIGHTS = (0.0, 1e-3, 1e-2, 1e-1)


def sample(seed: int) -> datasets.Dataset:
    """The samples of a seed."""
    return datasets.patch_with_hole(generator=seed, dtype=torch.float32)


def measured(model: AE, data: datasets.Dataset) -> dict[str, float]:
    """Distortion, agreement with the true distances, and reconstruction error."""
    z = model.transform(data.x)
    with torch.no_grad():
        return {
            "MCN": float(scores.condition_number(model.manifold_, z).mean()),
            "VoR": float(scores.vor(model.manifold_, z)),
            "Spearman": datasets.rank_correlation(data, z)
            if data.distance is not None
            else float("nan"),
            "unexplained": 1 - model.score(data.x),
        }


def main() -> None:
    """Train, print, draw."""
    options = _run.options(__doc__, seeds=1)

    models = _run.models_for(options, MODELS)
    shown: list[tuple[str, AE, datasets.Dataset]] = []
    print(
        f"{'seed':>4} {'model':6} {'MCN':>7} {'VoR':>8} {'Spearman':>9} "
        f"{'unexplained':>12} {'× AE':>6}"
    )
    most = 0.0
    for seed in range(options.seeds) if options.seeds > 1 else [1]:
        data = sample(seed)
        plain = 0.0
        own: list[tuple[str, AE, datasets.Dataset]] = []
        for name, model in _run.trained(models, data.x, seed):
            s = measured(model, data)
            plain = plain or s["unexplained"]
            print(
                f"{seed:4} {name:6} {s['MCN']:7.3f} {s['VoR']:8.4f} {s['Spearman']:9.5f} "
                f"{s['unexplained']:12.2e} {s['unexplained'] / plain:6.2f}",
                flush=True,
            )
            own.append((name, model, data))
            if name == "AE" and s["MCN"] > most:
                most = s["MCN"]
                shown = own

    print("\nA paraboloid, which has no isometric chart")
    print(f"{'weight':>6} {'MCN':>7} {'VoR':>8} {'unexplained':>12}")
    data = datasets.paraboloid(n=500, generator=0, dtype=torch.float32)
    kinds = {f"{w:g}": IRAE(**{**SETTINGS, "epochs": 100}, weight=w) for w in WEIGHTS}
    for weight, model in _run.trained(_run.models_for(options, kinds), data.x, seed=0):
        s = measured(model, data)
        print(f"{weight:>6} {s['MCN']:7.3f} {s['VoR']:8.4f} {s['unexplained']:12.2e}", flush=True)
    draw(shown, options)


def draw(shown: list[tuple[str, AE, datasets.Dataset]], options: Namespace) -> None:
    """The data, and the codes of each model with the unit circles of its metric."""
    figure = plt.figure(figsize=(13, 4.2), layout="constrained")
    data = shown[0][2]
    colours = plotting.plane_colours(data.z)
    axes = figure.add_subplot(1, 3, 1, projection="3d")
    axes.scatter(*data.x.T, s=3, c=colours)
    axes.set(title="data", box_aspect=(1, 1, 0.6))
    axes.set(xlabel="$x_1$", ylabel="$x_2$", zlabel="$x_3$")
    axes.view_init(25, -60)
    for i, (name, model, _) in enumerate(shown):
        axes = figure.add_subplot(1, 3, 2 + i)
        z = model.transform(data.x)
        axes.scatter(*z.T, s=3, c=colours, alpha=0.5)
        plotting.indicatrices(model.manifold_, plotting.spread_points(z, 60), ax=axes)
        axes.set_aspect("equal")
        mcn = measured(model, data)["MCN"]
        axes.set(title=f"codes, {name}: MCN {mcn:.2f}", xlabel="$z_1$", ylabel="$z_2$")
    figure.suptitle("Ellipses are circles of one radius in the data space")
    _run.save(figure, options, "fig13_isometric_square.png", dpi=130)


if __name__ == "__main__":
    main()
