"""Which distances survive another training run? Coefficients of variation over five seeds.

The same autoencoder with two latent dimensions is trained on scikit-learn's digits from five seeds.
Of 100 pairs of digits, the distance is computed in each of the five models: along the geodesic,
through the data space (the chord between decoded images), and between the codes. The coefficient
of variation of a pair is the standard deviation of its five distances, divided by their mean. Codes
may also be scaled from run to run, which a fairer comparison takes out: the last column divides all
distances of a model by their mean first.

    python examples/distances_over_retrainings.py  # writes out/distances_over_retrainings.png
"""

from __future__ import annotations

from argparse import Namespace

import _run
import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import Tensor

from riemae.autoencoders import AE
from riemae.statistics import DistanceDistribution, compare_distances

SETTINGS = {"hidden": (128, 128), "epochs": 150, "batch_size": 128, "lr": 2e-3}
MODELS = {"AE": AE(latent_dim=2, **SETTINGS)}
KINDS = {"geodesic": "#0072B2", "chord": "#009E73", "euclidean": "#D55E00"}
NAMES = {"geodesic": "geodesic", "chord": "chord of images", "euclidean": "between codes"}


def main() -> None:
    """Train, compare, print, draw."""
    parser = _run.parser(__doc__)
    parser.add_argument("--models", type=int, default=5, help="how many training runs")
    options = _run.started(parser.parse_args())
    runs, count = (2, 10) if options.quick else (options.models, 100)
    x = torch.as_tensor(load_digits().data / 16, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(len(x), generator=generator)[: 2 * count].view(count, 2)

    manifolds, codes = [], []
    for seed in range(runs):
        for _, model in _run.trained(_run.models_for(options, MODELS), x, seed):
            manifolds.append(model.manifold_.to(dtype=torch.float64))
            codes.append(model.transform(x).double())
            print(f"seed {seed}: R² {model.score(x):.3f}", flush=True)
    found = compare_distances(manifolds, codes, pairs)

    print(f"coefficients of variation over {runs} models, of {count} pairs of digits")
    print(f"{'distance':16} {'median':>8} {'10 %':>8} {'90 %':>8} {'median, scaled':>15}")
    for kind in KINDS:
        low, middle, high = np.nanpercentile(found.variation(kind).numpy(), (10, 50, 90))
        scaled = float(variation(relative(getattr(found, kind))).nanmedian())
        print(f"{NAMES[kind]:16} {middle:8.1%} {low:8.1%} {high:8.1%} {scaled:15.1%}")
    numerical = float((found.error / found.geodesic).nanmedian())
    converged = int((found.status == 0).sum())
    print(f"numerical error of the geodesics: {numerical:.0e} (median); ", end="")
    print(f"{converged} of {found.status.numel()} converged")
    draw(options, found)


def relative(distances: Tensor) -> Tensor:  # (K, p)
    """Distances in units of their mean in each model."""
    return distances / distances.nanmean(1, keepdim=True)


def variation(distances: Tensor) -> Tensor:  # (K, p) -> (p,)
    """Coefficients of variation over the models."""
    return distances.std(0) / distances.mean(0)


def draw(options: Namespace, found: DistanceDistribution) -> None:
    """Coefficients of variation of all pairs in order, and the distances of two models."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for kind, colour in KINDS.items():
        values = np.sort(100 * found.variation(kind).numpy())
        share = 100 * (np.arange(len(values)) + 0.5) / len(values)
        left.plot(values, share, color=colour, lw=2, label=NAMES[kind])
    left.set(
        xlabel="coefficient of variation over the training runs (%)",
        ylabel="share of the pairs below (%)",
        title="smaller: less depends on the training run",
        xlim=(0, None),
        ylim=(0, 100),
    )
    left.grid(alpha=0.25)
    left.legend(frameon=False)
    for kind in ("euclidean", "geodesic"):
        first, second = relative(getattr(found, kind))[:2].numpy()
        marker = {"euclidean": "s", "geodesic": "o"}[kind]
        right.scatter(
            first, second, s=14, alpha=0.7, color=KINDS[kind], marker=marker, label=NAMES[kind]
        )
    top = max(right.get_xlim()[1], right.get_ylim()[1])
    right.plot([0, top], [0, top], color="0.5", lw=0.8, zorder=0)
    right.set(
        xlabel="distance in the first model, relative to its mean",
        ylabel="distance in the second model",
        title="each dot is a pair of digits",
        xlim=(0, top),
        ylim=(0, top),
    )
    right.legend(frameon=False)
    _run.save(figure, options, "distances_over_retrainings.png")


if __name__ == "__main__":
    main()
