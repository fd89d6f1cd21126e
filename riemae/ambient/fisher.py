"""The Fisher-Rao metric: distances between the distributions that a decoder returns."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from riemae.ambient.base import AmbientMetric, FeatureMetric, ProductMetric
from riemae.ambient.kinds import as_kind
from riemae.differential.jets import plain
from riemae.distributions.closed_form import NAMED
from riemae.distributions.family import Family, Params
from riemae.distributions.layout import AnyLayout, Head, Layout, joined
from riemae.distributions.numerical import Divergence, Quantiles, Score
from riemae.distributions.registry import Registered
from riemae.exceptions import AmbientError, ApproximationWarning, FallbackWarning, stack_level

# Families whose parameters are matrices: a flat tensor does not say of which size.
_MATRICES = {"multivariate_normal", "wishart", "lkj_cholesky"}


class FisherRao(AmbientMetric):
    """Fisher information of the distributions that a decoder returns.

    ``H = E[s sᵀ]`` with the score ``s = ∂ log p``. A decoder that returns ``torch.distributions``
    objects needs no arguments: families are read from what it returns, ``Independent`` and several
    heads (a tuple or dict of distributions) included. All variables are taken as independent, as
    torch has them, and parameters that do not depend on z, such as a constant scale, as known.
    Other families than those of :mod:`riemae.distributions.closed_form` work too: by their
    divergence or quantiles where torch has them, announced by a
    :class:`~riemae.exceptions.FallbackWarning`; elsewhere from fixed draws of the score, announced
    by an :class:`~riemae.exceptions.ApproximationWarning`.

    A decoder that returns a tensor needs the family. Its output holds torch's parameters of that
    name, in the order of the table in :mod:`riemae.distributions.closed_form`, logits rather than
    probabilities; several are halves (thirds …) of the flattened output. Classes are on the last
    axis.

    Args:
        family: Name of a family, for decoders that return tensors.
        **constants: Parameters that the decoder does not return: numbers, or tensors that broadcast
            with its output.

    Raises:
        AmbientError: For an unknown family, or constants that are not its parameters.

    Example:
        >>> import torch
        >>> from riemae import Manifold, ambient
        >>> decoder = lambda z: torch.distributions.Poisson(torch.cat([z.exp(), z.cosh()], -1))
        >>> M = Manifold(decoder, ambient=ambient.FisherRao())
        >>> M.metric(torch.zeros(1, 1))  # λ'²/λ, for λ = e^z and cosh z
        tensor([[[1.]]])
        >>> H = ambient.FisherRao("normal", scale=0.5)
        >>> M = Manifold(lambda z: torch.cat([z, 0 * z], -1), ambient=H)
        >>> M.metric(torch.zeros(1, 1))  # μ'²/σ²
        tensor([[[4.]]])
    """

    def __new__(cls, family: str | None = None, *args: Any, **constants: Any) -> FisherRao:
        """With features where the named family has a feature map, by products elsewhere."""
        if cls is not FisherRao:
            return super().__new__(cls)
        known = None if family is None else _named(family, frozenset(constants))
        unknown = [] if known is None else [(known, known.unknown(constants))]
        return super().__new__(_kind(unknown))

    def __init__(self, family: str | None = None, **constants: float | Tensor) -> None:
        super().__init__()
        self.family = None if family is None else _named(family, frozenset(constants))
        if self.family is None and constants:
            raise AmbientError(
                "FisherRao",
                "a family together with constants",
                ", ".join(constants),
                'Try FisherRao("normal", scale=1).',
            )
        self._constants = tuple(constants)
        for name, value in constants.items():
            if isinstance(value, Tensor):
                tensor = value
            else:
                tensor = torch.tensor(value, dtype=torch.float64)
            self.register_buffer(f"constant_{name}", tensor.detach().clone())
        self.layout: Layout | None = None
        self._shape: torch.Size | None = None

    @property
    def title(self) -> str:
        """What the metric is called in messages."""
        return "FisherRao"

    def _get_name(self) -> str:
        return self.title

    @property
    def foreign(self) -> bool:
        """Whether a family that a user has registered is among those of the decoder."""
        if self.layout is None:
            families = [self.family]
        else:
            families = [head.family for head in self.layout.heads]
        return super().foreign or any(isinstance(family, Registered) for family in families)

    def bind(self, layout: AnyLayout | None, shape: torch.Size) -> FisherRao:
        """This metric for a decoder that returns these distributions.

        Raises:
            AmbientError: When they have no Fisher information, or are of another family than was
                named.

        Warns:
            FallbackWarning: When a family is known by its divergence only.
            ApproximationWarning: When it is known by its density only.
        """
        if layout is None:
            if self.family is None:
                raise AmbientError(
                    "FisherRao",
                    "a decoder that returns torch distributions",
                    "one that returns a tensor",
                    "Return e.g. torch.distributions.Poisson(rate), or name the family: "
                    'FisherRao("poisson").',
                )
            bound = as_kind(self, type(self))
            bound._shape = shape
            return bound
        assert isinstance(layout, Layout)
        found = [head.family.name for head in layout.heads]
        if self.family is not None and any(name != self.family.name for name in found):
            raise AmbientError(
                "FisherRao",
                f"the family {self.family}",
                ", ".join(found),
                "Leave the family out: FisherRao() reads it from the distributions.",
            )
        for head in layout.heads:
            _check(head)
        bound = as_kind(self, _kind((head.family, head.free) for head in layout.heads))
        bound._shape = shape
        bound.layout = layout
        return bound

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
        """Heads with their parameters at ``x``, constants included."""
        if self.layout is None:
            return [self._named_head(x)]
        split = self.layout.split(x.flatten(1))
        pairs = zip(self.layout.heads, split, strict=True)
        return [(head, head.complete(_known(head, p))) for head, p in pairs]

    def _named_head(self, x: Tensor) -> tuple[Head, Params]:
        """The named family with its parameters at ``x``, constants included.

        Raises:
            AmbientError: When no family is named, or ``x`` does not hold its parameters.
        """
        if self.family is None:
            raise AmbientError(
                "FisherRao", "a family", "none", 'Name it, as in FisherRao("poisson").'
            )
        known = self._shape is not None and self._shape.numel() == x[0].numel()
        shape = self._shape if known and self._shape is not None else x.shape[1:]
        names = self.family.unknown(self._constants)
        if len(names) > 1:
            if shape.numel() % len(names):
                raise AmbientError(
                    "FisherRao",
                    f"data of {len(names)} n numbers, n for each of {', '.join(names)}",
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
        return head, p

    def extra_repr(self) -> str:
        """The families."""
        if self.layout is not None:
            return ", ".join(head.family.name for head in self.layout.heads)
        shown = []
        if self.family is not None:
            shown.append(self.family.name)
        for name in self._constants:
            value = getattr(self, f"constant_{name}")
            shown.append(f"{name}={value.tolist()}")
        return ", ".join(shown)


class _FisherRaoFeatures(FisherRao, FeatureMetric):
    """All families have a feature map for the parameters that vary."""

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, q)
        """Arc-length coordinates of all heads."""
        heads = self._heads(x)
        return joined([head.family.features(p, head.free).flatten(1) for head, p in heads])


class _FisherRaoProducts(FisherRao, ProductMetric):
    """Some family has no feature map, or none is known yet."""

    @property
    def is_diagonal(self) -> bool:
        """Whether that of every head is, in closed form."""
        if self.layout is None:
            heads = [] if self.family is None else [self._named_free(self.family)]
        else:
            heads = [(head.family, head.free) for head in self.layout.heads]
        return bool(heads) and all(family.is_diagonal(free) for family, free in heads)

    def diagonal(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D)
        """The diagonal of ``H``, head by head where each has one in closed form."""
        if not self.is_diagonal:
            return super().diagonal(x)
        parts = [head.join(_precise_diagonal(head, p)) for head, p in self._heads(x)]
        return torch.cat(parts, -1)

    def _named_free(self, family: Family) -> tuple[Family, frozenset[str]]:
        return family, frozenset(family.unknown(self._constants)) - family.support_parameters

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``vᵀ H(x) v``; by the diagonal where there is one."""
        if not self.is_diagonal:
            return super().squared_norm(x, v)
        return (self.diagonal(x) * v.flatten(1).square()).sum(-1)

    def squared_length(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """The same; by a diagonal, never negative."""
        if not self.is_diagonal:
            return super().squared_length(x, v)
        return self.squared_norm(x, v)

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``H(x) v``, head by head."""
        heads = self._heads(x)
        parts = v.flatten(1).split([head.size for head, _ in heads], -1)
        products = []
        for (head, p), part in zip(heads, parts, strict=True):
            vectors = head.split(part)
            direction = {name: value for name, value in vectors.items() if name in head.free}
            products.append(head.join(_precise_product(head.family, p, direction)))
        return joined(products)


def _kind(families: Iterable[tuple[Family, Iterable[str]]]) -> type[FisherRao]:
    """The class of metric for families with the parameters that vary in each."""
    maps = [family.has_feature_map(frozenset(free)) for family, free in families]
    return _FisherRaoFeatures if maps and all(maps) else _FisherRaoProducts


def _named(name: str, constants: frozenset[str]) -> Family:
    family = NAMED.get(name) if isinstance(name, str) else None
    if family is None or family.name in _MATRICES:
        known = ", ".join(sorted(set(NAMED) - _MATRICES))
        raise AmbientError(
            "FisherRao",
            f"a family among {known}",
            repr(name),
            "Name one of them, or return torch distributions from the decoder.",
        )
    names = frozenset(family.names)
    wrong = constants - names
    if wrong or not names - constants:
        raise AmbientError(
            "FisherRao",
            f"constants among {', '.join(family.names)}",
            ", ".join(sorted(wrong or constants)),
            "Fix parameters of the family by their names, and leave at least one to the decoder.",
        )
    missing = family.support_parameters & names - constants
    if missing:
        listed = ", ".join(sorted(missing))
        raise AmbientError(
            "FisherRao", f"the constant {listed}", "none", f'Try FisherRao("{name}", {listed}=10).'
        )
    return family


def _check(head: Head) -> None:
    """Announce what is not known in closed form.

    Raises:
        AmbientError: For what has no Fisher information.
    """
    family = head.family
    moving = family.support_parameters & head.free
    if moving or head.moving_support:
        raise AmbientError(
            "FisherRao",
            f"a {family.name} distribution whose support is the same everywhere",
            f"{', '.join(sorted(moving)) or 'bounds'} that depend on z",
            "Fisher information does not exist there: keep it constant.",
        )
    if isinstance(family, Divergence):
        _warn_of_fallback(family.name, "the Hessian of its divergence")
    elif isinstance(family, Quantiles):
        _warn_of_fallback(family.name, "an integral over quantiles")
    elif isinstance(family, Score):
        warnings.warn(
            f"{family.name} has neither a closed form here nor divergence or quantiles in torch: "
            "its Fisher information is estimated from fixed draws of the score, to some per cent. "
            "Path solvers may stall.",
            ApproximationWarning,
            stacklevel=stack_level(),
        )


def _warn_of_fallback(name: str, source: str) -> None:
    warnings.warn(
        f"{name} has no closed form here: its Fisher information is taken from {source}, "
        "which is slower but exact.",
        FallbackWarning,
        stacklevel=stack_level(),
    )


def _precise_product(family: Family, p: Params, v: Params) -> Params:
    """``H(p) v``; in float64 where it cancels and the device can."""
    if not v:
        return {}
    if _wide_enough(family, p):
        return family.product(p, v)
    wide_v = {name: value.double() for name, value in v.items()}
    found = family.product(_wide(p), wide_v)
    return _like(p, found)


def _precise_diagonal(head: Head, p: Params) -> Params:
    """The diagonal of ``H(p)``, likewise."""
    family = head.family
    if _wide_enough(family, p):
        return family.diagonal(p, head.free)
    return _like(p, family.diagonal(_wide(p), head.free))


def _known(head: Head, p: Params) -> Params:
    """The parameters; those that do not depend on the point carry no derivatives in Taylor mode."""
    fixed = head.fixed or frozenset()
    return {name: plain(value) if name in fixed else value for name, value in p.items()}


def _wide_enough(family: Family, p: Params) -> bool:
    like = next(iter(p.values()))
    wide_enough = like.dtype == torch.float64 or like.device.type == "mps"
    return wide_enough or not family.needs_float64


def _wide(p: Params) -> Params:
    return {name: value.double() for name, value in p.items()}


def _like(p: Params, found: Params) -> Params:
    like = next(iter(p.values()))
    return {name: value.to(like) for name, value in found.items()}
