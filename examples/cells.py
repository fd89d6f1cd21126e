"""Real cells: how well do distances in a latent space separate the types of cells?

The data are the counts of 765 genes in 700 blood cells, which are part of scanpy. A
negative-binomial autoencoder with two latent dimensions is fitted to them. Neighbours are then
looked for by four distances: along straight lines in the latent space, by the Euclidean metric on
expected counts, by Fisher-Rao, and between the counts. The second and the third are measured along
the k-nearest-neighbour graph of the codes. A distance is good when a cell's nearest neighbours have
the type of the cell.

    pip install '.[train,cells]'
    python examples/cells.py             # writes out/cells.png
"""

from __future__ import annotations

from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import _run
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from riemae import Manifold
from riemae.autoencoders import AE
from riemae.plotting import magnification

NEIGHBOURS = 10


def shipped() -> Path:
    """The path of the file in scanpy, without an import of scanpy."""
    spec = find_spec("scanpy")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "scanpy ships the cells: pip install 'riemae[cells]', or give --file PATH.h5ad"
        )
    return Path(spec.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"


def cells(path: Path) -> tuple[Tensor, np.ndarray, list[str]]:  # -> (700, 765), (700,), names
    """Counts, and the type of each cell.

    The file holds ``log(1 + s c)`` with a scale s for each cell. The smallest entry of a cell other
    than 0 stands for one count, which gives s.
    """
    import h5py

    with h5py.File(path) as f:
        raw, start = f["raw.X"], f["raw.X/indptr"][:]
        scaled = np.zeros((len(start) - 1, len(f["raw.var"])))
        for cell, (first, last) in enumerate(zip(start[:-1], start[1:], strict=True)):
            values = np.expm1(raw["data"][first:last].astype(float))
            scaled[cell, raw["indices"][first:last]] = values / values.min()
        names = [name.decode() for name in f["uns/bulk_labels_categories"][:]]
        labels = f["obs"]["bulk_labels"]
    counts = scaled.round()
    if np.abs(scaled - counts).max() > 0.05 * scaled.max():
        raise SystemExit(f"{path}: no whole counts behind its logarithms")
    return torch.as_tensor(counts).float(), labels, names


def purity(distances: Tensor, labels: np.ndarray) -> float:  # (n, n)
    """The share of a cell's nearest neighbours with the same type, as a mean over types."""
    nearest = (
        distances.clone().fill_diagonal_(torch.inf).topk(NEIGHBOURS, largest=False).indices.numpy()
    )
    same = (labels[nearest] == labels[:, None]).mean(1)
    return float(np.mean([same[labels == kind].mean() for kind in np.unique(labels)]))


def main() -> None:
    """Fit, compare, draw."""
    parser = _run.parser(__doc__)
    parser.add_argument("--file", type=Path, help="the .h5ad file, instead of the one in scanpy")
    parser.add_argument("--epochs", type=int, default=150)
    options = _run.started(parser.parse_args())
    epochs = 2 if options.quick else options.epochs

    counts, labels, names = cells(options.file or shipped())
    if options.quick:
        counts, labels = counts[:150], labels[:150]
    counts = counts[:, (counts > 0).sum(0) >= 20]  # genes found in enough cells
    settings = {
        "latent_dim": 2,
        "hidden": (64, 64),
        "likelihood": "negative_binomial",
        "lr": 3e-3,
        "seed": 0,
    }
    model = AE(epochs=epochs, batch_size=100, ambient="fisher", **settings).fit(counts)
    codes = model.transform(counts).double()
    fisher = model.manifold_.to(dtype=torch.float64)
    euclidean = Manifold(lambda z: fisher.distribution(z).mean)

    distances = {
        "straight in the latent space": torch.cdist(codes, codes),
        "Euclidean on expected counts": euclidean.distance_matrix(
            codes, method="graph", k=NEIGHBOURS
        ),
        "Fisher-Rao": fisher.distance_matrix(codes, method="graph", k=NEIGHBOURS),
        "between the log counts themselves": torch.cdist(counts.log1p(), counts.log1p()),
    }
    size = f"{len(counts)} cells, {counts.shape[1]} genes, {len(names)} types"
    print(f"{size}; {int(counts.sum()):,} counts")
    print(f"{'distance':38} {f'of {NEIGHBOURS} neighbours, of the same type':>38}")
    for name, matrix in distances.items():
        print(f"{name:38} {purity(matrix, labels):38.1%}")
    picture(
        options,
        {"Euclidean on expected counts": euclidean, "Fisher-Rao": fisher},
        codes,
        labels,
        names,
    )


def picture(
    options: Namespace,
    manifolds: dict[str, Manifold],
    z: Tensor,
    labels: np.ndarray,
    names: list[str],
) -> None:
    """The cells by type on the magnification factor, with geodesics between medians of types."""
    figure, axes = plt.subplots(1, 2, figsize=(13.5, 5), layout="constrained")
    middle = torch.stack(
        [z[torch.as_tensor(labels == kind)].median(0).values for kind in np.unique(labels)]
    )
    low, high = z.quantile(0.005, dim=0) - 0.2, z.quantile(0.995, dim=0) + 0.2
    for panel, (name, manifold) in zip(axes, manifolds.items(), strict=True):
        resolution = 20 if options.quick else 80
        style = {"alpha": 0.5, "colorbar": False}
        magnification(manifold, low, high, resolution, ax=panel, **style)
        for kind in np.unique(labels):
            panel.scatter(
                *z[torch.as_tensor(labels == kind)].T,
                s=8,
                color=f"C{kind}",
                label=names[kind],
                lw=0,
            )
        graph = manifold.graph(z, k=NEIGHBOURS)
        r = manifold.geodesic(
            middle[:1].expand_as(middle[1:]), middle[1:], rtol=1e-3, graph=graph, throw=False
        )
        for curve in r.curve(torch.linspace(0, 1, 80).double()):
            panel.plot(*curve.T, color="black", lw=1)
        panel.set(
            title=name,
            xticks=[],
            yticks=[],
            xlabel="latent dimension 1",
            ylabel="latent dimension 2",
        )
        panel.set(xlim=(float(low[0]), float(high[0])), ylim=(float(low[1]), float(high[1])))
    axes[1].legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, markerscale=2, fontsize=9
    )
    figure.suptitle(
        "Blood cells; background: log volume density (dark is large); "
        "black: geodesics between types"
    )
    _run.save(figure, options, "cells.png", dpi=120)


if __name__ == "__main__":
    main()
