"""Parts of a loss: weighted terms, and what a variant changes in the plain autoencoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from riemae.autoencoders import losses
from riemae.exceptions import OptionError
from riemae.numerics.checks import expect_range

Loss = Callable[..., Tensor]
# Relative ridge of curvature terms in training, so that a metric that is nearly singular for a few
# steps does not end it. Values change by about 1e-4 × condition number.
RIDGE = 1e-4


@dataclass(frozen=True)
class Term:
    """A weighted geometric loss.

    Args:
        weight: Relative to the fraction of unexplained deviance.
        loss: A function ``(manifold, z) -> ()`` of your own, or None for the function of
            :mod:`riemae.autoencoders.losses` that has the name of the term. A loss with an argument
            ``generator`` gets one. A loss with an argument ``decoded`` may be called with
            ``decoded=True`` and then returns ``(loss, f(z))``, so that the reconstruction needs no
            decoder pass of its own.
        options: Further arguments of the loss, such as ``{"probes": 2}``.
        power: The power of 1/length that is the unit of the loss: 2 for the extrinsic, 4 for the
            squared intrinsic curvature.
    """

    weight: float
    loss: Loss | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    power: int | None = None


# The losses known by name: function, options in training, power of 1/length.
KNOWN: dict[str, tuple[Loss, dict[str, Any], int]] = {
    "relaxed_distortion": (losses.relaxed_distortion, {"mixup": 0.2}, 0),
    "conformal_distortion": (losses.conformal_distortion, {"mixup": 0.2}, 0),
    "extrinsic_curvature": (losses.extrinsic_curvature, {"ridge": RIDGE}, 2),
    "intrinsic_curvature": (losses.intrinsic_curvature, {"ridge": RIDGE}, 4),
}


@dataclass(frozen=True)
class Variation:
    """What a kind of autoencoder changes in the plain one.

    Attributes:
        corruption: Standard deviation of the noise on the encoder's input, in units of the data's.
        contraction: Weight of :func:`~riemae.autoencoders.losses.contraction`.
        beta: Weight of the Kullback-Leibler term, or None when codes are not distributions.
        noise: Standard deviation of the likelihood in the variational squared error, in units of
            the data's.
        order: Of the expansion in the neighbourhood reconstruction, or None for no neighbours.
        neighbor_weight: Weight of the neighbours relative to the centres.
    """

    corruption: float = 0.0
    contraction: float = 0.0
    beta: float | None = None
    noise: float = 0.1
    order: Literal[1, 2] | None = None
    neighbor_weight: float = 1.0

    def __post_init__(self) -> None:
        where = "autoencoder"
        for name in ("corruption", "contraction", "beta", "neighbor_weight"):
            value = getattr(self, name)
            if value is not None:
                expect_range(where, name, value, 0, hint="It is a weight or a size: try 0.")
        expect_range(where, "noise", self.noise, 0, above=True, hint="Try noise=0.1.")
        if self.order not in (None, 1, 2):
            hint = "1 expands the decoder linearly, 2 quadratically."
            raise OptionError("NRAE", "order 1 or 2", repr(self.order), hint)


def resolved(name: str, term: float | Term) -> Term:
    """A term with its loss, options and units.

    Raises:
        OptionError: For an unknown name without a loss, a negative weight, or anything but a weight
            or a Term.
    """
    if isinstance(term, int | float) and not isinstance(term, bool):
        term = Term(float(term))
    if not isinstance(term, Term):
        hint = "Give a number, or riemae.autoencoders.Term(weight, …)."
        raise OptionError("terms", f"a weight or a Term for {name!r}", repr(term), hint)
    if not term.weight >= 0:
        hint = "Losses are minimised: give a weight that is not negative."
        raise OptionError("terms", f"a weight of at least 0 for {name!r}", str(term.weight), hint)
    if term.loss is not None:
        return term
    if name not in KNOWN:
        hint = "Give a loss of your own as Term(weight, loss=…)."
        raise OptionError("terms", f"one of {', '.join(KNOWN)}", repr(name), hint)
    loss, options, power = KNOWN[name]
    power = power if term.power is None else term.power
    return Term(term.weight, loss, {**options, **term.options}, power)


def without_ridge(term: Term) -> Term:
    """The term without its default ridge, for metrics whose curvature needs no inverse."""
    if term.loss is not losses.intrinsic_curvature or term.options.get("ridge") != RIDGE:
        return term
    return replace(term, options={**term.options, "ridge": 0.0})


def takes(loss: Loss | None, name: str) -> bool:
    """Whether a loss has an argument of this name."""
    return loss is not None and name in inspect.signature(loss).parameters
