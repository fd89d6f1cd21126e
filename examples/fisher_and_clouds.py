"""IRAE and MCAE under metrics of the data space that are not Euclidean: counts and point clouds.

Counts: Poisson data with rates on a known surface. Their natural metric is that of the likelihood,
in which a difference of one count is shorter where counts are large. Autoencoders with a Poisson
likelihood are trained in three ways: plain, isometric for the Euclidean metric of the rates, and
isometric or of little curvature for Fisher-Rao. Distances of codes are compared with the true ones
under both metrics. On these data the two metrics differ little.

Clouds: ellipsoids with three random half-axes, whose points are drawn anew for every cloud. No
point of one cloud corresponds to a point of another, so the reconstruction is measured by the
Chamfer distance. No model can explain a good part of it. Scores are those of the Info-Riemannian
metric, and the rank correlation of straight latent distances with differences of the half-axes'
logarithms.

    python examples/fisher_and_clouds.py              # one seed
    python examples/fisher_and_clouds.py --seeds 3    # writes out/fisher_and_clouds.png
"""

from __future__ import annotations

from argparse import Namespace

import _run
import torch
from matplotlib import pyplot as plt
from scipy.stats import spearmanr
from torch import Tensor

from riemae import Manifold, ambient, datasets, plotting, scores
from riemae.autoencoders import AE, IRAE, MCAE

POISSON = {
    "hidden": (128, 128),
    "likelihood": "poisson",
    "epochs": 150,
    "batch_size": 100,
    "lr": 5e-3,
}
POISSON |= {"schedule": "cosine", "clip": 1.0}
COUNTS = {
    "AE": AE(**POISSON),
    "IRAE, Euclidean": IRAE(**POISSON, weight=0.03),
    "IRAE, Fisher-Rao": IRAE(**POISSON, weight=0.03, ambient="fisher"),
    "MCAE, Fisher-Rao": MCAE(**POISSON, weight=1e-3, ambient="fisher"),
    "MCAE + IRAE, Fisher-Rao": MCAE(
        **POISSON, weight=1e-3, ambient="fisher", terms={"relaxed_distortion": 0.03}
    ),
}
CELLS, PAIRS = 300, 150
CLOUDS, POINTS = 120, 48
CHAMFER = {
    "latent_dim": 3,
    "hidden": (64, 64),
    "likelihood": "chamfer",
    "epochs": 60,
    "batch_size": 30,
    "lr": 5e-3,
}
CHAMFER |= {"schedule": "cosine", "clip": 1.0}


def rates(M: Manifold, data: datasets.Dataset, pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of cells, with their true geodesic distances under M's metric."""
    i, j = torch.randint(len(data.z), (2, pairs), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return i, j, M.distance(data.z[i], data.z[j], rtol=1e-3)


def counts(options: Namespace) -> tuple[dict[str, AE], datasets.Dataset]:
    """Train on counts and print the first table."""
    shown: dict[str, AE] = {}
    models = _run.models_for(options, COUNTS)
    n, pairs = (60, 10) if options.quick else (CELLS, PAIRS)
    first = datasets.counts(n=n, generator=0, dtype=torch.float64)
    print("Counts: distortion of the Fisher-Rao metric, its curvature, and rank correlation of")
    print("latent distances with true geodesic distances of the rates, by both metrics")
    print(
        f"{'seed':>4} {'model':24} {'MCN':>6} {'VoR':>7} {'curvature':>10} "
        f"{'Euclidean':>10} {'Fisher':>7} {'score':>6}"
    )
    for seed in range(options.seeds):
        data = datasets.counts(n=n, generator=seed, dtype=torch.float64)
        true_fisher = Manifold(lambda z, d=data: torch.distributions.Poisson(d.surface(z)))
        truths = [rates(M, data, pairs) for M in (Manifold(data.surface), true_fisher)]
        for name, fitted in _run.trained(models, data.x, seed):
            z = fitted.transform(data.x)
            M = Manifold(lambda c, f=fitted: torch.distributions.Poisson(f.decoder_(c).exp()))
            with torch.no_grad():
                mcn, vor = float(scores.condition_number(M, z).mean()), float(scores.vor(M, z))
                curvature = float(M.extrinsic_curvature(z).mean())
            ranks = [float(spearmanr((z[i] - z[j]).norm(dim=1), d).statistic) for i, j, d in truths]
            print(
                f"{seed:4} {name:24} {mcn:6.2f} {vor:7.3f} {curvature:10.3g} "
                f"{ranks[0]:10.3f} {ranks[1]:7.3f} {fitted.score(data.x):6.3f}",
                flush=True,
            )
            if not seed:
                shown[name] = fitted
    return shown, first


def clouds(options: Namespace) -> None:
    """Train on clouds and print the second table."""
    n, points = (30, 12) if options.quick else (CLOUDS, POINTS)
    print("\nPoint clouds: distortion of the Info-Riemannian metric, rank correlation with")
    print("distances of the shapes")
    print(f"{'seed':>4} {'model':24} {'MCN':>6} {'VoR':>7} {'Spearman':>9} {'unexplained':>12}")
    for seed in range(options.seeds):
        data = datasets.superquadrics(n, points, generator=seed, dtype=torch.float32)
        metric = ambient.InfoRiemannian.from_clouds(data.x)
        models = {
            "AE": AE(**CHAMFER),
            "IRAE, Info-Riemannian": IRAE(**CHAMFER, weight=0.02, ambient=metric),
            "MCAE, Info-Riemannian": MCAE(**CHAMFER, weight=1e-4, ambient=metric),
        }
        i, j = torch.triu_indices(n, n, 1)
        truth = (data.z[i].log() - data.z[j].log()).norm(dim=1)
        models = _run.models_for(options, models)
        for name, fitted in _run.trained(models, data.x, seed):
            z = fitted.transform(data.x)
            M = Manifold(fitted.decoder_, ambient=metric)
            with torch.no_grad():
                mcn, vor = float(scores.condition_number(M, z).mean()), float(scores.vor(M, z))
            rank = float(spearmanr((z[i] - z[j]).norm(dim=1), truth).statistic)
            print(
                f"{seed:4} {name:24} {mcn:6.2f} {vor:7.3f} {rank:9.3f} "
                f"{1 - fitted.score(data.x):12.4f}",
                flush=True,
            )


def main() -> None:
    """Train, print, draw."""
    options = _run.options(__doc__, seeds=1)
    shown, data = counts(options)
    clouds(options)
    draw(shown, data, options)


def draw(shown: dict[str, AE], data: datasets.Dataset, options: Namespace) -> None:
    """Codes of the cells, and circles of the Fisher-Rao metric."""
    figure, axes = plt.subplots(1, len(shown), figsize=(18, 3.9), layout="constrained")
    for axis, (name, model) in zip(axes, shown.items(), strict=True):
        z = model.transform(data.x)
        M = Manifold(lambda c, f=model: torch.distributions.Poisson(f.decoder_(c).exp()))
        axis.scatter(*z.T, s=6, c=plotting.plane_colours(data.z), alpha=0.6)
        plotting.indicatrices(M, plotting.spread_points(z, 40), ax=axis)
        axis.set(title=name, aspect="equal")
    figure.suptitle(
        "Counts: codes, coloured by the true coordinates; "
        "ellipses are circles of the Fisher-Rao metric"
    )
    _run.save(figure, options, "fisher_and_clouds.png", dpi=120)


if __name__ == "__main__":
    main()
