"""Nearest neighbours by geodesic distance as scikit-learn's estimators.

Their data are latent codes. Pipelines put an encoder first::

    make_pipeline(model, GeodesicKNeighborsClassifier(model.manifold_))

with a fitted ``model`` of :mod:`riemae.autoencoders`, frozen by ``sklearn.frozen.FrozenEstimator``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix

from riemae.exceptions import DTypeError, MissingExtraError
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_choice, expect_range
from riemae.solvers import Neighbors

try:
    from sklearn import get_config
    from sklearn.base import (
        BaseEstimator,
        ClassifierMixin,
        ClassNamePrefixFeaturesOutMixin,
        RegressorMixin,
        TransformerMixin,
    )
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestNeighbors
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as reason:
    raise MissingExtraError(
        "riemae.interop.sklearn",
        "scikit-learn 1.6 or later",
        str(reason),
        "Try: pip install 'riemae[sklearn]'",
    ) from reason

__all__ = [
    "GeodesicKNeighborsClassifier",
    "GeodesicKNeighborsRegressor",
    "GeodesicNeighborsTransformer",
]

Weights = Literal["uniform", "distance"] | Callable[[np.ndarray], np.ndarray]


def _euclidean(points: np.ndarray, k: int, queries: np.ndarray | None) -> Neighbors:
    """Neighbours in a flat space, where geodesics are straight lines and nothing is solved."""
    distances, indices = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(queries)
    none = torch.zeros(0, 2, dtype=torch.int64)
    return Neighbors(
        indices=torch.from_numpy(indices),
        distances=torch.from_numpy(distances),
        errors=torch.zeros(distances.shape, dtype=torch.float64),
        certified=torch.ones(len(indices), dtype=torch.bool),
        failed=none,
        status=none[:, 0],
        rtol=np.finfo(np.float64).eps,
        solved=0,
        points=len(points),
        among_themselves=queries is None,
    )


class _GeodesicNeighbors(BaseEstimator):
    """What the estimators share: codes that are kept, and the search among them."""

    manifold: Manifold | None
    n_neighbors: int
    rtol: float | None
    candidates: int | None

    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> Any:
        """The nearest of the fitted codes, as scikit-learn's ``kneighbors``.

        Args:
            X: Codes ``(q, m)``; by default the fitted ones, each without itself.
            n_neighbors: Neighbours of each; by default those of the estimator.
            return_distance: Whether distances come first.

        Returns:
            Distances and indices ``(q, n_neighbors)``, or indices alone.

        Raises:
            NotConvergedError: When a geodesic fails.
        """
        found = self.neighbors(X, n_neighbors)
        indices = found.indices.cpu().numpy()
        if not return_distance:
            return indices
        return found.distances.double().cpu().numpy(), indices

    def neighbors(self, X: Any = None, n_neighbors: int | None = None) -> Neighbors:
        """The same as :class:`riemae.solvers.Neighbors`, with errors and certificates.

        Args:
            X: As in :meth:`kneighbors`.
            n_neighbors: As in :meth:`kneighbors`.

        Raises:
            NotConvergedError: When a geodesic fails.
        """
        check_is_fitted(self)
        queries = None
        if X is not None:
            queries = validate_data(self, X, reset=False, dtype=np.float64)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        return self._nearest(queries, k)

    def _nearest(self, queries: np.ndarray | None, k: int) -> Neighbors:
        points = self._fit_codes
        most = len(points) - (queries is None)
        hint = f"There are {most} codes to choose from."
        expect_range(type(self).__name__, "n_neighbors", k, 1, most, integer=True, hint=hint)
        if self.manifold is None:
            return _euclidean(points, k, queries)
        return self.manifold.neighbors(
            points,  # type: ignore[arg-type]  # arrays are taken as well as tensors
            k,
            queries,  # type: ignore[arg-type]
            rtol=self.rtol,
            candidates=self.candidates,
        )

    def _keep(self, X: np.ndarray) -> None:
        """Keep the codes.

        Raises:
            DTypeError: When ``manifold`` is something else.
        """
        name = type(self).__name__
        if self.manifold is not None and not isinstance(self.manifold, Manifold):
            hint = "Try Manifold(decoder), or None for Euclidean codes."
            got = type(self.manifold).__name__
            raise DTypeError(name, "manifold as a riemae.Manifold or None", got, hint)
        expect_range(name, "n_neighbors", self.n_neighbors, 1, integer=True)
        self._fit_codes = X
        self.n_samples_fit_ = len(X)

    def _graph(self, X: np.ndarray, k: int) -> csr_matrix:
        """Distances from queries to their nearest codes, a code itself included."""
        codes = self._fit_codes
        if X.shape != codes.shape or not np.array_equal(X, codes) or k < 2:
            graph = self._nearest(X, k).to_scipy()
            return graph.astype(np.float64)
        # Each pair once, and nothing is solved from a code to itself.
        among = self._nearest(None, k - 1)
        own = torch.arange(len(X))[:, None].to(among.indices)
        indices = torch.cat([own, among.indices], 1).cpu().numpy()
        zero = torch.zeros_like(among.distances[:, :1])
        distances = torch.cat([zero, among.distances], 1).double().cpu().numpy()
        starts = np.arange(0, indices.size + 1, k)
        shape = (len(X), len(codes))
        return csr_matrix((distances.ravel(), indices.ravel(), starts), shape=shape)


class GeodesicNeighborsTransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, _GeodesicNeighbors
):
    """Codes to the sparse graph of their nearest neighbours by geodesic distance.

    As ``sklearn.neighbors.KNeighborsTransformer``: a code is its own neighbour, and with
    ``mode="distance"`` each row has one neighbour more than ``n_neighbors``, so that estimators
    with ``metric="precomputed"`` (DBSCAN, t-SNE, Isomap, k-neighbours classifiers) get as many as
    they ask for, whether they count a sample itself or not.

    Args:
        manifold: The :class:`~riemae.Manifold` in which codes lie; None for Euclidean codes.
        n_neighbors: Neighbours of each code.
        mode: What entries are: ``"distance"``, or 1 for ``"connectivity"``.
        rtol: Relative accuracy of the distances, as in :meth:`riemae.Manifold.neighbors`.
        candidates: Geodesics that are solved for a code at most, likewise.

    Attributes:
        n_samples_fit_: How many codes were fitted.
        n_features_in_: m.

    Example:
        >>> import numpy as np, torch
        >>> from riemae import Manifold
        >>> from riemae.interop.sklearn import GeodesicNeighborsTransformer
        >>> z = np.random.default_rng(0).normal(size=(20, 2))
        >>> M = Manifold(lambda z: torch.cat([z, z.square()], -1))
        >>> GeodesicNeighborsTransformer(M, n_neighbors=3).fit_transform(z).nnz
        80
    """

    def __init__(
        self,
        manifold: Manifold | None = None,
        n_neighbors: int = 5,
        *,
        mode: Literal["distance", "connectivity"] = "distance",
        rtol: float | None = None,
        candidates: int | None = None,
    ) -> None:
        self.manifold = manifold
        self.n_neighbors = n_neighbors
        self.mode = mode
        self.rtol = rtol
        self.candidates = candidates

    def fit(self, X: Any, y: Any = None) -> GeodesicNeighborsTransformer:
        """Keep the codes.

        Args:
            X: Codes ``(n, m)``.
            y: Ignored.

        Raises:
            DTypeError: When ``manifold`` is something else.
            OptionError: For another mode, or less than one neighbour.
        """
        expect_choice(type(self).__name__, "mode", self.mode, ("distance", "connectivity"))
        self._keep(validate_data(self, X, dtype=np.float64))
        self._n_features_out = self.n_samples_fit_
        return self

    def transform(self, X: Any) -> Any:
        """The graph from queries to the fitted codes, ``(q, n_samples_fit_)``.

        A sparse matrix; after ``set_output(transform="pandas")`` a table of sparse columns, which
        estimators take as well. There is no sparse table in polars.

        Args:
            X: Codes ``(q, m)``.

        Raises:
            NotConvergedError: When a geodesic fails.
            OptionError: With more neighbours than fitted codes.
        """
        check_is_fitted(self)
        queries = validate_data(self, X, reset=False, dtype=np.float64)
        graph = self._graph(queries, self.n_neighbors + (self.mode == "distance"))
        if self.mode == "connectivity":
            graph.data = np.ones_like(graph.data)
        return self._contained(graph, X)

    def _contained(self, graph: csr_matrix, X: Any) -> Any:
        """The graph as the user wants it: scikit-learn itself refuses sparse results in tables."""
        chosen = getattr(self, "_sklearn_output_config", {}).get("transform")
        if (chosen or get_config()["transform_output"]) != "pandas":
            return graph
        import pandas

        index = X.index if isinstance(X, pandas.DataFrame) else None
        names = self.get_feature_names_out()
        return pandas.DataFrame.sparse.from_spmatrix(graph, index=index, columns=names)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags


class _Predictor(_GeodesicNeighbors):
    """What predictors share: scikit-learn's votes and means, on geodesic distances."""

    weights: Weights
    # scikit-learn's estimator that decides.
    _kind: type

    def __init__(
        self,
        manifold: Manifold | None = None,
        n_neighbors: int = 5,
        *,
        weights: Weights = "uniform",
        rtol: float | None = None,
        candidates: int | None = None,
    ) -> None:
        self.manifold = manifold
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.rtol = rtol
        self.candidates = candidates

    def fit(self, X: Any, y: Any) -> Any:
        """Keep codes and targets.

        Args:
            X: Codes ``(n, m)``.
            y: Targets ``(n,)`` or ``(n, outputs)``.

        Raises:
            DTypeError: When ``manifold`` is something else.
            OptionError: For less than one neighbour.
        """
        codes, targets = validate_data(self, X, y, dtype=np.float64, multi_output=True)
        self._keep(codes)
        judge = self._kind(self.n_neighbors, weights=self.weights, metric="precomputed")
        # Its distances come with the queries: among the codes it needs none but their own.
        n = len(codes)
        own = csr_matrix((np.zeros(n), np.arange(n), np.arange(n + 1)), shape=(n, n))
        self._judge = judge.fit(own, targets)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predictions ``(q,)`` or ``(q, outputs)`` for codes.

        Args:
            X: Codes ``(q, m)``.

        Raises:
            NotConvergedError: When a geodesic fails.
        """
        found: np.ndarray = self._judge_of(X).predict(self._to(X))
        return found

    def _judge_of(self, X: Any) -> Any:
        check_is_fitted(self)
        return self._judge

    def _to(self, X: Any) -> csr_matrix:
        queries = validate_data(self, X, reset=False, dtype=np.float64)
        return self._graph(queries, self.n_neighbors)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class GeodesicKNeighborsClassifier(ClassifierMixin, _Predictor):
    """Vote of the nearest neighbours by geodesic distance.

    As ``sklearn.neighbors.KNeighborsClassifier``, which counts the votes.

    Args:
        manifold: The :class:`~riemae.Manifold` in which codes lie; None for Euclidean codes.
        n_neighbors: How many vote.
        weights: ``"uniform"``, ``"distance"`` (by its inverse), or a function of distances.
        rtol: Relative accuracy of the distances, as in :meth:`riemae.Manifold.neighbors`.
        candidates: Geodesics that are solved for a code at most, likewise.

    Attributes:
        classes_: The labels.
        n_samples_fit_: How many codes were fitted.
        n_features_in_: m.
    """

    _kind = KNeighborsClassifier

    def fit(self, X: Any, y: Any) -> GeodesicKNeighborsClassifier:
        """Keep codes and labels.

        Args:
            X: Codes ``(n, m)``.
            y: Labels ``(n,)`` or ``(n, outputs)``.
        """
        super().fit(X, y)
        self.classes_ = self._judge.classes_
        return self

    def predict_proba(self, X: Any) -> Any:
        """Shares of the votes ``(q, classes)``; a list of them for several outputs.

        Args:
            X: Codes ``(q, m)``.

        Raises:
            NotConvergedError: When a geodesic fails.
        """
        return self._judge_of(X).predict_proba(self._to(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class GeodesicKNeighborsRegressor(RegressorMixin, _Predictor):
    """Mean of the nearest neighbours by geodesic distance.

    As ``sklearn.neighbors.KNeighborsRegressor``, which takes the mean.

    Args:
        manifold: The :class:`~riemae.Manifold` in which codes lie; None for Euclidean codes.
        n_neighbors: How many count.
        weights: ``"uniform"``, ``"distance"`` (by its inverse), or a function of distances.
        rtol: Relative accuracy of the distances, as in :meth:`riemae.Manifold.neighbors`.
        candidates: Geodesics that are solved for a code at most, likewise.

    Attributes:
        n_samples_fit_: How many codes were fitted.
        n_features_in_: m.
    """

    _kind = KNeighborsRegressor
