"""What each autoencoder does to the same data: digits, all with default settings.

    python -m benchmarks.trainers                # or with --quick

1,347 of scikit-learn's digits to train and 450 to test, in units of grey (0 to 1), float32, one
thread, seed 0. *kNN* is the share of test digits that the five nearest training codes name right.
Trustworthiness is that of the training data with ten neighbours. MCN, VoR and curvature are those
at the training codes; curvature is in units of the data's extent, in which a sphere S^m has 2m.
*Cost* is the process time of the fit, relative to that of AE.

Writes ``benchmarks/results/trainers.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.defaults import MODELS
from riemae import autoencoders, scores
from riemae.autoencoders import AE

RESULTS = Path(__file__).parent / "results" / "trainers.md"
HEAD = [
    "| | R² train | R² test | kNN | trustworthiness | MCN | VoR | curvature | cost |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
]
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def digits() -> Split:
    """Training images, test images, and their labels."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    return tuple(train_test_split(x, y, test_size=450, random_state=0, stratify=y))


def named_right(
    train: np.ndarray, test: np.ndarray, labels: np.ndarray, truth: np.ndarray
) -> float:
    """Share of the test codes whose five nearest training codes have their label."""
    return float(KNeighborsClassifier(5).fit(train, labels).score(test, truth))


def row(name: str, model: AE, split: Split, cost: float) -> str:
    """The row of a trained model."""
    x, test, labels, truth = split
    z = model.transform(x)
    right = named_right(z, model.transform(test), labels, truth)
    found = scores.summary(model.manifold_, torch.as_tensor(z))
    extent = float(model.objective_.extent)
    return (
        f"| {name} | {model.score(x):.3f} | {model.score(test):.3f} | {right:.3f} | "
        f"{trustworthiness(x, z, n_neighbors=10):.3f} | {float(found.mcn.mean):.2f} | "
        f"{float(found.vor.mean):.3f} | {float(found.curvature.mean) * extent:.1f} | {cost:.1f} |"
    )


def plane(m: int, split: Split) -> str:
    """The row of PCA."""
    x, test, labels, truth = split
    fitted = PCA(m).fit(x)
    variance = x.var(0).sum()

    def explained(data: np.ndarray) -> float:
        left = data - fitted.inverse_transform(fitted.transform(data))
        return 1 - float((left**2).sum(1).mean() / variance)

    z = fitted.transform(x)
    right = named_right(z, fitted.transform(test), labels, truth)
    trust = trustworthiness(x, z, n_neighbors=10)
    return (
        f"| PCA | {explained(x):.3f} | {explained(test):.3f} | {right:.3f} | {trust:.3f} | 1 | 0 | "
        "0 | |"
    )


def table(m: int, split: Split, epochs: int | None) -> list[str]:
    """All rows for one latent dimension, the most expensive estimator last."""
    rows = [f"## m = {m}", "", *HEAD, plane(m, split)]
    settings = {"latent_dim": m, **({} if epochs is None else {"epochs": epochs})}
    plain = 0.0
    for name in sorted(MODELS, key=lambda name: name == "MCAE, intrinsic"):
        kind, own = MODELS[name]
        start = time.process_time()
        model = getattr(autoencoders, kind)(**own, **settings).fit(split[0])
        spent = time.process_time() - start
        plain = plain or spent
        rows.append(row(name, model, split, spent / plain))
        print(rows[-1], flush=True)
    return [*rows, ""]


def main() -> None:
    """Run everything and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="m = 2, one epoch, nothing written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    split = digits()
    lines = ["# All trainers on digits, with default settings", ""]
    for m in (2,) if quick else (2, 8):
        lines += table(m, split, 1 if quick else None)
        if not quick:
            machine = f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, float32."
            about = f"torch {torch.__version__}, Python {platform.python_version()}, {machine}"
            RESULTS.write_text("\n".join([*lines, about, ""]))
    if not quick:
        print(f"Written: {RESULTS}")


if __name__ == "__main__":
    main()
