"""What each autoencoder does to the same data: digits, all with default settings.

    python -m benchmarks.trainers                # or with --quick

1,347 of scikit-learn's digits to train and 450 to test, in units of grey (0 to 1), float32, one
thread, seed 0. *kNN* is the share of test digits that the five nearest training codes name right.
Trustworthiness is that of the training data with ten neighbours. MCN, VoR and curvature are those
at the training codes; curvature is in units of the data's extent, in which a sphere S^m has 2m.
*Cost* is the process time of the fit, relative to that of AE.

What was measured is kept in ``benchmarks/results/trainers.json``, and not measured again unless
``--again`` is given. Writes ``benchmarks/results/trainers.md``.
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
from benchmarks.kept import Kept, Measures
from riemae import autoencoders, scores
from riemae.autoencoders import AE

RESULTS = Path(__file__).parent / "results" / "trainers.md"
VALUES = RESULTS.with_suffix(".json")
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


def measured(model: AE, split: Split, spent: float) -> Measures:
    """What a trained model is like."""
    x, test, labels, truth = split
    z = model.transform(x)
    found = scores.summary(model.manifold_, torch.as_tensor(z))
    return {
        "train": model.score(x),
        "test": model.score(test),
        "right": named_right(z, model.transform(test), labels, truth),
        "trust": float(trustworthiness(x, z, n_neighbors=10)),
        "mcn": float(found.mcn.mean),
        "vor": float(found.vor.mean),
        "curvature": float(found.curvature.mean) * float(model.objective_.extent),
        "seconds": spent,
    }


def row(name: str, s: Measures, plain: float) -> str:
    """The row of a trained model."""
    return (
        f"| {name} | {s['train']:.3f} | {s['test']:.3f} | {s['right']:.3f} | {s['trust']:.3f} | "
        f"{s['mcn']:.2f} | {s['vor']:.3f} | {s['curvature']:.1f} | {s['seconds'] / plain:.1f} |"
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


def measure(m: int, split: Split, kept: Kept, epochs: int | None) -> None:
    """Train what is not measured yet."""
    settings = {"latent_dim": m, **({} if epochs is None else {"epochs": epochs})}
    autoencoders.AE(epochs=1).fit(split[0])  # imports what the first fit would be charged with
    for name, (kind, own) in MODELS.items():
        if kept.has(f"m = {m}", name, 0):
            continue
        start = time.process_time()
        model = getattr(autoencoders, kind)(**own, **settings).fit(split[0])
        spent = time.process_time() - start
        found = measured(model, split, spent)
        kept.add(f"m = {m}", name, 0, found)
        print(m, name, found, flush=True)


def table(m: int, split: Split, kept: Kept) -> list[str]:
    """All rows for one latent dimension."""
    values = {name: many[0] for name, many in kept.of(f"m = {m}").items()}
    if not values:
        return []
    plain = values["AE"]["seconds"]
    rows = [row(name, s, plain) for name, s in values.items()]
    return [f"## m = {m}", "", *HEAD, plane(m, split), *rows, ""]


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("m", nargs="*", type=int, default=[2, 8], help="latent dimensions")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--quick", action="store_true", help="m = 2, one epoch, nothing written")
    options = parser.parse_args()
    quick = options.quick
    torch.set_num_threads(1)
    split = digits()
    kept = Kept(None if quick else VALUES)
    lines = ["# All trainers on digits, with default settings", ""]
    for m in [2] if quick else options.m:
        if options.again:
            kept.values.pop(f"m = {m}", None)
        measure(m, split, kept, 1 if quick else None)
    for m in (2, 8):
        lines += table(m, split, kept)
    print("\n".join(lines))
    if not quick:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, float32."
        about = f"torch {torch.__version__}, Python {platform.python_version()}, {machine}"
        RESULTS.write_text("\n".join([*lines, about, ""]))
        print(f"Written: {RESULTS}")


if __name__ == "__main__":
    main()
