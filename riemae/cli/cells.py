"""Results inside an AnnData file, where scanpy looks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from riemae.cli.output import replaced
from riemae.cli.points import Points
from riemae.cli.sources import open_cells
from riemae.exceptions import OptionError
from riemae.interop import anndata as of_cells
from riemae.manifold import Manifold
from riemae.solvers import Neighbors

ENDING = ".h5ad"
_CODES = "X_riemae"


def expect_cells(data: str, out: Path) -> None:
    """Refuse to write cells when the data are none.

    Args:
        data: Where they come from.
        out: Where the result goes.

    Raises:
        OptionError: When one ends in h5ad and the other does not.
    """
    if out.suffix == ENDING and Path(data).suffix.lower() != ENDING:
        hint = "Choose another ending for --out."
        raise OptionError("--out", "DATA in h5ad for a result in h5ad", repr(data), hint)


def write_codes(path: Path, data: str, points: Points) -> Path:
    """A copy of the data with the codes of the cells in ``obsm["X_riemae"]``.

    Args:
        path: Of the copy.
        data: The file of the cells.
        points: Their codes.
    """
    adata = open_cells(Path(data))
    adata.obsm[_CODES] = _codes(points, adata.n_obs)
    with replaced(path) as part:
        adata.write_h5ad(part)
    return path


def write_neighbors(
    path: Path,
    data: str,
    points: Points,
    manifold: Manifold,
    k: int,
    rtol: float | None,
    candidates: int | None,
    progress: Callable[[int, int], None],
) -> Neighbors:
    """A copy of the data with geodesic neighbours, as ``scanpy.pp.neighbors`` writes them.

    Args:
        path: Of the copy.
        data: The file of the cells.
        points: Their codes.
        manifold: Where the codes lie.
        k: Neighbours of each cell.
        rtol: Relative accuracy of the distances.
        candidates: Geodesics solved for a cell at most.
        progress: Called with (cells done, cells in all).
    """
    adata = open_cells(Path(data))
    adata.obsm[_CODES] = _codes(points, adata.n_obs)
    found = of_cells.neighbors(
        adata,
        manifold,
        k,
        rtol=rtol,
        candidates=candidates,
        throw=False,
        progress=progress,
    )
    with replaced(path) as part:
        adata.write_h5ad(part)
    return found


def _codes(points: Points, count: int) -> np.ndarray:
    """Codes of all cells.

    Raises:
        OptionError: When some of the cells were left out.
    """
    if len(points) != count:
        hint = "Choose another ending for --out."
        raise OptionError("--out", f"codes of all {count} cells", f"{len(points)}", hint)
    return points.codes.to("cpu", torch.float64).numpy()
