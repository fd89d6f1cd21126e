"""The kinds of data that ``fit`` and ``transform`` accept, and how they become a dense tensor.

========================  ==========================================================================
arrays, lists, tables     anything that numpy reads as a whole, such as a pandas DataFrame
torch tensors             dense; sparse ones are made dense
scipy's sparse matrices   made dense: every sample is trained on with all its features
AnnData                   ``adata.X``, dense or sparse, one row per cell; not layers or ``obsm``
torch ``Dataset``         of tensors, of tuples that begin with one, or of ``{"x": …}``; stacked
torch ``DataLoader``      of batches in one of these forms; read batch by batch
========================  ==========================================================================

Anything else is refused, because numpy would read an unknown object element by element, which can
take minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from riemae.exceptions import DataError, DTypeError, NonFiniteError, ShapeError

_HINT = "Pass an array, a tensor, a DataFrame, a Dataset or a DataLoader."
_ARRAYS = ("__array__", "__array_interface__", "__array_struct__")
_REFERENCE = 10_000  # samples of a DataLoader that set the units


def all_samples(model: Any, X: Any, reset: bool) -> Tensor:  # -> (n, *shape)
    """All data as one tensor; of a DataLoader, the first batches, which set the units.

    Args:
        model: An estimator, which stores the shape of the data.
        X: The data.
        reset: Whether the shape is stored anew; otherwise the data must have the stored one.

    Raises:
        DataError: For a DataLoader without batches.
    """
    if not isinstance(X, DataLoader):
        return samples(model, X, reset)
    from riemae.autoencoders.module import unpacked

    parts: list[Tensor] = []
    for batch in X:
        parts.append(unpacked(batch)["x"])
        if sum(map(len, parts)) >= _REFERENCE:
            break
    if not parts:
        hint = "Is its Dataset empty, or drop_last set with fewer samples than one batch?"
        raise DataError(type(model).__name__, "a DataLoader with batches", "an empty one", hint)
    return samples(model, torch.cat(parts), reset)


def chunks(model: Any, X: Any, size: int, like: Tensor) -> Iterator[Tensor]:
    """The data in parts, in the dtype and on the device of a tensor.

    Args:
        model: A fitted estimator.
        X: The data, of the shape that it was fitted to.
        size: Samples per part; a DataLoader's batches stay as they are.
        like: Gives the dtype and the device.
    """
    if not isinstance(X, DataLoader):
        for part in samples(model, X, reset=False).split(size):
            yield part.to(like)
        return
    from riemae.autoencoders.module import unpacked

    for batch in X:
        yield samples(model, unpacked(batch)["x"], reset=False).to(like)


def like_input(X: Any, out: Tensor) -> Any:
    """Results in the form of the input.

    A tensor for tensors, Datasets and DataLoaders; an array for everything else.
    """
    if isinstance(X, (DataLoader, Dataset)):
        return out.cpu()
    if isinstance(X, Tensor):
        return out.to(X.device)
    return out.cpu().numpy()


def samples(model: Any, X: Any, reset: bool) -> Tensor:  # -> (n, *shape)
    """Finite data as a dense tensor.

    Args:
        model: An estimator, which stores the shape of the data.
        X: The data; not a DataLoader.
        reset: Whether the shape is stored anew; otherwise the data must have the stored one.

    Raises:
        DTypeError: For data that cannot be read, or of a dtype that is not real.
        NonFiniteError: For NaN or infinity.
        ShapeError: For data without samples, or of another shape than before.
    """
    where = type(model).__name__
    X = dense(where, X)
    if isinstance(X, Tensor):
        x = _checked(model, X, reset)
    else:
        x = _converted(model, X, reset)
    finite = x.flatten(1).isfinite().all(1)
    bad = (~finite).nonzero().flatten().tolist()
    if bad:
        got = f"NaN or infinity (inf) at {len(bad)} of {len(x)} rows (first: {bad[:5]})"
        raise NonFiniteError(where, "finite data", got, "Remove or impute them.")
    shape = tuple(x.shape[1:])
    if reset:
        model.data_shape_ = shape
    elif shape != model.data_shape_:
        expected = f"data (n, {', '.join(map(str, model.data_shape_))})"
        hint = "Give samples of the shape that the model was fitted to."
        raise ShapeError(where, expected, str(tuple(x.shape)), hint)
    return x


def _checked(model: Any, X: Tensor, reset: bool) -> Tensor:
    where = type(model).__name__
    if X.ndim < 2 or not len(X):
        hint = "Give one row per sample: X.reshape(-1, 1) for a single feature."
        raise ShapeError(where, "data (n, *shape)", str(tuple(X.shape)), hint)
    if X.is_complex() or X.dtype in (torch.float16, torch.bfloat16):
        hint = "Convert with .float()."
        raise DTypeError(where, "real data, float32 or float64", str(X.dtype), hint)
    if reset:
        model.n_features_in_ = X.shape[1]
        if hasattr(model, "feature_names_in_"):
            del model.feature_names_in_
    return X.detach() if X.is_floating_point() else X.to(torch.get_default_dtype())


def _converted(model: Any, X: Any, reset: bool) -> Tensor:
    """Data that numpy can read, checked by scikit-learn, which also stores the features' names."""
    from sklearn.utils.validation import validate_data

    kinds = [np.float64, np.float32]
    array = validate_data(
        model, X, reset=reset, dtype=kinds, allow_nd=True, ensure_all_finite=False
    )
    # Torch has no negative strides and warns about memory that is not writable. A copy also gives
    # the same data the same order in memory, and so the same results bit for bit.
    plain = array.flags.writeable and array.flags.c_contiguous
    return torch.as_tensor(array if plain else array.copy(order="C"))


def dense(where: str, X: Any) -> Any:
    """Data as a dense tensor, or as something that numpy reads as a whole.

    Raises:
        DataError: For an AnnData without ``X``, or a Dataset without samples.
        DTypeError: For anything else.
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
    """Whether it is an ``anndata.AnnData``, which exists only if the package is imported."""
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
        raise DataError(where, "a Dataset with samples", "an empty one", "Add samples to it.")
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
    if isinstance(item, np.ndarray):
        item = torch.as_tensor(np.ascontiguousarray(item))
    elif isinstance(item, (int, float, np.generic)):
        item = torch.as_tensor(item)
    if not isinstance(item, Tensor):
        expected = "a Dataset of tensors, of tuples that begin with one, or of {'x': …}"
        raise DTypeError(
            where, expected, f"items of {_name(item)}", "Wrap it in a Dataset, or pass an array."
        )
    return _strided(where, item)


def _name(X: Any) -> str:
    return f"{type(X).__module__}.{type(X).__qualname__}".removeprefix("builtins.")
