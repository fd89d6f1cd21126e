"""Cells: codes and geodesic neighbours inside an AnnData object, where scanpy looks for them.

::

    M = embed(adata, VAE(likelihood="negative_binomial"))
    neighbors(adata, M)
    scanpy.tl.umap(adata)
    scanpy.tl.leiden(adata)

The package anndata is not imported: whatever has ``obsm``, ``obsp`` and ``uns`` will do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from riemae.exceptions import DTypeError, OptionError, ShapeError
from riemae.manifold import Manifold
from riemae.solvers import Neighbors

__all__ = ["embed", "neighbors"]

_PARTS = ("X", "obsm", "obsp", "uns", "layers")


def embed(adata: Any, model: Any, rep: str = "X_riemae", *, layer: str | None = None) -> Manifold:
    """Codes of cells by an autoencoder, which is trained on them where it is not yet.

    Args:
        adata: An AnnData object. Counts may be sparse; they are made dense in memory for training.
        model: An estimator of :mod:`riemae.autoencoders`.
        rep: Where the codes go: ``adata.obsm[rep]``.
        layer: Which layer the counts are in; by default ``adata.X``.

    Returns:
        The manifold of the model's decoder.

    Raises:
        DTypeError: When ``adata`` or ``model`` is something else.
        OptionError: When there is no such layer.
        DataError: When the model's likelihood does not allow the data.
    """
    where = "interop.anndata.embed"
    _expect_cells(where, adata)
    if not hasattr(model, "transform") or not hasattr(model, "fit"):
        hint = "Try riemae.autoencoders.VAE(likelihood='negative_binomial')."
        got = type(model).__name__
        raise DTypeError(where, "an estimator of riemae.autoencoders", got, hint)
    data = adata.X if layer is None else _found(where, "layers", adata.layers, layer)
    if not hasattr(model, "manifold_"):
        model.fit(data)
    adata.obsm[rep] = np.asarray(model.transform(data))
    manifold: Manifold = model.manifold_
    return manifold


def neighbors(
    adata: Any,
    manifold: Manifold,
    k: int = 15,
    rep: str = "X_riemae",
    key_added: str | None = None,
    **options: Any,
) -> Neighbors:
    """Geodesic neighbours of cells, as ``scanpy.pp.neighbors`` writes them.

    ``obsp["distances"]`` are geodesic, ``obsp["connectivities"]`` UMAP's weights of them, and
    ``uns["neighbors"]`` says how they came about; with ``key_added`` their names begin with it.
    ``scanpy.tl.umap``, ``leiden``, ``louvain``, ``diffmap`` and ``paga`` go on from there.

    Args:
        adata: An AnnData object.
        manifold: Where the codes lie.
        k: Neighbours of each cell, itself not counted. scanpy counts it: its ``n_neighbors`` is
            ``k + 1``.
        rep: Where the codes are: ``adata.obsm[rep]``, or ``"X"``.
        key_added: As scanpy's.
        options: Others of :meth:`riemae.Manifold.neighbors`, such as ``rtol`` and ``progress``.

    Returns:
        The neighbours, with errors and certificates.

    Raises:
        DTypeError: When ``adata`` or ``manifold`` is something else.
        OptionError: When there are no such codes, or fewer cells than neighbours.
        ShapeError: When the codes have another dimension than the manifold.
        NotConvergedError: When a geodesic fails, unless ``throw=False``.
    """
    where = "interop.anndata.neighbors"
    _expect_cells(where, adata)
    if not isinstance(manifold, Manifold):
        hint = "Try model.manifold_, or Manifold(decoder)."
        raise DTypeError(where, "a riemae.Manifold", type(manifold).__name__, hint)
    codes = np.asarray(adata.X if rep == "X" else _found(where, "obsm", adata.obsm, rep))
    if codes.ndim != 2:
        hint = "One row for each cell."
        raise ShapeError(where, f"codes (n, m) in {rep}", str(codes.shape), hint)
    found = manifold.neighbors(codes, k, **options)  # type: ignore[arg-type]
    prefix = "" if key_added is None else f"{key_added}_"
    adata.obsp[f"{prefix}distances"] = found.to_scipy().astype(np.float64)
    adata.obsp[f"{prefix}connectivities"] = found.connectivities().astype(np.float32)
    adata.uns["neighbors" if key_added is None else key_added] = {
        "connectivities_key": f"{prefix}connectivities",
        "distances_key": f"{prefix}distances",
        # scanpy reads these again. Without a metric it takes the Euclidean one where it has to
        # place parts of the graph that are not connected.
        "params": {
            "n_neighbors": k + 1,
            "method": "umap",
            "use_rep": rep,
            "geodesic_rtol": found.rtol,
            "certified": float(found.certified.double().mean()),
        },
    }
    return found


def _expect_cells(where: str, adata: Any) -> None:
    """Something with the parts of an AnnData object.

    Raises:
        DTypeError: For anything else.
    """
    if not all(hasattr(adata, part) for part in _PARTS):
        raise DTypeError(
            where, "an AnnData object", type(adata).__name__, "Try anndata.AnnData(counts)."
        )


def _found(where: str, part: str, table: Any, name: str) -> Any:
    """An entry of an AnnData object.

    Raises:
        OptionError: When there is none of that name, with those that there are.
    """
    if name in table:
        return table[name]
    known = ", ".join(map(repr, table.keys())) or "nothing"
    raise OptionError(where, f"{name!r} in adata.{part}", known, "Call embed(adata, model) first.")
