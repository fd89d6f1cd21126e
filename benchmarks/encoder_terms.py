"""What losses that see the encoder do to its folds, on a Swiss roll with a hole and rotated digits.

    python -m benchmarks.encoder_terms           # or with --quick

A decoder's loss has no gradient that unfolds an encoder. Every model is trained from random
weights, in float32 on one thread. Measured on the training data, for five seeds:

- *recall*: of the ten nearest samples along the graph of the data, the share that is among the ten
  nearest codes;
- *ranks*: Spearman's correlation between latent distances and distances along that graph;
- *τ*: Kendall's correlation of the same;
- *R²* of the reconstruction.

What was measured is kept by seed in ``benchmarks/results/encoder_terms.json``, and not measured
again unless ``--again`` is given. Writes ``benchmarks/results/encoder_terms.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.kept import Kept, Measures
from riemae import datasets
from riemae.autoencoders import AE, IRAE, Term
from riemae.autoencoders.graph_losses import DistanceMatching

RESULTS = Path(__file__).parent / "results" / "encoder_terms.md"
VALUES = RESULTS.with_suffix(".json")
SETTINGS = {"hidden": (64, 64), "epochs": 400, "batch_size": 512, "lr": 5e-3, "schedule": "cosine"}
NEIGHBORS = 10
TERMS: dict[str, dict[str, Any]] = {
    "+ separation (BLAE)": {"separation": 1.0},
    "+ separation, bi_lipschitz (BLAE)": {"separation": 1.0, "bi_lipschitz": 0.01},
    "+ distance_matching (SPAE)": {"distance_matching": 0.1},
    "+ embedding_pull (GRAE)": {"embedding_pull": 0.1},
    "+ topology": {"topology": 0.1},
    "+ encoder_isometry (I-AE)": {"encoder_isometry": 0.01},
}


def roll(seed: int) -> Tensor:
    """500 points of a Swiss roll without those above a square in the middle of the sheet."""
    data = datasets.swiss_roll(n=650, generator=seed, dtype=torch.float32)
    low = data.z.amin(0)
    sheet = (data.z - low) / (data.z.amax(0) - low)
    hole = ((sheet - 0.5).abs() < 0.17).all(1)
    return data.x[~hole][:500]


def digits(seed: int) -> Tensor:
    """A handwritten 3 in 360 angles: a closed curve, which two latent dimensions can hold."""
    from scipy.ndimage import rotate, zoom

    images = load_digits().images
    image = images[np.flatnonzero(load_digits().target == 3)[seed]] / 16
    fine = np.pad(zoom(image, 2.5, order=1), 4)
    turned = [rotate(fine, angle, reshape=False, order=1) for angle in range(360)]
    return torch.as_tensor(np.stack(turned), dtype=torch.float32).flatten(1)


DATA = {"Swiss roll with a hole": roll, "rotated digit": digits}


def measured(model: AE, x: Tensor, lengths: Tensor) -> Measures:
    """Recall, ranks, τ and R²."""
    z = model.transform(x)
    latent = torch.cdist(z, z)
    n = len(x)
    upper = torch.triu_indices(n, n, 1)
    both = latent[tuple(upper)], lengths[tuple(upper)]
    eye = torch.eye(n).bool()
    near = lengths.masked_fill(eye, torch.inf).topk(NEIGHBORS, largest=False).indices
    found = latent.masked_fill(eye, torch.inf).topk(NEIGHBORS, largest=False).indices
    recall = (near[:, :, None] == found[:, None]).any(2).float().mean()
    return {
        "recall": float(recall),
        "ranks": float(spearmanr(*both).statistic),
        "τ": float(kendalltau(*both).statistic),
        "R²": model.score(x),
    }


def models(epochs: int) -> dict[str, AE]:
    """The plain autoencoder, IRAE, and IRAE with each of the losses."""
    settings = {**SETTINGS, "epochs": epochs}
    found: dict[str, AE] = {"AE": AE(**settings), "IRAE": IRAE(**settings, weight=0.01)}
    for name, terms in TERMS.items():
        given = {key: Term(weight) for key, weight in terms.items()}
        found[name] = IRAE(**settings, weight=0.01, terms=given)
    return found


def measure(name: str, kept: Kept, only: list[str], seeds: int, epochs: int) -> None:
    """Train on one kind of data, as far as it is not measured yet."""
    for seed in range(seeds):
        x = DATA[name](seed)
        lengths = DistanceMatching(NEIGHBORS).fitted(x).lengths
        for label, model in models(epochs).items():
            if kept.has(name, label, seed) or (only and label not in only):
                continue
            found = measured(model.set_params(seed=seed).fit(x), x, lengths)
            kept.add(name, label, seed, found)
            print(name, seed, label, found, flush=True)


def table(name: str, kept: Kept) -> list[str]:
    """The rows of one kind of data, by seed, and by how much each loss is above IRAE on average."""
    values = kept.of(name)
    names = list(next(iter(values.values()))[0])
    rows = [f"## {name}", "", "| | " + " | ".join(names) + " | recall, ranks above IRAE's on |"]
    rows.append("|" + " --- |" * (len(names) + 2))
    base = values.get("IRAE", [])
    for label, many in values.items():
        cells = [" ".join(f"{s[key]:.3f}" for s in many) for key in names]
        above = ""
        if label not in ("AE", "IRAE"):
            wins = [
                sum(s[key] > b[key] for s, b in zip(many, base, strict=True))
                for key in ("recall", "ranks")
            ]
            above = f"{wins[0]}, {wins[1]} of {len(many)} seeds"
        rows.append(f"| {label} | " + " | ".join([*cells, above]) + " |")
    return [*rows, ""]


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", help=f"some of {', '.join(DATA)}")
    parser.add_argument("--models", nargs="*", default=[], help="by default all")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, no file")
    options = parser.parse_args()
    quick = options.quick
    torch.set_num_threads(1)
    kept = Kept(None if quick else VALUES)
    lines = [
        "# Losses that see the encoder",
        "",
        "By seed, on the training data. All but AE are IRAE with weight 0.01, to which the losses "
        "are added.",
        "",
    ]
    for name in options.data or DATA:
        if options.again:
            kept.values.pop(name, None)
        measure(name, kept, options.models, 1 if quick else 5, 2 if quick else SETTINGS["epochs"])
    for name in DATA:
        if name in kept.values:
            lines += table(name, kept)
    print("\n".join(lines))
    lines += [
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, 1 thread, float32.",
        "",
    ]
    if not quick:
        RESULTS.write_text("\n".join(lines))
        print(f"Written: {RESULTS}")


if __name__ == "__main__":
    main()
