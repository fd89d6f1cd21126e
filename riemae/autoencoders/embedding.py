"""Coordinates from a sparse matrix of edge lengths: Isomap and Laplacian eigenmaps."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from riemae.exceptions import DisconnectedGraphWarning, GraphError, stack_level

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def joined(where: str, lengths: csr_array, data: np.ndarray | None) -> csr_array:
    """The graph in one piece: every component is tied to its nearest sample outside.

    The smallest component comes first.

    Args:
        where: The call that asks, for the error.
        lengths: Symmetric ``(n, n)``.
        data: ``(n, D)``, by whose distances components are joined.

    Raises:
        GraphError: When there are several components and no data.

    Warns:
        DisconnectedGraphWarning: When components were joined.
    """
    from scipy.sparse import csgraph, csr_array
    from scipy.spatial import KDTree

    n = lengths.shape[0]
    parts, labels = csgraph.connected_components(lengths, directed=False)
    if parts == 1:
        return lengths
    if data is None:
        hint = (
            "Pass the data, x=, so that the components can be joined by their nearest samples, "
            "or add edges."
        )
        raise GraphError(where, "a connected graph", f"{parts} components", hint)
    i, j, added = [], [], []
    for _ in range(parts - 1):
        inside = labels == labels[_of_smallest(labels)]
        near, place = KDTree(data[~inside]).query(data[inside])
        a = int(near.argmin())
        i.append(int(np.flatnonzero(inside)[a]))
        j.append(int(np.flatnonzero(~inside)[place[a]]))
        added.append(float(near[a]))
        labels[inside] = labels[j[-1]]
    warnings.warn(
        f"The graph has {parts} components; for the embedding they were joined by "
        f"{parts - 1} edge(s) between their nearest samples.",
        DisconnectedGraphWarning,
        stacklevel=stack_level(),
    )
    ties = csr_array((added, (i, j)), shape=(n, n))
    return lengths.maximum(ties).maximum(ties.T).tocsr()


def isomap(lengths: csr_array, m: int, landmarks: int) -> np.ndarray:  # -> (n, m)
    """Multidimensional scaling of shortest-path lengths, by landmarks for many samples.

    Classical scaling of the landmarks, and the others by distance-based triangulation:
    ``x = −½ L# (δ − mean δ)`` (de Silva & Tenenbaum 2003). With all samples as landmarks it is
    Isomap itself.
    """
    from scipy.linalg import eigh
    from scipy.sparse import csgraph

    n = lengths.shape[0]
    chosen = np.arange(n) if n <= landmarks else _spread(lengths, landmarks)
    squared = csgraph.dijkstra(lengths, directed=False, indices=chosen) ** 2  # (l, n)
    own = squared[:, chosen]
    mean = own.mean(1)
    gram = -(own - mean - mean[:, None] + own.mean()) / 2
    values, vectors = eigh((gram + gram.T) / 2, subset_by_index=[len(chosen) - m, len(chosen) - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    # A direction that the graph does not extend into gets no coordinate out of rounding errors.
    scale = np.where(values > 1e-12 * values[0], np.sqrt(np.maximum(values, 1e-300)), np.inf)
    x = -(vectors / scale).T @ (squared - mean[:, None]) / 2
    x = _oriented(x.T - x.mean(1))
    return x / x.std(0).max()


def laplacian(lengths: csr_array, m: int) -> np.ndarray:  # -> (n, m)
    """Eigenvectors of the random-walk Laplacian after the constant one; all edges weigh 1."""
    from scipy.linalg import eigh
    from scipy.sparse import csgraph, csr_array, diags_array
    from scipy.sparse.linalg import eigsh

    n = lengths.shape[0]
    adjacency = csr_array(
        (np.ones_like(lengths.data), lengths.indices, lengths.indptr), shape=(n, n)
    )
    degree = np.asarray(adjacency.sum(1)).reshape(-1)
    normal = csgraph.laplacian(adjacency, normed=True)
    if n <= 500:
        _, vectors = eigh(normal.toarray(), subset_by_index=[1, m])
    else:
        # The largest of 2 I − L, found without factoring anything; from a fixed start, so that it
        # repeats.
        shifted = 2 * diags_array(np.ones(n)) - normal
        values, found = eigsh(
            shifted, k=m + 1, which="LA", v0=np.sqrt(degree) + np.cos(np.arange(n))
        )
        vectors = found[:, np.argsort(-values)[1:]]
    x = vectors / np.sqrt(degree)[:, None]
    x = _oriented(x - x.mean(0))
    return x / x.std(0)


def _of_smallest(labels: np.ndarray) -> int:
    """A node of the smallest component."""
    names, counts = np.unique(labels, return_counts=True)
    return int(np.flatnonzero(labels == names[counts.argmin()])[0])


def _spread(lengths: csr_array, count: int) -> np.ndarray:
    """Landmarks: evenly spaced samples, in an order that starts at one end of the graph."""
    from scipy.sparse import csgraph

    far = int(csgraph.dijkstra(lengths, directed=False, indices=0).argmax())
    order = np.argsort(csgraph.dijkstra(lengths, directed=False, indices=far), kind="stable")
    return np.sort(order[np.linspace(0, len(order) - 1, count).round().astype(int)])


def _oriented(x: np.ndarray) -> np.ndarray:
    """Each column with its largest entry positive: eigenvectors come with any sign."""
    largest = x[np.abs(x).argmax(0), np.arange(x.shape[1])]
    return x * np.where(largest < 0, -1.0, 1.0)
