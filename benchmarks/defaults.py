"""Whether the autoencoders, as they come, reconstruct at least as well as a plane.

    python -m benchmarks.defaults                # or with --quick

Every estimator is trained with its default settings on the standardised data of scikit-learn, in
float32 on one thread. The score is R² on the training data, for m = 2 and three seeds. The plane is
that of PCA with two components, which has no curvature and no distortion: an estimator whose only
purpose is a simple shape has no reason to be worse. The target is R² ≥ PCA − 0.02 for every seed.

Writes ``benchmarks/results/defaults.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from riemae import autoencoders

RESULTS = Path(__file__).parent / "results" / "defaults.md"
MARGIN = 0.02
DATA: dict[str, Callable[[], Any]] = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
    "digits": datasets.load_digits,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "AE": ("AE", {}),
    "VAE": ("VAE", {}),
    "DenoisingAE": ("DenoisingAE", {}),
    "ContractiveAE": ("ContractiveAE", {}),
    "NRAE": ("NRAE", {}),
    "MCAE": ("MCAE", {}),
    "MCAE, intrinsic": ("MCAE", {"kind": "intrinsic"}),
    "IRAE": ("IRAE", {}),
    "IRVAE": ("IRVAE", {}),
}


def standardised(name: str) -> np.ndarray:
    """The data, with mean 0 and variance 1 in every feature that varies."""
    raw = DATA[name]().data
    return StandardScaler().fit_transform(raw).astype("float32")


def scores(x: np.ndarray, model: str, seeds: int) -> list[float]:
    """R² of the training data by seed."""
    kind, settings = MODELS[model]
    make = getattr(autoencoders, kind)
    return [make(**settings, seed=seed).fit(x).score(x) for seed in range(seeds)]


def table(names: list[str], seeds: int) -> tuple[list[str], list[str]]:
    """A row for every estimator, and those that miss the target."""
    planes = {}
    data = {name: standardised(name) for name in names}
    for name, x in data.items():
        planes[name] = PCA(2).fit(x).explained_variance_ratio_.sum()
    head = " | ".join(f"{name} ({len(x)} × {x.shape[1]})" for name, x in data.items())
    first = " | ".join(f"{planes[name]:.3f}" for name in names)
    rows = [f"| | {head} |", "| --- |" + " --- |" * len(names), f"| PCA | {first} |"]
    missed = []
    for model in MODELS:
        cells = []
        for name in names:
            start = time.process_time()
            found = scores(data[name], model, seeds)
            short = min(found) - planes[name] + MARGIN
            if short < 0:
                missed.append(f"{model} on {name}: {min(found):.3f}, {-short:.3f} too low")
            text = " ".join(f"{value:.3f}" for value in found)
            cells.append(text if short >= 0 else f"**{text}**")
            spent = time.process_time() - start
            print(f"{model:<16}{name:<15}{text}   {spent:.0f} s", flush=True)
        rows.append(f"| {model} | " + " | ".join(cells) + " |")
    return rows, missed


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="iris with one seed, nothing written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    names = ["iris"] if quick else list(DATA)
    rows, missed = table(names, 1 if quick else 3)
    verdict = "All estimators meet the target." if not missed else f"Missed: {'; '.join(missed)}."
    lines = [
        "# Default settings against a plane",
        "",
        f"R² of the training data by seed, m = 2. Target: PCA − {MARGIN} for every seed. {verdict}",
        "",
        *rows,
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, 1 thread, float32.",
        "",
    ]
    print("\n".join(lines))
    if not quick:
        RESULTS.write_text("\n".join(lines))
        print(f"Written: {RESULTS}")


if __name__ == "__main__":
    main()
