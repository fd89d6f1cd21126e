"""The Fisher-Rao metric: distances between what a decoder says about the data, not between its
numbers.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor

from riemae.ambient.base import AmbientMetric
from riemae.distributions.closed_form import NAMED
from riemae.distributions.family import Family, Params
from riemae.distributions.layout import AnyLayout, Head, Layout
from riemae.distributions.numerical import Divergence, Quantiles, Score
from riemae.distributions.registry import Registered
from riemae.exceptions import AmbientError, ApproximationWarning, FallbackWarning, stack_level

# Families whose parameters are matrices: a flat tensor does not say of which size.
_MATRICES = {"multivariate_normal", "wishart", "lkj_cholesky"}


class FisherRao(AmbientMetric):
    """Fisher information of the distributions that a decoder returns, ``H = E[s sᵀ]`` with the
    score ``s = ∂ log p``.

    A decoder that returns ``torch.distributions`` objects needs no arguments: families are read
    from what it returns, ``Independent`` and several heads (a tuple or dict of distributions)
    included. All variables are taken as independent, as torch has them, and parameters that do not
    depend on z, such as a constant scale, as known. Other families than those of
    :mod:`riemae.distributions.closed_form` work too: by their divergence or quantiles where torch
    has them, announced by a :class:`~riemae.exceptions.FallbackWarning`; from fixed draws of the
    score elsewhere, announced by an :class:`~riemae.exceptions.ApproximationWarning`.

    A decoder that returns a tensor needs the family. Its output holds torch's parameters of that
    name, in the order of the table in :mod:`riemae.distributions.closed_form`, logits rather than
    probabilities; several are halves (thirds …) of the flattened output. Classes are on the last
    axis.

    Args:
        family: Name of a family, for decoders that return tensors.
        **constants: Parameters that the decoder does not return: numbers, or tensors that broadcast
            with its output.

    Raises:
        AmbientError: For an unknown family, or constants that are none of its parameters.

    Example:
        >>> import torch
        >>> from riemae import Manifold, ambient
        >>> decoder = lambda z: torch.distributions.Poisson(torch.cat([z.exp(), z.cosh()], -1))
        >>> Manifold(decoder, ambient=ambient.FisherRao()).metric(torch.zeros(1, 1))  # λ'²/λ, for λ = e^z and cosh z
        tensor([[[1.]]])
        >>> M = Manifold(lambda z: torch.cat([z, 0 * z], -1), ambient=ambient.FisherRao("normal", scale=0.5))
        >>> M.metric(torch.zeros(1, 1))  # μ'²/σ²
        tensor([[[4.]]])
    """

    _road = "product"

    def __init__(self, family: str | None = None, **constants: float | Tensor) -> None:
        super().__init__()
        self.family = _named(family, frozenset(constants)) if family is not None else None
        if self.family is None and constants:
            got = ", ".join(constants)
            raise AmbientError(
                "FisherRao",
                "a family together with constants",
                got,
                'Try FisherRao("normal", scale=1).',
            )
        self._constants = tuple(constants)
        for name, value in constants.items():
            tensor = (
                value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            )
            self.register_buffer(f"constant_{name}", tensor.detach().clone())
        self.layout: Layout | None = None
        self._shape: torch.Size | None = None
        if self.family is not None and self.family.flat(self._unknown):
            self._road = "features"

    def given_by(self) -> str:
        """See :class:`AmbientMetric`."""
        return self._road

    @property
    def foreign(self) -> bool:
        """Whether a user's function is at work in it, which has to earn trust."""
        families = (
            [self.family] if self.layout is None else [head.family for head in self.layout.heads]
        )
        return super().foreign or any(isinstance(family, Registered) for family in families)

    @property
    def _unknown(self) -> frozenset[str]:
        return frozenset(self.family.names if self.family is not None else ()) - set(
            self._constants
        )

    def bind(self, layout: AnyLayout | None, shape: torch.Size) -> FisherRao:
        """This metric for a decoder that returns these distributions.

        Raises:
            AmbientError: When they have no Fisher information, or are of another family than was
                named.

        Warns:
            FallbackWarning: When a family is known by its divergence only.
            ApproximationWarning: When it is known by its density only.
        """
        bound = copy.copy(self)
        bound._shape = shape
        if layout is None:
            if self.family is None:
                raise AmbientError(
                    "FisherRao",
                    "a decoder that returns torch distributions",
                    "one that returns a tensor",
                    'Return e.g. torch.distributions.Poisson(rate), or name the family: FisherRao("poisson").',
                )
            return bound
        assert isinstance(layout, Layout)
        if self.family is not None and any(
            head.family.name != self.family.name for head in layout.heads
        ):
            got = ", ".join(head.family.name for head in layout.heads)
            raise AmbientError(
                "FisherRao", f"the family {self.family}", got, "Leave it out: it is read."
            )
        for head in layout.heads:
            _check(head)
        bound.layout = layout
        bound._road = (
            "features" if all(head.family.flat(head.free) for head in layout.heads) else "product"
        )
        return bound

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, q)
        """Arc-length coordinates of all heads.

        Raises:
            AmbientError: When a family has none.
        """
        if self._road != "features":
            return super().features(x)
        return torch.cat(
            [head.family.features(p, head.free).flatten(1) for head, p in self._heads(x)], -1
        )

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``H(x) v``, head by head."""
        if self._road == "features":
            return super().product(x, v)
        heads = self._heads(x)
        parts = v.flatten(1).split([head.size for head, _ in heads], -1)
        out = []
        for (head, p), part in zip(heads, parts, strict=True):
            direction = {
                name: value for name, value in head.split(part).items() if name in head.free
            }
            out.append(head.join(_precisely(head.family, p, direction)))
        return torch.cat(out, -1)

    def distance(self, x0: Tensor, x1: Tensor) -> Tensor | None:  # (k, *shape), (k, *shape) -> (k,)
        """Fisher-Rao distance in the space of all parameters, in closed form.

        None where a family has none.
        """
        parts = [
            head.family.squared_distance(p, q, head.free)
            for (head, p), (_, q) in zip(self._heads(x0), self._heads(x1), strict=True)
        ]
        if any(part is None for part in parts):
            return None
        return torch.stack([part for part in parts if part is not None]).sum(0).sqrt()

    def _heads(self, x: Tensor) -> list[tuple[Head, Params]]:
        """Heads with their parameters at ``x``, constants included.

        Raises:
            AmbientError: When there is nothing to read the families from, or ``x`` does not hold
                their parameters.
        """
        if self.layout is not None:
            split = self.layout.split(x.flatten(1))
            return [
                (head, head.complete(p)) for head, p in zip(self.layout.heads, split, strict=True)
            ]
        if self.family is None:
            raise AmbientError(
                "FisherRao", "a family", "none", 'Name it, as in FisherRao("poisson").'
            )
        shape = (
            self._shape
            if self._shape is not None and self._shape.numel() == x[0].numel()
            else x.shape[1:]
        )
        names = tuple(name for name in self.family.names if name in self._unknown)
        if len(names) > 1:
            if shape.numel() % len(names):
                expected = f"data of {len(names)} n numbers, n for each of {', '.join(names)}"
                raise AmbientError(
                    "FisherRao",
                    expected,
                    f"{shape.numel()}",
                    "Fix some: FisherRao(family, scale=1).",
                )
            shape = torch.Size([shape.numel() // len(names)])
        head = Head(self.family, names, (shape,) * len(names))
        p = head.split(x.flatten(1))
        axes = len(shape) + 1 - self.family.event
        for name in self._constants:
            value = getattr(self, f"constant_{name}").to(x)
            p[name] = value.expand(p[names[0]].shape[:axes])
        return [(head, p)]

    def extra_repr(self) -> str:
        """The families."""
        if self.layout is not None:
            return ", ".join(head.family.name for head in self.layout.heads)
        fixed = [f"{name}={getattr(self, f'constant_{name}').tolist()}" for name in self._constants]
        return ", ".join([*(() if self.family is None else (self.family.name,)), *fixed])


def _named(name: str, constants: frozenset[str]) -> Family:
    family = NAMED.get(name) if isinstance(name, str) else None
    if family is None or family.name in _MATRICES:
        known = ", ".join(sorted(set(NAMED) - _MATRICES))
        raise AmbientError(
            "FisherRao", f"a family among {known}", repr(name), "Or return torch distributions."
        )
    wrong = constants - set(family.names)
    if wrong or not set(family.names) - constants:
        raise AmbientError(
            "FisherRao",
            f"constants among {', '.join(family.names)}",
            ", ".join(sorted(wrong or constants)),
            "",
        )
    missing = family.counts & set(family.names) - constants
    if missing:
        count = ", ".join(sorted(missing))
        raise AmbientError(
            "FisherRao", f"the constant {count}", "none", f'Try FisherRao("{name}", {count}=10).'
        )
    return family


def _check(head: Head) -> None:
    """Announce what is not known in closed form.

    Raises:
        AmbientError: For what has no Fisher information.
    """
    moving = head.family.counts & head.free
    if moving or head.moving_support:
        raise AmbientError(
            "FisherRao",
            f"a {head.family.name} distribution whose support is the same everywhere",
            f"{', '.join(sorted(moving)) or 'bounds'} that depend on z",
            "Fisher information does not exist there: keep it constant.",
        )
    if isinstance(head.family, (Divergence, Quantiles)):
        way = (
            "the Hessian of its divergence"
            if isinstance(head.family, Divergence)
            else "an integral over quantiles"
        )
        warnings.warn(
            f"{head.family.name} has no closed form here: its Fisher information is taken from {way}, "
            "which is slower but exact.",
            FallbackWarning,
            stacklevel=stack_level(),
        )
    if isinstance(head.family, Score):
        warnings.warn(
            f"{head.family.name} has neither a closed form here nor divergence or quantiles in torch: its Fisher "
            "information is estimated from fixed draws of the score, to some per cent. Path solvers may stall.",
            ApproximationWarning,
            stacklevel=stack_level(),
        )


def _precisely(family: Family, p: Params, v: Params) -> Params:
    """``H(p) v``; in float64 where it cancels and the device can."""
    like = next(iter(p.values()))
    if not v or not family.delicate or like.dtype == torch.float64 or like.device.type == "mps":
        return family.product(p, v) if v else {}
    wide = family.product(
        {n: q.double() for n, q in p.items()}, {n: q.double() for n, q in v.items()}
    )
    return {name: value.to(like) for name, value in wide.items()}
