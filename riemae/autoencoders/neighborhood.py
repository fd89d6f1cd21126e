"""Neighbourhood graphs of data, from which every training step draws neighbours.

All neighbours lie in one array, one node after the other, and a second array says where each node
begins. Nodes may therefore have any number of neighbours, and drawing a neighbour costs one random
number, on the device of the arrays.
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
    by_rows,
    data_of_nodes,
    distances,
    edges_of_matrix,
    edges_of_table,
    length_matrix,
    matrix_of_networkx,
)
from riemae.autoencoders.nearest import (
    Kind,
    approximate_search,
    check_search,
    edges_of,
    exact_search,
    flat_samples,
)
from riemae.exceptions import (
    DisconnectedGraphWarning,
    DTypeError,
    GraphError,
    OptionError,
    stack_level,
)
from riemae.numerics.checks import expect_choice

if TYPE_CHECKING:
    import networkx
    from scipy.sparse import csr_array

_LANDMARKS = 1000  # of Isomap: shortest paths from the landmarks alone are n × 1000 numbers
_RANDOM = 2**62  # modulo a degree of up to millions, uniform to 1e-12


@dataclass(frozen=True, eq=False)
class Neighborhood:
    """The neighbours of every sample.

    Made by :meth:`nearest`, :meth:`from_adjacency`, :meth:`from_networkx` or :meth:`from_index`.

    No node is its own neighbour. It is recognised by its number, so an equal sample with another
    number is a neighbour like any other.

    Attributes:
        start: ``(n + 1,)`` int64, where the neighbours of each node begin.
        neighbors: ``(e,)`` int64, the neighbours of node 0, then those of node 1, and so on.
        lengths: ``(e,)`` float64, the lengths of these edges: distances of the data, or 1 when the
            graph was made without data.
        data: ``(n, D)`` on the CPU, or None. An embedding joins components by it. The memory is
            shared with the caller's data where that is possible.

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
        """The ``k`` nearest samples of each sample, by Euclidean distance of the flattened data.

        Args:
            x: ``(n, *shape)``; images are flattened.
            k: Neighbours per sample.
            kind: ``"directed"``: exactly k for each sample; ``"mutual"``: pairs of which each is
                among the k nearest of the other; ``"union"``: pairs of which at least one is.
            approximate: Whether to search by nearest-neighbour descent (pynndescent), for millions
                of samples or many dimensions.
            generator: Randomness of the approximate search; an integer is a seed.

        Raises:
            ShapeError: When ``x`` is not ``(n, *shape)``.
            NonFiniteError: For NaN or infinity in the data.
            OptionError: When k is not between 1 and n − 1, or the kind is unknown.
            GraphError: When a mutual graph has samples without neighbours.
            MissingExtraError: When scikit-learn, or pynndescent for an approximate search, is
                missing.

        Warns:
            DisconnectedGraphWarning: When the graph has several components.
        """
        where = "Neighborhood.nearest"
        data = torch.as_tensor(x)
        flat = flat_samples(where, data)
        n = len(flat)
        check_search(where, k, kind, n)
        search = approximate_search if approximate else exact_search
        index = search(where, flat.numpy(), k, generator)
        edges = edges_of(index, kind)
        lengths = distances(flat, edges)
        hint = "Use kind='directed' or 'union', or raise k."
        graph = cls._of_edges(where, n, edges, lengths, flat, hint)
        return graph.to(data.device)

    @classmethod
    def from_adjacency(cls, adjacency: Any, x: Tensor | np.ndarray | None = None) -> Neighborhood:
        """A graph of your own, from its matrix.

        An entry (i, j) other than zero is the length of the edge from i to its neighbour j.

        Args:
            adjacency: ``(n, n)``: a scipy sparse matrix or array, a numpy array, or a tensor (dense
                or sparse). Entries may be booleans, for edges of length 1. Stored zeros of a sparse
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
        between_two = pairs[:, 0] != pairs[:, 1]
        edges = pairs[between_two]
        lengths = lengths[between_two]
        return cls._of_edges(where, n, edges, lengths, data_of_nodes(where, x, n))

    @classmethod
    def from_networkx(
        cls,
        graph: networkx.Graph,
        x: Tensor | np.ndarray | None = None,
        weight: str | None = "weight",
    ) -> Neighborhood:
        """A networkx graph, directed or not, whose nodes are in the order of the data.

        Args:
            graph: Any networkx graph; the order is that of ``graph.nodes``.
            x: The data ``(n, *shape)``, for an embedding of a graph with several components.
            weight: The edge attribute that is a length; 1 for an edge without it.

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

        A sample's own number is left out, so tables that count a point among its neighbours can be
        used as they are.

        Args:
            index: The numbers of the neighbours of each sample, counted from 0.
            x: The data ``(n, *shape)``, for the lengths of the edges, which are 1 without them.

        Raises:
            DTypeError: When the entries are not integers.
            ShapeError: When a table has more or fewer than two axes, or the data have another
                number of rows.
            GraphError: For numbers that are not those of samples, and for nodes without neighbours.

        Warns:
            DisconnectedGraphWarning: When the graph has several components.
        """
        where = "Neighborhood.from_index"
        n, edges = edges_of_table(where, index)
        data = data_of_nodes(where, x, n)
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
        start, neighbors, lengths = by_rows(where, n, edges, lengths, hint)
        made = cls(start, neighbors, lengths, data)
        _warn_of_parts(made.components)
        return made

    def __len__(self) -> int:
        return len(self.start) - 1

    def __repr__(self) -> str:
        degree = self.degree
        parts = int(self.components.max()) + 1
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

        Edges connect in both directions.
        """
        from scipy.sparse import csgraph

        _, labels = csgraph.connected_components(self._matrix(), directed=False)
        return torch.as_tensor(labels, dtype=torch.int64)

    def of(self, i: int) -> Tensor:  # -> (degree of i,)
        """The neighbours of sample ``i``.

        Raises:
            GraphError: When there is no such sample.
        """
        if not 0 <= i < len(self):
            expected = f"a sample from 0 to {len(self) - 1}"
            hint = "Samples are counted from 0."
            raise GraphError("Neighborhood.of", expected, str(i), hint)
        first = int(self.start[i])
        end = int(self.start[i + 1])
        return self.neighbors[first:end]

    def to(self, device: torch.device | str) -> Neighborhood:
        """The same graph, with the arrays that :meth:`sample` reads on another device."""
        return Neighborhood(
            self.start.to(device), self.neighbors.to(device), self.lengths, self.data
        )

    def sample(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:  # (b,) -> (b,)
        """One neighbour of each sample; all of a sample's neighbours are equally likely.

        Args:
            index: ``(b,)`` or any shape, int64: the numbers of the samples, on the device of the
                arrays.
            generator: Source of the random numbers, which are drawn on its device.

        Raises:
            DTypeError: When ``index`` does not hold integers.
        """
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            expected = "the numbers of samples, int64"
            hint = "Convert them with .long()."
            raise DTypeError("Neighborhood.sample", expected, str(index.dtype), hint)
        first = self.start[index]
        degree = self.start[index + 1] - first
        device = index.device if generator is None else generator.device
        # Integers modulo the degree, because a random float would be rounded.
        drawn = torch.randint(_RANDOM, index.shape, generator=generator, device=device)
        place = drawn.to(index.device) % degree
        return self.neighbors[first + place]

    def embedding(
        self,
        m: int,
        method: Literal["isomap", "laplacian"] = "isomap",
        dtype: torch.dtype | None = None,
    ) -> Tensor:  # -> (n, m)
        """Coordinates of the samples from the graph alone, from which an encoder can start.

        They are centred. The standard deviation of each, or the largest for Isomap, is 1.

        Args:
            m: Number of coordinates.
            method: ``"isomap"``: multidimensional scaling of the shortest paths (Tenenbaum et al.
                2000; of more than 1,000 samples by landmarks, de Silva & Tenenbaum 2003);
                ``"laplacian"``: eigenmaps (Belkin & Niyogi 2003). Isomap divides all coordinates by
                the largest standard deviation, so that their proportions stay.
            dtype: By default torch's default dtype.

        Raises:
            OptionError: For an unknown method, or m not between 1 and n − 2.
            GraphError: When the graph has several components and was made without data, by which
                they are joined.

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
        symmetric = matrix.maximum(matrix.T).tocsr()  # the longer where both directions differ
        data = None if self.data is None else self.data.double().numpy()
        joined = embedding.joined(where, symmetric, data)
        if method == "isomap":
            found = embedding.isomap(joined, m, _LANDMARKS)
        else:
            found = embedding.laplacian(joined, m)
        dtype = dtype or torch.get_default_dtype()
        return torch.as_tensor(found, dtype=dtype, device=self.start.device)

    def _matrix(self) -> csr_array:
        return length_matrix(self.start, self.neighbors, self.lengths)


def as_neighborhood(graph: Any, x: Tensor) -> Any:
    """A graph on the samples ``x`` from any form that a user may have, on the CPU.

    Args:
        graph: A :class:`Neighborhood`; a function ``x -> graph``; a networkx graph; a square matrix
            (adjacency); a table of neighbours ``(n, k)`` or lists of them; or anything else with a
            method ``sample``, which is returned as it is.
        x: The data ``(n, *shape)``.

    Raises:
        ShapeError: When matrix, table or graph have another number of samples.
        GraphError: For edges that are not allowed, as in the constructors of :class:`Neighborhood`.
        DTypeError: For anything else.
    """
    where = "neighborhood"
    if callable(graph) and not hasattr(graph, "sample"):
        graph = graph(x.cpu())
    if isinstance(graph, Neighborhood):
        # With several components, an embedding needs the data, by which it joins them.
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


def _warn_of_parts(components: Tensor) -> None:
    parts = int(components.max()) + 1
    if parts == 1:
        return
    sizes = sorted(torch.bincount(components).tolist(), reverse=True)
    shown = ", ".join(map(str, sizes[:5]))
    more = ", …" if parts > 5 else ""
    warnings.warn(
        f"The neighbourhood graph falls into {parts} components (of {shown}{more} samples): "
        "nothing ties the parts of the learned manifold to each other. Raise k, or add samples.",
        DisconnectedGraphWarning,
        stacklevel=stack_level(),
    )
