"""Neighbourhood graphs of data: who is whose neighbour, drawn from at every training step without
rebuilding anything.

The neighbours lie in one flat array with row boundaries, so that nodes may have any number of them,
and a minibatch's neighbours cost one random number each, on whatever device the arrays are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import (
    DisconnectedGraphWarning,
    DTypeError,
    GraphError,
    MissingExtraError,
    NonFiniteError,
    OptionError,
    ShapeError,
    stack_level,
)

if TYPE_CHECKING:
    import networkx
    from scipy.sparse import csr_array

Kind = Literal["directed", "mutual", "union"]
_LANDMARKS = 1000  # of Isomap; shortest paths from these alone need n × 1000 numbers
_CHUNK = 2**24  # numbers in one block of differences


@dataclass(frozen=True, eq=False)
class Neighborhood:
    """The neighbours of every sample.

    Made by :meth:`nearest`, :meth:`from_adjacency`, :meth:`from_networkx` or :meth:`from_index`.

    No node is its own neighbour: the centre is told apart by its number, so that duplicates of a
    sample are neighbours like any other.

    Attributes:
        start: ``(n + 1,)`` int64, where the neighbours of each node begin.
        neighbors: ``(e,)`` int64, the neighbours of node 0, then those of node 1, and so on.
        lengths: ``(e,)`` float64, the lengths of these edges: distances of the data, or 1 where
            there are none.
        data: ``(n, D)`` on the CPU, shared with the caller's where it can be, or None: only used to
            join components for an embedding.

    Example:
        >>> import torch
        >>> line = Neighborhood.nearest(torch.arange(5.)[:, None], k=1)
        >>> line.of(4).tolist()
        [3]
    """

    start: Tensor
    neighbors: Tensor
    lengths: Tensor
    data: Tensor | None = None

    @classmethod
    def nearest(
        cls,
        x: Tensor | np.ndarray,
        k: int = 10,
        kind: Kind = "directed",
        approximate: bool = False,
        seed: int = 0,
    ) -> Neighborhood:
        """The ``k`` nearest samples of each, by Euclidean distance of the flattened data.

        Args:
            x: ``(n, *shape)``; images are flattened.
            k: Neighbours a sample.
            kind: ``"directed"``: exactly k each; ``"mutual"``: only those that name each other;
                ``"union"``: those of which one names the other.
            approximate: By nearest-neighbour descent (pynndescent), for millions of samples or many
                dimensions.
            seed: Of the approximate search.

        Raises:
            ShapeError: When ``x`` is not ``(n, *shape)``.
            NonFiniteError: For NaN or infinity in the data.
            OptionError: When k is not between 1 and n − 1, or the kind is unknown.
            GraphError: When a mutual graph leaves samples alone.
            MissingExtraError: When scikit-learn, or pynndescent for an approximate search, is
                missing.

        Warns:
            DisconnectedGraphWarning: When the graph has several components.
        """
        where = "Neighborhood.nearest"
        data = torch.as_tensor(x)
        if data.ndim < 2:
            raise ShapeError(
                where, "data of shape (n, *shape)", str(tuple(data.shape)), "One row a sample."
            )
        flat = data.detach().flatten(1).cpu()
        bad = (~flat.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise NonFiniteError(
                where, "finite data", f"NaN or infinity at rows {bad[:5]}", "Remove these rows."
            )
        n = len(flat)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < n:
            raise OptionError(
                where, f"1 <= k < {n}, the number of samples", f"k={k}", "Lower k, or add samples."
            )
        if kind not in ("directed", "mutual", "union"):
            raise OptionError(where, "kind 'directed', 'mutual' or 'union'", repr(kind), "")
        index = _search(where, flat.numpy(), k, approximate, seed)
        centre = np.repeat(np.arange(n), k)
        edges = np.stack([centre, index.reshape(-1)], 1)
        if kind != "directed":
            backwards = edges[:, ::-1]
            edges = (
                np.unique(np.concatenate([edges, backwards]), axis=0)
                if kind == "union"
                else _shared(edges, n)
            )
        lengths = _distances(flat, torch.as_tensor(edges))
        hint = "Use kind='directed' or 'union', or raise k."
        return cls._of_edges(where, n, torch.as_tensor(edges), lengths, flat, hint).to(data.device)

    @classmethod
    def from_adjacency(cls, adjacency: Any, x: Tensor | np.ndarray | None = None) -> Neighborhood:
        """A graph of your own: entry (i, j) not zero means that j is a neighbour of i, at that
        length.

        Args:
            adjacency: ``(n, n)``: a scipy sparse matrix or array, a numpy array, or a tensor (dense
                or sparse); of booleans when the lengths do not matter. Stored zeros of a sparse
                matrix are edges of length zero. The diagonal is ignored.
            x: The data ``(n, *shape)``, for an embedding of a graph with several components.

        Raises:
            ShapeError: When it is not square, or the data have another number of rows.
            GraphError: For lengths that are negative, NaN or infinite, or nodes without neighbours.

        Warns:
            DisconnectedGraphWarning: When the graph has several components.
        """
        where = "Neighborhood.from_adjacency"
        if isinstance(adjacency, Tensor) and adjacency.layout == torch.strided:
            adjacency = adjacency.detach().cpu().numpy()
        if isinstance(adjacency, Tensor):
            sparse = adjacency.detach().cpu().to_sparse_coo().coalesce()
            pairs, values, shape = sparse.indices().T, sparse.values().double(), tuple(sparse.shape)
        else:
            from scipy.sparse import coo_array, issparse

            matrix = adjacency if issparse(adjacency) else np.asarray(adjacency)
            if matrix.ndim != 2:
                raise ShapeError(where, "a matrix (n, n)", str(matrix.shape), "")
            coo = coo_array(matrix)
            coo.sum_duplicates()
            pairs = torch.as_tensor(np.stack([coo.row, coo.col], 1), dtype=torch.int64)
            values, shape = torch.as_tensor(coo.data.astype(float)), matrix.shape
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ShapeError(
                where, "a square matrix (n, n)", str(shape), "One row and one column a sample."
            )
        if not bool((values.isfinite() & (values >= 0)).all()):
            raise GraphError(
                where, "finite lengths of at least 0", "others", "Entries are lengths, or True."
            )
        other = pairs[:, 0] != pairs[:, 1]
        return cls._of_edges(
            where, shape[0], pairs[other], values[other], _rows(where, x, shape[0])
        )

    @classmethod
    def from_networkx(
        cls,
        graph: networkx.Graph,
        x: Tensor | np.ndarray | None = None,
        weight: str | None = "weight",
    ) -> Neighborhood:
        """A networkx graph, directed or not; nodes in the order of ``graph.nodes``, as in the data.

        Args:
            graph: Any networkx graph.
            x: The data ``(n, *shape)``, for an embedding of a graph with several components.
            weight: The edge attribute that is a length; 1 where an edge has none.

        Raises:
            ShapeError: When the data have another number of rows.
            GraphError: For lengths that are negative, NaN or infinite, or nodes without neighbours.

        Warns:
            DisconnectedGraphWarning: When the graph has several components.
        """
        from scipy.sparse import coo_array

        place = {node: i for i, node in enumerate(graph.nodes)}
        shortest: dict[tuple[int, int], float] = {}  # of parallel edges
        for a, b, w in graph.edges.data(weight or "", 1.0):
            for arc in [(place[a], place[b])] + (
                [] if graph.is_directed() else [(place[b], place[a])]
            ):
                shortest[arc] = min(
                    1.0 if weight is None else float(w), shortest.get(arc, float("inf"))
                )
        pairs = np.array(list(shortest), dtype=np.int64).reshape(-1, 2)
        values = np.array(list(shortest.values()), dtype=float)
        n = len(place)
        return cls.from_adjacency(coo_array((values, (pairs[:, 0], pairs[:, 1])), shape=(n, n)), x)

    @classmethod
    def from_index(
        cls,
        index: Tensor | np.ndarray | Sequence[Sequence[int]],
        x: Tensor | np.ndarray | None = None,
    ) -> Neighborhood:
        """Neighbours by number: a table ``(n, k)``, or one list for each sample.

        A sample's own number is left out, so the tables of libraries that count a point among its
        neighbours do too.

        Raises:
            DTypeError: When the entries are no integers.
            ShapeError: When a table has more or fewer than two axes, or the data have another
                number of rows.
            GraphError: For numbers that name no sample, and for nodes without neighbours.

        Warns:
            DisconnectedGraphWarning: When the graph has several components.
        """
        where = "Neighborhood.from_index"
        if isinstance(index, (Tensor, np.ndarray)) and index.ndim != 2:
            raise ShapeError(
                where, "a table (n, k)", str(tuple(index.shape)), "Or one list of numbers a sample."
            )
        lists = [torch.as_tensor(row).reshape(-1).cpu() for row in index]
        if any(
            r.numel() and (r.is_floating_point() or r.is_complex() or r.dtype == torch.bool)
            for r in lists
        ):
            raise DTypeError(
                where, "integers", "another dtype", "Entries are the numbers of samples."
            )
        n = len(lists)
        # A neighbour that is named twice stays one.
        pairs = [(i, j) for i, row in enumerate(lists) for j in sorted(set(row.tolist())) if i != j]
        wrong = [(i, j) for i, j in pairs if not 0 <= j < n]
        if wrong:
            got = f"{wrong[0][1]} in row {wrong[0][0]}"
            raise GraphError(
                where,
                f"numbers from 0 to {n - 1}",
                got,
                "Samples are counted from 0, one row each.",
            )
        edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        data = _rows(where, x, n)
        lengths = torch.ones(len(edges), dtype=torch.float64)
        if data is not None:
            lengths = _distances(data, edges)
        return cls._of_edges(where, n, edges, lengths, data)

    @classmethod
    def _of_edges(
        cls,
        where: str,
        n: int,
        edges: Tensor,
        lengths: Tensor,
        data: Tensor | None,
        hint: str = "Join them, or leave them out.",
    ) -> Neighborhood:  # (e, 2), (e,)
        order = torch.argsort(edges[:, 0] * n + edges[:, 1])
        edges, lengths = edges[order], lengths[order]
        degree = torch.bincount(edges[:, 0], minlength=n)
        alone = (degree == 0).nonzero().flatten().tolist()
        if alone or not n:
            got = f"{len(alone)} of {n} without (first: {alone[:5]})"
            raise GraphError(where, "a neighbour for every sample", got, hint)
        start = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
        made = cls(start, edges[:, 1].contiguous(), lengths.double(), data)
        parts = int(made.components.max()) + 1
        if parts > 1:
            warnings.warn(
                f"The neighbourhood graph falls into {parts} components (of {_sizes(made.components)} samples): "
                "nothing ties the parts of the learned manifold to each other. Raise k, or add samples.",
                DisconnectedGraphWarning,
                stacklevel=stack_level(),
            )
        return made

    def __len__(self) -> int:
        return len(self.start) - 1

    def __repr__(self) -> str:
        degree, parts = self.degree, int(self.components.max()) + 1
        return (
            f"Neighborhood({len(self)} samples, {int(degree.min())} to {int(degree.max())} neighbours each, "
            f"{parts} component(s))"
        )

    @property
    def degree(self) -> Tensor:  # (n,)
        """How many neighbours each sample has."""
        return self.start.diff()

    @property
    def components(self) -> Tensor:  # (n,)
        """The connected component of each sample, counted from 0.

        Arrows count in both directions.
        """
        from scipy.sparse import csgraph

        return torch.as_tensor(
            csgraph.connected_components(self._matrix(), directed=False)[1], dtype=torch.int64
        )

    def of(self, i: int) -> Tensor:  # -> (degree of i,)
        """The neighbours of sample ``i``.

        Raises:
            GraphError: When there is no such sample.
        """
        if not 0 <= i < len(self):
            raise GraphError("Neighborhood.of", f"a sample from 0 to {len(self) - 1}", str(i), "")
        return self.neighbors[int(self.start[i]) : int(self.start[i + 1])]

    def to(self, device: torch.device | str) -> Neighborhood:
        """The same with the arrays that :meth:`sample` reads on another device."""
        return Neighborhood(
            self.start.to(device), self.neighbors.to(device), self.lengths, self.data
        )

    def sample(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:  # (b,) -> (b,)
        """One neighbour of each sample, each of its neighbours equally likely.

        Args:
            index: ``(b,)`` or any shape, int64: the numbers of the centres, on the device of the
                arrays.
            generator: Where the random numbers come from; they are drawn on its device.

        Raises:
            DTypeError: When ``index`` does not hold integers.
        """
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise DTypeError(
                "Neighborhood.sample", "the numbers of samples, int64", str(index.dtype), ""
            )
        first = self.start[index]
        degree = self.start[index + 1] - first
        device = index.device if generator is None else generator.device
        # 62 random bits modulo the degree: uniform to 1e-12 up to millions of neighbours, without
        # float's rounding.
        drawn = torch.randint(2**62, index.shape, generator=generator, device=device).to(
            index.device
        )
        return self.neighbors[first + drawn % degree]

    @staticmethod
    def kernel(centre: Tensor, neighbor: Tensor, weight: float) -> Tensor:  # (b,), (b,) -> (b,)
        """NRAE's kernel (equation 19): 1 where the neighbour is the centre, by number, and
        ``weight`` elsewhere.
        """
        return torch.where(centre == neighbor, 1.0, weight)

    def embedding(
        self,
        m: int,
        method: Literal["isomap", "laplacian"] = "isomap",
        dtype: torch.dtype | None = None,
    ) -> Tensor:  # -> (n, m)
        """Coordinates of the samples from the graph alone, centred, with unit variance: a start for
        an encoder.

        Args:
            m: Coordinates.
            method: ``"isomap"``: multidimensional scaling of the shortest paths (Tenenbaum et al.
                2000; beyond 1,000 samples by landmarks, de Silva & Tenenbaum 2003);
                ``"laplacian"``: eigenmaps (Belkin & Niyogi 2003). Isomap scales all coordinates by
                one factor, so that their proportions stay.
            dtype: torch's default unless given.

        Raises:
            OptionError: For an unknown method, or m not between 1 and n − 2.
            GraphError: When the graph has several components and was made without data to join them
                by.

        Warns:
            DisconnectedGraphWarning: When components were joined by their nearest samples.
        """
        where = "Neighborhood.embedding"
        if not 1 <= m <= len(self) - 2:
            raise OptionError(
                where,
                f"1 <= m <= {len(self) - 2}",
                f"m={m}",
                "An embedding needs more samples than m.",
            )
        if method not in ("isomap", "laplacian"):
            raise OptionError(where, "method 'isomap' or 'laplacian'", repr(method), "")
        from riemae.autoencoders import embedding

        matrix = self._matrix()
        symmetric = matrix.maximum(matrix.T).tocsr()  # where they differ, the longer
        data = None if self.data is None else self.data.double().numpy()
        joined = embedding.joined(where, symmetric, data)
        found = (
            embedding.isomap(joined, m, _LANDMARKS)
            if method == "isomap"
            else embedding.laplacian(joined, m)
        )
        return torch.as_tensor(
            found, dtype=dtype or torch.get_default_dtype(), device=self.start.device
        )

    def _matrix(self) -> csr_array:
        """Edge lengths as a sparse matrix.

        Edges of length zero are stored as a hair, for sparse graphs drop zeros.
        """
        from scipy.sparse import csr_array

        lengths = self.lengths.numpy()
        positive = lengths[lengths > 0]
        hair = 1e-12 * (positive.mean() if len(positive) else 1.0)
        arrays = (np.maximum(lengths, hair), self.neighbors.cpu().numpy(), self.start.cpu().numpy())
        return csr_array(arrays, shape=(len(self), len(self)))


def as_neighborhood(graph: Any, x: Tensor) -> Any:
    """A graph on the samples ``x``, in whatever form somebody has it, on the CPU.

    Args:
        graph: A :class:`Neighborhood`; a function ``x -> graph``; a networkx graph; a square matrix
            (adjacency); a table of neighbours ``(n, k)`` or lists of them; or anything else with a
            method ``sample``, which is returned as it is.
        x: The data ``(n, *shape)``.

    Raises:
        ShapeError: When matrix, table or graph are of another number of samples.
        GraphError: For graphs that are none, as in the constructors of :class:`Neighborhood`.
        DTypeError: For anything else.
    """
    where = "neighborhood"
    if callable(graph) and not hasattr(graph, "sample"):
        graph = graph(x.cpu())
    if isinstance(graph, Neighborhood):
        # An embedding of several components needs the data to join them by.
        flat = (
            graph.data
            if graph.data is not None or len(graph) != len(x)
            else x.detach().flatten(1).cpu()
        )
        return replace(graph.to("cpu"), data=flat)
    if hasattr(graph, "sample"):
        return graph
    if hasattr(graph, "nodes") and hasattr(graph, "edges"):
        return Neighborhood.from_networkx(graph, x)
    shape = tuple(getattr(graph, "shape", ()))
    if len(shape) == 2 and shape[0] == shape[1]:
        return Neighborhood.from_adjacency(graph, x)
    if isinstance(graph, (Tensor, np.ndarray)) or (
        isinstance(graph, Sequence) and not isinstance(graph, str)
    ):
        return Neighborhood.from_index(graph, x)
    hint = "See riemae.autoencoders.neighborhood.Neighborhood."
    raise DTypeError(
        where, "a graph, a matrix (n, n) or a table (n, k)", type(graph).__name__, hint
    )


def _search(
    where: str, flat: np.ndarray, k: int, approximate: bool, seed: int
) -> np.ndarray:  # -> (n, k)
    """The k nearest rows of each row, itself left out by its number.

    Raises:
        MissingExtraError: When the package that searches is not installed.
        GraphError: When an approximate search finds fewer.
    """
    try:
        if approximate:
            from pynndescent import NNDescent
        else:
            from sklearn.neighbors import NearestNeighbors
    except ImportError as reason:
        name = "pynndescent" if approximate else "scikit-learn"
        raise MissingExtraError(
            where, name, "none", "Try: pip install 'riemae[neighbors]'"
        ) from reason
    n = len(flat)
    if not approximate:
        # Without an argument the centre is left out by its number, duplicates are kept.
        return NearestNeighbors(n_neighbors=k).fit(flat).kneighbors(return_distance=False)
    found, _ = NNDescent(
        np.ascontiguousarray(flat, dtype=np.float32),
        n_neighbors=k + 1,
        random_state=np.random.RandomState(seed),
    ).neighbor_graph
    own = found == np.arange(n)[:, None]
    own[~own.any(1), -1] = True  # duplicates came first: the farthest is one too many
    kept = found[~own].reshape(n, k)
    if (kept < 0).any():
        rows = np.flatnonzero((kept < 0).any(1))
        hint = "Use approximate=False."
        raise GraphError(
            where, f"{k} neighbours for every sample", f"fewer found for {len(rows)} of them", hint
        )
    return kept


def _shared(edges: np.ndarray, n: int) -> np.ndarray:
    """Edges whose reverse is among them."""
    forward, backward = edges[:, 0] * n + edges[:, 1], edges[:, 1] * n + edges[:, 0]
    return edges[np.isin(forward, backward)]


def _rows(where: str, x: Tensor | np.ndarray | None, n: int) -> Tensor | None:
    if x is None:
        return None
    data = torch.as_tensor(x).detach().cpu()
    if data.ndim < 2 or len(data) != n:
        raise ShapeError(
            where, f"data of shape ({n}, *shape)", str(tuple(data.shape)), "One row a node."
        )
    return data.flatten(1)


def _distances(data: Tensor, edges: Tensor) -> Tensor:  # (n, D), (e, 2) -> (e,)
    """Euclidean lengths of edges, some at a time: all differences together may be far larger than
    the data.
    """
    parts = edges.split(max(1, _CHUNK // data.shape[1]))
    return torch.cat([(data[e[:, 0]].double() - data[e[:, 1]].double()).norm(dim=1) for e in parts])


def _sizes(components: Tensor) -> str:
    sizes = sorted(torch.bincount(components).tolist(), reverse=True)
    return ", ".join(map(str, sizes[:5])) + (", …" if len(sizes) > 5 else "")
