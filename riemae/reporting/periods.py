"""Latent coordinates that come round: where codes are drawn, and the short way between two."""

from __future__ import annotations

import torch
from torch import Tensor

from riemae.geometry.latent import Periodic
from riemae.manifold import Manifold

Periods = tuple[float | None, ...]


def periods_of(M: Manifold, m: int) -> Periods:
    """The period of each of m latent coordinates, None for those without."""
    return M.latent.periods if isinstance(M.latent, Periodic) else (None,) * m


def drawn_once(M: Manifold, z: Tensor) -> Tensor:  # (n, m) -> (n, m)
    """The same codes within one period.

    Coordinates that span no more than a period stay; others go to [−period/2, period/2).
    """
    if not isinstance(M.latent, Periodic):
        return z
    span = z.amax(0) - z.amin(0)
    period = torch.tensor([p or torch.inf for p in M.latent.periods]).to(span)
    return torch.where(span <= period, z, M.latent.wrap(z))


def short_way(M: Manifold, way: Tensor) -> Tensor:  # (*b, m) -> (*b, m)
    """Differences of codes, in each periodic coordinate by the shorter of the ways round."""
    return M.latent.wrap(way) if isinstance(M.latent, Periodic) else way
