"""Do digits fall into their classes? Clusters by geodesic and by Euclidean distance, over seeds.

An autoencoder with eight latent dimensions is trained on scikit-learn's digits from several seeds.
The codes of 1,000 digits are grouped into ten clusters in two ways each: by k-means, whose geodesic
form has Fréchet means as centres; and by k-medoids, which needs a matrix of distances only, with
distances along a neighbourhood graph as geodesic ones. The score is the adjusted Rand index against
the true classes, 1 for the same groups and 0 for chance. The last lines say who wins, in how many
runs.

    python examples/clusters_of_digits.py              # 5 seeds; writes out/clusters_of_digits.png
"""

from __future__ import annotations

import time
from argparse import Namespace

import _run
import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from riemae import Manifold, plotting
from riemae.autoencoders import AE
from riemae.statistics import GeodesicKMeans, GeodesicKMedoids

CLASSES = 10
MODELS = {"AE": AE(latent_dim=8, hidden=(64, 64), epochs=40, batch_size=128, lr=2e-3)}
WAYS = ("k-means", "k-means, geodesic", "k-medoids", "k-medoids, geodesic")
COLOURS = ("#D55E00", "#0072B2", "#D55E00", "#0072B2")


def main() -> None:
    """Train, cluster, print, draw."""
    options = _run.options(__doc__, seeds=5)
    count = 60 if options.quick else 1000
    found = load_digits()
    x = torch.as_tensor(found.data / 16, dtype=torch.float32)
    order = np.random.default_rng(0).permutation(len(x))
    x, classes = x[order], found.target[order]
    print(f"adjusted Rand index of {count} digits")
    print(f"{'seed':>4} " + " ".join(f"{way:>20}" for way in WAYS) + f" {'seconds':>8}")
    scores = []
    shown = None
    for seed in range(options.seeds):
        for _, model in _run.trained(_run.models_for(options, MODELS), x, seed):
            codes = model.transform(x[:count]).double()
            start = time.perf_counter()
            groups = clusters(model.manifold_.to(dtype=torch.float64), codes, seed)
            seconds = time.perf_counter() - start
            row = [adjusted_rand_score(classes[:count], own) for own in groups]
            numbers = " ".join(f"{score:20.3f}" for score in row)
            print(f"{seed:4} {numbers} {seconds:8.0f}", flush=True)
            scores.append(row)
            shown = shown or (codes, groups[2], groups[3])
    table = np.array(scores)
    print(f"{'mean':>4} " + " ".join(f"{score:20.3f}" for score in table.mean(0)))
    for name, first in (("k-means", 0), ("k-medoids", 2)):
        print(f"{name}: {verdict(table[:, first], table[:, first + 1])}")
    draw(options, shown, classes[:count], table)


def clusters(M: Manifold, codes: Tensor, seed: int) -> list[np.ndarray]:
    """The groups that each way finds, from the same seed."""
    flat = KMeans(CLASSES, n_init=1, random_state=seed).fit(codes.numpy())
    curved = GeodesicKMeans(M, CLASSES, generator=seed).fit(codes)
    medoids = [
        GeodesicKMedoids(CLASSES).fit(distances).labels_.numpy()
        for distances in (torch.cdist(codes, codes), M.distance_matrix(codes, method="graph"))
    ]
    return [flat.labels_, curved.labels_.numpy(), *medoids]


def verdict(flat: np.ndarray, curved: np.ndarray) -> str:  # (seeds,) twice
    """Who wins in how many runs, and by how much."""
    gain = curved - flat
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    text = f"geodesic is better in {wins} and worse in {losses} of {len(gain)} runs; mean gain"
    return f"{text} {gain.mean():+.3f}, standard error {error:.3f}"


def draw(
    options: Namespace,
    shown: tuple[Tensor, np.ndarray, np.ndarray],
    classes: np.ndarray,
    table: np.ndarray,
) -> None:
    """The codes of the first seed by class and by both groupings, and all scores."""
    codes, flat, curved = shown
    plane = PCA(2).fit_transform(codes.numpy())
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.4), layout="constrained")
    panels = (("true classes", classes), ("k-medoids", flat), ("k-medoids, geodesic", curved))
    for axis, (title, groups) in zip(axes, panels, strict=False):
        plotting.codes(plane, groups, ax=axis, names=title == "true classes", legend=False)
        axis.set(title=title, xlabel="first component of the codes", ylabel="second component")
    for way, (values, colour) in enumerate(zip(table.T, COLOURS, strict=True)):
        axes[3].plot([way] * len(values), values, "o", color=colour, alpha=0.7)
        axes[3].plot([way - 0.2, way + 0.2], [values.mean()] * 2, color=colour, lw=2)
    axes[3].set_xticks(range(4), [way.replace(", ", "\n") for way in WAYS])
    axes[3].set(ylabel="adjusted Rand index", title=f"{len(table)} seeds; lines: means")
    axes[3].grid(axis="y", alpha=0.25)
    _run.save(figure, options, "clusters_of_digits.png", dpi=110)


if __name__ == "__main__":
    main()
