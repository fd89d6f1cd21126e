"""Parts of a loss: weighted terms, and what a variant changes in the plain autoencoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from riemae.autoencoders import encoder_losses, graph_losses, losses
from riemae.autoencoders.optimization import Factor, as_factor
from riemae.autoencoders.priors import check_prior
from riemae.exceptions import OptionError
from riemae.numerics.checks import expect_range
from riemae.numerics.reach import copied

Loss = Callable[..., Any]
# Relative ridge of curvature terms in training, so that a metric that is nearly singular for a few
# steps does not end it. Values change by about 1e-4 × condition number.
RIDGE = 1e-4


@dataclass(frozen=True)
class Term:
    """A weighted geometric loss.

    Args:
        weight: Relative to the fraction of unexplained deviance.
        loss: A function of your own that returns one number, or None for the loss of
            :mod:`riemae.autoencoders` that has the name of the term. It gets what its parameters
            name, such as ``(manifold, z, x, encoder)``; all names are in
            :mod:`riemae.autoencoders.wants`. A torch module is a loss with parameters of its own;
            a copy of it is trained with the networks. A loss with a method ``fitted`` is replaced
            by ``fitted(x)`` of the training data before training.
        options: Further arguments of the loss, such as ``{"probes": 2}``.
        power: The power of 1/length that is the unit of the loss: 2 for the extrinsic, 4 for the
            squared intrinsic curvature.
        schedule: How the weight changes in training: ``"linear"`` rises to the whole weight over
            the first half, ``"cosine"`` over the whole of it, ``"cyclical"`` four times; a function
            of the progress of the training, from 0 to 1, returns a factor; None is constant.
    """

    weight: float
    loss: Loss | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    power: int | None = None
    schedule: str | Factor | None = None


# The losses known by name: function, options in training, power of 1/length.
# A class makes a loss with a state from the options.
KNOWN: dict[str, tuple[Loss, dict[str, Any], int]] = {
    "relaxed_distortion": (losses.relaxed_distortion, {"mixup": 0.2}, 0),
    "conformal_distortion": (losses.conformal_distortion, {"mixup": 0.2}, 0),
    "extrinsic_curvature": (losses.extrinsic_curvature, {"ridge": RIDGE}, 2),
    "intrinsic_curvature": (losses.intrinsic_curvature, {"ridge": RIDGE}, 4),
    "contraction": (losses.contraction, {"probes": 1}, 0),
    "encoder_isometry": (encoder_losses.encoder_isometry, {}, 0),
    "jacobian_matching": (encoder_losses.jacobian_matching, {}, 0),
    "bi_lipschitz": (encoder_losses.bi_lipschitz, {}, 0),
    "absolute_isometry": (encoder_losses.AbsoluteIsometry, {}, 0),
    "topology": (encoder_losses.topology, {}, 0),
    "temporal_straightening": (encoder_losses.TemporalStraightening, {}, 0),
    "distance_matching": (graph_losses.DistanceMatching, {}, 0),
    "separation": (graph_losses.Separation, {}, 0),
    "embedding_pull": (graph_losses.EmbeddingPull, {}, 0),
}


@dataclass(frozen=True)
class Variation:
    """What a kind of autoencoder changes in the plain one.

    Attributes:
        corruption: Standard deviation of the noise on the encoder's input, in units of the data's.
        contraction: Weight of :func:`~riemae.autoencoders.losses.contraction`.
        beta: Weight of the Kullback-Leibler term, or None when codes are not distributions.
        beta_schedule: How ``beta`` changes in training; see :class:`Term`.
        prior: Of the codes, ``"normal"``, ``"mixture"`` or ``"vamp"``, where ``beta`` is a number.
        components: Of a prior that is a mixture.
        noise: Standard deviation of the likelihood in the variational squared error, in units of
            the data's.
        order: Of the expansion in the neighbourhood reconstruction, or None for no neighbours.
        neighbor_weight: Weight of the neighbours relative to the centres.
        kernel: ``(x', x) -> (k,)``, by which each neighbour's weight is multiplied; a number is
            the bandwidth of a Gaussian of their distance, in units of the data's extent; None is 1.
    """

    corruption: float = 0.0
    contraction: float = 0.0
    beta: float | None = None
    beta_schedule: str | Factor | None = None
    prior: str = "normal"
    components: int = 10
    noise: float = 0.1
    order: Literal[1, 2] | None = None
    neighbor_weight: float = 1.0
    kernel: float | Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        where = "autoencoder"
        for name in ("corruption", "contraction", "beta", "neighbor_weight"):
            value = getattr(self, name)
            if value is not None:
                expect_range(where, name, value, 0, hint="It is a weight or a size: try 0.")
        expect_range(where, "noise", self.noise, 0, above=True, hint="Try noise=0.1.")
        as_factor(where, self.beta_schedule)
        check_prior(where, self.prior, self.components)
        if self.kernel is not None and not callable(self.kernel):
            hint = "Give a bandwidth, a function (x', x) -> (k,), or None."
            expect_range(where, "kernel", self.kernel, 0, above=True, hint=hint)
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
        hint = "Give a number, or riemae.autoencoders.Term(weight, loss=…)."
        raise OptionError("terms", f"a weight or a Term for {name!r}", repr(term), hint)
    hint = "Losses are minimised: give a number that is not negative, and Term(schedule=…) for one"
    hint += " that changes."
    expect_range("terms", f"weight of {name!r}", term.weight, 0, hint=hint)
    as_factor(f"terms[{name!r}]", term.schedule)
    if term.loss is not None:
        own = copied(term.loss) if isinstance(term.loss, nn.Module) else term.loss
        return replace(term, loss=own)
    if name not in KNOWN:
        hint = "Give a loss of your own as Term(weight, loss=…)."
        raise OptionError("terms", f"one of {', '.join(KNOWN)}", repr(name), hint)
    loss, options, power = KNOWN[name]
    options = {**options, **term.options}
    if isinstance(loss, type):
        # A loss with a state, which its options set up.
        loss = loss(**options)
        options = {}
    power = power if term.power is None else term.power
    return replace(term, loss=loss, options=options, power=power)


def fitted(term: Term, data: Tensor, extent: Tensor) -> Term:
    """The term with what its loss takes from the training data, where it takes anything.

    Args:
        term: The term.
        data: ``(n, *shape)``.
        extent: Their mean squared distance from the mean under the ambient metric, which a loss
            gets whose ``fitted`` has a parameter of this name.
    """
    fit = getattr(term.loss, "fitted", None)
    if fit is None:
        return term
    asked = "extent" in inspect.signature(fit).parameters
    found = fit(data, extent=extent) if asked else fit(data)
    return replace(term, loss=found)


def without_ridge(term: Term) -> Term:
    """The term without its default ridge, for metrics whose curvature needs no inverse."""
    if term.loss is not losses.intrinsic_curvature or term.options.get("ridge") != RIDGE:
        return term
    return replace(term, options={**term.options, "ridge": 0.0})
