"""Families that have no closed form here: what torch knows of a distribution's class."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from riemae.distributions.family import Family, Params, odds_form
from riemae.distributions.numerical import Divergence, Quantiles, Score, unvalidated
from riemae.exceptions import DecoderError
from riemae.numerics.random import seeded

# What torch raises where a distribution has no such method, or a broken one.
_FAILURES = (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError)


def arguments_of(distribution: td.Distribution) -> dict[str, Any]:
    """What a distribution of an unknown class was built from, by the names of its constructor."""
    form = odds_form(distribution)  # before anything asks for the other
    names = [
        name
        for name in inspect.signature(type(distribution).__init__).parameters
        if hasattr(distribution, name)
    ]
    if {"probs", "logits"} <= set(names):
        names.remove("probs" if form == "logits" else "logits")
    if "scale_tril" in names:
        names = [name for name in names if name not in ("covariance_matrix", "precision_matrix")]
    found = {name: getattr(distribution, name) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, (Tensor, float, int))}


_GENERIC: dict[tuple[Callable[..., Any], tuple[str, ...]], Family] = {}


def family_by_torch(distribution: td.Distribution, p: Params, constants: dict[str, Any]) -> Family:
    """The family of a class without a closed form, by what torch knows of it.

    Raises:
        DecoderError: When it cannot be built from its parameters.
    """
    kind: Callable[..., Any] = type(distribution)
    key = (kind, tuple(p))
    if key not in _GENERIC:
        # Transforms that differ tell a divergence between transformed distributions from one of
        # their parameters.
        nearby = {name: value.detach() * 1.001 for name, value in p.items()}
        with unvalidated(), torch.no_grad():
            try:
                other = kind(**nearby, **constants)
            except TypeError as reason:
                given = ", ".join((*p, *constants)) or "its arguments"
                raise DecoderError(
                    "Manifold",
                    f"a distribution that can be built from {given}",
                    f"{type(distribution).__name__}: {reason}",
                    "Its constructor's arguments must be its attributes, or teach its Fisher "
                    "information: ambient.register_family.",
                ) from reason
            method = _method(distribution, other, next(iter(p.values())).device)
        _GENERIC[key] = method(type(distribution).__name__, kind, tuple(p))
    return _GENERIC[key]


def _method(
    distribution: td.Distribution, nearby: td.Distribution, device: torch.device
) -> type[Family]:
    """What torch knows of a distribution: its divergence, its quantiles, or its density alone.

    Raises:
        DecoderError: When it does not know its density either, or cannot draw from it.
    """
    # Not all that torch has works: some divergences need a graph, some quantiles are of another
    # shape.
    with contextlib.suppress(*_FAILURES):
        td.kl_divergence(distribution, nearby)
        return Divergence
    with contextlib.suppress(*_FAILURES):
        nearby.icdf(torch.tensor(0.5))
        return Quantiles
    try:
        with seeded(device, 0):
            nearby.log_prob(nearby.sample())
    except _FAILURES as reason:
        raise DecoderError(
            "Manifold",
            "distributions whose density and draws torch knows",
            f"{type(distribution).__name__}: {type(reason).__name__}: {reason}",
            "Teach its Fisher information: ambient.register_family.",
        ) from reason
    return Score
