"""Edges of neighbourhood graphs: from nearest samples, matrices, networkx graphs and tables."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import DTypeError, GraphError, MissingExtraError, ShapeError
from riemae.numerics.random import as_generator

if TYPE_CHECKING:
    import networkx
    from scipy.sparse import coo_array

Kind = Literal["directed", "mutual", "union"]
_CHUNK = 2**24  # numbers in one block of differences
_INSTALL = "Try: pip install 'riemae[neighbors]'"


def exact_search(
    where: str, flat: np.ndarray, k: int, generator: torch.Generator | int | None
) -> np.ndarray:  # (n, D) -> (n, k)
    """The k nearest rows of each row, itself left out by its number.

    Args:
        where: Who asks.
        flat: The rows.
        k: Neighbours per row.
        generator: Not used: nothing is random.

    Raises:
        MissingExtraError: When scikit-learn is not installed.
    """
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError as reason:
        raise MissingExtraError(where, "scikit-learn", "none", _INSTALL) from reason
    # Without an argument the centre is left out by its number, duplicates are kept.
    return NearestNeighbors(n_neighbors=k).fit(flat).kneighbors(return_distance=False)


def approximate_search(
    where: str, flat: np.ndarray, k: int, generator: torch.Generator | int | None
) -> np.ndarray:  # (n, D) -> (n, k)
    """As :func:`exact_search`, by nearest-neighbour descent.

    Args:
        where: Who asks.
        flat: The rows.
        k: Neighbours per row.
        generator: Randomness of the descent; an integer is a seed.

    Raises:
        MissingExtraError: When pynndescent is not installed.
        GraphError: When it finds fewer than k for some row.
    """
    try:
        from pynndescent import NNDescent
    except ImportError as reason:
        raise MissingExtraError(where, "pynndescent", "none", _INSTALL) from reason
    n = len(flat)
    state = np.random.RandomState(_seed(where, generator))
    data = np.ascontiguousarray(flat, dtype=np.float32)
    found, _ = NNDescent(data, n_neighbors=k + 1, random_state=state).neighbor_graph
    own = found == np.arange(n)[:, None]
    own[~own.any(1), -1] = True  # duplicates came first: the farthest is one too many
    kept = found[~own].reshape(n, k)
    if (kept < 0).any():
        rows = np.flatnonzero((kept < 0).any(1))
        got = f"fewer found for {len(rows)} of them"
        raise GraphError(where, f"{k} neighbours for every sample", got, "Use approximate=False.")
    return kept


def _seed(where: str, generator: torch.Generator | int | None) -> int:
    if isinstance(generator, Integral) and not isinstance(generator, bool):
        return int(generator)
    return int(torch.randint(2**31, (), generator=as_generator(where, generator)))


def edges_of(index: np.ndarray, kind: Kind) -> Tensor:  # (n, k) -> (e, 2)
    """Centre and neighbour of every edge of a graph of nearest neighbours.

    Args:
        index: The k nearest of each sample.
        kind: As in :meth:`riemae.autoencoders.Neighborhood.nearest`.
    """
    n, k = index.shape
    centre = np.repeat(np.arange(n), k)
    edges = np.stack([centre, index.reshape(-1)], 1)
    if kind == "union":
        edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    elif kind == "mutual":
        edges = _shared(edges, n)
    return torch.as_tensor(edges)


def _shared(edges: np.ndarray, n: int) -> np.ndarray:
    """Edges whose reverse is among them."""
    forward = edges[:, 0] * n + edges[:, 1]
    backward = edges[:, 1] * n + edges[:, 0]
    return edges[np.isin(forward, backward)]


def edges_of_matrix(where: str, adjacency: Any) -> tuple[int, Tensor, Tensor]:  # -> n, (e, 2), (e,)
    """Number of nodes, edges and their lengths of an adjacency matrix of any kind.

    Raises:
        ShapeError: When it is not square.
        GraphError: For lengths that are negative, NaN or infinite.
    """
    if isinstance(adjacency, Tensor) and adjacency.layout == torch.strided:
        adjacency = adjacency.detach().cpu().numpy()
    if isinstance(adjacency, Tensor):
        sparse = adjacency.detach().cpu().to_sparse_coo().coalesce()
        pairs = sparse.indices().T
        lengths = sparse.values().double()
        shape = tuple(sparse.shape)
    else:
        from scipy.sparse import coo_array, issparse

        matrix = adjacency if issparse(adjacency) else np.asarray(adjacency)
        shape = tuple(matrix.shape)
        if matrix.ndim != 2:
            hint = "Give one row and one column per sample."
            raise ShapeError(where, "a matrix (n, n)", str(shape), hint)
        coo = coo_array(matrix)
        coo.sum_duplicates()
        pairs = torch.as_tensor(np.stack([coo.row, coo.col], 1), dtype=torch.int64)
        lengths = torch.as_tensor(coo.data.astype(float))
    if len(shape) != 2 or shape[0] != shape[1]:
        hint = "Give one row and one column per sample."
        raise ShapeError(where, "a square matrix (n, n)", str(shape), hint)
    if not bool((lengths.isfinite() & (lengths >= 0)).all()):
        hint = "Entries are lengths, or True."
        raise GraphError(where, "finite lengths of at least 0", "others", hint)
    return shape[0], pairs, lengths


def matrix_of_networkx(graph: networkx.Graph, weight: str | None) -> coo_array:  # (n, n)
    """Edge lengths of a networkx graph; of parallel edges the shortest.

    Args:
        graph: Directed or not.
        weight: The attribute that is a length; 1 where an edge has none.
    """
    from scipy.sparse import coo_array

    place = {node: i for i, node in enumerate(graph.nodes)}
    shortest: dict[tuple[int, int], float] = {}
    for a, b, value in graph.edges.data(weight or "", 1.0):
        length = 1.0 if weight is None else float(value)
        arcs = [(place[a], place[b])]
        if not graph.is_directed():
            arcs.append((place[b], place[a]))
        for arc in arcs:
            shortest[arc] = min(length, shortest.get(arc, float("inf")))
    pairs = np.array(list(shortest), dtype=np.int64).reshape(-1, 2)
    lengths = np.array(list(shortest.values()), dtype=float)
    return coo_array((lengths, (pairs[:, 0], pairs[:, 1])), shape=(len(place), len(place)))


def edges_of_table(
    where: str, index: Tensor | np.ndarray | Sequence[Sequence[int]]
) -> tuple[int, Tensor]:  # -> n, (e, 2)
    """Number of nodes and edges of a table of neighbours, or of one list per sample.

    Raises:
        DTypeError: When the entries are not integers.
        ShapeError: When a table has more or fewer than two axes.
        GraphError: For numbers that name no sample.
    """
    if isinstance(index, (Tensor, np.ndarray)) and index.ndim != 2:
        hint = "Give a table, or one list of numbers per sample."
        raise ShapeError(where, "a table (n, k)", str(tuple(index.shape)), hint)
    lists = [torch.as_tensor(row).reshape(-1).cpu() for row in index]
    if any(row.numel() and not _holds_integers(row) for row in lists):
        hint = "Entries are the numbers of samples."
        raise DTypeError(where, "integers", "another dtype", hint)
    n = len(lists)
    # A neighbour that is named twice stays one.
    pairs = [(i, j) for i, row in enumerate(lists) for j in sorted(set(row.tolist())) if i != j]
    wrong = [(i, j) for i, j in pairs if not 0 <= j < n]
    if wrong:
        row, number = wrong[0]
        hint = "Samples are counted from 0, one row each."
        raise GraphError(where, f"numbers from 0 to {n - 1}", f"{number} in row {row}", hint)
    return n, torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def _holds_integers(row: Tensor) -> bool:
    return not (row.is_floating_point() or row.is_complex() or row.dtype == torch.bool)


def distances(data: Tensor, edges: Tensor) -> Tensor:  # (n, D), (e, 2) -> (e,)
    """Euclidean lengths of edges.

    Some edges at a time: all differences together may be far larger than the data.
    """
    parts = edges.split(max(1, _CHUNK // data.shape[1]))
    return torch.cat([(data[e[:, 0]].double() - data[e[:, 1]].double()).norm(dim=1) for e in parts])
