"""Models of scvi-tools: what they decode is the distribution of each gene's counts.

The geometry is that of the counts' Fisher information, for negative binomials, zero-inflated ones
and Poisson counts. scvi-tools itself is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riemae.exceptions import OptionError
from riemae.interop.frozen import frozen
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_range

__all__ = ["manifold"]

_WHERE = "interop.scvi.manifold"


def manifold(
    model: Any,
    batch: str | int | None = None,
    library: float | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Manifold:
    """The manifold of counts that a trained model of scvi-tools decodes from its latent space.

    All codes are decoded for one batch and one library size, so that neither adds to distances.

    Args:
        model: A trained ``scvi.model.SCVI``, or another model whose ``module.generative`` takes
            ``z``, ``library`` and ``batch_index`` and returns a distribution as ``"px"``. Its
            networks are copied, in evaluation mode.
        batch: Name or number of the batch; by default the first one.
        library: Counts of a cell in all; by default the median of the cells that the model was set
            up with.
        covariates: Other arguments of ``generative``, one row each, such as ``cont_covs`` of shape
            ``(1, c)``.
        options: Others of :class:`~riemae.Manifold`, such as ``ambient``.

    Returns:
        The manifold; its codes are those of ``model.get_latent_representation()``.

    Raises:
        DTypeError: When the model has no such module.
        OptionError: For an unknown batch, or a library size that is not positive.
    """
    module = frozen(
        _WHERE, getattr(model, "module", None), "a trained model of scvi-tools", "generative"
    )
    if library is None:
        library = _median_library(model)
    expect_range(_WHERE, "library", library, 0, above=True)
    decoder = _Counts(module, _number(model, batch), math.log(library), dict(covariates or {}))
    options.setdefault("latent_dim", getattr(module, "n_latent", None))
    return Manifold(decoder, **options)


class _Counts(nn.Module):
    """Codes to distributions of counts, under one batch and one library size."""

    def __init__(
        self, module: nn.Module, batch: int, log_library: float, covariates: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self.module = module
        self.batch = batch
        self.log_library = log_library
        self.covariates = covariates

    def forward(self, z: Tensor) -> Any:  # (k, m)
        count = len(z)
        rows = {name: x.to(z.device).expand(count, -1) for name, x in self.covariates.items()}
        generate: Any = self.module.generative
        found = generate(
            z=z,
            library=z.new_full((count, 1), self.log_library),
            batch_index=torch.full((count, 1), self.batch, device=z.device),
            **rows,
        )
        return found["px"]


def _median_library(model: Any) -> float:
    """The median of the cells' counts.

    Raises:
        OptionError: When the model has no data any more.
    """
    manager = getattr(model, "adata_manager", None)
    if manager is None:
        hint = "Pass library=1e4, or a cell's counts in all."
        raise OptionError(_WHERE, "library, or a model with its data", "neither", hint)
    counts = manager.get_from_registry("X")
    return float(np.median(np.asarray(counts.sum(1))))


def _number(model: Any, batch: str | int | None) -> int:
    """The number of a batch.

    Raises:
        OptionError: When there is none of that name.
    """
    if batch is None:
        return 0
    manager = getattr(model, "adata_manager", None)
    if manager is None:
        expect_range(_WHERE, "batch", batch, 0, integer=True, hint="Without data, give a number.")
        return int(batch)
    names = np.asarray(manager.get_state_registry("batch").categorical_mapping).tolist()
    if batch in names and not isinstance(batch, bool):
        return names.index(batch)
    if isinstance(batch, int) and not isinstance(batch, bool) and 0 <= batch < len(names):
        return batch
    known = ", ".join(map(repr, names))
    raise OptionError(_WHERE, f"batch among {known}", repr(batch), "Give one of these names.")
