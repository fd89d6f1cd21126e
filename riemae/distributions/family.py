"""A family of distributions as the geometry sees it: names, feature map, Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.func import vjp

from riemae.numerics.threads import jvp

# Parameters of one distribution by name; the first axis is the batch.
Params = dict[str, Tensor]
Free = frozenset[str]


class Family:
    """One family.

    A subclass gives :meth:`features`, or :meth:`product`, or both where it depends on what is
    fixed.

    Attributes:
        name: What ``FisherRao`` calls it.
        distribution: The class in ``torch.distributions`` that is built from ``names``.
        names: Parameters in the order in which a decoder's output holds them.
        support_parameters: Parameters that the support depends on, such as a number of trials; they
            have no Fisher information.
        event: Axes that one variable takes in its parameters, beyond the batch.
        needs_float64: Whether float32 is not enough for :meth:`product`, because it cancels.
    """

    names: tuple[str, ...]
    support_parameters: Free = frozenset()
    event: int = 0
    needs_float64: bool = False

    def __init__(self, name: str, distribution: Callable[..., Any], names: tuple[str, ...]) -> None:
        self.name = name
        self.distribution = distribution
        self.names = names

    def __repr__(self) -> str:
        return self.name

    def read(self, distribution: Any) -> dict[str, Any]:
        """Parameters of a distribution of this family, by name."""
        return {name: getattr(distribution, name) for name in self.names}

    def unknown(self, constants: Iterable[str]) -> tuple[str, ...]:
        """The parameters that are not among the constants, in order."""
        fixed = frozenset(constants)
        return tuple(name for name in self.names if name not in fixed)

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return True

    def features(self, p: Params, free: Free) -> Tensor:  # -> (k, ...)
        """The feature map φ, where :meth:`has_feature_map` says that there is one."""
        raise NotImplementedError

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter; by default from the feature map."""
        free = frozenset(v)

        def features(q: Params) -> Tensor:
            return self.features({**p, **q}, free)

        point = {name: p[name] for name in v}
        pushed = jvp(features, (point,), (v,))[1]
        return vjp(features, point)[1](pushed)[0]

    def is_diagonal(self, free: Free) -> bool:
        """Whether :meth:`diagonal` gives all of H when only ``free`` parameters vary."""
        return False

    def diagonal(self, p: Params, free: Free) -> Params:
        """The diagonal of ``H(p)``, one entry per free parameter, where :meth:`is_diagonal`."""
        raise NotImplementedError

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:  # -> (k,)
        """Squared Fisher-Rao distance, the sum over all variables.

        None if unknown. By default the chord of the feature map.
        """
        if not self.has_feature_map(free):
            return None
        difference = self.features(q, free) - self.features(p, free)
        return difference.flatten(1).square().sum(-1)


class DiagonalFamily(Family):
    """Families whose parameters are orthogonal: H is diagonal.

    A subclass gives :meth:`diagonal`, and may say in :meth:`is_diagonal` when that is not all.
    """

    def is_diagonal(self, free: Free) -> bool:
        """Whether :meth:`diagonal` gives all of H when only ``free`` parameters vary."""
        return True

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        weights = self.diagonal(p, frozenset(v))
        return {name: weights[name] * tangent for name, tangent in v.items()}


def odds_form(distribution: Any) -> str:
    """Whether a distribution was built from ``"logits"`` or ``"probs"``.

    Torch computes the other when it is asked.
    """
    owner = getattr(distribution, "_categorical", distribution)
    logits = vars(owner).get("logits")
    built_from_logits = logits is not None and getattr(owner, "_param", logits) is logits
    return "logits" if built_from_logits else "probs"


class OddsFamily(Family):
    """Families that torch builds from ``logits`` or from ``probs``; the decoder's choice is kept.

    With logits, probabilities 0 and 1 are only reached at infinity, and nothing is lost near them.
    """

    def read(self, distribution: Any) -> dict[str, Any]:
        """Parameters of a distribution of this family, by name."""
        form = odds_form(distribution)
        names = [form if name == "logits" else name for name in self.names]
        return {name: getattr(distribution, name) for name in names}
