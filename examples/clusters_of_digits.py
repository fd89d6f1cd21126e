"""Do digits fall into their classes? k-means by geodesic and by Euclidean distance, over seeds.

Autoencoders with two and with eight latent dimensions are trained on scikit-learn's digits, each
from several seeds. Codes of 300 digits are then clustered into ten groups: by plain k-means on the
codes, by geodesic k-means (Fréchet means as centres), and by plain k-means on the images. All get
the same number of seedings and keep the best. The score is the adjusted Rand index against the true
classes, 1 for the same groups and 0 for chance. The table says who wins in which run.

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
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from riemae import plotting
from riemae.autoencoders import AE
from riemae.statistics import GeodesicKMeans

CLASSES = 10
SETTINGS = {"hidden": (128, 128), "epochs": 100, "batch_size": 128, "lr": 2e-3}
MODELS = {f"m = {m}": AE(latent_dim=m, **SETTINGS) for m in (2, 8)}
WAYS = ("Euclidean, images", "Euclidean, codes", "geodesic, codes")


def main() -> None:
    """Train, cluster, print, draw."""
    options = _run.options(__doc__, seeds=5)
    count, seedings = (40, 1) if options.quick else (300, 2)
    found = load_digits()
    x = torch.as_tensor(found.data / 16, dtype=torch.float32)
    order = np.random.default_rng(0).permutation(len(x))[:count]
    chosen, classes = x[order], found.target[order]

    scores: dict[str, list[tuple[float, float, float]]] = {}
    shown = None
    print(f"adjusted Rand index of {count} digits in {CLASSES} groups")
    print(f"{'seed':>4} {'model':7} " + " ".join(f"{way:>18}" for way in WAYS) + f" {'seconds':>8}")
    for seed in range(options.seeds):
        plain = KMeans(CLASSES, n_init=seedings, random_state=seed).fit(chosen.numpy())
        for name, model in _run.trained(_run.models_for(options, MODELS), x, seed):
            codes = model.transform(chosen).double()
            flat = KMeans(CLASSES, n_init=seedings, random_state=seed).fit(codes.numpy())
            manifold = model.manifold_.to(dtype=torch.float64)
            start = time.perf_counter()
            curved = GeodesicKMeans(manifold, CLASSES, n_init=seedings, rtol=1e-2, generator=seed)
            curved.fit(codes)
            seconds = time.perf_counter() - start
            groups = (plain.labels_, flat.labels_, curved.labels_.numpy())
            row = tuple(adjusted_rand_score(classes, own) for own in groups)
            scores.setdefault(name, []).append(row)
            numbers = " ".join(f"{score:18.3f}" for score in row)
            print(f"{seed:4} {name:7} {numbers} {seconds:8.1f}", flush=True)
            if shown is None:
                shown = manifold, codes, groups
    for name, rows in scores.items():
        told = verdict(np.array(rows))
        print(f"{name}: {told}")
    draw(options, shown, classes, scores)


def verdict(rows: np.ndarray) -> str:  # (seeds, 3)
    """Who wins between the two ways to cluster codes, in how many runs, and by how much."""
    gain = rows[:, 2] - rows[:, 1]
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    spread = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
    return (
        f"geodesic k-means is better in {wins} runs and worse in {losses} of {len(rows)}; "
        f"mean gain over Euclidean {gain.mean():+.3f} ± {spread:.3f}"
    )


def draw(
    options: Namespace,
    shown: tuple[object, Tensor, tuple[np.ndarray, ...]],
    classes: np.ndarray,
    scores: dict[str, list[tuple[float, float, float]]],
) -> None:
    """The classes and both groupings of a plane, and the scores of all runs."""
    manifold, codes, (_, flat, curved) = shown
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.4), layout="constrained")
    panels = (("true classes", classes), ("Euclidean k-means", flat), ("geodesic k-means", curved))
    for axis, (title, groups) in zip(axes, panels, strict=False):
        style = {"background": "magnification", "names": title == "true classes"}
        named = groups if style["names"] else [f"group {group}" for group in groups]
        plotting.latent(manifold, codes, named, ax=axis, resolution=60, legend=False, **style)
        axis.set_title(title)
    for number, (name, rows) in enumerate(scores.items()):
        for way, values in enumerate(np.array(rows).T):
            place = way + 0.25 * (number - 0.5)
            style = {"color": ("#0072B2", "#D55E00")[number], "marker": "os"[number]}
            axes[3].plot([place] * len(values), values, ls="", alpha=0.7, **style)
            label = name if way == 0 else None
            axes[3].plot(
                [place - 0.1, place + 0.1],
                [values.mean()] * 2,
                lw=2,
                label=label,
                color=style["color"],
            )
    axes[3].set_xticks(range(3), [way.replace(", ", "\n") for way in WAYS])
    axes[3].set(ylabel="adjusted Rand index", title="all seeds; lines: means")
    axes[3].legend(frameon=False)
    _run.save(figure, options, "clusters_of_digits.png", dpi=110)


if __name__ == "__main__":
    main()
