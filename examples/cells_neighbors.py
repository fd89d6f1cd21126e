"""Geodesic neighbours of blood cells in the usual tools: UMAP and communities, next to scanpy's.

The data are the counts of 765 genes in 700 blood cells, which are part of scanpy. A
negative-binomial autoencoder with a latent space of eight dimensions is fitted to them. Its
nearest neighbours by Fisher-Rao distance become a graph in scanpy's own form
(``obsp["connectivities"]``, ``obsp["distances"]``, ``uns["neighbors"]``), from which scanpy draws a
UMAP and finds communities by the Leiden method. The same is done with scanpy's own graph of 50
principal components. The table says how well both agree with the types of cells.

    pip install '.[train,cells]'
    python examples/cells_neighbors.py   # writes out/cells_neighbors.png
"""

from __future__ import annotations

import sys
import time
import warnings
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import _run
import numpy as np
import torch
from cells import cells, shipped
from matplotlib import pyplot as plt
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from riemae import plotting
from riemae.autoencoders import AE

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from riemae.solvers import Neighbors

NEIGHBOURS = 15
CANDIDATES = 45
SETTINGS = {"latent_dim": 8, "hidden": (64, 64), "likelihood": "negative_binomial", "lr": 3e-3}


def main() -> None:
    """Fit, find neighbours, draw."""
    parser = _run.parser(__doc__)
    parser.add_argument("--file", type=Path, help="the .h5ad file, instead of the one in scanpy")
    options = _run.started(parser.parse_args())
    epochs, count = (2, 80) if options.quick else (150, None)
    path = options.file or shipped()
    counts, labels, names = cells(path)
    counts, labels = counts[:count], labels[:count]
    chosen = counts[:, (counts > 0).sum(0) >= min(20, len(counts) // 4)]
    model = AE(epochs=epochs, batch_size=100, ambient="fisher", seed=0, **SETTINGS).fit(chosen)
    M = model.manifold_.to(dtype=torch.float32)
    codes = model.transform(chosen)

    start = time.process_time()
    # The data space bounds these distances loosely: to certify all rows takes 50,000 geodesics.
    limit = min(CANDIDATES, len(codes) - 1)
    graph = M.neighbors(codes, NEIGHBOURS, rtol=1e-2, candidates=limit, throw=False)
    seconds = time.process_time() - start
    print(graph)
    print(f"{seconds:.0f} s of processor time", file=sys.stderr)

    types = np.array(names)[labels]
    ours = with_graph(path, graph)
    own = of_scanpy(path, count)
    print(f"{'graph':26} {'same type':>10} {'communities':>12} {'ARI':>6} {'AMI':>6}")
    shown = {"riemae: Fisher-Rao": ours, "scanpy: 50 components": own}
    for name, table in shown.items():
        groups = communities(table)
        same = agreement(table.obsp["distances"], labels)
        rand = adjusted_rand_score(labels, groups)
        mutual = adjusted_mutual_info_score(labels, groups)
        print(f"{name:26} {same:10.1%} {groups.max() + 1:12} {rand:6.3f} {mutual:6.3f}", flush=True)
    draw(options, shown, types)


def with_graph(path: Path, graph: Neighbors) -> AnnData:
    """The table of the file with riemae's graph, as ``scanpy.pp.neighbors`` would leave it."""
    table = loaded(path, len(graph.indices))
    table.obsp["distances"] = graph.to_scipy()
    table.obsp["connectivities"] = graph.connectivities()
    table.uns["neighbors"] = {
        "connectivities_key": "connectivities",
        "distances_key": "distances",
        "params": {"n_neighbors": NEIGHBOURS, "method": "umap", "metric": "geodesic"},
    }
    return table


def of_scanpy(path: Path, count: int | None) -> AnnData:
    """The table with scanpy's graph of principal components, which the file holds."""
    import scanpy

    table = loaded(path, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scanpy.pp.neighbors(table, n_neighbors=NEIGHBOURS + 1, use_rep="X_pca", random_state=0)
    return table


def loaded(path: Path, count: int | None) -> AnnData:
    """The table without what others have computed on it."""
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = anndata.read_h5ad(path)[:count].copy()
    for kept in (table.obsp, table.uns):
        for key in list(kept):
            del kept[key]
    return table


def communities(table: AnnData) -> np.ndarray:  # -> (n,)
    """The community of each cell by the Leiden method, as scanpy finds them in the graph."""
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scanpy.tl.leiden(table, flavor="igraph", n_iterations=2, directed=False, random_state=0)
    return table.obs["leiden"].to_numpy().astype(int)


def agreement(distances: csr_matrix, labels: np.ndarray) -> float:
    """The share of a cell's neighbours with the same type, as a mean over types."""
    rows, columns = distances.nonzero()
    same = np.bincount(rows, labels[rows] == labels[columns], len(labels))
    shares = same / np.maximum(np.bincount(rows, minlength=len(labels)), 1)
    return float(np.mean([shares[labels == kind].mean() for kind in np.unique(labels)]))


def draw(options: Namespace, shown: dict[str, AnnData], types: np.ndarray) -> None:
    """The UMAP of each graph, by scanpy."""
    import scanpy

    figure, axes = plt.subplots(1, 2, figsize=(13.5, 5.2), layout="constrained")
    for axis, (name, table) in zip(axes, shown.items(), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scanpy.tl.umap(table, random_state=0)
        last = axis is axes[-1]
        plotting.codes(
            table.obsm["X_umap"], types, ax=axis, names=False, legend=last, label="type of cell"
        )
        axis.set(title=name, xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
    _run.save(figure, options, "cells_neighbors.png", dpi=120)


if __name__ == "__main__":
    main()
