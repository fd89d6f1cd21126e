"""Which parameters of a decoder's distributions vary with the point."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from riemae.distributions.layout import (
    AnyLayout,
    EnsembleLayout,
    Layout,
    distributions,
    parameters,
)


def varying_parameters(output: Any, points: Tensor) -> list[set[str]]:
    """Names of the parameters that vary, for each of a decoder's distributions.

    Args:
        output: What the decoder returned for ``points``, with its graph.
        points: Points that require gradients.
    """
    return [_varying(distribution, points) for distribution in distributions(output)]


def with_fixed(layout: AnyLayout | None, free: list[set[str]]) -> AnyLayout | None:
    """A layout that knows which parameters are fixed: all but the free ones of each head."""
    if layout is None:
        return None
    if not isinstance(layout, EnsembleLayout):
        return _heads_with_fixed(layout, free)
    if layout.member is None:
        return layout
    size = len(layout.member.heads)
    # A parameter varies where it does in one member.
    of_heads = [set.union(*free[i::size]) for i in range(size)]
    member = _heads_with_fixed(layout.member, of_heads)
    return replace(layout, member=member)


def _varying(distribution: Distribution, points: Tensor) -> set[str]:
    """Names of the parameters, and ``"support"``, that autograd can trace back to the points."""
    named = parameters(distribution).items()
    free = {name for name, value in named if _reaches(value, points)}
    if any(_reaches(bound, points) for bound in _bounds(distribution)):
        free.add("support")
    return free


def _reaches(value: Any, points: Tensor) -> bool:
    """Whether there is a path from a value to the points in autograd's graph."""
    if not isinstance(value, Tensor) or not value.requires_grad:
        return False
    total = value.sum()
    (slope,) = torch.autograd.grad(total, points, retain_graph=True, allow_unused=True)
    return slope is not None


def _bounds(distribution: Distribution) -> Iterable[Any]:
    """What a distribution's support is made of; nothing where it has none."""
    try:
        support = distribution.support
    except NotImplementedError:
        return ()
    return () if support is None else vars(support).values()


def _heads_with_fixed(layout: Layout, free: list[set[str]]) -> Layout:
    heads = []
    for head, names in zip(layout.heads, free, strict=True):
        fixed = frozenset(head.names) - names
        heads.append(replace(head, fixed=fixed, moving_support="support" in names))
    return replace(layout, heads=tuple(heads))
