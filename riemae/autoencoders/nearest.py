"""The nearest samples of every sample: exactly, or by nearest-neighbour descent."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import (
    GraphError,
    MissingExtraError,
    NonFiniteError,
    OptionError,
    ShapeError,
)
from riemae.numerics.checks import expect_choice
from riemae.numerics.random import as_generator

Kind = Literal["directed", "mutual", "union"]
_INSTALL = "Try: pip install 'riemae[neighbors]'"


def flat_samples(where: str, data: Tensor) -> Tensor:  # (n, *shape) -> (n, D)
    """The samples as rows on the CPU, without a gradient.

    Args:
        where: The call that asks, for the error.
        data: The samples.

    Raises:
        ShapeError: When they are not ``(n, *shape)``.
        NonFiniteError: For NaN or infinity.
    """
    if data.ndim < 2:
        got = str(tuple(data.shape))
        raise ShapeError(where, "data of shape (n, *shape)", got, "Give one row per sample.")
    flat = data.detach().flatten(1).cpu()
    bad = (~flat.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        got = f"NaN or infinity at rows {bad[:5]}"
        raise NonFiniteError(where, "finite data", got, "Remove these rows.")
    return flat


def check_search(where: str, k: Any, kind: Any, n: int) -> None:
    """Refuse a number or kind of neighbours that ``n`` samples cannot have.

    Args:
        where: The call that asks, for the error.
        k: Neighbours per sample.
        kind: ``"directed"``, ``"mutual"`` or ``"union"``.
        n: Samples.

    Raises:
        OptionError: When k is not between 1 and n − 1, or the kind is unknown.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < n:
        expected = f"1 <= k < {n}, the number of samples"
        raise OptionError(where, expected, f"k={k}", "Lower k, or add samples.")
    expect_choice(where, "kind", kind, ("directed", "mutual", "union"))


def exact_search(
    where: str, flat: np.ndarray, k: int, generator: torch.Generator | int | None
) -> np.ndarray:  # (n, D) -> (n, k)
    """The k nearest rows of each row, which is itself left out by its number.

    Args:
        where: The call that asks, for the error.
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
    # Called without points, kneighbors leaves out the centre by its number and keeps duplicates.
    return NearestNeighbors(n_neighbors=k).fit(flat).kneighbors(return_distance=False)


def approximate_search(
    where: str, flat: np.ndarray, k: int, generator: torch.Generator | int | None
) -> np.ndarray:  # (n, D) -> (n, k)
    """As :func:`exact_search`, by nearest-neighbour descent.

    Args:
        where: The call that asks, for the error.
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
    # Where duplicates took the centre's own place, the farthest of the k + 1 is one too many.
    without_own = ~own.any(1)
    own[without_own, -1] = True
    kept = found[~own].reshape(n, k)
    unfilled = (kept < 0).any(1)  # the descent marks a missing neighbour by −1
    if unfilled.any():
        got = f"fewer found for {len(np.flatnonzero(unfilled))} of them"
        raise GraphError(where, f"{k} neighbours for every sample", got, "Use approximate=False.")
    return kept


def _seed(where: str, generator: torch.Generator | int | None) -> int:
    if isinstance(generator, Integral) and not isinstance(generator, bool):
        return int(generator)
    source = as_generator(where, generator)
    device = "cpu" if source is None else source.device
    drawn = torch.randint(2**31, (), generator=source, device=device)
    return int(drawn)


def edges_of(index: np.ndarray, kind: Kind) -> Tensor:  # (n, k) -> (e, 2)
    """Centre and neighbour of every edge of a graph of nearest neighbours.

    Args:
        index: The k nearest samples of each sample.
        kind: As in :meth:`riemae.autoencoders.Neighborhood.nearest`.
    """
    n, k = index.shape
    centre = np.repeat(np.arange(n), k)
    edges = np.stack([centre, index.reshape(-1)], 1)
    if kind == "union":
        reverse = edges[:, ::-1]
        both = np.concatenate([edges, reverse])
        edges = np.unique(both, axis=0)
    elif kind == "mutual":
        edges = _mutual(edges, n)
    return torch.as_tensor(edges)


def _mutual(edges: np.ndarray, n: int) -> np.ndarray:  # (e, 2) -> (e', 2)
    """The edges whose reverse is an edge as well."""
    first = edges[:, 0]
    second = edges[:, 1]
    # One number per edge, so that edges can be compared as numbers.
    forward = first * n + second
    backward = second * n + first
    return edges[np.isin(forward, backward)]
