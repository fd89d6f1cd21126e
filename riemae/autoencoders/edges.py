"""Edges of neighbourhood graphs from matrices, networkx graphs and tables, and their layouts.

A layout by rows has the neighbours of node 0 first, then those of node 1, and so on; ``start`` says
where those of each node begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import DTypeError, GraphError, ShapeError

if TYPE_CHECKING:
    import networkx
    from scipy.sparse import coo_array, csr_array

_CHUNK = 2**24  # numbers in one block of differences
_ONE_EACH = "Give one row and one column per sample."


def edges_of_matrix(where: str, adjacency: Any) -> tuple[int, Tensor, Tensor]:  # -> n, (e, 2), (e,)
    """Number of nodes, edges and their lengths of an adjacency matrix of any kind.

    Args:
        where: The call that asks, for the error.
        adjacency: A scipy sparse matrix or array, a numpy array, or a tensor, dense or sparse.

    Raises:
        ShapeError: When it is not square.
        GraphError: For lengths that are negative, NaN or infinite.
    """
    if isinstance(adjacency, Tensor) and adjacency.layout == torch.strided:
        adjacency = adjacency.detach().cpu().numpy()
    if isinstance(adjacency, Tensor):
        shape, pairs, lengths = _entries_of_sparse_tensor(adjacency)
    else:
        shape, pairs, lengths = _entries_of_array(where, adjacency)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ShapeError(where, "a square matrix (n, n)", str(shape), _ONE_EACH)
    allowed = lengths.isfinite() & (lengths >= 0)
    if not bool(allowed.all()):
        hint = "Entries are lengths, or True."
        raise GraphError(where, "finite lengths of at least 0", "others", hint)
    return shape[0], pairs, lengths


def _entries_of_sparse_tensor(
    adjacency: Tensor,
) -> tuple[tuple[int, ...], Tensor, Tensor]:  # -> shape, (e, 2), (e,)
    sparse = adjacency.detach().cpu().to_sparse_coo().coalesce()
    pairs = sparse.indices().T
    lengths = sparse.values().double()
    return tuple(sparse.shape), pairs, lengths


def _entries_of_array(
    where: str, adjacency: Any
) -> tuple[tuple[int, ...], Tensor, Tensor]:  # -> shape, (e, 2), (e,)
    from scipy.sparse import coo_array, issparse

    matrix = adjacency if issparse(adjacency) else np.asarray(adjacency)
    shape = tuple(matrix.shape)
    if matrix.ndim != 2:
        raise ShapeError(where, "a matrix (n, n)", str(shape), _ONE_EACH)
    coo = coo_array(matrix)
    coo.sum_duplicates()
    indices = np.stack([coo.row, coo.col], 1)
    pairs = torch.as_tensor(indices, dtype=torch.int64)
    lengths = torch.as_tensor(coo.data.astype(float))
    return shape, pairs, lengths


def matrix_of_networkx(graph: networkx.Graph, weight: str | None) -> coo_array:  # (n, n)
    """Edge lengths of a networkx graph; of parallel edges the shortest.

    Args:
        graph: Directed or not.
        weight: The edge attribute that is a length; 1 for an edge without it.
    """
    from scipy.sparse import coo_array

    place = {node: i for i, node in enumerate(graph.nodes)}
    shortest: dict[tuple[int, int], float] = {}
    for a, b, value in graph.edges.data(weight or "", 1.0):
        length = 1.0 if weight is None else float(value)
        i = place[a]
        j = place[b]
        directions = [(i, j)]
        if not graph.is_directed():
            directions.append((j, i))
        for direction in directions:
            known = shortest.get(direction, float("inf"))
            shortest[direction] = min(length, known)
    n = len(place)
    known_pairs = list(shortest)
    known_lengths = list(shortest.values())
    pairs = np.array(known_pairs, dtype=np.int64).reshape(-1, 2)
    lengths = np.array(known_lengths, dtype=float)
    rows = pairs[:, 0]
    columns = pairs[:, 1]
    return coo_array((lengths, (rows, columns)), shape=(n, n))


def edges_of_table(
    where: str, index: Tensor | np.ndarray | Sequence[Sequence[int]]
) -> tuple[int, Tensor]:  # -> n, (e, 2)
    """Number of nodes and edges of a table of neighbours, or of one list per sample.

    Args:
        where: The call that asks, for the error.
        index: A table ``(n, k)``, or n lists of any lengths. A sample's own number is left out,
            and a neighbour that is named twice counts once.

    Raises:
        DTypeError: When the entries are not integers.
        ShapeError: When a table has more or fewer than two axes.
        GraphError: For numbers that are not those of samples.
    """
    if isinstance(index, (Tensor, np.ndarray)) and index.ndim != 2:
        hint = "Give a table, or one list of numbers per sample."
        raise ShapeError(where, "a table (n, k)", str(tuple(index.shape)), hint)
    lists = [torch.as_tensor(row).reshape(-1).cpu() for row in index]
    if any(row.numel() and not _holds_integers(row) for row in lists):
        hint = "Entries are the numbers of samples."
        raise DTypeError(where, "integers", "another dtype", hint)
    n = len(lists)
    pairs: list[tuple[int, int]] = []
    for i, row in enumerate(lists):
        named = sorted(set(row.tolist()))
        pairs += [(i, j) for j in named if i != j]
    wrong = [(i, j) for i, j in pairs if not 0 <= j < n]
    if wrong:
        i, j = wrong[0]
        hint = "Samples are counted from 0, one row each."
        raise GraphError(where, f"numbers from 0 to {n - 1}", f"{j} in row {i}", hint)
    return n, torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def _holds_integers(row: Tensor) -> bool:
    other = row.is_floating_point() or row.is_complex() or row.dtype == torch.bool
    return not other


def data_of_nodes(
    where: str, x: Tensor | np.ndarray | None, n: int
) -> Tensor | None:  # (n, *shape) -> (n, D)
    """The data of ``n`` nodes as rows on the CPU, if there are data.

    Raises:
        ShapeError: When they are not ``(n, *shape)``.
    """
    if x is None:
        return None
    data = torch.as_tensor(x).detach().cpu()
    if data.ndim < 2 or len(data) != n:
        got = str(tuple(data.shape))
        raise ShapeError(where, f"data of shape ({n}, *shape)", got, "Give one row per node.")
    return data.flatten(1)


def distances(data: Tensor, edges: Tensor) -> Tensor:  # (n, D), (e, 2) -> (e,)
    """Euclidean lengths of edges in float64.

    A block of edges at a time, because all differences together may be far larger than the data.
    """
    edges_per_block = max(1, _CHUNK // data.shape[1])
    lengths = []
    for block in edges.split(edges_per_block):
        centre = data[block[:, 0]].double()
        neighbor = data[block[:, 1]].double()
        lengths.append((centre - neighbor).norm(dim=1))
    return torch.cat(lengths)


def by_rows(
    where: str, n: int, edges: Tensor, lengths: Tensor, hint: str
) -> tuple[Tensor, Tensor, Tensor]:  # (e, 2), (e,) -> (n + 1,), (e,), (e,)
    """Edges in the layout by rows: where each node begins, neighbours, lengths in float64.

    Args:
        where: The call that asks, for the error.
        n: Nodes.
        edges: Centre and neighbour of each edge, in any order.
        lengths: Of these edges.
        hint: What to do about nodes without neighbours.

    Raises:
        GraphError: When a node has no neighbour, or there are no nodes.
    """
    order = torch.argsort(edges[:, 0] * n + edges[:, 1])
    edges = edges[order]
    lengths = lengths[order]
    degree = torch.bincount(edges[:, 0], minlength=n)
    alone = (degree == 0).nonzero().flatten().tolist()
    if alone or not n:
        got = f"{len(alone)} of {n} without (first: {alone[:5]})"
        raise GraphError(where, "a neighbour for every sample", got, hint)
    start = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
    return start, edges[:, 1].contiguous(), lengths.double()


def length_matrix(
    start: Tensor, neighbors: Tensor, lengths: Tensor
) -> csr_array:  # (n + 1,), (e,), (e,) -> (n, n)
    """Edge lengths as a sparse matrix, from the layout by rows.

    Sparse graphs drop zeros, so edges of length zero are stored as 1e-12 of the mean length.
    """
    from scipy.sparse import csr_array

    n = len(start) - 1
    values = lengths.numpy()
    positive = values[values > 0]
    scale = positive.mean() if len(positive) else 1.0
    stored = np.maximum(values, 1e-12 * scale)
    arrays = (stored, neighbors.cpu().numpy(), start.cpu().numpy())
    return csr_array(arrays, shape=(n, n))
