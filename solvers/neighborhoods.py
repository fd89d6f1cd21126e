"""What a search for neighbours returns: who they are, how far, and how sure that is.

The nearest ``k`` are a table, those within a radius a list for each query. Both are sparse matrices
and graphs, files and tables of pandas.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from riemae import storage
from riemae.exceptions import OptionError
from riemae.numerics.frames import frame
from riemae.numerics.html import table
from riemae.solvers.pairs import expect_point_sets
from riemae.solvers.result import Status
from riemae.storage.kinds import expect_kind

if TYPE_CHECKING:
    import networkx
    import pandas
    from scipy.sparse import csr_matrix

Found = TypeVar("Found", bound="Neighborhoods")

# UMAP's bisection for the width of a neighbourhood.
_HALVINGS = 64
_LEAST_WIDTH = 1e-3


@dataclass(frozen=True, eq=False)
class Again:
    """How a search is made once more.

    Attributes:
        call: With points and options.
        points: ``(n, m)``, those of the search.
    """

    call: Callable[..., Any]
    points: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Neighborhoods(ABC):
    """Neighbours of queries among points, with what their search tells.

    Attributes:
        certified: ``(q,)`` bool: these are the neighbours. Every other point is too far in the
            ambient space already, or its geodesic was found and is too long by more than its error
            (lengths are not shorter than distances); and all that were solved for the row
            converged.
        failed: ``(f, 2)`` int64: query and point of geodesics that miss ``rtol``.
        status: Their :class:`~riemae.solvers.Status` codes, ``(f,)`` int64.
        rtol: The relative accuracy that was asked for.
        solved: How many geodesics were solved.
        points: How many points there are to choose from.
        among_themselves: Whether the queries are the points themselves.
        search: How :meth:`query` and :meth:`add` look for more; neither pickled nor saved.
    """

    certified: Tensor
    failed: Tensor
    status: Tensor
    rtol: float
    solved: int
    points: int
    among_themselves: bool
    search: Again | None = field(default=None, repr=False, compare=False)

    # Fields that are tensors, and those that are plain values.
    tensors: ClassVar[tuple[str, ...]] = ("certified", "failed", "status")
    values: ClassVar[tuple[str, ...]] = ("rtol", "solved", "points", "among_themselves")

    @abstractmethod
    def edges(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query, point, distance and its error of every neighbour, ``(e,)`` each.

        Queries ascend, and the neighbours of each come nearest first.
        """

    def to_scipy(self) -> csr_matrix:
        """Distances as a sparse matrix ``(q, points)``, in the order of the neighbours.

        A distance of 0 is an entry of its own. ``metric="precomputed"`` of scikit-learn's
        neighbours, DBSCAN and t-SNE, of HDBSCAN and UMAP take it.
        """
        from scipy.sparse import csr_matrix

        rows, columns, distances, _ = (x.cpu().numpy() for x in self.edges())
        ends = np.searchsorted(rows, np.arange(len(self.certified) + 1))
        shape = (len(self.certified), self.points)
        return csr_matrix((distances, columns, ends), shape=shape)

    def to_networkx(self) -> networkx.Graph:
        """An undirected ``networkx.Graph`` on all points, distances as edge attribute ``weight``.

        Two points are joined when one is a neighbour of the other.

        Raises:
            OptionError: Of queries that are not the points themselves.
        """
        import networkx

        self._expect_square("to_networkx")
        graph = networkx.Graph()
        graph.add_nodes_from(range(self.points))
        rows, stops, weights, _ = (x.tolist() for x in self.edges())
        graph.add_weighted_edges_from(zip(rows, stops, weights, strict=True))
        return graph

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each neighbour: which point, how far, its error, whether the row is certain.

        The index has the query and the neighbour's rank, 0 for the nearest. Needs pandas.

        Raises:
            MissingExtraError: When pandas is not installed.
        """
        rows, points, distances, errors = (x.cpu().numpy() for x in self.edges())
        first = np.searchsorted(rows, rows)
        columns = {
            "neighbor": points,
            "distance": distances,
            "error": errors,
            "certified": self.certified.cpu().numpy()[rows],
        }
        index = {"query": rows, "rank": np.arange(len(rows)) - first}
        return frame(f"{type(self).__name__}.to_dataframe", columns, index)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the result into a folder: tensors in safetensors, the rest in JSON.

        Killed at any moment, it leaves what was there before, or the new result. :meth:`load` reads
        it.

        Args:
            directory: Made when missing.

        Returns:
            The directory.

        Raises:
            CheckpointError: When the directory is a file, or is not a path.
        """
        metadata = {name: getattr(self, name) for name in self.values}
        tensors = {name: getattr(self, name) for name in self.tensors}
        return storage.save(directory, tensors, {"kind": type(self).__name__, **metadata})

    @classmethod
    def load(
        cls: type[Found], directory: str | os.PathLike[str], device: torch.device | str = "cpu"
    ) -> Found:
        """The result that :meth:`save` wrote; it answers no more queries.

        Args:
            directory: Where it lies.
            device: Where the tensors go.

        Raises:
            CheckpointError: When a file is missing, changed, or of something else.
        """
        tensors, metadata = storage.load(directory, device)
        expect_kind(f"{cls.__name__}.load", directory, metadata, cls.__name__)
        parts: dict[str, Any] = {name: tensors[name] for name in cls.tensors}
        parts |= {name: metadata[name] for name in cls.values}
        return cls(**parts)

    def to(self: Found, device: torch.device | str) -> Found:
        """The same with its tensors on a device; what failed stays on the CPU."""
        parts = {
            name: getattr(self, name).to(device)
            for name in self.tensors
            if name not in ("failed", "status")
        }
        return replace(self, **parts)

    def query(self: Found, queries: Tensor, **options: Any) -> Found:  # (q, m)
        """The neighbours of other points among the same points, found in the same way.

        Args:
            queries: ``(q, m)``, of the points' dtype.
            options: ``rtol``, ``solver``, ``candidates``, ``throw``, ``progress``, and ``k`` or
                ``radius``; by default those of the call that this result comes from.

        Raises:
            OptionError: When the result was pickled or loaded: the space does not travel with it.
        """
        again = self._again("query", "Pass queries= to the manifold's method instead.")
        found: Found = again.call(again.points, queries=queries, **options)
        return found

    def add(self: Found, points: Tensor, **options: Any) -> Found:  # (p, m)
        """The neighbours of the same points and of more, all among each other.

        Rows that are certified are not searched again: of their pairs those with a new point are
        solved, where they are near enough. Certified rows are those of a search among all points,
        with the same neighbours, and distances that are equal within their errors. ``solved``
        counts what was solved now.

        Args:
            points: ``(p, m)``; their numbers follow those of the points that are there.
            options: As of :meth:`query`, and ``executor`` and ``out``.

        Raises:
            OptionError: When the result was pickled or loaded: pass it as ``kept=`` to the
                manifold's method, with all points. Also of queries that are not the points.
            ShapeError: When the points have another dimension.
            DTypeError: When they have another dtype.
        """
        self._expect_square("add")
        again = self._again("add", "Pass kept=, and all points, to the manifold's method instead.")
        where = f"{type(self).__name__}.add"
        like = again.points
        more = points if isinstance(points, Tensor) else torch.as_tensor(points).to(like)
        more = more.flatten(1) if more.ndim > 2 else more
        expect_point_sets(where, added=more, points=like)
        found: Found = again.call(torch.cat([like, more]), kept=self, **options)
        return found

    def _again(self, where: str, hint: str) -> Again:
        if self.search is None:
            raise OptionError(
                f"{type(self).__name__}.{where}",
                "a result that knows its points",
                "one that was pickled or loaded",
                hint,
            )
        return self.search

    def summary(self) -> str:
        """How many rows are certified, and which geodesics failed."""
        told = f"{int(self.certified.sum())} of {len(self.certified)} rows certified"
        if not len(self.failed):
            return told
        counts = Counter(self.status.tolist())
        named = ", ".join(
            f"{count} {Status(code).name.lower()}" for code, count in sorted(counts.items())
        )
        first = ", ".join(str(tuple(pair)) for pair in self.failed[:3].tolist())
        return f"{told}; {named} (first pairs: {first})"

    def __getstate__(self) -> dict[str, object]:
        """Everything but the search, whose decoder may not be picklable."""
        return {**self.__dict__, "search": None}

    def _repr_html_(self) -> str:
        """What was found as a table, for notebooks."""
        distances = self.edges()[2]
        reach = "none"
        if len(distances):
            reach = f"{float(distances.min()):.4g} to {float(distances.max()):.4g}"
        rows = [
            ("queries", len(self.certified)),
            ("points", self.points),
            ("neighbours", len(distances)),
            ("distances", reach),
            ("certified rows", f"{int(self.certified.sum())} of {len(self.certified)}"),
            ("failed geodesics", len(self.failed)),
            ("solved geodesics", self.solved),
            ("rtol", f"{self.rtol:g}"),
        ]
        return table(type(self).__name__, rows)

    def _expect_square(self, where: str) -> None:
        if not self.among_themselves:
            raise OptionError(
                f"{type(self).__name__}.{where}",
                "neighbours of the points among themselves",
                "those of other queries",
                "Leave queries out, or use to_scipy().",
            )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Neighbors(Neighborhoods):
    """The k nearest points of each query, nearest first.

    Attributes:
        indices: ``(q, k)`` int64; −1 where too few geodesics have a length.
        distances: ``(q, k)``, lengths of geodesics; NaN where there is none.
        errors: ``(q, k)``, their estimated errors.

    The others are those of :class:`Neighborhoods`.
    """

    indices: Tensor
    distances: Tensor
    errors: Tensor

    tensors: ClassVar[tuple[str, ...]] = (
        "indices",
        "distances",
        "errors",
        *Neighborhoods.tensors,
    )

    def edges(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See :meth:`Neighborhoods.edges`."""
        known = self.indices >= 0
        rows = known.nonzero(as_tuple=True)[0]
        return rows, self.indices[known], self.distances[known], self.errors[known]

    def connectivities(self) -> csr_matrix:
        """Weights in [0, 1] of a symmetric neighbourhood graph, ``(points, points)``.

        Those of UMAP's fuzzy simplicial set, as scanpy keeps them in
        ``obsp["connectivities"]``: of each row ``exp(−(d − ρ) / σ)`` beyond the nearest distance
        ρ, with a width σ such that they sum to log₂(k + 1), where UMAP counts a point as its own
        neighbour; then ``a + b − ab`` of both directions
        (L. McInnes, J. Healy, J. Melville, UMAP, arXiv:1802.03426, 2018, algorithms 2 and 3).

        Raises:
            OptionError: Of queries that are not the points themselves.
        """
        self._expect_square("connectivities")
        matrix = self.to_scipy()
        weights = matrix.copy()
        for row in range(len(self.indices)):
            part = slice(matrix.indptr[row], matrix.indptr[row + 1])
            weights.data[part] = _fuzzy(matrix.data[part])
        other = weights.T.tocsr()
        joined = weights + other - weights.multiply(other)
        return joined.tocsr()

    def __repr__(self) -> str:
        q, k = self.indices.shape
        return (
            f"Neighbors({k} of {self.points} points for each of {q}: {self.summary()}; "
            f"{self.solved} geodesics at rtol={self.rtol:g})"
        )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class RadiusNeighbors(Neighborhoods):
    """All points within a radius of each query, nearest first.

    Attributes:
        radius: The largest distance.
        starts: ``(q + 1,)`` int64: the neighbours of query ``i`` are entries ``starts[i]`` to
            ``starts[i + 1]`` of the others.
        indices: ``(e,)`` int64.
        distances: ``(e,)``, lengths of geodesics.
        errors: ``(e,)``, their estimated errors.

    The others are those of :class:`Neighborhoods`.
    """

    radius: float
    starts: Tensor
    indices: Tensor
    distances: Tensor
    errors: Tensor

    tensors: ClassVar[tuple[str, ...]] = (
        "starts",
        "indices",
        "distances",
        "errors",
        *Neighborhoods.tensors,
    )
    values: ClassVar[tuple[str, ...]] = ("radius", *Neighborhoods.values)

    def edges(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See :meth:`Neighborhoods.edges`."""
        rows = torch.arange(len(self.certified), device=self.indices.device)
        counts = self.starts.diff().to(rows.device)
        return rows.repeat_interleave(counts), self.indices, self.distances, self.errors

    def __getitem__(self, query: int) -> tuple[Tensor, Tensor]:
        """The points within the radius of one query, and their distances.

        Raises:
            IndexError: For a query that there is not.
        """
        if not -len(self.certified) <= query < len(self.certified):
            raise IndexError(f"query {query} of {len(self.certified)}")
        place = query % len(self.certified)
        part = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return self.indices[part], self.distances[part]

    def __repr__(self) -> str:
        return (
            f"RadiusNeighbors({len(self.indices)} of {len(self.certified)} x {self.points} pairs "
            f"within {self.radius:g}: {self.summary()}; {self.solved} geodesics at "
            f"rtol={self.rtol:g})"
        )


def _fuzzy(distances: np.ndarray) -> np.ndarray:  # (k,) -> (k,)
    """UMAP's memberships of one row."""
    positive = distances[distances > 0]
    nearest = positive.min() if len(positive) else 0.0
    beyond = np.maximum(distances - nearest, 0.0)
    target = np.log2(len(distances) + 1)
    low, high, width = 0.0, np.inf, 1.0
    for _ in range(_HALVINGS):
        if np.exp(-beyond / width).sum() > target:
            high = width
            width = (low + high) / 2
        else:
            low = width
            width = 2 * width if np.isinf(high) else (low + high) / 2
    width = max(width, _LEAST_WIDTH * distances.mean())
    return np.exp(-beyond / width) if width > 0 else np.ones_like(distances)
