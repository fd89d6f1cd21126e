"""What losses that see the encoder do to its folds, on a Swiss roll with a hole and rotated digits.

    python -m benchmarks.encoder_terms           # or with --quick

A decoder's loss has no gradient that unfolds an encoder. Every model is trained from random
weights, in float32 on one thread. Measured on the training data, for five seeds:

- *recall*: of the ten nearest samples along the graph of the data, the share that is among the ten
  nearest codes;
- *ranks*: Spearman's correlation between latent distances and distances along that graph;
- *R²* of the reconstruction.

Writes ``benchmarks/results/encoder_terms.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor

from riemae import datasets
from riemae.autoencoders import AE, IRAE, Term
from riemae.autoencoders.graph_losses import DistanceMatching

RESULTS = Path(__file__).parent / "results" / "encoder_terms.md"
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


def measured(model: AE, x: Tensor, lengths: Tensor) -> tuple[float, float, float]:
    """Recall, ranks and R²."""
    z = model.transform(x)
    latent = torch.cdist(z, z)
    n = len(x)
    upper = torch.triu_indices(n, n, 1)
    ranks = spearmanr(latent[tuple(upper)], lengths[tuple(upper)]).statistic
    eye = torch.eye(n).bool()
    near = lengths.masked_fill(eye, torch.inf).topk(NEIGHBORS, largest=False).indices
    found = latent.masked_fill(eye, torch.inf).topk(NEIGHBORS, largest=False).indices
    recall = (near[:, :, None] == found[:, None]).any(2).float().mean()
    return float(recall), float(ranks), model.score(x)


def models(epochs: int) -> dict[str, AE]:
    """The plain autoencoder, IRAE, and IRAE with each of the losses."""
    settings = {**SETTINGS, "epochs": epochs}
    found: dict[str, AE] = {"AE": AE(**settings), "IRAE": IRAE(**settings, weight=0.01)}
    for name, terms in TERMS.items():
        given = {key: Term(weight) for key, weight in terms.items()}
        found[name] = IRAE(**settings, weight=0.01, terms=given)
    return found


def table(name: str, seeds: int, epochs: int) -> list[str]:
    """The rows of one kind of data."""
    rows = [f"## {name}", "", "| | recall | ranks | R² |", "| --- | --- | --- | --- |"]
    data = [DATA[name](seed) for seed in range(seeds)]
    lengths = [DistanceMatching(NEIGHBORS).fitted(x).lengths for x in data]
    for label, model in models(epochs).items():
        found = np.array(
            [
                measured(model.set_params(seed=seed).fit(x), x, d)
                for seed, (x, d) in enumerate(zip(data, lengths, strict=True))
            ]
        )
        cells = [" ".join(f"{v:.3f}" for v in column) for column in found.T]
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
        print(name, rows[-1], flush=True)
    return [*rows, ""]


def main() -> None:
    """Run everything and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, no file")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    lines = [
        "# Losses that see the encoder",
        "",
        "By seed, on the training data. All but AE are IRAE with weight 0.01, to which the losses "
        "are added.",
        "",
    ]
    for name in DATA:
        lines += table(name, 1 if quick else 5, 2 if quick else SETTINGS["epochs"])
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
