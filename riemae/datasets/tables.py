"""Tables of counts with a known latent structure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from riemae.datasets.base import Dataset, Source, as_dtype
from riemae.exceptions import OptionError
from riemae.numerics.random import as_generator


def counts(
    n: int = 500,
    genes: int = 20,
    depth: float = 10.0,
    generator: Source = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Poisson counts ``(n, genes)``, as of cells along two programs.

    The rates lie on a smooth surface of two coordinates,
    ``rate_g = depth · exp(sin(a_g·z + φ_g))`` with random loadings ``a_g`` and phases. ``x`` are
    counts (as floats), ``clean`` the rates. Coordinates are uniform in [−1, 1]².

    Raises:
        OptionError: For no cells, no genes, or a depth that is not positive.
    """
    if n < 1 or genes < 1 or not depth > 0:
        raise OptionError(
            "counts",
            "n and genes of at least 1, depth > 0",
            f"n={n}, genes={genes}, depth={depth}",
            "Try counts(n=500, genes=20, depth=10.0).",
        )
    source = as_generator("datasets.counts", generator)
    loading = torch.randn(2, genes, generator=source, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(genes, generator=source, dtype=torch.float64)

    def rate(z: Tensor) -> Tensor:
        return depth * (z @ loading.to(z) + phase.to(z)).sin().exp()

    z = 2 * torch.rand(n, 2, generator=source, dtype=torch.float64) - 1
    test_z = 2 * torch.rand(n, 2, generator=source, dtype=torch.float64) - 1
    clean = rate(z)
    x = torch.poisson(clean, generator=source)
    bounds = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    return as_dtype(dtype, x, clean, z, rate(test_z), test_z, rate, bounds)
