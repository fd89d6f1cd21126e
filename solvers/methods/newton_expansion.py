"""The expansions that a Newton step works with: new, without second derivatives, or remembered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.energy import Expansion
from riemae.solvers.hooks import energy_and_gradient
from riemae.solvers.linear import BlockTridiagonal
from riemae.solvers.model import Look
from riemae.solvers.space import Space
from riemae.solvers.state import PathState, on_host, placed


def expand(space: Space, state: PathState, carried: np.ndarray, fresh: np.ndarray) -> Expansion:
    """The expansions of all curves, in their order.

    Args:
        space: The space.
        state: ``p`` curves.
        carried: ``(p,)`` bool: the curve is expanded about the matrix that it has.
        fresh: ``(p,)`` bool: with second derivatives. All other curves get Gauss-Newton's matrix.
    """
    looks = ((carried, _remembered), (fresh, _full), (~(carried | fresh), _gauss_newton))
    for rows, look in looks:
        if rows.all():
            return look(space, state)
    groups = [(rows.nonzero()[0], look) for rows, look in looks]
    parts = [look(space, state.select(rows)) for rows, look in groups if len(rows)]
    order = np.concatenate([rows for rows, _ in groups]).argsort()
    whole = Expansion.cat([_completed(part) for part in parts])
    return whole.select(placed(order, state.nodes))


def _full(space: Space, state: PathState) -> Expansion:
    return space.expand(state.nodes, True)


def _gauss_newton(space: Space, state: PathState) -> Expansion:
    return space.expand(state.nodes, False)


def _remembered(space: Space, state: PathState) -> Expansion:
    """Energy and gradient of the present nodes, with the matrices of earlier ones."""
    energy, gradient = energy_and_gradient(space, state.nodes)
    noise = placed(state.book["noise"].copy(), energy).to(energy.dtype)
    return Expansion(
        energy=energy,
        gradient=gradient,
        gauss_newton=BlockTridiagonal(state.tangents, state.crossings),
        correction=BlockTridiagonal(state.diagonal, state.upper),
        noise=noise,
        scalable=bool(state.book["scalable"].all()),
        separate=bool(state.book["separate"].all()),
    )


def _completed(expansion: Expansion) -> Expansion:
    """With a correction of 0 where there is none, so that it can be joined to others."""
    if expansion.correction is not None:
        return expansion
    return replace(expansion, correction=expansion.gauss_newton.scaled(0.0))


def sound(expansion: Expansion, unseen: np.ndarray) -> tuple[Look, np.ndarray]:
    """Curves with NaN or infinity get harmless numbers, so that the others can go on.

    Args:
        expansion: Of ``p`` curves.
        unseen: As in :meth:`Look.at`.

    Returns:
        A look at the expansion, and which curves ``(p,)`` are finite.
    """
    look = Look.at(expansion, unseen)
    if look.finite:
        return look, np.ones(len(unseen), dtype=bool)
    energy, *parts = expansion.parts
    finite = energy.isfinite()
    for part in parts:
        finite = finite & part.flatten(1).isfinite().all(1)
    found = on_host(finite)
    if found.all():
        return look, found
    return Look.at(_harmless(expansion, finite), unseen), found


def _harmless(expansion: Expansion, finite: Tensor) -> Expansion:
    gn = expansion.gauss_newton
    unit = torch.eye(gn.diagonal.shape[-1]).to(gn.diagonal).expand_as(gn.diagonal)
    identity = BlockTridiagonal(unit, torch.zeros_like(gn.upper))
    correction = expansion.correction
    return replace(
        expansion,
        energy=torch.where(finite, expansion.energy, 1.0),
        gradient=torch.where(finite[:, None, None], expansion.gradient, 0.0),
        gauss_newton=gn.where(finite, identity),
        correction=None if correction is None else correction.where(finite, identity),
        noise=torch.where(finite, expansion.noise, 0.0),
    )
