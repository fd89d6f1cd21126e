"""Nearest neighbours among many points.

By trees in few dimensions, by scikit-learn in many, or approximately.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import numpy as np

from riemae.exceptions import MissingExtraError
from riemae.numerics.checks import expect_choice

Search = Literal["auto", "tree", "brute", "approximate"]

# In more dimensions a k-d tree visits nearly all points for each.
_TREE_DIMENSIONS = 16


def nearest(
    coordinates: np.ndarray, k: int, search: Search = "auto", where: str = "graph"
) -> np.ndarray:
    """Undirected edges ``(e, 2)`` from each of ``(n, d)`` points to its ``k`` nearest.

    Each is listed once, its smaller index first.

    Args:
        coordinates: The points, n of at least 2.
        k: Neighbours per point, itself not counted.
        search: ``"tree"``: scipy's k-d tree; ``"brute"``: scikit-learn, all distances in blocks;
            ``"approximate"``: pynndescent, which misses a few neighbours; ``"auto"``: exact,
            whichever is faster of those installed.
        where: The call that errors name.

    Raises:
        OptionError: For an unknown search.
        MissingExtraError: When its library is not installed.
    """
    expect_choice(where, "search", search, ("auto", "tree", "brute", "approximate"))
    if search == "auto":
        many = coordinates.shape[1] > _TREE_DIMENSIONS
        installed = importlib.util.find_spec("sklearn") is not None
        if many and installed:
            search = "brute"
        else:
            search = "tree"
    find = {"tree": _tree, "brute": _brute, "approximate": _approximate}[search]
    found = find(coordinates, k + 1)
    n = len(coordinates)
    # A point is its own nearest neighbour, unless duplicates come first: then the farthest is one
    # too many.
    own = found == np.arange(n)[:, None]
    own[~own.any(1), -1] = True
    start = np.repeat(np.arange(n), k)
    stop = found[~own].astype(np.int64)
    # -1 where an approximate search found fewer
    start = start[stop >= 0]
    stop = stop[stop >= 0]
    key = np.unique(np.minimum(start, stop) * n + np.maximum(start, stop))
    return np.stack([key // n, key % n], 1)


def _tree(coordinates: np.ndarray, count: int) -> np.ndarray:
    from scipy.spatial import cKDTree

    found: np.ndarray = cKDTree(coordinates).query(coordinates, k=count)[1]
    return found


def _brute(coordinates: np.ndarray, count: int) -> np.ndarray:
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError as reason:
        hint = "pip install 'riemae[demo]', or use search='tree'."
        raise MissingExtraError(
            "graph", "scikit-learn for search='brute'", str(reason), hint
        ) from reason
    finder = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(coordinates)
    found: np.ndarray = finder.kneighbors(coordinates, return_distance=False)
    return found


def _approximate(coordinates: np.ndarray, count: int) -> np.ndarray:
    try:
        from pynndescent import NNDescent
    except ImportError as reason:
        hint = "pip install 'riemae[neighbors]', or use search='auto'."
        raise MissingExtraError(
            "graph", "pynndescent for search='approximate'", str(reason), hint
        ) from reason
    found: np.ndarray = NNDescent(coordinates, n_neighbors=count, random_state=0).neighbor_graph[0]
    return found
