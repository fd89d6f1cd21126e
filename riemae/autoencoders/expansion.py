"""How far a decoder's local expansions are from the neighbours that they predict."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor

from riemae.ambient import Euclidean
from riemae.exceptions import ShapeError
from riemae.geometry.latent import Periodic
from riemae.manifold import Manifold


def neighborhood_errors(
    M: Manifold,
    z: Tensor,
    z_neighbor: Tensor,
    x_neighbor: Tensor,
    *,
    order: Literal[1, 2] = 1,
    x: Tensor | None = None,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor | None, Tensor]:  # -> (k,) or None, (k,)
    """Errors of centres and of neighbours, per point.

    The arguments are those of :func:`~riemae.autoencoders.losses.neighborhood_reconstruction`.

    Args:
        M: The manifold.
        z: Codes of the centres.
        z_neighbor: Codes of one neighbour of each centre.
        x_neighbor: These neighbours ``(k, *shape)``.
        order: Of the expansion.
        x: The centres ``(k, *shape)``, or None, for no errors of centres.
        distance: ``(f̃, x') -> (k,)``; by default the squared norm under the ambient metric.

    Raises:
        ShapeError: When the numbers of centres, neighbours and codes differ.
    """
    same_codes = z.ndim == 2 and z.shape == z_neighbor.shape
    same_count = len(x_neighbor) == len(z) and (x is None or len(x) == len(z))
    if not same_codes or not same_count:
        raise ShapeError(
            "neighborhood_reconstruction",
            "codes (k, m) of k centres and of one neighbour each, and k neighbours",
            f"{tuple(z.shape)}, {tuple(z_neighbor.shape)} and {len(x_neighbor)}",
            "Repeat a centre to give it several neighbours.",
        )
    away = z_neighbor - z
    if isinstance(M.latent, Periodic):
        away = M.latent.wrap(away)  # the short way round
    terms = M.taylor(z, away, order)
    measure = distance or partial(_ambient_square, M)
    center = None if x is None else measure(terms[0], x)
    prediction = sum(terms[1:], terms[0])
    return center, measure(prediction, x_neighbor)


def _ambient_square(
    M: Manifold, predicted: Tensor, true: Tensor
) -> Tensor:  # (k, D), (k, *shape) -> (k,)
    flat = true.flatten(1)
    difference = flat - predicted
    if isinstance(M.ambient, Euclidean):
        return difference.square().sum(-1)
    place = true if M.ambient.has_features else flat
    return M.ambient.squared_norm(place, difference)
