"""What ``fit`` and ``transform`` accept, as a dense array or tensor.

========================  ==========================================================================================
arrays, lists, tables     whatever numpy reads at once, such as a pandas DataFrame
torch tensors             dense; sparse ones are made dense
scipy's sparse matrices   made dense: every sample is trained on with all its features
AnnData                   ``adata.X``, dense or sparse, one row per cell; layers and ``obsm`` are never looked at
torch ``Dataset``         of tensors, of tuples that begin with one, or of ``{"x": …}``; stacked
========================  ==========================================================================================

Anything else is refused: numpy would walk through an unknown object element by element, for
minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from riemae.exceptions import DataError, DTypeError

_HINT = "Pass an array, a tensor, a DataFrame, a Dataset or a DataLoader."
_ARRAYS = ("__array__", "__array_interface__", "__array_struct__")


def dense(where: str, X: Any) -> Any:
    """Data as a dense tensor, or as something that numpy reads at once.

    Raises:
        DataError: For an AnnData without ``X``, or a Dataset without samples.
        DTypeError: For what is none of these.
    """
    if isinstance(X, Tensor):
        return _strided(where, X)
    if isinstance(X, Dataset):
        return _stacked(where, X)
    if _is_anndata(X):
        X = _cells(where, X)
    if _is_sparse(X):
        return X.toarray()
    if not isinstance(X, (np.ndarray, Sequence)) and not any(hasattr(X, name) for name in _ARRAYS):
        raise DTypeError(where, "data as an array or a tensor (n, *shape)", _name(X), _HINT)
    if isinstance(X, (str, bytes)):
        raise DTypeError(where, "data as an array or a tensor (n, *shape)", _name(X), _HINT)
    return X


def _strided(where: str, x: Tensor) -> Tensor:
    if x.is_meta:
        raise DTypeError(where, "data with values", "a tensor on the meta device", _HINT)
    return x if x.layout == torch.strided else x.to_dense()


def _is_anndata(X: Any) -> bool:
    """Whether it is an ``anndata.AnnData``; one can only be if the package is imported already."""
    package = sys.modules.get("anndata")
    kind = getattr(package, "AnnData", None)
    return isinstance(kind, type) and isinstance(X, kind)


def _cells(where: str, adata: Any) -> Any:
    if getattr(adata, "isbacked", False):
        adata = adata.to_memory()
    if adata.X is None:
        raise DataError(
            where,
            "an AnnData with values in X",
            "X = None",
            "Pass adata.layers[…] or adata.obsm[…].",
        )
    return adata.X if _is_sparse(adata.X) else np.asarray(adata.X)


def _is_sparse(X: Any) -> bool:
    package = sys.modules.get("scipy.sparse")
    return package is not None and bool(package.issparse(X))


def _stacked(where: str, dataset: Dataset[Any]) -> Tensor:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise DTypeError(
            where, "a Dataset with a length", _name(dataset), "Wrap it in a DataLoader."
        )
    if not len(dataset):
        raise DataError(where, "a Dataset with samples", "an empty one", "")
    if isinstance(dataset, TensorDataset):
        return _strided(where, dataset.tensors[0])
    try:
        return torch.stack([_sample(where, dataset[i]) for i in range(len(dataset))])
    except RuntimeError as reason:
        raise DTypeError(
            where, "a Dataset of samples of one shape", str(reason), "Crop or pad them."
        ) from reason


def _sample(where: str, item: Any) -> Tensor:
    if isinstance(item, Mapping):
        item = item.get("x")
    elif isinstance(item, (tuple, list)) and item:
        item = item[0]
    if isinstance(item, (int, float, np.ndarray, np.generic)):
        item = torch.as_tensor(np.ascontiguousarray(item) if isinstance(item, np.ndarray) else item)
    if not isinstance(item, Tensor):
        expected = "a Dataset of tensors, of tuples that begin with one, or of {'x': …}"
        raise DTypeError(
            where, expected, f"items of {_name(item)}", "Wrap it in a Dataset, or pass an array."
        )
    return _strided(where, item)


def _name(X: Any) -> str:
    return f"{type(X).__module__}.{type(X).__qualname__}".removeprefix("builtins.")
