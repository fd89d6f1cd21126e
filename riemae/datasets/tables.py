"""Tables of counts with a known latent structure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from riemae.datasets.base import Dataset, Seed, as_dtype, seeded_generator
from riemae.exceptions import OptionError


def counts(
    n: int = 500,
    genes: int = 20,
    depth: float = 10.0,
    seed: Seed = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Poisson counts ``(n, genes)`` with rates on a smooth surface of two coordinates, as of cells
    along two programs.

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
            "",
        )
    generator = seeded_generator(seed)
    loading = torch.randn(2, genes, generator=generator, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(genes, generator=generator, dtype=torch.float64)

    def rate(z: Tensor) -> Tensor:
        return depth * (z @ loading.to(z) + phase.to(z)).sin().exp()

    z, test_z = (
        2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1 for _ in range(2)
    )
    clean = rate(z)
    x = torch.poisson(clean, generator=generator)
    bounds = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    return as_dtype(dtype, x, clean, z, rate(test_z), test_z, rate, bounds)
