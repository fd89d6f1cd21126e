"""Neighbourhood graphs of data, from which every training step draws neighbours.

The neighbours lie in one flat array with row boundaries, so that nodes may have any number of them,
and drawing a minibatch's neighbours costs one random number each, on whatever device the arrays
are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from riemae.autoencoders.edges import (
    Kind,
    approximate_search,
    distances,
    edges_of,
    edges_of_matrix,
    edges_of_table,
    exact_search,
    matrix_of_networkx,
)
from riemae.exceptions import (
    DisconnectedGraphWarning,
    DTypeError,
    GraphError,
    NonFiniteError,
    OptionError,
    ShapeError,
    stack_level,
)
from riemae.numerics.checks import expect_choice

if TYPE_CHECKING:
    import networkx
    from scipy.sparse import csr_array

_LANDMARKS = 1000  # of Isomap; shortest paths from these alone need n × 1000 numbers


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
        generator: torch.Generator | int | None = 0,
    ) -> Neighborhood:
        """The ``k`` nearest samples of each, by Euclidean distance of the flattened data.

        Args:
            x: ``(n, *shape)``; images are flattened.
            k: Neighbours per sample.
            kind: ``"directed"``: exactly k each; ``"mutual"``: only those that name each other;
                ``"union"``: those of which one names the other.
            approximate: By nearest-neighbour descent (pynndescent), for millions of samples or many
                dimensions.
            generator: Randomness of the approximate search; an integer is a seed.

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
            got = str(tuple(data.shape))
            raise ShapeError(where, "data of shape (n, *shape)", got, "Give one row per sample.")
        flat = data.detach().flatten(1).cpu()
        bad = (~flat.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            got = f"NaN or infinity at rows {bad[:5]}"
            raise NonFiniteError(where, "finite data", got, "Remove these rows.")
        n = len(flat)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < n:
            expected = f"1 <= k < {n}, the number of samples"
            raise OptionError(where, expected, f"k={k}", "Lower k, or add samples.")
        expect_choice(where, "kind", kind, ("directed", "mutual", "union"))
        search = approximate_search if approximate else exact_search
        edges = edges_of(search(where, flat.numpy(), k, generator), kind)
        hint = "Use kind='directed' or 'union', or raise k."
        return cls._of_edges(where, n, edges, distances(flat, edges), flat, hint).to(data.device)

    @classmethod
    def from_adjacency(cls, adjacency: Any, x: Tensor | np.ndarray | None = None) -> Neighborhood:
        """A graph of your own, from its matrix.

        An entry (i, j) other than zero means that j is a neighbour of i, at that length.

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
        n, pairs, lengths = edges_of_matrix(where, adjacency)
        other = pairs[:, 0] != pairs[:, 1]
        return cls._of_edges(where, n, pairs[other], lengths[other], _rows(where, x, n))

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
        return cls.from_adjacency(matrix_of_networkx(graph, weight), x)

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
            DTypeError: When the entries are not integers.
            ShapeError: When a table has more or fewer than two axes, or the data have another
                number of rows.
            GraphError: For numbers that name no sample, and for nodes without neighbours.

        Warns:
            DisconnectedGraphWarning: When the graph has several components.
        """
        where = "Neighborhood.from_index"
        n, edges = edges_of_table(where, index)
        data = _rows(where, x, n)
        lengths = torch.ones(len(edges), dtype=torch.float64)
        if data is not None:
            lengths = distances(data, edges)
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
                f"The neighbourhood graph falls into {parts} components (of "
                f"{_sizes(made.components)} samples): nothing ties the parts of the learned "
                "manifold to each other. Raise k, or add samples.",
                DisconnectedGraphWarning,
                stacklevel=stack_level(),
            )
        return made

    def __len__(self) -> int:
        return len(self.start) - 1

    def __repr__(self) -> str:
        degree, parts = self.degree, int(self.components.max()) + 1
        return (
            f"Neighborhood({len(self)} samples, {int(degree.min())} to {int(degree.max())} "
            f"neighbours each, {parts} component(s))"
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
            expected, hint = f"a sample from 0 to {len(self) - 1}", "Samples are counted from 0."
            raise GraphError("Neighborhood.of", expected, str(i), hint)
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
            expected, hint = "the numbers of samples, int64", "Convert them with .long()."
            raise DTypeError("Neighborhood.sample", expected, str(index.dtype), hint)
        first = self.start[index]
        degree = self.start[index + 1] - first
        device = index.device if generator is None else generator.device
        # 62 random bits modulo the degree: uniform to 1e-12 up to millions of neighbours, without
        # float's rounding.
        drawn = torch.randint(2**62, index.shape, generator=generator, device=device)
        return self.neighbors[first + drawn.to(index.device) % degree]

    @staticmethod
    def kernel(centre: Tensor, neighbor: Tensor, weight: float) -> Tensor:  # (b,), (b,) -> (b,)
        """NRAE's kernel (equation 19): 1 where both are one sample, ``weight`` elsewhere."""
        return torch.where(centre == neighbor, 1.0, weight)

    def embedding(
        self,
        m: int,
        method: Literal["isomap", "laplacian"] = "isomap",
        dtype: torch.dtype | None = None,
    ) -> Tensor:  # -> (n, m)
        """Coordinates of the samples from the graph alone: a start for an encoder.

        They are centred, with unit variance.

        Args:
            m: Coordinates.
            method: ``"isomap"``: multidimensional scaling of the shortest paths (Tenenbaum et al.
                2000; beyond 1,000 samples by landmarks, de Silva & Tenenbaum 2003);
                ``"laplacian"``: eigenmaps (Belkin & Niyogi 2003). Isomap scales all coordinates by
                one factor, so that their proportions stay.
            dtype: By default torch's own.

        Raises:
            OptionError: For an unknown method, or m not between 1 and n − 2.
            GraphError: When the graph has several components and was made without data to join them
                by.

        Warns:
            DisconnectedGraphWarning: When components were joined by their nearest samples.
        """
        where = "Neighborhood.embedding"
        if not 1 <= m <= len(self) - 2:
            hint = "An embedding needs more samples than m."
            raise OptionError(where, f"1 <= m <= {len(self) - 2}", f"m={m}", hint)
        expect_choice(where, "method", method, ("isomap", "laplacian"))
        from riemae.autoencoders import embedding

        matrix = self._matrix()
        symmetric = matrix.maximum(matrix.T).tocsr()  # where they differ, the longer
        data = None if self.data is None else self.data.double().numpy()
        joined = embedding.joined(where, symmetric, data)
        if method == "isomap":
            found = embedding.isomap(joined, m, _LANDMARKS)
        else:
            found = embedding.laplacian(joined, m)
        dtype = dtype or torch.get_default_dtype()
        return torch.as_tensor(found, dtype=dtype, device=self.start.device)

    def _matrix(self) -> csr_array:
        """Edge lengths as a sparse matrix.

        Sparse graphs drop zeros: edges of length zero are stored as 1e-12 of the mean length.
        """
        from scipy.sparse import csr_array

        lengths = self.lengths.numpy()
        positive = lengths[lengths > 0]
        smallest = 1e-12 * (positive.mean() if len(positive) else 1.0)
        stored = np.maximum(lengths, smallest)
        arrays = (stored, self.neighbors.cpu().numpy(), self.start.cpu().numpy())
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
        GraphError: For edges that no graph has, as in the constructors of :class:`Neighborhood`.
        DTypeError: For anything else.
    """
    where = "neighborhood"
    if callable(graph) and not hasattr(graph, "sample"):
        graph = graph(x.cpu())
    if isinstance(graph, Neighborhood):
        # An embedding of several components needs the data to join them by.
        flat = graph.data
        if flat is None and len(graph) == len(x):
            flat = x.detach().flatten(1).cpu()
        return replace(graph.to("cpu"), data=flat)
    if hasattr(graph, "sample"):
        return graph
    if hasattr(graph, "nodes") and hasattr(graph, "edges"):
        return Neighborhood.from_networkx(graph, x)
    shape = tuple(getattr(graph, "shape", ()))
    if len(shape) == 2 and shape[0] == shape[1]:
        return Neighborhood.from_adjacency(graph, x)
    lists = isinstance(graph, Sequence) and not isinstance(graph, str)
    if lists or isinstance(graph, (Tensor, np.ndarray)):
        return Neighborhood.from_index(graph, x)
    hint = "See riemae.autoencoders.neighborhood.Neighborhood."
    raise DTypeError(
        where, "a graph, a matrix (n, n) or a table (n, k)", type(graph).__name__, hint
    )


def _rows(where: str, x: Tensor | np.ndarray | None, n: int) -> Tensor | None:
    if x is None:
        return None
    data = torch.as_tensor(x).detach().cpu()
    if data.ndim < 2 or len(data) != n:
        got = str(tuple(data.shape))
        raise ShapeError(where, f"data of shape ({n}, *shape)", got, "Give one row per node.")
    return data.flatten(1)


def _sizes(components: Tensor) -> str:
    sizes = sorted(torch.bincount(components).tolist(), reverse=True)
    return ", ".join(map(str, sizes[:5])) + (", …" if len(sizes) > 5 else "")
