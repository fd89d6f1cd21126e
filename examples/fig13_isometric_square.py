"""An isometric chart: a bent square with a hole, by a plain autoencoder and by IRAE (figure 13 of
Lee 2023).

The surface ``(sin(au)/a, v, (1 − cos(au))/a)`` is a bent sheet of paper, so coordinates exist that
keep all lengths. An autoencoder may use any others. Isometric regularisation finds them: the mean
condition number of the metric (MCN) goes to 1, the variance of the metric over the surface (VoR) to
0, and Euclidean distances of codes rank as the true ones do. On a paraboloid no such chart exists:
the second table shows what each further bit of isometry costs in reconstruction.

    python examples/fig13_isometric_square.py              # one seed
    python examples/fig13_isometric_square.py --seeds 4    # writes out/fig13_isometric_square.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

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


def measured(model: AE, data: datasets.Dataset) -> dict[str, float]:
    """What the acceptance figures of the chart are."""
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    options = parser.parse_args()
    torch.set_num_threads(1)

    shown: list[tuple[str, AE, datasets.Dataset]] = []
    print(
        f"{'seed':>4} {'model':6} {'MCN':>7} {'VoR':>8} {'Spearman':>9} {'unexplained':>12} {'× AE':>6}"
    )
    for seed in range(options.seeds):
        data = datasets.patch_with_hole(generator=seed, dtype=torch.float32)
        plain = 0.0
        for name, settings in MODELS.items():
            model = type(settings)(**settings.get_params()).set_params(seed=seed).fit(data.x)
            s = measured(model, data)
            plain = plain or s["unexplained"]
            print(
                f"{seed:4} {name:6} {s['MCN']:7.3f} {s['VoR']:8.4f} {s['Spearman']:9.5f} {s['unexplained']:12.2e} "
                f"{s['unexplained'] / plain:6.2f}",
                flush=True,
            )
            if not seed:
                shown.append((name, model, data))

    print(
        f"\nA paraboloid, which has no isometric chart\n{'weight':>6} {'MCN':>7} {'VoR':>8} {'unexplained':>12}"
    )
    data = datasets.paraboloid(n=500, generator=0, dtype=torch.float32)
    for weight in WEIGHTS:
        s = measured(IRAE(**{**SETTINGS, "epochs": 100}, weight=weight).fit(data.x), data)
        print(f"{weight:6g} {s['MCN']:7.3f} {s['VoR']:8.4f} {s['unexplained']:12.2e}", flush=True)
    print(draw(shown, options.out))


def draw(shown: list[tuple[str, AE, datasets.Dataset]], out: Path) -> Path:
    """The data, and the codes of each model with the unit circles of its metric."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    figure = plt.figure(figsize=(13, 4.2), layout="constrained")
    data = shown[0][2]
    colours = plotting.plane_colours(data.z)
    axes = figure.add_subplot(1, 3, 1, projection="3d")
    axes.scatter(*data.x.T, s=3, c=colours)
    axes.set(title="data", box_aspect=(1, 1, 0.6))
    axes.view_init(25, -60)
    for i, (name, model, _) in enumerate(shown):
        axes = figure.add_subplot(1, 3, 2 + i)
        z = model.transform(data.x)
        axes.scatter(*z.T, s=3, c=colours, alpha=0.5)
        plotting.indicatrices(model.manifold_, axes, plotting.spread_points(z, 60))
        axes.set_aspect("equal")
        axes.set(title=f"codes of the {name}", xlabel="$z_1$", ylabel="$z_2$")
    figure.suptitle("Ellipses are circles of one radius in the data space")
    path = out / "fig13_isometric_square.png"
    figure.savefig(path, dpi=130)
    return path


if __name__ == "__main__":
    main()
